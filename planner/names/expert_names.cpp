#include "planner/names/expert_names.h"

#include <algorithm>
#include <cstddef>

#include "planner/digits.h"

namespace shardwright {
bool names_all_experts(std::string_view fqn) {
  constexpr std::string_view experts = "experts";
  for (std::size_t begin = 0; begin < fqn.size();) {
    const std::size_t end = std::min(fqn.find('.', begin), fqn.size());
    const std::string_view part = fqn.substr(begin, end - begin);
    begin = end + 1;
    if (part != experts && (!part.ends_with("_experts") || part == "shared_experts")) continue;
    if (begin >= fqn.size()) return false;
    return !is_digits(fqn.substr(begin, std::min(fqn.find('.', begin), fqn.size()) - begin));
  }
  return false;
}

}  // namespace shardwright
