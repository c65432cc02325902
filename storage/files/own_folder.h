#pragma once

#include <filesystem>

namespace shardwright {

/// A new folder for temporary files, in which nothing is. It goes with this object, or, if its process was
/// killed, with the next that is made.
class OwnFolder {
 public:
  /// Throws Error(io), naming it, where no such folder can be made.
  OwnFolder();
  ~OwnFolder();
  OwnFolder(const OwnFolder&) = delete;
  OwnFolder& operator=(const OwnFolder&) = delete;

  /// Absolute, links resolved.
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path around_;  // path_, and a file that this process holds a lock on
  std::filesystem::path path_;
  int lock_ = -1;
};

/// Removes what others of this user have left in the folder for temporary files, and no living process holds.
void remove_folders_of_dead_processes() noexcept;

}  // namespace shardwright
