#include "storage/pending_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "planner/error.h"
#include "storage/printable.h"

namespace shardwright {

namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const fs::path& path, const std::string& what, int code) {
  throw Error(ErrorKind::io, printable(path.native()) + ": " + what + ": " + std::strerror(code), code);
}

fs::path resolved(const fs::path& path) {
  std::error_code code;
  fs::path whole = fs::weakly_canonical(fs::absolute(path), code);
  if (code) fail(path, "cannot resolve this path", code.value());
  if (!whole.has_filename()) whole = whole.parent_path();  // it ended in a slash
  if (!whole.has_filename()) {
    throw Error(ErrorKind::argument,
                printable(path.native()) + ": expected the path of a directory that can be renamed");
  }
  return whole;
}

fs::path sibling(const fs::path& path, const std::string& suffix) {
  return path.parent_path() / ('.' + path.filename().native() + suffix);
}

std::string random_suffix() {
  std::random_device source;
  std::array<char, 17> text{};
  std::snprintf(text.data(), text.size(), "%08x%08x", source(), source());
  return text.data();
}

bool begins_with(const std::string& text, std::string_view start) {
  return text.compare(0, start.size(), start) == 0;
}

bool is_part_of_a_checkpoint(const fs::path& file) {
  const std::string name = file.filename().native();
  return file.extension() == ".safetensors" || file.extension() == ".distcp" || name == ".metadata" ||
         name == "shardwright.manifest" || name == "model.safetensors.index.json";
}

/// True if something is there that a save may replace, false if nothing is.
bool expect_replaceable(const fs::path& path) {
  std::error_code code;
  const fs::file_status status = fs::status(path, code);
  if (status.type() == fs::file_type::not_found) return false;
  if (code) fail(path, "cannot look at this directory", code.value());
  if (status.type() != fs::file_type::directory) {
    throw Error(ErrorKind::io,
                printable(path.native()) + ": expected a directory to save to, or nothing, found a file",
                ENOTDIR);
  }
  bool empty = true;
  fs::directory_iterator entries(path, code);
  if (code == std::errc::no_such_file_or_directory) return false;  // another save has just moved it aside
  if (code) fail(path, "cannot list this directory", code.value());
  for (const fs::directory_entry& entry : entries) {
    if (is_part_of_a_checkpoint(entry.path())) return true;
    if (entry.is_directory(code) && entry.path().filename() == "sharded")
      return true;  // torch's, consolidated
    empty = false;
  }
  if (empty) return true;
  throw Error(
      ErrorKind::argument,
      printable(path.native()) +
          ": expected a checkpoint or an empty directory, since a save replaces all of it, found other "
          "files; give a path of its own to the checkpoint");
}

void make_parents(const fs::path& path) {
  std::error_code code;
  fs::create_directories(path.parent_path(), code);
  if (code) fail(path.parent_path(), "cannot create this directory", code.value());
}

void remove_all_quietly(const fs::path& path) noexcept {
  std::error_code code;
  fs::remove_all(path, code);
}

}  // namespace

PendingDirectory::PendingDirectory(const fs::path& final_path)
    : final_path_(resolved(final_path)), lock_path_(sibling(final_path_, ".lock")) {
  expect_replaceable(final_path_);
  make_parents(final_path_);
  take_lock();
  try {
    clean_up_after_dead_saves();
    replaces_ = expect_replaceable(final_path_);
    path_ = sibling(final_path_, ".saving-" + random_suffix());
    if (::mkdir(path_.c_str(), 0777) != 0) fail(path_, "cannot create this directory", errno);
    pending_ = true;
  } catch (...) {
    drop_lock();
    throw;
  }
}

PendingDirectory::~PendingDirectory() { abandon(); }

