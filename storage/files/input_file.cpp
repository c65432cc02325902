#include "storage/files/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "planner/error.h"
#include "storage/files/printable.h"
#include "storage/files/remote_calls.h"
#include "storage/files/store_speed.h"
#include "storage/files/uninterrupted.h"

namespace shardwright {

namespace {

[[noreturn]] void cannot_open(const std::filesystem::path& path, int code) {
  throw Error(code == ENOENT ? ErrorKind::not_found : ErrorKind::io,
              printable(path.native()) + ": cannot open this file for reading: " + std::strerror(code), code);
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a named pipe";
  if (S_ISSOCK(mode)) return "a socket";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  return "something else";
}

std::uint64_t size_of_regular(const struct stat& status, const std::filesystem::path& path) {
  if (S_ISREG(status.st_mode)) return static_cast<std::uint64_t>(status.st_size);
  throw Error(ErrorKind::io,
              printable(path.native()) + ": expected a regular file, found " + kind_of(status.st_mode),
              S_ISDIR(status.st_mode) ? EISDIR : EINVAL);
}

}  // namespace

std::uint64_t size_of_file(const std::filesystem::path& path) {
  if (is_remote(path)) return remote_calls(path).head(path.native()).size;
  struct stat status {};
  if (uninterrupted([&] { return ::stat(path.c_str(), &status); }) != 0) cannot_open(path, errno);
  return size_of_regular(status, path);
}

InputFile::InputFile(const std::filesystem::path& path) : path_(path), is_object_(is_remote(path)) {
  if (is_object_) {
    RemoteObject object = remote_calls(path).head(path.native());
    size_ = object.size;
    version_ = std::move(object.version);
  } else {
    open();
  }
}

InputFile::InputFile(const std::filesystem::path& path, std::uint64_t size, const std::string& version)
    : path_(path), is_object_(is_remote(path)) {
  if (is_object_) {
    size_ = size;
    version_ = version;
  } else {
    open();
  }
}

void InputFile::open() {
  const std::filesystem::path& path = path_;
  size_ = size_of_file(path);
  // It may have been replaced since it was looked at. O_NONBLOCK: opening a named pipe without a writer would
  // otherwise wait for ever.
  descriptor_ = uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); });
  if (descriptor_ < 0) cannot_open(path, errno);
  try {
    struct stat status {};
    if (uninterrupted([&] { return ::fstat(descriptor_, &status); }) != 0) cannot_open(path, errno);
    size_ = size_of_regular(status, path);
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

InputFile::~InputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

ArrivedBytes InputFile::read_object(std::uint64_t offset, std::size_t count,
                                    const std::atomic<bool>& stopped) const {
  if (offset > size_ || count > size_ - offset) {
    throw Error(ErrorKind::io,
                printable(path_.native()) + ": expected " + std::to_string(count) + " bytes at offset " +
                    std::to_string(offset) + ", found an object of " + std::to_string(size_) + " bytes",
                EIO);
  }
  if (count == 0) return nullptr;
  const auto begin = std::chrono::steady_clock::now();
  ArrivedBytes bytes = remote_calls(path_).read(path_.native(), version_, offset, count, stopped);
  if (stopped) return nullptr;
  if (bytes == nullptr) {
    throw Error(ErrorKind::io,
                printable(path_.native()) + ": expected " + std::to_string(count) + " bytes at offset " +
                    std::to_string(offset) + ", found that whoever reads the store gives none",
                EIO);
  }
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  note_request(path_, count, taken.count());
  return bytes;
}

void InputFile::read(std::uint64_t offset, char* into, std::size_t count) const {
  if (is_object_) {
    const std::atomic<bool> stopped{false};
    const ArrivedBytes bytes = read_object(offset, count, stopped);
    std::copy_n(reinterpret_cast<const char*>(bytes.get()), count, into);
    return;
  }
  while (count > 0) {
    const ssize_t got =
        uninterrupted([&] { return ::pread(descriptor_, into, count, static_cast<off_t>(offset)); });
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

}  // namespace shardwright
