#include "storage/directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "planner/error.h"
#include "storage/printable.h"
#include "storage/uninterrupted.h"

namespace shardwright {
namespace {

struct Closes {
  void operator()(DIR* directory) const { ::closedir(directory); }
};

[[noreturn]] void fail(const std::filesystem::path& path, int code) {
  const bool is_absent = code == ENOENT || code == ENOTDIR;
  throw Error(is_absent ? ErrorKind::not_found : ErrorKind::io,
              printable(path.native()) + ": cannot list this directory: " + std::strerror(code), code);
}

}  // namespace

std::vector<std::string> names_in(const std::filesystem::path& path) {
  const int descriptor =
      uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK); });
  if (descriptor < 0) fail(path, errno);
  const std::unique_ptr<DIR, Closes> directory(::fdopendir(descriptor));
  if (directory == nullptr) {
    const int code = errno;
    ::close(descriptor);
    fail(path, code);
  }
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* const entry = ::readdir(directory.get());
    if (entry == nullptr && errno == EINTR) continue;
    if (entry == nullptr && errno != 0) fail(path, errno);
    if (entry == nullptr) break;
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

void remove_with_all_in_it(const std::filesystem::path& path) {
  if (::unlink(path.c_str()) == 0 || errno == ENOENT) return;
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) return;
  try {
    for (const std::string& name : names_in(path)) remove_with_all_in_it(path / name);
  } catch (const Error&) {  // what cannot be listed stays
  }
  ::rmdir(path.c_str());
}

}  // namespace shardwright
