#include "storage/files/own_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "planner/error.h"
#include "storage/files/entries.h"
#include "storage/files/printable.h"
#include "storage/files/uninterrupted.h"

namespace shardwright {
namespace {

constexpr char start_of_own_folders[] = "shardwright-";

/// The file that a process holds a lock on. A folder without was not made here, or is being made.
constexpr char lock_of_own_folder[] = ".shardwright.process";

[[noreturn]] void fail_to_make(const std::filesystem::path& path, int code) {
  throw Error(ErrorKind::io,
              printable(path.native()) + ": cannot make a folder for temporary files: " + std::strerror(code),
              code);
}

void remove_if_dead(const std::filesystem::path& folder) {
  const std::filesystem::path name = folder / lock_of_own_folder;
  const int lock =
      uninterrupted([&] { return ::open(name.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK); });
  if (lock < 0) return;
  struct stat held {};
  struct stat around {};
  struct stat named {};
  const bool is_own = ::fstat(lock, &held) == 0 && ::lstat(folder.c_str(), &around) == 0 &&
                      S_ISREG(held.st_mode) && held.st_uid == ::geteuid() && around.st_uid == ::geteuid();
  const bool is_dead = is_own && uninterrupted([&] { return ::flock(lock, LOCK_EX | LOCK_NB); }) == 0 &&
                       // Another process may have removed it meanwhile.
                       ::lstat(name.c_str(), &named) == 0 && named.st_ino == held.st_ino &&
                       named.st_dev == held.st_dev;
  if (is_dead) remove_with_all_in_it(folder);
  ::close(lock);
}

}  // namespace

OwnFolder::OwnFolder() {
  remove_folders_of_dead_processes();
  const std::filesystem::path temporary = std::filesystem::canonical(std::filesystem::temp_directory_path());
  std::string around = temporary / (std::string(start_of_own_folders) + "XXXXXX");
  if (::mkdtemp(around.data()) == nullptr) fail_to_make(around, errno);
  around_ = around;
  path_ = around_ / "folder";
  const std::filesystem::path unnamed = around_ / "lock";
  lock_ = uninterrupted([&] { return ::open(unnamed.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600); });
  // Nobody finds one that is not held. A file system without locks: what a kill leaves there stays.
  if (lock_ >= 0 && uninterrupted([&] { return ::flock(lock_, LOCK_EX | LOCK_NB); }) == 0)
    std::rename(unnamed.c_str(), (around_ / lock_of_own_folder).c_str());
  if (lock_ >= 0 && uninterrupted([&] { return ::mkdir(path_.c_str(), 0700); }) == 0) return;
  const int code = errno;
  remove_with_all_in_it(around_);
  if (lock_ >= 0) ::close(lock_);
  fail_to_make(around_, code);
}

OwnFolder::~OwnFolder() {
  remove_with_all_in_it(around_);
  ::close(lock_);
}

void remove_folders_of_dead_processes() noexcept {
  try {
    const std::filesystem::path temporary = std::filesystem::temp_directory_path();
    for (const std::string& name : names_in(temporary)) {
      if (name.starts_with(start_of_own_folders) && is_folder(temporary / name))
        remove_if_dead(temporary / name);
    }
  } catch (const std::exception&) {  // what cannot be looked at stays
  }
}

}  // namespace shardwright
