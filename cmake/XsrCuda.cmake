# The CUDA part. One list of sources makes two libraries, each also as a module that libxsr loads when it is asked for a
# CUDA session:
#   xsr_cuda_parts     by nvcc; the module is xsr_cuda, libxsr_cuda.so
#   xsr_cuda_emulated  the same kernels by the host compiler, for tests on machines without a device; the module is
#                      xsr_cuda_emulated_module, libxsr_cuda_emulated.so
file(GLOB xsr_cuda_kernels CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/kernels/*/*_cuda.cu")
file(GLOB xsr_cuda_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/runtime/device/cuda/*.cpp"
  "${PROJECT_SOURCE_DIR}/runtime/encoder/cuda/*.cpp")
list(FILTER xsr_cuda_sources EXCLUDE REGEX "/library_entry\\.cpp$")
set(xsr_cuda_real ${xsr_cuda_sources})
list(FILTER xsr_cuda_real EXCLUDE REGEX "_emulated\\.cpp$")
set(xsr_cuda_plain ${xsr_cuda_sources})
list(FILTER xsr_cuda_plain EXCLUDE REGEX "_(cuda|cublaslt)\\.cpp$")

# What the emulated device's kernels are compiled with so that it sees their accesses to shared memory (emulated.cpp); a
# sanitizer has that place otherwise.
set(xsr_follow_options)
if(NOT XSR_SANITIZE)
  set(xsr_follow_options -fsanitize=thread)
endif()

# nvcc makes one fused operation of a product and the sum it stands in; where this CPU can, so do the emulated device's
# kernels, so that what may not be fused shows.
include(CheckCXXSourceRuns)
set(CMAKE_REQUIRED_FLAGS -mfma)
check_cxx_source_runs("#include <immintrin.h>
  int main(int c, char**) { return _mm_cvtss_si32(_mm_fmadd_ss(_mm_set_ss(c), _mm_set_ss(1), _mm_set_ss(-c))); }" XSR_HAS_FMA)
unset(CMAKE_REQUIRED_FLAGS)
set(xsr_fuse_options)
if(XSR_HAS_FMA)
  set(xsr_fuse_options -mfma -ffp-contract=fast)
endif()

# xsr_add_cuda_objects(TARGET .cu...) an object library of nvcc's.
# xsr_add_emulated_objects(TARGET .cu...) the same for the emulated device: a .cpp that includes each.
function(xsr_add_cuda_objects target)
  add_library(${target} OBJECT ${ARGN})
  target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}" "${PROJECT_SOURCE_DIR}/include")
  target_compile_options(${target} PRIVATE -O3 $<$<BOOL:${XSR_WERROR}>:--Werror=all-warnings>
    -Xcompiler=-Wall,-Wextra -lineinfo -Xptxas=-v,--warn-on-spills)
endfunction()
function(xsr_add_emulated_objects target)
  set(wrappers)
  foreach(source ${ARGN})
    get_filename_component(name ${source} NAME_WE)
    set(wrapper "${PROJECT_BINARY_DIR}/emulated/${name}.cpp")
    file(CONFIGURE OUTPUT "${wrapper}" CONTENT "#include \"${source}\"\n")
    set_source_files_properties("${wrapper}" PROPERTIES OBJECT_DEPENDS "${source}"
      COMPILE_OPTIONS "${xsr_fuse_options}")  # behind -ffp-contract=off
    list(APPEND wrappers "${wrapper}")
  endforeach()
  add_library(${target} OBJECT ${wrappers})
  target_link_libraries(${target} PRIVATE xsr_options)
  target_compile_options(${target} PRIVATE -O2 ${xsr_follow_options})
endfunction()

# xsr_add_cuda_module(TARGET ENTRY LIBRARY): LIBRARY as a module that shows nothing but its entry.
function(xsr_add_cuda_module target entry library)
  set(map "${PROJECT_SOURCE_DIR}/cmake/xsr_cuda.map")
  add_library(${target} MODULE ${entry})
  target_link_libraries(${target} PRIVATE ${library})
  target_link_options(${target} PRIVATE "-Wl,--version-script=${map}" -Wl,--gc-sections -Wl,--as-needed)
  if(NOT XSR_SANITIZE)  # clang leaves the sanitizers' own symbols to the program
    target_link_options(${target} PRIVATE -Wl,-z,defs)
  endif()
  set_target_properties(${target} PROPERTIES LINK_DEPENDS "${map}")
endfunction()
set(xsr_cuda_entry "${PROJECT_SOURCE_DIR}/runtime/encoder/cuda/library_entry.cpp")

if(XSR_BUILD_TESTS)
  xsr_add_emulated_objects(xsr_cuda_emulated_kernels ${xsr_cuda_kernels})
  add_library(xsr_cuda_emulated STATIC "${PROJECT_SOURCE_DIR}/kernels/cuda/emulated.cpp" ${xsr_cuda_plain}
    $<TARGET_OBJECTS:xsr_cuda_emulated_kernels>)
  target_link_libraries(xsr_cuda_emulated PUBLIC xsr_runtime)
  if(xsr_follow_options)
    target_compile_definitions(xsr_cuda_emulated PRIVATE XSR_FOLLOW_ACCESSES)
  endif()
  xsr_add_cuda_module(xsr_cuda_emulated_module ${xsr_cuda_entry} xsr_cuda_emulated)
  set_target_properties(xsr_cuda_emulated_module PROPERTIES OUTPUT_NAME xsr_cuda_emulated)
endif()

if(XSR_CUDA STREQUAL "ON")
  xsr_add_cuda_objects(xsr_cuda_kernels ${xsr_cuda_kernels})
  # The objects are a library of their own, so that tests see what libxsr_cuda.so hides.
  add_library(xsr_cuda_parts STATIC ${xsr_cuda_real} $<TARGET_OBJECTS:xsr_cuda_kernels>)
  set_target_properties(xsr_cuda_parts PROPERTIES LINKER_LANGUAGE CXX)
  target_link_libraries(xsr_cuda_parts PUBLIC xsr_runtime CUDA::cudart_static CUDA::cublasLt)
  xsr_add_cuda_module(xsr_cuda ${xsr_cuda_entry} xsr_cuda_parts)
  set_target_properties(xsr_cuda PROPERTIES LIBRARY_OUTPUT_DIRECTORY "$<TARGET_FILE_DIR:xsr>")  # where libxsr looks first

  # The emulated device with nvcc's kernels, whose PTX is carried out instruction by instruction.
  if(XSR_BUILD_TESTS)
    add_library(xsr_cuda_ptx STATIC "${PROJECT_SOURCE_DIR}/kernels/cuda/emulated.cpp" ${xsr_cuda_plain}
      "${PROJECT_SOURCE_DIR}/tests/ptx/launch.cpp" $<TARGET_OBJECTS:xsr_cuda_kernels>)
    set_target_properties(xsr_cuda_ptx PROPERTIES LINKER_LANGUAGE CXX)
    target_link_libraries(xsr_cuda_ptx PUBLIC xsr_runtime PRIVATE xsr_ptx xsr_zstd)
    xsr_add_cuda_module(xsr_cuda_ptx_module ${xsr_cuda_entry} xsr_cuda_ptx)
    set_target_properties(xsr_cuda_ptx_module PROPERTIES OUTPUT_NAME xsr_cuda_ptx)
  endif()
endif()
