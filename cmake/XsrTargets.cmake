# xsr_options carries what every target of the project is compiled with.
add_library(xsr_options INTERFACE)
target_include_directories(xsr_options INTERFACE "${PROJECT_SOURCE_DIR}" "${PROJECT_SOURCE_DIR}/include")
target_compile_options(xsr_options INTERFACE -Wall -Wextra -ffp-contract=off
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>  # GCC bug 105651: false alarms in std::string's operator+
  $<$<BOOL:${XSR_WERROR}>:-Werror>)
if(XSR_SANITIZE)
  target_compile_options(xsr_options INTERFACE -fsanitize=${XSR_SANITIZE} -fno-omit-frame-pointer
    -fno-sanitize-recover=all)
  target_link_options(xsr_options INTERFACE -fsanitize=${XSR_SANITIZE})
endif()
