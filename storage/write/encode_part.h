#pragma once

#include <cstddef>
#include <string>

#include "planner/names/catalog.h"
#include "planner/names/encodings.h"
#include "planner/save/quantization.h"
#include "planner/save/weight_numbers.h"
#include "storage/write/export_tasks.h"

namespace shardwright {

/// A box of a weight that is quantized by a rule. All references must outlive it.
struct WeightPart {
  const Quantization& quantization;
  const Encoding& encoding;
  const SourceTensor& weight;
  const std::string& fqn;  ///< of the tensor that holds the values, for messages
  const Box& box;
};

/// What is written for a part: codes in bytes whose lower half is the part's, and scales of blocks whose
/// first element is.
struct PartBoxes {
  Box codes;  ///< of the weight
  std::size_t code_bytes = 0;
  Box scales;  ///< of the tensor of scales
  std::size_t scale_bytes = 0;
};

PartBoxes boxes_of(const WeightPart& part);

/// Writes the bytes of both boxes, row-major. `values` are those of the part's box. Throws Error(mismatch),
/// naming weight and tensor: for a value that is not finite, and for a block, or a value that shares a byte,
/// of which the ranks have not told each other.
void encode_part(const WeightPart& part, const StridedMemory& values, DType dtype,
                 const KnownNumbers& numbers, std::byte* codes, std::byte* scales);

}  // namespace shardwright
