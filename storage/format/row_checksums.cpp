#include "storage/format/row_checksums.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/geometry/lattice.h"
#include "planner/load/transfers.h"
#include "storage/files/input_file.h"
#include "storage/files/printable.h"
#include "storage/format/checksum.h"
#include "storage/format/checksums.pb.h"

namespace shardwright {
namespace {

std::uint64_t unsigned_of(std::int64_t value) { return static_cast<std::uint64_t>(value); }

std::int64_t last_of(const Shape& shape) { return shape.empty() ? 1 : shape.back(); }

/// Calls visit(offset in the tensor's bytes, first byte in memory) for each run of the last dimension of a
/// box of a tensor that is seen in that shape.
template <typename Visit>
void for_each_run_in_memory(const Shape& shape, std::int64_t element, const Box& box,
                            const StridedMemory& rows, const Visit& visit) {
  if (is_empty(box)) return;
  const Shape strides = contiguous_strides(shape);
  const std::size_t outer = box.size.empty() ? 0 : box.size.size() - 1;
  std::int64_t offset = elements_to(box.offset, strides);
  Shape index(outer, 0);
  std::int64_t at = 0;
  for (;;) {
    visit(unsigned_of(offset * element), rows.data + at * element);
    std::size_t d = outer;
    for (;;) {
      if (d == 0) return;
      --d;
      offset += strides[d];
      at += rows.strides[d];
      if (++index[d] < box.size[d]) break;
      offset -= strides[d] * box.size[d];
      at -= rows.strides[d] * box.size[d];
      index[d] = 0;
    }
  }
}

/// Calls visit(begin, end), bytes of a row, for each cell of its bytes [begin, end), which no cut divides;
/// `row` is where the row begins in the tensor.
template <typename Visit>
void for_each_cell(std::uint64_t row, std::uint64_t begin, std::uint64_t end, const Visit& visit) {
  while (begin < end) {
    const std::uint64_t next_cell = (begin / cell_bytes + 1) * cell_bytes;
    const std::uint64_t next_block = ((row + begin) / checksum_block_bytes + 1) * checksum_block_bytes - row;
    const std::uint64_t until = std::min({end, next_cell, next_block});
    visit(begin, until);
    begin = until;
  }
}

/// The same for all of a row.
template <typename Visit>
void for_each_cell_of_row(const RowGeometry& geometry, const std::vector<std::uint64_t>& cuts,
                          std::uint64_t row, const Visit& visit) {
  if (cuts.empty()) return for_each_cell(row, 0, geometry.row_bytes, visit);
  std::uint64_t begin = 0;
  for (const std::uint64_t end : cuts) {
    for_each_cell(row, begin, end, visit);
    begin = end;
  }
}

std::uint64_t bytes_of_block(const RowGeometry& geometry, std::uint64_t block) {
  return std::min(checksum_block_bytes, geometry.bytes - block * checksum_block_bytes);
}

std::string fault_of(const Catalog& catalog, const SourceTensor& tensor, std::uint64_t block) {
  const std::uint64_t begin = tensor.begin + block * checksum_block_bytes;
  return printable(catalog.path_of(tensor).native()) + ": " + in_quotes(tensor.name) + " is damaged: bytes " +
         std::to_string(begin) + " to " + std::to_string(begin + bytes_of_block(rows_of(tensor), block)) +
         " do not have the checksum that they were saved with";
}

/// Sums of blocks as cells come, which mostly follow each other.
class BlockSums {
 public:
  /// `add` takes a block's number, the bytes and the sum that were added.
  template <typename Add>
  void add(std::uint64_t offset, const std::byte* bytes, std::uint64_t count, const Add& add) {
    if (offset / checksum_block_bytes != block_) {
      flush(add);
      block_ = offset / checksum_block_bytes;
    }
    sum_ += checksum_of(bytes, count, offset);
    bytes_ += count;
  }

  template <typename Add>
  void flush(const Add& add) {
    if (bytes_ > 0) add(block_, bytes_, sum_);
    bytes_ = sum_ = 0;
  }

