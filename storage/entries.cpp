#include "storage/entries.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "storage/printable.h"
#include "storage/uninterrupted.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const fs::path& path, const std::string& what, int code) {
  throw Error(ErrorKind::io, printable(path.native()) + ": " + what + ": " + std::strerror(code), code);
}

/// Empties `names` and lists again where a signal interrupts it.
template <typename List>
std::error_code listed_whole(std::vector<std::string>& names, const List& list) {
  std::error_code code;
  do {
    names.clear();
    code = list();
  } while (code == std::errc::interrupted);
  std::sort(names.begin(), names.end());
  return code;
}

}  // namespace

std::optional<struct stat> entry_at(const fs::path& path) {
  struct stat status {};
  if (uninterrupted([&] { return ::lstat(path.c_str(), &status); }) == 0) return status;
  if (errno != ENOENT && errno != ENOTDIR) fail(path, "cannot look at this", errno);
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

std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> names;
  const std::error_code code = listed_whole(names, [&] {
    std::error_code failure;
    fs::directory_iterator entries(directory, failure);
    while (!failure && entries != fs::end(entries)) {
      names.push_back(entries->path().filename().native());
      entries.increment(failure);
    }
    return failure;
  });
  if (code == std::errc::no_such_file_or_directory || code == std::errc::not_a_directory) return {};
  if (code) fail(directory, "cannot list this directory", code.value());
  return names;
}

std::vector<std::string> files_below(const fs::path& directory) {
  std::vector<std::string> names;
  const std::error_code code = listed_whole(names, [&] {
    std::error_code failure;
    fs::recursive_directory_iterator entries(directory, failure);
    while (!failure && entries != fs::end(entries)) {
      const bool descends = entries->symlink_status(failure).type() == fs::file_type::directory;
      if (!failure && !descends) names.push_back(entries->path().lexically_relative(directory).native());
      if (!failure) entries.increment(failure);
    }
    return failure;
  });
  if (code) fail(directory, "cannot list this directory", code.value());
  return names;
}

bool is_refusal(const Error& error) {
  return error.kind == ErrorKind::io && error.system_error != EINVAL && error.system_error != EISDIR;
}

}  // namespace shardwright
