# OPFUSE_VERSION: from scikit-build-core, or from pyproject.toml in a plain CMake build.
if(DEFINED SKBUILD_PROJECT_VERSION)
  set(OPFUSE_VERSION ${SKBUILD_PROJECT_VERSION})
else()
  file(STRINGS "${CMAKE_CURRENT_SOURCE_DIR}/pyproject.toml" line REGEX "^version = ")
  string(REGEX REPLACE "^version = \"(.*)\"$" "\\1" OPFUSE_VERSION "${line}")
endif()
