#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "storage/format/checkpoint_in_place.h"
#include "storage/format/pending_objects.h"
#include "storage/format/saving_folder.h"

namespace shardwright {

/// A checkpoint being added to a directory, beside whatever else is there.
///
/// One process of a job makes it and publishes it; the others write into `path()`. Publishing links each file
/// to its name in the directory, and commits by renaming one of them, the manifest or index, last. A kill at
/// any moment leaves the checkpoint that was there before the commit whole, or the new one. What it leaves
/// besides, the next save to the directory removes: it knows a dead save by its lock, which the kernel drops
/// however a process ends, and its files by their inodes.
///
/// No directory is ever renamed or removed that holds anything else. What is removed is what the manifest or
/// index of the replaced checkpoint names. Links are removed, never followed.
///
/// Where the file system has no hard links, files are renamed instead; those that a killed save had named and
/// not committed then stay.
///
/// Of an address it is a checkpoint in a folder of this machine that stands for the store's, and publishing
/// does the same to the objects: see PendingObjects. Shards are not in that folder; ranks upload them, under
/// names that end in `tag()`, after announce().
///
/// All functions throw Error(io) with errno, naming the path, if the operating system refuses; of an address
/// they throw as RemoteCalls does, too.
class PendingCheckpoint {
 public:
  /// Makes the directory if need be, takes the lock, and cleans up after a dead save. `overwrite`: true
  /// replaces any checkpoint that is there; nothing replaces one of this kind that this library wrote; false
  /// replaces none. `sources` are directories that the checkpoint is made from, such as a template; writing
  /// to one of them needs `overwrite`, too. No `overwrite` lets an export replace the checkpoint of training
  /// that it is made from.
  ///
  /// Throws Error: io (EBUSY) if another save to the directory is running, io (ENOTDIR) if a file has its
  /// name, io (EEXIST) for a checkpoint that may not be replaced.
  PendingCheckpoint(const std::filesystem::path& directory, CheckpointKind kind,
                    std::optional<bool> overwrite = std::nullopt,
                    const std::vector<std::filesystem::path>& sources = {});

  /// Does as abandon().
  ~PendingCheckpoint();
  PendingCheckpoint(const PendingCheckpoint&) = delete;
  PendingCheckpoint& operator=(const PendingCheckpoint&) = delete;

  /// Where to write, absolute.
  const std::filesystem::path& path() const { return files_; }

  /// The directory: absolute, links resolved. Of an address, the folder that stands for it.
  const std::filesystem::path& final_path() const { return directory_; }

  bool is_at_address() const { return objects_ != nullptr; }

  /// What names of uploaded shards end in; empty in a directory.
  std::string tag() const { return objects_ ? objects_->tag() : ""; }

  /// Has who saves there next delete what is uploaded from now on, if this save dies. Does nothing in a
  /// directory.
  void announce();

  /// The same of files that are uploaded under names that begin with `start`. False if another save does
  /// that: free_start_of_names() gives another one then.
  bool announce(const std::string& start, const SizesOfObjects& uploads);

  /// Does `work`, whose errors then name the address in place of the folder that stands for it.
  void naming(const std::function<void()>& work) const;

  /// True if a checkpoint was there that this one replaces.
  bool replaces() const { return replaces_; }

  /// What the replaced checkpoint, if this library wrote it, has beside its weights and as it was written,
  /// such as config.json. Relative names; they may be replaced, and are not removed.
  const std::vector<std::string>& own_beside() const { return own_beside_; }

  /// A start of names, "model" or else "model-2", "model-3", ..., such that no file
  /// <start>-#-of-#.safetensors is there yet: files of the checkpoint that is replaced keep their names until
  /// the new one is committed.
  std::string free_start_of_names() const;

  /// Whether the file of this name, if there is one, is of the replaced checkpoint, so that the save may
  /// write it anew.
  bool may_replace(const std::string& name) const;

  /// Throws Error(io, EEXIST) that lists those of the names (relative) that files have which the save may not
  /// replace. It may replace files of the replaced checkpoint.
  void expect_free(const std::vector<std::string>& names) const;

  /// Writes a whole file of this name (relative) into path(), flushed to the device.
  void write(const std::string& name, std::string_view content);

  /// Gives all files that were written their names, torch's metadata behind those that it names and
  /// `commit_name` (relative) last, flushed to the device in that order; removes what the new checkpoint
  /// replaces; and gives up the lock. After a failure nothing has been published, and what was there before
  /// is there. `uploaded`: files of weights without which nothing is published at an address; those that a
  /// manifest names need not be said.
  void publish(const std::string& commit_name, const SizesOfObjects& uploaded = {});

  /// Removes what was written, and the directory if this made it, and gives up the lock. While another thread
  /// publishes, waits for it, and then does nothing if that has succeeded.
  void abandon() noexcept;

 private:
  void expect_replaceable(std::optional<bool> overwrite, const std::vector<std::filesystem::path>& sources);
  void begin(std::optional<bool> overwrite, const std::vector<std::filesystem::path>& sources);
  void expect_held() const;
  void expect_uploaded(SizesOfObjects uploaded) const;
  void publish_in_folder(const std::string& commit_name);
  void give_up() noexcept;

  std::unique_ptr<PendingObjects> objects_;  ///< null in a directory
  std::filesystem::path directory_;
  CheckpointKind kind_;
  std::vector<std::filesystem::path> made_;  ///< directories, outermost first
  std::vector<std::string> replaced_;        ///< names of files of the replaced checkpoints, sorted
  std::vector<std::string> beside_;          ///< names that belong to them, sorted
  std::vector<std::string> own_beside_;
  std::unique_ptr<SavingFolder> folder_;  ///< null once published or abandoned
  std::filesystem::path files_;
  bool replaces_ = false;
  std::mutex
      mutex_;  ///< held by publish() and abandon(): an interrupt gives up what another thread publishes
};

/// Deletes a sharded checkpoint, of a directory or at an address: its manifest first, so that nobody finds
/// half of it, then the files that it names, then the directory if nothing else is in it. Of a symbolic link,
/// deletes the link.
/// Throws Error, and has removed nothing then: io, EBUSY if a save to it is running; io, EEXIST, naming them,
/// for files that are there and not as they were saved; malformed for a manifest that cannot be read; io,
/// naming the path, if the operating system refuses.
void remove_checkpoint(const std::filesystem::path& directory);

/// Removes what a save that died has left in a directory, and the directory if it is then empty. Does nothing
/// where there is no such thing, or the save is still running. At an address, one that began less than a day
/// ago counts as running.
void clean_up_after_dead_save(const std::filesystem::path& directory);
}  // namespace shardwright
