/// Two ranks train a matrix, each half of its rows, and hand it to an engine of which each has half of its
/// columns: through memory that they share, and over c10d. Nobody gets what no rank has.

#include <ATen/ATen.h>
#include <shardwright/shardwright.h>
#include <shardwright/torch.h>

#include "ranks.h"

namespace {

constexpr const char* name = "model.layers.0.mlp.down_proj.weight";

void refit_rank(const shardwright::Peers& peers, bool share_memory) {
  const shardwright::Job job = shardwright::job_over(peers);
  const at::Tensor whole = at::arange(48, at::kFloat).view({6, 8}).to(at::kBFloat16);
  const at::Tensor rows = whole.chunk(2, 0)[static_cast<std::size_t>(job.rank)].clone();
  const at::Tensor columns = at::zeros({6, 4}, at::kBFloat16);
  // README: refit
  const shardwright::Placement shard_0{shardwright::Placement::Kind::shard, 0};
  const std::vector<shardwright::TensorSpec> specs{
      shardwright::describe(name, rows, {6, 8}, {job.ranks}, {job.rank}, {shard_0})};
  // This rank's columns of it, in the engine's own memory.
  const shardwright::EnginePart part{name, {{0, 4 * job.rank}, {6, 4}}};
  const shardwright::EngineMemory memory{static_cast<std::byte*>(columns.mutable_data_ptr()), {4, 1}};
  const shardwright::TrainerAndEngine side{
      &specs, {{"down_proj", shardwright::DType::BF16, {6, 4}, {part}}}, {memory}};

  shardwright::RefitEngineOptions options;
  options.layout = "huggingface";
  options.share_memory = share_memory;
  shardwright::KeptRefit kept;
  const shardwright::Transport transport = shardwright::transport_over(peers);
  const shardwright::RefitOutcome outcome = shardwright::refit_engine(side, job, transport, kept, options);
  if (outcome.failure) std::rethrow_exception(outcome.failure);
  // README: end
  const shardwright::RefitReport& report = outcome.report;
  expect(at::equal(columns, whole.slice(1, 4 * job.rank, 4 * job.rank + 4)), "the columns have come");
  expect(report.bytes_in_memory == (share_memory ? report.bytes_sent + report.bytes_received : 0),
         "they have come the way that was asked for");

  rows.mul_(2);
  expect(!shardwright::refit_engine(side, job, transport, kept, options).failure, "the plan is kept");
  expect(at::equal(columns, whole.slice(1, 4 * job.rank, 4 * job.rank + 4) * 2), "what has changed comes");

  shardwright::TrainerAndEngine lacking = side;
  if (job.rank == 1) lacking.engine[0].parts[0].hf_name = "model.no_such.weight";
  try {
    shardwright::refit_engine(lacking, job, transport, kept, options);
  } catch (const shardwright::Error& error) {
    const std::string text = error.what();
    expect(error.kind == shardwright::ErrorKind::mismatch && text.find("no_such") != std::string::npos &&
               text.find("rank 1") != std::string::npos,
           "all ranks are told what nobody can supply: " + text);
    return;
  }
  expect(false, "no rank goes on where one cannot");
}

}  // namespace

int main() {
  on_peers(2, [](const shardwright::Peers& peers) { refit_rank(peers, true); });
  on_peers(2, [](const shardwright::Peers& peers) { refit_rank(peers, false); });
  return 0;
}
