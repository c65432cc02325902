#include "storage/format/saving_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "planner/error.h"
#include "storage/files/entries.h"
#include "storage/files/input_file.h"
#include "storage/files/output_file.h"
#include "storage/files/printable.h"
#include "storage/files/uninterrupted.h"
#include "storage/format/checkpoint_in_place.h"
#include "storage/format/checkpoint_place.h"
#include "storage/format/hf_index.h"
#include "storage/format/manifest.h"
#include "storage/format/text_file.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t max_intent_bytes = std::uint64_t{1} << 31;

[[noreturn]] void fail(const fs::path& path, const std::string& what, int code) {
  throw Error(ErrorKind::io, printable(path.native()) + ": " + what + ": " + std::strerror(code), code);
}

/// Whether a name's folders below the directory are folders, and not links to elsewhere.
bool stays_inside(const fs::path& directory, const std::string& name) {
  if (path_inside(name).empty()) return false;
  fs::path folder = directory;
  const fs::path relative = fs::path(name).parent_path();
  return std::all_of(relative.begin(), relative.end(), [&](const fs::path& part) {
    folder /= part;
    return is_folder(folder);
  });
}

void make_folders_of(const fs::path& directory, const std::string& name) {
  fs::path folder = directory;
  for (const fs::path& part : fs::path(name).parent_path()) {
    folder /= part;
    if (uninterrupted([&] { return ::mkdir(folder.c_str(), 0777); }) != 0 && errno != EEXIST)
      fail(folder, "cannot create this directory", errno);
    if (!is_folder(folder)) fail(folder, "expected a directory, found something else", ENOTDIR);
  }
}

/// Removes the folders of a name that nothing is in any more.
void remove_empty_folders_of(const fs::path& directory, const std::string& name) {
  for (fs::path folder = fs::path(name).parent_path(); !folder.empty(); folder = folder.parent_path()) {
    if (uninterrupted([&] { return ::rmdir((directory / folder).c_str()); }) != 0) return;
  }
}

SavingFolder::Left left(const fs::path& path, const std::string& what, int code) {
  return {printable(path.native()) + ": " + what + ": " + std::strerror(code), code};
}

/// Why there still is such a file in the directory, if there is, and in one of its folders. A
/// directory of that name is somebody else's.
SavingFolder::Left remove_file(const fs::path& directory, const std::string& name) {
  if (!stays_inside(directory, name)) return {};
  if (uninterrupted([&] { return ::unlink((directory / name).c_str()); }) != 0 && errno != ENOENT) {
    const int code = errno;
    if (is_folder(directory / name)) return {};
    return left(directory / name, "cannot remove this file", code);
  }
  remove_empty_folders_of(directory, name);
  return {};
}

bool has_no_links(int code) {
  return code == EPERM || code == EOPNOTSUPP || code == ENOSYS || code == EMLINK || code == EXDEV;
}

/// A link, or a copy where the file system has none.
void keep(const fs::path& file, const fs::path& kept) {
  if (uninterrupted([&] { return ::link(file.c_str(), kept.c_str()); }) == 0) return;
  if (!has_no_links(errno)) fail(file, "cannot link this file to " + printable(kept.native()), errno);
  std::error_code code;
  fs::copy_file(file, kept, code);
  if (code) fail(file, "cannot copy this file to " + printable(kept.native()), code.value());
}

/// Renames unless a file has the name.
int rename_to_new(const fs::path& from, const fs::path& to) {
  const int outcome = uninterrupted(
      [&] { return ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE); });
  if (outcome == 0 || (errno != EINVAL && errno != ENOSYS)) return outcome;
  if (entry_at(to)) {
    errno = EEXIST;
    return -1;
  }
  return uninterrupted([&] { return std::rename(from.c_str(), to.c_str()); });
}

