#include "storage/files/made_directories.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "planner/error.h"
#include "storage/files/printable.h"
#include "storage/files/uninterrupted.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail_to_make(const fs::path& path, const std::string& what, int code) {
  throw Error(ErrorKind::io, printable(path.native()) + ": " + what + ": " + std::strerror(code), code);
}

}  // namespace

std::vector<fs::path> make_directories(const fs::path& directory) {
  std::vector<fs::path> lacking;
  fs::path at = directory;
  struct stat status {};
  while (uninterrupted([&] { return ::stat(at.c_str(), &status); }) != 0) {
    if (errno == ENOTDIR) {
      at = at.parent_path();
      continue;  // to the file that is there in place of a directory
    }
    if (errno != ENOENT) fail_to_make(at, "cannot look at this directory", errno);
    lacking.push_back(at);
    at = at.parent_path();
  }
  if (!S_ISDIR(status.st_mode)) {
    throw Error(ErrorKind::io,
                printable(at.native()) +
                    ": expected a directory to save to, or nothing, found a file; give another path",
                ENOTDIR);
  }
  std::vector<fs::path> made;
  std::reverse(lacking.begin(), lacking.end());
  for (const fs::path& path : lacking) {
    if (uninterrupted([&] { return ::mkdir(path.c_str(), 0777); }) == 0) {
      made.push_back(path);
      continue;
    }
    int code = errno;
    const bool has_entry = code == EEXIST;  // somebody has just made it, or it is a link to nothing
    if (has_entry) code = uninterrupted([&] { return ::stat(path.c_str(), &status); }) == 0 ? 0 : errno;
    if (code != 0) {
      remove_directories(made);
      fail_to_make(path,
                   has_entry ? "expected a directory, found a link to one that is not there"
                             : "cannot create this directory",
                   code);
    }
  }
  return made;
}

void remove_directories(const std::vector<fs::path>& made) noexcept {
  for (auto last = made.rbegin(); last != made.rend(); ++last)
    uninterrupted([&] { return ::rmdir(last->c_str()); });
}

}  // namespace shardwright
