/// libFuzzer target: every decoder of what ranks send each other, and of plans that were kept, takes any
/// bytes, and what it has taken is encoded and decoded again to the same. The first byte says which decoder.
///
///     shardwright_wire_fuzz --seeds=DIR      writes a corpus to begin with
///     shardwright_wire_fuzz DIR              runs

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/handover/refit_plan.h"
#include "planner/load/plan_wire.h"
#include "planner/models/models.h"
#include "planner/names/held_tensors.h"
#include "planner/save/export_wire.h"
#include "planner/save/global_save_plan.h"
#include "planner/save/plan_together.h"
#include "planner/save/save_wire.h"
#include "planner/save/write_results.h"
#include "storage/format/row_checksums.h"
#include "storage/handover/refit_rounds.h"
#include "storage/handover/refit_steps.h"
#include "storage/write/export.h"
#include "tests/fuzz/entry.h"
#include "tests/planner/random_checkpoint.h"
#include "tests/planner/random_layouts.h"
#include "tests/planner/random_saves.h"

namespace shardwright {
namespace {

enum Decoder : char {
  values,
  state,
  writes,
  metadata,
  load_plan,
  whole_save,
  results,
  transfers,
  told,
  answered,
  holdings,
  share,
  tensors,
  row_sums,
  whole_export,
  engine_needs,
  refit_plan,
  refit_rounds,
  decoders
};

void require(bool holds) {
  if (!holds) std::abort();
}

/// A checkpoint and a trainer that load plans are for.
struct LoadJob {
  Catalog catalog;
  std::vector<TensorSpec> specs;

