#include "planner/save/shared_blocks.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "planner/load/load_plan.h"
#include "planner/load/seen_boxes.h"
#include "planner/names/rule_pieces.h"

namespace shardwright {
namespace {

/// Adds the columns of blocks that a box of a weight cuts on its left or on its right.
void add_cuts(const HeldBox& held, std::vector<CutBlocks>& cuts) {
  const Box& box = held.box;
  const std::int64_t block = held.encoding.block_columns;
  const std::int64_t begin = box.offset[1];
  const std::int64_t end = begin + box.size[1];
  const std::int64_t first = begin / block;
  const std::int64_t last = (end - 1) / block;
  const auto add = [&](std::int64_t number) {
    CutBlocks one;
    one.spec = held.spec;
    one.in_local = held.in_local;
    one.column = {held.weight, number, box.offset[0], {}};
    one.part = box;
    one.part.offset[1] = std::max(begin, number * block);
    one.part.size[1] = std::min(end, (number + 1) * block) - one.part.offset[1];
    Lattice& in_local = one.in_local;
    in_local.sizes = one.part.size;
    if (in_local.axes[1] >= 0)
      in_local.first[static_cast<std::size_t>(in_local.axes[1])] +=
          (one.part.offset[1] - begin) * in_local.steps[1];
    cuts.push_back(std::move(one));
  };
  const bool cuts_first = begin % block != 0;
  const bool cuts_last = end % block != 0 && end != held.shape[1];
  if (cuts_first) add(first);
  if (cuts_last && !(cuts_first && first == last)) add(last);
}

}  // namespace

std::vector<HeldBox> held_boxes(const std::vector<TensorSpec>& specs, const ExportForm& form) {
  std::vector<HeldBox> all;
  if (form.quantize == nullptr) return all;
  for (std::size_t s = 0; s < specs.size(); ++s) {
    const TensorSpec& spec = specs[s];
    for (const Piece& piece : pieces_of(form.map, spec.fqn, spec.global_shape, form.template_catalog)) {
      const Encoding encoding = stored_as(form, piece, spec.dtype);
      if (!encoding.scaled) continue;
      SourceTensor stored;
      stored.shape = piece.hf_shape;
      stored.offset.assign(piece.hf_shape.size(), 0);
      for (const LocalBox& local : spec.boxes) {
        for (const Placed& placed : placed_in(piece, local.global)) {
          for (SeenBox& seen : seen_in(stored, piece.correspondence->hf_view, placed, true)) {
            HeldBox& held = all.emplace_back();
            held.weight = piece.hf_name;
            held.shape = piece.hf_shape;
            held.encoding = encoding;
            held.box = std::move(seen.box);
            held.spec = static_cast<std::uint32_t>(s);
            held.in_local = std::move(seen.in_native);
            for (std::size_t d = 0; d < local.local_offset.size(); ++d)
              held.in_local.first[d] += local.local_offset[d];
          }
        }
      }
    }
  }
  return all;
}

std::vector<CutBlocks> cut_blocks(const std::vector<TensorSpec>& specs, const ExportForm& form) {
  std::vector<CutBlocks> cuts;
  if (form.quantize == nullptr || form.quantize->rule != EncodingRule::mxfp8) return cuts;
  for (const HeldBox& held : held_boxes(specs, form)) {
    if (held.shape.size() == 2) add_cuts(held, cuts);
  }
  return cuts;
}

void share_scales(std::vector<std::vector<BlockColumn>>& ranks) {
  std::unordered_map<std::string, std::unordered_map<std::int64_t, std::vector<std::uint8_t>>> largest;
  for (const auto& columns : ranks) {
    for (const BlockColumn& column : columns) {
      std::vector<std::uint8_t>& all = largest[column.weight][column.block];
      const auto begin = static_cast<std::size_t>(column.first_row);
      if (all.size() < begin + column.scales.size()) all.resize(begin + column.scales.size(), 0);
      for (std::size_t r = 0; r < column.scales.size(); ++r)
        all[begin + r] = std::max(all[begin + r], column.scales[r]);
    }
  }
  for (auto& columns : ranks) {
    for (BlockColumn& column : columns) {
      const std::vector<std::uint8_t>& all = largest[column.weight][column.block];
      std::copy_n(all.begin() + column.first_row, column.scales.size(), column.scales.begin());
    }
  }
}

}  // namespace shardwright
