#pragma once

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "planner/names/catalog.h"
#include "tests/planner/random_layouts.h"

namespace shardwright {

/// A tensor of the trainer, over all ranks.
struct Native {
  std::string fqn;
  DType dtype;
  Shape shape;
};

/// A whole tensor of a checkpoint, and the chunks that it is stored in.
struct Stored {
  std::string name;
  DType dtype;
  Shape shape;
  std::vector<Box> chunks;
};

struct RandomModel {
  std::vector<Native> natives;
  std::vector<Stored> stored;  // weights and scales
};

/// The plain reference for names: which element of which HF tensor a native element is. Written by hand from
/// the table of the reference (minimax_m3_vl.md), not from the rules of the library.
struct HfElement {
  std::string name;
  Shape index;
};

inline HfElement hf_element(const Native& native, const Shape& at) {
  static const std::map<std::string, std::string> others = {
      {"model.layers.3.self_attn.q_proj.weight", "language_model.model.layers.3.self_attn.q_proj.weight"},
      {"model.mtp.layers.0.eh_proj.weight", "language_model.model.mtp.layers.0.eh_proj.weight"},
      {"model.norm.weight", "language_model.model.norm.weight"},
      {"lm_head.weight", "language_model.lm_head.weight"},
      {"model.layers.3.mlp.gate.e_score_correction_bias",
       "language_model.model.layers.3.block_sparse_moe.e_score_correction_bias"},
      {"vision_tower.patch_merge_mlp.linear_1.weight", "patch_merge_mlp.linear_1.weight"},
      {"vision_tower.vision_model.embeddings.patch_embedding.weight",
       "vision_tower.vision_model.embeddings.patch_embedding.weight"},
      {"vision_tower.vision_model.embeddings.position_ids",
       "vision_tower.vision_model.embeddings.position_ids"},
      {"vision_tower.vision_model.temperature", "vision_tower.vision_model.temperature"},
  };
  const std::size_t experts = native.fqn.find("mlp.experts.");
  if (experts == std::string::npos) return {others.at(native.fqn), at};
  const std::string expert = "language_model." + native.fqn.substr(0, experts) + "block_sparse_moe.experts." +
                             std::to_string(at[0]) + ".";
  if (native.fqn.ends_with(".down_projs")) return {expert + "w2.weight", {at[2], at[1]}};
  const std::int64_t half = native.shape[2] / 2;
  if (at[2] < half) return {expert + "w1.weight", {at[2], at[1]}};
  return {expert + "w3.weight", {at[2] - half, at[1]}};
}

/// The plain reference for scales: where that of an element lies in a tensor of scales of this dtype and
/// shape, and where the element lies in its block.
struct ScaleElement {
  Shape index;
  Shape in_block;
};

inline ScaleElement scale_element(DType dtype, const Shape& scale_shape, const Shape& at) {
  if (dtype == DType::U8 || dtype == DType::F8_E8M0) return {{at[0], at[1] / 32}, {0, at[1] % 32}};
  if (volume(scale_shape) == 1) return {Shape(scale_shape.size(), 0), at};
  return {{at[0] / 128, at[1] / 128}, {at[0] % 128, at[1] % 128}};
}

/// Chunks that cover the tensor, at most four. Random cuts fall anywhere inside a block of scales.
inline std::vector<Box> random_chunks(Random& random, const Shape& shape) {
  return random_tiling(random, whole(shape), random.once_in(2) ? random.between(1, 3) : 0);
}

/// Scales of a weight, in one of the encodings there are and under one of the names.
inline Stored random_scales(Random& random, const std::string& weight, const Shape& shape) {
  Stored scales;
  scales.name = weight + (weight.ends_with(".weight") && random.once_in(3) ? "_scale" : "_scale_inv");
  scales.dtype = random.one_of<DType>({DType::U8, DType::F8_E8M0, DType::F32, DType::BF16});
  if (scales.dtype == DType::U8 || scales.dtype == DType::F8_E8M0) {
    scales.shape = {shape[0], (shape[1] + 31) / 32};
  } else if (random.once_in(3)) {
    scales.shape = random.one_of<Shape>({{}, {1}, {1, 1}});
  } else {
    scales.shape = {(shape[0] + 127) / 128, (shape[1] + 127) / 128};
  }
  scales.chunks = random_chunks(random, scales.shape);
  return scales;
}

/// A small model with M3's names and odd sizes; any matrix may be block-scaled or plain, whole or in chunks.
inline RandomModel random_model(Random& random, std::int64_t largest = 70) {
  const std::int64_t hidden = random.between(1, largest);
  const std::int64_t inter = random.between(1, largest / 2);
  const std::int64_t experts = random.between(1, 4);
  const auto wide = [&] { return random.one_of<DType>({DType::BF16, DType::F16, DType::F32}); };
  RandomModel model;
  model.natives = {
      {"model.layers.3.mlp.experts.gate_and_up_projs", wide(), {experts, hidden, 2 * inter}},
      {"model.layers.3.mlp.experts.down_projs", wide(), {experts, inter, hidden}},
      {"model.mtp.layers.0.transformer_layer.mlp.experts.down_projs", wide(), {experts, inter, hidden}},
      {"model.layers.3.self_attn.q_proj.weight", wide(), {random.between(1, 50), hidden}},
      {"model.mtp.layers.0.eh_proj.weight", wide(), {hidden, 2 * hidden}},
      {"lm_head.weight", wide(), {random.between(1, 30), hidden}},
      {"model.norm.weight", wide(), {hidden}},
      {"model.layers.3.mlp.gate.e_score_correction_bias", DType::F32, {experts}},
      {"vision_tower.patch_merge_mlp.linear_1.weight",
       wide(),
       {random.between(1, 30), random.between(1, 99)}},
      {"vision_tower.vision_model.embeddings.patch_embedding.weight", wide(), random_shape(random, 5, 1, 4)},
      {"vision_tower.vision_model.embeddings.position_ids", DType::I64, {random.between(1, 9)}},
      {"vision_tower.vision_model.temperature", wide(), {}},
  };
  for (const Native& native : model.natives) {
    std::map<std::string, Shape> shapes;
    for_each_index(native.shape, [&](const Shape& at) {
      const HfElement element = hf_element(native, at);
      Shape& shape = shapes.try_emplace(element.name, Shape(element.index.size(), 0)).first->second;
      for (std::size_t d = 0; d < shape.size(); ++d) shape[d] = std::max(shape[d], element.index[d] + 1);
    });
    for (const auto& [name, shape] : shapes) {
      const bool scaled = shape.size() == 2 && !random.once_in(3);
      const DType plain = native.dtype == DType::I64 ? DType::I64 : wide();
      const DType dtype = scaled ? random.one_of<DType>({DType::F8_E4M3, DType::F8_E5M2}) : plain;
      model.stored.push_back({name, dtype, shape, random_chunks(random, shape)});
      if (scaled) model.stored.push_back(random_scales(random, name, shape));
    }
  }
  return model;
}

/// A catalog of these tensors in five files, no two chunks of a tensor in the same.
inline Catalog catalog_of(Random& random, const std::vector<Stored>& tensors) {
  Catalog catalog;
  catalog.directory = "/checkpoint";
  for (int file = 1; file <= 5; ++file)
    catalog.files.push_back({"model-" + std::to_string(file) + ".safetensors", 0});
  for (const Stored& tensor : tensors) {
    auto file = static_cast<std::uint32_t>(random.between(0, 4));
    for (const Box& chunk : tensor.chunks) {
      file = (file + 1) % 5;
      std::uint64_t& size = catalog.files[file].size;
      SourceTensor source{tensor.name, tensor.dtype, chunk.size, chunk.offset, file, size, 0};
      size += static_cast<std::uint64_t>(volume(chunk.size) * bytes_of(tensor.dtype));
      source.end = size;
      catalog.tensors.push_back(std::move(source));
    }
  }
  std::sort(catalog.tensors.begin(), catalog.tensors.end(), [](const SourceTensor& a, const SourceTensor& b) {
    return a.name != b.name ? a.name < b.name : a.offset < b.offset;
  });
  return catalog;
}

}  // namespace shardwright
