#include "planner/names/encodings.h"

#include <algorithm>

#include "kernels/decode.h"
#include "planner/error.h"
#include "planner/names/companions.h"

namespace shardwright {

static_assert(Product{} == Product::exact_once, "what an Encoding begins with");

namespace {

std::string describe(const Catalog& catalog, std::span<const SourceTensor> chunks) {
  return chunks.front().name + " in " + catalog.files[chunks.front().file].name + " (" +
         std::string(name_of(chunks.front().dtype)) + " " + to_string(Catalog::global_shape(chunks)) + ")";
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " or ") + word;
  return text;
}

/// "U8 or F8_E8M0 [4, 2] (one for each 1 x 32 block)".
std::string describe(const KnownEncoding& known, const Shape& weight_shape) {
  std::vector<std::string> dtypes;
  for (const DType dtype : known.dtypes) dtypes.emplace_back(name_of(dtype));
  std::string scales =
      joined(dtypes) + " " + to_string(scale_shape_of(encoding_with(known, weight_shape), weight_shape));
  if (!known.global_suffix.empty())
    scales += " with \"" + std::string(known.global_suffix) + "\" beside them";
  if (known.is_whole_tensor())
    return scales + (weight_shape.size() == 2 ? " (one for the whole tensor)" : " (one for each matrix)");
  if (known.columns == 0) return scales + " (one for each row)";
  return scales + " (one for each " + std::to_string(known.rows) + " x " + std::to_string(known.columns) +
         " block)";
}

/// Whether scales of so few dimensions can be meant: what they have none for is one block.
bool may_have_rank(const KnownEncoding& known, std::size_t scale_rank, std::size_t rank) {
  if (scale_rank == rank) return true;
  if (scale_rank + 1 == rank) return known.columns == 0;
  return known.is_whole_tensor() && (scale_rank + 2 == rank || scale_rank == 0);
}

/// A fused weight may have a row of scales more for each part whose last block is cut short. Half as many
/// again are that; one for each row, or for each half as many rows, are another encoding.
bool has_rows_to_spare(const Shape& found, const Shape& needed) {
  if (found.size() < 2) return false;
  Shape fewer = found;
  const std::size_t rows = found.size() - 2;
  fewer[rows] = needed[rows];
  return fewer == needed && found[rows] > needed[rows] && 2 * found[rows] <= 3 * needed[rows];
}

/// In how many equal parts, whose last blocks are cut short, a weight would need just so many rows of scales;
/// 0: in none.
std::int64_t parts_with_rows(std::int64_t found, std::int64_t weight_rows, std::int64_t block_rows) {
  for (std::int64_t parts = 2; parts <= found; ++parts) {
    if (weight_rows % parts != 0 || found % parts != 0) continue;
    const std::int64_t rows = weight_rows / parts;
    if (rows % block_rows != 0 && found / parts == (rows + block_rows - 1) / block_rows) return parts;
  }
  return 0;
}

enum class ScaleGrid { exact, larger };

bool has(const std::vector<DType>& dtypes, DType dtype) {
  return std::find(dtypes.begin(), dtypes.end(), dtype) != dtypes.end();
}

bool fits(const KnownEncoding& known, DType element, DType dtype, const Shape& scale_shape,
          const Shape& weight_shape, ScaleGrid grid) {
  if (!has(known.elements, element) || !has(known.dtypes, dtype)) return false;
  if (!may_have_rank(known, scale_shape.size(), weight_shape.size())) return false;
  Encoding encoding = encoding_with(known, weight_shape);
  encoding.scale_rank = static_cast<int>(scale_shape.size());
  const Shape needed = scale_shape_of(encoding, weight_shape);
  return grid == ScaleGrid::exact
             ? scale_shape == needed
             : known.spares_rows && known.rows > 1 && has_rows_to_spare(scale_shape, needed);
}

/// Throws where rows of scales may be to spare, or those of equal parts of the weight, such as heads: which
/// of the two, no file says, and the numbers would be others.
void expect_one_reading(const Catalog& catalog, std::span<const SourceTensor> weight,
                        std::span<const SourceTensor> scales, const KnownEncoding& known) {
  const Shape shape = Catalog::global_shape(weight);
  const Shape scale_shape = Catalog::global_shape(scales);
  const std::int64_t rows = shape[shape.size() - 2];
  const std::int64_t found = scale_shape[scale_shape.size() - 2];
  const std::int64_t parts = parts_with_rows(found, rows, known.rows);
  if (parts == 0) return;
  throw Error(ErrorKind::mismatch,
              stored_name(scales.front()) + " in " + catalog.files[scales.front().file].name + ": " +
                  std::to_string(found) + " rows of scales for the " + std::to_string(rows) + " rows of " +
                  stored_name(weight.front()) + " are either those of " + std::to_string(parts) +
                  " parts of " + std::to_string(rows / parts) + " rows, or some are to spare; expected " +
                  std::to_string((rows + known.rows - 1) / known.rows) +
                  ", as nothing says which; use a release that is not quantized");
}

/// An encoding with a global scale is told by it.
bool has_its_global_scale(const KnownEncoding& known, const Catalog& catalog,
                          const std::string& weight_name) {
  return known.global_suffix.empty() || !catalog.find(weight_name + std::string(known.global_suffix)).empty();
}

const KnownEncoding& blocks_of(const Catalog& catalog, std::span<const SourceTensor> weight,
                               std::span<const SourceTensor> scales,
                               const std::vector<KnownEncoding>& known) {
  const Shape weight_shape = Catalog::global_shape(weight);
  const Shape scale_shape = Catalog::global_shape(scales);
  for (const ScaleGrid grid : {ScaleGrid::exact, ScaleGrid::larger}) {
    const auto found = std::find_if(known.begin(), known.end(), [&](const KnownEncoding& one) {
      return fits(one, weight.front().dtype, scales.front().dtype, scale_shape, weight_shape, grid) &&
             has_its_global_scale(one, catalog, weight.front().name);
    });
    if (found == known.end()) continue;
    if (grid == ScaleGrid::larger) expect_one_reading(catalog, weight, scales, *found);
    return *found;
  }
  std::vector<std::string> expected;
  if (weight.front().dtype == DType::F4 && scales.front().dtype == DType::F8_E4M3) {
    const std::string& name = weight.front().name;
    if (catalog.find(name + std::string(global_suffixes[0])).empty() &&
        catalog.find(name + std::string(global_suffixes[1])).empty()) {
      throw Error(ErrorKind::mismatch,
                  describe(catalog, weight) + ": an NVFP4 weight needs its global scale; expected " + name +
                      std::string(global_suffixes[0]) + " or " + name + std::string(global_suffixes[1]) +
                      ", found no tensor of that name");
    }
  }
  for (const KnownEncoding& one : known) {
    if (has(one.elements, weight.front().dtype)) expected.push_back(describe(one, weight_shape));
  }
  throw Error(ErrorKind::mismatch, describe(catalog, scales) + ": fits no known block shape of the weight " +
                                       describe(catalog, weight) + "; expected " + joined(expected) +
                                       "; convert the checkpoint to one of these");
}

}  // namespace

