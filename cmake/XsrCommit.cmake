# xsr_commit: the commit of the last configure, for what states where its figures come from.
set(xsr_commit "")
find_package(Git QUIET)
if(Git_FOUND)
  # Unpacked among what another project builds (FetchContent), the commit would be that project's.
  execute_process(COMMAND "${GIT_EXECUTABLE}" ls-files --error-unmatch CMakeLists.txt
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}" RESULT_VARIABLE xsr_untracked OUTPUT_QUIET ERROR_QUIET)
endif()
if(Git_FOUND AND NOT xsr_untracked)
  execute_process(COMMAND "${GIT_EXECUTABLE}" describe --always --dirty --abbrev=12
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}" OUTPUT_VARIABLE xsr_commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
# Every commit and checkout is written to the log of HEAD: configure again then.
if(xsr_commit)
  execute_process(COMMAND "${GIT_EXECUTABLE}" rev-parse --path-format=absolute --git-path logs/HEAD
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}" OUTPUT_VARIABLE xsr_head_log OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(EXISTS "${xsr_head_log}")
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${xsr_head_log}")
  endif()
else()
  set(xsr_commit "unknown")
endif()
