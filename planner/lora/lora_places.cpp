#include "planner/lora/lora_places.h"

#include <algorithm>
#include <utility>

#include "planner/error.h"
#include "planner/names/rule_pieces.h"

namespace shardwright {
namespace {

constexpr std::string_view expert_variable = "{expert}";
constexpr std::string_view automodel = "automodel";
constexpr std::string_view transformers = "transformers";
constexpr std::string_view huggingface = "huggingface";

std::string without_start(const std::string& text, std::string_view start) {
  return text.starts_with(start) ? text.substr(start.size()) : text;
}

/// The layout of trainers' tensors.
std::string_view trainers_layout(const Model& family) {
  return has_lora_layout(family, automodel) ? automodel : transformers;
}

/// The family's table for HF names whose text part begins so.
std::shared_ptr<const WeightMap> map_for_beginning(const Model& family, std::string_view text,
                                                   std::string_view layout) {
  Catalog shows_names;
  shows_names.tensors.push_back({std::string(text) + "layers.", DType::BF16, {}, {}});
  return std::make_shared<WeightMap>(weight_map_for(shows_names, family.family, layout));
}

/// The weight by the name that the family's table has for it: some have MTP beside the model.
std::string in_the_table(const LoraSpelling& spelling, const std::string& weight) {
  const std::string beside = without_start(weight, "model.");
  const bool is_beside = beside.starts_with("mtp.") && spelling.family().text_prefix.empty() &&
                         !hf_names_of(spelling.released(), beside, 0).empty();
  return is_beside ? beside : weight;
}

bool is_stack(const std::string& weight) { return !weight.ends_with(weight_end); }

std::string stack_word(const std::string& weight) { return weight.substr(weight.rfind('.') + 1); }

/// How many projections a stack of experts joins: one tensor of the files may hold several of them.
std::int64_t projections_of(const std::string& weight, const std::vector<std::string>& hf_names) {
  if (hf_names.size() == 1 && hf_names.front().find(expert_variable) == std::string::npos)
    return static_cast<std::int64_t>(projection_names(stack_word(weight)).size());
  return static_cast<std::int64_t>(hf_names.size());
}

/// The modules of a stack of experts as nemo-automodel calls them. Experts without gates have "up_proj"
/// alone.
std::vector<std::string> automodel_modules(const LoraSpelling& spelling, const std::string& weight,
                                           const std::vector<std::string>& hf_names) {
  constexpr std::string_view layers = "layers.";
  const std::string own = weight.substr(0, weight.rfind('.'));
  const std::size_t at = own.find(layers);
  const std::size_t hf_at = hf_names.front().find(layers);
  const bool has_hf_start =
      spelling.family().lora_modules == huggingface && at != std::string::npos && hf_at != std::string::npos;
  const std::string stack =
      spelling.module_of(has_hf_start ? hf_names.front().substr(0, hf_at) + own.substr(at) : own);
  std::vector<std::string> names = projection_names(stack_word(weight));
  if (hf_names.size() == 1) names.erase(names.begin(), names.end() - 1);
  std::vector<std::string> modules;
  for (const std::string& projection : names)
    modules.push_back(stack + "." + std::string(expert_variable) + "." + projection);
  return modules;
}

/// Sides that fit any table's rows of matrices of experts: dimensions divide into halves.
constexpr std::int64_t some_experts = 2;
constexpr std::int64_t some_features = 12;

/// The dimension of an HF tensor of experts that runs along the native stack's dimension `native`; -1: none.
int hf_dimension_of(const WeightMap& map, const std::string& fqn, const std::string& hf_name, int native) {
  for (const Piece& piece : pieces_of(map, fqn, {some_experts, some_features, some_features})) {
    if (piece.hf_name != hf_name) continue;
    const std::vector<int> dimensions = dimensions_of(piece);
    const auto found = std::find(dimensions.begin(), dimensions.end(), native);
    return found == dimensions.end() ? -1 : static_cast<int>(found - dimensions.begin());
  }
  return -1;
}

/// The dimension of an HF tensor of experts that runs along the outputs; the trainer has [experts, in, out].
int hf_outputs(const LoraSpelling& spelling, const std::string& weight, const std::string& hf_name) {
  return hf_dimension_of(spelling.released(), weight, hf_name, 2);
}

/// The row of the table that has the weight; null: none.
const Rule* row_of(const WeightMap& map, const std::string& weight) {
  const auto own = std::find_if(map.rules.begin(), map.rules.end(),
                                [&](const Rule& rule) { return rule.native.match(weight).has_value(); });
  return own == map.rules.end() ? nullptr : &*own;
}

/// Whether a row of the table, and not "all else keeps its name", has the weight.
bool is_of_the_model(const WeightMap& map, const std::string& weight) {
  const Rule* own = row_of(map, weight);
  return own != nullptr && (own->known || own->hf.text() != "{*}");
}

/// Notes which rows of an HF matrix are the weight's, where a row of the table gives it a part of that.
/// Returns false for rows in another order, or a part of the columns.
bool note_rows(const WeightMap& map, const std::string& weight, LoraPlace& place) {
  const Rule* own = row_of(map, weight);
  if (own == nullptr || own->axes.is_identity()) return true;
  constexpr std::string_view arrow = " -> ";
  constexpr std::string_view columns = " i";
  const std::string& text = own->axes.text();
  const std::size_t at = text.find(arrow);
  const std::string hf = text.substr(0, at);
  const std::string native = text.substr(at + arrow.size());
  if (!own->axes.takes_a_part() || !hf.ends_with(columns) || !native.ends_with(columns)) return false;
  place.rows = hf.substr(0, hf.size() - columns.size());
  place.own_rows = native.substr(0, native.size() - columns.size());
  place.of = 0;
  for (const Rule& rule : map.rules) {
    if (rule.hf.text() != own->hf.text()) continue;
    if (&rule == own) place.part = place.of;
    ++place.of;
  }
  return true;
}

/// In a model whose names are HF's.
std::optional<LoraPlace> place_among_hf_names(const LoraSpelling& spelling, const std::string& weight) {
  const std::vector<std::string> names = hf_names_of(spelling.released(), weight, -1);
  if (names.empty()) return std::nullopt;
  LoraPlace place{spelling.layout(), spelling.prefix()};
  place.parts = is_stack(weight) ? projections_of(weight, names) : static_cast<std::int64_t>(names.size());
  if (is_stack(weight) && names.front().find(expert_variable) == std::string::npos) {
    place.parameters = names;
    place.is_transposed = hf_outputs(spelling, weight, names.front()) == 2;
    place.comes_first = place.parts > 1;
    return place;
  }
  for (const std::string& name : names) place.modules.push_back(spelling.module_of(name));
  if (!is_stack(weight) && !note_rows(spelling.released(), weight, place)) return std::nullopt;
  return place;
}

/// In a model of transformers, by way of HF's name.
std::optional<LoraPlace> place_in_transformers(const LoraSpelling& spelling, const std::string& weight) {
  const std::vector<std::string> names = hf_names_of(spelling.released(), weight, is_stack(weight) ? 0 : -1);
  if (names.empty()) return std::nullopt;
  const std::string& name = names.front();
  std::vector<NameMatch> found = native_matches_of(spelling.transformers(), name);
  std::erase_if(found, [](const NameMatch& one) { return one.rule->only_read; });  // a tied head
  if (found.size() != 1) return std::nullopt;
  const std::string& fqn = found.front().fqn;
  LoraPlace place{spelling.layout(), spelling.prefix()};
  if (is_stack(weight)) {
    place.parameters = {fqn};
    const std::vector<std::string> of_experts = hf_names_of(spelling.released(), weight, -1);
    place.parts = projections_of(weight, of_experts);
    place.comes_first = projection_names(stack_word(weight)).size() > 1;
    place.is_transposed =
        hf_dimension_of(spelling.transformers(), fqn, name, 2) == hf_outputs(spelling, weight, name);
  } else {
    if (spelling.released().layout != transformers && !note_rows(spelling.released(), weight, place))
      return std::nullopt;
    place.modules = {spelling.module_of(fqn)};
    place.part = found.front().number;
    place.of = static_cast<std::int64_t>(hf_names_of(spelling.transformers(), fqn, 0).size());
  }
  return place;
}

/// In nemo-automodel's own files. What its adapters have no name for keeps the trainer's.
std::optional<LoraPlace> place_in_automodel(const LoraSpelling& spelling, const std::string& weight) {
  const std::string_view modules = spelling.family().lora_modules;
  std::optional<LoraPlace> place = modules == transformers && !is_stack(weight)
                                       ? place_in_transformers(spelling, weight)
                                       : place_among_hf_names(spelling, weight);
  if (is_stack(weight) && place) {
    const std::vector<std::string> names = hf_names_of(spelling.released(), weight, -1);
    const bool is_kept = place->is_parameter() || modules == transformers;
    *place = {spelling.layout(), spelling.prefix()};
    if (is_kept) {
      place->kept = weight;
    } else {
      place->modules = automodel_modules(spelling, weight, names);
      place->parts = static_cast<std::int64_t>(place->modules.size());
    }
  } else if (!place || place->of > 1 || modules == automodel) {
    if (!place && modules != transformers) return std::nullopt;
    place = LoraPlace{spelling.layout(), spelling.prefix()};
    place->modules = {spelling.module_of(weight)};
  }
  return place;
}

/// HF's names of a weight that the trainer calls as transformers' model does, where a row of the trainer's
/// layout for all else in the text part would put that part's prefix before it once more. None for any other.
std::vector<std::string> hf_names_by_transformers(const LoraSpelling& spelling, const std::string& weight) {
  const Rule* own = row_of(spelling.released(), weight);
  if (own == nullptr || own->known || own->hf.text() == "{*}") return {};
  if (!has_lora_layout(spelling.family(), transformers)) return {};
  std::vector<std::string> names = hf_names_of(spelling.whole_transformers(), weight, -1);
  for (std::string& name : names) name = to_checkpoint_spelling(spelling.released().dialect, name);
  return names;
}

/// Of a module of transformers' that is several of HF's, as a peft trainer has it.
std::optional<LoraPlace> place_of_joined(const LoraSpelling& spelling,
                                         const std::vector<std::string>& hf_names) {
  LoraPlace place{spelling.layout(), spelling.prefix()};
  if (spelling.layout() == transformers) {
    const std::vector<NameMatch> found = native_matches_of(spelling.transformers(), hf_names.front());
    if (found.size() != 1) return std::nullopt;
    place.modules = {spelling.module_of(found.front().fqn)};
    return place;
  }
  for (const std::string& name : hf_names) place.modules.push_back(spelling.module_of(name));
  place.parts = static_cast<std::int64_t>(hf_names.size());
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

/// Whether the trainer has a number multiplied in that HF keeps apart: what is added to the one is not added
/// to the other.
bool is_multiplied(const WeightMap& map, const std::string& weight) {
  return std::any_of(map.rules.begin(), map.rules.end(),
                     [&](const Rule& rule) { return rule.multiplier && rule.native.match(weight); });
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
  if (released_ == nullptr) released_ = map_for_beginning(*family_, text_, trainers_layout(*family_));
  return *released_;
}

const WeightMap& LoraSpelling::transformers() const {
  if (transformers_ == nullptr) transformers_ = map_for_beginning(*family_, text_, shardwright::transformers);
  return *transformers_;
}

const WeightMap& LoraSpelling::whole_transformers() const {
  if (whole_transformers_ == nullptr) {
    whole_transformers_ = map_for_beginning(*family_, family_->text_names.front(), shardwright::transformers);
  }
  return *whole_transformers_;
}

std::string LoraSpelling::module_of(std::string_view weight) const {
  if (weight.ends_with(weight_end)) weight.remove_suffix(weight_end.size());
  return prefix_ + std::string(weight);
}

std::vector<const Model*> lora_families(const std::string& model) {
  const std::string name = model == "auto" ? "" : family_named(model);
  std::vector<const Model*> families;
  for (const Model& one : models()) {
    if (name.empty() || one.family == name) families.push_back(&one);
  }
  return families;
}

bool has_lora_layout(const Model& family, std::string_view layout) {
  return layout == huggingface ||
         std::find(family.layouts.begin(), family.layouts.end(), layout) != family.layouts.end();
}

std::string LoraPlace::stack(std::size_t number) const {
  const std::string& parameter = parameters.at(number);
  return prefix + parameter.substr(0, parameter.rfind('.'));
}

std::optional<LoraPlace> place_of(const LoraSpelling& spelling, const std::string& weight) {
  std::string name = in_the_table(spelling, weight);
  if (const std::vector<std::string> names = hf_names_by_transformers(spelling, name); names.size() > 1) {
    return place_of_joined(spelling, names);
  } else if (names.size() == 1) {
    const std::vector<NameMatch> found = native_matches_of(spelling.released(), names.front());
    if (found.size() != 1) return std::nullopt;
    name = found.front().fqn;
  }
  if (!is_of_the_model(spelling.released(), name)) return std::nullopt;
  if (spelling.layout() != automodel && is_multiplied(spelling.released(), name)) return std::nullopt;
  if (spelling.layout() == transformers) return place_in_transformers(spelling, name);
  return spelling.layout() == automodel ? place_in_automodel(spelling, name)
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
  if (!place.kept.empty()) {
    add_rule(map, place.prefix + lora_key(place.kept, 'A'), key_of_a, "", false, false);
    add_rule(map, place.prefix + lora_key(place.kept, 'B'), key_of_b, "", false, false);
    return;
  }
  if (place.is_parameter()) {
    const bool is_swapped = fit.legacy && !place.is_transposed;
    for (std::size_t number = 0; number < fit.wrappers.size(); ++number) {
      const auto count = static_cast<std::int64_t>(fit.wrappers.size());
      const std::string o = part_of("o", static_cast<std::int64_t>(number), count);
      const char of_inputs = is_swapped ? 'B' : 'A';
      const char of_outputs = is_swapped ? 'A' : 'B';
      add_rule(map, lora_tensor(fit.wrappers[number], of_inputs), key_of_a,
               is_swapped ? "i (r e) -> e i r" : "(e r) i -> e i r", number > 0, false);
      add_rule(map, lora_tensor(fit.wrappers[number], of_outputs), key_of_b,
               (is_swapped ? "(e r) o -> e r " : "o (r e) -> e r ") + o, false, false);
    }
    return;
  }
  if (place.of > 1) {  // the trainer's pair is a part of the module's
    const std::string ranks = fit.spread ? part_of("r", place.part, place.of) : "r";
    const std::string& module = place.modules.front();
    const std::string rows = place.rows.empty() ? part_of("o", place.part, place.of) : place.rows;
    const std::string own_rows = place.rows.empty() ? "o" : place.own_rows;
    add_rule(map, lora_tensor(module, 'A'), key_of_a, ranks + " i -> r i", false, fit.spread);
    add_rule(map, lora_tensor(module, 'B'), key_of_b, rows + " " + ranks + " -> " + own_rows + " r", false,
             fit.spread);
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
