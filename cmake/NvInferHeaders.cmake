# OPFUSE_NVINFER_INCLUDE_DIR, OPFUSE_NVINFER_MAJOR: TensorRT's headers, the first found of
# TENSORRT_ROOT, the system, a PyPI package that ships them, and NVIDIA's repository at a tag.
# Only headers: the library links nothing of TensorRT.

# From PyPI, without its dependencies; the hash pins what was read and tested.
function(opfuse_headers_from_pypi out)
  set(target "${CMAKE_BINARY_DIR}/nvinfer_headers")
  find_package(Python3 COMPONENTS Interpreter)
  if(Python3_FOUND AND NOT EXISTS "${target}/kernel_lens/include/tensorrt/NvInfer.h")
    execute_process(
      COMMAND "${Python3_EXECUTABLE}" -m pip install --quiet --no-deps --no-compile --upgrade
        --disable-pip-version-check --only-binary=:all: --require-hashes --target "${target}"
        -r "${PROJECT_SOURCE_DIR}/cmake/nvinfer-headers.txt"
      RESULT_VARIABLE failed ERROR_VARIABLE error)
    if(failed)
      message(STATUS "opfuse: no TensorRT headers from PyPI: ${error}")
    endif()
  endif()
  set(${out} "${target}/kernel_lens/include/tensorrt" PARENT_SCOPE)
endfunction()

function(opfuse_headers_from_git out)
  set(target "${CMAKE_BINARY_DIR}/nvinfer_repository")
  find_package(Git)
  if(Git_FOUND AND NOT EXISTS "${target}/include/NvInfer.h")
    execute_process(
      COMMAND "${GIT_EXECUTABLE}" clone --quiet --depth 1 --branch "${OPFUSE_TENSORRT_TAG}"
        https://github.com/NVIDIA/TensorRT.git "${target}"
      RESULT_VARIABLE failed ERROR_VARIABLE error)
    if(failed)
      message(STATUS "opfuse: no TensorRT headers from NVIDIA/TensorRT: ${error}")
    endif()
  endif()
  set(${out} "${target}/include" PARENT_SCOPE)
endfunction()

# Sets OPFUSE_NVINFER_INCLUDE_DIR and `source` in the caller where `dir` holds the headers.
macro(opfuse_try_headers dir from)
  if(NOT OPFUSE_NVINFER_INCLUDE_DIR AND EXISTS "${dir}/NvInfer.h")
    set(OPFUSE_NVINFER_INCLUDE_DIR "${dir}")
    set(source "${from}")
  endif()
endmacro()

set(OPFUSE_TENSORRT_TAG v10.14 CACHE STRING "Tag of NVIDIA/TensorRT to take headers from")
set(root "$ENV{TENSORRT_ROOT}")
if(DEFINED TENSORRT_ROOT)
  set(root "${TENSORRT_ROOT}")
endif()
set(source "given")
if(root)
  opfuse_try_headers("${root}/include" "TENSORRT_ROOT")
  opfuse_try_headers("${root}" "TENSORRT_ROOT")
  opfuse_try_headers("${root}/include/${CMAKE_LIBRARY_ARCHITECTURE}" "TENSORRT_ROOT")
  if(NOT OPFUSE_NVINFER_INCLUDE_DIR)
    message(FATAL_ERROR "TENSORRT_ROOT is ${root}, and there is no include/NvInfer.h in it")
  endif()
endif()
foreach(dir /usr/include/${CMAKE_LIBRARY_ARCHITECTURE} /usr/include /usr/local/include
    /usr/local/tensorrt/include /usr/local/TensorRT/include /opt/tensorrt/include)
  opfuse_try_headers("${dir}" "the system")
endforeach()
if(NOT OPFUSE_NVINFER_INCLUDE_DIR)
  opfuse_headers_from_pypi(dir)
  opfuse_try_headers("${dir}" "the PyPI package kernel-lens")
endif()
if(NOT OPFUSE_NVINFER_INCLUDE_DIR)
  opfuse_headers_from_git(dir)
  opfuse_try_headers("${dir}" "NVIDIA/TensorRT ${OPFUSE_TENSORRT_TAG}")
endif()
if(NOT OPFUSE_NVINFER_INCLUDE_DIR)
  message(FATAL_ERROR "No TensorRT headers (NvInfer.h). Set TENSORRT_ROOT to a TensorRT folder.")
endif()

# NV_TENSORRT_MAJOR is a number, or (10.14 and newer) the name of another macro that is one.
file(READ "${OPFUSE_NVINFER_INCLUDE_DIR}/NvInferVersion.h" version_header)
foreach(name TRT_MAJOR_ENTERPRISE NV_TENSORRT_MAJOR)
  if(version_header MATCHES "#define ${name} ([0-9]+)")
    set(OPFUSE_NVINFER_MAJOR ${CMAKE_MATCH_1})
  endif()
endforeach()
foreach(name TRT_MINOR_ENTERPRISE NV_TENSORRT_MINOR)
  if(version_header MATCHES "#define ${name} ([0-9]+)")
    set(minor ${CMAKE_MATCH_1})
  endif()
endforeach()
message(STATUS "opfuse: TensorRT ${OPFUSE_NVINFER_MAJOR}.${minor} headers from ${source}: "
  "${OPFUSE_NVINFER_INCLUDE_DIR}")
