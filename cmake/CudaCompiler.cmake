# The CUDA compiler: CUDACXX, else the system's nvcc.  Where there is none, `pip install .` sets
# CUDACXX to the nvcc of the PyPI wheels (build_backend/opfuse_build.py).
if(DEFINED ENV{CUDACXX} AND NOT DEFINED CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_COMPILER "$ENV{CUDACXX}")
elseif(NOT DEFINED CMAKE_CUDA_COMPILER)
  find_program(OPFUSE_NVCC nvcc PATHS /usr/local/cuda/bin DOC "The CUDA compiler")
  if(NOT OPFUSE_NVCC)
    message(FATAL_ERROR "No nvcc. Set CUDACXX, install the CUDA toolkit, or build with "
      "`pip install .`, which brings the compiler wheels from PyPI.")
  endif()
  set(CMAKE_CUDA_COMPILER "${OPFUSE_NVCC}")
endif()
message(STATUS "opfuse: CUDA compiler ${CMAKE_CUDA_COMPILER}")
