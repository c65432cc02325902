#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/product.h"
#include "planner/geometry/box.h"
#include "planner/names/catalog.h"

namespace shardwright {

/// A known kind of scales: of these dtypes, one for each block of so many rows and columns.
struct KnownEncoding {
  std::string_view name;
  std::vector<DType> dtypes;
  std::int64_t rows = 0;     ///< 0: as many as the weight has
  std::int64_t columns = 0;  ///< likewise
  Product product = Product::exact_once;
  std::vector<DType> elements = {DType::F8_E4M3, DType::F8_E5M2};
  std::string_view global_suffix = {};  ///< see Encoding
  bool spares_rows =
      true;  ///< scales may have rows more: one for each part of a fused weight that is cut short

  /// Whether one scale serves the whole tensor.
  bool is_whole_tensor() const { return rows == 0 && columns == 0; }
};

/// Those of F8_E4M3 and F8_E5M2 elements, which the scale multiplies:
///   mxfp8, the first   an e8m0 byte for each 1 x 32 block (OCP MX v1.0): MiniMax M3
///   block_fp8          an F32 or BF16 number for each 128 x 128 block: MiniMax M2, DeepSeek V3
///   tensor_fp8         one number for the matrix, as a scalar or with dimensions of 1: Mistral
///   channel_fp8        one number for each row: compressed-tensors
///   block_fp8_e8m0     an e8m0 byte for each 128 x 128 block: DeepSeek V4
///   block32_fp8_e8m0   an e8m0 byte for each 32 x 32 block: DeepSeek V4.1
/// Where several fit the scales of a weight, they say the same of every element.
const std::vector<KnownEncoding>& known_encodings();

/// The same without rows to spare, for what a trainer has saved: rows of joined scales count their blocks by
/// parts.
const std::vector<KnownEncoding>& known_exact_encodings();

/// The encoding of F8_E4M3 weights of this shape with such scales.
Encoding encoding_with(const KnownEncoding& blocks, const Shape& weight_shape);

/// Elements of a weight of so many dimensions that share a scale along dimension d.
std::int64_t block_along(const Encoding& encoding, std::size_t rank, std::size_t d);

/// Shape of the scales that a weight of this shape needs: ceil(size / block) along each of scale_rank
/// dimensions. A checkpoint may have more rows of them.
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
                     const std::vector<KnownEncoding>& known = known_encodings());

/// Plain elements that a number for each of the first indices of their tensor multiplies: see
/// Rule::multiplier. Throws Error(mismatch), naming the tensors, for dtypes and shapes that do not fit each
/// other.
Encoding multiplied_by(const Catalog& catalog, std::span<const SourceTensor> weight,
                       std::span<const SourceTensor> multiplier);

/// How many weights of a checkpoint have scales, by the name of the blocks; those for which encoding_of would
/// throw under "unknown".
std::map<std::string, std::int64_t> scaled_weights(const Catalog& catalog);

/// Weights that are stored alike.
struct StoredAlike {
  std::int64_t weights = 0;
  std::int64_t parameters = 0;
  std::uint64_t bytes = 0;  ///< in files, scales and other companions included
};

/// How a checkpoint stores its weights: by the name of their encoding, or of their dtype where they have no
/// scales. Those for which encoding_of would throw are under "unknown".
std::map<std::string, StoredAlike> stored_alike(const Catalog& catalog);

}  // namespace shardwright
