#include "storage/handover/changed_blocks.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "planner/geometry/byte_boxes.h"
#include "storage/format/checksum.h"

namespace shardwright {
namespace {

/// Calls visit(offset, bytes) for each run of contiguous bytes that a part is of a box that lies row-major in
/// memory.
template <class Visit>
void for_each_run(const EncodedBox& whole, const EncodedBox& part, DType dtype, const Visit& visit) {
  if (is_empty(part.box)) return;
  const Box all = in_units(dtype, whole.box);
  const Box box = in_units(dtype, part.box);
  const std::int64_t unit = unit_bytes(dtype);
  const Shape strides = contiguous_strides(all.size);
  std::int64_t first = 0;
  for (std::size_t d = 0; d < box.size.size(); ++d) first += (box.offset[d] - all.offset[d]) * strides[d];
  std::size_t outer = box.size.size();  // dimensions before those of a run
  std::int64_t run = 1;
  while (outer > 0) {
    --outer;
    run *= box.size[outer];
    if (box.size[outer] != all.size[outer]) break;
  }
  const Shape counts(box.size.begin(), box.size.begin() + static_cast<std::ptrdiff_t>(outer));
  Shape index(outer, 0);
  do {
    std::int64_t at = first;
    for (std::size_t d = 0; d < outer; ++d) at += index[d] * strides[d];
    visit(static_cast<std::size_t>(at * unit), static_cast<std::size_t>(run * unit));
  } while (next_index(index, counts));
}

/// Makes `a` the box of both, if that is one.
bool join(Box& a, const Box& b) {
  std::size_t differing = 0;
  std::size_t along = 0;
  for (std::size_t d = 0; d < a.offset.size(); ++d) {
    if (a.offset[d] == b.offset[d] && a.size[d] == b.size[d]) continue;
    ++differing;
    along = d;
  }
  if (differing != 1 || a.offset[along] + a.size[along] != b.offset[along]) return false;
  a.size[along] += b.size[along];
  return true;
}

}  // namespace

std::vector<Box> summed_blocks(const EncodingSource& source, const ExportTask& task, std::uint64_t bytes) {
  const Transfer& transfer = source.transfer_of(task);
  std::vector<ExportTask> parts;
  cut_task(task, transfer, source.layout().catalog.tensors[transfer.source].dtype, {bytes, 0}, parts);
  std::vector<Box> blocks;
  blocks.reserve(parts.size());
  for (ExportTask& part : parts) blocks.push_back(std::move(part.box));
  return blocks;
}

BoxesOfTask boxes_of_part(const EncodingSource& source, const ExportTask& task, const Box& part) {
  return boxes_of({task.transfer, part}, source.work(), source.parts(), source.layout());
}

std::uint64_t sum_of_block(const EncodingSource& source, const TaskInMemory& task, const Box& block) {
  const BoxesOfTask boxes = boxes_of_part(source, task.task, block);
  std::uint64_t sum = 0;
  const auto add = [&](const EncodedBox& whole, const std::byte* memory, const EncodedBox& part) {
    const DType dtype = source.layout().catalog.tensors[part.tensor].dtype;
    for_each_run(whole, part, dtype, [&](std::size_t offset, std::size_t bytes) {
      sum = checksum_of(memory + offset, bytes, sum);
    });
  };
  add(task.boxes.elements, task.elements, boxes.elements);
  if (boxes.scales) add(*task.boxes.scales, task.scales, *boxes.scales);
  return sum;
}

std::vector<Box> joined_blocks(std::vector<Box> blocks) {
  const auto join_neighbours = [&] {
    std::size_t count = 0;
    for (Box& block : blocks) {
      if (count > 0 && join(blocks[count - 1], block)) continue;
      if (&blocks[count] != &block) blocks[count] = std::move(block);
      ++count;
    }
    blocks.resize(count);
  };
  const auto by_rows = [](const Box& a, const Box& b) { return a.offset < b.offset; };
  const auto by_columns = [](const Box& a, const Box& b) {
    return std::lexicographical_compare(a.offset.rbegin(), a.offset.rend(), b.offset.rbegin(),
                                        b.offset.rend());
  };
  join_neighbours();
  std::sort(blocks.begin(), blocks.end(), by_columns);
  join_neighbours();
  std::sort(blocks.begin(), blocks.end(), by_rows);
  join_neighbours();
  return blocks;
}

void copy_out_of(const EncodedBox& whole, const std::byte* memory, const EncodedBox& part, DType dtype,
                 std::byte* to) {
  for_each_run(whole, part, dtype, [&](std::size_t offset, std::size_t bytes) {
    std::memcpy(to, memory + offset, bytes);
    to += bytes;
  });
}

}  // namespace shardwright
