#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "kernels/dtype.h"
#include "planner/box.h"
#include "planner/catalog.h"

namespace shardwright {

/// How an HF tensor's numbers are stored: plainly, or with one scale for each block of elements.
struct Encoding {
  DType element = DType::BF16;
  bool scaled = false;
  DType scale = DType::U8;  ///< U8 or F8_E8M0, both e8m0 bytes
  std::int64_t block_rows = 1;
  std::int64_t block_columns = 32;

  bool operator==(const Encoding&) const = default;
};

/// True for the formats that mean nothing without scales.
bool is_float8(DType dtype);

/// MXFP8 as MiniMax M3 stores it: F8_E4M3 elements, an e8m0 byte for each 1 × 32 block (OCP MX v1.0).
Encoding mxfp8();

/// "<weight>_scale_inv"; despite the name, the scale multiplies.
std::string scale_name_of(std::string_view weight_name);

/// The inverse: the weight's name for the name of a scale, any other name unchanged.
std::string_view weight_name_of(std::string_view name);
bool is_scale_name(std::string_view name);

/// Shape of the scales of a weight of this shape: [ceil(rows / block_rows), ceil(columns / block_columns)].
Shape scale_shape_of(const Encoding& encoding, const Shape& weight_shape);

/// The box of scales that a box of the weight needs.
Box scale_box_of(const Encoding& encoding, const Box& weight_box);

/// The box of weights that a box of scales serves, cut off at the weight's edge.
Box weight_box_of(const Encoding& encoding, const Box& scale_box, const Shape& weight_shape);

/// How a checkpoint stores the tensor of this name, the presence of its scale tensor deciding: plainly, or as
/// `scaled` says.
/// `weight` must be the chunks of that tensor, not empty. Throws Error(mismatch), naming the tensors and the
/// file, for FP8 without a scale, a scale beside something that is not FP8, and a scale of the wrong shape or
/// dtype.
Encoding encoding_of(const Catalog& catalog, std::span<const SourceTensor> weight,
                     const Encoding& scaled = mxfp8());

}  // namespace shardwright
