#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/dtype.h"
#include "planner/geometry/box.h"
#include "planner/models/known_models.h"
#include "planner/models/stored_encodings.h"

namespace shardwright {

/// A small checkpoint, as it would be released.
struct SampleCheckpoint {
  std::vector<NamedShape> tensors;  ///< in the order of the model's layers, scales after their weights
  std::string config;               ///< config.json
};

/// A form in which a family is released. A family file says with it what its checkpoints hold; config.json
/// decides all sizes, so that larger ones are made by another config.
struct Sample {
  std::string_view form;           ///< as users spell it: "bf16", "fp8", "tied", ...
  std::string config;              ///< JSON, with what differs from sample_defaults
  std::string_view encoding = {};  ///< of what it quantizes, see stored_encodings(); empty: nothing
  std::optional<DType> scale = std::nullopt;  ///< of the scales, where that is not the encoding's own
  std::string_view expert_encoding = {};      ///< of routed experts; empty: as the rest
  void (*add_tensors)(class SampleTensors& tensors) = nullptr;
};

/// A config with other values, which go where it has them.
std::string config_with(std::string_view config, std::string_view values);

/// The forms of a model that is released in BF16, and with block_fp8 whose scales are BF16.
std::vector<Sample> bf16_and_block_fp8(std::string_view config, void (*add_tensors)(SampleTensors& tensors));

/// What is asked for instead of what the form says.
struct SampleChanges {
  /// Of the weights that releases quantize, see stored_encodings(); one of four bits: of routed experts,
  /// where there are any, and the rest is as released. Empty: as released.
  std::string encoding;
  std::string size;    ///< "small" or "bench": see sizes in samples.cpp; "tiny" or empty: as small as can be
  std::string config;  ///< a JSON object of values of config.json
};

/// The family's checkpoint in this form; empty: its first. Throws Error(argument) for an unknown form or
/// encoding, naming those that there are, and for values of config.json that make no checkpoint.
SampleCheckpoint sample_checkpoint(const Model& family, std::string_view form, const SampleChanges& changes);

// --- how a family file says it ---

/// How a tensor is stored: as the model is (BF16), in another dtype, or quantized where the form is: `scaled`
/// as a routed expert where its name has a number of one, `experts` as a stack of them.
enum class StoredAs : std::uint8_t { bf16, f32, i64, scaled, experts };

/// A row of a sample. `shape` has a sum of products for each dimension, with blanks between: numbers and
/// names from config.json, such as "2*intermediate_size hidden". These names stand for whatever a family
/// calls it: vocab, hidden, inter (of dense MLPs), heads, kv_heads, experts, expert_inter, shared_inter.
struct SampleRow {
  std::string_view name;
  std::string_view shape;
  StoredAs stored = StoredAs::bf16;
};

/// The tensors of a checkpoint while they are being listed.
class SampleTensors {
 public:
  /// How routed experts are stored, and the rest; nullopt: in BF16.
  SampleTensors(nlohmann::ordered_json config, std::optional<StoredEncoding> experts,
                std::optional<StoredEncoding> rest);

  /// Adds the rows' tensors, with this before their names; "{expert}" in it stands for each number below
  /// `experts`. Names of sizes are looked for in this part of
  /// config.json, such as "vision_config", before they are in the model's text part and in the whole.
  void add(const std::string& prefix, std::span<const SampleRow> rows, std::string_view part = {});

  void add(const std::string& name, DType dtype, Shape shape);
  void add_scaled(const std::string& name, Shape shape);  ///< BF16 where the form does not quantize it
  void add_expert(const std::string& name, Shape shape);  ///< the same of what routed experts have

  /// Whether what is added from now on is quantized where the form is: a release may leave a part in BF16.
  void quantize(bool yes) { quantizes_ = yes; }

  /// A number of config.json, by its name there or one of those that SampleRow speaks of. Throws
  /// Error(argument) where there is none from 0 to 2^31 - 1.
  std::int64_t number(std::string_view name, std::string_view part = {}) const;

