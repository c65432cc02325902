#include "planner/block_scales.h"

#include <algorithm>

#include "planner/error.h"

namespace shardwright {
namespace {

constexpr std::string_view scale_suffix = "_scale_inv";

std::string describe(const Catalog& catalog, std::span<const SourceTensor> chunks) {
  return chunks.front().name + " in " + catalog.files[chunks.front().file].name + " (" +
         std::string(name_of(chunks.front().dtype)) + " " + to_string(Catalog::global_shape(chunks)) + ")";
}

}  // namespace

bool is_float8(DType dtype) { return dtype == DType::F8_E4M3 || dtype == DType::F8_E5M2; }

Encoding mxfp8() { return {DType::F8_E4M3, true, DType::U8, 1, 32}; }

std::string scale_name_of(std::string_view weight_name) {
  return std::string(weight_name) + std::string(scale_suffix);
}

bool is_scale_name(std::string_view name) { return name.ends_with(scale_suffix); }

std::string_view weight_name_of(std::string_view name) {
  if (is_scale_name(name)) name.remove_suffix(scale_suffix.size());
  return name;
}

Shape scale_shape_of(const Encoding& encoding, const Shape& weight_shape) {
  return {(weight_shape[0] + encoding.block_rows - 1) / encoding.block_rows,
          (weight_shape[1] + encoding.block_columns - 1) / encoding.block_columns};
}

Box scale_box_of(const Encoding& encoding, const Box& weight_box) {
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
  const Shape block{encoding.block_rows, encoding.block_columns};
  Box box{Shape(2), Shape(2)};
  for (std::size_t d = 0; d < 2; ++d) {
    box.offset[d] = scale_box.offset[d] * block[d];
    box.size[d] = std::min(scale_box.size[d] * block[d], weight_shape[d] - box.offset[d]);
  }
  return box;
}

Encoding encoding_of(const Catalog& catalog, std::span<const SourceTensor> weight, const Encoding& scaled) {
  const std::string scale_name = scale_name_of(weight.front().name);
  const std::span<const SourceTensor> scales = catalog.find(scale_name);
  const DType element = weight.front().dtype;
  if (scales.empty()) {
    if (is_float8(element)) {
      throw Error(ErrorKind::mismatch, describe(catalog, weight) +
                                           ": an FP8 weight needs its scales; expected " + scale_name +
                                           ", found no tensor of that name");
    }
    return {element, false, DType::U8, 1, 1};
  }
  const Shape shape = Catalog::global_shape(weight);
  if (element != DType::F8_E4M3 || shape.size() != 2) {
    throw Error(ErrorKind::mismatch, describe(catalog, weight) + ": expected a matrix of F8_E4M3, since " +
                                         scale_name + " says that it is block-scaled");
  }
  Encoding encoding = scaled;
  encoding.scale = scales.front().dtype;
  const Shape expected = scale_shape_of(encoding, shape);
  if ((encoding.scale != DType::U8 && encoding.scale != DType::F8_E8M0) ||
      Catalog::global_shape(scales) != expected) {
    throw Error(ErrorKind::mismatch,
                describe(catalog, scales) + ": expected U8 or F8_E8M0 " + to_string(expected) +
                    ", one scale for each " + std::to_string(scaled.block_rows) + " x " +
                    std::to_string(scaled.block_columns) + " block of the weight " + to_string(shape));
  }
  return encoding;
}

}  // namespace shardwright
