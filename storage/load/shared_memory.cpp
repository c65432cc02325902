#include "storage/load/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <utility>

#include "planner/error.h"
#include "storage/device/staging.h"
#include "storage/files/printable.h"
#include "storage/files/uninterrupted.h"
#include "storage/memory_units.h"
#include "storage/rounded_up.h"

namespace shardwright {
namespace {

/// Where one could make the memory shorter, touching it would end the other processes.
constexpr int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

[[noreturn]] void refuse(const std::string& what, int number) {
  throw Error(ErrorKind::io, "shared memory: " + what + ": " + std::strerror(number), number);
}

struct Closes {
  int descriptor;
  ~Closes() {
    if (descriptor >= 0) ::close(descriptor);
  }
};

/// Maps the memory at a multiple of huge pages, so that they can be mapped as such; MAP_FAILED with errno.
void* mapped(int descriptor, std::size_t bytes) {
  const std::size_t room = bytes + huge_page_bytes;
  void* const reserved = ::mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (reserved == MAP_FAILED) return MAP_FAILED;
  const std::size_t before = -reinterpret_cast<std::uintptr_t>(reserved) % huge_page_bytes;
  std::byte* const begin = static_cast<std::byte*>(reserved) + before;
  void* const memory = ::mmap(begin, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, descriptor, 0);
  const int error = errno;
  const std::size_t end = rounded_up(bytes, page);
  if (memory == MAP_FAILED) {
    ::munmap(reserved, room);
  } else {
    if (before > 0) ::munmap(reserved, before);
    if (before + end < room) ::munmap(begin + end, room - before - end);
  }
  errno = error;
  return memory;
}

/// Has the kernel take huge pages where it can: a disk reads 2.3 GB into them in 0.65 s, and in 1.3 s to 1.7
/// s into pages of 4 KiB, as each read is cut up where they are not contiguous. What it lacks is taken in
/// small ones. A range without a page is none to the kernel, so that each gets its first.
void take_huge_pages(std::byte* memory, std::size_t bytes) {
  constexpr int collapse = 25;  // MADV_COLLAPSE of Linux 6.1: older headers lack it, older kernels refuse it
  const std::size_t whole = bytes / huge_page_bytes * huge_page_bytes;
  for (std::size_t at = 0; at < whole; at += huge_page_bytes) {
    volatile std::byte& first = memory[at];
    first = std::byte{0};
  }
  if (whole > 0) ::madvise(memory, whole, collapse);
}

/// Bytes that the system can still give, by its own estimate; the most there can be where it does not tell.
std::size_t available_memory() {
  std::ifstream file("/proc/meminfo");
  std::string name;
  for (std::size_t kilobytes = 0; file >> name >> kilobytes;
       file.ignore(std::numeric_limits<int>::max(), '\n'))
    if (name == "MemAvailable:") return kilobytes * 1024;
  return std::numeric_limits<std::size_t>::max();
}

std::string target_of_link(const char* path) {
  char target[PATH_MAX];
  const ssize_t length = ::readlink(path, target, sizeof target);
  return length <= 0 ? std::string() : std::string(target, static_cast<std::size_t>(length));
}

/// State and start of a process, as /proc tells; a state of 0 where there is none, '?' where that cannot be
/// known now, as when this process has too many files open.
std::pair<char, unsigned long long> state_of(long long process) {
  constexpr std::pair<char, unsigned long long> unknown{'?', 0};
  const std::string path = "/proc/" + std::to_string(process) + "/stat";
  const Closes file{uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC); })};
  if (file.descriptor < 0) return errno == ENOENT ? std::pair{char{0}, 0ULL} : unknown;
  char line[1024];
  const ssize_t length = uninterrupted([&] { return ::read(file.descriptor, line, sizeof line); });
  if (length < 0) return errno == ESRCH ? std::pair{char{0}, 0ULL} : unknown;
  const std::string text(line, static_cast<std::size_t>(length));
  const std::size_t name_ends = text.rfind(')');  // it may hold anything
  if (name_ends == std::string::npos) return unknown;
  std::istringstream fields(text.substr(name_ends + 1));
  char state = 0;
  fields >> state;
  std::string skipped;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  unsigned long long started = 0;
  fields >> started;
  return fields ? std::pair{state, started} : unknown;
}

}  // namespace

