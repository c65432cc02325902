#include "planner/lora/lora_state_dict.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <set>
#include <utility>

#include "planner/error.h"
#include "planner/names/rule_pieces.h"

namespace shardwright {
namespace {

constexpr std::string_view experts_end = ".experts";
constexpr std::string_view inner_end = ".base_layer";

/// How transformers begins the names of the text part of a model that has others.
constexpr std::string_view transformers_text = "model.language_model.";

/// The stacks of experts that have LoRA.
constexpr std::string_view joined_stack = "gate_and_up_projs";
constexpr std::string_view down_stack = "down_projs";

/// What a state dict brings for one weight of the trainer.
struct Brought {
  std::string prefix;
  bool stacked = false;
  std::int64_t parts = 1;             ///< that the weight joins
  std::int64_t of = 1;                ///< weights of the trainer that one HF tensor joins
  std::map<char, std::string> names;  ///< the HF tensors that tell the shapes of A and B
  std::set<std::int64_t> experts;     ///< of which there is something; empty for ParamWrappers

  bool is_wrapper() const { return stacked && experts.empty(); }
};

struct Expert {
  std::string path;  ///< "….experts"
  std::int64_t number = 0;
  std::string projection;
};

/// "….experts.3.w1".
std::optional<Expert> expert_of(const std::string& module) {
  const std::size_t last = module.rfind('.');
  if (last == std::string::npos || last == 0) return std::nullopt;
  const std::size_t before = module.rfind('.', last - 1);
  if (before == std::string::npos) return std::nullopt;
  Expert expert{module.substr(0, before), 0, module.substr(last + 1)};
  const char* const begin = module.data() + before + 1;
  const char* const end = module.data() + last;
  const auto [stop, error] = std::from_chars(begin, end, expert.number);
  if (error != std::errc() || stop != end || expert.number < 0) return std::nullopt;
  return expert.path.ends_with(experts_end) ? std::optional(expert) : std::nullopt;
}

class StateDictFitting {
 public:
  StateDictFitting(const Catalog& hf, const LoraStateDict& asked)
      : hf_(hf),
        asked_(asked),
        family_(*lora_families(asked.family).front()),
        texts_(family_.text_names.begin(), family_.text_names.end()),
        released_(family_, "huggingface", texts_.front()) {}

  AdapterFit fit() {
    std::string_view previous;
    for (const SourceTensor& tensor : hf_.tensors) {
      if (tensor.name != previous && lora_name_of(tensor.name)) look_at(tensor.name);
      previous = tensor.name;
    }
    AdapterRequest request;
    request.model = family_.family;
    request.sense = sense();
    request.prefixes = {"", std::string(peft_prefix)};
    request.name = "the state dict";
    request.path = request.name;
    std::vector<LoraPair> pairs;
    std::vector<std::string> problems;
    for (const auto& [weight, one] : brought_) {
      if (!one.stacked && one.of == 1) continue;
      if (one.names.size() == 2) {
        pairs.push_back(pair_of(weight, one));
      } else {
        const auto& [letter, name] = *one.names.begin();
        problems.push_back(weight + ": " + name + ": expected lora_" + (letter == 'A' ? "B" : "A") +
                           " beside it, found none");
      }
    }
    AdapterFit fit = fit_adapter(pairs, hf_, request);
    fit.problems.insert(fit.problems.begin(), problems.begin(), problems.end());
    if (asked_.experts >= 0) fit.map.sizes.emplace("e", asked_.experts);
    for (Rule& rule : renamed_) fit.map.rules.push_back(std::move(rule));
    return fit;
  }

 private:
  /// Notes which weights an HF tensor is for.
  void look_at(const std::string& name) {
    const LoraName parsed = *lora_name_of(name);
    std::string module = name.substr(parsed.prefix.size());
    module.resize(module.rfind(".lora_"));
    Brought one;
    one.prefix = parsed.prefix;
    std::vector<std::string> weights;
    const bool is_inner = module.ends_with(std::string(experts_end) + std::string(inner_end));
    if (is_inner || module.ends_with(experts_end)) {
      one.stacked = true;
      const std::string path = is_inner ? module.substr(0, module.size() - inner_end.size()) : module;
      const bool is_down = !is_inner && is_of_down(one.prefix + module);
      weights = {native_path(path) + "." + std::string(is_down ? down_stack : joined_stack)};
    } else if (const std::optional<Expert> expert = expert_of(module)) {
      one.stacked = true;
      one.experts = {expert->number};
      weights = {weight_of_expert(*expert, one.parts)};
    } else {
      weights = weights_of_module(module + std::string(weight_end));
      one.of = static_cast<std::int64_t>(weights.size());
    }
    for (const std::string& weight : weights) {
      Brought& mine = brought_.try_emplace(weight, one).first->second;
      mine.names.try_emplace(parsed.letter, name);
      mine.experts.insert(one.experts.begin(), one.experts.end());
      if (!one.stacked && one.of == 1) {
        renamed_.push_back(
            Rule{NamePattern(name), NamePattern(one.prefix + lora_key(weight, parsed.letter))});
      }
    }
  }

