// Calls libcufile as its header cufile.h declares it (CUDA 11.4 to 13.3), without that header: it is loaded
// where it is found when a load first asks for it.

#include "storage/files/gpu_direct.h"

#include <dlfcn.h>
#include <sys/types.h>
#include <unistd.h>

#include <functional>
#include <mutex>

namespace shardwright {
namespace {

struct Status {  // CUfileError_t
  int error;     // 0: none
  int cuda_error;
};

struct FileDescription {  // CUfileDescr_t
  int type;
  union {
    int descriptor;
    void* handle;
  };
  const void* operations;  // of file systems in user space
};
constexpr int linux_descriptor = 1;  // CU_FILE_HANDLE_TYPE_OPAQUE_FD

// Of cuFileGetParameterBool and cuFileSetParameterBool:
constexpr int allow_compatibility = 1;  // CUFILE_PARAM_PROPERTIES_ALLOW_COMPAT_MODE
constexpr int force_compatibility = 2;  // CUFILE_PARAM_FORCE_COMPAT_MODE
constexpr int use_peer_to_peer = 7;     // CUFILE_PARAM_USE_PCIP2PDMA

constexpr const char* kernel_module = "/proc/driver/nvidia-fs/version";

struct Library {
  std::function<Status()> open_driver, close_driver;
  std::function<long()> count_users;
  std::function<Status(int parameter, bool* value)> get_switch;  // like the next, since 1.14: may be missing
  std::function<Status(int parameter, bool value)> set_switch;
  std::function<Status(void** handle, FileDescription* description)> register_file;
  std::function<void(void* handle)> release_file;
  std::function<Status(const void* memory, std::size_t bytes, int flags)> register_memory;
  std::function<Status(const void* memory)> release_memory;
  std::function<ssize_t(void* handle, void* memory, std::size_t bytes, off_t offset_in_file,
                        off_t offset_in_memory)>
      read;
  bool is_complete = false;

  Library() {
    // Never unloaded: it has threads of its own.
    void* const library = ::dlopen("libcufile.so.0", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return;
    const auto find = [library]<class Result, class... Arguments>(
                          const char* name, std::function<Result(Arguments...)>& function) {
      if (void* const found = ::dlsym(library, name)) {
        function = reinterpret_cast<Result (*)(Arguments...)>(found);
      }
      return function != nullptr;
    };
    find("cuFileGetParameterBool", get_switch);
    find("cuFileSetParameterBool", set_switch);
    is_complete = find("cuFileDriverOpen", open_driver) && find("cuFileDriverClose_v2", close_driver) &&
                  find("cuFileUseCount", count_users) && find("cuFileHandleRegister", register_file) &&
                  find("cuFileHandleDeregister", release_file) &&
                  find("cuFileBufRegister", register_memory) && find("cuFileBufDeregister", release_memory) &&
                  find("cuFileRead", read);
  }

  bool is_on(int parameter) const {
    bool value = false;
    return get_switch && get_switch(parameter, &value).error == 0 && value;
  }
};

const Library& library() {
  static const Library loaded;
  return loaded;
}

// Loads of this process that have the driver open, and whether the library was asked for them to refuse what
// it would stage in CPU memory itself.
std::mutex mutex;
int loads = 0;
bool refuses_staging = false;

void restore_switch() {
  if (refuses_staging) library().set_switch(allow_compatibility, true);
  refuses_staging = false;
}

bool open_driver() {
  const Library& cufile = library();
  const std::lock_guard lock(mutex);
  if (loads > 0) {
    ++loads;
    return true;
  }
  const bool has_way = ::access(kernel_module, R_OK) == 0 || cufile.is_on(use_peer_to_peer);
  // Not even tried where it cannot work: it would leave a log file in the working directory.
  if (!has_way || cufile.is_on(force_compatibility)) return false;
  if (cufile.is_on(allow_compatibility)) {
    // The switch is for the whole process: where somebody else uses the library, it stays, and we stay away.
    if (cufile.count_users() > 0 || !cufile.set_switch) return false;
    if (cufile.set_switch(allow_compatibility, false).error != 0) return false;
    refuses_staging = true;
  }
  if (cufile.open_driver().error == 0) {
    loads = 1;
    return true;
  }
  restore_switch();
  return false;
}

void close_driver() {
  const std::lock_guard lock(mutex);
  if (--loads > 0) return;
  library().close_driver();
  restore_switch();
}

void* register_file(int descriptor) {
  FileDescription description{};
  description.type = linux_descriptor;
  description.descriptor = descriptor;
  void* handle = nullptr;
  return library().register_file(&handle, &description).error == 0 ? handle : nullptr;
}

}  // namespace

const GpuDirectCalls* gpu_direct_calls() {
  static constexpr GpuDirectCalls calls{
      .open = open_driver,
      .close = close_driver,
      .register_file = register_file,
      .release_file = [](void* file) { library().release_file(file); },
      .register_memory =
          [](void* memory, std::size_t bytes) {
            return library().register_memory(memory, bytes, 0).error == 0;
          },
      .release_memory = [](void* memory) { library().release_memory(memory); },
      .read = [](void* file, void* memory, std::size_t offset, std::size_t bytes,
                 std::uint64_t offset_in_file) -> std::int64_t {
        return library().read(file, memory, bytes, static_cast<off_t>(offset_in_file),
                              static_cast<off_t>(offset));
      },
  };
  return library().is_complete ? &calls : nullptr;
}

}  // namespace shardwright