/// Locked, or -1 if somebody else has the lock. Makes folder and file if need be.
int take_lock(const fs::path& folder) {
  const fs::path path = folder / "lock";
  for (;;) {
    if (uninterrupted([&] { return ::mkdir(folder.c_str(), 0777); }) != 0 && errno != EEXIST)
      fail(folder, "cannot create this directory", errno);
    if (!entry_at(folder)) continue;  // whoever had the lock has just removed the folder
    if (!is_folder(folder)) fail(folder, "expected the folder of a save, found something else", ENOTDIR);
    const int lock = uninterrupted(
        [&] { return ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666); });
    if (lock < 0 && errno == ENOENT) continue;  // whoever had it has just removed the folder
    if (lock < 0) fail(path, "cannot create this file", errno);
    if (uninterrupted([&] { return ::flock(lock, LOCK_EX | LOCK_NB); }) != 0) {
      const int code = errno;
      ::close(lock);
      if (code != EWOULDBLOCK) fail(path, "cannot lock this file", code);
      return -1;
    }
    // Who had the lock before may have deleted the file between our opening and locking it.
    struct stat held {};
    try {
      if (uninterrupted([&] { return ::fstat(lock, &held); }) != 0)
        fail(path, "cannot look at this file", errno);
      const std::optional<struct stat> there = entry_at(path);
      if (there && held.st_ino == there->st_ino && held.st_dev == there->st_dev) return lock;
    } catch (...) {
      ::close(lock);
      throw;
    }
    ::close(lock);
  }
}

/// What tells this folder from a copy of it.
std::string inode_of_lock(const fs::path& folder) {
  const std::optional<struct stat> lock = entry_at(folder / "lock");
  return lock ? std::to_string(lock->st_ino) : "";
}

SavingFolder::Intent read_intent(const fs::path& folder) {
  const fs::path path = folder / "plan";
  SavingFolder::Intent intent;
  if (!entry_at(path)) return intent;
  const std::string text = read_text(path, max_intent_bytes);
  // A save that dies while it writes the plan leaves a part of it, which the empty text does not end.
  if (text.size() < 2 || text.compare(text.size() - 2, 2, std::string(2, '\0')) != 0) return intent;
  const std::string inode = inode_of_lock(folder) + '\0';
  if (!text.starts_with(inode)) return intent;
  for (std::size_t at = inode.size(); at + 1 < text.size();) {
    const std::size_t end = text.find('\0', at);
    std::string name = text.substr(at, end - at);
    at = end + 1;
    if (intent.commit_name.empty()) {
      intent.commit_name = std::move(name);
    } else {
      const std::size_t space = name.find(' ');
      if (space == std::string::npos) return {};
      intent.removed.push_back({name.substr(space + 1), name.substr(0, space)});
    }
  }
  return intent;
}

/// What the manifests and indexes in the directory list now, other than those that go themselves.
struct Listed {
  std::set<std::string> names;
  std::string fault;  ///< why one of them cannot be read, so that it may list any name; empty: all can

  bool may_hold(const std::string& name) const {
    return names.contains(name) || (!fault.empty() && !is_name_of_shards(name));
  }
};

Listed listed_in(const fs::path& directory, const std::vector<SavingFolder::Removed>& going) {
  const auto goes = [&](const std::string& name) {
    return std::any_of(going.begin(), going.end(),
                       [&](const SavingFolder::Removed& removed) { return removed.name == name; });
  };
  Listed listed;
  for (CheckpointInPlace& checkpoint : checkpoints_in(directory)) {
    if (!checkpoint.is_listed) continue;
    const bool is_sharded = checkpoint.kind == CheckpointKind::sharded;
    if (goes(is_sharded ? manifest_name : hf_index_name)) continue;
    if (checkpoint.fault_number != 0) throw Error(ErrorKind::io, checkpoint.fault, checkpoint.fault_number);
    if (!checkpoint.fault.empty() && is_sharded) throw Error(ErrorKind::malformed, checkpoint.fault);
    if (!checkpoint.fault.empty()) listed.fault = checkpoint.fault;
    listed.names.insert(checkpoint.files.begin(), checkpoint.files.end());
    listed.names.insert(checkpoint.changed.begin(), checkpoint.changed.end());
  }
  return listed;
}

}  // namespace

SavingFolder::SavingFolder(const fs::path& directory)
    : directory_(directory), folder_(directory / unfinished_save_name), lock_(take_lock(folder_)) {
  if (lock_ < 0) {
    throw Error(ErrorKind::io,
                printable(directory_.native()) + ": another save to this directory is running (it holds " +
                    printable((folder_ / "lock").native()) + "); wait for it, or save to another one",
                EBUSY);
  }
}

