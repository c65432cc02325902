#include "planner/problems.h"

#include <algorithm>
#include <map>
#include <utility>

#include "planner/digits.h"

namespace shardwright {
namespace {

/// A name cut at one of its numbers.
struct Cut {
  std::string before;
  std::string after;

  auto operator<=>(const Cut&) const = default;
};

/// The name's numbers that make up a whole dot-separated part, with what stands around them.
std::vector<std::pair<Cut, std::int64_t>> cuts_of(const std::string& name) {
  std::vector<std::pair<Cut, std::int64_t>> cuts;
  std::size_t begin = 0;
  while (begin <= name.size()) {
    const std::size_t end = std::min(name.find('.', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    const bool has_leading_zero = part.size() > 1 && part[0] == '0';
    const bool is_number = part.size() < 10 && !has_leading_zero && is_digits(part);
    if (is_number) cuts.push_back({{name.substr(0, begin), name.substr(end)}, std::stoll(part)});
    begin = end + 1;
  }
  return cuts;
}

}  // namespace

std::string in_lines(std::string headline, const std::vector<std::string>& lines) {
  for (std::size_t i = 0; i < std::min(lines.size(), lines_told); ++i) headline += "\n  " + lines[i];
  if (lines.size() > lines_told) headline += "\n  and " + std::to_string(lines.size() - lines_told) + " more";
  return headline;
}

void Problems::throw_if_any(ErrorKind kind, const std::string& headline) const {
  if (lines.empty() && of_all.empty()) return;
  throw Error(kind, in_lines(in_lines(headline, lines), of_all));
}

std::string ranges_of(const std::vector<std::int64_t>& numbers) {
  std::string text;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text += (text.empty() ? "" : ", ") + std::to_string(numbers[i]);
    if (last > i) text += "-" + std::to_string(numbers[last]);
    i = last + 1;
  }
  return text;
}

std::vector<std::string> grouped_names(const std::vector<std::string>& names) {
  // Each name joins the largest group that one of its numbers puts it in.
  std::map<Cut, std::vector<std::int64_t>> numbers_by_cut;
  for (const std::string& name : names) {
    for (const auto& [cut, number] : cuts_of(name)) numbers_by_cut[cut].push_back(number);
  }
  std::vector<std::string> lines;
  std::map<Cut, bool> shown;
  for (const std::string& name : names) {
    const auto cuts = cuts_of(name);
    const auto largest = std::max_element(cuts.begin(), cuts.end(), [&](const auto& a, const auto& b) {
      return numbers_by_cut[a.first].size() < numbers_by_cut[b.first].size();
    });
    if (largest == cuts.end() || numbers_by_cut[largest->first].size() < 2) {
      lines.push_back(name);
    } else if (!std::exchange(shown[largest->first], true)) {
      std::vector<std::int64_t>& numbers = numbers_by_cut[largest->first];
      std::sort(numbers.begin(), numbers.end());
      lines.push_back(largest->first.before + "{" + ranges_of(numbers) + "}" + largest->first.after);
    }
  }
  return lines;
}

}  // namespace shardwright
