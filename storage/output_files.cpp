#include "storage/output_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "planner/error.h"
#include "storage/printable.h"

namespace shardwright {

OutputFiles::OutputFiles(std::filesystem::path directory, std::vector<std::string> names)
    : directory_(std::move(directory)), names_(std::move(names)), descriptors_(names_.size(), -1) {}

OutputFiles::~OutputFiles() {
  for (int descriptor : descriptors_) {
    if (descriptor >= 0) ::close(descriptor);
  }
}

void OutputFiles::write(std::size_t file, std::uint64_t offset, const std::byte* bytes, std::uint64_t count,
                        const std::string& what) {
  const int descriptor = descriptor_of(file);
  while (count > 0) {
    const ssize_t written = ::pwrite(descriptor, bytes, count, static_cast<off_t>(offset));
    ++requests_;
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(file, "cannot write " + what + " at byte " + std::to_string(offset));
    bytes += written;
    offset += static_cast<std::uint64_t>(written);
    count -= static_cast<std::uint64_t>(written);
    bytes_ += static_cast<std::uint64_t>(written);
  }
}

void OutputFiles::finish() {
  for (std::size_t file = 0; file < descriptors_.size(); ++file) {
    if (descriptors_[file] < 0) continue;
    if (::fsync(descriptors_[file]) != 0) fail(file, "cannot flush to the device");
    // Some file systems report a full disk only here.
    if (::close(std::exchange(descriptors_[file], -1)) != 0) fail(file, "cannot close");
  }
}

std::int64_t OutputFiles::count() const { return opened_; }

int OutputFiles::descriptor_of(std::size_t file) {
  const std::lock_guard lock(mutex_);
  int& descriptor = descriptors_[file];
  if (descriptor < 0) {
    descriptor = ::open((directory_ / names_[file]).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor < 0) fail(file, "cannot create this file");
    ++opened_;
  }
  return descriptor;
}

void OutputFiles::fail(std::size_t file, const std::string& what) const {
  const int code = errno;
  throw Error(ErrorKind::io,
              printable((directory_ / names_[file]).native()) + ": " + what + ": " + std::strerror(code) +
                  "; nothing has been published",
              code);
}

}  // namespace shardwright
