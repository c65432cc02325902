#include "planner/load/hf_parts.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/correspondence.h"
#include "planner/names/rule_pieces.h"

namespace shardwright {
namespace {

std::int64_t dot(const Shape& a, const Shape& b) {
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

Shape plus(Shape a, const Shape& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

Shape minus(Shape a, const Shape& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}

/// Adds what a box of the native tensor has of the HF tensor's part. Returns how many elements these are.
std::int64_t add_parts(const Piece& piece, const TensorSpec& native, const LocalBox& held,
                       const TensorSpec& hf, std::vector<StridedPart>& parts) {
  const View& view = piece.correspondence->hf_view;
  const Shape steps = steps_of(view);
  std::int64_t count = 0;
  for (const Placed& placed : placed_in(piece, held.global)) {
    const Lattice& in_native = placed.in_native;
    Shape strides;
    for (std::size_t i = 0; i < in_native.axes.size(); ++i) {
      const int axis = in_native.axes[i];
      strides.push_back(axis < 0 ? 0
                                 : in_native.steps[i] * native.local_strides[static_cast<std::size_t>(axis)]);
    }
    const std::int64_t first = dot(plus(in_native.first, held.local_offset), native.local_strides);
    for (const LocalBox& part : hf.boxes) {
      for (const Box& within : boxes_in_view(view, part.global)) {
        const Box common = intersection(placed.hf_box, within);
        if (is_empty(common)) continue;
        StridedPart& one = parts.emplace_back(StridedPart{native.fqn, common.size, {}, 0, strides, 0});
        one.native_offset = first + dot(minus(common.offset, placed.hf_box.offset), strides);
        for (std::size_t i = 0; i < steps.size(); ++i) {
          const auto dimension = static_cast<std::size_t>(view.dimensions[i]);
          one.hf_strides.push_back(steps[i] * hf.local_strides[dimension]);
        }
        const Shape index = minus(index_in_tensor(view, common.offset), part.global.offset);
        one.hf_offset = dot(plus(index, part.local_offset), hf.local_strides);
        count += volume(common.size);
      }
    }
  }
  return count;
}

/// The part with one size and stride for each dimension of the HF tensor; nothing if it has no such strides.
std::optional<StridedPart> as_view(const StridedPart& part, const View& view, const TensorSpec& hf) {
  StridedPart whole{part.fqn, hf.local_shape, hf.local_strides, 0, {}, part.native_offset};
  for (std::size_t d = 0; d < hf.local_shape.size(); ++d) {
    std::optional<std::int64_t> outer;  // the stride that the next factor within has to go on from
    std::int64_t stride = 0;
    for (std::size_t i = 0; i < view.dimensions.size(); ++i) {
      if (view.dimensions[i] != static_cast<int>(d) || part.sizes[i] == 1) continue;
      if (outer && *outer != part.sizes[i] * part.native_strides[i]) return std::nullopt;
      outer = stride = part.native_strides[i];
    }
    whole.native_strides.push_back(stride);
  }
  return whole;
}

std::int64_t elements_of(const TensorSpec& spec) {
  std::int64_t count = 0;
  for (const LocalBox& box : spec.boxes) count += volume(box.global.size);
  return count;
}

}  // namespace

std::vector<std::string> made_of(const WeightMap& map, const std::string& hf_name) {
  const std::vector<NameMatch> places = native_matches_of(map, hf_name);
  const auto is_own = [](const NameMatch& place) { return !place.rule->only_read; };
  const bool any_own = std::any_of(places.begin(), places.end(), is_own);
  std::vector<std::string> natives;
  for (const NameMatch& place : places) {
    if (any_own && !is_own(place)) continue;
    if (std::find(natives.begin(), natives.end(), place.fqn) == natives.end()) natives.push_back(place.fqn);
  }
  return natives;
}

HfParts hf_parts(const WeightMap& map, const TensorSpec& hf, const std::vector<TensorSpec>& natives,
                 const Catalog* shapes) {
  HfParts found;
  View view;
  std::int64_t count = 0;
  for (const TensorSpec& native : natives) {
    for (const Piece& piece : pieces_of(map, native.fqn, native.global_shape, shapes)) {
      if (piece.hf_name != hf.fqn) continue;
      view = piece.correspondence->hf_view;
      for (const LocalBox& held : native.boxes) count += add_parts(piece, native, held, hf, found.parts);
    }
  }
  if (count != elements_of(hf)) {
    std::string names;
    for (const TensorSpec& native : natives) names += (names.empty() ? "" : ", ") + native.fqn;
    throw Error(ErrorKind::mismatch,
                hf.fqn + ": this rank holds " + std::to_string(count) + " of the " +
                    std::to_string(elements_of(hf)) +
                    " elements of its part, as the elements of a shard of " + names +
                    " are not those of a shard of it; expected shards that end between heads or parts, or "
                    "whole tensors. shardwright.load and shardwright.export take any");
  }
  if (found.parts.size() == 1) {
    if (auto whole = as_view(found.parts.front(), view, hf)) found = {{std::move(*whole)}, true};
  }
  return found;
}

}  // namespace shardwright
