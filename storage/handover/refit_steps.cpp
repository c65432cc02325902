#include "storage/handover/refit_steps.h"

#include <set>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/handover/engine_transfers.h"
#include "storage/handover/handed_layers.h"

namespace shardwright {

PlannedRefit begin_plan(DescribedExport described, const std::vector<EngineTensor>& engine,
                        std::size_t message_bytes) {
  PlannedRefit planned;
  planned.described = std::make_shared<const DescribedExport>(std::move(described));
  const Catalog& catalog = planned.described->layout.catalog;
  planned.layers = layers_of(catalog);
  planned.transfers = transfers_into(engine, catalog, "what the trainer hands over");
  planned.plan.message_bytes = message_bytes;
  return planned;
}

ExportedBox exported_box(const EncodedBox& encoded, const Catalog& catalog) {
  const SourceTensor& tensor = catalog.tensors[encoded.tensor];
  ExportedBox box{encoded.tensor, {}, in_units(tensor.dtype, encoded.box)};
  if (encoded.shape != tensor.shape) box.view = in_units(tensor.dtype, encoded.shape);
  return box;
}

std::vector<std::uint32_t> given_whole(const PartsToWrite& parts, const ExportLayout& layout) {
  const std::set<std::uint32_t> files(parts.headers.begin(), parts.headers.end());
  std::vector<std::uint32_t> tensors = layout.copied;
  for (const Made& made : layout.made) tensors.push_back(made.tensor);
  std::erase_if(tensors, [&](std::uint32_t t) { return !files.contains(layout.catalog.tensors[t].file); });
  return tensors;
}

std::vector<ExportedBox> given_by(const ExportTasks& work, const PartsToWrite& parts,
                                  const ExportLayout& layout) {
  const Catalog& catalog = layout.catalog;
  std::vector<ExportedBox> given;
  for (std::size_t t = 0; t < work.transfers.size(); ++t) {
    const BoxesOfTask boxes = boxes_of({t, work.transfers[t].transfer->source_box}, work, parts, layout);
    if (!is_empty(boxes.elements.box)) given.push_back(exported_box(boxes.elements, catalog));
    if (boxes.scales && !is_empty(boxes.scales->box)) given.push_back(exported_box(*boxes.scales, catalog));
  }
  for (const std::uint32_t tensor : given_whole(parts, layout)) {
    const SourceTensor& whole_one = catalog.tensors[tensor];
    given.push_back({tensor, {}, whole(in_units(whole_one.dtype, whole_one.shape))});
  }
  return given;
}

std::vector<std::string> plan_sends(int rank, std::vector<ExportedBox> given,
                                    const std::vector<std::string>& needs, PlannedRefit& planned) {
  const Catalog& catalog = planned.described->layout.catalog;
  const GivenBoxes boxes(std::move(given), catalog);
  std::vector<std::string> told(needs.size());
  for (std::size_t to = 0; to < needs.size(); ++to) {
    if (needs[to].empty()) continue;
    HandedList list{static_cast<int>(to), handed_boxes(boxes, decode_needs(needs[to], catalog, &boxes),
                                                       catalog, planned.layers, planned.plan.message_bytes)};
    if (list.boxes.empty()) continue;
    told[to] = encode(RefitPlan{{}, {{rank, list.boxes}}, planned.plan.message_bytes});
    planned.plan.sends.push_back(std::move(list));
  }
  return told;
}

void plan_receives(const std::vector<std::string>& told, PlannedRefit& planned) {
  const Catalog& catalog = planned.described->layout.catalog;
  const std::vector<ExportedBox> needs = needs_of(planned.transfers);
  for (std::size_t rank = 0; rank < told.size(); ++rank) {
    if (told[rank].empty()) continue;
    RefitPlan of_sender = decode_refit_plan(told[rank], catalog);
    for (HandedList& list : of_sender.receives) {
      list.rank = static_cast<int>(rank);
      for (const HandedBox& handed : list.boxes) {
        if (handed.need >= needs.size() || needs[handed.need].tensor != handed.part.tensor)
          throw Error(ErrorKind::malformed,
                      "rank " + std::to_string(rank) +
                          " is to send what this rank does not need; do all ranks run the "
                          "same version of shardwright?");
      }
      planned.plan.receives.push_back(std::move(list));
    }
  }
  expect_all(needs, planned.plan.receives, catalog);
}

}  // namespace shardwright
