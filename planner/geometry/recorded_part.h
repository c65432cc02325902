#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "planner/geometry/box.h"

namespace shardwright {

/// What was done to a tensor makes no boxes of views of it; says what.
class NoBox : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A factor of a dimension, of `extent` indices, of which a part has those from `begin` on: as many as its
/// axis, or one.
struct PartFactor {
  int axis = -1;  ///< one of the part's axes; -1: its index is fixed
  std::int64_t begin = 0;
  std::int64_t extent = 1;

  bool operator==(const PartFactor&) const = default;
};

/// The factors of each dimension, outermost first. None: a dimension of size 1.
using PartSide = std::vector<std::vector<PartFactor>>;

/// Where elements of a regrouped tensor came from: a box of a view of a source, which is a box of a view of
/// the tensor. Such a tensor, cut, joined and reshaped out of others, consists of parts.
///
/// Expert 3 of a stack [8, in, out] of transposed matrices: `there` is (out) (in), `here` is (3 of 8) (in)
/// (out), and the axes are {out, in}.
struct RecordedPart {
  std::string source;
  Shape axes;      ///< sizes of what runs along one factor of either side
  PartSide there;  ///< in the source
  PartSide here;   ///< in the tensor
};

/// The part that is all of a source. Throws std::invalid_argument unless it has elements.
RecordedPart whole_part(std::string source, const Shape& shape);

std::int64_t elements_of(const RecordedPart& part);

/// The size of a factor's axis; 1 where its index is fixed.
std::int64_t size_of(const RecordedPart& part, const PartFactor& factor);

/// The part, once its dimension is the range from `begin` on of one of size `total`.
RecordedPart joined(RecordedPart part, std::size_t dimension, std::int64_t begin, std::int64_t total);

/// What of the part lies in a range of a dimension, once that range is all of the dimension.
std::optional<RecordedPart> narrowed(RecordedPart part, std::size_t dimension, std::int64_t begin,
                                     std::int64_t end);

/// The part, once dimension i is what order[i] was.
RecordedPart permuted(RecordedPart part, const std::vector<std::size_t>& order);

/// The part, once the tensor is seen, row-major, in another shape.
RecordedPart reshaped(RecordedPart part, const Shape& shape);

}  // namespace shardwright
