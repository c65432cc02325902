// A library that stands for libcufile.so.0: its functions as cufile.h declares them, over CPU memory, and
// what they were asked to do, for gpu_direct_test.cpp.

#include "tests/cufile/fake_cufile.h"

#include <unistd.h>

#include <cstddef>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

struct Error {
  int error;
  int cuda_error;
};
struct Description {
  int type;
  union {
    int descriptor;
    void* handle;
  } handle;
  const void* operations;
};

FakeCufile state;

}  // namespace

EXPORTED FakeCufile* fake_cufile() { return &state; }

EXPORTED Error cuFileDriverOpen() {
  state.allowed_compatibility_at_open = state.switches[1];
  if (state.refuses_driver) return {5001, 0};
  ++state.users;
  return {0, 0};
}
EXPORTED Error cuFileDriverClose_v2() {
  --state.users;
  return {0, 0};
}
EXPORTED long cuFileUseCount() { return state.users; }
EXPORTED Error cuFileGetParameterBool(int parameter, bool* value) {
  *value = state.switches[parameter];
  return {0, 0};
}
EXPORTED Error cuFileSetParameterBool(int parameter, bool value) {
  if (state.users > 0) return {5026, 0};
  state.switches[parameter] = value;
  return {0, 0};
}
EXPORTED Error cuFileHandleRegister(void** handle, Description* description) {
  if (description->type != 1 || description->operations != nullptr) return {5022, 0};
  if (state.refuses_file) return {5027, 0};
  *handle = new int(description->handle.descriptor);
  ++state.files;
  return {0, 0};
}
EXPORTED void cuFileHandleDeregister(void* handle) {
  delete static_cast<int*>(handle);
  --state.files;
}
EXPORTED Error cuFileBufRegister(const void* memory, std::size_t bytes, int flags) {
  if (memory == nullptr || bytes == 0 || flags != 0) return {5022, 0};
  ++state.memories;
  return {0, 0};
}
EXPORTED Error cuFileBufDeregister(const void*) {
  --state.memories;
  return {0, 0};
}
EXPORTED ssize_t cuFileRead(void* handle, void* memory, std::size_t bytes, off_t offset_in_file,
                            off_t offset_in_memory) {
  return ::pread(*static_cast<int*>(handle), static_cast<char*>(memory) + offset_in_memory, bytes,
                 offset_in_file);
}