SavingFolder::SavingFolder(fs::path directory, int lock)
    : directory_(std::move(directory)), folder_(directory_ / unfinished_save_name), lock_(lock) {}

std::unique_ptr<SavingFolder> SavingFolder::of_dead_save(const fs::path& directory) {
  if (!is_folder(directory / unfinished_save_name)) return nullptr;
  const int lock = take_lock(directory / unfinished_save_name);
  if (lock < 0) return nullptr;
  return std::unique_ptr<SavingFolder>(new SavingFolder(directory, lock));
}

SavingFolder::~SavingFolder() {
  if (lock_ < 0) return;
  // Unlocked and not only closed: a forked process may have the descriptor too.
  uninterrupted([&] { return ::flock(lock_, LOCK_UN); });
  ::close(std::exchange(lock_, -1));
}

void SavingFolder::write(const std::string& name, std::string_view content) {
  make_folders_of(files(), name);
  write_whole_file(files() / name, content);
}

void SavingFolder::write_intent(const std::string& commit_name, const std::vector<std::string>& removed) {
  std::string text = inode_of_lock(folder_) + '\0' + commit_name + '\0';
  for (const std::string& name : removed) {
    if (const std::optional<struct stat> file = entry_at(directory_ / name))
      text += std::to_string(file->st_ino) + ' ' + name + '\0';
  }
  text += '\0';
  OutputFile file(folder_ / "plan", text.size(), true);
  file.write(0, reinterpret_cast<const std::byte*>(text.data()), text.size(), "the plan of a save");
  file.finish();
  sync_directory(folder_);
  has_own_intent_ = true;
}

void SavingFolder::publish(const std::string& name, bool replaces) {
  const fs::path from = files() / name;
  const fs::path to = directory_ / name;
  make_folders_of(directory_, name);
  if (entry_at(to)) {
    if (!replaces) fail(to, "expected no file of this name, found one that is not this save's", EEXIST);
    make_folders_of(folder_, "previous/" + name);
    keep(to, folder_ / "previous" / name);
    // A link is renamed, so that the name can be told from what somebody gives it later.
    const fs::path next = folder_ / "next";
    uninterrupted([&] { return ::unlink(next.c_str()); });
    const bool is_linked = uninterrupted([&] { return ::link(from.c_str(), next.c_str()); }) == 0;
    if (!is_linked && !has_no_links(errno)) fail(to, "cannot give a finished file this name", errno);
    const fs::path& renamed = is_linked ? next : from;
    if (uninterrupted([&] { return std::rename(renamed.c_str(), to.c_str()); }) != 0)
      fail(to, "cannot give a finished file this name", errno);
    return;
  }
  if (uninterrupted([&] { return ::link(from.c_str(), to.c_str()); }) == 0) return;
  if (!has_no_links(errno)) fail(to, "cannot give a finished file this name", errno);
  if (rename_to_new(from, to) != 0) fail(to, "cannot give a finished file this name", errno);
  renamed_.push_back(name);
}

void SavingFolder::commit(const std::string& name) {
  const fs::path from = files() / name;
  const fs::path to = directory_ / name;
  const fs::path previous = folder_ / "previous" / name;
  const bool replaces = entry_at(to).has_value();
  if (replaces) {
    make_folders_of(folder_, "previous/" + name);
    keep(to, previous);
  }
  if (uninterrupted([&] { return std::rename(from.c_str(), to.c_str()); }) != 0)
    fail(to, "cannot give the finished file this name", errno);
  try {
    sync_directory(directory_);
  } catch (...) {
    // First back to where it says that this save is not committed; then the old one, without a moment
    // between.
    if (replaces) {
      keep(to, from);
      uninterrupted([&] { return std::rename(previous.c_str(), to.c_str()); });
    } else {
      uninterrupted([&] { return std::rename(to.c_str(), from.c_str()); });
    }
    throw;
  }
}

