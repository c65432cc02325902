#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string_view>

namespace shardwright {

/// A file that somebody has named to be written.
///
/// A regular file, or one that is not there yet, is written under a name of its own, which nothing else has
/// (".<name>.<16 digits>.partial"), and takes its name when all of it is there. Permissions and owner stay
/// those of the file that it replaces, where the system allows it. Symbolic links are followed and stay.
///
/// What is no regular file (a terminal, a pipe, /dev/null) is written into, never replaced. /dev/stdout,
/// /dev/fd/N and their like are the open descriptor itself, at its place in whatever it writes to.
///
/// All functions throw Error (io) with errno, naming the file as it was given, if the operating system
/// refuses.
class PendingFile {
 public:
  /// Waits for somebody to read, where the file is a named pipe. `check_for_interrupt` is called while the
  /// file makes this thread wait, here and in append(), and may throw.
  explicit PendingFile(const std::filesystem::path& named,
                       std::function<void()> check_for_interrupt = nullptr);

  /// Removes what was not published.
  ~PendingFile();
  PendingFile(PendingFile&& other) noexcept;
  PendingFile& operator=(PendingFile&&) = delete;

  void append(std::string_view bytes);

  /// Makes the file this long; what is added reads as zeros and takes no space on disk.
  void resize(std::uint64_t bytes);

  /// Closes the file: no more can be written.
  void close();

  /// Gives the file its name. Closes it if it is open.
  void publish();

 private:
  void create(unsigned mode);
  void open_in_place();
  void open_descriptor();
  void check() const;
  [[noreturn]] void fail(const char* what) const;

  std::filesystem::path named_;
  std::filesystem::path target_;  ///< `named_` with its links followed
  std::filesystem::path
      path_;  ///< empty once there is nothing to remove, or where there is nothing to rename
  std::function<void()> check_for_interrupt_;
  int descriptor_ = -1;
};

/// Whether a PendingFile of this name would write into what is there, and not make or replace a regular file.
/// Throws as that does.
bool is_written_into(const std::filesystem::path& named);

/// Writes all of a file that somebody has named, as PendingFile does.
void write_named_file(const std::filesystem::path& named, std::string_view bytes,
                      std::function<void()> check_for_interrupt = nullptr);

}  // namespace shardwright
