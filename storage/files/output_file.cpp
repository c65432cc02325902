#include "storage/files/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "planner/error.h"
#include "storage/files/printable.h"
#include "storage/files/uninterrupted.h"

namespace shardwright {
namespace {

/// Smaller writes are left to the kernel to gather.
constexpr std::uint64_t smallest_write_back = std::uint64_t{1} << 20;

}  // namespace

OutputFile::OutputFile(const std::filesystem::path& path, std::uint64_t bytes, bool flush)
    : path_(path), flush_(flush) {
  open(O_TRUNC);
  if (bytes == 0) return;
  const int outcome =
      uninterrupted([&] { return ::fallocate(descriptor_, 0, 0, static_cast<off_t>(bytes)); });
  if (outcome != 0 && errno != EOPNOTSUPP && errno != ENOSYS) {
    const int code = errno;
    ::close(std::exchange(descriptor_, -1));
    errno = code;
    fail("cannot set aside " + std::to_string(bytes) + " bytes");
  }
}

OutputFile::OutputFile(const std::filesystem::path& path) : path_(path) { open(0); }

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void OutputFile::open(int flags) {
  descriptor_ =
      uninterrupted([&] { return ::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0666); });
  if (descriptor_ < 0) fail("cannot create this file");
}

std::uint64_t OutputFile::write(std::uint64_t offset, const std::byte* bytes, std::uint64_t count,
                                const std::string& what) {
  std::uint64_t requests = 0;
  const std::uint64_t begin = offset;
  while (count > 0) {
    ++requests;
    const ssize_t written =
        uninterrupted([&] { return ::pwrite(descriptor_, bytes, count, static_cast<off_t>(offset)); });
    if (written == 0) errno = ENOSPC;  // or it would be asked for ever
    if (written <= 0) fail("cannot write " + what + " at byte " + std::to_string(offset));
    bytes += written;
    offset += static_cast<std::uint64_t>(written);
    count -= static_cast<std::uint64_t>(written);
  }
  // The device works while the next bytes are prepared, and little is left when finish() waits for it. Only a
  // hint: what goes wrong is what fsync() will say.
  if (flush_ && offset - begin >= smallest_write_back) {
    ::sync_file_range(descriptor_, static_cast<off_t>(begin), static_cast<off_t>(offset - begin),
                      SYNC_FILE_RANGE_WRITE);
  }
  return requests;
}

void OutputFile::reach(std::uint64_t size) {
  const auto end = static_cast<off_t>(size);
  int outcome = uninterrupted([&] { return ::fallocate(descriptor_, 0, 0, end); });
  if (outcome != 0 && (errno == EOPNOTSUPP || errno == ENOSYS))
    outcome = uninterrupted([&] { return ::ftruncate(descriptor_, end); });
  if (outcome != 0) fail("cannot set aside " + std::to_string(size) + " bytes");
}

void OutputFile::finish() {
  if (descriptor_ < 0) return;
  if (flush_ && uninterrupted([&] { return ::fsync(descriptor_); }) != 0) fail("cannot flush to the device");
  // Some file systems report a full disk only here. Interrupted or not, the descriptor is gone.
  if (::close(std::exchange(descriptor_, -1)) != 0 && errno != EINTR) fail("cannot close");
}

void OutputFile::fail(const std::string& what) const {
  const int code = errno;
  throw Error(ErrorKind::io, printable(path_.native()) + ": " + what + ": " + std::strerror(code), code);
}

void write_whole_file(const std::filesystem::path& path, std::string_view content, bool flush) {
  OutputFile file(path, content.size(), flush);
  file.write(0, reinterpret_cast<const std::byte*>(content.data()), content.size(), "the content");
  file.finish();
}

}  // namespace shardwright
