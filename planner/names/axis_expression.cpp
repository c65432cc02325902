#include "planner/names/axis_expression.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "planner/digits.h"
#include "planner/error.h"
#include "planner/geometry/correspondence.h"
#include "planner/geometry/view.h"
#include "planner/names/resolved_axes.h"

namespace shardwright {
namespace {

constexpr std::array<std::string_view, 2> counters = {"{expert}", "{shard}"};

bool is_letter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }
bool is_digit(char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; }

bool is_name(std::string_view text) {
  return !text.empty() && is_letter(text.front()) && std::all_of(text.begin(), text.end(), [](char c) {
    return is_letter(c) || is_digit(c) || c == '_';
  });
}

[[noreturn]] void refuse_expression(std::string_view what, std::string_view found) {
  throw std::invalid_argument("an axis expression: expected " + std::string(what) + ", found '" +
                              std::string(found) + "'");
}

std::int64_t number_of(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) refuse_expression("a number", text);
  return value;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::vector<std::string_view> words(std::string_view text) {
  std::vector<std::string_view> found = split(text, ' ');
  std::erase_if(found, [](std::string_view word) { return word.empty(); });
  return found;
}

/// Sizes of a config may be anything.
std::int64_t product_of(std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product))
    throw Error(ErrorKind::mismatch, "expected sizes whose product is a number of 63 bits, found " +
                                         std::to_string(a) + " and " + std::to_string(b));
  return product;
}

/// Of a name, or of a number.
std::optional<std::int64_t> size_named(std::string_view name, const Sizes& sizes) {
  if (is_digits(name)) return number_of(name);
  const auto found = sizes.find(name);
  return found == sizes.end() ? std::nullopt : std::optional(found->second);
}

[[noreturn]] void mismatch(const std::string& what) { throw Error(ErrorKind::mismatch, what); }

}  // namespace

AxisExpression::AxisExpression(std::string_view text) : text_(text) {
  const std::size_t arrow = text.find("->");
  if (arrow == std::string_view::npos) refuse_expression("HF axes -> native axes", text);
  hf_ = parse_side(text.substr(0, arrow));
  native_ = parse_side(text.substr(arrow + 2));
  expect_partners();
}

AxisExpression::Side AxisExpression::parse_side(std::string_view text) {
  Side side;
  while (true) {
    const std::size_t begin = text.find_first_not_of(' ');
    if (begin == std::string_view::npos) return side;
    text.remove_prefix(begin);
    std::vector<Factor>& dimension = side.emplace_back();
    // Names with {expert} and parts with | are words; only a dimension of factors has parentheses.
    const bool is_group =
        text.front() == '(' && text.substr(0, text.find(')')).find('|') == std::string_view::npos;
    const bool is_parts = text.front() == '(' && !is_group;
    const std::size_t end = text.front() == '(' ? text.find(')') : std::min(text.find(' '), text.size());
    if (end == std::string_view::npos) refuse_expression("a closing parenthesis", text);
    const std::string_view inside =
        text.substr(text.front() == '(' ? 1 : 0, end - (text.front() == '(' ? 1 : 0));
    text.remove_prefix(std::min(end + (is_group || is_parts ? 1 : 0), text.size()));
    for (std::string_view word : words(inside)) dimension.push_back(parse_factor(word));
    if (dimension.empty()) refuse_expression("factors in parentheses", inside);
  }
}

AxisExpression::Factor AxisExpression::parse_factor(std::string_view text) {
  Factor factor;
  if (std::find(counters.begin(), counters.end(), text) != counters.end()) {
    factor.kind = Factor::Kind::counted;
    factor.counter = text;
  } else if (text.find('|') != std::string_view::npos) {
    factor.kind = Factor::Kind::parts;
    bool taken = false;
    for (std::string_view part : split(text, '|')) {
      if (part.size() > 2 && part.front() == '[' && part.back() == ']') {
        if (taken) refuse_expression("one part in brackets", text);
        taken = true;
        part = part.substr(1, part.size() - 2);
        factor.taken = factor.parts.size();
        factor.name = part;
      }
      if (!is_name(part) && !is_digits(part))
        refuse_expression("names and numbers with | between them", text);
      factor.parts.emplace_back(part);
    }
    if (!taken) refuse_expression("one part in brackets", text);
  } else if (const std::size_t slash = text.find('/'); slash != std::string_view::npos) {
    factor.kind = Factor::Kind::index;
    factor.index = number_of(text.substr(0, slash));
    factor.size = number_of(text.substr(slash + 1));
    if (factor.index >= factor.size) refuse_expression("an index below the number behind it", text);
  } else if (is_digits(text)) {
    factor.kind = Factor::Kind::number;
    factor.size = number_of(text);
    if (factor.size == 0) refuse_expression("a number of 1 or more", text);
  } else {
    if (!is_name(text)) refuse_expression("an axis, a number, i/n, {expert}, {shard} or parts", text);
    factor.name = text;
  }
  return factor;
}

