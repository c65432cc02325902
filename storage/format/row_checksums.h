#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "planner/geometry/box.h"
#include "planner/load/load_plan.h"
#include "planner/names/catalog.h"
#include "storage/strided_memory.h"

namespace shardwright {

/// Checksums of a stored tensor that threads and ranks make, and check, a few rows at a time in any order.
///
/// A row is a run of the last dimension; a tensor without dimensions, or of a packed dtype, is one row. A
/// tensor's bytes are divided into cells: each row at its multiples of 64 KiB and at its cuts, and all of
/// them at the tensor's multiples of 4 MiB, which are the ends of blocks. Cuts are where the parts of ranks
/// that held columns ended.
///
/// The sum of a block is the sum, modulo 2^64, over its cells, of XXH3_64(bytes of the cell, seed = offset of
/// the cell in the tensor). The seed makes known that two cells have changed places.
inline constexpr std::uint64_t cell_bytes = std::uint64_t{64} << 10;

/// Bytes of a tensor, and of each of its rows.
struct RowGeometry {
  std::uint64_t bytes = 0;
  std::uint64_t row_bytes = 0;

  bool operator==(const RowGeometry&) const = default;
};

RowGeometry rows_of(const SourceTensor& tensor);

/// The sum of bytes [begin, begin + count) of a tensor, which are a block, or what is left of the last.
/// `cuts`: see RowChecksums; empty: none.
std::uint64_t sum_of_block(const RowGeometry& geometry, const std::vector<std::uint64_t>& cuts,
                           const std::byte* bytes, std::uint64_t begin, std::uint64_t count);

/// Sums of what one rank of an export has written. Thread-safe.
class RowSums {
 public:
  /// `tensors` must outlive it.
  explicit RowSums(const std::vector<SourceTensor>& tensors) : tensors_(tensors) {}

  /// Adds a box of tensor number `tensor`, seen in that shape, which is its own or a view of it. `rows` begin
  /// with the box's first element; the last stride is 1. Each element of a tensor is added once, on whatever
  /// rank.
  void add(std::uint32_t tensor, const Shape& shape, const Box& box, const StridedMemory& rows);

  /// Bytes for the coordinator (storage/format/checksums.proto).
  std::string encode() const;

 private:
  struct Sum {
    std::uint64_t bytes = 0;
    std::uint64_t sum = 0;
  };
  using Columns = std::pair<std::uint64_t, std::uint64_t>;  // [begin, end) of a row

  const std::vector<SourceTensor>& tensors_;
  mutable std::mutex mutex_;
  std::map<std::uint32_t, std::map<Columns, std::map<std::uint64_t, Sum>>> sums_;  // by block
};

/// What all ranks have written between them, by index into `tensors`. A tensor whose rows were not all cut
/// alike gets no checksums. Throws Error(malformed) for bytes that are no such message.
std::vector<RowChecksums> merged_row_sums(const std::vector<std::string>& ranks,
                                          const std::vector<SourceTensor>& tensors);

/// The checks of one load: blocks that are read whole are compared, those that are not are passed over.
/// Thread-safe.
class RowChecks {
 public:
  /// Checks what the plan reads, but no tensor that it reads rows of twice. Plan and catalog must outlive it.
  RowChecks(const LoadPlan& plan, const Catalog& catalog);
  ~RowChecks();

  bool any() const { return !tensors_.empty(); }

  /// Adds a box of the catalog's tensor of that index, as RowSums does. Throws Error(malformed), naming
  /// tensor, file and bytes, if that completes a block whose sum is not the one that is listed.
  void add(std::uint32_t tensor, const Shape& shape, const Box& box, const StridedMemory& rows);

  /// Bytes that have been compared.
  std::uint64_t bytes() const;

 private:
  struct Blocks;
  const Catalog& catalog_;
  std::map<std::uint32_t, std::unique_ptr<Blocks>> tensors_;
};

/// Compares a whole tensor with its listed checksums, read from its file by blocks. Returns a line for each
/// block that differs, and adds the bytes that were compared to `bytes`. Throws Error as InputFile.
std::vector<std::string> faults_of_rows(const Catalog& catalog, std::size_t tensor, std::uint64_t& bytes);

}  // namespace shardwright
