#pragma once

#include <vector>

#include "planner/geometry/box.h"
#include "planner/geometry/lattice.h"
#include "planner/geometry/view.h"

namespace shardwright {

/// Which elements of an HF tensor are which of a native one:
///
///     native.view(native_view)[native_box] = hf.view(hf_view)[hf_box].permute(...)
///
/// `axes` says how: factor i of the HF view runs along factor axes[i] of the native view. A factor of either
/// side that has no partner (-1, or named by none) has one index in its box.
///
/// Expert 3 of a stack [8, in, 2 out] whose last dimension holds gates, then ups, from an HF matrix [out,
/// in]: the HF view is (out) (in), the native view (8) (in) (2 out), the native box [3:4, 0:in, 0:1, 0:out]
/// for the gates, and the axes are {3, 1}.
struct Correspondence {
  View hf_view;
  Box hf_box;
  View native_view;
  Box native_box;
  std::vector<int> axes;

  bool operator==(const Correspondence&) const = default;
};

/// Why these numbers make no correspondence; empty: they do.
std::string fault_of(const Correspondence& correspondence);

/// A correspondence in fewer factors. A factor of which only one index is taken is joined with the factor
/// within it, so that the halves of a matrix are boxes of the matrix itself.
struct Simplified {
  Correspondence correspondence;
  std::vector<int> native_factors;  ///< which factor each one of the native view has become a part of
  Shape native_steps;               ///< how far an index of each one moves in that
};
Simplified simplified(const Correspondence& correspondence);

/// A box of the HF view, and where its elements lie in a box of the native tensor.
struct Placed {
  Box hf_box;         ///< of the HF view
  Lattice in_native;  ///< of the native tensor: factor i is that of the HF view, its axis a native dimension
};

/// What a box of the native tensor takes of the HF tensor: each of its elements that corresponds, once. Where
/// the box cuts no factored dimension it is one box, else few.
std::vector<Placed> placed_in(const Correspondence& correspondence, const Box& native);

/// Takes another native_box of that size, such as a further expert's, in place of the correspondence's.
std::vector<Placed> placed_in(const Correspondence& correspondence, const Box& native_box, const Box& native);

/// The smallest box of the native tensor that holds a box of its view.
Box hull_of(const View& native_view, const Box& native_box);

}  // namespace shardwright
