#include "storage/files/entries.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string_view>

#include "storage/files/printable.h"
#include "storage/files/remote_calls.h"
#include "storage/files/uninterrupted.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const fs::path& path, const std::string& what, int code) {
  throw Error(ErrorKind::io, printable(path.native()) + ": " + what + ": " + std::strerror(code), code);
}

/// What an address has, as if it were a file or folder of this machine.
std::optional<struct stat> remote_entry(const fs::path& address) {
  struct stat status {};
  const RemoteCalls& calls = remote_calls(address);
  try {
    status.st_size = static_cast<off_t>(calls.head(address.native()).size);
    status.st_mode = S_IFREG;
    return status;
  } catch (const Error& error) {
    if (error.kind != ErrorKind::not_found) throw;
  }
  if (calls.list(address.native()).empty()) return std::nullopt;
  status.st_mode = S_IFDIR;
  return status;
}

struct Closes {
  void operator()(DIR* directory) const { ::closedir(directory); }
};

}  // namespace

std::string path_inside(const std::string& text) {
  if (text.empty() || text.find('\0') != std::string::npos) return {};
  const std::filesystem::path path(text);
  if (path.is_absolute()) return {};
  for (const std::filesystem::path& part : path) {
    if (part == "..") return {};
  }
  const std::filesystem::path inside = path.lexically_normal();
  return inside.has_filename() && inside != "." ? inside.string() : std::string();
}

std::optional<struct stat> entry_at(const fs::path& path) {
  if (is_remote(path)) return remote_entry(path);
  struct stat status {};
  if (uninterrupted([&] { return ::lstat(path.c_str(), &status); }) == 0) return status;
  if (errno != ENOENT && errno != ENOTDIR) fail(path, "cannot look at this", errno);
  return std::nullopt;
}

std::optional<struct stat> target_at(const fs::path& path) {
  if (is_remote(path)) return remote_entry(path);
  struct stat status {};
  if (uninterrupted([&] { return ::stat(path.c_str(), &status); }) == 0) return status;
  if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP) fail(path, "cannot look at this", errno);
  return std::nullopt;
}

bool is_folder(const fs::path& path) {
  const std::optional<struct stat> entry = entry_at(path);
  return entry && S_ISDIR(entry->st_mode);
}

bool are_one_file(const fs::path& one, const fs::path& other) {
  const std::optional<struct stat> a = entry_at(one);
  const std::optional<struct stat> b = entry_at(other);
  return a && b && a->st_ino == b->st_ino && a->st_dev == b->st_dev;
}

std::vector<std::string> names_in(const fs::path& path) {
  if (is_remote(path)) {
    std::vector<std::string> names;
    for (RemoteObject& object : remote_calls(path).list(path.native()))
      names.push_back(std::move(object.name));
    std::sort(names.begin(), names.end());
    return names;
  }
  const auto refused = [&](int code) -> std::vector<std::string> {
    if (code == ENOENT || code == ENOTDIR) return {};
    fail(path, "cannot list this directory", code);
  };
  const int descriptor =
      uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  if (descriptor < 0) return refused(errno);
  const std::unique_ptr<DIR, Closes> directory(::fdopendir(descriptor));
  if (directory == nullptr) {
    const int code = errno;
    ::close(descriptor);
    return refused(code);
  }
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* const entry = ::readdir(directory.get());
    if (entry == nullptr && errno == EINTR) continue;
    if (entry == nullptr && errno != 0) return refused(errno);
    if (entry == nullptr) break;
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> files_below(const fs::path& directory) {
  if (!is_folder(directory)) fail(directory, "cannot list this directory", ENOENT);
  std::vector<std::string> files;
  for (const std::string& name : names_in(directory)) {
    if (!is_folder(directory / name)) {
      files.push_back(name);
      continue;
    }
    for (const std::string& below : files_below(directory / name)) files.push_back(name + "/" + below);
  }
  std::sort(files.begin(), files.end());
  return files;
}

void remove_with_all_in_it(const fs::path& path) {
  if (uninterrupted([&] { return ::unlink(path.c_str()); }) == 0) return;
  try {
    if (!is_folder(path)) return;
    for (const std::string& name : names_in(path)) remove_with_all_in_it(path / name);
  } catch (const Error&) {  // what cannot be looked at stays
  }
  uninterrupted([&] { return ::rmdir(path.c_str()); });
}

bool refused_by_system(const Error& error) {
  return error.kind == ErrorKind::io && error.system_error != EINVAL && error.system_error != EISDIR;
}

}  // namespace shardwright