  bool is(std::string_view flag) const;  ///< false where config.json says nothing

  /// An entry of a list with one for each layer, such as "layer_types"; empty where there is none.
  std::string kind(std::string_view list, std::int64_t layer) const;
  std::int64_t entries(std::string_view list, std::string_view part = {}) const;  ///< of a list; 0: no list
  std::int64_t number_or_none(std::string_view name) const;  ///< 0 where config.json has none

  bool is_quantized() const { return quantizes_ && (experts_ || rest_); }
  std::vector<NamedShape> take() { return std::move(tensors_); }

 private:
  const nlohmann::ordered_json* find(std::string_view name, std::string_view part) const;
  Shape shape_of(std::string_view text, std::string_view part) const;
  void add_stored_as(const std::optional<StoredEncoding>& encoding, const std::string& name, Shape shape);
  void check(const NamedShape& tensor) const;

  std::shared_ptr<const nlohmann::ordered_json> config_;  ///< behind a pointer: its header takes long
  std::optional<StoredEncoding> experts_, rest_;
  bool quantizes_ = true;
  std::vector<NamedShape> tensors_;
};

/// What a text model's names begin with: a layer's prefix is "<model>layers.<layer>.".
std::string layer_prefix(std::string_view model, std::int64_t layer);

/// Embedding and last norm below `model`, and a head unless config.json ties it to the embedding.
void add_sample_ends(SampleTensors& tensors, const std::string& model = "model.",
                     const std::string& head = "lm_head.weight");

/// Rows of attention, below "self_attn.".
using AttentionRows = std::initializer_list<std::span<const SampleRow>>;

/// A layer's norms and attention.
void add_sample_layer(SampleTensors& tensors, const std::string& prefix, AttentionRows attention);

/// Layers with a dense MLP.
void add_dense_decoder(SampleTensors& tensors, const std::string& model, AttentionRows attention);

/// Layers with experts. Where config.json speaks of them: dense layers first ("first_k_dense_replace"),
/// shared experts and a bias of the router ("n_shared_experts"), and layers of multi-token prediction,
/// numbered on ("num_nextn_predict_layers").
void add_mixture_decoder(SampleTensors& tensors, const std::string& model, AttentionRows attention);

/// Router "gate.weight" and routed experts, below `module`.
void add_sample_mixture(SampleTensors& tensors, const std::string& module);

std::span<const SampleRow> sample_attention();         ///< below "self_attn."
std::span<const SampleRow> sample_attention_biases();  ///< of queries, keys and values
std::span<const SampleRow> sample_head_norms();        ///< of queries and keys, for each head alone
std::span<const SampleRow> sample_latent_attention();  ///< DeepSeek's
std::span<const SampleRow> sample_indexer();           ///< DeepSeek V3.2's, of sparse attention
std::span<const SampleRow> sample_mlp();               ///< dense, below "mlp."
std::span<const SampleRow> sample_expert();            ///< below "experts.{expert}."
std::span<const SampleRow> sample_numbered_expert();   ///< the same, named w1, w3, w2
std::span<const SampleRow> sample_shared_expert();
std::span<const SampleRow> sample_stacked_experts();  ///< below "experts."

/// What a layer of multi-token prediction has beside a decoder layer's tensors, where it is numbered on.
std::span<const SampleRow> sample_mtp();

/// Of Qwen3-Next and Qwen3.5: norms, and linear attention without its projections, or gated attention.
void add_sample_gated_layer(SampleTensors& tensors, const std::string& prefix, bool is_linear);
void add_sample_gated_shared_expert(SampleTensors& tensors, const std::string& module);
std::span<const SampleRow> sample_mtp_beside();  ///< what stands beside the layers below "mtp."

/// The vision tower of Qwen3-VL and Qwen3.5, below "model.visual.".
void add_sample_vision(SampleTensors& tensors);

}  // namespace shardwright