std::vector<std::string> AxisExpression::partners_of(const Side& side) {
  std::vector<std::string> names;
  for (const std::vector<Factor>& dimension : side) {
    for (const Factor& factor : dimension)
      names.push_back(factor.kind == Factor::Kind::number ? std::to_string(factor.size) : factor.name);
  }
  return names;
}

void AxisExpression::expect_partners() const {
  const auto partners = [](const Side& side) {
    std::vector<std::string> names = partners_of(side);
    std::erase_if(names, [](const std::string& name) { return name.empty() || name == "1"; });
    std::sort(names.begin(), names.end());
    return names;
  };
  const std::vector<std::string> hf = partners(hf_);
  if (hf != partners(native_)) refuse_expression("each axis on both sides", text_);
  for (std::size_t i = 1; i < hf.size(); ++i) {
    if (hf[i] == hf[i - 1] && !is_digits(hf[i])) refuse_expression("each axis once on a side", text_);
  }
  for (const std::vector<Factor>& dimension : hf_) {
    for (const Factor& factor : dimension) {
      if (factor.kind == Factor::Kind::counted)
        refuse_expression(factor.counter + " on the native side", text_);
    }
  }
}

bool AxisExpression::counts(std::string_view counter) const {
  return std::any_of(native_.begin(), native_.end(), [&](const std::vector<Factor>& dimension) {
    return std::any_of(dimension.begin(), dimension.end(),
                       [&](const Factor& factor) { return factor.counter == counter; });
  });
}

bool AxisExpression::takes_a_part() const {
  return std::any_of(hf_.begin(), hf_.end(), [](const std::vector<Factor>& dimension) {
    return std::any_of(dimension.begin(), dimension.end(), [](const Factor& factor) {
      return factor.kind == Factor::Kind::parts || factor.kind == Factor::Kind::index;
    });
  });
}

bool AxisExpression::needs_hf_shape() const {
  std::vector<std::string> native;
  for (const std::vector<Factor>& dimension : native_) {
    for (const Factor& factor : dimension) {
      native.push_back(factor.name);
      native.insert(native.end(), factor.parts.begin(), factor.parts.end());
    }
  }
  const auto is_known = [&](const std::string& name) {
    return is_digits(name) || std::find(native.begin(), native.end(), name) != native.end();
  };
  const bool counts_in_parts =
      std::any_of(native_.begin(), native_.end(), [](const std::vector<Factor>& dimension) {
        return dimension.size() > 1 && std::any_of(dimension.begin(), dimension.end(), [](const Factor& one) {
                 return one.kind == Factor::Kind::counted;
               });
      });
  const bool joins_axes =
      std::any_of(native_.begin(), native_.end(), [](const std::vector<Factor>& dimension) {
        return std::count_if(dimension.begin(), dimension.end(),
                             [](const Factor& one) { return one.kind == Factor::Kind::axis; }) > 1;
      });
  if (counts_in_parts || joins_axes) return true;
  return !std::all_of(hf_.begin(), hf_.end(), [&](const std::vector<Factor>& dimension) {
    return std::all_of(dimension.begin(), dimension.end(), [&](const Factor& factor) {
      return std::all_of(factor.parts.begin(), factor.parts.end(), is_known);
    });
  });
}

AxisExpression::Known AxisExpression::known(const Factor& factor, const Sizes& sizes) {
  Known result;
  const auto add = [&](std::string_view name) {
    if (const std::optional<std::int64_t> size = size_named(name, sizes)) {
      result.size += *size;
    } else {
      result.is_more |= result.times > 0 && result.unknown != name;
      result.unknown = name;
      ++result.times;
    }
  };
  switch (factor.kind) {
    case Factor::Kind::number:
    case Factor::Kind::index:
      result.size = factor.size;
      break;
    case Factor::Kind::axis:
      add(factor.name);
      break;
    case Factor::Kind::counted:
      add(factor.counter);
      break;
    case Factor::Kind::parts:
      for (const std::string& part : factor.parts) add(part);
      break;
  }
  return result;
}

void AxisExpression::expect_rank(const char* whose, const std::optional<Shape>& shape,
                                 const Side& side) const {
  if (shape && shape->size() != side.size())
    mismatch("expected " + std::string(whose) + " tensor of " + std::to_string(side.size()) +
             " dimensions (" + text_ + "), found shape " + to_string(*shape));
}

bool AxisExpression::settle(const char* whose, const Shape& shape, const Side& side, std::size_t d,
                            Sizes& sizes) const {
  std::int64_t product = 1;
  std::optional<Known> open;
  for (const Factor& factor : side[d]) {
    const Known one = known(factor, sizes);
    if (one.times == 0) {
      product = product_of(product, one.size);
    } else if (open || one.is_more) {
      return false;
    } else {
      open = one;
    }
  }
  const auto fail = [&](const std::string& expected) {
    mismatch("expected " + expected + " along dimension " + std::to_string(d) + " of the " + whose +
             " tensor (" + text_ + "), found shape " + to_string(shape));
  };
  if (!open) {
    if (product != shape[d]) fail(std::to_string(product));
    return false;
  }
  const bool divides = product == 0 ? shape[d] == 0 : shape[d] % product == 0;
  if (!divides) fail("a multiple of " + std::to_string(product));
  const std::int64_t rest = (product == 0 ? 0 : shape[d] / product) - open->size;
  if (rest < 0) fail(std::to_string(product * open->size) + " or more");
  if (rest % open->times != 0) fail("parts of equal size");
  sizes.emplace(open->unknown, rest / open->times);
  return true;
}

