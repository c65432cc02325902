# Finds an installed PyTorch by its files: without importing it, which does not work inside pip's build isolation, and
# without find_package(Torch), which for a CUDA wheel demands the CUDA toolkit.
#
# Looks at SHARDWRIGHT_TORCH_DIR (the folder `torch` of a site-packages) if set, else into the site-packages of
# Python3_EXECUTABLE. Sets SHARDWRIGHT_TORCH_FOUND; if that is ON, SHARDWRIGHT_TORCH_VERSION and the targets
# shardwright::libtorch and shardwright::libtorch_python, whose headers count as system headers; if OFF,
# SHARDWRIGHT_TORCH_FAULT, the reason.

set(SHARDWRIGHT_TORCH_FOUND OFF)
set(SHARDWRIGHT_TORCH_FAULT "")
set(_torch_dir "${SHARDWRIGHT_TORCH_DIR}")
if(NOT _torch_dir AND Python3_EXECUTABLE)
  execute_process(
    COMMAND "${Python3_EXECUTABLE}" -c "
import os, sys, sysconfig
for folder in [sysconfig.get_path('purelib'), sysconfig.get_path('platlib')] + sys.path[1:]:
    if os.path.exists(os.path.join(folder, 'torch', 'version.py')):
        print(os.path.join(folder, 'torch'))
        break"
    OUTPUT_VARIABLE _torch_dir OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()

if(NOT _torch_dir)
  set(SHARDWRIGHT_TORCH_FAULT
      "there is no PyTorch in the site-packages of ${Python3_EXECUTABLE}, and SHARDWRIGHT_TORCH_DIR is not set")
elseif(NOT EXISTS "${_torch_dir}/version.py" OR NOT EXISTS "${_torch_dir}/lib/libtorch_cpu.so")
  set(SHARDWRIGHT_TORCH_FAULT
      "${_torch_dir} is not the folder of an installed PyTorch: it lacks version.py or lib/libtorch_cpu.so")
else()
  file(STRINGS "${_torch_dir}/version.py" _torch_version REGEX "^__version__")
  string(REGEX REPLACE "^__version__ = ['\"]([^'\"]*)['\"].*" "\\1" _torch_version "${_torch_version}")
  string(REGEX MATCH "^[0-9]+\\.[0-9]+(\\.[0-9]+)?" SHARDWRIGHT_TORCH_VERSION "${_torch_version}")
  if(SHARDWRIGHT_TORCH_VERSION VERSION_LESS 2.11)
    set(SHARDWRIGHT_TORCH_FAULT "PyTorch 2.11 or later is needed, ${_torch_dir} holds \"${_torch_version}\"")
  else()
    message(STATUS "Found PyTorch ${_torch_version}: ${_torch_dir}")
    set(SHARDWRIGHT_TORCH_FOUND ON)
  endif()
endif()

if(SHARDWRIGHT_TORCH_FOUND AND NOT TARGET shardwright::libtorch)
  add_library(shardwright::libtorch INTERFACE IMPORTED GLOBAL)
  target_include_directories(shardwright::libtorch INTERFACE "${_torch_dir}/include"
                                                             "${_torch_dir}/include/torch/csrc/api/include")
  target_link_libraries(shardwright::libtorch INTERFACE "${_torch_dir}/lib/libtorch.so" "${_torch_dir}/lib/libtorch_cpu.so"
                                                        "${_torch_dir}/lib/libc10.so")
  add_library(shardwright::libtorch_python INTERFACE IMPORTED GLOBAL)
  target_link_libraries(shardwright::libtorch_python INTERFACE shardwright::libtorch "${_torch_dir}/lib/libtorch_python.so")
endif()