const std::vector<KnownEncoding>& known_encodings() {
  constexpr Product once = Product::exact_once;
  constexpr Product to_f32 = Product::to_f32_first;
  static const std::vector<KnownEncoding> known{
      {"mxfp8", {DType::U8, DType::F8_E8M0}, 1, 32, once},
      {"block_fp8", {DType::F32, DType::BF16}, 128, 128, to_f32},
      {"tensor_fp8", {DType::F32, DType::BF16}, 0, 0, to_f32},
      {"channel_fp8", {DType::F32, DType::BF16}, 1, 0, to_f32},
      {"block_fp8_e8m0", {DType::U8, DType::F8_E8M0}, 128, 128, once},
      {"block32_fp8_e8m0", {DType::U8, DType::F8_E8M0}, 32, 32, once},
      {"mxfp4", {DType::U8, DType::F8_E8M0}, 1, 32, once, {DType::F4}},
      {"nvfp4_modelopt", {DType::F8_E4M3}, 1, 16, Product::modelopt_nvfp4, {DType::F4}, "_scale_2"},
      {"nvfp4_compressed_tensors",
       {DType::F8_E4M3},
       1,
       16,
       Product::compressed_tensors_nvfp4,
       {DType::F4},
       "_global_scale"},
      {"int4_group32", {DType::BF16, DType::F16, DType::F32}, 1, 32, once, {DType::I4}},
      {"int4_group128", {DType::BF16, DType::F16, DType::F32}, 1, 128, once, {DType::I4}},
      {"int4_channel", {DType::BF16, DType::F16, DType::F32}, 1, 0, once, {DType::I4}},
  };
  return known;
}

const std::vector<KnownEncoding>& known_exact_encodings() {
  static const std::vector<KnownEncoding> exact = [] {
    std::vector<KnownEncoding> all = known_encodings();
    for (KnownEncoding& one : all) one.spares_rows = false;
    return all;
  }();
  return exact;
}

Encoding encoding_with(const KnownEncoding& known, const Shape& weight_shape) {
  const std::size_t rank = weight_shape.size();
  Encoding encoding{known.elements.front(), true, known.dtypes.front(), known.rows, known.columns};
  encoding.product = known.product;
  encoding.global_suffix = known.global_suffix;
  encoding.scale_rank = known.is_whole_tensor() && rank == 2 ? 0 : static_cast<int>(rank);
  if (known.rows == 0) encoding.block_rows = std::max<std::int64_t>(1, weight_shape[rank - 2]);
  if (known.columns == 0) encoding.block_columns = std::max<std::int64_t>(1, weight_shape[rank - 1]);
  return encoding;
}