  std::optional<Shape> shape_of(const std::string& name) const {
    const auto chunks = hf_.find(name);
    return chunks.empty() ? std::nullopt : std::optional(Catalog::global_shape(chunks));
  }

  /// Whether an outer ParamWrapper is that of the down projections: it has an inner one, or their features,
  /// to or from an expert's width.
  bool is_of_down(const std::string& module) const {
    for (const char letter : {'A', 'B'}) {
      if (shape_of(lora_tensor(module + std::string(inner_end), letter))) return true;
    }
    const std::optional<Shape> a = shape_of(lora_tensor(module, 'A'));
    const std::optional<Shape> b = shape_of(lora_tensor(module, 'B'));
    if (!asked_.width || !a || !b || a->empty() || b->empty()) {
      throw Error(
          ErrorKind::mismatch,
          "a ParamWrapper of the experts without an inner one may be of gate_up_proj or of down_proj; "
          "expected a model whose config tells the width of its experts (moe_config.moe_inter_dim), "
          "found " +
              module);
    }
    return a->back() == *asked_.width || b->front() == *asked_.width;
  }

  /// The trainer's name of a module that HF or transformers have under the same name after that of the text
  /// part.
  std::string native_path(const std::string& module) const {
    if (module.starts_with(transformers_text)) return "model." + module.substr(transformers_text.size());
    for (const std::string& text : texts_) {
      if (module.starts_with(text)) return "model." + module.substr(text.size());
    }
    return module;
  }

  /// The matches of an HF weight, named as in any checkpoint.
  std::vector<NameMatch> matches_of(const std::string& name) const {
    std::vector<NameMatch> matches = native_matches_of(released_.released(), name);
    if (!matches.empty()) return matches;
    const bool begins = name.starts_with("model.");
    return native_matches_of(released_.released(),
                             texts_.front() + name.substr(begins ? std::string_view("model.").size() : 0));
  }

  std::string weight_of_expert(const Expert& expert, std::int64_t& parts) const {
    for (const std::string_view stack : {joined_stack, down_stack}) {
      const std::vector<std::string> names = projection_names(stack);
      if (std::find(names.begin(), names.end(), expert.projection) == names.end()) continue;
      parts = static_cast<std::int64_t>(names.size());
      return native_path(expert.path) + "." + std::string(stack);
    }
    const std::string name =
        expert.path + "." + std::to_string(expert.number) + "." + expert.projection + std::string(weight_end);
    const std::vector<NameMatch> matches = matches_of(name);
    if (matches.empty() || !matches.front().rule->stacked()) {
      throw Error(ErrorKind::mismatch,
                  name + ": no rule knows this expert's projection; expected one of " + asked_.family + "'s");
    }
    parts = static_cast<std::int64_t>(hf_names_of(released_.released(), matches.front().fqn, 0).size());
    return matches.front().fqn;
  }

  /// The weights of the trainer that a module's weight is, as HF or transformers name it.
  std::vector<std::string> weights_of_module(const std::string& name) const {
    std::vector<std::string> hf_names;
    if (texts_.size() > 1 && !name.starts_with(texts_.front())) {
      const std::string& text = name.starts_with(transformers_text) ? texts_[0] : texts_[1];
      hf_names = hf_names_of(LoraSpelling(family_, "transformers", text).transformers(), name, -1);
    }
    if (hf_names.empty()) hf_names = {name};
    std::vector<std::string> weights;
    for (const std::string& hf_name : hf_names) {
      const std::vector<NameMatch> matches = matches_of(hf_name);
      if (!matches.empty()) weights.push_back(matches.front().fqn);
    }
    return weights.empty() ? std::vector{name} : weights;
  }