 private:
  std::uint64_t block_ = 0;
  std::uint64_t bytes_ = 0;
  std::uint64_t sum_ = 0;
};

}  // namespace

RowGeometry rows_of(const SourceTensor& tensor) {
  const std::uint64_t bytes = tensor.end - tensor.begin;
  const DType dtype = tensor.stored == nullptr ? tensor.dtype : tensor.stored->dtype;
  const Shape& shape = tensor.stored == nullptr ? tensor.shape : tensor.stored->shape;
  const int element = bytes_of(dtype);
  return {bytes, element == 0 ? bytes : unsigned_of(last_of(shape) * element)};
}

std::uint64_t sum_of_block(const RowGeometry& geometry, const std::vector<std::uint64_t>& cuts,
                           const std::byte* bytes, std::uint64_t begin, std::uint64_t count) {
  std::uint64_t sum = 0;
  const std::uint64_t end = begin + count;
  for (std::uint64_t row = begin / geometry.row_bytes * geometry.row_bytes; row < end;
       row += geometry.row_bytes) {
    for_each_cell_of_row(geometry, cuts, row, [&](std::uint64_t from, std::uint64_t to) {
      if (row + from >= begin && row + to <= end)
        sum += checksum_of(bytes + (row + from - begin), to - from, row + from);
    });
  }
  return sum;
}

void RowSums::add(std::uint32_t tensor, const Shape& shape, const Box& box, const StridedMemory& rows) {
  const SourceTensor& stored = tensors_[tensor];
  const RowGeometry geometry = rows_of(stored);
  if (stored.stored != nullptr && stored.stored->shape.size() != stored.shape.size())
    return;  // rows are blocks
  const std::int64_t element = unit_bytes(stored.dtype);
  const Box units = in_units(stored.dtype, box);
  const StridedMemory in_memory{rows.data, strides_in_units(stored.dtype, rows.strides)};
  const std::uint64_t length = unsigned_of(last_of(units.size) * element);
  std::map<Columns, std::map<std::uint64_t, Sum>> all_columns;
  std::map<std::uint64_t, Sum>* sums = nullptr;  // of the columns that the last run was of
  const auto add = [&](std::uint64_t block, std::uint64_t bytes, std::uint64_t sum) {
    (*sums)[block].bytes += bytes;
    (*sums)[block].sum += sum;
  };
  BlockSums blocks;
  std::uint64_t columns_begin = 0;
  for_each_run_in_memory(in_units(stored.dtype, shape), element, units, in_memory,
                         [&](std::uint64_t offset, const std::byte* bytes) {
                           const std::uint64_t begin = offset % geometry.row_bytes;
                           if (sums == nullptr || begin != columns_begin) {
                             if (sums != nullptr) blocks.flush(add);
                             sums = &all_columns[{begin, begin + length}];
                             columns_begin = begin;
                           }
                           const std::uint64_t row = offset - begin;
                           for_each_cell(row, begin, begin + length,
                                         [&](std::uint64_t from, std::uint64_t to) {
                                           blocks.add(row + from, bytes + (from - begin), to - from, add);
                                         });
                         });
  if (sums != nullptr) blocks.flush(add);
  const std::lock_guard lock(mutex_);
  for (const auto& [of_row, of_blocks] : all_columns) {
    std::map<std::uint64_t, Sum>& all = sums_[tensor][of_row];
    for (const auto& [block, sum] : of_blocks) {
      all[block].bytes += sum.bytes;
      all[block].sum += sum.sum;
    }
  }
}

std::string RowSums::encode() const {
  const std::lock_guard lock(mutex_);
  wire::RankSums message;
  for (const auto& [tensor, all_columns] : sums_) {
    wire::TensorSums* of_tensor = message.add_tensors();
    of_tensor->set_tensor(tensor);
    for (const auto& [columns, blocks] : all_columns) {
      wire::ColumnSums* to = of_tensor->add_columns();
      to->set_begin(columns.first);
      to->set_end(columns.second);
      for (const auto& [block, sum] : blocks) {
        to->add_blocks(block);
        to->add_bytes(sum.bytes);
        to->add_sums(sum.sum);
      }
    }
  }
  return message.SerializeAsString();
}

std::vector<RowChecksums> merged_row_sums(const std::vector<std::string>& ranks,
                                          const std::vector<SourceTensor>& tensors) {
  struct Total {
    std::uint64_t bytes = 0;
    std::vector<std::uint64_t> sums;
    std::map<std::uint64_t, std::uint64_t> ends;  // of columns, by their beginnings
    bool is_cut_alike = true;
  };
  std::vector<Total> totals(tensors.size());
  const auto malformed = [] {
    return Error(ErrorKind::malformed, "what a rank told of its checksums cannot be read");
  };
  for (const std::string& bytes : ranks) {
    wire::RankSums message;
    if (!message.ParseFromString(bytes)) throw malformed();
    for (const wire::TensorSums& of_tensor : message.tensors()) {
      if (of_tensor.tensor() >= tensors.size()) throw malformed();
      const RowGeometry geometry = rows_of(tensors[of_tensor.tensor()]);
      Total& total = totals[of_tensor.tensor()];
      total.sums.resize(checksum_blocks(geometry.bytes));
      for (const wire::ColumnSums& columns : of_tensor.columns()) {
        if (columns.begin() >= columns.end() || columns.end() > geometry.row_bytes ||
            columns.blocks_size() != columns.bytes_size() || columns.blocks_size() != columns.sums_size()) {
          throw malformed();
        }
        const auto [known, is_new] = total.ends.emplace(columns.begin(), columns.end());
        total.is_cut_alike = total.is_cut_alike && known->second == columns.end();
        for (int i = 0; i < columns.blocks_size(); ++i) {
          if (columns.blocks(i) >= total.sums.size()) throw malformed();
          total.sums[columns.blocks(i)] += columns.sums(i);
          total.bytes += columns.bytes(i);
        }
      }
    }
  }
  std::vector<RowChecksums> merged(tensors.size());
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    Total& total = totals[t];
    std::uint64_t end = 0;
    for (const auto& [begin, columns_end] : total.ends) {
      total.is_cut_alike = total.is_cut_alike && begin == end;
      end = columns_end;
    }
    const RowGeometry geometry = rows_of(tensors[t]);
    if (!total.is_cut_alike || end != geometry.row_bytes || total.bytes != geometry.bytes) continue;
    for (const auto& [begin, columns_end] : total.ends) merged[t].cuts.push_back(columns_end);
    merged[t].sums = std::move(total.sums);
  }
  return merged;
}

