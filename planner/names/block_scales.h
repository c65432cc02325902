#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/dtype.h"
#include "planner/geometry/box.h"
#include "planner/names/catalog.h"

namespace shardwright {

/// How an HF tensor's numbers are stored: plainly, or with one scale for each block of elements.
struct Encoding {
  DType element = DType::BF16;
  bool scaled = false;
  DType scale = DType::U8;  ///< see BlockScales::dtype
  std::int64_t block_rows = 1;
  std::int64_t block_columns = 32;
  int scale_rank = 2;  ///< dimensions of the scale tensor; fewer than 2: one scale for the whole tensor
  std::string_view scale_suffix = "_scale_inv";  ///< the scale tensor is named as the weight, and then this

  bool operator==(const Encoding&) const = default;
};

/// A known kind of scales: of these dtypes, one for each block of so many rows and columns.
struct ScaleBlocks {
  std::string_view name;
  std::vector<DType> dtypes;
  std::int64_t rows = 0;     ///< 0: as many as the weight has
  std::int64_t columns = 0;  ///< likewise

  /// Whether one scale serves the whole tensor.
  bool is_whole_tensor() const { return rows == 0 && columns == 0; }
};

/// mxfp8, the first: an e8m0 byte for each 1 × 32 block (OCP MX v1.0), as MiniMax M3 stores it. block_fp8: an
/// F32 or BF16 number for each 128 × 128 block, as MiniMax M2 and DeepSeek V3 do. tensor_fp8: one number for
/// the tensor, as a scalar or with dimensions of 1. The elements are F8_E4M3 or F8_E5M2, and the scale
/// multiplies. Where several fit the scales of a weight, they say the same of every element.
const std::vector<ScaleBlocks>& known_scale_blocks();

/// True for the formats that mean nothing without scales.
bool is_float8(DType dtype);

/// The encoding of F8_E4M3 weights of this shape with such scales.
Encoding encoding_with(const ScaleBlocks& blocks, const Shape& weight_shape);

/// The names that the scales of a weight may have: "<weight>_scale_inv" (despite the name, it multiplies),
/// and beside a "<module>.weight" also "<module>.weight_scale", which compressed-tensors, ModelOpt and vLLM
/// write.
std::vector<std::string> scale_names_of(std::string_view weight_name);

/// The inverse: the weight's name for the name of a scale, any other name unchanged.
std::string_view weight_name_of(std::string_view name);
/// Whether weight_name_of() gives another name than this.
bool is_scale_name(std::string_view name);

/// The chunks of the scales of a weight; empty if the catalog has none.
std::span<const SourceTensor> scales_of(const Catalog& catalog, std::string_view weight_name);

/// Shape of the scales of a weight of this shape: [ceil(rows / block_rows), ceil(columns / block_columns)],
/// or scale_rank ones.
Shape scale_shape_of(const Encoding& encoding, const Shape& weight_shape);

/// The box of scales that a box of the weight needs.
Box scale_box_of(const Encoding& encoding, const Box& weight_box);

/// The box of weights that a box of scales serves, cut off at the weight's edge.
Box weight_box_of(const Encoding& encoding, const Box& scale_box, const Shape& weight_shape);

/// How a checkpoint stores this tensor: with scales if a tensor of scales is there, whose dtype and shape say
/// which of the `known` blocks they belong to; plainly if not. `weight` must be the chunks of that tensor,
/// not empty. Throws Error(mismatch), naming the tensors and the file, for FP8 without a scale, a scale
/// beside something that is not FP8, scales under two names, and scales of a dtype and shape that no known
/// blocks have.
Encoding encoding_of(const Catalog& catalog, std::span<const SourceTensor> weight,
                     const std::vector<ScaleBlocks>& known = known_scale_blocks());

/// How many weights of a checkpoint have scales, by the name of the blocks; those for which encoding_of would
/// throw under "unknown".
std::map<std::string, std::int64_t> scaled_weights(const Catalog& catalog);

}  // namespace shardwright
