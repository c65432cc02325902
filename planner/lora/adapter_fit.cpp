#include "planner/lora/adapter_fit.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <utility>

namespace shardwright {
namespace {

/// The file's pairs at some modules: in a model they are called so.
constexpr std::array<char, 2> letters = {'A', 'B'};

bool ends_with_name(const std::string& name, const std::string& ending) {
  return name == ending || name.ends_with("." + ending);
}

std::string both(const LoraPair& pair) { return pair.a.fqn + " and " + pair.b.fqn; }

class Fitting {
 public:
  Fitting(const Catalog& catalog, const AdapterRequest& request) : catalog_(catalog), request_(request) {
    for (const std::string& prefix : request.prefixes) {
      for (const Model* family : lora_families(request.model)) {
        for (const std::string_view layout : lora_layouts) {
          if (!has_lora_layout(*family, layout)) continue;
          for (const std::string_view text : family->text_names)
            spellings_.emplace_back(*family, layout, std::string(text), prefix);
        }
      }
    }
  }

  AdapterFit fit(const std::vector<LoraPair>& pairs) {
    std::vector<FittedPair> placed;
    for (const LoraPair& pair : pairs) {
      std::optional<LoraPlace> place = place_of_pair(pair);
      if (!place) {
        problem(both(pair) + ": " + request_.name + " holds nothing for them; found " + some_names(""));
        continue;
      }
      if (fit_.layout.empty()) fit_.layout = place->layout;
      LoraFit how;
      if (place->is_parameter()) {
        how.wrappers = wrappers_of(*place);
        if (how.wrappers.empty()) {
          problem(pair.a.fqn + ": expected a ParamWrapper of " + place->parameters.front() + " in " +
                  request_.name + ", found " + some_names(place->stack()));
          continue;
        }
      }
      placed.push_back({pair, std::move(*place), std::move(how)});
    }
    fit_.map = lora_map(fit_.layout);
    settle_sense(placed);
    for (FittedPair& one : placed) {
      if (!one.place.is_parameter()) {
        one.fit.spread = std::max(one.place.of, one.place.parts) > 1 && is_spread(one);
        expect_one_rank(one);
      } else if (!fit_.sense) {
        continue;
      } else {
        one.fit.legacy = *fit_.sense == WrapperSense::legacy;
      }
      add_lora_rules(fit_.map, one.place, one.fit, one.pair.a.fqn, one.pair.b.fqn, one.pair.stacked());
      fit_.pairs.push_back(std::move(one));
    }
    return std::move(fit_);
  }

 private:
  void problem(std::string line) { fit_.problems.push_back(std::move(line)); }

  /// The place in the spelling that the file has some of the pair's tensors in: most likely that of the last
  /// one.
  std::optional<LoraPlace> place_of_pair(const LoraPair& pair) {
    for (auto spelling = spellings_.begin(); spelling != spellings_.end(); ++spelling) {
      std::optional<LoraPlace> place = place_of(*spelling, pair.weight);
      if (!place || !has_some(*place, pair.experts())) continue;
      std::rotate(spellings_.begin(), spelling, spelling + 1);
      return place;
    }
    return std::nullopt;
  }

  bool has_some(const LoraPlace& place, std::int64_t experts) const {
    if (!place.kept.empty()) {
      return std::any_of(letters.begin(), letters.end(), [&](char letter) {
        return !catalog_.find(place.prefix + lora_key(place.kept, letter)).empty();
      });
    }
    const auto has = [&](const std::string& module) {
      return std::any_of(letters.begin(), letters.end(),
                         [&](char letter) { return !catalog_.find(lora_tensor(module, letter)).empty(); });
    };
    for (std::size_t number = 0; number < place.parameters.size(); ++number) {
      if (has(place.stack(number)) || has(place.stack(number) + ".base_layer")) return true;
    }
    if (place.is_parameter()) return false;
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      for (const std::string& module : place.modules) {
        if (has(of_expert(module, expert))) return true;
      }
    }
    return false;
  }

