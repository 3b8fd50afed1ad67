# What `cmake --install` lays down: the library, its two headers, the tools, the shipped models, and what lets
# another project find them, with CMake (find_package(xsr), target xsr::xsr) or with pkg-config (xsr.pc).
if(XSR_EMULATE_ISA)
  install(CODE "message(FATAL_ERROR \"This build emulates instruction sets for tests (XSR_EMULATE_ISA); it is not for use.\")")
endif()
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS xsr EXPORT xsrTargets
  LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
  INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
# libxsr and xsr-train look for these beside themselves, and in the folder of libraries next to their own.
foreach(library xsr_cuda xsr_train_cuda)
  if(TARGET ${library})
    install(TARGETS ${library} LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
  endif()
endforeach()
install(FILES include/xsr/xsr.h include/xsr/xsr.hpp DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/xsr")
foreach(tool xsr-convert xsr-embed xsr-train xsr-bench)
  if(TARGET ${tool})
    install(TARGETS ${tool} RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
  endif()
endforeach()

file(GLOB xsr_shipped_models CONFIGURE_DEPENDS models/*)
install(FILES ${xsr_shipped_models} DESTINATION "${CMAKE_INSTALL_DATADIR}/xsr/models")
install(FILES LICENSE NOTICE DESTINATION "${CMAKE_INSTALL_DOCDIR}")

set(xsr_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/xsr")
install(EXPORT xsrTargets NAMESPACE xsr:: DESTINATION "${xsr_package_dir}")
configure_package_config_file(cmake/xsrConfig.cmake.in "${CMAKE_CURRENT_BINARY_DIR}/xsrConfig.cmake"
  INSTALL_DESTINATION "${xsr_package_dir}" PATH_VARS CMAKE_INSTALL_DATADIR)
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/xsrConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/xsrConfig.cmake" "${CMAKE_CURRENT_BINARY_DIR}/xsrConfigVersion.cmake"
  DESTINATION "${xsr_package_dir}")

# Relative to the .pc file, so that an installed tree can be moved.
file(RELATIVE_PATH xsr_pc_prefix "/p/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/p")
string(REGEX REPLACE "/$" "" xsr_pc_prefix "${xsr_pc_prefix}")
configure_file(cmake/xsr.pc.in "${CMAKE_CURRENT_BINARY_DIR}/xsr.pc" @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/xsr.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