struct RowChecks::Blocks {
  struct Block {
    std::atomic<std::uint64_t> bytes_left{0};
    std::atomic<std::uint64_t> sum{0};
  };
  explicit Blocks(const SourceTensor& tensor)
      : geometry(rows_of(tensor)), blocks(checksum_blocks(geometry.bytes)) {
    for (std::size_t b = 0; b < blocks.size(); ++b) blocks[b].bytes_left = bytes_of_block(geometry, b);
  }
  const RowGeometry geometry;
  std::vector<Block> blocks;
  std::atomic<std::uint64_t> compared{0};
};

RowChecks::RowChecks(const LoadPlan& plan, const Catalog& catalog) : catalog_(catalog) {
  if (catalog.checksums == nullptr) return;
  std::map<std::uint32_t, std::vector<Lattice>> read;
  for (const Transfer& transfer : plan.transfers) {
    if (!is_empty(transfer.source_box))
      read[transfer.source].push_back(in_units(catalog.tensors[transfer.source].dtype,
                                               read_lattice(transfer, catalog.tensors[transfer.source])));
    if (transfer.scales >= 0 && !is_empty(transfer.scale_box))
      read[static_cast<std::uint32_t>(transfer.scales)].push_back(
          scale_lattice(transfer, catalog.tensors[static_cast<std::size_t>(transfer.scales)]));
  }
  for (const auto& [tensor, boxes] : read) {
    const SourceTensor& source = catalog.tensors[tensor];
    if ((*catalog.checksums)[tensor].sums.empty()) continue;
    // A scale's box may be of another rank than its tensor.
    if (std::any_of(boxes.begin(), boxes.end(), [&, rank = source.shape.size()](const Lattice& box) {
          return box.first.size() != rank;
        })) {
      continue;
    }
    if (boxes.size() > 64) continue;  // more boxes of one tensor are not worth the comparison
    // What is read twice would be added twice.
    std::int64_t volumes = 0;
    for (const Lattice& box : boxes) volumes += volume(box.sizes);
    if (boxes.size() == 1 || union_volume(in_units(source.dtype, source.shape), boxes) == volumes)
      tensors_.emplace(tensor, std::make_unique<Blocks>(source));
  }
}

