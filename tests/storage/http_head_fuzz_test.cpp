#include <gtest/gtest.h>

#include <iterator>
#include <limits>
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "storage/files/http_head.h"
#include "tests/planner/random_checkpoint.h"
#include "tests/storage/http_heads.h"

namespace shardwright {
namespace {

const std::regex& pattern(const std::string& text) {
  static std::map<std::string, std::regex> all;
  return all.try_emplace(text, text).first->second;
}

/// What of the text is in the pattern's groups; empty where it is not of that pattern.
std::vector<std::string> groups(const std::string& text, const std::string& of) {
  std::smatch found;
  if (!std::regex_match(text, found, pattern(of))) return {};
  return {found.begin(), found.end()};
}

/// Of digits, which may be more than fit.
std::optional<std::uint64_t> number_of(const std::string& digits) {
  std::uint64_t number = 0;
  for (const char digit : digits) {
    const auto value = static_cast<std::uint64_t>(digit - '0');
    if (number > (std::numeric_limits<std::uint64_t>::max() - value) / 10) return std::nullopt;
    number = number * 10 + value;
  }
  return number;
}

std::string lower_case(std::string text) {
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return text;
}

bool read_range(const std::string& value, HttpHead& head) {
  if (!groups(value, R"(bytes [ \t]*\*/(\d+|\*))").empty()) {
    const std::string total = groups(value, R"(bytes [ \t]*\*/(\d+|\*))")[1];
    return total == "*" || number_of(total).has_value();
  }
  const std::vector<std::string> range = groups(value, R"(bytes [ \t]*(\d+)-(\d+)/(\d+|\*))");
  if (range.empty()) return false;
  const std::optional<std::uint64_t> first = number_of(range[1]), last = number_of(range[2]);
  if (!first || !last || *first > *last || *last + 1 == 0) return false;
  if (range[3] != "*") {
    head.total = number_of(range[3]);
    if (!head.total || *last >= *head.total) return false;
  }
  head.begin = *first;
  head.end = *last + 1;
  return true;
}

/// The grammar of RFC 9112 and 9110, by regular expressions, as plainly as it goes.
std::optional<HttpHead> read_plainly(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find("\r\n", begin);
    if (end == std::string::npos) return std::nullopt;
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 2;
  }
  if (lines.size() < 2 || !lines.back().empty()) return std::nullopt;
  lines.pop_back();
  for (const std::string& line : lines) {
    for (const char c : line) {
      if ((c >= 0 && c < ' ' && c != '\t') || c == '\x7f') return std::nullopt;
    }
  }
  const std::vector<std::string> status = groups(lines[0], R"(HTTP/1\.([01]) ([1-5]\d\d)( [^\n]*)?)");
  if (status.empty()) return std::nullopt;
  HttpHead head;
  head.status = std::stoi(status[2]);
  head.keeps_open = status[1] == "1";
  std::multiset<std::string> told;
  for (std::size_t l = 1; l < lines.size(); ++l) {
    const std::vector<std::string> field =
        groups(lines[l], R"(([-!#$%&'*+.^_`|~\dA-Za-z]+):[ \t]*([^\n]*?)[ \t]*)");
    if (field.empty()) return std::nullopt;
    const std::string name = lower_case(field[1]);
    const std::string& value = field[2];
    told.insert(name);
    if (name == "content-length") {
      if (groups(value, R"(\d+)").empty()) return std::nullopt;
      head.length = number_of(value);
      if (!head.length) return std::nullopt;
    }
    if (name == "content-range" && !read_range(value, head)) return std::nullopt;
    if (name == "etag") {
      if (value.empty()) return std::nullopt;
      head.etag = value;
    }
    if (name == "transfer-encoding") head.is_encoded = true;
    if (name == "content-encoding" && lower_case(value) != "identity") head.is_encoded = true;
    if (name == "connection" && lower_case(value) != "keep-alive") head.keeps_open = false;
  }
  for (const char* once : {"content-length", "content-range", "etag"}) {
    if (told.count(once) > 1) return std::nullopt;
  }
  return head;
}

std::size_t below(std::size_t bound, Random& random) {
  return static_cast<std::size_t>(random.between(0, static_cast<std::int64_t>(bound) - 1));
}

std::string damaged(std::string head, Random& random) {
  const std::string pieces[] = {"\r\n",
                                "\r",
                                "\n",
                                ":",
                                " ",
                                "\t",
                                "\"",
                                "/",
                                "-",
                                "*",
                                std::string(1, '\0'),
                                "\xff",
                                "18446744073709551615",
                                "99999999999999999999",
                                "0",
                                "bytes ",
                                "Content-Length: 7\r\n",
                                "etag: \"b\"\r\n",
                                "Connection: close\r\n",
                                "Transfer-Encoding: chunked\r\n",
                                "content-range: bytes 0-7/9\r\n"};
  for (std::int64_t count = random.between(1, 3); count > 0; --count) {
    const std::size_t at = below(head.size(), random);
    switch (random.between(0, 5)) {
      case 0:
        head[at] = static_cast<char>(random.between(0, 255));
        break;
      case 1:
        head[at] = static_cast<char>(random.between('0', '9'));
        break;
      case 2:
        head.erase(at, below(8, random) + 1);
        break;
      case 3:
        head.insert(at, pieces[below(std::size(pieces), random)]);
        break;
      case 4:
        head.insert(at, head.substr(below(head.size(), random), below(60, random)));
        break;
      default:
        if (random.once_in(4)) head.resize(at + 1);
        head.append(random.once_in(8) ? "\r\n" : "");
    }
    if (head.empty()) head = "\r\n";
  }
  return head;
}

TEST(http_head_fuzz, a_damaged_head_is_read_as_the_grammar_has_it) {
  const std::vector<std::string> seeds = heads_of_servers();
  for (const std::string& seed : seeds) EXPECT_TRUE(read_plainly(seed)) << seed;
  Random random(20261130);
  int accepted = 0, refused = 0;
  for (int round = 0; round < 20'000; ++round) {
    const std::string head = damaged(seeds[below(seeds.size(), random)], random);
    const std::optional<HttpHead> found = read_http_head(head);
    ASSERT_EQ(found, read_plainly(head)) << round << ":\n" << head;
    ++(found ? accepted : refused);
    if (!found) continue;
    ASSERT_TRUE(is_of_a_range(*found)) << head;
    ASSERT_EQ(end_of_http_head(head), head.size()) << head;
    ASSERT_EQ(read_http_head(text_of(*found)), found) << head;
  }
  EXPECT_GT(accepted, 3000) << "the damage is too wild to reach far";
  EXPECT_GT(refused, 3000);
}

}  // namespace
}  // namespace shardwright
