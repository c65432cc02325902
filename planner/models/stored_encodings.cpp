#include "planner/models/stored_encodings.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "planner/error.h"

namespace shardwright {
namespace {

using Json = nlohmann::ordered_json;
using Names = StoredEncoding::Names;

/// The name without ".weight", before which companions of a module stand.
std::string module_of(const std::string& weight) {
  constexpr std::string_view ending = ".weight";
  if (!weight.ends_with(ending))
    throw Error(ErrorKind::argument, weight + ": expected a name that ends in .weight in this encoding");
  return weight.substr(0, weight.size() - ending.size());
}

/// The shape as it is packed: so many elements of its last dimension in one.
Shape packed(const std::string& name, Shape shape, std::int64_t elements) {
  if (shape.back() % elements != 0) {
    throw Error(ErrorKind::argument, name + ": expected rows of a multiple of " + std::to_string(elements) +
                                         " elements in this encoding, found " + std::to_string(shape.back()) +
                                         "; change the config");
  }
  shape.back() /= elements;
  return shape;
}

/// What compressed-tensors calls the weights of a group of its configuration.
Json compressed_group(const StoredEncoding& encoding) {
  const KnownEncoding& blocks = encoding.blocks();
  const bool is_int4 = blocks.elements.front() == DType::I4;
  const bool is_fp4 = blocks.elements.front() == DType::F4;
  Json weights = {{"num_bits", is_int4 || is_fp4 ? 4 : 8},
                  {"type", is_int4 ? "int" : "float"},
                  {"symmetric", true},
                  {"dynamic", false}};
  std::string format = "float-quantized";
  if (is_int4 || is_fp4) {
    const bool is_nvfp4 = !blocks.global_suffix.empty();
    weights["strategy"] = is_nvfp4 ? "tensor_group" : "group";
    weights["group_size"] = blocks.columns;
    format = is_int4 ? "pack-quantized" : is_nvfp4 ? "nvfp4-pack-quantized" : "mxfp4-pack-quantized";
    if (is_fp4) weights["scale_dtype"] = is_nvfp4 ? "torch.float8_e4m3fn" : "torch.uint8";
  } else {
    weights["strategy"] = "channel";
  }
  return {{"format", format},
          {"targets", {"Linear"}},
          {"weights", weights},
          {"input_activations", nullptr},
          {"output_activations", nullptr}};
}

Json compressed_config(const StoredEncoding& encoding, bool is_of_experts_alone) {
  const Json group = compressed_group(encoding);
  Json ignored = {"lm_head"};
  if (is_of_experts_alone) {
    for (const char* module :
         {"re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"})
      ignored.push_back(module);
  }
  return {{"quant_method", "compressed-tensors"},
          {"format", group["format"]},
          {"config_groups", {{"group_0", group}}},
          {"ignore", ignored},
          {"kv_cache_scheme", nullptr},
          {"quantization_status", "compressed"}};
}

/// `rest`: how all but routed experts is stored, where that is otherwise; null: it is not, or in BF16.
Json modelopt_config(const StoredEncoding& experts, const StoredEncoding* rest) {
  const Json fp8 = {{"quant_algo", "FP8"}};
  if (!experts.is_of_experts()) return {{"quant_method", "modelopt"}, {"quant_algo", "FP8"}};
  const std::string algorithm = experts.is_weight_only ? "W4A16_NVFP4" : "NVFP4";
  const Json nvfp4 = {{"quant_algo", algorithm}, {"group_size", experts.blocks().columns}};
  if (rest == nullptr) return {{"quant_method", "modelopt"}, {"quant_algo", algorithm}, {"group_size", 16}};
  Json layers;
  if (rest->names == Names::modelopt) {  // nvidia/Qwen3.6-35B-A3B-NVFP4
    const std::string prefix = "model.language_model.layers.*.";
    layers = {{prefix + "mlp.experts.*", nvfp4},
              {prefix + "mlp.shared_expert.*", nvfp4},
              {"lm_head", nvfp4},
              {prefix + "self_attn.*", fp8},
              {prefix + "linear_attn.*", fp8}};
  } else {  // nvidia/MiniMax-M3-NVFP4
    layers = {{"language_model.model.layers.*.block_sparse_moe.experts.*", nvfp4},
              {"language_model.model.layers.*.self_attn.*", {{"quant_algo", "MXFP8"}}}};
  }
  return {{"quant_method", "modelopt"}, {"quant_algo", "MIXED_PRECISION"}, {"quantized_layers", layers}};
}

Json fp8_config(const KnownEncoding& blocks) {
  Json quantization = {{"quant_method", "fp8"}, {"fmt", "e4m3"}};
  if (blocks.name == "mxfp8") quantization["quant_method"] = "mxfp8";
  if (blocks.dtypes.front() == DType::U8) quantization["scale_fmt"] = "ue8m0";
  if (!blocks.is_whole_tensor()) quantization["weight_block_size"] = {blocks.rows, blocks.columns};
  quantization["activation_scheme"] = "dynamic";
  return quantization;
}

}  // namespace

const KnownEncoding& StoredEncoding::blocks() const {
  const auto& known = known_encodings();
  return *std::find_if(known.begin(), known.end(),
                       [&](const KnownEncoding& one) { return one.name == encoding; });
}

const std::vector<StoredEncoding>& stored_encodings() {
  static const std::vector<StoredEncoding> made{
      {"mxfp8", "mxfp8", Names::scale_inv},
      {"block_fp8", "block_fp8", Names::scale_inv},
      {"tensor_fp8", "tensor_fp8", Names::scale_inv},
      {"channel_fp8", "channel_fp8", Names::compressed_tensors, DType::BF16},
      {"block_fp8_e8m0", "block_fp8_e8m0", Names::deepseek, DType::F8_E8M0},
      {"mxfp4", "mxfp4", Names::compressed_tensors},
      {"mxfp4_gpt_oss", "mxfp4", Names::gpt_oss},
      {"mxfp4_deepseek", "mxfp4", Names::deepseek, DType::F8_E8M0},
      {"tensor_fp8_modelopt", "tensor_fp8", Names::modelopt, DType::F32},
      {"nvfp4_modelopt", "nvfp4_modelopt", Names::modelopt},
      {"nvfp4_modelopt_w4a16", "nvfp4_modelopt", Names::modelopt, std::nullopt, true},
      {"nvfp4_compressed_tensors", "nvfp4_compressed_tensors", Names::compressed_tensors},
      {"int4_group32", "int4_group32", Names::compressed_tensors},
      {"int4_group128", "int4_group128", Names::compressed_tensors},
  };
  return made;
}

const StoredEncoding& stored_encoding_named(std::string_view name) {
  std::string known;
  for (const StoredEncoding& encoding : stored_encodings()) {
    if (encoding.name == name) return encoding;
    known += (known.empty() ? "" : ", ") + std::string(encoding.name);
  }
  throw Error(ErrorKind::argument, "encoding '" + std::string(name) + "': expected one of " + known);
}

void add_stored(std::vector<NamedShape>& tensors, const StoredEncoding& stored, const std::string& name,
                const Shape& shape) {
  const KnownEncoding& blocks = stored.blocks();
  const Encoding encoding = encoding_with(blocks, shape);
  const Shape grid = scale_shape_of(encoding, shape);
  const DType element = encoding.element;
  const DType scale = stored.scale.value_or(encoding.scale);
  // Values of 8 bits are decoded whatever their scales are, and releases are compared over time by what
  // the generator made of them at first.
  const auto values = is_packed(element) ? SampleValues::scales : SampleValues::any;
  const auto add = [&](std::string tensor, DType dtype, Shape of, SampleValues filled) {
    tensors.push_back({std::move(tensor), dtype, std::move(of), filled});
  };
  switch (stored.names) {
    case Names::scale_inv:
      add(name, element, shape, SampleValues::any);
      return add(name + "_scale_inv", scale, grid, values);
    case Names::deepseek:
      if (element == DType::F4) {
        add(name, DType::I8, packed(name, shape, 2), SampleValues::codes);
      } else {
        add(name, element, shape, SampleValues::any);
      }
      return add(module_of(name) + ".scale", scale, grid, SampleValues::scales);
    case Names::gpt_oss: {
      Shape in_blocks = packed(name, shape, blocks.columns);
      in_blocks.push_back(blocks.columns / 2);
      add(name + "_blocks", DType::U8, std::move(in_blocks), SampleValues::codes);
      return add(name + "_scales", scale, grid, values);
    }
    case Names::modelopt:
      if (is_packed(element)) {
        add(name, DType::U8, packed(name, shape, 2), SampleValues::codes);
        add(name + "_scale", scale, grid, values);
        add(name + "_scale_2", DType::F32, {}, values);
      } else {
        add(name, element, shape, SampleValues::any);
        add(name + "_scale", scale, {}, SampleValues::scales);
      }
      if (stored.is_weight_only) return;
      return add(module_of(name) + ".input_scale", DType::F32, {}, SampleValues::scales);
    case Names::compressed_tensors:
      if (!is_packed(element)) {
        add(name, element, shape, SampleValues::any);
        return add(name + "_scale", scale, grid, SampleValues::scales);
      }
      add(name + "_packed", element == DType::I4 ? DType::I32 : DType::U8,
          packed(name, shape, element == DType::I4 ? 8 : 2), SampleValues::codes);
      add(name + "_scale", scale, grid, values);
      if (element == DType::I4) {
        add(name + "_shape", DType::I32, {static_cast<std::int64_t>(shape.size())}, SampleValues::given);
        tensors.back().given = shape;
      } else if (!blocks.global_suffix.empty()) {
        add(name + std::string(blocks.global_suffix), DType::F32, {1}, values);
      }
  }
}

Json quantization_config(const StoredEncoding* experts, const StoredEncoding* rest) {
  if (experts == nullptr && rest == nullptr) return nullptr;
  const StoredEncoding& stored = experts != nullptr ? *experts : *rest;
  const bool is_of_experts_alone = experts != rest;
  switch (stored.names) {
    case Names::compressed_tensors:
      return compressed_config(stored, is_of_experts_alone);
    case Names::gpt_oss:
      return {{"quant_method", "mxfp4"},
              {"modules_to_not_convert",
               {"model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"}}};
    case Names::deepseek: {
      const StoredEncoding& of_fp8 =
          rest != nullptr && !rest->is_of_experts() ? *rest : stored_encoding_named("block_fp8_e8m0");
      Json quantization = fp8_config(of_fp8.blocks());
      if (stored.is_of_experts()) quantization["expert_dtype"] = "fp4";
      return quantization;
    }
    case Names::modelopt:
      return modelopt_config(stored, is_of_experts_alone ? rest : nullptr);
    case Names::scale_inv:
      return fp8_config(stored.blocks());
  }
  return {};
}

}  // namespace shardwright