void AxisExpression::settle_all(const std::optional<Shape>& hf_shape,
                                const std::optional<Shape>& native_shape, Sizes& sizes) const {
  expect_rank("an HF", hf_shape, hf_);
  expect_rank("a native", native_shape, native_);
  for (bool goes_on = true; goes_on;) {
    goes_on = false;
    for (std::size_t d = 0; hf_shape && d < hf_.size(); ++d)
      goes_on |= settle("HF", *hf_shape, hf_, d, sizes);
    for (std::size_t d = 0; native_shape && d < native_.size(); ++d)
      goes_on |= settle("native", *native_shape, native_, d, sizes);
  }
}

void AxisExpression::settle_sizes(const Shape& hf_shape, Sizes& sizes) const {
  if (!is_identity()) settle_all(hf_shape, std::nullopt, sizes);
}

Box AxisExpression::Resolved::native_box_of(std::int64_t expert, std::int64_t shard) const {
  Box box = correspondence.native_box;
  if (experts.factor >= 0) box.offset[static_cast<std::size_t>(experts.factor)] += expert * experts.step;
  if (shards.factor >= 0) box.offset[static_cast<std::size_t>(shards.factor)] += shard * shards.step;
  return box;
}

AxisExpression::Resolved AxisExpression::resolve(const std::optional<Shape>& hf_shape,
                                                 const std::optional<Shape>& native_shape,
                                                 const Sizes& given) const {
  Resolved resolved;
  if (is_identity()) {
    if (!hf_shape && !native_shape) mismatch("a shape is needed to say what the other one is");
    resolved.hf_shape = hf_shape ? *hf_shape : *native_shape;
    resolved.native_shape = native_shape ? *native_shape : *hf_shape;
    if (resolved.hf_shape != resolved.native_shape)
      mismatch("expected shape " + to_string(resolved.native_shape) + ", found " +
               to_string(resolved.hf_shape));
    const View view = plain_view(resolved.hf_shape);
    resolved.correspondence = {view, whole(view.sizes), view, whole(view.sizes), view.dimensions};
    return resolved;
  }

  Sizes sizes = given;
  settle_all(hf_shape, native_shape, sizes);
  const auto lay_out = [&](const Side& side, View& view, Box& box, Shape& shape) {
    for (std::size_t d = 0; d < side.size(); ++d) {
      std::int64_t product = 1;
      for (const Factor& factor : side[d]) {
        const Known one = known(factor, sizes);
        if (one.times > 0)
          mismatch("cannot tell the size of " + one.unknown + " (" + text_ +
                   "): the model's config does not give it; give a checkpoint whose config.json does, "
                   "for an export as template=");
        view.sizes.push_back(one.size);
        view.dimensions.push_back(static_cast<int>(d));
        std::int64_t begin = 0;
        std::int64_t size = one.size;
        if (factor.kind == Factor::Kind::index) begin = factor.index, size = 1;
        if (factor.kind == Factor::Kind::counted) size = std::min<std::int64_t>(1, one.size);
        if (factor.kind == Factor::Kind::parts) {
          for (std::size_t p = 0; p < factor.taken; ++p) begin += *size_named(factor.parts[p], sizes);
          size = *size_named(factor.name, sizes);
        }
        box.offset.push_back(begin);
        box.size.push_back(size);
        product = product_of(product, one.size);
      }
      shape.push_back(product);
    }
  };
  Correspondence& of = resolved.correspondence;
  lay_out(hf_, of.hf_view, of.hf_box, resolved.hf_shape);
  lay_out(native_, of.native_view, of.native_box, resolved.native_shape);

  // Partners by name; of equal numbers, the first with the first.
  std::vector<std::string> native_names = partners_of(native_);
  for (const std::string& name : partners_of(hf_)) {
    const auto partner = std::find(native_names.begin(), native_names.end(), name);
    if (name.empty() || partner == native_names.end()) {
      of.axes.push_back(-1);
    } else {
      of.axes.push_back(static_cast<int>(partner - native_names.begin()));
      *partner = "";
    }
  }

  Simplified simple = simplified(of);
  std::size_t factor = 0;
  for (const std::vector<Factor>& dimension : native_) {
    for (const Factor& one : dimension) {
      if (one.kind == Factor::Kind::counted) {
        Resolved::Counter& counter = one.counter == counters[0] ? resolved.experts : resolved.shards;
        counter.factor = simple.native_factors[factor];
        counter.step = simple.native_steps[factor];
        counter.count = sizes.find(one.counter)->second;
      }
      ++factor;
    }
  }
  of = std::move(simple.correspondence);
  return resolved;
}

}  // namespace shardwright