SavingFolder::Left SavingFolder::settle(bool last_try) noexcept {
  if (lock_ < 0) return {};
  Left still;
  try {
    const Intent intent = read_intent(folder_);
    if (!intent.commit_name.empty()) {
      if (entry_at(files() / intent.commit_name)) {
        still = undo();
      } else if (entry_at(directory_ / intent.commit_name)) {
        still = complete(intent);
        if (last_try) still = {};
      }
    }
    if (still.why.empty()) remove();
  } catch (const Error& error) {
    still = {error.what(), error.system_error};  // what is there stays, and the next save tries again
  } catch (const std::exception& error) {
    still = {error.what(), 0};
  }
  uninterrupted([&] { return ::flock(lock_, LOCK_UN); });
  ::close(std::exchange(lock_, -1));
  return still;
}

SavingFolder::Left SavingFolder::complete(const Intent& intent) {
  // Whatever came after this save may have brought a name back.
  const bool is_removal = intent.commit_name == ".";
  const Listed listed = listed_in(directory_, is_removal ? std::vector<Removed>{} : intent.removed);
  Left still;
  for (const auto& [name, inode] : intent.removed) {  // sorted: torch's .metadata before what it names
    if (listed.may_hold(name) || !stays_inside(directory_, name)) continue;
    // Somebody may have written a file of that name since a save died.
    const std::optional<struct stat> file = entry_at(directory_ / name);
    if (!file || (!has_own_intent_ && std::to_string(file->st_ino) != inode)) continue;
    if (Left one = remove_file(directory_, name); !one.why.empty()) still = std::move(one);
    if (name == torch_metadata_name && !still.why.empty()) return still;
  }
  return still;
}

SavingFolder::Left SavingFolder::bring_back(const std::string& name) {
  const fs::path previous = folder_ / "previous" / name;
  const fs::path written = files() / name;
  const fs::path there = directory_ / name;
  // Without links, nobody can tell whose file it is that has the name now.
  const bool is_ours = !entry_at(there) || !entry_at(written) || are_one_file(written, there);
  if (!is_ours) return {};
  if (uninterrupted([&] { return std::rename(previous.c_str(), there.c_str()); }) == 0) return {};
  return left(there, "cannot bring back this file", errno);
}

SavingFolder::Left SavingFolder::undo() {
  Left still;
  const auto note = [&](Left one) {
    if (!one.why.empty()) still = std::move(one);
  };
  std::set<std::string> replaced;
  if (is_folder(folder_ / "previous")) {
    for (const std::string& name : files_below(folder_ / "previous")) {
      replaced.insert(name);
      note(bring_back(name));
    }
  }
  // Torch's metadata that is still there names the files that would go now.
  if (replaced.contains(torch_metadata_name) && !still.why.empty()) return still;
  for (const std::string& name : files_below(files())) {  // sorted: .metadata before what it names
    if (!replaced.contains(name) && are_one_file(files() / name, directory_ / name))
      note(remove_file(directory_, name));
    if (name == torch_metadata_name && !still.why.empty()) return still;
  }
  for (auto name = renamed_.rbegin(); name != renamed_.rend(); ++name) {
    const fs::path there = directory_ / *name;
    if (uninterrupted([&] { return std::rename(there.c_str(), (files() / *name).c_str()); }) != 0)
      note(left(there, "cannot take back this name", errno));
    remove_empty_folders_of(directory_, *name);
  }
  return still;
}

void SavingFolder::remove() noexcept {
  try {
    // First: without it nothing in the folder is taken for more than it is.
    uninterrupted([&] { return ::unlink((folder_ / "plan").c_str()); });
    remove_with_all_in_it(folder_ / "files");
    remove_with_all_in_it(folder_ / "previous");
    uninterrupted([&] { return ::unlink((folder_ / "next").c_str()); });
    uninterrupted([&] { return ::unlink((folder_ / "lock").c_str()); });
    uninterrupted([&] { return ::rmdir(folder_.c_str()); });
  } catch (...) {  // memory is short: what is there stays, and the next save removes it
  }
}

void sync_directory(const fs::path& path) {
  const int descriptor =
      uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  if (descriptor < 0) fail(path, "cannot open this directory", errno);
  const int outcome = uninterrupted([&] { return ::fsync(descriptor); });
  const int code = errno;
  ::close(descriptor);
  // Some network file systems have nothing to flush here, and say so.
  if (outcome != 0 && code != EINVAL) fail(path, "cannot flush this directory to the device", code);
}

}  // namespace shardwright