  LoadJob() {
    Random random(11);
    const RandomModel model = random_model(random);
    catalog = catalog_of(random, model.stored);
    for (const Native& native : model.natives) {
      const Mesh mesh = random_mesh(random, std::ssize(native.shape));
      const Shape origin(mesh.shape.size(), 0);
      specs.push_back(
          sharded_tensor(native.fqn, native.dtype, native.shape, mesh.shape, origin, mesh.placements));
    }
  }
};

const LoadJob& load_job() {
  static const LoadJob job;
  return job;
}

/// A rank's own state, which answers of rank 0 are about.
const RankState& mine() {
  static const RankState state = [] {
    Random random(12);
    return random_save(random, true).states.front();  // on as many ranks as its mesh has
  }();
  return state;
}

/// A state that describes all it speaks of, without meshes: those come from the job's own ranks, and a tensor
/// may lie on one in more pieces than there is memory.
void plan_alone(std::string_view bytes) {
  const RankState alone = decode_state(bytes);
  ValuesByHash known;
  learn_values(alone, known);
  for (const auto& [hash, described] : known) {
    if (described->has_mesh()) return;
  }
  const GlobalSavePlan plan = plan_save({alone}, known);
  require(decode_metadata(encode(plan.metadata)) == plan.metadata);
  std::vector<std::size_t> counts;
  for (const SavedItems& items : items_of(alone)) counts.push_back(items.value.size());
  const RankWrites writes{plan.left_to_others.front(), {}};
  require(decode_writes(encode(writes), counts) == writes);
}

/// What one rank tells of its part in an export, from its bytes to the plan; without meshes, as plan_alone().
void plan_export_alone(std::string_view bytes) {
  const ExportHoldings alone = decode_holdings(std::string(bytes));
  ValuesByHash known;
  learn_values(decode_state(alone.state), known);
  for (const auto& [hash, described] : known) {
    if (described->has_mesh()) return;
  }
  const WeightMap map = unchanged_names();
  ExportRequest request;
  request.map = &map;
  request.layout = "huggingface";
  request.set_quantization("nvfp4-modelopt", {"*"});
  const PlannedExport planned = plan_export({std::string(bytes)}, request, "export");
  for (const std::string& one : planned.shares) require(encode_share(decode_share(one)) == one);
}

/// Hands all tensors over to whoever needs parts of them, each element of a need once.
void supply_whole(const std::vector<ExportedBox>& needs, const Catalog& catalog) {
  std::vector<ExportedBox> all;
  for (std::uint32_t t = 0; t < catalog.tensors.size(); ++t)
    all.push_back({t, {}, whole(in_units(catalog.tensors[t].dtype, catalog.tensors[t].shape))});
  const HandedLayers layers{{"layer"}, std::vector<std::uint32_t>(catalog.tensors.size(), 0)};
  const std::vector<HandedBox> handed = handed_boxes(GivenBoxes(all, catalog), needs, catalog, layers, 256);
  expect_all(needs, {{0, handed}}, catalog);
  std::size_t count = 0;
  for (const Message& message : messages_of(handed, catalog, layers, 256)) count += message.count;
  require(count == handed.size());
}

/// What a sender tells to a rank that needs each tensor once.
void receive_whole(std::string_view told, const Catalog& catalog) {
  auto described = std::make_shared<DescribedExport>();
  described->layout.catalog = catalog;
  PlannedRefit planned;
  planned.described = std::move(described);
  for (std::uint32_t t = 0; t < catalog.tensors.size(); ++t) {
    Transfer& transfer = planned.transfers.emplace_back();
    transfer.source = t;
    transfer.source_box = whole(in_units(catalog.tensors[t].dtype, catalog.tensors[t].shape));
  }
  plan_receives({std::string(told)}, planned);
}

/// What a rank holds of an export of a matrix to be quantized and of a vector.
std::string holdings_of_export() {
  static std::vector<std::uint16_t> memory(4 * 64, 0x3F80);
  const WeightMap map = unchanged_names();
  ExportRequest request;
  request.map = &map;
  request.layout = "huggingface";
  request.set_quantization("nvfp4-modelopt", {"*"});
  const std::vector<TensorSpec> specs{whole_tensor("q_proj.weight", DType::BF16, {4, 64}, memory.data()),
                                      whole_tensor("norm.weight", DType::BF16, {64}, memory.data())};
  return describe_export(specs, state_of(specs, 0), request);
}

void decode(char decoder, std::string_view bytes) {
  switch (decoder) {
    case values: {
      const SavedValues decoded = decode_values(bytes);
      require(decode_values(encode(decoded)) == decoded);
      break;
    }
    case state: {
      const RankState decoded = decode_state(bytes);
      require(decode_state(encode(decoded)) == decoded);
      break;
    }
    case writes: {
      const RankWrites decoded = decode_writes(bytes, {5, 0, 1000});
      require(decode_writes(encode(decoded), {5, 0, 1000}) == decoded);
      break;
    }
    case metadata: {
      const GlobalMetadata decoded = decode_metadata(bytes);
      require(decode_metadata(encode(decoded)) == decoded);
      break;
    }
    case load_plan: {
      const auto& [catalog, specs] = load_job();
      const LoadPlan decoded = decode_plan(bytes, catalog, specs);
      require(decode_plan(encode_plan(decoded, catalog, specs), catalog, specs) == decoded);
      break;
    }
    case results: {
      const WriteResults decoded = decode_results(bytes);
      require(decode_results(encode(decoded)) == decoded);
      break;
    }
    case transfers: {
      for (const Transfer& transfer : decode_transfers(bytes, load_job().catalog))
        require(transfer.source < load_job().catalog.tensors.size());
      break;
    }
    case told: {
      SavePlanCache cache;
      require(answer({std::string(bytes)}, cache).size() == 1);
      break;
    }
    case answered: {
      SavePlanCache cache;
      understand(std::string(bytes), mine(), cache);
      break;
    }
    case holdings: {
      const ExportHoldings decoded = decode_holdings(std::string(bytes));
      require(decode_holdings(encode_holdings(decoded)) == decoded);
      break;
    }
    case share: {
      const ExportShare decoded = decode_share(std::string(bytes));
      require(decode_share(encode_share(decoded)) == decoded);
      break;
    }
    case tensors: {
      const std::vector<SavedTensor> decoded = decode_tensors(std::string(bytes));
      require(decode_tensors(encode_tensors(decoded)) == decoded);
      break;
    }
    case row_sums: {
      const auto& stored = load_job().catalog.tensors;
      require(merged_row_sums({std::string(bytes)}, stored).size() == stored.size());
      break;
    }
    case whole_export:
      plan_export_alone(bytes);
      break;
    case engine_needs: {
      const Catalog& catalog = load_job().catalog;
      const std::vector<ExportedBox> decoded = decode_needs(bytes, catalog);
      require(decode_needs(encode_needs(decoded), catalog) == decoded);
      supply_whole(decoded, catalog);
      break;
    }
    case refit_plan: {
      const Catalog& catalog = load_job().catalog;
      const RefitPlan decoded = decode_refit_plan(bytes, catalog);
      require(decode_refit_plan(encode(decoded), catalog) == decoded);
      receive_whole(bytes, catalog);
      break;
    }
    case refit_rounds: {
      const std::string text(bytes);
      const auto tried = [](const auto& decode) {  // each of the rounds has a message of its own
        try {
          decode();
        } catch (const Error&) {
        }
      };
      tried([&] { require(agreed_plan({text}).name.size() > 0); });
      tried([&] { ToldSide::unpack(text); });
      tried([&] { AnsweredSide::unpack(text); });
      break;
    }
    default:
      plan_alone(bytes);
  }
}

void write_seeds(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  int number = 0;
  const auto write = [&](Decoder decoder, const std::string& bytes) {
    std::ofstream(folder / std::to_string(number++), std::ios::binary) << static_cast<char>(decoder) << bytes;
  };
  Random random(1);
  for (int round = 0; round < 20; ++round) {
    const RandomSave save = random_save(random, round % 2 == 0);
    const RankState& first = save.states.front();
    for (const std::string& described : first.values) write(values, described);
    write(state, encode(first));
    ValuesByHash known;
    for (const RankState& of_rank : save.states) learn_values(of_rank, known);
    const GlobalSavePlan plan = plan_save(save.states, known);
    write(metadata, encode(plan.metadata));
    write(whole_save, encode(random_save(random, false, 1).states.front()));
    write(results, encode(random_results(random)));
  }
  std::vector<SavePlanCache> caches(1);
  write(told, tell(told_state(mine()), caches[0]));
  write(told, "b" + std::string(32, 'h'));
  write(answered, "n" + std::to_string(encode(mine()).size()) + ":" + encode(mine()) + "why");
  write(answered, "b");
  write(answered, "p" + std::string(16, 'h') + encode(RankWrites{LeftToOthers(mine().holdings.size()), {}}));
  const SavedTensor tensor{"w", DType::BF16, {4, 6}};
  const BlockColumn column{"w", 1, 2, {120, 130}};
  write(holdings, encode_holdings({"state", {1, 0}, {column}}));
  write(share, encode_share({"", encode_tensors({tensor}), "writes", {column}, {0, 3}}));
  write(writes, encode(RankWrites{{{0, 1, 4}, {}, {7, 8, 9, 600}}, {{0, 1, 2, 3, 4}}}));
  write(tensors, encode_tensors({tensor}));
  write(whole_export, holdings_of_export());
  write(holdings, holdings_of_export());
  const auto& [catalog, specs] = load_job();
  std::vector<ExportedBox> needs;
  for (std::uint32_t t = 0; t < catalog.tensors.size(); ++t)
    needs.push_back({t, {}, whole(in_units(catalog.tensors[t].dtype, catalog.tensors[t].shape))});
  HandedList all{0, {}};
  for (std::uint32_t n = 0; n < needs.size(); ++n) all.boxes.push_back({n, needs[n]});
  write(engine_needs, encode_needs(needs));
  write(refit_plan, encode(RefitPlan{{}, {all}, 4096}));
  write(refit_rounds, ToldPlan().pack());
  write(refit_rounds, ToldSide{true, false, "holdings", "asked"}.pack());
  const std::string plan =
      encode_plan(plan_load(specs, catalog, weight_map_for(catalog, "minimax_m3")), catalog, specs);
  write(load_plan, plan);
  write(transfers, plan);
}

}  // namespace

const FuzzTarget fuzz_target{decoders, decode, write_seeds};

}  // namespace shardwright
