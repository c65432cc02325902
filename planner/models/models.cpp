#include <algorithm>
#include <array>
#include <cctype>
#include <iterator>
#include <optional>
#include <set>

#include "planner/error.h"
#include "planner/models/config.h"
#include "planner/models/families.h"
#include "planner/models/known_models.h"
#include "planner/names/held_tensors.h"
#include "planner/names/rule_pieces.h"

namespace shardwright {
namespace {

constexpr std::string_view huggingface = "huggingface";
constexpr std::string_view torchtitan = "torchtitan";
constexpr std::string_view transformers = "transformers";

/// Ends of HF names: see Model::keeps_f32.
constexpr std::array<std::string_view, 6> wide = {
    ".e_score_correction_bias", ".expert_bias", ".router_bias", ".A_log", ".dt_bias", ".mixer.D"};

std::string joined(const std::vector<std::string_view>& words) {
  std::string text;
  for (std::string_view word : words) text += (text.empty() ? "" : ", ") + std::string(word);
  return text;
}

std::string known_families() {
  std::string text;
  for (const Model& model : models()) {
    text += (text.empty() ? "" : ", ") + std::string(model.family);
  }
  return text;
}

bool contains(const std::vector<std::string_view>& words, std::string_view word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

bool has_mark(const Model& model, const Catalog& catalog) {
  return std::any_of(model.hf_marks.begin(), model.hf_marks.end(), [&](std::string_view mark) {
    const bool is_pattern = mark.find('{') != std::string_view::npos;
    const NamePattern pattern(is_pattern ? mark : "");
    return std::any_of(catalog.tensors.begin(), catalog.tensors.end(), [&](const SourceTensor& tensor) {
      return is_pattern ? pattern.match(tensor.name).has_value()
                        : tensor.name.find(mark) != std::string::npos;
    });
  });
}

/// The families that a checkpoint may be of.
std::vector<const Model*> candidates(const Catalog& catalog) {
  const std::string model_type = model_type_of(catalog);
  std::vector<const Model*> found;
  for (const Model& model : models()) {
    if (model_type.empty() ? has_mark(model, catalog) : contains(model.model_types, model_type))
      found.push_back(&model);
  }
  return found;
}

/// What to do about a family that no table has in this layout.
std::string other_ways(std::string_view layout) {
  const std::string own = "take the checkpoint's own tensors with layout=\"huggingface\"";
  return layout == transformers
             ? "or " + own
             : "take transformers' tensors with layout=\"transformers\" (of any model that the installed "
               "package transformers knows), or " +
                   own;
}

const Model& recognise(const Catalog& catalog, std::string_view layout) {
  const std::vector<const Model*> found = candidates(catalog);
  if (found.size() == 1) return *found.front();
  if (catalog.files.size() == 1 && catalog.files.front().name == "adapter_model.safetensors") {
    throw Error(ErrorKind::mismatch, catalog.directory.string() +
                                         ": holds a LoRA adapter and no model: load it with load_lora, or "
                                         "give the directory of the model that it is for");
  }
  const std::string model_type = model_type_of(catalog);
  throw Error(
      ErrorKind::mismatch,
      catalog.directory.string() + ": cannot tell which model this is: " +
          (model_type.empty() ? "config.json names no model_type and the tensor names fit " +
                                    std::string(found.empty() ? "no known model" : "more than one model")
                              : "config.json says model_type " + model_type + ", which is not known") +
          ". Known: " + known_families() + ". Name the family with model=..., " + other_ways(layout));
}

/// The numbers of a config that the family's tables speak of.
void add_sizes(const Model& model, const Catalog& catalog, Sizes& sizes) {
  for (const std::string_view name : model.sizes) {
    if (const auto value = number_in_config(catalog, name)) sizes.emplace(name, *value);
  }
}

const Model& named(std::string_view family, std::string_view layout = transformers) {
  for (const Model& model : models()) {
    if (model.family == family || contains(model.model_types, family)) return model;
  }
  throw Error(ErrorKind::argument, "model '" + std::string(family) + "' is not known. Known: auto; " +
                                       known_families() + ". Name one of them, " + other_ways(layout));
}

WeightMap table_of(const Model& model, std::string_view layout, const Catalog& catalog) {
  WeightMap map = model.weight_map(layout, catalog);
  map.family = model.family;
  map.layout = layout;
  if (model.keeps_f32) map.wide.assign(wide.begin(), wide.end());
  add_sizes(model, catalog, map.sizes);
  map.layer_count = std::max<std::int64_t>(0, number_in_config(catalog, "num_hidden_layers").value_or(0));
  choose_alternatives(map, catalog);
  return map;
}

/// The checkpoint's own names and shapes, decoded, with what the family knows of them: which names there are,
/// and how else they are spelled. The trainer may spell them as the checkpoint does, as the rules do, or
/// without the text part's prefix.
WeightMap own_names(const Model& model, const Catalog& catalog) {
  const WeightMap names = table_of(model, model.layouts.front(), catalog);
  WeightMap map = names;
  map.layout = huggingface;
  map.rules.clear();
  map.without_place.clear();
  std::set<std::string> spellings;
  const auto add = [&](const Rule& like, const std::string& native, bool known) {
    if (!spellings.insert(native).second) return;
    Rule& rule = map.rules.emplace_back(Rule{like.hf, NamePattern(native)});
    rule.known = known;
    rule.quantized = like.quantized;
  };
  for (const Rule& rule : names.rules) {
    if (rule.known) add(rule, to_checkpoint_spelling(map.dialect, rule.hf.text()), true);
  }
  for (const NamePattern& pattern : names.without_place)
    add(Rule{pattern, pattern}, to_checkpoint_spelling(map.dialect, pattern.text()), true);
  // These find sources; the place that a tensor of the checkpoint has is the one in its own spelling.
  for (const Rule& rule : names.rules) {
    add(rule, rule.hf.text(), false);
    if (!model.text_prefix.empty() && rule.hf.text().starts_with(model.text_prefix))
      add(rule, rule.hf.text().substr(model.text_prefix.size()), false);
  }
  // Last, as in a checkpoint that lacks "model." too this catches every name.
  for (const Rule& rule : names.rules) {
    if (!rule.known) add(rule, to_checkpoint_spelling(map.dialect, rule.hf.text()), false);
  }
  add(Rule{NamePattern("{*}"), NamePattern("{*}")}, "{*}", false);
  return map;
}

std::vector<std::string_view> known_layouts() {
  std::vector<std::string_view> layouts;
  for (const Model& model : models()) {
    for (const std::string_view layout : model.layouts) {
      if (!contains(layouts, layout)) layouts.push_back(layout);
    }
  }
  layouts.push_back(huggingface);
  return layouts;
}

/// Whether the family's table says that a tensor of that name is made up of others. That it is a part of one
/// says little: a "q_proj" is most families' own.
bool regroups(const WeightMap& map, const std::string& name) {
  return std::any_of(map.rules.begin(), map.rules.end(), [&](const Rule& rule) {
    return rule.known && !rule.axes.is_identity() && !rule.axes.takes_a_part() &&
           rule.native.match(name).has_value();
  });
}

/// Whether the first rule of the family's table for a tensor of that name gives it this name in the files, or
/// another one; nothing: no rule has it. A part that begins with '_' is a trainer's own: rules for whatever
/// stands in a module do not speak of it.
std::optional<bool> is_renamed(const WeightMap& map, const std::string& name) {
  const bool is_private = name.find("._") != std::string::npos;
  for (const Rule& rule : map.rules) {
    if (!rule.known || !rule.native.match(name)) continue;
    if (is_private && rule.native.text().ends_with("{*}")) continue;
    return rule.hf.text() != rule.native.text();
  }
  return std::nullopt;
}

/// One name of those that differ in their numbers alone: of layers, of experts.
std::vector<std::string> one_of_each_kind(const std::vector<std::string>& names) {
  std::set<std::string> seen;
  std::vector<std::string> kinds;
  for (const std::string& name : names) {
    std::string kind;
    for (const char c : name) {
      const bool is_digit = std::isdigit(static_cast<unsigned char>(c)) != 0;
      if (!is_digit || kind.empty() || kind.back() != '0') kind += is_digit ? '0' : c;
    }
    if (seen.insert(kind).second) kinds.push_back(name);
  }
  return kinds;
}

/// The families whose tables give one of these names another one in the files, if that is a name that no
/// family's files have: a trainer's own.
std::vector<const Model*> families_that_alone_rename(const std::vector<std::string>& names,
                                                     std::string_view layout) {
  std::vector<std::pair<const Model*, WeightMap>> tables;
  for (const Model& model : models()) {
    if (contains(model.layouts, layout)) tables.emplace_back(&model, model.weight_map(layout, {}));
  }
  std::vector<const Model*> found;
  for (const std::string& name : names) {
    const auto is_kept = [&](const auto& one) { return is_renamed(one.second, name) == false; };
    if (std::any_of(tables.begin(), tables.end(), is_kept)) continue;
    for (const auto& [model, map] : tables) {
      if (is_renamed(map, name) && std::find(found.begin(), found.end(), model) == found.end())
        found.push_back(model);
    }
  }
  return found;
}

bool has_native_mark(const Model& model, const std::vector<std::string>& names) {
  return std::any_of(model.native_marks.begin(), model.native_marks.end(), [&](std::string_view mark) {
    const NamePattern pattern(mark);
    return std::any_of(names.begin(), names.end(),
                       [&](const std::string& name) { return pattern.match(name).has_value(); });
  });
}

}  // namespace

const std::vector<Model>& models() {
  static const std::vector<Model> all = all_families();
  return all;
}

WeightMap weight_map_for(const Catalog& catalog, std::string_view family, std::string_view layout) {
  if (layout == huggingface) {
    const std::vector<const Model*> found =
        family == "auto" ? candidates(catalog) : std::vector<const Model*>{&named(family)};
    if (found.size() == 1) return own_names(*found.front(), catalog);
    WeightMap map = unchanged_names();
    map.layout = huggingface;
    return map;
  }
  const Model& model = family == "auto" ? recognise(catalog, layout) : named(family, layout);
  for (const auto& [refused, reason] : model.refused) {
    if (layout == refused) {
      throw Error(ErrorKind::argument, "layout '" + std::string(layout) + "' of " +
                                           std::string(model.family) +
                                           " cannot be had: " + std::string(reason));
    }
  }
  if (!contains(model.layouts, layout)) {
    throw Error(ErrorKind::argument, "layout '" + std::string(layout) + "' is not known for " +
                                         std::string(model.family) + ". Known: " + joined(model.layouts) +
                                         ", " + std::string(huggingface));
  }
  return table_of(model, layout, catalog);
}

WeightMap weight_map_for_natives(const std::vector<std::string>& names, std::string_view family,
                                 std::string_view layout) {
  const Model& model = named(family, layout);
  if (layout == huggingface || model.text_names.size() == 1) return weight_map_for({}, family, layout);
  const std::vector<std::string> kinds = one_of_each_kind(names);
  std::optional<WeightMap> likeliest;
  std::ptrdiff_t most = -1;
  const auto consider = [&](const Catalog& shows_names) {
    WeightMap map = weight_map_for(shows_names, family, layout);
    const std::ptrdiff_t known = std::count_if(
        kinds.begin(), kinds.end(), [&](const std::string& name) { return knows_native(map, name); });
    if (known <= most) return;
    most = known;
    likeliest = std::move(map);
  };
  for (const std::string_view text : model.text_names) {
    Catalog shows_names;
    shows_names.tensors.push_back({std::string(text) + "layers.", DType::BF16, {}, {}});
    consider(shows_names);
  }
  consider({});
  return *likeliest;
}

bool has_table(const Catalog& catalog, std::string_view family, std::string_view layout) {
  if (layout == huggingface) return true;
  const std::vector<const Model*> of_checkpoint =
      family == "auto" ? candidates(catalog) : std::vector<const Model*>{};
  return std::any_of(models().begin(), models().end(), [&](const Model& model) {
    const bool is_meant = family == "auto"
                              ? std::any_of(of_checkpoint.begin(), of_checkpoint.end(),
                                            [&](const Model* one) { return one->family == model.family; })
                              : model.family == family || contains(model.model_types, family);
    return is_meant && contains(model.layouts, layout);
  });
}

std::string family_named(std::string_view model) { return std::string(named(model).family); }

void expect_no_other_layout(const WeightMap& map, const std::vector<std::string>& names) {
  const bool is_of_any = map.family == unchanged_names().family;
  const std::vector<std::string> kinds = one_of_each_kind(names);
  const Model* likeliest = nullptr;
  std::string_view layout_of_most;
  std::vector<std::string> most;
  for (const Model& model : models()) {
    if (!is_of_any && map.family != model.family) continue;
    for (const std::string_view layout : model.layouts) {
      if (layout == map.layout) continue;
      const WeightMap other = model.weight_map(layout, {});
      std::vector<std::string> others;
      std::copy_if(kinds.begin(), kinds.end(), std::back_inserter(others), [&](const std::string& name) {
        return is_of_any ? regroups(other, name) : knows_native(other, name) && !knows_native(map, name);
      });
      if (others.size() <= most.size()) continue;
      likeliest = &model;
      layout_of_most = layout;
      most = std::move(others);
    }
  }
  if (likeliest == nullptr) return;
  const std::string layout(layout_of_most);
  throw Error(ErrorKind::mismatch, most.front() + ": is a name of layout " + layout + " of " +
                                       std::string(likeliest->family) + ", found layout " + map.layout +
                                       "; pass layout=\"" + layout +
                                       "\", or take the names as they are with layout=\"huggingface\"");
}

WeightMap weight_map_by_native_names(const std::vector<std::string>& names, std::string_view layout,
                                     bool asks) {
  if (!contains(known_layouts(), layout)) {
    throw Error(ErrorKind::argument,
                "layout '" + std::string(layout) + "' is not known. Known: " + joined(known_layouts()));
  }
  if (layout == huggingface) return unchanged_names();
  const std::vector<std::string> kinds = one_of_each_kind(names);
  std::vector<const Model*> marked;
  std::vector<const Model*> possible;
  for (const Model& model : models()) {
    if (!contains(model.layouts, layout)) continue;
    if (has_native_mark(model, kinds)) marked.push_back(&model);
    const WeightMap map = model.weight_map(layout, {});
    // torchtitan names nothing as the files do.
    const auto changes = [&](const std::string& name) {
      return layout == torchtitan ? knows_native(map, name) : regroups(map, name);
    };
    if (std::any_of(kinds.begin(), kinds.end(), changes)) possible.push_back(&model);
  }
  if (possible.empty()) possible = families_that_alone_rename(kinds, layout);
  if (marked.size() == 1) return weight_map_for_natives(names, marked.front()->family, layout);
  const std::vector<const Model*>& found = marked.empty() ? possible : marked;
  if (found.empty() && !asks) return unchanged_names();
  constexpr std::size_t named_at_most = 4;
  std::string families;
  for (std::size_t i = 0; i < std::min(found.size(), named_at_most); ++i)
    families += (families.empty() ? "" : ", ") + std::string(found[i]->family);
  if (found.size() > named_at_most)
    families += " and " + std::to_string(found.size() - named_at_most) + " more families";
  throw Error(ErrorKind::mismatch,
              "cannot tell which model's names to give these tensors (layout " + std::string(layout) +
                  "): they may be those of " +
                  (found.empty() ? std::string("any family") : families + ", or of another") +
                  ". Say which one with model=" +
                  (asks ? std::string(", one of " + known_families())
                        : ", give a checkpoint of it with template=, or take the names as they are with "
                          "layout=\"huggingface\""));
}

}  // namespace shardwright
