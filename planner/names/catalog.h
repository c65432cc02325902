#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/dtype.h"
#include "planner/geometry/box.h"

namespace shardwright {

enum class Product : std::uint8_t;  // kernels/product.h

/// What a file calls a tensor and holds of it, where that is not what it is seen as: see packed_weights.h.
struct StoredForm {
  std::string name;
  DType dtype = DType::U8;
  Shape shape;
};

/// One tensor of a checkpoint, or one chunk of it if the checkpoint stores a large tensor in several chunks.
struct SourceTensor {
  std::string name;
  DType dtype = DType::BF16;
  Shape shape;              ///< of what is stored here
  Shape offset;             ///< where this chunk begins in the whole tensor; all zero for a whole tensor
  std::uint32_t file = 0;   ///< index into Catalog::files
  std::uint64_t begin = 0;  ///< byte offsets in that file: the row-major data is [begin, end)
  std::uint64_t end = 0;
  std::shared_ptr<const StoredForm> stored = nullptr;  ///< null: as it is seen
};

/// The name that the file has for it.
inline const std::string& stored_name(const SourceTensor& tensor) {
  return tensor.stored == nullptr ? tensor.name : tensor.stored->name;
}

/// A file of a checkpoint.
struct SourceFile {
  std::string name;        ///< relative to the directory
  std::uint64_t size = 0;  ///< bytes
  std::string version =
      {};  ///< of an object at an address, see RemoteObject; empty for files of this machine
};

/// How an HF tensor's numbers are stored: plainly, or with one scale for each block of elements.
struct Encoding {
  DType element = DType::BF16;
  bool scaled = false;
  DType scale = DType::U8;          ///< see BlockScales::dtype
  std::int64_t block_rows = 1;      ///< elements that share a scale along the last dimension but one
  std::int64_t block_columns = 32;  ///< and along the last
  /// Dimensions of the scale tensor, which are the weight's first ones, from the outermost on: [E, R, C] has
  /// scales [E, r, c], [E, 1, 1] or [E]. Along dimensions before the last two there is one for each index.
  /// What the scale tensor has no dimension for shares its scales. 0: one for the whole tensor.
  int scale_rank = 2;
  std::string_view scale_suffix = "_scale_inv";  ///< the scale tensor is named as the weight, and then this
  Product product{};                             ///< of an element and its scale: exact, and rounded once

  /// A tensor named as the weight, and then this, has one more factor of all its scales (or a divisor: see
  /// `product`), or one for each of the first indices; empty: there is none.
  std::string_view global_suffix = {};
  bool code_eight_is_plus_zero = false;  ///< see BlockScales

  bool operator==(const Encoding&) const = default;
};

/// Checksums of a stored tensor, by rows: see storage/format/row_checksums.h.
struct RowChecksums {
  std::vector<std::uint64_t> cuts;  ///< bytes of a row at which its parts end; rising, the last its length
  std::vector<std::uint64_t> sums;  ///< of each block of rows; empty: the tensor has no checksums

  bool operator==(const RowChecksums&) const = default;
};

/// What a checkpoint directory holds. Every field has been checked against the files: sizes equal shape times
/// dtype, byte ranges lie inside the file and do not overlap.
struct Catalog {
  std::filesystem::path directory;    ///< or an address, such as s3://bucket/run
  std::vector<SourceFile> files;      ///< sorted by name
  std::vector<SourceTensor> tensors;  ///< sorted by name, then by offset
  std::string config;                 ///< text of config.json; empty where there is none
  std::string fault_of_config = {};   ///< see fault_of_quantization_config(): a load of it is refused
  double seconds = 0;                 ///< that reading it took

  /// By index into tensors; null where the checkpoint has none.
  std::shared_ptr<const std::vector<RowChecksums>> checksums;

  /// All chunks of a tensor; an empty span if there is no such tensor. The span lives as long as `tensors`.
  std::span<const SourceTensor> find(std::string_view name) const;

  /// Shape of the whole tensor of this name, if there is one.
  std::optional<Shape> shape_of(std::string_view name) const;

  /// Shape of the whole tensor that these chunks make up.
  static Shape global_shape(std::span<const SourceTensor> chunks);

  /// The file that the tensor, which must be one of these, is in: inside `directory`.
  std::filesystem::path path_of(const SourceTensor& tensor) const;
};

}  // namespace shardwright
