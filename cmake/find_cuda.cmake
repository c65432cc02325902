# Finds nvcc and enables the language CUDA, or says in one line why the kernels for GPUs are left out. Sets
# SHARDWRIGHT_CUDA_FOUND.
#
# Asks for nothing but the CUDA toolkit: which flavour of torch is installed makes no difference.

set(SHARDWRIGHT_CUDA_FOUND OFF)
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)  # A100, H100, B200, and PTX of the last for what comes after
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100)
endif()
set(_fault "no nvcc was found")
find_program(SHARDWRIGHT_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
mark_as_advanced(SHARDWRIGHT_NVCC)
if(SHARDWRIGHT_NVCC)
  execute_process(COMMAND "${SHARDWRIGHT_NVCC}" --version OUTPUT_VARIABLE _nvcc_version ERROR_QUIET)
  string(REGEX MATCH "release ([0-9.]+)" _nvcc_version "${_nvcc_version}")
  set(_nvcc_version "${CMAKE_MATCH_1}")
  if(_nvcc_version VERSION_LESS 12.8)  # the first that knows sm_100
    set(_fault "CUDA 12.8 or later is needed, ${SHARDWRIGHT_NVCC} is of version \"${_nvcc_version}\"")
  else()
    if(NOT CMAKE_CUDA_COMPILER)
      set(CMAKE_CUDA_COMPILER "${SHARDWRIGHT_NVCC}")
    endif()
    if(NOT CMAKE_CUDA_HOST_COMPILER)
      set(CMAKE_CUDA_HOST_COMPILER "${CMAKE_CXX_COMPILER}")
    endif()
    set(CMAKE_CUDA_RUNTIME_LIBRARY None)  # our targets name it, so that it comes with them
    # A toolkit that does not get on with this compiler must not end the configuration: it is tried out first.
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
      enable_language(CUDA)
      foreach(kind STANDARD EXTENSION)  # CMake 3.25 knows no C++20 for CUDA
        if(NOT CMAKE_CUDA20_${kind}_COMPILE_OPTION)
          set(CMAKE_CUDA20_${kind}_COMPILE_OPTION "-std=c++20")
        endif()
      endforeach()
      find_package(CUDAToolkit QUIET)
    endif()
    if(TARGET CUDA::cudart_static)
      set(SHARDWRIGHT_CUDA_FOUND ON)
      message(STATUS "Found CUDA ${CMAKE_CUDA_COMPILER_VERSION}: kernels for ${CMAKE_CUDA_ARCHITECTURES}")
    else()
      set(_fault "${SHARDWRIGHT_NVCC} does not work with ${CMAKE_CXX_COMPILER}, or lacks the static CUDA run-time")
    endif()
  endif()
endif()
if(NOT SHARDWRIGHT_CUDA_FOUND)
  message(STATUS "Building without the kernels for GPUs: ${_fault}")
endif()
