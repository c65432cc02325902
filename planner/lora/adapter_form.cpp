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
    if (place.is_parameter()) {
      targets.parameters.insert(place.parameter);
      add(place.parameter);
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
    const std::vector<std::string> texts = text_beginnings(family);
    const LoraSpelling spelling(family, asked.layout,
                                asked.text_only && texts.size() > 1 ? texts[1] : texts[0]);
    for (const LoraPair& pair : pairs) {
      std::optional<LoraPlace> place = place_of(spelling, pair.weight);
      const std::string both = pair.a.fqn + " and " + pair.b.fqn;
      if (place) {
        places.push_back(std::move(*place));
      } else {
        const bool is_mtp = pair.weight.find(".mtp.") != std::string::npos;
        problems.add(both + ": layout '" + asked.layout + "' has no place for " + pair.weight +
                     "; expected a weight of the model" +
                     (is_mtp ? ", or layout=\"huggingface\", which has MTP" : ""));
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
  for (const LoraPlace& place : places) wrapped[place.stack()] += place.is_parameter() ? 1 : 0;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const LoraPlace& place = places[i];
    LoraFit fit{is_spread(place), "", asked.sense == WrapperSense::legacy};
    if (place.is_parameter())
      fit.wrapper = place.stack() + (wrapped[place.stack()] > 1 && place.parts > 1 ? ".base_layer" : "");
    add_lora_rules(form.map, place, fit, pairs[i].a.fqn, pairs[i].b.fqn, pairs[i].stacked());
  }
  return form;
}

}  // namespace shardwright
