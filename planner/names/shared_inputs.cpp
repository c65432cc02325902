#include "planner/names/shared_inputs.h"

#include <algorithm>
#include <iterator>
#include <vector>

namespace shardwright {
namespace {

/// Names of modules beside one another that take one input.
const std::vector<std::vector<std::string_view>>& groups() {
  static const std::vector<std::vector<std::string_view>> all{
      {"q_proj", "k_proj", "v_proj", "q_a_proj", "kv_a_proj_with_mqa"},  // attention
      {"in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "in_proj_qkvz",
       "in_proj_ba"},  // linear attention
      {"gate_proj", "up_proj"},
      {"w1", "w3"},
  };
  return all;
}

}  // namespace

std::string shared_input_of(std::string_view weight_name) {
  constexpr std::string_view ending = ".weight";
  if (!weight_name.ends_with(ending)) return "";
  weight_name.remove_suffix(ending.size());
  const std::size_t dot = weight_name.rfind('.');
  const std::string_view module = dot == std::string_view::npos ? weight_name : weight_name.substr(dot + 1);
  for (const auto& group : groups()) {
    if (std::find(group.begin(), group.end(), module) != group.end())
      return std::string(weight_name.substr(0, weight_name.size() - module.size())) + std::string(group[0]);
  }
  return "";
}

}  // namespace shardwright
