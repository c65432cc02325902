#include "planner/models/samples.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "planner/error.h"

namespace shardwright {
namespace {

using Json = nlohmann::ordered_json;

/// Of every text model. No two of a sample's sizes are equal that a mix-up of dimensions could hide behind.
constexpr std::string_view sample_defaults = R"({
  "vocab_size": 96, "hidden_size": 48, "intermediate_size": 256, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
  "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})";

constexpr std::size_t most_tensors = 1 << 22;

/// How many routed experts there are.
constexpr std::string_view expert_counts[] = {"n_routed_experts", "num_experts", "num_local_experts",
                                              "moe_num_experts"};

/// What families call one thing, the first that a config has; a product where they differ in what they count.
struct Spelling {
  std::string_view name;
  std::array<std::string_view, 5> of_families;
};
constexpr Spelling spellings[] = {
    {"vocab", {"vocab_size"}},
    {"hidden", {"hidden_size"}},
    {"inter", {"intermediate_size"}},
    {"heads", {"num_attention_heads"}},
    {"kv_heads", {"num_key_value_heads"}},
    {"experts", {"n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"}},
    {"expert_inter", {"moe_intermediate_size", "intermediate_size"}},
    {"shared_inter",
     {"shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "share_expert_dim",
      "moe_intermediate_size", "intermediate_size"}},
};

std::string quoted(std::string_view name) { return "'" + std::string(name) + "'"; }

/// The part of a config that says what the text model is: itself, or what it has for a part.
Json& text_of(Json& config) {
  const auto found = config.find("text_config");
  return found == config.end() ? config : *found;
}

/// Values go where a config has them: in the text model's part, if it is one of its names.
void change(Json& config, const Json& values) {
  for (const auto& [name, value] : values.items()) {
    Json& text = text_of(config);
    Json& place = text.contains(name) || !config.contains(name) ? text : config;
    place[name].merge_patch(value);
  }
}

/// Lists with an entry for each layer must have one for each of another number of layers.
void check_lists(const Json& before, const Json& after) {
  const Json& layers = before.at("num_hidden_layers");
  const Json& now = after.at("num_hidden_layers");
  for (const auto& [name, list] : before.items()) {
    if (!list.is_array() || list.size() != layers || !list[0].is_string()) continue;
    const Json& other = after.at(name);
    if (!other.is_array() || other.size() != now) {
      throw Error(ErrorKind::argument, "config: " + name + ": expected an entry for each of " + now.dump() +
                                           " layers, found " + other.dump() + "; give such a list, too");
    }
  }
}

/// Sizes of larger checkpoints, for what a config has of them. In a preset of MiniMax M3 an expert is as
/// wide, and there are about as many of them in a layer.
struct Size {
  std::string_view name;
  std::int64_t vocabulary, hidden, intermediate, expert_intermediate, experts;
};
constexpr Size sizes[] = {{"small", 4096, 512, 1024, 256, 16}, {"bench", 32000, 4096, 8192, 1536, 32}};

bool has_experts(const Json& text) {
  return std::any_of(std::begin(expert_counts), std::end(expert_counts),
                     [&](std::string_view name) { return text.contains(name) && text[name] != 0; });
}

/// More of all that has no list of its layers.
void enlarge(Json& config, const Size& size) {
  Json& text = text_of(config);
  const auto set = [&](std::string_view name, std::int64_t value) {
    if (text.contains(name)) text[name] = value;
  };
  const Json hidden_before = text["hidden_size"];
  const bool is_of_experts = has_experts(text) && !text.contains("moe_intermediate_size");
  set("vocab_size", size.vocabulary);
  set("hidden_size", size.hidden);
  set("intermediate_size", is_of_experts ? size.expert_intermediate : size.intermediate);
  for (const char* name : {"moe_intermediate_size", "shared_expert_intermediate_size",
                           "moe_shared_expert_intermediate_size", "share_expert_dim"})
    set(name, size.expert_intermediate);
  for (const std::string_view name : expert_counts) set(name, size.experts);
  const bool has_lists =
      std::any_of(text.begin(), text.end(), [](const Json& value) { return value.is_array(); });
  if (!has_lists && text["num_hidden_layers"] == 2) text["num_hidden_layers"] = 4;
  const auto vision = config.find("vision_config");
  if (vision == config.end() || !vision->is_object()) return;
  const auto out = vision->find("out_hidden_size");
  if (out != vision->end() && *out == hidden_before) *out = size.hidden;
}

Json config_of(const Sample& sample, const SampleChanges& changes) {
  Json config = Json::parse(sample.config);
  const Json defaults = Json::parse(sample_defaults);
  const auto set_default = [](Json& part, const std::string& name, const Json& value) {
    if (!part.contains(name)) part[name] = value;
  };
  config.erase("quantization_config");  // follows from the encoding
  Json& text = text_of(config);
  for (const auto& [name, value] : defaults.items()) {
    set_default(text, name, value);
    if (text[name].is_null()) text.erase(name);  // a family that has no such size says so
  }
  set_default(config, "dtype", "bfloat16");
  set_default(config, "tie_word_embeddings", false);
  if (!changes.size.empty() && changes.size != "tiny") {
    const auto* const size = std::find_if(std::begin(sizes), std::end(sizes),
                                          [&](const Size& one) { return one.name == changes.size; });
    if (size == std::end(sizes))
      throw Error(ErrorKind::argument, "preset " + quoted(std::string_view(changes.size)) +
                                           ": expected tiny, small or bench of a family");
    enlarge(config, *size);
  }
  if (changes.config.empty()) return config;
  const Json values = Json::parse(changes.config, nullptr, /*allow_exceptions=*/false);
  if (!values.is_object())
    throw Error(ErrorKind::argument, "config: expected a JSON object of values for config.json");
  if (values.contains("quantization_config"))
    throw Error(ErrorKind::argument,
                "config: quantization_config follows from the form and the encoding; give these");
  const Json before = text_of(config);
  change(config, values);
  if (!text_of(config).is_object())
    throw Error(ErrorKind::argument, "config: text_config: expected an object");
  check_lists(before, text_of(config));
  return config;
}

/// How routed experts are stored, and the rest.
std::pair<std::optional<StoredEncoding>, std::optional<StoredEncoding>> encodings_of(
    const Sample& sample, Json& config, const std::string& asked) {
  std::optional<StoredEncoding> rest;
  if (!sample.encoding.empty()) {
    rest = stored_encoding_named(sample.encoding);
    if (sample.scale) rest->scale = sample.scale;
  }
  std::optional<StoredEncoding> experts = rest;
  if (!sample.expert_encoding.empty()) experts = stored_encoding_named(sample.expert_encoding);
  if (asked.empty()) return {experts, rest};
  experts = stored_encoding_named(asked);
  if (!experts->is_of_experts() || !has_experts(text_of(config))) rest = experts;
  return {experts, rest};
}

std::int64_t product(std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result))
    throw Error(ErrorKind::argument, "config: sizes make a tensor too large to be counted");
  return result;
}

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> parts;
  for (;;) {
    const std::size_t end = text.find(at);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

}  // namespace