std::int64_t block_along(const Encoding& encoding, std::size_t rank, std::size_t d) {
  if (d + 2 < rank) return 1;
  return d + 1 == rank ? encoding.block_columns : encoding.block_rows;
}

Shape scale_shape_of(const Encoding& encoding, const Shape& weight_shape) {
  Shape shape(static_cast<std::size_t>(encoding.scale_rank));
  for (std::size_t d = 0; d < shape.size(); ++d) {
    const std::int64_t block = block_along(encoding, weight_shape.size(), d);
    shape[d] = (weight_shape[d] + block - 1) / block;
  }
  return shape;
}

Box scale_box_of(const Encoding& encoding, const Box& weight_box) {
  const auto rank = static_cast<std::size_t>(encoding.scale_rank);
  Box box{Shape(rank), Shape(rank)};
  for (std::size_t d = 0; d < rank; ++d) {
    const std::int64_t block = block_along(encoding, weight_box.offset.size(), d);
    box.offset[d] = weight_box.offset[d] / block;
    const std::int64_t end = (weight_box.offset[d] + weight_box.size[d] + block - 1) / block;
    box.size[d] = is_empty(weight_box) ? 0 : end - box.offset[d];
  }
  return box;
}

Box weight_box_of(const Encoding& encoding, const Box& scale_box, const Shape& weight_shape) {
  Box box = whole(weight_shape);
  if (is_empty(scale_box)) box.size.assign(box.size.size(), 0);
  for (std::size_t d = 0; d < scale_box.size.size(); ++d) {
    const std::int64_t block = block_along(encoding, weight_shape.size(), d);
    box.offset[d] = std::min(scale_box.offset[d] * block, weight_shape[d]);
    box.size[d] = std::min(scale_box.size[d] * block, weight_shape[d] - box.offset[d]);
  }
  return box;
}

namespace {

/// Refuses what has scales under two names, or two global scales.
void expect_one_of_each(const Catalog& catalog, std::span<const SourceTensor> weight,
                        std::span<const SourceTensor> scales) {
  const std::string& name = weight.front().name;
  const auto refuse_both = [&](const char* what, std::span<const SourceTensor> one,
                               std::span<const SourceTensor> other) {
    throw Error(ErrorKind::mismatch, describe(catalog, weight) + ": expected " + what +
                                         " under one name, found both " + describe(catalog, one) + " and " +
                                         describe(catalog, other) + "; remove those that are not meant");
  };
  for (const std::string& other : scale_names_of(name)) {
    if (other != scales.front().name && !catalog.find(other).empty())
      refuse_both("scales", scales, catalog.find(other));
  }
  const auto first = catalog.find(name + std::string(global_suffixes[0]));
  const auto second = catalog.find(name + std::string(global_suffixes[1]));
  if (!first.empty() && !second.empty()) refuse_both("a global scale", first, second);
}

/// Refuses a global scale that is no single number, and one that should be there.
void expect_global_scale(const Catalog& catalog, std::span<const SourceTensor> weight,
                         const Encoding& encoding) {
  const auto global = global_scale_of(catalog, encoding, weight.front().name);
  if (global.empty()) return;
  if (global.front().dtype != DType::F32 || volume(Catalog::global_shape(global)) != 1 ||
      global.size() != 1) {
    throw Error(ErrorKind::mismatch, describe(catalog, global) +
                                         ": expected one F32 number, the global scale of " +
                                         describe(catalog, weight));
  }
}

}  // namespace

