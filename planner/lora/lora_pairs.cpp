#include "planner/lora/lora_pairs.h"

#include <algorithm>
#include <map>
#include <utility>

namespace shardwright {
namespace {

constexpr std::string_view stack_end = "_projs";

bool is_stack_word(std::string_view word) {
  return !word.empty() &&
         std::all_of(word.begin(), word.end(), [](char c) { return (c >= 'a' && c <= 'z') || c == '_'; });
}

/// What is wrong with the shapes of a pair; empty if nothing is.
std::string fault_of(const LoraPair& pair) {
  const Shape& a = pair.a.shape;
  const Shape& b = pair.b.shape;
  const std::size_t dimensions = pair.stacked() ? 3 : 2;
  if (a.size() == dimensions && b.size() == dimensions) {
    const Shape expected = pair.stacked() ? Shape{a[0], a[2], b[2]} : Shape{b[0], a[0]};
    if (b == expected && pair.rank() > 0) return "";
  }
  return pair.a.fqn + " and " + pair.b.fqn + ": expected " +
         (pair.stacked() ? "A [experts, in, r] and B [experts, r, out]" : "A [r, in] and B [out, r]") +
         ", found " + to_string(a) + " and " + to_string(b);
}

}  // namespace

std::optional<LoraName> lora_name_of(std::string_view key) {
  LoraName found;
  if (key.starts_with(peft_prefix)) {
    found.prefix = peft_prefix;
    key.remove_prefix(peft_prefix.size());
  }
  // A text model's own names, or an MTP beside the model.
  const bool is_bare = key.starts_with("layers.") || key.starts_with("mtp.");
  const std::size_t at = key.rfind(".lora_");
  if (at == std::string_view::npos || key.find_first_of("{}") != std::string_view::npos) return std::nullopt;
  const std::string module = (is_bare ? "model." : "") + std::string(key.substr(0, at));
  std::string_view what = key.substr(at + std::string_view(".lora_").size());
  if (what == "A.weight" || what == "B.weight") {
    found.letter = what.front();
    found.weight = module + std::string(weight_end);
    return found;
  }
  if (what.ends_with("_A") || what.ends_with("_B")) {
    found.letter = what.back();
    what.remove_suffix(2);
    if (!is_stack_word(what)) return std::nullopt;
    found.weight = module + "." + std::string(what) + std::string(stack_end);
    return found;
  }
  return std::nullopt;
}

std::string lora_key(const std::string& weight, char letter) {
  if (weight.ends_with(weight_end)) {
    return weight.substr(0, weight.size() - weight_end.size()) + ".lora_" + letter + std::string(weight_end);
  }
  const std::size_t dot = weight.rfind('.');
  const std::string stack = weight.substr(dot + 1, weight.size() - dot - 1 - stack_end.size());
  return weight.substr(0, dot) + ".lora_" + stack + "_" + letter;
}

std::vector<LoraPair> lora_pairs(const std::vector<NativeTensor>& tensors,
                                 std::vector<std::string>& problems) {
  struct Found {
    const NativeTensor* a = nullptr;
    const NativeTensor* b = nullptr;
  };
  std::vector<std::string> order;
  std::map<std::string, Found> found;
  for (const NativeTensor& tensor : tensors) {
    const std::optional<LoraName> name = lora_name_of(tensor.fqn);
    if (!name) continue;
    const auto [entry, is_new] = found.try_emplace(name->weight);
    if (is_new) order.push_back(name->weight);
    const NativeTensor*& mine = name->letter == 'A' ? entry->second.a : entry->second.b;
    if (mine != nullptr) {
      problems.push_back(tensor.fqn + ": expected one lora_" + name->letter + " for " + name->weight +
                         ", found " + mine->fqn + " as well");
    }
    mine = &tensor;
  }
  std::vector<LoraPair> pairs;
  for (const std::string& weight : order) {
    const auto [a, b] = found[weight];
    if (a == nullptr || b == nullptr) {
      const std::string letter = a == nullptr ? "B" : "A";
      problems.push_back((a == nullptr ? b : a)->fqn + ": expected lora_" + (a == nullptr ? "A" : "B") +
                         " beside it in the state dict, found lora_" + letter + " only");
      continue;
    }
    LoraPair pair{weight, *a, *b};
    pair.a.stacked = pair.b.stacked = !weight.ends_with(weight_end);
    if (std::string fault = fault_of(pair); fault.empty()) {
      pairs.push_back(std::move(pair));
    } else {
      problems.push_back(std::move(fault));
    }
  }
  if (order.empty())
    problems.emplace_back("the state dict has no LoRA tensors: expected names such as *.lora_A.weight");
  return pairs;
}

std::vector<std::string> projection_names(std::string_view stack) {
  if (stack.ends_with(stack_end)) stack.remove_suffix(stack_end.size());
  constexpr std::string_view between = "_and_";
  std::vector<std::string> names;
  for (std::size_t begin = 0; begin <= stack.size();) {
    const std::size_t end = std::min(stack.find(between, begin), stack.size());
    names.push_back(std::string(stack.substr(begin, end - begin)) + "_proj");
    begin = end + between.size();
  }
  return names;
}

}  // namespace shardwright