std::string config_with(std::string_view config, std::string_view values) {
  Json made = Json::parse(config);
  change(made, Json::parse(values));
  return made.dump();
}

std::vector<Sample> bf16_and_block_fp8(std::string_view config, void (*add_tensors)(SampleTensors& tensors)) {
  return {{.form = "bf16", .config = std::string(config), .add_tensors = add_tensors},
          {.form = "fp8",
           .config = std::string(config),
           .encoding = "block_fp8",
           .scale = DType::BF16,
           .add_tensors = add_tensors}};
}

SampleCheckpoint sample_checkpoint(const Model& family, std::string_view form, const SampleChanges& changes) {
  std::string known;
  for (const Sample& sample : family.samples()) {
    known += (known.empty() ? "" : ", ") + std::string(sample.form);
    if (!form.empty() && sample.form != form) continue;
    Json config = config_of(sample, changes);
    const auto [experts, rest] = encodings_of(sample, config, changes.encoding);
    SampleTensors tensors(config, experts, rest);
    sample.add_tensors(tensors);
    if (tensors.is_quantized()) {
      const bool are_alike = experts && rest && experts->name == rest->name;
      config["quantization_config"] = quantization_config(experts ? &*experts : nullptr, are_alike ? &*experts
                                                                                         : rest    ? &*rest
                                                                                                   : nullptr);
    }
    return {tensors.take(), config.dump(2) + "\n"};
  }
  throw Error(ErrorKind::argument,
              "form " + quoted(form) + " of " + std::string(family.family) + ": expected one of " + known);
}

SampleTensors::SampleTensors(Json config, std::optional<StoredEncoding> experts,
                             std::optional<StoredEncoding> rest)
    : config_(std::make_shared<const Json>(std::move(config))), experts_(experts), rest_(rest) {}

const Json* SampleTensors::find(std::string_view name, std::string_view part) const {
  const auto in = [&](std::string_view of) -> const Json* {
    const auto place = config_->find(of);
    if (place == config_->end() || !place->is_object()) return nullptr;
    const auto found = place->find(name);
    return found == place->end() ? nullptr : &*found;
  };
  if (!part.empty()) {
    if (const Json* found = in(part)) return found;
  }
  if (const Json* found = in("text_config")) return found;
  const auto found = config_->find(name);
  return found == config_->end() ? nullptr : &*found;
}

std::int64_t SampleTensors::number(std::string_view name, std::string_view part) const {
  const auto checked = [&](std::string_view spelling, const Json& value) -> std::int64_t {
    constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
    const bool is_whole = value.is_number() && value == std::floor(value.get<double>());
    if (!is_whole || value < 0 || value > most) {
      throw Error(ErrorKind::argument, "config: " + std::string(spelling) + ": expected a number from 0 to " +
                                           std::to_string(most) + ", found " + value.dump());
    }
    return value.get<std::int64_t>();
  };
  for (const Spelling& spelling : spellings) {
    if (spelling.name != name) continue;
    for (const std::string_view own : spelling.of_families) {
      if (own.empty()) break;
      if (const Json* value = find(own, part)) return checked(own, *value);
    }
  }
  const Json* value = find(name, part);
  if (value == nullptr)
    throw Error(ErrorKind::argument, "config: expected a number " + quoted(name) + ", found none");
  return checked(name, *value);
}

