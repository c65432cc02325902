#include "planner/save/quantization.h"

#include <algorithm>
#include <array>
#include <memory>
#include <utility>

namespace shardwright {
namespace {

constexpr std::int64_t elements_in_a_word = 8;
constexpr std::int64_t gpt_oss_columns = 32;

const std::array<Quantization, 10>& table() {
  constexpr std::string_view inverse = "_scale_inv";
  constexpr std::string_view scale = "_scale";
  constexpr std::string_view packed = "_packed";
  constexpr EncodingRule int4 = EncodingRule::int4_compressed_tensors;
  static const std::array<Quantization, 10> all{{
      {"mxfp8", EncodingRule::mxfp8, "mxfp8", "", DType::F8_E4M3, inverse, inverse},
      {"block_fp8", EncodingRule::block_fp8, "block_fp8", "", DType::F8_E4M3, inverse, inverse},
      {"mxfp4-modelopt", EncodingRule::mxfp4_modelopt, "mxfp4", "", DType::U8, scale, scale},
      {"mxfp4-ocp", EncodingRule::mxfp4_ocp, "mxfp4", packed, DType::U8, scale, scale},
      {"mxfp4-gpt-oss", EncodingRule::mxfp4_gpt_oss, "mxfp4", "_blocks", DType::U8, inverse, "_scales"},
      {"nvfp4-modelopt", EncodingRule::nvfp4_modelopt, "nvfp4_modelopt", "", DType::U8, scale, scale},
      {"nvfp4-compressed-tensors",
       EncodingRule::nvfp4_compressed_tensors,
       "nvfp4_compressed_tensors",
       packed,
       DType::U8,
       scale,
       scale,
       {1}},
      {"int4-compressed-tensors", int4, "int4_group32", packed, DType::I32, scale, scale, {}, true},
      {"int4-compressed-tensors-group128", int4, "int4_group128", packed, DType::I32, scale, scale, {}, true},
      {"int4-compressed-tensors-channel", int4, "int4_channel", packed, DType::I32, scale, scale, {}, true},
  }};
  return all;
}

bool is_gpt_oss(const Quantization& quantization) { return quantization.weight_ending == "_blocks"; }

}  // namespace

std::span<const Quantization> quantizations() { return table(); }

const Quantization* quantization_named(std::string_view name) {
  const auto found =
      std::find_if(table().begin(), table().end(), [&](const Quantization& one) { return one.name == name; });
  return found == table().end() ? nullptr : &*found;
}

std::string names_of_quantizations() {
  std::string names;
  for (const Quantization& one : table()) names += (names.empty() ? "" : ", ") + std::string(one.name);
  return names;
}

Encoding encoding_by(const Quantization& quantization, const Shape& weight_shape) {
  const std::vector<KnownEncoding>& known = known_encodings();
  const auto kind = std::find_if(known.begin(), known.end(),
                                 [&](const KnownEncoding& one) { return one.name == quantization.encoding; });
  Encoding encoding = encoding_with(*kind, weight_shape);
  encoding.scale_suffix = quantization.scale_suffix;
  return encoding;
}

std::string fault_of_quantizing(const Quantization& quantization, const std::string& weight_name,
                                const Shape& weight_shape) {
  const std::string what = weight_name + " " + to_string(weight_shape) + ": cannot be stored as " +
                           std::string(quantization.name) + ": ";
  if (weight_shape.size() < 2) return what + "expected a matrix or a stack of them";
  const std::int64_t columns = weight_shape.back();
  if (is_gpt_oss(quantization)) {
    if (columns % gpt_oss_columns == 0) return "";
    return what + "expected rows of a multiple of 32 elements, found " + std::to_string(columns);
  }
  const bool needs_ending = quantization.scale_suffix == "_scale";
  if (needs_ending && !weight_name.ends_with(".weight"))
    return what + "expected a name that ends in .weight, beside which the tool's names of scales can stand";
  if ((quantization.has_global() || quantization.has_shape) && weight_shape.size() != 2)
    return what + "expected a matrix: the tool has one global scale, or one shape, for each";
  if (quantization.stored == DType::I32 && columns % elements_in_a_word != 0)
    return what + "expected rows of a multiple of 8 elements, which share a word, found " +
           std::to_string(columns);
  if (quantization.stored == DType::U8 && columns % 2 != 0)
    return what + "expected rows of an even number of elements, two of which share a byte, found " +
           std::to_string(columns);
  return "";
}

void store_as(const Quantization& quantization, SourceTensor& weight) {
  if (quantization.stored == weight.dtype) return;
  StoredForm form{weight.name + std::string(quantization.weight_ending), quantization.stored, weight.shape};
  if (is_gpt_oss(quantization)) {
    form.shape.back() /= gpt_oss_columns;
    form.shape.push_back(gpt_oss_columns / 2);
  } else {
    form.shape.back() /= quantization.stored == DType::I32 ? elements_in_a_word : 2;
  }
  weight.stored = std::make_shared<const StoredForm>(std::move(form));
}

SourceTensor scales_by(const Quantization& quantization, const Encoding& encoding,
                       const SourceTensor& weight) {
  SourceTensor scales;
  scales.name = weight.name + std::string(encoding.scale_suffix);
  scales.dtype = encoding.scale;
  scales.shape = scale_shape_of(encoding, weight.shape);
  scales.offset.assign(scales.shape.size(), 0);
  if (quantization.stored_scale != encoding.scale_suffix) {
    scales.stored = std::make_shared<const StoredForm>(
        StoredForm{weight.name + std::string(quantization.stored_scale), scales.dtype, scales.shape});
  }
  return scales;
}

bool fits_pattern(std::string_view name, std::string_view pattern) {
  std::size_t n = 0;
  std::size_t p = 0;
  std::size_t star = std::string_view::npos;  // the last one met, and where what it stands for ends
  std::size_t end_of_star = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      end_of_star = n;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
      ++p;
      ++n;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      n = ++end_of_star;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace shardwright
