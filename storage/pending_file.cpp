#include "storage/pending_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "planner/error.h"
#include "storage/printable.h"

namespace shardwright {

PendingFile::PendingFile(const std::filesystem::path& final_path)
    : final_path_(final_path), path_(final_path) {
  path_ += ".partial";
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail("cannot create this file");
}

PendingFile::PendingFile(PendingFile&& other) noexcept
    : final_path_(std::move(other.final_path_)),
      path_(std::exchange(other.path_, {})),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

PendingFile::~PendingFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!path_.empty()) ::unlink(path_.c_str());
}

void PendingFile::append(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("cannot write");
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
}

void PendingFile::resize(std::uint64_t bytes) {
  if (::ftruncate(descriptor_, static_cast<off_t>(bytes)) != 0)
    fail("cannot make this file as long as it is to be");
}

void PendingFile::close() {
  if (descriptor_ < 0) return;
  // Some file systems report a full disk only here.
  if (::close(std::exchange(descriptor_, -1)) != 0) fail("cannot close");
}

void PendingFile::publish() {
  close();
  if (std::rename(path_.c_str(), final_path_.c_str()) != 0) fail("cannot rename the finished file to this");
  path_.clear();
}

void PendingFile::fail(const char* what) const {
  const int code = errno;
  throw Error(ErrorKind::io, printable(final_path_.native()) + ": " + what + ": " + std::strerror(code),
              code);
}

}  // namespace shardwright
