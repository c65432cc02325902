#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "planner/names/catalog.h"
#include "storage/files/gpu_direct.h"
#include "storage/files/input_file.h"

namespace shardwright {

/// A quarter of the descriptors that this process may still get, at least 1: so many files may be kept open,
/// each of which may take two, while the rest of the process needs some.
std::size_t most_open_files();

/// A file that a load reads from.
struct OpenFile {
  std::unique_ptr<const InputFile> file;
  bool is_cached = true;       ///< at least half of it was in the page cache when it was opened
  int direct_descriptor = -1;  ///< for reading past the page cache; -1: read through it
  void* gpu_direct = nullptr;  ///< for reading straight into devices, see GpuDirectCalls; null: not to be
  const GpuDirectCalls* gpu_direct_calls = nullptr;  ///< that it came from

  OpenFile() = default;
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
};

/// Fills `to` with `length` bytes from `offset` on of the file, which holds `tensor`, through the page cache.
/// Throws Error(io) naming file, offset and tensor.
void read_of(const OpenFile& file, const SourceTensor& tensor, std::uint64_t offset, std::byte* to,
             std::uint64_t length);

/// Calls `read`, and adds to an Error(io) of it which tensor was read from which byte on.
void naming_read(const SourceTensor& tensor, std::uint64_t offset, const std::function<void()>& read);

class OpenFiles;

/// The end of an OpenFiles::Use.
struct GivesFileBack {
  OpenFiles* from = nullptr;
  std::shared_ptr<const OpenFile> file;
  void operator()(const OpenFile*);
};

/// Files of a checkpoint, opened when needed. As a process may have only so many files open, those not used
/// for the longest time are closed, and opened again when they are needed again. Thread-safe.
class OpenFiles {
 public:
  /// A file that stays open while this lives, which must go before the OpenFiles that it comes from.
  using Use = std::unique_ptr<const OpenFile, GivesFileBack>;

  struct Uses {
    Use weights, scales;  ///< null scales: of the same file, or none were asked for
  };

  /// Reads past the page cache all files whose file system allows it, or none; nothing: those that are not in
  /// it.
  OpenFiles(const Catalog& catalog, std::optional<bool> direct_io);

  /// The file that holds `weights`, and the one that holds `scales` (may be null) if that is another. Both
  /// are null if the process may not have them open until some that are in use are given back. Throws
  /// Error(io) naming file and tensor if one cannot be opened, or if its size is not what it was when the
  /// catalog was read.
  Uses try_to_use(const SourceTensor& weights, const SourceTensor* scales);

  /// Does as try_to_use(), but waits until others give files back. REQUIRES: the caller uses no file itself,
  /// as two such could wait for each other.
  Uses use(const SourceTensor& weights, const SourceTensor* scales);

  /// Lets files that are read past the page cache be read straight into devices too, from now on, where that
  /// is not refused. The calls must outlive this. REQUIRES: no file is in use.
  void use_gpu_direct(const GpuDirectCalls* calls) { gpu_direct_calls_ = calls; }

  /// Closes what is open. REQUIRES: no file is in use.
  void close_all();

  /// Takes note that a read of that file straight into a device was refused: from now on none is made.
  void give_up_gpu_direct(const SourceTensor& tensor);

  /// Takes note that a read of that file past the page cache was refused: from now on it is read through it.
  void give_up_direct(const SourceTensor& tensor);

  std::int64_t count() const;                ///< files opened so far
  std::int64_t count_direct() const;         ///< of them, those that are read past the page cache
  bool is_direct(std::uint32_t file) const;  ///< that file, an index into Catalog::files, is one of them

 private:
  friend GivesFileBack;
  struct Slot {
    std::shared_ptr<OpenFile> file;  // null: closed
    std::uint64_t last_use = 0;      // 0: never opened
    bool is_cached = true;           // as found when it was opened first, like the next
    bool is_direct = false;
    bool may_be_gpu_direct = true;
  };

  // These need the mutex.
  std::shared_ptr<OpenFile> open(const SourceTensor& tensor, const Slot& slot) const;
  void register_gpu_direct(Slot& slot) const;
  void forget(Slot& slot);
  std::shared_ptr<const OpenFile> opened(const SourceTensor& tensor);
  bool close_the_oldest();
  Use handed_out(std::shared_ptr<const OpenFile> file);
  Uses uses_of(const SourceTensor& weights, const SourceTensor* scales);

  const Catalog& catalog_;
  const std::optional<bool> direct_io_;
  const std::size_t most_open_;
  const GpuDirectCalls* gpu_direct_calls_ = nullptr;
  mutable std::mutex mutex_;  // guards what follows
  std::vector<Slot> slots_;   // by index into Catalog::files
  std::size_t open_ = 0;
  std::uint64_t last_use_ = 0;
  std::size_t in_use_ = 0;  // uses that were given out and not given back
  std::condition_variable given_back_;
};

}  // namespace shardwright
