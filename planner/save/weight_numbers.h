#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "planner/names/catalog.h"
#include "planner/names/tensor_spec.h"
#include "planner/save/shared_blocks.h"

namespace shardwright {

/// What ranks tell each other of a weight that they hold parts of and quantize by a rule, so that each can
/// write its part as one rank that holds all of it would.
struct WeightNumbers {
  std::string weight;  ///< HF name

  /// The largest magnitude of what the rank holds of it; then that of the whole weight. Only for rules with a
  /// global scale, else 0.
  float largest = 0;

  /// Blocks that one of the rank's boxes cuts, so that others may hold the rest: row-major numbers in the
  /// grid of scales, rising. Their largest magnitudes, as far as the rank holds them; then all of them.
  std::vector<std::int64_t> blocks = {};
  std::vector<float> magnitudes = {};

  /// Elements, by row-major numbers, rising, that share a byte with one which the rank does not hold, and
  /// whose values that one's holder needs, as it writes the byte. Then those that the rank asked for.
  std::vector<std::int64_t> elements = {};
  std::vector<float> values = {};
  std::vector<std::int64_t> wanted = {};  ///< elements that the rank needs

  bool operator==(const WeightNumbers& other) const;  ///< of the same bits: a NaN is what it is
};

/// Whether a weight of so many dimensions is quantized by such numbers; else by those of shared_blocks.h.
bool is_told_by_numbers(const ExportForm& form, const Encoding& encoding, std::size_t dimensions);

/// The parts of a box of a weight of this shape that lie in blocks of which it has only a part.
std::vector<Box> in_cut_blocks(const Encoding& encoding, const Box& box, const Shape& weight_shape);

/// The column of a box whose elements are upper halves of bytes that another box writes; nothing if there is
/// none.
std::optional<Box> column_for_another(const Encoding& encoding, const Box& box);

/// The column behind a box whose elements are upper halves of bytes that the box writes; likewise.
std::optional<Box> column_of_another(const Encoding& encoding, const Box& box);

/// Calls visit with the row-major number in a tensor of that shape of each element of the box.
void for_each_number(const Box& box, const Shape& shape, const std::function<void(std::int64_t)>& visit);

/// For each rank: what it told, becomes what it needs. Throws Error(malformed) for numbers of blocks and
/// elements that the catalog's weights do not have; leaves out weights that are not in it.
void share_numbers(const Catalog& catalog, std::vector<std::vector<WeightNumbers>>& ranks);

/// The numbers of one rank by weight.
class KnownNumbers {
 public:
  /// Adds; the larger counts.
  void add_magnitude(const std::string& weight, std::int64_t block, float magnitude);
  void add_value(const std::string& weight, std::int64_t element, float value);
  void add_largest(const std::string& weight, float largest);
  void add(const WeightNumbers& numbers);

  std::optional<float> magnitude(const std::string& weight, std::int64_t block) const;
  std::optional<float> value(const std::string& weight, std::int64_t element) const;
  std::optional<float> largest(const std::string& weight) const;

  /// All of them, without `wanted`, sorted by weight.
  std::vector<WeightNumbers> all() const;

 private:
  struct OfWeight {
    std::optional<float> largest;
    std::unordered_map<std::int64_t, float> magnitudes;
    std::unordered_map<std::int64_t, float> values;
  };
  std::unordered_map<std::string, OfWeight> weights_;
};

}  // namespace shardwright
