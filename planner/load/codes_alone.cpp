#include "planner/load/codes_alone.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "planner/geometry/lattice.h"
#include "planner/load/transfers.h"
#include "planner/names/companions.h"
#include "planner/names/encodings.h"
#include "planner/names/packed_weights.h"

namespace shardwright {
namespace {

/// The scales that decode a part of a weight's codes, as they lie in the tensor of scales.
Lattice scales_for(const Lattice& codes, std::int64_t elements_of_code, const Encoding& encoding) {
  const std::size_t rank = codes.first.size();
  const auto rows_alone = [&](std::size_t factor) {
    const int axis = codes.axes[factor];
    return axis < 0 || (static_cast<std::size_t>(axis) + 1 < rank && encoding.block_rows == 1);
  };
  Box box{codes.first, Shape(rank, 1)};
  Lattice scales;
  scales.first.assign(static_cast<std::size_t>(encoding.scale_rank), 0);
  for (std::size_t f = 0; f < codes.sizes.size(); ++f) {
    if (codes.axes[f] >= 0)
      box.size[static_cast<std::size_t>(codes.axes[f])] += (codes.sizes[f] - 1) * codes.steps[f];
  }
  box.offset.back() *= elements_of_code;
  box.size.back() *= elements_of_code;
  const Box needed = scale_box_of(encoding, box);
  bool is_exact = encoding.scale_rank == static_cast<int>(rank);
  for (std::size_t f = 0; f < codes.sizes.size(); ++f)
    is_exact = is_exact && (rows_alone(f) || codes.steps[f] == 1);
  if (!is_exact) return lattice_of(needed);
  scales.first = needed.offset;
  for (std::size_t f = 0; f < codes.sizes.size(); ++f) {
    const int axis = codes.axes[f];
    const bool is_along_rows = axis < 0 || static_cast<std::size_t>(axis) + 1 < rank;
    const auto d = static_cast<std::size_t>(std::max(axis, 0));
    if (is_along_rows && (encoding.block_rows == 1 || d + 2 < rank)) {
      scales.sizes.push_back(codes.sizes[f]);
      scales.steps.push_back(codes.steps[f]);
    } else {
      scales.sizes.push_back(needed.size[d]);
      scales.steps.push_back(1);
    }
    scales.axes.push_back(axis);
  }
  return scales;
}

}  // namespace

std::vector<std::string> codes_alone(const LoadPlan& plan, const std::vector<TensorSpec>& specs,
                                     const Catalog& catalog, const Catalog& packed) {
  std::map<std::string_view, std::vector<Lattice>> read;  // of each tensor that this rank reads of
  for (const Transfer& transfer : plan.transfers) {
    const SourceTensor& source = packed.tensors[transfer.source];
    if (!transfer.encoding.scaled) read[source.name].push_back(read_lattice(transfer, source));
  }
  std::set<std::string> alone;
  for (const Transfer& transfer : plan.transfers) {
    const SourceTensor& source = packed.tensors[transfer.source];
    const auto weight = catalog.find(source.name);
    const auto scales = scales_of(catalog, source.name);
    if (transfer.encoding.scaled || weight.size() != 1 || scales.size() != 1) continue;
    const Encoding encoding = encoding_of(catalog, weight);
    const Lattice needed =
        scales_for(read_lattice(transfer, source), elements_of_unit(weight.front()), encoding);
    std::vector<Lattice> held = read[scales.front().name];
    const std::int64_t before = union_volume(scales.front().shape, held);
    held.push_back(needed);
    if (union_volume(scales.front().shape, held) != before) alone.insert(specs[transfer.destination].fqn);
  }
  return {alone.begin(), alone.end()};
}

}  // namespace shardwright