Encoding encoding_of(const Catalog& catalog, std::span<const SourceTensor> weight,
                     const std::vector<KnownEncoding>& known) {
  const std::string& name = weight.front().name;
  const DType element = weight.front().dtype;
  const std::span<const SourceTensor> scales = scales_of(catalog, name);
  if (scales.empty()) {
    if (is_float8(element) || is_packed(element)) {
      throw Error(ErrorKind::mismatch, describe(catalog, weight) + ": " +
                                           (is_packed(element) ? "a packed" : "an FP8") +
                                           " weight needs its scales; expected " +
                                           joined(scale_names_of(name)) + ", found no tensor of that name");
    }
    return {element, false, DType::U8, 1, 1};
  }
  expect_one_of_each(catalog, weight, scales);
  const Shape shape = Catalog::global_shape(weight);
  if ((!is_float8(element) && !is_packed(element)) || shape.size() < 2) {
    throw Error(
        ErrorKind::mismatch,
        describe(catalog, weight) +
            ": expected F8_E4M3, F8_E5M2 or two elements in a byte, in a matrix or a stack of them, since " +
            scales.front().name + " says that it is block-scaled");
  }
  if (is_packed(element) && shape.back() % 2 != 0) {
    throw Error(
        ErrorKind::mismatch,
        describe(catalog, weight) +
            ": expected rows of whole bytes, found an odd number of elements, two of which share a byte");
  }
  if (is_packed(element) && !catalog.find(name + "_zero_point").empty()) {
    throw Error(ErrorKind::mismatch, describe(catalog, weight) + ": its elements are counted from " + name +
                                         "_zero_point, which is not supported; expected symmetric ones");
  }
  Encoding encoding = encoding_with(blocks_of(catalog, weight, scales, known), shape);
  encoding.element = element;
  encoding.scale = scales.front().dtype;
  encoding.scale_rank = static_cast<int>(Catalog::global_shape(scales).size());
  encoding.scale_suffix = scale_suffix_of(scales.front().name);
  const auto& stored = weight.front().stored;
  encoding.code_eight_is_plus_zero = element == DType::F4 && stored != nullptr && stored->dtype == DType::I8;
  expect_global_scale(catalog, weight, encoding);
  return encoding;
}

Encoding multiplied_by(const Catalog& catalog, std::span<const SourceTensor> weight,
                       std::span<const SourceTensor> multiplier) {
  const Shape shape = Catalog::global_shape(weight);
  const Shape of_multiplier = Catalog::global_shape(multiplier);
  if (!can_decode(weight.front().dtype, multiplier.front().dtype) || is_float8(weight.front().dtype) ||
      shape.size() < 3 || of_multiplier != Shape(shape.begin(), shape.end() - 2)) {
    throw Error(ErrorKind::mismatch, describe(catalog, multiplier) +
                                         ": expected one number of F16, BF16 or F32 for each matrix of " +
                                         describe(catalog, weight) + ", which it multiplies");
  }
  Encoding encoding{weight.front().dtype, true, multiplier.front().dtype,
                    std::max<std::int64_t>(1, shape.end()[-2]), std::max<std::int64_t>(1, shape.back())};
  encoding.scale_rank = static_cast<int>(of_multiplier.size());
  encoding.product = Product::exact_once;
  return encoding;
}

std::map<std::string, StoredAlike> stored_alike(const Catalog& catalog) {
  const auto weight_of = [&](const std::string& name) {
    return is_scale_name(name) ? std::string(weight_name_of(name)) : weight_of_companion(catalog, name);
  };
  std::map<std::string, StoredAlike> alike;
  std::map<std::string, std::string> how;       // of each weight, for its companions
  std::vector<const SourceTensor*> companions;  // or chunks of them
  for (std::size_t first = 0; first < catalog.tensors.size();) {
    const std::span<const SourceTensor> chunks = catalog.find(catalog.tensors[first].name);
    first += chunks.size();
    const std::string& name = chunks.front().name;
    if (!weight_of(name).empty()) {
      for (const SourceTensor& chunk : chunks) companions.push_back(&chunk);
      continue;
    }
    std::string stored(name_of(chunks.front().dtype));
    if (const std::span<const SourceTensor> scales = scales_of(catalog, name); !scales.empty()) {
      stored = "unknown";
      try {
        encoding_of(catalog, chunks);
        stored = blocks_of(catalog, chunks, scales, known_encodings()).name;
      } catch (const Error&) {  // whoever loads it is told
      }
    }
    how.emplace(name, stored);
    StoredAlike& all = alike[stored];
    ++all.weights;
    all.parameters += volume(Catalog::global_shape(chunks));
    for (const SourceTensor& chunk : chunks) all.bytes += chunk.end - chunk.begin;
  }
  for (const SourceTensor* companion : companions) {
    const auto found = how.find(weight_of(companion->name));
    alike[found == how.end() ? "unknown" : found->second].bytes += companion->end - companion->begin;
  }
  return alike;
}

std::map<std::string, std::int64_t> scaled_weights(const Catalog& catalog) {
  std::map<std::string, std::int64_t> counts;
  const std::string* previous = nullptr;
  for (const SourceTensor& tensor : catalog.tensors) {
    const bool is_chunk = previous != nullptr && *previous == tensor.name;
    previous = &tensor.name;
    const std::span<const SourceTensor> scales = scales_of(catalog, tensor.name);
    if (is_chunk || scales.empty()) continue;
    const std::span<const SourceTensor> weight = catalog.find(tensor.name);
    std::string name = "unknown";
    try {
      encoding_of(catalog, weight);
      name = blocks_of(catalog, weight, scales, known_encodings()).name;
    } catch (const Error&) {  // whoever loads it is told
    }
    ++counts[name];
  }
  return counts;
}

}  // namespace shardwright
