#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace shardwright {

/// A file being written under a name of its own ("<name>.partial"), which takes its final name when all of it
/// is there. Removed if it is destroyed before. All functions throw Error (io), naming the file, if the
/// operating system refuses.
class PendingFile {
 public:
  /// Creates the file, or empties one that a killed process left behind.
  explicit PendingFile(const std::filesystem::path& final_path);
  ~PendingFile();
  PendingFile(PendingFile&& other) noexcept;
  PendingFile& operator=(PendingFile&&) = delete;

  void append(std::string_view bytes);

  /// Makes the file this long; what is added reads as zeros and takes no space on disk.
  void resize(std::uint64_t bytes);

  /// Closes the file: no more can be written.
  void close();

  /// Gives the file its final name. Closes it if it is open.
  void publish();

 private:
  [[noreturn]] void fail(const char* what) const;

  std::filesystem::path final_path_;
  std::filesystem::path path_;  ///< empty once there is nothing to remove
  int descriptor_ = -1;
};

}  // namespace shardwright
