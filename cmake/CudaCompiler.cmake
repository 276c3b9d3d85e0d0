# CMAKE_CUDA_COMPILER: CUDACXX, else the system's nvcc, else the nvcc of the PyPI wheels, which the
# build backend asks for where there is no other.
if(NOT DEFINED CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  set(wheel_roots ${CMAKE_PREFIX_PATH})
  list(TRANSFORM wheel_roots APPEND /nvidia/cu13/bin)
  find_program(OPFUSE_NVCC nvcc
    PATHS /usr/local/cuda/bin ${wheel_roots}
    DOC "The CUDA compiler")
  if(NOT OPFUSE_NVCC)
    message(FATAL_ERROR "No nvcc. Set CUDACXX, install the CUDA toolkit, or build with "
      "`pip install .`, which brings the compiler wheels from PyPI.")
  endif()
  set(CMAKE_CUDA_COMPILER "${OPFUSE_NVCC}")
endif()
if(DEFINED CMAKE_CUDA_COMPILER)
  message(STATUS "opfuse: CUDA compiler ${CMAKE_CUDA_COMPILER}")
else()
  message(STATUS "opfuse: CUDA compiler $ENV{CUDACXX} (CUDACXX)")
endif()
