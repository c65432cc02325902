#include "storage/format/pending_checkpoint.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <iterator>
#include <system_error>
#include <thread>
#include <utility>

#include "planner/error.h"
#include "storage/files/entries.h"
#include "storage/files/made_directories.h"
#include "storage/files/printable.h"
#include "storage/files/remote_calls.h"
#include "storage/files/remote_objects.h"
#include "storage/files/uninterrupted.h"
#include "storage/format/adapter_file.h"
#include "storage/format/checkpoint_place.h"
#include "storage/format/hf_index.h"
#include "storage/format/manifest.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const fs::path& path, const std::string& what, int code) {
  throw Error(ErrorKind::io, printable(path.native()) + ": " + what + ": " + std::strerror(code), code);
}

/// How long a save waits for others to let go of its directory, which cleaning up after dead ones does for
/// moments.
constexpr std::chrono::milliseconds patience{500};

/// The folder of a save in that directory, which is made anew if somebody removes it, as empty, meanwhile.
std::unique_ptr<SavingFolder> taken(const fs::path& directory) {
  const auto limit = std::chrono::steady_clock::now() + patience;
  for (;;) {
    try {
      make_directories(directory);
      return std::make_unique<SavingFolder>(directory);
    } catch (const Error& error) {
      const bool may_pass = error.system_error == EBUSY || error.system_error == ENOENT;
      if (!may_pass || std::chrono::steady_clock::now() > limit) throw;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

/// Whether `name` begins as <start>-#-of-.
bool begins_with(const std::string& name, const std::string& start) {
  if (name.compare(0, start.size() + 1, start + '-') != 0) return false;
  const std::size_t end = name.find_first_not_of("0123456789", start.size() + 1);
  return end != std::string::npos && end > start.size() + 1 && name.compare(end, 4, "-of-") == 0;
}

/// The manifest or index, which publishes a checkpoint.
const char* name_that_publishes(CheckpointKind kind) {
  return kind == CheckpointKind::sharded       ? manifest_name
         : kind == CheckpointKind::huggingface ? hf_index_name
                                               : adapter_weights_name;
}

/// Whether a path without links or ".." is that of the directory, or below it.
bool is_in(const fs::path& directory, const fs::path& path) {
  return std::mismatch(directory.begin(), directory.end(), path.begin(), path.end()).first == directory.end();
}

/// Whether one of these checkpoints lists a file of that name.
bool is_listed(const std::vector<CheckpointInPlace>& all, const std::string& name) {
  return std::any_of(all.begin(), all.end(), [&](const CheckpointInPlace& found) {
    return std::find(found.files.begin(), found.files.end(), name) != found.files.end();
  });
}

/// Whether what is read from `source` lies in the directory: it is that, or some of what it has by name, and
/// of what its checkpoint lists in folders below, are links there, or files that the directory's checkpoints
/// list.
bool reads_from(const fs::path& source, const fs::path& directory,
                const std::vector<CheckpointInPlace>& all) {
  std::error_code code;
  if (fs::equivalent(source, directory, code)) return true;
  const fs::path folder = resolved_path(source);
  if (!is_folder(folder)) return false;
  std::vector<std::string> names = names_in(folder);
  for (const CheckpointInPlace& found : checkpoints_in(folder))
    names.insert(names.end(), found.files.begin(), found.files.end());
  return std::any_of(names.begin(), names.end(), [&](const std::string& name) {
    std::error_code leads_nowhere;
    const fs::path target = fs::canonical(folder / name, leads_nowhere);
    return !leads_nowhere && is_in(directory, target) && !is_in(target, directory) &&
           (target != folder / name || is_listed(all, target.lexically_relative(directory).native()));
  });
}

/// What a save of that kind would replace: each checkpoint, with names of its files.
std::string all_that_is_there(const std::vector<CheckpointInPlace>& all, CheckpointKind kind) {
  std::string text;
  for (const CheckpointInPlace& found : all) {
    if (!text.empty()) text += ", and ";
    text += name_of(found.kind);
    if (found.kind == kind && !found.is_ours)
      text += " that this library has not written, or that was changed since";
    text += " (" + listed(found.files) + ")";
  }
  return text;
}

}  // namespace

PendingCheckpoint::PendingCheckpoint(const fs::path& directory, CheckpointKind kind,
                                     std::optional<bool> overwrite, const std::vector<fs::path>& sources)
    : objects_(is_remote(directory)
                   ? std::make_unique<PendingObjects>(directory.native(), name_that_publishes(kind))
                   : nullptr),
      directory_(resolved_path(objects_ ? objects_->shadow().path() : directory)),
      kind_(kind),
      made_(make_directories(directory_)) {
  naming([&] { begin(overwrite, sources); });
}

PendingCheckpoint::~PendingCheckpoint() { abandon(); }

void PendingCheckpoint::begin(std::optional<bool> overwrite, const std::vector<fs::path>& sources) {
  try {
    folder_ = taken(directory_);
    if (const SavingFolder::Left left = folder_->settle(true); !left.why.empty()) {
      throw Error(ErrorKind::io,
                  left.why + "; a save that was ended had replaced it, and nothing is saved to " +
                      printable(directory_.native()) + " until it is back. Free the name or remove " +
                      printable((directory_ / unfinished_save_name).native()),
                  left.number == 0 ? EBUSY : left.number);
    }
    folder_ = taken(directory_);
    expect_replaceable(overwrite, sources);
    files_ = folder_->files();
    if (uninterrupted([&] { return ::mkdir(files_.c_str(), 0777); }) != 0)
      fail(files_, "cannot create this directory", errno);
  } catch (...) {
    give_up();
    throw;
  }
}

void PendingCheckpoint::expect_replaceable(std::optional<bool> overwrite,
                                           const std::vector<fs::path>& sources) {
  const std::string where = printable(directory_.native());
  const std::string hint =
      "; nothing was written. Give another path, or pass overwrite=True to replace it and keep all other "
      "files";
  std::vector<CheckpointInPlace> all = checkpoints_in(directory_);
  const auto is_this = [&](const fs::path& source) {
    if (is_remote(source))
      return objects_ != nullptr && is_same_folder(source.native(), objects_->shadow().address());
    return objects_ == nullptr && reads_from(source, directory_, all);
  };
  const bool replaces_its_source = std::any_of(sources.begin(), sources.end(), is_this);
  // An adapter lies beside a checkpoint of weights and has no name in common with it.
  std::erase_if(all, [&](const CheckpointInPlace& found) {
    return (found.kind == CheckpointKind::adapter) != (kind_ == CheckpointKind::adapter);
  });
  // What resumes a training is not all in an export of it: no option lets the one be lost for the other.
  if (replaces_its_source && kind_ == CheckpointKind::huggingface &&
      std::any_of(all.begin(), all.end(), [](const CheckpointInPlace& found) {
        return found.kind == CheckpointKind::sharded || found.kind == CheckpointKind::torch;
      })) {
    throw Error(ErrorKind::io,
                where + ": holds the checkpoint of training that this is made from, with more than its " +
                    "weights, such as the optimizer, which would be lost; nothing was written. Give another "
                    "path",
                EEXIST);
  }
  if (overwrite != true && replaces_its_source) {
    throw Error(ErrorKind::io,
                where + ": this is what the checkpoint is made from, and would be replaced" + hint, EEXIST);
  }
  for (CheckpointInPlace& found : all)
    std::move(found.with_weights.begin(), found.with_weights.end(), std::back_inserter(found.files));
  for (const CheckpointInPlace& found : all) {
    if (overwrite == false) {
      throw Error(ErrorKind::io, where + ": Checkpoint already exists and overwrite=False; nothing was saved",
                  EEXIST);
    }
    if (overwrite != true && !found.fault.empty()) {
      throw Error(ErrorKind::io,
                  where + ": holds " + name_of(found.kind) +
                      " that cannot be read, so that its files are not known: " + found.fault + hint,
                  found.fault_number == 0 ? EEXIST : found.fault_number);
    }
    const bool is_alike =
        found.kind == kind_ || (kind_ == CheckpointKind::sharded && found.kind == CheckpointKind::torch);
    if (overwrite != true && (!is_alike || !found.is_ours))
      throw Error(ErrorKind::io, where + ": holds " + all_that_is_there(all, kind_) + hint, EEXIST);
  }
  for (CheckpointInPlace& found : all) {
    replaces_ = true;
    if (found.is_ours) own_beside_ = found.beside;
    std::move(found.files.begin(), found.files.end(), std::back_inserter(replaced_));
    std::move(found.beside.begin(), found.beside.end(), std::back_inserter(beside_));
  }
  std::sort(replaced_.begin(), replaced_.end());
  std::sort(beside_.begin(), beside_.end());
}

bool PendingCheckpoint::may_replace(const std::string& name) const {
  return std::binary_search(replaced_.begin(), replaced_.end(), name) ||
         std::binary_search(beside_.begin(), beside_.end(), name);
}

std::string PendingCheckpoint::free_start_of_names() const {
  const std::vector<std::string> names = names_in(directory_);
  std::string start = "model";
  for (int number = 2; std::any_of(names.begin(), names.end(),
                                   [&](const std::string& name) { return begins_with(name, start); });
       ++number)
    start = "model-" + std::to_string(number);
  return start;
}

void PendingCheckpoint::announce() {
  if (objects_) objects_->announce();
}

bool PendingCheckpoint::announce(const std::string& start, const SizesOfObjects& uploads) {
  if (!objects_ || uploads.empty() || objects_->announce(start, uploads)) return true;
  objects_->take(start + "-0-of-0.unpublished");
  return false;
}

void PendingCheckpoint::naming(const std::function<void()>& work) const {
  if (!objects_) return work();
  objects_->shadow().naming(work);
}

void PendingCheckpoint::expect_free(const std::vector<std::string>& names) const {
  std::vector<std::string> taken;
  std::copy_if(names.begin(), names.end(), std::back_inserter(taken),
               [&](const std::string& name) { return !may_replace(name) && entry_at(directory_ / name); });
  if (taken.empty()) return;
  naming([&] {
    throw Error(
        ErrorKind::io,
        printable(directory_.native()) + ": expected no files of names that this save needs, found " +
            listed(taken) +
            ", which are not of a checkpoint that it replaces; nothing was written. Move them away, or "
            "give another path",
        EEXIST);
  });
}

void PendingCheckpoint::expect_held() const {
  if (folder_ != nullptr) return;
  naming([&] {
    throw Error(ErrorKind::io,
                printable(directory_.native()) + ": this save has been given up; nothing was saved",
                ECANCELED);
  });
}

/// At an address, nothing that the new checkpoint is of may be missing.
void PendingCheckpoint::expect_uploaded(SizesOfObjects uploaded) const {
  if (kind_ == CheckpointKind::sharded) {
    for (const StoredFile& file : read_manifest(files_).files) {
      if (!entry_at(files_ / file.name)) uploaded[file.name] = file.size;
    }
  }
  objects_->expect_uploaded(uploaded);
}

void PendingCheckpoint::write(const std::string& name, std::string_view content) {
  const std::lock_guard lock(mutex_);
  expect_held();
  folder_->write(name, content);
}

void PendingCheckpoint::publish(const std::string& commit_name, const SizesOfObjects& uploaded) {
  const std::lock_guard lock(mutex_);
  expect_held();
  if (objects_) expect_uploaded(uploaded);
  naming([&] { publish_in_folder(commit_name); });
  if (objects_) objects_->publish();
}

void PendingCheckpoint::publish_in_folder(const std::string& commit_name) {
  const std::vector<std::string> names = files_below(files_);
  std::vector<std::string> removed;
  std::set_difference(replaced_.begin(), replaced_.end(), names.begin(), names.end(),
                      std::back_inserter(removed));
  sync_directory(files_);
  folder_->write_intent(commit_name, removed);
  // By its metadata torch finds the others, so they have to have their names by then.
  const auto is_torchs = [](const std::string& name) { return name == torch_metadata_name; };
  for (const std::string& name : names) {
    if (name != commit_name && !is_torchs(name)) folder_->publish(name, may_replace(name));
  }
  sync_directory(directory_);
  if (commit_name != torch_metadata_name && std::any_of(names.begin(), names.end(), is_torchs)) {
    folder_->publish(torch_metadata_name, may_replace(torch_metadata_name));
    sync_directory(directory_);
  }
  if (entry_at(directory_ / commit_name) && !may_replace(commit_name)) expect_free({commit_name});
  folder_->commit(commit_name);
  made_.clear();
  give_up();
}

void PendingCheckpoint::abandon() noexcept {
  const std::lock_guard lock(mutex_);
  give_up();
  if (objects_) objects_->abandon();
}

void PendingCheckpoint::give_up() noexcept {
  if (folder_ != nullptr) folder_->settle();
  folder_.reset();
  remove_directories(made_);
  made_.clear();
}

void remove_checkpoint(const fs::path& path) {
  if (is_remote(path)) return remove_remote_checkpoint(path.native());
  struct stat status {};
  if (uninterrupted([&] { return ::lstat(path.c_str(), &status); }) != 0)
    fail(path, "cannot look at this checkpoint", errno);
  if (S_ISLNK(status.st_mode)) {
    if (uninterrupted([&] { return ::unlink(path.c_str()); }) != 0)
      fail(path, "cannot remove this link", errno);
    sync_directory(fs::absolute(path).parent_path());
    return;
  }
  const fs::path directory = resolved_path(path);
  SavingFolder(directory).settle();
  SavingFolder folder(directory);
  for (const CheckpointInPlace& found : checkpoints_in(directory)) {
    if (found.kind != CheckpointKind::sharded) continue;
    if (!found.fault.empty()) {
      folder.settle();
      throw Error(ErrorKind::malformed,
                  found.fault + "; this checkpoint is not removed: its files are not known");
    }
    std::vector<std::string> changed;
    std::copy_if(found.changed.begin(), found.changed.end(), std::back_inserter(changed),
                 [&](const std::string& name) { return entry_at(directory / name).has_value(); });
    if (!changed.empty()) {
      folder.settle();
      throw Error(
          ErrorKind::io,
          printable(directory.native()) + ": " + listed(changed) + (changed.size() == 1 ? " has" : " have") +
              " been changed since this checkpoint was saved, so that none of it is removed; remove it "
              "by hand if nobody needs it",
          EEXIST);
    }
    // A plan that counts as committed: what it names is removed once no manifest lists it.
    folder.write_intent(".", found.files);
    if (uninterrupted([&] { return ::unlink((directory / manifest_name).c_str()); }) != 0) {
      const int code = errno;
      folder.settle();
      fail(directory / manifest_name, "cannot remove this manifest", code);
    }
    sync_directory(directory);
  }
  folder.settle();
  uninterrupted([&] { return ::rmdir(directory.c_str()); });
}

void clean_up_after_dead_save(const fs::path& directory) {
  if (is_remote(directory)) return clean_up_after_dead_remote_saves(directory.native());
  const std::unique_ptr<SavingFolder> dead = SavingFolder::of_dead_save(directory);
  if (dead == nullptr) return;
  dead->settle();
  uninterrupted([&] { return ::rmdir(directory.c_str()); });
}

}  // namespace shardwright
