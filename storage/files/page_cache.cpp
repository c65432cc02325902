#include "storage/files/page_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>

#include "storage/files/uninterrupted.h"

namespace shardwright {
namespace {

// cachestat(2), Linux 6.5: newer than the headers of the systems that we build on.
constexpr long cachestat_call = 451;

struct CachestatRange {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;  // 0: to the end of the file
};

struct Cachestat {
  std::uint64_t cached = 0;  // pages, like all others
  std::uint64_t dirty = 0;
  std::uint64_t writeback = 0;
  std::uint64_t evicted = 0;
  std::uint64_t recently_evicted = 0;
};

/// Asks for single bytes, spread over the file, that are given only if they need not be waited for.
std::optional<double> share_of_sample(int descriptor, std::uint64_t file_bytes) {
  constexpr std::uint64_t sample = 64;
  int cached = 0;
  for (std::uint64_t i = 0; i < sample; ++i) {
    char byte = 0;
    iovec place{&byte, 1};
    const std::uint64_t offset = (file_bytes - 1) / sample * i;
    const ssize_t got = uninterrupted(
        [&] { return ::preadv2(descriptor, &place, 1, static_cast<off_t>(offset), RWF_NOWAIT); });
    if (got < 0 && errno != EAGAIN) return std::nullopt;
    cached += got == 1;
  }
  return cached / static_cast<double>(sample);
}

bool are_one_file(int one, int other) {
  struct stat a {};
  struct stat b {};
  return uninterrupted([&] { return ::fstat(one, &a); }) == 0 &&
         uninterrupted([&] { return ::fstat(other, &b); }) == 0 && a.st_dev == b.st_dev &&
         a.st_ino == b.st_ino;
}

}  // namespace

std::optional<double> fraction_in_page_cache(int descriptor, std::uint64_t file_bytes) {
  CachestatRange range;
  Cachestat found;
  if (file_bytes == 0) return std::nullopt;
  if (uninterrupted([&] { return ::syscall(cachestat_call, descriptor, &range, &found, 0); }) != 0) {
    return share_of_sample(descriptor, file_bytes);
  }
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t pages = (file_bytes + page - 1) / page;
  return static_cast<double>(found.cached) / static_cast<double>(pages);
}

int open_direct(const char* path, int opened) {
  const int descriptor =
      uninterrupted([&] { return ::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT); });
  if (descriptor < 0) return -1;
  bool is_usable = are_one_file(descriptor, opened);
#ifdef STATX_DIOALIGN
  struct statx status {};
  if (uninterrupted([&] { return ::statx(descriptor, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status); }) == 0 &&
      (status.stx_mask & STATX_DIOALIGN) != 0 &&
      (status.stx_dio_offset_align == 0 || direct_alignment % status.stx_dio_offset_align != 0 ||
       direct_alignment % status.stx_dio_mem_align != 0)) {
    is_usable = false;
  }
#endif
  if (is_usable) return descriptor;
  ::close(descriptor);
  errno = EINVAL;
  return -1;
}

}  // namespace shardwright