SharedMemory::SharedMemory(int descriptor, std::size_t bytes) : bytes_(bytes) {
  void* const memory = mapped(descriptor, bytes);
  if (memory == MAP_FAILED) refuse("cannot map " + std::to_string(bytes) + " bytes", errno);
  ::madvise(memory, bytes, MADV_DONTFORK);  // or a child would keep it
  memory_ = static_cast<std::byte*>(memory);
  descriptor_ = descriptor;
  process_ = ::getpid();
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      memory_(std::exchange(other.memory_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      process_(other.process_) {}

SharedMemory::~SharedMemory() {
  // A child has it not, and may have something else there.
  if (memory_ != nullptr && ::getpid() == process_) ::munmap(memory_, bytes_);
  if (descriptor_ >= 0) ::close(descriptor_);
}

SharedMemory SharedMemory::create(std::size_t bytes) {
  // The system would end processes, any of them, before it refused.
  if (bytes > available_memory())
    refuse("the system has no " + std::to_string(bytes) + " bytes for it", ENOMEM);
  Closes made{::memfd_create("shardwright", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  if (made.descriptor < 0) refuse("memfd_create", errno);
  const auto size = static_cast<off_t>(bytes);
  const auto expect_room = [&](int refused) {
    if (refused != 0) refuse("the system has no " + std::to_string(bytes) + " bytes for it", errno);
  };
  expect_room(uninterrupted([&] { return ::ftruncate(made.descriptor, size); }));
  if (::fcntl(made.descriptor, F_ADD_SEALS, seals) != 0) refuse("it cannot be sealed", errno);
  SharedMemory memory(made.descriptor, bytes);
  const int descriptor = std::exchange(made.descriptor, -1);
  take_huge_pages(memory.data(), bytes);
  expect_room(uninterrupted([&] { return ::fallocate(descriptor, 0, 0, size); }));
  return memory;
}

SharedMemory SharedMemory::open(const std::string& path, std::size_t bytes) {
  Closes opened{
      uninterrupted([&] { return ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK); })};
  if (opened.descriptor < 0) refuse("cannot open " + printable(path), errno);
  struct stat status {};
  const int found = ::fcntl(opened.descriptor, F_GET_SEALS);  // -1 of what can have none
  const bool is_sealed = found >= 0 && (found & seals) == seals;
  if (!is_sealed || ::fstat(opened.descriptor, &status) != 0 || status.st_size != static_cast<off_t>(bytes)) {
    throw Error(ErrorKind::io, "shared memory: " + printable(path) + " is not sealed memory of " +
                                   std::to_string(bytes) + " bytes");
  }
  SharedMemory memory(opened.descriptor, bytes);
  opened.descriptor = -1;
  memory.forget_path();
  return memory;
}

void SharedMemory::forget_path() {
  if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
}

std::string SharedMemory::path() const {
  return "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(descriptor_);
}

std::string this_node() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot;
  const std::string processes = target_of_link("/proc/self/ns/pid");
  if (!std::getline(file, boot) || boot.empty() || processes.empty()) return {};
  return boot + " " + processes;
}

NodeProcess NodeProcess::own() { return {::getpid(), state_of(::getpid()).second}; }

bool NodeProcess::is_gone() const {
  const auto [state, start] = state_of(number);
  if (state == '?') return false;
  return state == 0 || state == 'Z' || state == 'X' || (started != 0 && start != started);
}

void NodeMember::join() {
  process = NodeProcess::own();
  has_joined.store(1, std::memory_order_release);
}

bool NodeMember::is_gone() const {
  return has_joined.load(std::memory_order_acquire) != 0 && process.is_gone();
}

}  // namespace shardwright
