#include "planner/handover/refit_plan.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/geometry/lattice.h"
#include "planner/geometry/view.h"
#include "planner/load/transfers.h"
#include "planner/problems.h"

namespace shardwright {
namespace {

/// Whether there are elements in both: most boxes of many ranks have none in common, and need no memory for
/// that.
bool have_common(const Box& a, const Box& b) {
  for (std::size_t d = 0; d < a.size.size(); ++d)
    if (a.offset[d] >= b.offset[d] + b.size[d] || b.offset[d] >= a.offset[d] + a.size[d]) return false;
  return true;
}

/// The boxes of elements that both have, in a view in which each is a box of a tensor of this shape.
std::vector<ExportedBox> common_boxes(const ExportedBox& given, const ExportedBox& need,
                                      const Catalog& catalog) {
  std::vector<ExportedBox> common;
  const auto add = [&](const Shape& view, const Box& box) {
    if (!is_empty(box)) common.push_back({given.tensor, view, box});
  };
  if (given.view == need.view) {
    if (have_common(given.box, need.box)) add(given.view, intersection(given.box, need.box));
    return common;
  }
  const SourceTensor& tensor = catalog.tensors[given.tensor];
  const bool given_is_plain = given.view.empty();
  const ExportedBox& plain = given_is_plain ? given : need;
  const ExportedBox& seen = given_is_plain ? need : given;
  const std::optional<View> view = view_with(seen.view, in_units(tensor.dtype, tensor.shape));
  if (!plain.view.empty() || !view)
    throw Error(ErrorKind::mismatch, stored_name(tensor) + ": the trainer sees it as " +
                                         to_string(given.view) + ", the engine as " + to_string(need.view) +
                                         "; expected boxes of " + to_string(tensor.shape) +
                                         " of one of them");
  for (const Box& box : boxes_in_view(*view, plain.box)) add(seen.view, intersection(box, seen.box));
  return common;
}

/// Cuts a box between indices of its outermost dimensions until each part takes at most so many bytes, or is
/// one row.
void cut_and_add(ExportedBox part, std::size_t bytes, std::int64_t element_bytes, std::uint32_t need,
                 std::vector<HandedBox>& handed) {
  Shape& size = part.box.size;
  const auto all = static_cast<std::size_t>(volume(size) * element_bytes);
  std::size_t d = 0;
  while (d < size.size() && size[d] == 1) ++d;
  if (all <= bytes || d + 1 >= size.size()) {
    handed.push_back({need, std::move(part)});
    return;
  }
  const std::int64_t indices = size[d];
  const auto strip =
      std::max<std::int64_t>(1, static_cast<std::int64_t>(bytes / (all / static_cast<std::size_t>(indices))));
  const std::int64_t begin = part.box.offset[d];
  for (std::int64_t done = 0; done < indices; done += strip) {
    ExportedBox cut = part;
    cut.box.offset[d] = begin + done;
    cut.box.size[d] = std::min(strip, indices - done);
    cut_and_add(std::move(cut), bytes, element_bytes, need, handed);
  }
}

}  // namespace

std::vector<ExportedBox> needs_of(const std::vector<Transfer>& transfers) {
  std::vector<ExportedBox> needs;
  needs.reserve(transfers.size());
  for (const Transfer& transfer : transfers)
    needs.push_back({transfer.source, transfer.source_view, transfer.source_box});
  return needs;
}

GivenBoxes::GivenBoxes(std::vector<ExportedBox> given, const Catalog& catalog)
    : boxes(std::move(given)), of_tensor(catalog.tensors.size()) {
  for (std::uint32_t g = 0; g < boxes.size(); ++g) of_tensor[boxes[g].tensor].push_back(g);
}

std::vector<HandedBox> handed_boxes(const GivenBoxes& given, const std::vector<ExportedBox>& needs,
                                    const Catalog& catalog, const HandedLayers& layers,
                                    std::size_t message_bytes) {
  std::vector<HandedBox> handed;
  for (std::uint32_t n = 0; n < needs.size(); ++n) {
    for (const std::uint32_t g : given.of_tensor[needs[n].tensor]) {
      for (ExportedBox& part : common_boxes(given.boxes[g], needs[n], catalog))
        cut_and_add(std::move(part), message_bytes, unit_bytes(catalog.tensors[needs[n].tensor].dtype), n,
                    handed);
    }
  }
  std::stable_sort(handed.begin(), handed.end(), [&](const HandedBox& a, const HandedBox& b) {
    return std::tuple(layers.of_tensor[a.part.tensor], a.part.tensor, a.need) <
           std::tuple(layers.of_tensor[b.part.tensor], b.part.tensor, b.need);
  });
  return handed;
}

std::size_t bytes_of_part(const ExportedBox& part, const Catalog& catalog) {
  return static_cast<std::size_t>(volume(part.box.size) * unit_bytes(catalog.tensors[part.tensor].dtype));
}

void expect_all(const std::vector<ExportedBox>& needs, const std::vector<HandedList>& receives,
                const Catalog& catalog) {
  std::vector<std::vector<const ExportedBox*>> of_need(needs.size());
  for (const HandedList& list : receives) {
    for (const HandedBox& handed : list.boxes) of_need[handed.need].push_back(&handed.part);
  }
  Problems problems;
  for (std::size_t n = 0; n < needs.size(); ++n) {
    const SourceTensor& tensor = catalog.tensors[needs[n].tensor];
    std::vector<Box> boxes;
    bool in_one_view = true;
    std::int64_t elements = 0;
    for (const ExportedBox* part : of_need[n]) {
      in_one_view = in_one_view && part->view == needs[n].view;
      elements += volume(part->box.size);
      boxes.push_back(part->box);
    }
    std::string fault;
    if (in_one_view) {
      fault = tiling_fault(needs[n].box, std::move(boxes));
    } else {
      // No two overlap in the view that all of them are in, of which this need is a box or several.
      if (overlap(std::move(boxes))) fault = "some elements come twice";
      if (elements != volume(needs[n].box.size))
        fault = "expected " + std::to_string(volume(needs[n].box.size)) + " elements, found " +
                std::to_string(elements);
    }
    if (!fault.empty()) problems.add(stored_name(tensor) + " " + to_string(needs[n].box) + ": " + fault);
  }
  problems.throw_if_any(ErrorKind::mismatch,
                        "the trainer's ranks do not give this rank what it needs, each element once:");
}

std::vector<Message> messages_of(const std::vector<HandedBox>& boxes, const Catalog& catalog,
                                 const HandedLayers& layers, std::size_t message_bytes) {
  std::vector<Message> messages;
  for (std::size_t b = 0; b < boxes.size(); ++b) {
    const std::uint32_t layer = layers.of_tensor[boxes[b].part.tensor];
    const std::size_t bytes = (bytes_of_part(boxes[b].part, catalog) + alignment_in_message - 1) /
                              alignment_in_message * alignment_in_message;
    if (messages.empty() || messages.back().layer != layer || messages.back().bytes + bytes > message_bytes)
      messages.push_back({layer, b, 0, 0});
    ++messages.back().count;
    messages.back().bytes += bytes;
  }
  return messages;
}

}  // namespace shardwright
