#include "planner/names/expert_names.h"

#include <algorithm>
#include <cstddef>

namespace shardwright {
namespace {

bool is_decimal(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char one) { return one >= '0' && one <= '9'; });
}

}  // namespace

bool names_all_experts(std::string_view fqn) {
  constexpr std::string_view experts = "experts";
  for (std::size_t begin = 0; begin < fqn.size();) {
    const std::size_t end = std::min(fqn.find('.', begin), fqn.size());
    const std::string_view part = fqn.substr(begin, end - begin);
    begin = end + 1;
    if (part != experts && (!part.ends_with("_experts") || part == "shared_experts")) continue;
    if (begin >= fqn.size()) return false;
    return !is_decimal(fqn.substr(begin, std::min(fqn.find('.', begin), fqn.size()) - begin));
  }
  return false;
}

}  // namespace shardwright
