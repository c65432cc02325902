#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/dtype.h"
#include "planner/geometry/box.h"
#include "planner/names/encodings.h"

namespace shardwright {

/// What fills a tensor of a checkpoint that is to be.
enum class SampleValues : std::uint8_t {
  any,     ///< of its dtype, as weights have them; U8 is taken for e8m0 scales
  codes,   ///< any bytes
  scales,  ///< positive numbers, none extreme
  given,   ///< those of `given`
};

/// A tensor of a checkpoint that is to be.
struct NamedShape {
  std::string name;
  DType dtype;
  Shape shape;
  SampleValues values = SampleValues::any;
  Shape given = {};  ///< numbers of an I32 or I64 tensor
};

/// How releases hold what they quantize: an encoding, under a tool's names.
struct StoredEncoding {
  /// Names of weights and companions, and their packing: see planner/names/packed_weights.h.
  enum class Names : std::uint8_t { scale_inv, compressed_tensors, modelopt, deepseek, gpt_oss };

  std::string_view name;      ///< as users spell it
  std::string_view encoding;  ///< of known_encodings()
  Names names;
  std::optional<DType> scale = std::nullopt;  ///< where it is not the encoding's first
  bool is_weight_only = false;                ///< of ModelOpt: there is no scale of inputs

  const KnownEncoding& blocks() const;

  /// Of four bits, which releases have for routed experts alone, where there are any.
  bool is_of_experts() const { return is_packed(blocks().elements.front()); }
};

/// All that the generator makes.
const std::vector<StoredEncoding>& stored_encodings();

/// The one of this name. Throws Error(argument), naming those that there are.
const StoredEncoding& stored_encoding_named(std::string_view name);

/// Adds a weight, [..., rows, columns], and its companions, under the names that they have in files.
/// Throws Error(argument) for rows that cannot be packed so.
void add_stored(std::vector<NamedShape>& tensors, const StoredEncoding& encoding, const std::string& name,
                const Shape& shape);

/// What config.json says of weights that are stored so: of routed experts, and of the rest; null: in BF16.
/// Both null: null.
nlohmann::ordered_json quantization_config(const StoredEncoding* experts, const StoredEncoding* rest);

}  // namespace shardwright
