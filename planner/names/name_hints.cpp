#include "planner/names/name_hints.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <map>
#include <optional>
#include <unordered_set>

namespace shardwright {
namespace {

using Names = std::unordered_set<std::string>;

/// What a wrapper of a module puts into the names of its parameters, and whose doing that is.
struct Wrapper {
  std::string_view part;
  std::string_view maker;
};

constexpr std::array<Wrapper, 4> wrappers{{{"module", "DistributedDataParallel"},
                                           {"_orig_mod", "torch.compile"},
                                           {"_fsdp_wrapped_module", "FSDP"},
                                           {"_checkpoint_wrapped_module", "activation checkpointing"}}};

/// The most keys that one state dict is looked for below in the other.
constexpr int most_keys = 3;

/// The name without the parts, between dots, that `is_left_out` holds for.
template <typename Predicate>
std::string without(std::string_view name, const Predicate& is_left_out) {
  std::string kept;
  bool is_first = true;
  for (std::size_t begin = 0; begin <= name.size();) {
    const std::size_t end = std::min(name.find('.', begin), name.size());
    const std::string_view part = name.substr(begin, end - begin);
    begin = end + 1;
    if (is_left_out(part)) continue;
    if (!is_first) kept += '.';
    kept += part;
    is_first = false;
  }
  return kept;
}

std::string without(std::string_view name, const Wrapper& wrapper) {
  return without(name, [&](std::string_view part) { return part == wrapper.part; });
}

std::string without_wrappers(std::string_view name) {
  return without(name, [](std::string_view part) {
    return std::any_of(wrappers.begin(), wrappers.end(),
                       [&](const Wrapper& wrapper) { return part == wrapper.part; });
  });
}

template <typename Predicate>
std::string count_of(const std::vector<std::string>& names, const Predicate& counts) {
  return std::to_string(std::count_if(names.begin(), names.end(), counts));
}

std::vector<std::string> hints_at_wrapper(const Wrapper& wrapper, const std::vector<std::string>& missing,
                                          const Names& available) {
  std::vector<std::string> hints;
  const std::string part(wrapper.part);
  const std::string of_maker = part + ". of " + std::string(wrapper.maker);
  const auto is_there_without = [&](const std::string& name) {
    const std::string bare = without(name, wrapper);
    return bare != name && available.contains(bare);
  };
  if (const std::string count = count_of(missing, is_there_without); count != "0") {
    hints.push_back(count + " names of the state dict have the prefix " + of_maker +
                    ", and are in the checkpoint without it: load into the wrapped module's own state dict "
                    "(wrapper." +
                    part + ".state_dict()), or strip it: {name.replace(\"" + part +
                    ".\", \"\"): value for name, value in state_dict.items()}");
  }
  Names wrapped;
  for (const std::string& name : available) {
    if (std::string bare = without(name, wrapper); bare != name) wrapped.insert(std::move(bare));
  }
  const auto is_there_with = [&](const std::string& name) { return wrapped.contains(name); };
  if (const std::string count = count_of(missing, is_there_with); count != "0") {
    hints.push_back(count + " names are in the checkpoint with the prefix " + of_maker +
                    ", which the state dict lacks: it was saved from the wrapped module; load into the "
                    "wrapper's state dict, or add it: {\"" +
                    part + ".\" + name: value for name, value in state_dict.items()}");
  }
  return hints;
}

/// The beginning, of some keys, without which most of `names` are among `others`; and how many are.
std::optional<std::pair<std::string, std::size_t>> usual_beginning(const std::vector<std::string>& names,
                                                                   const Names& others) {
  std::map<std::pair<int, std::string>, std::size_t> counts;  // shorter ones first
  for (const std::string& name : names) {
    std::size_t dot = name.find('.');
    for (int keys = 1; keys <= most_keys && dot != std::string::npos; ++keys, dot = name.find('.', dot + 1)) {
      if (others.contains(name.substr(dot + 1))) ++counts[{keys, name.substr(0, dot)}];
    }
  }
  const auto most = std::max_element(counts.begin(), counts.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  if (most == counts.end()) return std::nullopt;
  return std::pair(most->first.second, most->second);
}

/// {"app": {"model": state_dict}} for app.model
std::string nested_below(std::string keys) {
  std::string text = "state_dict";
  while (!keys.empty()) {
    const std::size_t dot = keys.rfind('.');
    const std::size_t begin = dot == std::string::npos ? 0 : dot + 1;
    text = "{\"" + keys.substr(begin) + "\": " + text + "}";
    keys.resize(begin == 0 ? 0 : dot);
  }
  return text;
}

}  // namespace

std::vector<std::string> hints_at_names(const std::vector<std::string>& missing,
                                        const std::vector<std::string>& available) {
  const Names there(available.begin(), available.end());
  std::vector<std::string> hints;
  if (missing.empty() || there.empty()) return hints;
  for (const Wrapper& wrapper : wrappers) {
    std::vector<std::string> more = hints_at_wrapper(wrapper, missing, there);
    hints.insert(hints.end(), more.begin(), more.end());
  }
  if (!hints.empty()) return hints;

  Names bare;
  for (const std::string& name : there) bare.insert(without_wrappers(name));
  const auto fits_bare = [&](const std::string& name) { return bare.contains(without_wrappers(name)); };
  const auto fits = [&](const std::string& name) { return there.contains(name); };
  const auto count = std::count_if(missing.begin(), missing.end(), fits_bare);
  if (count > std::count_if(missing.begin(), missing.end(), fits)) {
    std::string prefixes;
    for (const Wrapper& wrapper : wrappers)
      prefixes += (prefixes.empty() ? "" : ", ") + std::string(wrapper.part) + ".";
    return {std::to_string(count) + " names fit but for prefixes of wrappers (" + prefixes +
            "): take the state dict of the innermost module on both sides"};
  }
  if (const auto found = usual_beginning(missing, there)) {
    return {std::to_string(found->second) + " names are in the checkpoint without \"" + found->first +
            ".\": pass what is under that key, not the dict that holds it"};
  }
  if (const auto found = usual_beginning(available, Names(missing.begin(), missing.end()))) {
    return {std::to_string(found->second) + " names are in the checkpoint under \"" + found->first +
            ".\": pass " + nested_below(found->first)};
  }
  return hints;
}

}  // namespace shardwright