std::int64_t SampleTensors::number_or_none(std::string_view name) const {
  return find(name, {}) == nullptr ? 0 : number(name);
}

bool SampleTensors::is(std::string_view flag) const {
  const Json* value = find(flag, {});
  return value != nullptr && value->is_boolean() && value->get<bool>();
}

std::int64_t SampleTensors::entries(std::string_view list, std::string_view part) const {
  const Json* value = find(list, part);
  return value != nullptr && value->is_array() ? static_cast<std::int64_t>(value->size()) : 0;
}

std::string SampleTensors::kind(std::string_view list, std::int64_t layer) const {
  const Json* value = find(list, {});
  if (value == nullptr || !value->is_array() || layer >= static_cast<std::int64_t>(value->size())) return "";
  const Json& entry = (*value)[static_cast<std::size_t>(layer)];
  return entry.is_string() ? entry.get<std::string>() : "";
}

Shape SampleTensors::shape_of(std::string_view text, std::string_view part) const {
  Shape shape;
  if (text.empty()) return shape;  // a scalar
  for (const std::string_view dimension : split(text, ' ')) {
    std::int64_t sum = 0;
    for (const std::string_view term : split(dimension, '+')) {
      std::int64_t value = 1;
      for (const std::string_view factor : split(term, '*')) {
        std::int64_t one = 0;
        const auto read = std::from_chars(factor.data(), factor.data() + factor.size(), one);
        if (read.ec != std::errc() || read.ptr != factor.data() + factor.size()) one = number(factor, part);
        value = product(value, one);
      }
      if (__builtin_add_overflow(sum, value, &sum))
        throw Error(ErrorKind::argument, "config: sizes are too large to be added");
    }
    if (sum == 0)
      throw Error(ErrorKind::argument, "config: " + std::string(dimension) + ": expected a size, found 0");
    shape.push_back(sum);
  }
  return shape;
}

/// Before it is one of them.
void SampleTensors::check(const NamedShape& tensor) const {
  std::int64_t elements = 8;  // bytes of the largest
  for (const std::int64_t size : tensor.shape) {
    if (size <= 0)
      throw Error(ErrorKind::argument,
                  "config: " + tensor.name + " would have a side of " + std::to_string(size));
    elements = product(elements, size);
  }
  if (tensors_.size() >= most_tensors) {
    throw Error(ErrorKind::argument, "config: expected at most " + std::to_string(most_tensors) +
                                         " tensors; give fewer layers or experts");
  }
}

void SampleTensors::add(const std::string& name, DType dtype, Shape shape) {
  check({name, dtype, shape});
  tensors_.push_back({name, dtype, std::move(shape)});
}

void SampleTensors::add_stored_as(const std::optional<StoredEncoding>& encoding, const std::string& name,
                                  Shape shape) {
  if (!encoding || !quantizes_) return add(name, DType::BF16, std::move(shape));
  check({name, DType::BF16, shape});
  add_stored(tensors_, *encoding, name, shape);
}

void SampleTensors::add_scaled(const std::string& name, Shape shape) {
  add_stored_as(rest_, name, std::move(shape));
}

void SampleTensors::add_expert(const std::string& name, Shape shape) {
  add_stored_as(experts_, name, std::move(shape));
}

void SampleTensors::add(const std::string& prefix, std::span<const SampleRow> rows, std::string_view part) {
  constexpr std::string_view placeholder = "{expert}";
  const std::size_t at = prefix.find(placeholder);
  const auto add_one = [&](const SampleRow& row, const std::string& name) {
    Shape shape = shape_of(row.shape, part);
    switch (row.stored) {
      case StoredAs::bf16:
        return add(name, DType::BF16, std::move(shape));
      case StoredAs::f32:
        return add(name, DType::F32, std::move(shape));
      case StoredAs::i64:
        return add(name, DType::I64, std::move(shape));
      case StoredAs::scaled:
        if (at == std::string::npos) return add_scaled(name, std::move(shape));
        [[fallthrough]];
      case StoredAs::experts:
        return add_expert(name, std::move(shape));
    }
  };
  if (at == std::string::npos) {
    for (const SampleRow& row : rows) add_one(row, prefix + std::string(row.name));
    return;
  }
  const std::int64_t experts = number("experts", part);
  for (std::int64_t expert = 0; expert < experts; ++expert) {
    std::string with_number = prefix;
    with_number.replace(at, placeholder.size(), std::to_string(expert));
    for (const SampleRow& row : rows) add_one(row, with_number + std::string(row.name));
  }
}

}  // namespace shardwright
