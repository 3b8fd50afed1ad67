# The libraries the project builds on. scripts/install-deps.sh provides every one of them.
find_package(Threads REQUIRED)

# SentencePiece is linked statically and its symbols stay hidden: libxsr.so must not fight with another copy in
# the same process, and Debian ships no static library, so install-deps.sh builds one from Debian's source package.
find_library(XSR_SENTENCEPIECE_LIBRARY NAMES libsentencepiece.a
  HINTS "${PROJECT_SOURCE_DIR}/.deps/sentencepiece/lib" REQUIRED)
find_path(XSR_SENTENCEPIECE_INCLUDE_DIR NAMES sentencepiece_processor.h
  HINTS "${PROJECT_SOURCE_DIR}/.deps/sentencepiece/include" NO_DEFAULT_PATH REQUIRED)
add_library(xsr_sentencepiece STATIC IMPORTED)
set_target_properties(xsr_sentencepiece PROPERTIES
  IMPORTED_LOCATION "${XSR_SENTENCEPIECE_LIBRARY}"
  INTERFACE_INCLUDE_DIRECTORIES "${XSR_SENTENCEPIECE_INCLUDE_DIR}"
  INTERFACE_LINK_LIBRARIES Threads::Threads)

# Header-only xxHash: one inlined implementation, no run-time dependency.
find_path(XSR_XXHASH_INCLUDE_DIR NAMES xxhash.h REQUIRED)
add_library(xsr_xxhash INTERFACE)
target_include_directories(xsr_xxhash SYSTEM INTERFACE "${XSR_XXHASH_INCLUDE_DIR}")
target_compile_definitions(xsr_xxhash INTERFACE XXH_INLINE_ALL)

if(XSR_BUILD_TOOLS OR XSR_BUILD_TESTS)
  find_package(CLI11 REQUIRED)
  find_package(nlohmann_json REQUIRED)
  find_package(fmt REQUIRED)
  find_package(ZLIB REQUIRED)
  find_path(XSR_TOMLPLUSPLUS_INCLUDE_DIR NAMES toml++/toml.h REQUIRED)
  add_library(xsr_tomlplusplus INTERFACE)
  target_include_directories(xsr_tomlplusplus SYSTEM INTERFACE "${XSR_TOMLPLUSPLUS_INCLUDE_DIR}")
  find_package(OpenSSL REQUIRED COMPONENTS Crypto)  # SHA-256 of the converter's input
  find_library(XSR_ZSTD_LIBRARY NAMES zstd REQUIRED)
  find_path(XSR_ZSTD_INCLUDE_DIR NAMES zstd.h REQUIRED)
  add_library(xsr_zstd INTERFACE)
  target_include_directories(xsr_zstd SYSTEM INTERFACE "${XSR_ZSTD_INCLUDE_DIR}")
  target_link_libraries(xsr_zstd INTERFACE "${XSR_ZSTD_LIBRARY}")

  # The trainer of SentencePiece models: a library of its own beside the other, and not part of libxsr.so.
  find_library(XSR_SENTENCEPIECE_TRAIN_LIBRARY NAMES libsentencepiece_train.a
    HINTS "${PROJECT_SOURCE_DIR}/.deps/sentencepiece/lib" REQUIRED)
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
