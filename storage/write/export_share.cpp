#include "storage/write/export_share.h"

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "planner/error.h"
#include "planner/names/spec_parts.h"
#include "planner/save/export_wire.h"
#include "planner/save/refusals.h"
#include "storage/boxes/placing.h"
#include "storage/write/find_numbers.h"

namespace shardwright {
namespace {

/// The parts of the rank's tensors that it is to write.
std::vector<TensorSpec> owned_parts(const std::vector<TensorSpec>& specs,
                                    const std::vector<WrittenBox>& owned) {
  std::unordered_multimap<std::string_view, const TensorSpec*> by_name;
  for (const TensorSpec& spec : specs) by_name.emplace(spec.fqn, &spec);
  std::vector<TensorSpec> parts;
  for (const WrittenBox& written : owned) {
    const Box& box = written.box;
    if (is_empty(box)) continue;
    const auto [begin, end] = by_name.equal_range(written.fqn);
    const auto spec = std::find_if(begin, end, [&](const auto& entry) { return holds(*entry.second, box); });
    if (spec == end)
      throw Error(ErrorKind::argument,
                  written.fqn + ": this rank has said that it holds " + to_string(box) + ", and does not");
    parts.push_back(part_of(*spec->second, box));
  }
  return parts;
}

/// Each box that the rank holds.
std::vector<TensorSpec> held_parts(const std::vector<TensorSpec>& specs) {
  std::vector<TensorSpec> parts;
  for (const TensorSpec& spec : specs) {
    for (const LocalBox& box : spec.boxes) {
      if (!is_empty(box.global)) parts.push_back(part_of(spec, box.global));
    }
  }
  return parts;
}

/// What rank 0 has told of the weights with a global scale, in the order of what the layout makes.
void add_largest(const ExportLayout& layout, const std::vector<float>& largest, KnownNumbers& known) {
  std::size_t n = 0;
  for (const Made& made : layout.made) {
    if (made.how.kind != MadeTensor::Kind::global_scale) continue;
    if (n < largest.size()) known.add_largest(made.how.weight, largest[n]);
    ++n;
  }
  if (n != largest.size())
    throw Error(ErrorKind::malformed, "rank 0 has told the largest magnitudes of " +
                                          std::to_string(largest.size()) + " weights; expected " +
                                          std::to_string(n) +
                                          "; do all ranks run the same version of shardwright?");
}

}  // namespace

SharedExport shared_export(const std::string& bytes, const std::vector<TensorSpec>& specs,
                           const RankState& state, const ExportRequest& request,
                           const std::filesystem::path& directory, PartsOfRank which) {
  ExportShare told = decode_share(bytes);
  if (!told.refusal.empty()) throw_refusal(told.refusal, state);
  SharedExport share{described_export(request, decode_tensors(told.tensors), directory), {}};
  const ExportLayout& layout = share.described.layout;
  for (const std::uint32_t file : told.headers) {
    if (file >= layout.headers.size())
      throw Error(ErrorKind::malformed, "this rank is to write the header of file " + std::to_string(file) +
                                            " of " + std::to_string(layout.headers.size()) +
                                            "; do all ranks run the same version of shardwright?");
  }
  const std::vector<WrittenBox> owned = boxes_to_write(state, read_writes(told.writes, state));
  share.parts = {which == PartsOfRank::written ? owned_parts(specs, owned) : held_parts(specs),
                 std::move(told.columns),
                 std::move(told.headers),
                 {}};
  for (const WeightNumbers& numbers : told.numbers) share.parts.numbers.add(numbers);
  add_largest(layout, told.largest, share.parts.numbers);
  return share;
}

LoadPlan plan_of_parts(const std::vector<TensorSpec>& parts, const DescribedExport& described) {
  LoadPlanOptions reversed;
  reversed.exporting = true;
  reversed.strict = false;
  reversed.what = "the checkpoint that is to be written";
  return plan_load(parts, described.layout.catalog, described.form.map, reversed);
}

LoadPlan plan_with_memory(SharedExport& share, const std::vector<TensorSpec>& specs,
                          const DeviceOptions& devices) {
  complete_numbers(specs, share.parts.specs, share.described.form, devices, share.parts.numbers);
  LoadPlan plan = plan_of_parts(share.parts.specs, share.described);
  expect_memory(plan, share.parts.specs);
  return plan;
}

}  // namespace shardwright
