#include "planner/lora/lora_places.h"

#include <utility>

#include "planner/error.h"

namespace shardwright {
namespace {

constexpr std::string_view weight_end = ".weight";
constexpr std::string_view expert_variable = "{expert}";
constexpr std::string_view automodel = "automodel";
constexpr std::string_view transformers = "transformers";
constexpr std::string_view huggingface = "huggingface";

std::string without_start(const std::string& text, std::string_view start) {
  return text.starts_with(start) ? text.substr(start.size()) : text;
}

/// The family's table for HF names that begin so.
std::shared_ptr<const WeightMap> map_for_beginning(const Model& family, std::string_view beginning,
                                                   std::string_view layout) {
  Catalog shows_names;
  shows_names.tensors.push_back({std::string(beginning), DType::BF16, {}, {}});
  return std::make_shared<WeightMap>(weight_map_for(shows_names, family.family, layout));
}

/// The weight by the name that the family's table has for it: some have MTP beside the model.
std::string in_the_table(const LoraSpelling& spelling, const std::string& weight) {
  const std::string beside = without_start(weight, "model.");
  const bool is_beside = beside.starts_with("mtp.") && spelling.family().text_prefix.empty() &&
                         !hf_names_of(spelling.released(), beside, 0).empty();
  return is_beside ? beside : weight;
}

/// The modules of a stack of experts as nemo-automodel calls them.
std::vector<std::string> automodel_modules(const LoraSpelling& spelling, const std::string& weight) {
  const std::string name = without_start(weight, "model.");
  const std::size_t dot = name.rfind('.');
  const std::string stack = spelling.module_of(spelling.text() + name.substr(0, dot));
  std::vector<std::string> modules;
  for (const std::string& projection : projection_names(name.substr(dot + 1)))
    modules.push_back(stack + "." + std::string(expert_variable) + "." + projection);
  return modules;
}

/// In a model whose names are HF's.
std::optional<LoraPlace> place_among_hf_names(const LoraSpelling& spelling, const std::string& weight) {
  const std::vector<std::string> names = hf_names_of(spelling.map(), weight, -1);
  if (names.empty()) return std::nullopt;
  LoraPlace place{spelling.layout(), spelling.prefix()};
  const bool is_stack = !weight.ends_with(weight_end);
  if (is_stack && spelling.layout() == huggingface &&
      names.front().find(expert_variable) == std::string::npos) {
    place.parameter = names.front();
    place.parts = static_cast<std::int64_t>(projection_names(weight.substr(weight.rfind('.') + 1)).size());
    return place;
  }
  if (is_stack && spelling.layout() == automodel) {
    place.modules = automodel_modules(spelling, weight);
  } else {
    for (const std::string& name : names) place.modules.push_back(spelling.module_of(name));
  }
  place.parts = static_cast<std::int64_t>(place.modules.size());
  return place;
}

/// In a model of transformers, by way of the name that the released checkpoint has.
std::optional<LoraPlace> place_in_transformers(const LoraSpelling& spelling, const std::string& weight) {
  const bool is_stack = !weight.ends_with(weight_end);
  const std::vector<std::string> names = hf_names_of(spelling.released(), weight, is_stack ? 0 : -1);
  if (names.empty()) return std::nullopt;
  const std::string released = text_beginnings(spelling.family()).front();
  const std::string& name = names.front();
  const std::vector<NameMatch> found = native_matches_of(
      spelling.map(), name.starts_with(released) ? spelling.text() + name.substr(released.size()) : name);
  if (found.empty()) return std::nullopt;
  const std::string& fqn = found.front().fqn;
  LoraPlace place{spelling.layout(), spelling.prefix()};
  if (is_stack) {
    place.parameter = fqn;
    place.parts = static_cast<std::int64_t>(projection_names(weight.substr(weight.rfind('.') + 1)).size());
  } else {
    place.modules = {spelling.module_of(fqn)};
    place.part = found.front().number;
    place.of = static_cast<std::int64_t>(hf_names_of(spelling.map(), fqn, 0).size());
  }
  return place;
}

void add_rule(WeightMap& map, const std::string& hf, const std::string& native, const std::string& axes,
              bool repeats, bool rest_is_zero) {
  Rule rule{NamePattern(hf), NamePattern(native)};
  if (!axes.empty()) rule.axes = AxisExpression(axes);
  rule.repeats = repeats;
  rule.rest_is_zero = rest_is_zero;
  map.rules.push_back(std::move(rule));
}

/// "(1/2 r)", or "r" where it is all.
std::string part_of(const char* axis, std::int64_t part, std::int64_t of) {
  if (of == 1) return axis;
  return "(" + std::to_string(part) + "/" + std::to_string(of) + " " + axis + ")";
}

}  // namespace

LoraSpelling::LoraSpelling(const Model& family, std::string_view layout, std::string text,
                           std::string_view prefix)
    : family_(&family), layout_(layout), text_(std::move(text)), prefix_(prefix) {}

const WeightMap& LoraSpelling::released() const {
  if (released_ == nullptr)
    released_ = map_for_beginning(*family_, text_beginnings(*family_).front(), automodel);
  return *released_;
}

const WeightMap& LoraSpelling::map() const {
  if (map_ == nullptr) {
    map_ = map_for_beginning(*family_, text_.empty() ? "layers." : text_,
                             layout_ == transformers ? transformers : automodel);
  }
  return *map_;
}

std::string LoraSpelling::module_of(std::string_view weight) const {
  if (weight.ends_with(weight_end)) weight.remove_suffix(weight_end.size());
  return prefix_ + std::string(weight);
}

std::vector<const Model*> lora_families(const std::string& model) {
  const std::string name = model == "auto" ? "" : family_named(model);
  std::vector<const Model*> families;
  std::string known;
  for (const Model& one : models()) {
    if (!one.takes_lora) continue;
    known += (known.empty() ? "" : ", ") + std::string(one.family);
    if (name.empty() || one.family == name) families.push_back(&one);
  }
  if (families.empty()) {
    throw Error(ErrorKind::argument,
                "LoRA adapters of " + name +
                    " cannot be loaded or saved: its modules are not those of a file one "
                    "by one. Known: " +
                    known);
  }
  return families;
}

std::vector<std::string> text_beginnings(const Model& family) {
  if (family.text_prefix.empty()) return {"model."};
  return {std::string(family.text_prefix) + "model.", "model.", ""};
}

std::string LoraPlace::stack() const { return prefix + parameter.substr(0, parameter.rfind('.')); }

std::optional<LoraPlace> place_of(const LoraSpelling& spelling, const std::string& weight) {
  const std::string name = in_the_table(spelling, weight);
  return spelling.layout() == transformers ? place_in_transformers(spelling, name)
                                           : place_among_hf_names(spelling, name);
}

std::string of_expert(const std::string& pattern, std::int64_t expert) {
  const std::size_t at = pattern.find(expert_variable);
  if (at == std::string::npos) return pattern;
  return std::string(pattern).replace(at, expert_variable.size(), std::to_string(expert));
}

std::string lora_tensor(const std::string& module, char letter) {
  return module + ".lora_" + letter + std::string(weight_end);
}

std::int64_t file_rank(const LoraPair& pair, const LoraPlace& place, bool spread) {
  if (!spread || place.is_parameter()) return pair.rank();
  return pair.rank() * place.of / place.parts;
}

void add_lora_rules(WeightMap& map, const LoraPlace& place, const LoraFit& fit, const std::string& key_of_a,
                    const std::string& key_of_b, bool stacked) {
  if (place.is_parameter()) {
    const std::string& of_inputs = fit.legacy ? key_of_b : key_of_a;
    const std::string& of_outputs = fit.legacy ? key_of_a : key_of_b;
    add_rule(map, lora_tensor(fit.wrapper, 'A'), of_inputs,
             fit.legacy ? "(e r) o -> e r o" : "(e r) i -> e i r", false, false);
    add_rule(map, lora_tensor(fit.wrapper, 'B'), of_outputs,
             fit.legacy ? "i (r e) -> e i r" : "o (r e) -> e r o", false, false);
    return;
  }
  if (place.of > 1) {  // the trainer's pair is a part of the module's
    const std::string ranks = fit.spread ? part_of("r", place.part, place.of) : "r";
    const std::string& module = place.modules.front();
    add_rule(map, lora_tensor(module, 'A'), key_of_a, ranks + " i -> r i", false, fit.spread);
    add_rule(map, lora_tensor(module, 'B'), key_of_b,
             part_of("o", place.part, place.of) + " " + ranks + " -> o r", false, fit.spread);
    return;
  }
  for (std::int64_t part = 0; part < place.parts; ++part) {
    const std::string& module = place.modules[static_cast<std::size_t>(part)];
    const std::string ranks = fit.spread ? part_of("r", part, place.parts) : "r";
    const std::string outputs = part_of("o", part, place.parts);
    const std::string a = stacked ? "{expert} i " + ranks : ranks + " i";
    const std::string b = stacked ? "{expert} " + ranks + " " + outputs : outputs + " " + ranks;
    const bool is_same = !stacked && place.parts == 1;
    add_rule(map, lora_tensor(module, 'A'), key_of_a, is_same ? "" : "r i -> " + a, part > 0 && !fit.spread,
             false);
    add_rule(map, lora_tensor(module, 'B'), key_of_b, is_same ? "" : "o r -> " + b, false, fit.spread);
  }
}

WeightMap lora_map(std::string_view layout) {
  WeightMap map;
  map.family = "these LoRA tensors";
  map.layout = layout;
  return map;
}

}  // namespace shardwright
