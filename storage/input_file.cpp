#include "storage/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "planner/error.h"
#include "storage/checkpoint_place.h"
#include "storage/printable.h"

namespace shardwright {

InputFile::InputFile(const std::filesystem::path& path) : path_(path) {
  // O_NONBLOCK: opening a named pipe without a writer would otherwise wait for ever.
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) {
    const int code = errno;
    throw Error(code == ENOENT ? ErrorKind::not_found : ErrorKind::io,
                printable(path.native()) + ": cannot open this file for reading: " + std::strerror(code),
                code);
  }
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    const int code = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
    ::close(descriptor_);
    throw Error(ErrorKind::io,
                printable(path.native()) + ": expected a regular file, found " +
                    (code == EISDIR ? "a directory" : "something else"),
                code);
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
}

InputFile::~InputFile() { ::close(descriptor_); }

void InputFile::read(std::uint64_t offset, char* into, std::size_t count) const {
  while (count > 0) {
    const ssize_t got = ::pread(descriptor_, into, count, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      const int code = errno;
      throw Error(ErrorKind::io,
                  printable(path_.native()) + ": cannot read at offset " + std::to_string(offset) + ": " +
                      std::strerror(code),
                  code);
    }
    if (got == 0) {
      throw Error(
          ErrorKind::io,
          printable(path_.native()) + ": expected " + std::to_string(count) + " more bytes at offset " +
              std::to_string(offset) +
              ", but the file ends there: it has been cut short or replaced since it was opened or planned",
          EIO);
    }
    into += got;
    offset += static_cast<std::uint64_t>(got);
    count -= static_cast<std::size_t>(got);
  }
}

std::string read_text(const std::filesystem::path& path, std::uint64_t max_bytes) {
  const InputFile file(path);
  if (file.size() > max_bytes) {
    throw Error(ErrorKind::malformed, printable(path.native()) + ": expected at most " +
                                          std::to_string(max_bytes) + " bytes of JSON, found " +
                                          std::to_string(file.size()));
  }
  std::string text(file.size(), '\0');
  file.read(0, text.data(), text.size());
  expect_no_git_lfs_pointer(text, printable(path.native()));
  return text;
}

}  // namespace shardwright
