#include "planner/names/block_scales.h"

#include <algorithm>

#include "planner/error.h"

namespace shardwright {
namespace {

/// A weight whose name ends so may have scales named as the weight, and then the suffix.
struct ScaleName {
  std::string_view weight_ending;
  std::string_view suffix;
};
constexpr ScaleName scale_names[] = {{"", "_scale_inv"}, {".weight", "_scale"}};

std::string name_with(std::string_view weight_name, const ScaleName& scale_name) {
  return std::string(weight_name) + std::string(scale_name.suffix);
}

/// How the scales of a weight end; empty for any other tensor's name.
std::string_view scale_suffix_of(std::string_view name) {
  for (const auto& [weight_ending, suffix] : scale_names) {
    if (name.ends_with(suffix) && name.substr(0, name.size() - suffix.size()).ends_with(weight_ending))
      return suffix;
  }
  return "";
}

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
std::string describe(const ScaleBlocks& blocks, const Shape& weight_shape) {
  std::vector<std::string> dtypes;
  for (const DType dtype : blocks.dtypes) dtypes.emplace_back(name_of(dtype));
  if (blocks.is_whole_tensor()) return joined(dtypes) + " [] (one for the whole tensor)";
  return joined(dtypes) + " " + to_string(scale_shape_of(encoding_with(blocks, weight_shape), weight_shape)) +
         " (one for each " + std::to_string(blocks.rows) + " x " + std::to_string(blocks.columns) + " block)";
}

bool fits(const ScaleBlocks& blocks, DType dtype, const Shape& scale_shape, const Shape& weight_shape) {
  if (std::find(blocks.dtypes.begin(), blocks.dtypes.end(), dtype) == blocks.dtypes.end()) return false;
  if (blocks.is_whole_tensor()) return scale_shape.size() <= 2 && volume(scale_shape) == 1;
  return scale_shape == scale_shape_of(encoding_with(blocks, weight_shape), weight_shape);
}

[[noreturn]] void refuse(const std::string& what) { throw Error(ErrorKind::mismatch, what); }

const ScaleBlocks& blocks_of(const Catalog& catalog, std::span<const SourceTensor> weight,
                             std::span<const SourceTensor> scales, const std::vector<ScaleBlocks>& known) {
  const Shape weight_shape = Catalog::global_shape(weight);
  const Shape scale_shape = Catalog::global_shape(scales);
  const auto found = std::find_if(known.begin(), known.end(), [&](const ScaleBlocks& blocks) {
    return fits(blocks, scales.front().dtype, scale_shape, weight_shape);
  });
  if (found != known.end()) return *found;
  std::vector<std::string> expected;
  for (const ScaleBlocks& blocks : known) expected.push_back(describe(blocks, weight_shape));
  refuse(describe(catalog, scales) + ": fits no known block shape of the weight " +
         describe(catalog, weight) + "; expected " + joined(expected) +
         "; convert the checkpoint to one of these");
}

}  // namespace

const std::vector<ScaleBlocks>& known_scale_blocks() {
  static const std::vector<ScaleBlocks> known{
      {"mxfp8", {DType::U8, DType::F8_E8M0}, 1, 32},
      {"block_fp8", {DType::F32, DType::BF16}, 128, 128},
      {"tensor_fp8", {DType::F32, DType::BF16}, 0, 0},
  };
  return known;
}

bool is_float8(DType dtype) { return dtype == DType::F8_E4M3 || dtype == DType::F8_E5M2; }

Encoding encoding_with(const ScaleBlocks& blocks, const Shape& weight_shape) {
  Encoding encoding{DType::F8_E4M3, true, blocks.dtypes.front(), blocks.rows, blocks.columns};
  if (blocks.is_whole_tensor()) encoding.scale_rank = 0;
  if (blocks.rows == 0) encoding.block_rows = std::max<std::int64_t>(1, weight_shape[0]);
  if (blocks.columns == 0) encoding.block_columns = std::max<std::int64_t>(1, weight_shape[1]);
  return encoding;
}

std::vector<std::string> scale_names_of(std::string_view weight_name) {
  std::vector<std::string> names;
  for (const ScaleName& scale_name : scale_names) {
    if (weight_name.ends_with(scale_name.weight_ending)) names.push_back(name_with(weight_name, scale_name));
  }
  return names;
}

bool is_scale_name(std::string_view name) { return !scale_suffix_of(name).empty(); }

std::string_view weight_name_of(std::string_view name) {
  name.remove_suffix(scale_suffix_of(name).size());
  return name;
}

std::span<const SourceTensor> scales_of(const Catalog& catalog, std::string_view weight_name) {
  for (const std::string& name : scale_names_of(weight_name)) {
    if (const std::span<const SourceTensor> scales = catalog.find(name); !scales.empty()) return scales;
  }
  return {};
}

Shape scale_shape_of(const Encoding& encoding, const Shape& weight_shape) {
  if (encoding.scale_rank < 2) return Shape(static_cast<std::size_t>(encoding.scale_rank), 1);
  return {(weight_shape[0] + encoding.block_rows - 1) / encoding.block_rows,
          (weight_shape[1] + encoding.block_columns - 1) / encoding.block_columns};
}

Box scale_box_of(const Encoding& encoding, const Box& weight_box) {
  if (encoding.scale_rank < 2) {
    const auto rank = static_cast<std::size_t>(encoding.scale_rank);
    return {Shape(rank, 0), Shape(rank, is_empty(weight_box) ? 0 : 1)};
  }
  const Shape block{encoding.block_rows, encoding.block_columns};
  Box box{Shape(2), Shape(2)};
  for (std::size_t d = 0; d < 2; ++d) {
    const std::int64_t begin = weight_box.offset[d] / block[d];
    const std::int64_t end = (weight_box.offset[d] + weight_box.size[d] + block[d] - 1) / block[d];
    box.offset[d] = begin;
    box.size[d] = weight_box.size[d] == 0 ? 0 : end - begin;
  }
  return box;
}

Box weight_box_of(const Encoding& encoding, const Box& scale_box, const Shape& weight_shape) {
  if (encoding.scale_rank < 2) {
    Box box = whole(weight_shape);
    if (is_empty(scale_box)) box.size = Shape(2, 0);
    return box;
  }
  const Shape block{encoding.block_rows, encoding.block_columns};
  Box box{Shape(2), Shape(2)};
  for (std::size_t d = 0; d < 2; ++d) {
    box.offset[d] = scale_box.offset[d] * block[d];
    box.size[d] = std::min(scale_box.size[d] * block[d], weight_shape[d] - box.offset[d]);
  }
  return box;
}

Encoding encoding_of(const Catalog& catalog, std::span<const SourceTensor> weight,
                     const std::vector<ScaleBlocks>& known) {
  const std::string& name = weight.front().name;
  const DType element = weight.front().dtype;
  const std::span<const SourceTensor> scales = scales_of(catalog, name);
  if (scales.empty()) {
    if (is_float8(element)) {
      refuse(describe(catalog, weight) + ": an FP8 weight needs its scales; expected " +
             joined(scale_names_of(name)) + ", found no tensor of that name");
    }
    return {element, false, DType::U8, 1, 1};
  }
  for (const std::string& other : scale_names_of(name)) {
    if (other != scales.front().name && !catalog.find(other).empty()) {
      refuse(describe(catalog, weight) + ": expected scales under one name, found both " +
             describe(catalog, scales) + " and " + describe(catalog, catalog.find(other)) +
             "; remove those that are not meant");
    }
  }
  const Shape shape = Catalog::global_shape(weight);
  if (!is_float8(element) || shape.size() != 2) {
    refuse(describe(catalog, weight) + ": expected a matrix of F8_E4M3 or F8_E5M2, since " +
           scales.front().name + " says that it is block-scaled");
  }
  Encoding encoding = encoding_with(blocks_of(catalog, weight, scales, known), shape);
  encoding.element = element;
  encoding.scale = scales.front().dtype;
  encoding.scale_rank = static_cast<int>(scales.front().shape.size());
  encoding.scale_suffix = scale_suffix_of(scales.front().name);
  return encoding;
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
      name = blocks_of(catalog, weight, scales, known_scale_blocks()).name;
    } catch (const Error&) {  // whoever loads it is told
    }
    ++counts[name];
  }
  return counts;
}

}  // namespace shardwright