  /// The sense of the ParamWrappers, by what they say of the width of an expert.
  std::optional<WrapperSense> sense() const {
    struct Features {
      std::int64_t of_a;
      std::int64_t of_b;
    };
    std::map<std::string, Features> wrapped;
    for (const auto& [weight, one] : brought_) {
      if (!one.is_wrapper() || one.names.size() < 2) continue;
      const Shape a = *shape_of(one.names.at('A'));
      const Shape b = *shape_of(one.names.at('B'));
      if (a.size() == 2 && b.size() == 2) wrapped[weight] = {a[1], b[0]};
    }
    std::set<WrapperSense> fits{WrapperSense::modern, WrapperSense::legacy};
    const auto keep = [&](bool modern, bool legacy) {
      if (!modern) fits.erase(WrapperSense::modern);
      if (!legacy) fits.erase(WrapperSense::legacy);
    };
    for (const auto& [weight, found] : wrapped) {
      if (weight.ends_with(joined_stack)) {
        if (asked_.width) keep(found.of_b == 2 * *asked_.width, found.of_a == 2 * *asked_.width);
        continue;
      }
      if (asked_.width) {
        keep(found.of_a == *asked_.width, found.of_b == *asked_.width);
        continue;
      }
      const auto other = wrapped.find(weight.substr(0, weight.rfind('.') + 1) + std::string(joined_stack));
      if (other != wrapped.end())
        keep(2 * found.of_a == other->second.of_b, 2 * found.of_b == other->second.of_a);
    }
    if (wrapped.empty() || (asked_.sense && fits.contains(*asked_.sense))) return asked_.sense;
    if (fits.size() == 1 && !asked_.sense) return *fits.begin();
    const auto& [weight, features] = *wrapped.begin();
    const Brought& one = brought_.at(weight);
    const std::string names = one.names.at('A') + " and " + one.names.at('B');
    const std::string shapes = to_string(Shape{features.of_a, features.of_b}) + " features";
    if (fits.size() == 2) {
      throw Error(ErrorKind::mismatch,
                  names + ": the shapes, of " + shapes +
                      ", fit both senses of a ParamWrapper; pass param_wrapper=\"modern\" if peft 0.19.1 or "
                      "later wrote them, param_wrapper=\"legacy\" if an earlier one did");
    }
    throw Error(ErrorKind::mismatch,
                names + ": expected ParamWrappers in the sense '" +
                    (asked_.sense ? std::string(name_of(*asked_.sense)) : "auto") + "'" +
                    (asked_.width ? " for experts of width " + std::to_string(*asked_.width) : "") +
                    ", found " + shapes + ", which fit " +
                    (fits.empty() ? "none" : std::string(name_of(*fits.begin()))));
  }

  LoraPair pair_of(const std::string& weight, const Brought& one) const {
    const std::string& name_of_a = one.names.at('A');
    const Shape a = *shape_of(name_of_a);
    const Shape b = *shape_of(one.names.at('B'));
    if (a.size() != 2 || b.size() != 2) {
      throw Error(ErrorKind::mismatch, name_of_a + " and " + one.names.at('B') +
                                           ": expected matrices, found shapes " + to_string(a) + " and " +
                                           to_string(b));
    }
    const DType dtype = hf_.find(name_of_a).front().dtype;
    const auto pair = [&](Shape of_a, Shape of_b) {
      return LoraPair{weight,
                      {one.prefix + lora_key(weight, 'A'), dtype, std::move(of_a), one.stacked},
                      {one.prefix + lora_key(weight, 'B'), dtype, std::move(of_b), one.stacked}};
    };
    if (!one.stacked) return pair(a, {b[0] / one.of, b[1]});
    if (!one.is_wrapper()) {
      const std::int64_t experts = asked_.experts >= 0 ? asked_.experts : *one.experts.rbegin() + 1;
      return pair({experts, a[1], a[0]}, {experts, a[0], one.parts * b[0]});
    }
    const std::int64_t experts = asked_.experts;
    if (experts <= 0 || a[0] % experts != 0) {
      throw Error(ErrorKind::mismatch,
                  experts < 1 ? name_of_a + ": its " + to_string(a) +
                                    " has the rows of all experts, and nothing says how many there are; pass "
                                    "experts= to the adapter"
                              : name_of_a + ": expected a multiple of the model's " +
                                    std::to_string(experts) + " experts as its rows, found " + to_string(a));
    }
    const std::int64_t rank = a[0] / experts;
    const bool is_legacy = sense() == WrapperSense::legacy;
    return pair({experts, is_legacy ? b[0] : a[1], rank}, {experts, rank, is_legacy ? a[1] : b[0]});
  }

  const Catalog& hf_;
  const LoraStateDict& asked_;
  const Model& family_;
  const std::vector<std::string> texts_;
  const LoraSpelling released_;
  std::map<std::string, Brought> brought_;  // by weight
  std::vector<Rule> renamed_;
};

}  // namespace

AdapterFit fit_state_dict(const Catalog& hf, const LoraStateDict& asked) {
  return StateDictFitting(hf, asked).fit();
}

WeightMap lora_map_of_names(const std::vector<std::string>& keys, const std::string& family,
                            const std::string& text) {
  const Model& model = *lora_families(family).front();
  WeightMap map = lora_map("automodel");
  std::map<std::string, LoraSpelling> spellings;  // by prefix
  std::set<std::string> seen;
  for (const std::string& key : keys) {
    const std::optional<LoraName> name = lora_name_of(key);
    if (!name) continue;
    const auto spelling = spellings.try_emplace(name->prefix, model, "automodel", text, name->prefix).first;
    const std::optional<LoraPlace> place = place_of(spelling->second, name->weight);
    std::string of_a = key;
    std::string of_b = key;
    const std::size_t at = key.rfind(".lora_");
    const std::size_t letter =
        key.ends_with(weight_end) ? at + std::string_view(".lora_").size() : key.size() - 1;
    of_a[letter] = 'A';
    of_b[letter] = 'B';
    if (place && seen.insert(of_a).second)
      add_lora_rules(map, *place, {}, of_a, of_b, !name->weight.ends_with(weight_end));
  }
  return map;
}

}  // namespace shardwright