  /// The modules in the file that are the parameters' ParamWrappers; none if one lacks its own. Where both
  /// parameters of a module have one, peft wraps the wrapper of the first in that of the second.
  std::vector<std::string> wrappers_of(const LoraPlace& place) const {
    std::vector<std::string> wrappers;
    for (std::size_t number = 0; number < place.parameters.size(); ++number) {
      const std::string inner = place.stack(number) + ".base_layer";
      const bool has_inner = std::any_of(letters.begin(), letters.end(), [&](char letter) {
        return !catalog_.find(lora_tensor(inner, letter)).empty();
      });
      const std::vector<std::string>& targets = request_.target_parameters;
      const bool is_target = has_inner || targets.empty() ||
                             std::any_of(targets.begin(), targets.end(), [&](const std::string& target) {
                               return ends_with_name(place.parameters[number], target);
                             });
      if (!is_target) return {};
      wrappers.push_back(has_inner && place.comes_first ? inner : place.stack(number));
    }
    return wrappers;
  }

  /// Tells the sense of the file's ParamWrappers by their shapes, the request and the version that wrote
  /// them.
  void settle_sense(const std::vector<FittedPair>& placed) {
    std::map<std::string, std::set<WrapperSense>> fits;  // by wrapper
    bool has_wrappers = false;
    for (const FittedPair& one : placed) {
      for (const std::string& wrapper : one.fit.wrappers) {
        has_wrappers = true;
        const auto a = catalog_.shape_of(lora_tensor(wrapper, 'A'));
        const auto b = catalog_.shape_of(lora_tensor(wrapper, 'B'));
        if (!a || !b) continue;  // told as missing
        std::set<WrapperSense> found;
        const std::int64_t in = one.pair.inputs();
        const std::int64_t out = one.pair.outputs() / static_cast<std::int64_t>(one.fit.wrappers.size());
        if (a->size() == 2 && b->size() == 2) {
          if ((*a)[1] == in && (*b)[0] == out) found.insert(WrapperSense::modern);
          if (!one.place.is_transposed && (*a)[1] == out && (*b)[0] == in) found.insert(WrapperSense::legacy);
        }
        if (found.empty()) {
          note_neither_sense(one, wrapper, in, out, *a, *b);
        } else if (!one.place.is_transposed) {  // of those, both senses are one
          fits[wrapper] = std::move(found);
        }
      }
    }
    if (has_wrappers && fits.empty() && !request_.sense) {
      fit_.sense = WrapperSense::modern;
    } else if (has_wrappers) {
      fit_.sense = fits.empty() ? request_.sense : sense_of(fits);
    }
  }

  void note_neither_sense(const FittedPair& one, const std::string& wrapper, std::int64_t in,
                          std::int64_t out, const Shape& a, const Shape& b) {
    const auto shapes = [&](std::int64_t of_a, std::int64_t of_b) {
      const std::string rank = "r * " + std::to_string(one.pair.experts());
      return "[" + rank + ", " + std::to_string(of_a) + "] and [" + std::to_string(of_b) + ", " + rank + "]";
    };
    const bool has_legacy = !one.place.is_transposed;
    problem(both(one.pair) + ": " + wrapper + ".lora_A.weight and lora_B.weight in " + request_.path +
            (has_legacy ? " fit neither sense of a ParamWrapper" : " do not fit the parameter") +
            "; expected " + shapes(in, out) +
            (has_legacy ? ", or (peft before 0.19.1) " + shapes(out, in) : "") + ", found " + to_string(a) +
            " and " + to_string(b));
  }

