#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "planner/geometry/box.h"
#include "planner/names/tensor_spec.h"

namespace shardwright {

/// One key of a path into a nested state dict: of a dict or, as a number, of a dict or list.
struct PathKey {
  std::string text;
  bool is_number = false;

  bool operator==(const PathKey&) const = default;
};

/// What all shards of a tensor have in common besides the shape. The words are torch's, which knows more
/// dtypes than safetensors does: nothing here depends on what they mean.
struct TensorProperties {
  std::string dtype;                ///< "bfloat16"
  std::string layout = "strided";   ///< torch.layout
  std::uint32_t element_bytes = 0;  ///< bytes of an element
  std::uint32_t flags = 0;          ///< these, and above them the caller's

  static constexpr std::uint32_t requires_grad = 1;
  static constexpr std::uint32_t pin_memory = 2;

  bool operator==(const TensorProperties&) const = default;
};

/// A value of a state dict, over all ranks.
struct SavedValue {
  enum class Kind : std::uint8_t { shards, tensor, object };

  std::string fqn;
  Kind kind = Kind::shards;  ///< a tensor in shards, a tensor that its owners hold whole, or a pickled object
  TensorProperties properties;
  Shape shape;                        ///< of the whole tensor; empty for an object
  std::vector<Placement> placements;  ///< one for each mesh dimension, if the values lie on a mesh
  std::vector<PathKey> path;          ///< empty: {fqn}

  bool operator==(const SavedValue&) const = default;
};

/// Values that several ranks hold. If there is a mesh, every rank of it holds the shards that mesh and
/// placements say, and need not name them.
struct SavedValues {
  std::vector<SavedValue> values;
  Shape mesh_shape;                      ///< empty: no mesh
  std::vector<std::int64_t> mesh_ranks;  ///< the job's ranks at the mesh's places, row-major

  bool has_mesh() const { return !mesh_ranks.empty(); }
  bool operator==(const SavedValues&) const = default;
};

/// Boxes of tensors in flat arrays.
struct SavedItems {
  std::vector<std::uint32_t> value;   ///< for each item, index into SavedValues::values; ascending
  std::vector<std::int64_t> corners;  ///< for each item, the offsets of its box, then the sizes

  /// An item of a tensor; `offset` and `size` have its rank. No box for an object.
  void add(std::uint32_t index, const Shape& offset, const Shape& size);

  bool operator==(const SavedItems&) const = default;
};

/// 128 bits of the bytes' content. Equal on all machines; against accident, not against malice.
using Hash = std::array<char, 16>;
Hash hash_of(std::string_view bytes);

/// Where a rank stands on the mesh. Throws Error(mismatch) if it does not.
Shape coordinate_on_mesh(const SavedValues& values, std::int64_t rank);

/// What a rank of the mesh holds, in the order of the values; nothing for an empty shard.
SavedItems items_on_mesh(const SavedValues& values, std::int64_t rank);

/// Bytes of a box of this tensor, 0 for an object.
std::uint64_t bytes_of_box(const SavedValue& value, const std::int64_t* size);

}  // namespace shardwright
