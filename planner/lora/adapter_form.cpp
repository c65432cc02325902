#include "planner/lora/adapter_form.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "planner/problems.h"

namespace shardwright {
namespace {

using nlohmann::ordered_json;

const Model& family_of(const std::vector<LoraPair>& pairs, const std::string& model) {
  std::vector<std::string> weights;
  for (const LoraPair& pair : pairs) weights.push_back(pair.weight);
  const std::string family =
      model == "auto" ? weight_map_by_native_names(weights, "automodel", /*asks=*/true).family : model;
  return *lora_families(family).front();
}

/// The way that the family's modules are named in the file: that in which it has all of the weights.
LoraSpelling spelling_for(const Model& family, const std::vector<LoraPair>& pairs,
                          const AdapterAsked& asked) {
  if (!has_lora_layout(family, asked.layout)) {
    const std::string name(family.family);
    throw Error(ErrorKind::argument,
                "layout '" + asked.layout + "': no trainer or model of " + name + " has it; pass " +
                    (has_lora_layout(family, "transformers") ? "layout=\"transformers\" or " : "") +
                    "layout=\"huggingface\"");
  }
  std::vector<LoraSpelling> spellings;
  for (const std::string_view text : family.text_names)
    spellings.emplace_back(family, asked.layout, std::string(text));
  if (!family.text_prefix.empty())  // the trainer's names say nothing of it
    return asked.text_only ? spellings[1] : spellings[0];
  const auto fits = [&](const LoraSpelling& spelling) {
    return std::all_of(pairs.begin(), pairs.end(),
                       [&](const LoraPair& pair) { return place_of(spelling, pair.weight).has_value(); });
  };
  const auto found = std::find_if(spellings.begin(), spellings.end(), fits);
  return found == spellings.end() ? spellings.front() : *found;
}

/// Whether the adapter's pair has the ranks of several of the trainer's side by side.
bool is_spread(const LoraPlace& place) { return place.of > 1; }

/// A number of JSON, whole where it is.
ordered_json number(double value) {
  constexpr double most = 9007199254740992;  // from here on, doubles are no longer all whole numbers
  if (std::trunc(value) == value && std::abs(value) < most) return static_cast<std::int64_t>(value);
  return value;
}

/// A pattern, as peft reads those of its config, that fits this name alone.
std::string pattern_of(const std::string& name) {
  std::string pattern = "^";
  for (const char c : name) {
    if (std::string_view("()[]{}?*+-|^$\\.&~# ").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

/// A rank and an alpha of the adapter, by the module or parameter that has them, named as in the model.
struct Targets {
  std::map<std::string, std::int64_t> ranks;
  std::map<std::string, double> alphas;
  std::set<std::string> parameters;
};

Targets targets_of(const std::vector<LoraPair>& pairs, const std::vector<LoraPlace>& places,
                   const AdapterAsked& asked) {
  Targets targets;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const LoraPlace& place = places[i];
    const double of = static_cast<double>(place.of);
    const auto add = [&](const std::string& name) {
      targets.ranks[name] = file_rank(pairs[i], place, is_spread(place));
      targets.alphas[name] = asked.alpha * (asked.use_rslora ? std::sqrt(of) : of);
    };
    if (!place.kept.empty()) add(place.kept);
    for (const std::string& parameter : place.parameters) {
      targets.parameters.insert(parameter);
      add(parameter);
    }
    for (std::int64_t expert = 0; expert < (place.is_parameter() ? 0 : pairs[i].experts()); ++expert) {
      for (const std::string& module : place.modules)
        add(of_expert(module, expert).substr(place.prefix.size()));
    }
  }
  return targets;
}

/// adapter_config.json. Modules whose rank or alpha is not the most frequent rank, or the trainer's alpha,
/// get a pattern of their own.
std::string config_of(const Targets& targets, const AdapterAsked& asked) {
  std::map<std::int64_t, std::int64_t> count;
  for (const auto& [name, rank] : targets.ranks) ++count[rank];
  const std::int64_t r = std::max_element(count.begin(), count.end(), [](const auto& a, const auto& b) {
                           return a.second < b.second;
                         })->first;
  ordered_json modules = ordered_json::array();
  ordered_json ranks = ordered_json::object();
  ordered_json alphas = ordered_json::object();
  for (const auto& [name, rank] : targets.ranks) {
    if (!targets.parameters.contains(name)) modules.push_back(name);
    if (rank != r) ranks[pattern_of(name)] = rank;
  }
  for (const auto& [name, alpha] : targets.alphas) {
    if (alpha != asked.alpha) alphas[pattern_of(name)] = number(alpha);
  }
  ordered_json config = {
      {"peft_type", "LORA"},
      // A version of peft that has ParamWrappers in that sense.
      {"peft_version", asked.sense == WrapperSense::modern ? "0.19.1" : "0.19.0"},
      {"task_type", asked.task_type ? ordered_json(*asked.task_type) : ordered_json()},
      {"base_model_name_or_path", asked.base_model},
      {"r", r},
      {"lora_alpha", number(asked.alpha)},
      {"lora_dropout", 0.0},
      {"bias", "none"},
      {"use_rslora", asked.use_rslora},
      {"use_dora", false},
      {"fan_in_fan_out", false},
      {"inference_mode", true},
      {"init_lora_weights", true},
      {"modules_to_save", nullptr},
      {"target_modules", modules},
      {"target_parameters", targets.parameters.empty() ? ordered_json() : ordered_json(targets.parameters)},
      {"rank_pattern", ranks},
      {"alpha_pattern", alphas},
  };
  return config.dump(2, ' ', /*ensure_ascii=*/true, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace

AdapterForm adapter_form(const std::vector<NativeTensor>& tensors, const AdapterAsked& asked) {
  if (std::find(std::begin(lora_layouts), std::end(lora_layouts), asked.layout) == std::end(lora_layouts)) {
    throw Error(ErrorKind::argument,
                "layout: expected one of transformers, huggingface, automodel, found '" + asked.layout + "'");
  }
  Problems problems;
  const std::vector<LoraPair> pairs = lora_pairs(tensors, problems.lines);
  std::vector<LoraPlace> places;
  if (!pairs.empty()) {
    const Model& family = family_of(pairs, asked.model);
    const LoraSpelling spelling = spelling_for(family, pairs, asked);
    for (const LoraPair& pair : pairs) {
      std::optional<LoraPlace> place = place_of(spelling, pair.weight);
      const std::string both = pair.a.fqn + " and " + pair.b.fqn;
      if (place) {
        places.push_back(std::move(*place));
      } else {
        const bool has_hf_place =
            place_of(LoraSpelling(family, "huggingface", spelling.text()), pair.weight).has_value();
        problems.add(both + ": layout '" + asked.layout + "' has no place for " + pair.weight +
                     "; expected a weight of the model" +
                     (has_hf_place ? ", or layout=\"huggingface\", which has one for it" : ""));
      }
      if (pair.a.dtype != pair.b.dtype) {
        problems.add(both + ": expected one dtype, found " + std::string(name_of(pair.a.dtype)) + " and " +
                     std::string(name_of(pair.b.dtype)));
      }
    }
  }
  problems.throw_if_any(ErrorKind::mismatch,
                        "the state dict makes no LoRA adapter; nothing has been written:");
  AdapterForm form{lora_map(asked.layout), config_of(targets_of(pairs, places, asked), asked)};
  std::map<std::string, int> wrapped;  // parameters of a module that have wrappers
  for (const LoraPlace& place : places) {
    for (std::size_t n = 0; n < place.parameters.size(); ++n) ++wrapped[place.stack(n)];
  }
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const LoraPlace& place = places[i];
    LoraFit fit{is_spread(place), {}, asked.sense == WrapperSense::legacy};
    for (std::size_t n = 0; n < place.parameters.size(); ++n) {
      const bool is_inner = wrapped[place.stack(n)] > 1 && place.comes_first;
      fit.wrappers.push_back(place.stack(n) + (is_inner ? ".base_layer" : ""));
    }
    if (!place.own_rows.empty()) form.map.sizes.emplace(place.own_rows, pairs[i].outputs());
    add_lora_rules(form.map, place, fit, pairs[i].a.fqn, pairs[i].b.fqn, pairs[i].stacked());
  }
  return form;
}

}  // namespace shardwright
