#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "planner/geometry/box.h"

namespace shardwright {

/// How the axes of an HF tensor become those of a native one, as a table writes it:
///
///     "o i -> {expert} i (0/2 o)"  experts' matrices, transposed: first half of the last dimension
///     "e o i -> e i o"             stacked already: each matrix transposed
///     "e (i 0/2) h -> e h i"       every other row, from the first one on
///     "(n 2 d) c -> (n d 2) c"     halves of a head become neighbours: the rope permutation
///     "(q|[k]|v) c -> k c"         the middle one of three parts of unequal sizes
///     "o (c t h w) -> o c t h w"   a matrix seen as a convolution's kernel
///
/// A dimension is a factor, or factors in parentheses, outermost first. A factor is
///   * an axis: a letter and then letters, digits and underscores. Each is on both sides once;
///   * a number: an axis of that size, which is on both sides as often; 1 may be on one side alone;
///   * i/n: index i of n, on one side alone;
///   * {expert}, {shard}: the index that the HF tensor's name has there, on the native side alone;
///   * parts, with | between them: ranges one after the other, of which the one in brackets is taken.
///     Each is a size or a number; the one in brackets is an axis of the other side.
///
/// Sizes follow from the shapes and from those given by name: of the factors of a dimension one may be
/// unknown.
class AxisExpression {
 public:
  /// All axes as they are, whatever their number.
  AxisExpression() = default;

  /// Throws std::invalid_argument, saying what is wrong, for text that is no such expression.
  explicit AxisExpression(std::string_view text);

  /// The expression as it was given.
  const std::string& text() const { return text_; }

  /// Whether all axes stay as they are, whatever their number.
  bool is_identity() const { return text_.empty(); }

  /// Whether the native side has {expert}: one of its dimensions counts experts.
  bool counts_experts() const { return counts("{expert}"); }

  /// Whether the native side has {shard}.
  bool counts_shards() const { return counts("{shard}"); }

  /// Whether the native tensor has no more than a part of the HF tensor.
  bool takes_a_part() const;

  /// Whether the native shape does not say all: the HF side has another part's size, HF tensors are counted
  /// within a dimension, or several axes are one native dimension.
  bool needs_hf_shape() const;

  struct Resolved;  // internal: planner/names/resolved_axes.h

  /// What is known of the two tensors, made into a correspondence, for expert and shard 0. Shapes that are
  /// not given follow; `sizes` may hold "{expert}" and "{shard}", how many there are. Throws Error(mismatch),
  /// saying what was expected and found, if a shape has another number of dimensions, or its size does not
  /// divide, or a size follows from nothing.
  Resolved resolve(const std::optional<Shape>& hf_shape, const std::optional<Shape>& native_shape,
                   const Sizes& sizes = {}) const;

  /// Adds to `sizes` what an HF tensor of that shape says of them. Throws as resolve().
  void settle_sizes(const Shape& hf_shape, Sizes& sizes) const;

 private:
  struct Factor {
    enum class Kind : std::uint8_t { axis, number, index, counted, parts };
    Kind kind = Kind::axis;
    std::string name;       ///< of an axis, or of the part that is taken
    std::string counter;    ///< "{expert}" or "{shard}"
    std::int64_t size = 0;  ///< of a number; how many indices an index is one of
    std::int64_t index = 0;
    std::vector<std::string> parts;  ///< names or numbers
    std::size_t taken = 0;           ///< which of the parts
  };
  using Side = std::vector<std::vector<Factor>>;  ///< factors of each dimension

  /// The size of a factor; or the unknown name in it, how often it is there, and what the rest comes to.
  struct Known {
    std::int64_t size = 0;
    std::string unknown;
    std::int64_t times = 0;
    bool is_more = false;  ///< more than one name is unknown
  };
  static Known known(const Factor& factor, const Sizes& sizes);

  /// What a shape says of dimension d of its side. True if it settled a size.
  bool settle(const char* whose, const Shape& shape, const Side& side, std::size_t d, Sizes& sizes) const;
  void settle_all(const std::optional<Shape>& hf_shape, const std::optional<Shape>& native_shape,
                  Sizes& sizes) const;
  void expect_rank(const char* whose, const std::optional<Shape>& shape, const Side& side) const;

  /// What each factor's partner is called on the other side; empty: it has none.
  static std::vector<std::string> partners_of(const Side& side);

  bool counts(std::string_view counter) const;
  static Side parse_side(std::string_view text);
  static Factor parse_factor(std::string_view text);
  void expect_partners() const;

  std::string text_;
  Side hf_;
  Side native_;
};

}  // namespace shardwright