void PendingDirectory::take_lock() {
  for (;;) {
    lock_ = ::open(lock_path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock_ < 0) fail(lock_path_, "cannot create this file", errno);
    if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
      const int code = errno;
      ::close(std::exchange(lock_, -1));
      if (code == EINTR) continue;
      if (code != EWOULDBLOCK) fail(lock_path_, "cannot lock this file", code);
      throw Error(ErrorKind::io,
                  printable(final_path_.native()) + ": another save to this name is running (it holds " +
                      printable(lock_path_.native()) + "); wait for it, or save to another name",
                  EBUSY);
    }
    // Who had the lock before may have deleted the file between our opening and locking it.
    struct stat held {};
    struct stat there {};
    if (::fstat(lock_, &held) == 0 && ::stat(lock_path_.c_str(), &there) == 0 &&
        held.st_ino == there.st_ino && held.st_dev == there.st_dev) {
      return;
    }
    ::close(std::exchange(lock_, -1));
  }
}

void PendingDirectory::drop_lock() noexcept {
  if (lock_ < 0) return;
  ::unlink(lock_path_.c_str());
  // Unlocked and not only closed: a forked process may have the descriptor too.
  ::flock(lock_, LOCK_UN);
  ::close(std::exchange(lock_, -1));
}

void PendingDirectory::clean_up_after_dead_saves() {
  const std::string name = '.' + final_path_.filename().native();
  std::error_code code;
  for (const fs::directory_entry& entry : fs::directory_iterator(final_path_.parent_path(), code)) {
    const std::string found = entry.path().filename().native();
    if (begins_with(found, name + ".saving-")) {
      remove_all_quietly(entry.path());
    } else if (begins_with(found, name + ".replaced-")) {
      if (fs::exists(final_path_, code) || std::rename(entry.path().c_str(), final_path_.c_str()) != 0) {
        remove_all_quietly(entry.path());
      }
    }
  }
}

void PendingDirectory::publish() {
  sync_directory(path_);
  std::error_code code;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(path_, code)) {
    if (entry.is_directory(code)) sync_directory(entry.path());
  }
  // It may have come, or gone, since the save began.
  if (expect_replaceable(final_path_)) {
    exchange_with_old();
  } else if (std::rename(path_.c_str(), final_path_.c_str()) != 0) {
    fail(final_path_, "cannot give the finished checkpoint this name", errno);
  } else {
    pending_ = false;
  }
  sync_directory(final_path_.parent_path());
  abandon();  // of the old one, if there was one
}

void PendingDirectory::exchange_with_old() {
  if (::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, final_path_.c_str(), RENAME_EXCHANGE) == 0) return;
  if (errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP)
    fail(final_path_, "cannot give the finished checkpoint this name", errno);
  const fs::path aside = sibling(final_path_, ".replaced-" + random_suffix());
  if (std::rename(final_path_.c_str(), aside.c_str()) != 0)
    fail(final_path_, "cannot move the old checkpoint aside", errno);
  if (std::rename(path_.c_str(), final_path_.c_str()) != 0) {
    const int code = errno;
    std::rename(aside.c_str(), final_path_.c_str());
    fail(final_path_, "cannot give the finished checkpoint this name", code);
  }
  path_ = aside;  // now what is to be removed
}

void PendingDirectory::abandon() noexcept {
  if (std::exchange(pending_, false)) remove_all_quietly(path_);
  drop_lock();
}

void remove_checkpoint(const fs::path& path) {
  const fs::path whole = resolved(path);
  const fs::path nameless = sibling(whole, ".removed-" + random_suffix());
  if (std::rename(whole.c_str(), nameless.c_str()) != 0) fail(whole, "cannot remove this checkpoint", errno);
  sync_directory(whole.parent_path());
  std::error_code code;
  for (const fs::directory_entry& entry : fs::directory_iterator(whole.parent_path(), code)) {
    const std::string found = entry.path().filename().native();
    if (found.front() == '.' && found.find(".removed-") != std::string::npos)
      remove_all_quietly(entry.path());
  }
}

void sync_directory(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail(path, "cannot open this directory", errno);
  const int outcome = ::fsync(descriptor);
  const int code = errno;
  ::close(descriptor);
  // Some network file systems have nothing to flush here, and say so.
  if (outcome != 0 && code != EINVAL) fail(path, "cannot flush this directory to the device", code);
}

}  // namespace shardwright
