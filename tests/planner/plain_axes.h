#pragma once

#include <algorithm>
#include <cctype>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "planner/geometry/box.h"
#include "planner/names/axis_expression.h"

namespace shardwright {

/// An axis expression read again, in the plainest way: where one element of an HF tensor is in the native
/// one.
class PlainAxes {
 public:
  PlainAxes(std::string_view text, const Shape& hf, const Shape& native, const Sizes& sizes)
      : is_identity_(text.empty()) {
    if (is_identity_) return;
    const std::size_t arrow = text.find("->");
    hf_ = side(text.substr(0, arrow));
    native_ = side(text.substr(arrow + 2));
    for (const auto& [name, size] : sizes) sizes_[name] = size;
    for (int round = 0; round < 8; ++round) {
      settle(hf_, hf);
      settle(native_, native);
    }
    number(hf_);
    number(native_);
  }

  /// Nothing where the native tensor has another part of the HF tensor.
  std::optional<Shape> native_of(const Shape& hf, std::int64_t expert) {
    if (is_identity_) return hf;
    for (std::size_t d = 0; d < hf_.size(); ++d) {
      std::int64_t rest = hf[d];
      for (std::size_t f = hf_[d].size(); f-- > 0;) {
        const Factor& factor = hf_[d][f];
        const std::int64_t at = rest % factor.size - factor.begin;
        rest /= factor.size;
        if (at < 0 || at >= factor.length) return std::nullopt;
        if (factor.slot >= 0) coordinates_[static_cast<std::size_t>(factor.slot)] = at;
      }
    }
    Shape native;
    for (const std::vector<Factor>& dimension : native_) {
      std::int64_t index = 0;
      for (const Factor& factor : dimension) {
        std::int64_t at = factor.begin;
        if (factor.slot >= 0) at += coordinates_[static_cast<std::size_t>(factor.slot)];
        if (factor.text == "{expert}") at = expert;
        index = index * factor.size + at;
      }
      native.push_back(index);
    }
    return native;
  }

 private:
  struct Factor {
    std::string text;
    std::int64_t size = 0;    // of all parts
    std::int64_t begin = 0;   // of the one that is taken
    std::int64_t length = 0;  // likewise
    int slot = -1;            // of the axis; numbers pair up with those of the other side
  };
  using Side = std::vector<std::vector<Factor>>;

  static Side side(std::string_view text) {
    Side result;
    std::string word;
    bool is_inside = false;
    const auto end_word = [&] {
      if (word.empty()) return;
      if (!is_inside) result.emplace_back();
      result.back().push_back({word});
      word.clear();
    };
    for (const char c : text) {
      if (c == '(') {
        result.emplace_back();
        is_inside = true;
      } else if (c == ')') {
        end_word();
        is_inside = false;
      } else if (c == ' ') {
        end_word();
      } else {
        word += c;
      }
    }
    end_word();
    return result;
  }

  static bool is_number(std::string_view text) {
    return std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
  }

  static std::vector<std::string> parts_of(const std::string& text) {
    std::vector<std::string> parts(1);
    for (const char c : text) {
      if (c == '|') {
        parts.emplace_back();
      } else if (c != '[' && c != ']') {
        parts.back() += c;
      }
    }
    return parts;
  }

  static std::string taken_of(const std::string& text) {
    const std::size_t open = text.find('[');
    return open == std::string::npos ? text : text.substr(open + 1, text.find(']') - open - 1);
  }

  std::int64_t size_of(const std::string& name) const {
    if (const std::size_t slash = name.find('/'); slash != std::string::npos)
      return std::stoll(name.substr(slash + 1));
    if (is_number(name)) return std::stoll(name);
    const auto found = sizes_.find(name);
    return found == sizes_.end() ? 0 : found->second;
  }

  void settle(const Side& side, const Shape& shape) {
    for (std::size_t d = 0; d < side.size(); ++d) {
      std::int64_t known = 1;
      const std::string* unknown = nullptr;
      int unknowns = 0;
      for (const Factor& factor : side[d]) {
        std::int64_t sum = 0;
        bool is_known = true;
        for (const std::string& part : parts_of(factor.text)) {
          sum += size_of(part);
          is_known = is_known && size_of(part) != 0;
        }
        if (is_known) known *= sum;
        if (!is_known) {
          unknown = &factor.text;
          ++unknowns;
        }
      }
      if (unknowns != 1) continue;
      std::int64_t left = shape[d] / known;
      std::int64_t times = 0;
      std::string name;
      for (const std::string& part : parts_of(*unknown)) {
        if (size_of(part) != 0) {
          left -= size_of(part);
        } else if (name.empty() || name == part) {
          name = part;
          ++times;
        } else {
          times = 0;
          break;
        }
      }
      if (times != 0) sizes_[name] = left / times;
    }
  }

  void number(Side& side) {
    std::map<std::string, int> seen;
    for (std::vector<Factor>& dimension : side) {
      for (Factor& factor : dimension) {
        const std::string taken = taken_of(factor.text);
        bool is_past = false;
        const std::size_t open = factor.text.find('[');
        std::size_t at = 0;
        for (const std::string& part : parts_of(factor.text)) {
          const bool is_taken = open == std::string::npos || (!is_past && at == open);
          factor.size += size_of(part);
          if (is_taken) is_past = true;
          if (!is_past) factor.begin += size_of(part);
          at += part.size() + 1;
        }
        factor.length = size_of(taken);
        if (const std::size_t slash = taken.find('/'); slash != std::string::npos) {
          factor.begin = std::stoll(taken.substr(0, slash));
          factor.length = 1;
          continue;
        }
        if (factor.size == 0) throw std::invalid_argument("no size of " + factor.text);
        if (taken == "{expert}" || taken == "1") continue;
        std::string name = taken;
        if (is_number(taken)) name += "#" + std::to_string(seen[taken]++);
        const auto [slot, is_new] = slots_.emplace(name, static_cast<int>(slots_.size()));
        if (is_new) coordinates_.push_back(0);
        factor.slot = slot->second;
      }
    }
  }

  bool is_identity_;
  Side hf_, native_;
  std::map<std::string, std::int64_t> sizes_;
  std::map<std::string, int> slots_;
  std::vector<std::int64_t> coordinates_;
};

}  // namespace shardwright
