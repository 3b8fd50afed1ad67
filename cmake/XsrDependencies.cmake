# The libraries the project builds on. scripts/install-deps.sh provides every one of them.
find_package(Threads REQUIRED)

# xsr_require(WHAT VARIABLE...): find_library and find_path name a variable only.
function(xsr_require what)
  foreach(variable ${ARGN})
    if(NOT ${variable})
      message(FATAL_ERROR "${what} is not found (${variable}): \"${PROJECT_SOURCE_DIR}/scripts/install-deps.sh\" installs it, on Debian")
    endif()
  endforeach()
endfunction()

# SentencePiece is linked statically and its symbols stay hidden: libxsr.so must not fight with another copy in
# the same process, and Debian ships no static library, so install-deps.sh builds one from Debian's source package.
find_library(XSR_SENTENCEPIECE_LIBRARY NAMES libsentencepiece.a
  HINTS "${PROJECT_SOURCE_DIR}/.deps/sentencepiece/lib")
find_path(XSR_SENTENCEPIECE_INCLUDE_DIR NAMES sentencepiece_processor.h
  HINTS "${PROJECT_SOURCE_DIR}/.deps/sentencepiece/include" NO_DEFAULT_PATH)
xsr_require("SentencePiece's static library" XSR_SENTENCEPIECE_LIBRARY XSR_SENTENCEPIECE_INCLUDE_DIR)
add_library(xsr_sentencepiece STATIC IMPORTED)
set_target_properties(xsr_sentencepiece PROPERTIES
  IMPORTED_LOCATION "${XSR_SENTENCEPIECE_LIBRARY}"
  INTERFACE_INCLUDE_DIRECTORIES "${XSR_SENTENCEPIECE_INCLUDE_DIR}"
  INTERFACE_LINK_LIBRARIES Threads::Threads)

# Header-only xxHash: one inlined implementation, no run-time dependency.
find_path(XSR_XXHASH_INCLUDE_DIR NAMES xxhash.h)
xsr_require(xxHash XSR_XXHASH_INCLUDE_DIR)
add_library(xsr_xxhash INTERFACE)
target_include_directories(xsr_xxhash SYSTEM INTERFACE "${XSR_XXHASH_INCLUDE_DIR}")
# The baseline's vectors whatever -march says: of wider ones gcc 12 warns (GCC bug 105593).
target_compile_definitions(xsr_xxhash INTERFACE XXH_INLINE_ALL XXH_VECTOR=XXH_SSE2)

if(XSR_BUILD_TOOLS OR XSR_BUILD_TESTS)
  find_package(CLI11 REQUIRED)
  find_package(nlohmann_json REQUIRED)
  find_package(fmt REQUIRED)
  find_package(ZLIB REQUIRED)
  find_path(XSR_TOMLPLUSPLUS_INCLUDE_DIR NAMES toml++/toml.h)
  xsr_require(toml++ XSR_TOMLPLUSPLUS_INCLUDE_DIR)
  add_library(xsr_tomlplusplus INTERFACE)
  target_include_directories(xsr_tomlplusplus SYSTEM INTERFACE "${XSR_TOMLPLUSPLUS_INCLUDE_DIR}")
  find_package(OpenSSL REQUIRED COMPONENTS Crypto)  # SHA-256 of the converter's input
  find_library(XSR_ZSTD_LIBRARY NAMES zstd)
  find_path(XSR_ZSTD_INCLUDE_DIR NAMES zstd.h)
  xsr_require(Zstandard XSR_ZSTD_LIBRARY XSR_ZSTD_INCLUDE_DIR)
  add_library(xsr_zstd INTERFACE)
  target_include_directories(xsr_zstd SYSTEM INTERFACE "${XSR_ZSTD_INCLUDE_DIR}")
  target_link_libraries(xsr_zstd INTERFACE "${XSR_ZSTD_LIBRARY}")

  # The trainer of SentencePiece models: a library of its own beside the other, and not part of libxsr.so.
  find_library(XSR_SENTENCEPIECE_TRAIN_LIBRARY NAMES libsentencepiece_train.a
    HINTS "${PROJECT_SOURCE_DIR}/.deps/sentencepiece/lib")
  xsr_require("SentencePiece's trainer, a static library," XSR_SENTENCEPIECE_TRAIN_LIBRARY)
  add_library(xsr_sentencepiece_train STATIC IMPORTED)
  set_target_properties(xsr_sentencepiece_train PROPERTIES
    IMPORTED_LOCATION "${XSR_SENTENCEPIECE_TRAIN_LIBRARY}"
    INTERFACE_LINK_LIBRARIES xsr_sentencepiece)
endif()
if(XSR_ONEDNN)
  find_package(dnnl QUIET)
  if(NOT dnnl_FOUND)
    message(STATUS "oneDNN not found: its gemm and the bench's yardstick are left out")
  endif()
endif()
if(XSR_BUILD_TESTS)
  find_package(GTest REQUIRED)
endif()
if(XSR_BUILD_TOOLS AND XSR_BUILD_BENCH)
  find_package(benchmark REQUIRED)
endif()
