#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "storage/handover/encode_boxes.h"

namespace shardwright {

/// The blocks that have a checksum each: boxes of a task of so many bytes, in a set order. They cut none of
/// the encoding's blocks, and are larger where these are.
std::vector<Box> summed_blocks(const EncodingSource& source, const ExportTask& task, std::uint64_t bytes);

/// What encoding a part of a task gives: its boxes lie inside those of the task.
BoxesOfTask boxes_of_part(const EncodingSource& source, const ExportTask& task, const Box& part);

/// The checksum of a block, by the bytes of the task that lie in memory.
std::uint64_t sum_of_block(const EncodingSource& source, const TaskInMemory& task, const Box& block);

/// Fewer boxes that hold the same elements: neighbours joined, along rows and then along columns.
std::vector<Box> joined_blocks(std::vector<Box> blocks);

/// Copies a box out of a larger one that lies row-major in memory, row behind row.
void copy_out_of(const EncodedBox& whole, const std::byte* memory, const EncodedBox& part, DType dtype,
                 std::byte* to);

}  // namespace shardwright
