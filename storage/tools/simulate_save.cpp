#include "storage/tools/simulate_save.h"

#include <algorithm>
#include <string>

#include "planner/save/plan_together.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

std::uint64_t bytes_of_all(const std::vector<std::string>& messages) {
  std::uint64_t bytes = 0;
  for (const std::string& message : messages) bytes += message.size();
  return bytes;
}

/// torch's names are not needed: nothing that is counted depends on what a dtype is called.
SavedValue saved_value(const TensorsOnMesh& tensors, std::size_t t) {
  const NativeTensor& tensor = tensors.tensors()[t];
  SavedValue value;
  value.fqn = tensor.fqn;
  value.properties = {std::string(name_of(tensor.dtype)), "strided",
                      static_cast<std::uint32_t>(bytes_of(tensor.dtype)), 0};
  value.shape = tensor.shape;
  value.placements = tensors.placements_in_stage(t);
  return value;
}

}  // namespace

SimulatedSave simulate_save(const TensorsOnMesh& tensors, int threads) {
  std::vector<SavedValues> stages(static_cast<std::size_t>(tensors.stages()));
  for (SavedValues& stage : stages) stage.mesh_shape = tensors.shape_of_stage();
  for (std::size_t t = 0; t < tensors.tensors().size(); ++t)
    stages[static_cast<std::size_t>(tensors.stage_of_tensor(t))].values.push_back(saved_value(tensors, t));
  for (std::int64_t rank = 0; rank < tensors.ranks(); ++rank)
    stages[static_cast<std::size_t>(tensors.stage_of_rank(rank))].mesh_ranks.push_back(rank);
  std::vector<std::string> described;
  for (const SavedValues& stage : stages) described.push_back(encode(stage));

  const auto count = static_cast<std::size_t>(tensors.ranks());
  // As told_state() gives it, without decoding a description for each rank.
  const auto told_state_of = [&](std::size_t rank) {
    RankState state;
    state.rank = static_cast<std::int64_t>(rank);
    const auto stage = static_cast<std::size_t>(tensors.stage_of_rank(state.rank));
    state.holdings = {{hash_of(described[stage]), {}}};
    if (state.rank == stages[stage].mesh_ranks.front()) state.values = {described[stage]};
    return encode(state);
  };
  SimulatedSave save;
  save.ranks = tensors.ranks();
  std::vector<std::string> told(count);
  std::vector<SavePlanCache> caches(count);
  const auto tell_all = [&] {
    for_each_index(count, threads, [&](std::size_t r) { told[r] = tell(told_state_of(r), caches[r]); });
  };
  SavePlanCache coordinator;
  tell_all();
  double begin = processor_seconds();
  const std::vector<std::string> answers = answer(told, coordinator);
  save.seconds = processor_seconds() - begin;
  save.bytes_exchanged = bytes_of_all(told) + bytes_of_all(answers);
  for (std::size_t r = 1; r < count; ++r) {
    save.most_bytes_of_rank =
        std::max<std::uint64_t>(save.most_bytes_of_rank, told[r].size() + answers[r].size());
  }
  save.chunks = coordinator.plan->chunks;
  save.bytes_of_rank = coordinator.plan->bytes_of_rank;
  save.bytes_metadata = encode(coordinator.plan->metadata).size();

  for (SavePlanCache& cache : caches) {  // what every rank now knows
    cache.told = cache.telling;
    cache.job = hash_of_job(coordinator.states_of_ranks);
  }
  tell_all();
  begin = processor_seconds();
  const std::vector<std::string> unchanged = answer(told, coordinator);
  save.seconds_unchanged = processor_seconds() - begin;
  save.bytes_unchanged = bytes_of_all(told) + bytes_of_all(unchanged);
  return save;
}

}  // namespace shardwright