  std::optional<WrapperSense> sense_of(const std::map<std::string, std::set<WrapperSense>>& fits) {
    std::set<WrapperSense> common{WrapperSense::modern, WrapperSense::legacy};
    std::string all;
    for (const auto& [wrapper, senses] : fits) {
      all += (all.empty() ? "" : ", ") + wrapper;
      std::erase_if(common, [&, &fitting = senses](WrapperSense sense) { return !fitting.contains(sense); });
    }
    all += " in " + request_.name + ": ";
    if (common.empty()) {
      std::string lines;
      for (const auto& [wrapper, senses] : fits) {
        if (senses.size() != 1) continue;
        lines += (lines.empty() ? "" : ", ") + wrapper + " only " + std::string(name_of(*senses.begin()));
      }
      problem("the ParamWrappers of " + request_.name + " are not of one sense: " + lines);
      return std::nullopt;
    }
    const std::optional<WrapperSense> wanted =
        request_.sense || common.size() == 1 ? request_.sense : request_.written;
    if (!wanted && common.size() == 2) {
      problem(all +
              "the shapes fit both senses of a ParamWrapper, and the adapter does not say for which version "
              "of peft it is; pass param_wrapper=\"modern\" if peft 0.19.1 or later wrote it, "
              "param_wrapper=\"legacy\" if an earlier one did");
      return std::nullopt;
    }
    if (wanted && !common.contains(*wanted)) {
      problem(all + "expected the sense param_wrapper='" + std::string(name_of(*wanted)) +
              "', found shapes that fit '" + std::string(name_of(*common.begin())) +
              "' only; pass that, or leave it to \"auto\"");
      return std::nullopt;
    }
    return wanted ? wanted : std::optional(*common.begin());
  }

  /// The ranks of what the file has of a pair.
  std::set<std::int64_t> ranks_of(const FittedPair& one, bool of_a_alone) const {
    std::set<std::int64_t> ranks;
    for (std::int64_t expert = 0; expert < one.pair.experts(); ++expert) {
      for (const std::string& module : one.place.modules) {
        for (const char letter : letters) {
          if (of_a_alone && letter == 'B') continue;
          const auto shape = catalog_.shape_of(lora_tensor(of_expert(module, expert), letter));
          if (shape && shape->size() == 2) ranks.insert((*shape)[letter == 'A' ? 0 : 1]);
        }
      }
    }
    return ranks;
  }

  bool is_spread(const FittedPair& one) const {
    const std::int64_t rank = file_rank(one.pair, one.place, true);
    return rank != one.pair.rank() && ranks_of(one, true) == std::set{rank};
  }

  void expect_one_rank(const FittedPair& one) {
    const std::set<std::int64_t> ranks = ranks_of(one, false);
    if (ranks.size() < 2) return;
    std::string found;
    for (const std::int64_t rank : ranks) found += (found.empty() ? "" : ", ") + std::to_string(rank);
    problem(both(one.pair) + ": expected one rank for all modules, " +
            std::to_string(file_rank(one.pair, one.place, one.fit.spread)) + ", found ranks " + found +
            " in " + request_.name +
            "; the trainer's tensor has one rank: pad the smaller with zeros, or train with one rank");
  }

  std::string some_names(const std::string& start) const {
    std::string names;
    std::size_t count = 0;
    for (const SourceTensor& tensor : catalog_.tensors) {
      if (!tensor.name.starts_with(start)) continue;
      if (++count <= 2) names += (names.empty() ? "" : ", ") + tensor.name;
    }
    if (count > 2) names += " and " + std::to_string(count - 2) + " more";
    return names.empty() ? "none" : names;
  }

  const Catalog& catalog_;
  const AdapterRequest& request_;
  std::vector<LoraSpelling> spellings_;
  AdapterFit fit_;
};

}  // namespace

std::string_view name_of(WrapperSense sense) { return sense == WrapperSense::modern ? "modern" : "legacy"; }

std::optional<WrapperSense> wrapper_sense_named(std::string_view name) {
  for (const WrapperSense sense : {WrapperSense::modern, WrapperSense::legacy}) {
    if (name == name_of(sense)) return sense;
  }
  return std::nullopt;
}

std::string FittedPair::module() const {
  if (!place.kept.empty()) return place.kept;
  if (place.is_parameter()) return place.parameters.front();
  return of_expert(place.modules.front(), 0).substr(place.prefix.size());
}

AdapterFit fit_adapter(const std::vector<LoraPair>& pairs, const Catalog& catalog,
                       const AdapterRequest& request) {
  return Fitting(catalog, request).fit(pairs);
}

}  // namespace shardwright
