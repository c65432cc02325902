// GPUDirect Storage of FakeDevices.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

#include "storage/files/page_cache.h"
#include "tests/storage/fake_devices.h"

namespace shardwright {

bool FakeDevices::gpu_direct_refuses() {
  return gpu_direct_refuses_one_in > 0 && random_.once_in(gpu_direct_refuses_one_in);
}

void FakeDevices::expect_gpu_direct(const char* call) {
  expect_used(call, device_here());
  if (gpu_direct_drivers_ == 0) fault(std::string(call) + " without the driver");
}

/// As the real one: waits for nothing, and needs everything to be registered and aligned to be fast.
std::int64_t FakeDevices::read_gpu_direct(void* file, std::byte* memory, std::size_t offset,
                                          std::size_t bytes, std::uint64_t offset_in_file) {
  expect_gpu_direct("read");
  const auto registered = gpu_direct_memory_.find(memory);
  const auto descriptor = gpu_direct_files_.find(file);
  const Region* region = region_of(memory);
  if (registered == gpu_direct_memory_.end() || descriptor == gpu_direct_files_.end() || region == nullptr) {
    fault("a read from or to what is not registered");
    return -1;
  }
  if (offset + bytes > registered->second) fault("a read past the end of registered memory");
  if (region->device != device_here()) fault("a read into another device's memory");
  for (const std::uint64_t value : {std::uint64_t{offset}, std::uint64_t{bytes}, offset_in_file}) {
    if (value % direct_alignment != 0) fault("a read that is not of whole pages");
  }
  if (gpu_direct_refuses()) return random_.once_in(2) ? -1 : 0;
  // What uses the memory must be over, and the host must know it: nothing else keeps the read from being
  // early.
  for (const Past& past : past_) {
    if (past.access.begin >= memory + offset + bytes ||
        past.access.begin + past.access.bytes <= memory + offset)
      continue;
    if (!is_dead_ && host_knows_[past.stream] < past.number) {
      fault("staging is read into before what uses it is done");
    }
  }
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  ::mprotect(region->mapped + page, region->mapped_bytes - 2 * page, PROT_READ | PROT_WRITE);
  ssize_t got = 0;
  std::vector<std::byte> aligned(bytes +
                                 direct_alignment);  // the descriptor is for reads past the page cache
  const auto address = reinterpret_cast<std::uintptr_t>(aligned.data());
  std::byte* const to = aligned.data() + (direct_alignment - address % direct_alignment);
  got = ::pread(descriptor->second, to, bytes, static_cast<off_t>(offset_in_file));
  if (got > 0) {
    std::copy(to, to + got, memory + offset);
    gpu_direct_bytes_ += static_cast<std::uint64_t>(got);
  }
  ::mprotect(region->mapped + page, region->mapped_bytes - 2 * page, PROT_NONE);
  return got;
}

const GpuDirectCalls* FakeDevices::gpu_direct_calls() const {
  static constexpr GpuDirectCalls table{
      .open =
          [] {
            const std::lock_guard lock(current->mutex_);
            if (current->gpu_direct_refuses()) return false;
            ++current->gpu_direct_drivers_;
            return true;
          },
      .close =
          [] {
            const std::lock_guard lock(current->mutex_);
            current->expect_gpu_direct("close");
            --current->gpu_direct_drivers_;
            if (!current->gpu_direct_files_.empty() || !current->gpu_direct_memory_.empty()) {
              current->fault("the driver of GPUDirect Storage is closed while something is registered");
            }
          },
      .register_file = [](int descriptor) -> void* {
        const std::lock_guard lock(current->mutex_);
        current->expect_gpu_direct("register_file");
        const int flags = ::fcntl(descriptor, F_GETFL);
        if (flags < 0 || (flags & O_DIRECT) == 0) current->fault("a file is registered that is not O_DIRECT");
        if (current->gpu_direct_refuses()) return nullptr;
        for (const auto& [_, other] : current->gpu_direct_files_) {
          if (other == descriptor) current->fault("a file is registered twice, or was closed before");
        }
        void* const handle = new char;
        current->gpu_direct_files_[handle] = descriptor;
        return handle;
      },
      .release_file =
          [](void* file) {
            const std::lock_guard lock(current->mutex_);
            current->expect_gpu_direct("release_file");
            const auto found = current->gpu_direct_files_.find(file);
            if (found == current->gpu_direct_files_.end()) return current->fault("release_file of none");
            if (::fcntl(found->second, F_GETFL) < 0) current->fault("a file is closed before it is released");
            current->gpu_direct_files_.erase(found);
            delete static_cast<char*>(file);
          },
      .register_memory =
          [](void* memory, std::size_t bytes) {
            const std::lock_guard lock(current->mutex_);
            current->expect_gpu_direct("register_memory");
            const auto* const begin = static_cast<std::byte*>(memory);
            const Region* region = current->region_of(begin);
            if (region == nullptr || region->kind != Memory::device ||
                region->device != current->device_here())
              current->fault("memory is registered that is not of the current device");
            if (current->gpu_direct_refuses()) return false;
            current->gpu_direct_memory_[begin] = bytes;
            return true;
          },
      .release_memory =
          [](void* memory) {
            const std::lock_guard lock(current->mutex_);
            if (current->gpu_direct_memory_.erase(static_cast<std::byte*>(memory)) == 0)
              current->fault("release_memory of none");
          },
      .read = [](void* file, void* memory, std::size_t offset, std::size_t bytes,
                 std::uint64_t offset_in_file) -> std::int64_t {
        const std::lock_guard lock(current->mutex_);
        return current->read_gpu_direct(file, static_cast<std::byte*>(memory), offset, bytes, offset_in_file);
      },
  };
  return &table;
}

}  // namespace shardwright
