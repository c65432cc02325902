#include "planner/models/general_rows.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "planner/digits.h"

namespace shardwright {
namespace {

struct Number {
  std::size_t begin = 0;  ///< in the name
  std::size_t end = 0;
  std::int64_t value = 0;
};

/// The numbers that stand alone between dots and underscores, without leading zeros.
std::vector<Number> numbers_in(const std::string& name) {
  std::vector<Number> numbers;
  for (std::size_t begin = 0; begin <= name.size();) {
    const std::size_t end = std::min(name.find_first_of("._", begin), name.size());
    const std::string_view word = std::string_view(name).substr(begin, end - begin);
    const bool is_number = word.size() <= 9 && is_digits(word) && (word[0] != '0' || word.size() == 1);
    if (is_number) numbers.push_back({begin, end, std::stoll(std::string(word))});
    begin = end + 1;
  }
  return numbers;
}

/// The name with "{layer+4}", or without a number "{layer}", in place of one of its numbers.
std::string with_variable(const std::string& name, const Number& number, const char* variable,
                          std::int64_t more = 0) {
  const std::string difference = more == 0 ? "" : (more > 0 ? "+" : "") + std::to_string(more);
  return name.substr(0, number.begin) + "{" + variable + difference + "}" + name.substr(number.end);
}

/// How much more than a layer or an expert the numbers of a pattern are, all together.
std::int64_t starts_at(const std::string& pattern) {
  std::int64_t sum = 0;
  for (std::size_t at = pattern.find('{'); at != std::string::npos; at = pattern.find('{', at + 1)) {
    const std::size_t sign = pattern.find_first_of("+-}", at);
    if (sign == std::string::npos || pattern[sign] == '}') continue;
    std::int64_t more = 0;
    std::from_chars(pattern.data() + sign + 1, pattern.data() + pattern.size(), more);
    sum += pattern[sign] == '-' ? -more : more;
  }
  return sum;
}

/// The row itself, and the one in which a number of the HF name is {expert}, if the first factor of the
/// native side, such as "3/8", is an index.
std::vector<ImportedRow> counted(const ImportedRow& row) {
  std::vector<ImportedRow> found{row};
  static constexpr std::string_view arrow = " -> ";
  const std::size_t at = row.axes.find(arrow);
  if (at == std::string::npos) return found;
  const char* const here = row.axes.data() + at + arrow.size();
  const char* const end = row.axes.data() + row.axes.size();
  std::int64_t index = 0;
  std::int64_t of = 0;
  const auto [slash, no_index] = std::from_chars(here, end, index);
  if (no_index != std::errc() || slash == end || *slash != '/') return found;
  const auto [rest, no_size] = std::from_chars(slash + 1, end, of);
  if (no_size != std::errc()) return found;
  const std::string axes = row.axes.substr(0, at + arrow.size()) + "{expert}" + std::string(rest, end);
  for (const Number& number : numbers_in(row.hf)) {
    const std::int64_t more = number.value - index;
    if (more >= 0)
      found.push_back({with_variable(row.hf, number, "expert", more), row.native, axes, row.only_read});
  }
  return found;
}

/// The row itself, first, and all patterns that have it among what they say.
std::vector<ImportedRow> candidates_of(const ImportedRow& row) {
  std::vector<ImportedRow> found;
  for (const ImportedRow& one : counted(row)) {
    found.push_back(one);
    const std::vector<Number> there = numbers_in(one.hf);
    for (const Number& here : numbers_in(one.native)) {
      const std::string native = with_variable(one.native, here, "layer");
      for (const Number& number : there)
        found.push_back({with_variable(one.hf, number, "layer", number.value - here.value), native, one.axes,
                         one.only_read});
    }
  }
  return found;
}

std::vector<std::string> candidates_of(const std::string& name) {
  std::vector<std::string> found{name};
  for (const Number& number : numbers_in(name)) found.push_back(with_variable(name, number, "shard"));
  return found;
}

/// Equal for equal rows.
std::string key_of(const ImportedRow& row) {
  return row.hf + '\0' + row.native + '\0' + row.axes + '\0' + (row.only_read ? "read" : "");
}

const std::string& key_of(const std::string& name) { return name; }

/// For each one the candidate that most of them have, each once; the first of these where several are.
template <class One>
std::vector<One> most_common(const std::vector<One>& given) {
  std::vector<std::vector<One>> candidates;
  std::unordered_map<std::string, int> support;
  std::unordered_set<std::string> seen;
  for (const One& one : given) {
    if (!seen.insert(key_of(one)).second) continue;
    candidates.push_back(candidates_of(one));
    for (const One& candidate : candidates.back()) ++support[key_of(candidate)];
  }
  std::vector<One> found;
  seen.clear();
  for (const std::vector<One>& of_one : candidates) {
    const auto best = std::ranges::max_element(
        of_one, {}, [&](const One& candidate) { return support.at(key_of(candidate)); });
    if (seen.insert(key_of(*best)).second) found.push_back(*best);
  }
  return found;
}

}  // namespace

std::vector<ImportedRow> general_rows(const std::vector<ImportedRow>& rows) {
  std::vector<ImportedRow> found = most_common(rows);
  std::ranges::stable_sort(found, {}, [](const ImportedRow& row) { return -starts_at(row.hf); });
  return found;
}

std::vector<std::string> general_names(const std::vector<std::string>& names) { return most_common(names); }

}  // namespace shardwright
