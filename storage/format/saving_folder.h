#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace shardwright {

/// The folder of a directory that a save writes in until it is published, unfinished_save_name:
///
///     .shardwright.saving/lock       locked (flock) by the saving process as long as it lives
///                         files/     what is written, under its names in the directory
///                         plan       from the first name given on: a list of texts, each ended by NUL: the
///                                    number of the lock's inode, the name that commits, inode and name of
///                                    each file to remove after it, and an empty text
///                         previous/  links to the files that naming has replaced so far
///                         next       a name about to replace another's file
///
/// A plan with the inode of another lock has come with an archive or a copy, and is no plan.
///
/// A save is committed once the name that commits is in the directory and no longer in files/. Removing a
/// checkpoint is a plan that "." commits: it is always so, and what the plan names goes once no manifest
/// lists it.
///
/// The class holds the lock. REQUIRES: one thread at a time.
class SavingFolder {
 public:
  /// A file that goes once the save is committed, if it still is the one that has this inode.
  struct Removed {
    std::string name;
    std::string inode;
  };

  /// What publishing will do: the file `plan`.
  struct Intent {
    std::string commit_name;  ///< empty: no name has been given
    std::vector<Removed> removed;
  };

  /// What could not be done, and why.
  struct Left {
    std::string why;  ///< names the path; empty: nothing is left
    int number = 0;   ///< errno, if the operating system refuses
  };

  /// Makes the folder if need be and takes the lock. Throws Error(io), naming the path: EBUSY if another
  /// process or object has the lock; the operating system's number if it refuses.
  explicit SavingFolder(const std::filesystem::path& directory);

  /// The folder of a save that died; null if there is none in the directory, or the save is still running.
  static std::unique_ptr<SavingFolder> of_dead_save(const std::filesystem::path& directory);

  /// Gives up the lock, and leaves what is in the folder.
  ~SavingFolder();
  SavingFolder(const SavingFolder&) = delete;
  SavingFolder& operator=(const SavingFolder&) = delete;

  std::filesystem::path files() const { return folder_ / "files"; }

  /// Writes a whole file of this name into files/, flushed.
  void write(const std::string& name, std::string_view content);

  /// Writes the intent, flushed. `removed` are names of the directory.
  void write_intent(const std::string& commit_name, const std::vector<std::string>& removed);

  /// Gives the file of that name in files/ its name in the directory. `replaces`: a file may have it, which
  /// is then kept in previous/. Throws Error(io), EEXIST if a file has it and may not be replaced.
  void publish(const std::string& name, bool replaces);

  /// Renames the file that commits, and flushes the directory. After a failure the file is in files/ again.
  void commit(const std::string& name);

  /// Completes the save in the folder if it was committed: removes what it replaced. Else undoes it: removes
  /// the names that it gave, and brings back what it replaced, but not over what somebody has written since.
  /// Then removes the folder and gives up the lock. What cannot be removed stays for the next to try; if this
  /// is the `last_try`, only what has to be brought back. Returns what is left to do.
  Left settle(bool last_try = false) noexcept;

 private:
  SavingFolder(std::filesystem::path directory, int lock);
  Left complete(const Intent& intent);
  Left undo();
  Left bring_back(const std::string& name);
  void remove() noexcept;

  std::filesystem::path directory_;
  std::filesystem::path folder_;
  int lock_ = -1;
  bool has_own_intent_ = false;
  std::vector<std::string> renamed_;  ///< names given without a link, as the file system has none
};

/// Flushes a directory's list of entries to the device. Throws Error(io), naming it.
void sync_directory(const std::filesystem::path& path);

}  // namespace shardwright
