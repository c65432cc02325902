#include "planner/problems.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/planner/random_layouts.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

std::set<std::int64_t> numbers_in(const std::string& ranges) {
  std::set<std::int64_t> numbers;
  for (std::size_t at = 0; at < ranges.size();) {
    const std::size_t end = std::min(ranges.find(", ", at), ranges.size());
    const std::string part = ranges.substr(at, end - at);
    const std::size_t dash = part.find('-');
    const std::int64_t first = std::stoll(part);
    const std::int64_t last = dash == std::string::npos ? first : std::stoll(part.substr(dash + 1));
    for (std::int64_t n = first; n <= last; ++n) EXPECT_TRUE(numbers.insert(n).second) << ranges;
    at = end + 2;
  }
  return numbers;
}

TEST(problems, ranges_say_the_numbers_and_no_others) {
  EXPECT_EQ(ranges_of({0, 1, 2, 3, 7, 9, 10}), "0-3, 7, 9-10");
  EXPECT_EQ(ranges_of({}), "");
  Random random(1);
  for (int round = 0; round < 300; ++round) {
    std::set<std::int64_t> numbers;
    for (std::int64_t n = random.between(0, 20); n > 0; --n) numbers.insert(random.between(0, 30));
    ASSERT_EQ(numbers_in(ranges_of({numbers.begin(), numbers.end()})), numbers);
  }
}

TEST(problems, grouped_names_stand_for_the_names_and_no_others) {
  Random random(2);
  for (int round = 0; round < 500; ++round) {
    std::vector<std::string> names;
    std::set<std::string> expected;
    for (std::int64_t n = random.between(0, 12); n > 0; --n) {
      const std::string name = random.one_of<std::string>({"a.", "b."}) +
                               random.one_of<std::string>({"0", "1", "2", "3", "03", "x3"}) + ".w" +
                               (random.once_in(2) ? "." + std::to_string(random.between(0, 4)) : "");
      if (expected.insert(name).second) names.push_back(name);
    }
    std::set<std::string> found;
    for (const std::string& line : grouped_names(names)) {
      const std::size_t open = line.find('{');
      const std::size_t close = line.find('}');
      if (open == std::string::npos) {
        ASSERT_TRUE(found.insert(line).second) << line;
        continue;
      }
      for (const std::int64_t n : numbers_in(line.substr(open + 1, close - open - 1)))
        found.insert(line.substr(0, open) + std::to_string(n) + line.substr(close + 1));
    }
    ASSERT_EQ(found, expected) << "round " << round;
  }
}

TEST(problems, names_that_differ_in_one_number_share_a_line) {
  std::vector<std::string> names;
  for (int layer = 0; layer < 3; ++layer) {
    for (int expert = 0; expert < 9; ++expert)
      names.push_back("l." + std::to_string(layer) + ".e." + std::to_string(expert) + ".w");
  }
  const std::vector<std::string> expected = {"l.0.e.{0-8}.w", "l.1.e.{0-8}.w", "l.2.e.{0-8}.w"};
  EXPECT_EQ(grouped_names(names), expected);
}

TEST(problems, all_are_told_at_once) {
  Problems problems;
  EXPECT_NO_THROW(problems.throw_if_any(ErrorKind::mismatch, "headline:"));
  problems.add("one");
  problems.add("two");
  expect_error(ErrorKind::mismatch, {"headline:\n  one\n  two"},
               [&] { problems.throw_if_any(ErrorKind::mismatch, "headline:"); });
}

TEST(problems, of_many_the_first_are_told_and_how_many_more_there_are) {
  Problems problems;
  std::string twenty = "headline:";
  for (int i = 0; i < 3300; ++i) {
    problems.add("tensor " + std::to_string(i));
    if (i < 20) twenty += "\n  tensor " + std::to_string(i);
    const std::string rest = i < 20 ? "" : "\n  and " + std::to_string(i - 19) + " more";
    ASSERT_EQ(in_lines("headline:", problems.lines), twenty + rest);
  }
  problems.of_all.emplace_back("all lie elsewhere");
  expect_error(ErrorKind::mismatch, {twenty + "\n  and 3280 more\n  all lie elsewhere"},
               [&] { problems.throw_if_any(ErrorKind::mismatch, "headline:"); });
}

TEST(problems, a_fault_of_all_together_is_one_without_any_line) {
  Problems problems;
  problems.of_all.emplace_back("all lie elsewhere");
  expect_error(ErrorKind::mismatch, {"headline:\n  all lie elsewhere"},
               [&] { problems.throw_if_any(ErrorKind::mismatch, "headline:"); });
}

}  // namespace
}  // namespace shardwright