RowChecks::~RowChecks() = default;

void RowChecks::add(std::uint32_t tensor, const Shape& shape, const Box& box, const StridedMemory& rows) {
  const auto found = tensors_.find(tensor);
  if (found == tensors_.end()) return;
  const SourceTensor& source = catalog_.tensors[tensor];
  Blocks& of_tensor = *found->second;
  const RowGeometry& geometry = of_tensor.geometry;
  const RowChecksums& listed = (*catalog_.checksums)[tensor];
  const std::int64_t element = unit_bytes(source.dtype);
  const Box units = in_units(source.dtype, box);
  const std::uint64_t length = unsigned_of(last_of(units.size) * element);
  const StridedMemory in_memory{rows.data, strides_in_units(source.dtype, rows.strides)};
  const auto add = [&](std::uint64_t number, std::uint64_t bytes, std::uint64_t sum) {
    Blocks::Block& block = of_tensor.blocks[number];
    block.sum += sum;
    if (block.bytes_left.fetch_sub(bytes) != bytes) return;
    if (block.sum != listed.sums[number])
      throw Error(ErrorKind::malformed, fault_of(catalog_, source, number));
    of_tensor.compared += bytes_of_block(geometry, number);
  };
  BlockSums blocks;
  for_each_run_in_memory(in_units(source.dtype, shape), element, units, in_memory,
                         [&](std::uint64_t offset, const std::byte* bytes) {
                           const std::uint64_t begin = offset % geometry.row_bytes;
                           const std::uint64_t row = offset - begin;
                           for_each_cell_of_row(
                               geometry, listed.cuts, row, [&](std::uint64_t from, std::uint64_t to) {
                                 if (from >= begin && to <= begin + length)
                                   blocks.add(row + from, bytes + (from - begin), to - from, add);
                               });
                         });
  blocks.flush(add);
}

std::uint64_t RowChecks::bytes() const {
  std::uint64_t bytes = 0;
  for (const auto& [tensor, blocks] : tensors_) bytes += blocks->compared;
  return bytes;
}

std::vector<std::string> faults_of_rows(const Catalog& catalog, std::size_t tensor, std::uint64_t& bytes) {
  std::vector<std::string> faults;
  if (catalog.checksums == nullptr || (*catalog.checksums)[tensor].sums.empty()) return faults;
  const RowChecksums& listed = (*catalog.checksums)[tensor];
  const SourceTensor& source = catalog.tensors[tensor];
  const RowGeometry geometry = rows_of(source);
  const SourceFile& known = catalog.files[source.file];
  const InputFile file(catalog.path_of(source), known.size, known.version);
  std::vector<char> buffer;
  for (std::uint64_t block = 0; block < listed.sums.size(); ++block) {
    const std::uint64_t begin = block * checksum_block_bytes;
    buffer.resize(bytes_of_block(geometry, block));
    file.read(source.begin + begin, buffer.data(), buffer.size());
    const auto* bytes_read = reinterpret_cast<const std::byte*>(buffer.data());
    bytes += buffer.size();
    if (sum_of_block(geometry, listed.cuts, bytes_read, begin, buffer.size()) != listed.sums[block])
      faults.push_back(fault_of(catalog, source, block));
  }
  return faults;
}

}  // namespace shardwright
