# xsr_options carries what every target of the project is compiled with.
add_library(xsr_options INTERFACE)
target_include_directories(xsr_options INTERFACE "${PROJECT_SOURCE_DIR}" "${PROJECT_SOURCE_DIR}/include")
# Whoever builds it, with whatever flags, gets the same bits: a product and a sum are two roundings, and what -ffast-math or a part
# of it loosens is taken back, with the start-up code by which it sets a process's denormals to 0. gcc 12 takes no byte's sign
# for a mask where char has none: _mm256_blendv_epi8.
string(TOUPPER "${CMAKE_BUILD_TYPE};${CMAKE_CONFIGURATION_TYPES}" xsr_build_types)
foreach(language C CXX)
  string(REPLACE "-Ofast" "-O3" CMAKE_${language}_FLAGS "${CMAKE_${language}_FLAGS}")  # its start-up code has no other switch
  foreach(type ${xsr_build_types})
    string(REPLACE "-Ofast" "-O3" CMAKE_${language}_FLAGS_${type} "${CMAKE_${language}_FLAGS_${type}}")
  endforeach()
endforeach()
target_compile_options(xsr_options INTERFACE -fno-fast-math -ffp-contract=off -fsigned-char -Wall -Wextra
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>  # GCC bug 105651: false alarms in std::string's operator+
  $<$<BOOL:${XSR_WERROR}>:-Werror>)
target_link_options(xsr_options INTERFACE -fno-fast-math -fno-unsafe-math-optimizations)
if(XSR_SANITIZE)
  target_compile_options(xsr_options INTERFACE -fsanitize=${XSR_SANITIZE} -fno-omit-frame-pointer
    -fno-sanitize-recover=all)
  target_link_options(xsr_options INTERFACE -fsanitize=${XSR_SANITIZE})
endif()

# What kernels are compiled with in every build type, since an unoptimised register loop measures nothing and an
# unoptimised kernel takes minutes; sanitizers' checks leave -O3 little to do and much to compile, and of tiles that hold
# twice as many vectors as there are registers gcc makes no more by it.
set(XSR_KERNEL_OPTIMISATION -O3)
if(XSR_SANITIZE OR XSR_EMULATE_ISA)
  set(XSR_KERNEL_OPTIMISATION -O1)
endif()

# What the largest files and those that others repeat do without under UndefinedBehaviorSanitizer: these checks are many, and
# double what some take to compile.
set(XSR_FEWER_CHECKS -fno-sanitize=null,alignment,pointer-overflow)

# The flags of the files that are written for one instruction set, by their names. To be called where the files' target is.
function(xsr_set_isa_flags)
  set(avx2 ${XSR_KERNEL_OPTIMISATION} -mavx2 -mfma -mf16c)
  # Without BF16's instructions, which round subnormals otherwise, also where -march=native brings them.
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mno-avx512bf16)
  # GCC's own AVX-512 headers read the "undefined" vectors they declare (GCC bug 105593).
  list(APPEND avx512 $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized> $<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized>)
  # As the AVX2 tiles, which keep them.
  if(XSR_SANITIZE MATCHES "undefined")
    list(APPEND avx512 ${XSR_FEWER_CHECKS})
  endif()
  set(avx2_vnni ${avx2} -mavxvnni)
  set(avx512_vnni ${avx512} -mavx512vnni)
  set(avx512_bf16 ${avx512} -mavx512bf16)
  set(amx ${avx512_bf16} -mavx512vnni -mamx-tile -mamx-bf16 -mamx-int8)
  if(XSR_EMULATE_ISA)
    set(avx512 ${XSR_KERNEL_OPTIMISATION} -mavx2 -mfma -mf16c -DXSR_EMULATE_ISA -include "${PROJECT_SOURCE_DIR}/kernels/simd/emulated_avx512.h"
      $<$<CXX_COMPILER_ID:GNU>:-Wno-psabi>)  # nothing outside a file is called with such vectors
    set(avx2_vnni ${avx2} -DXSR_EMULATE_ISA)
    set(avx512_vnni ${avx512})
    set(avx512_bf16 ${avx512} -DXSR_EMULATE_AVX512_BF16)
    set(amx ${avx512_bf16})
  endif()
  foreach(source ${ARGN})
    if(source MATCHES "_(avx2|avx2_vnni|avx512|avx512_vnni|avx512_bf16|amx)\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${${CMAKE_MATCH_1}}")
    endif()
  endforeach()
endfunction()

# What calls the libraries, where the time is spent, and is itself templates of GoogleTest, CLI11 and JSON, which -O3 compiles
# twice as long, and sanitizers at -O1 too.
set(XSR_QUICK_OPTIONS $<$<CONFIG:Release>:-O1>)
if(XSR_SANITIZE)
  set(XSR_QUICK_OPTIONS -O0)
endif()
# xsr_compile_quickly(TARGET...): programs of that kind; tests not optimised at all, but for those that hold plain loops, which
# sanitizers make slow enough.
# xsr_compile_files_quickly(LIBRARY SOURCE...): files of that kind in a library, to be called where it is; with sanitizers all of
# it: half the time to compile, and quick enough for small data, since loops are in the kernels.
function(xsr_compile_quickly)
  set(with_loops "^(activation|dropout|golden|gradients|kernels|optimizer|training_golden)_test$")
  foreach(target ${ARGN})
    set(options ${XSR_QUICK_OPTIONS})
    if(target MATCHES "${with_loops}")
      if(XSR_SANITIZE)
        set(options)
      endif()
    elseif(target MATCHES "_test$")
      set(options -O0)
    endif()
    if(target MATCHES "_test$" AND XSR_SANITIZE MATCHES "undefined")
      list(APPEND options ${XSR_FEWER_CHECKS})
    endif()
    target_compile_options(${target} PRIVATE ${options})
  endforeach()
endfunction()
function(xsr_compile_files_quickly library)
  if(XSR_SANITIZE)
    target_compile_options(${library} PRIVATE ${XSR_QUICK_OPTIONS})
  else()
    set_property(SOURCE ${ARGN} APPEND PROPERTY COMPILE_OPTIONS ${XSR_QUICK_OPTIONS})
  endif()
endfunction()

# xsr_unite(LIBRARY...): libraries whose files XSR_UNITY compiles together. Those with options of their own stay by themselves.
function(xsr_unite)
  if(XSR_UNITY)
    set_target_properties(${ARGN} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 10)
    foreach(library ${ARGN})  # which takes the files for headers
      target_compile_options(${library} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>)
    endforeach()
  endif()
endfunction()

# xsr_precompile(TEST): shares what nearly all tests include, compiled once for each set of options, where XSR_PCH is on.
function(xsr_precompile test)
  if(NOT XSR_PCH)
    return()
  endif()
  get_target_property(options ${test} COMPILE_OPTIONS)
  string(MD5 options "${options}")
  get_property(owner GLOBAL PROPERTY xsr_precompiled_${options})
  if(owner)
    target_precompile_headers(${test} REUSE_FROM ${owner})
  else()
    target_precompile_headers(${test} PRIVATE <algorithm> <cmath> <filesystem> <fstream> <functional> <map> <memory> <random> <span>
      <string> <thread> <vector> <gmock/gmock.h> <gtest/gtest.h> <nlohmann/json.hpp>)
    set_property(GLOBAL PROPERTY xsr_precompiled_${options} ${test})
  endif()
endfunction()

# xsr_cover_for_fuzzers(TARGET): what the fuzzers feed tells them where an input led.
function(xsr_cover_for_fuzzers target)
  if(XSR_BUILD_FUZZERS)
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
endfunction()
