#pragma once

#include <filesystem>

namespace shardwright {

/// A checkpoint directory being written: a hidden sibling ".<name>.saving-<random>" of the directory that it
/// is to become, which takes that one's place in one step when every rank has written all of its part.
///
/// One process of a job makes it and publishes it; the others write into `path()`. While it lives, that
/// process holds a lock (flock) on ".<name>.lock" beside it, which the kernel drops however the process ends.
/// So a second save to the same name is refused, and what a dead save has left is known as such and cleaned
/// by the next one.
///
/// All functions throw Error(io) with errno, naming the path, if the operating system refuses.
class PendingDirectory {
 public:
  /// Takes the lock, cleans up after dead saves to that name, and makes the directory; parents are made too.
  /// Throws Error: io (EBUSY) if another save to that name is running; io (ENOTDIR) if a file has that name;
  /// argument if a directory has it that is neither empty nor a checkpoint, since that would be replaced as a
  /// whole.
  explicit PendingDirectory(const std::filesystem::path& final_path);

  /// Removes the directory with what is in it unless it has been published.
  ~PendingDirectory();
  PendingDirectory(const PendingDirectory&) = delete;
  PendingDirectory& operator=(const PendingDirectory&) = delete;

  /// Where to write, absolute.
  const std::filesystem::path& path() const { return path_; }

  /// What it will be called: absolute, links resolved.
  const std::filesystem::path& final_path() const { return final_path_; }

  /// True if a checkpoint of that name was there when this was made.
  bool replaces() const { return replaces_; }

  /// Flushes the directory to the device and gives it its final name; the files in it have been flushed by
  /// who wrote them. A checkpoint that had the name stays whole until then, at any moment of a crash: the two
  /// change places in one step (RENAME_EXCHANGE), or, on a file system that cannot, the old one is moved
  /// aside first, and back by the next save should this one die in between. The old one is then deleted, and
  /// the lock given up.
  void publish();

  /// Removes the directory and gives up the lock. What cannot be removed now is removed by the next save.
  void abandon() noexcept;

 private:
  void take_lock();
  void drop_lock() noexcept;
  void clean_up_after_dead_saves();
  void exchange_with_old();

  std::filesystem::path final_path_;
  std::filesystem::path lock_path_;
  std::filesystem::path path_;
  int lock_ = -1;
  bool pending_ = false;  ///< path_ is there and is to be removed
  bool replaces_ = false;
};

/// Deletes a checkpoint in such a way that nobody finds half of it: it loses its name first. Cleans up, too,
/// what a process that died in here has left in the same directory.
void remove_checkpoint(const std::filesystem::path& path);

/// Flushes a directory's list of entries to the device.
void sync_directory(const std::filesystem::path& path);

}  // namespace shardwright
