#include "storage/load/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include "planner/error.h"
#include "storage/files/printable.h"
#include "storage/files/uninterrupted.h"

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

std::string target_of_link(const char* path) {
  char target[PATH_MAX];
  const ssize_t length = ::readlink(path, target, sizeof target);
  return length <= 0 ? std::string() : std::string(target, static_cast<std::size_t>(length));
}

/// State and start of a process, as /proc tells; a state of 0 where it is gone.
std::pair<char, unsigned long long> state_of(long long process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/stat");
  std::string line;
  if (!std::getline(file, line)) return {0, 0};
  std::istringstream fields(line.substr(line.rfind(')') + 1));  // its name before may hold anything
  char state = 0;
  fields >> state;
  std::string skipped;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  unsigned long long started = 0;
  fields >> started;
  return {fields ? state : char{0}, started};
}

}  // namespace

SharedMemory::SharedMemory(int descriptor, std::size_t bytes) : bytes_(bytes) {
  void* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (memory == MAP_FAILED) refuse("cannot map " + std::to_string(bytes) + " bytes", errno);
  ::madvise(memory, bytes, MADV_DONTFORK);  // or a child would keep it
  memory_ = static_cast<std::byte*>(memory);
  descriptor_ = descriptor;
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      memory_(std::exchange(other.memory_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

SharedMemory::~SharedMemory() {
  if (memory_ != nullptr) ::munmap(memory_, bytes_);
  if (descriptor_ >= 0) ::close(descriptor_);
}

SharedMemory SharedMemory::create(std::size_t bytes) {
  Closes made{::memfd_create("shardwright", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  if (made.descriptor < 0) refuse("memfd_create", errno);
  const int refused =
      uninterrupted([&] { return ::fallocate(made.descriptor, 0, 0, static_cast<off_t>(bytes)); });
  if (refused != 0) refuse("the system has no " + std::to_string(bytes) + " bytes for it", errno);
  if (::fcntl(made.descriptor, F_ADD_SEALS, seals) != 0) refuse("it cannot be sealed", errno);
  SharedMemory memory(made.descriptor, bytes);
  made.descriptor = -1;
  return memory;
}

SharedMemory SharedMemory::open(const std::string& path, std::size_t bytes) {
  Closes opened{
      uninterrupted([&] { return ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK); })};
  if (opened.descriptor < 0) refuse("cannot open " + printable(path), errno);
  struct stat status {};
  const bool is_sealed = (::fcntl(opened.descriptor, F_GET_SEALS) & seals) == seals;
  if (!is_sealed || ::fstat(opened.descriptor, &status) != 0 || status.st_size != static_cast<off_t>(bytes)) {
    throw Error(ErrorKind::io, "shared memory: " + printable(path) + " is not sealed memory of " +
                                   std::to_string(bytes) + " bytes");
  }
  SharedMemory memory(opened.descriptor, bytes);
  opened.descriptor = -1;
  return memory;
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
  return state == 0 || state == 'Z' || state == 'X' || start != started;
}

}  // namespace shardwright
