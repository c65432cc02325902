// What ranks of an export tell each other is checked before it is followed.

#include <gtest/gtest.h>

#include "planner/names/held_tensors.h"
#include "planner/save/export_wire.h"
#include "planner/save/rank_states.h"
#include "storage/format/read_catalog.h"
#include "storage/write/export.h"
#include "tests/storage/checkpoint_files.h"
#include "tests/storage/device_destinations.h"

namespace shardwright {
namespace {

/// Three ranks of a matrix of 64 columns, each of which cuts a block of 32.
class ExportMessages : public testing::Test {
 protected:
  ExportMessages() {
    request.model = "minimax_m3";
    request.quantize = quantization_named("mxfp8");
    for (std::int64_t rank = 0; rank < 3; ++rank) {
      specs.push_back({sharded_tensor("lm_head.weight", DType::F32, {8, 64}, {3}, {rank},
                                      {{Placement::Kind::shard, 1, 1}}),
                       sharded_tensor("model.layers.0.self_attn.q_proj.weight", DType::F32, {8, 64}, {3},
                                      {rank}, {{Placement::Kind::shard, 1, 1}})});
      memory.emplace_back(2);
      for (std::size_t s = 0; s < 2; ++s) memory.back()[s].give(random, specs.back()[s]);
      states.push_back(state_of(specs.back(), rank));
      holdings.push_back(describe_export(specs.back(), states.back(), request));
    }
  }

  void expect_refused(const std::function<void(BlockColumn&)>& change) {
    ExportHoldings told = decode_holdings(holdings[1]);
    ASSERT_FALSE(told.columns.empty());
    change(told.columns.front());
    std::vector<std::string> all = holdings;
    all[1] = encode_holdings(told);
    expect_error(ErrorKind::malformed, {"rank 1", "q_proj", "expected scales of blocks of [8, 64]"},
                 [&] { plan_export(all, request, directory.path); });
  }

  Random random{1};
  TemporaryDirectory directory;
  ExportRequest request;
  std::vector<std::vector<TensorSpec>> specs;
  std::vector<std::vector<Memory>> memory;
  std::vector<RankState> states;
  std::vector<std::string> holdings;
};

TEST_F(ExportMessages, scales_of_rows_or_blocks_that_a_weight_does_not_have_are_refused) {
  expect_refused([](BlockColumn& column) { column.first_row = std::int64_t{1} << 60; });
  expect_refused([](BlockColumn& column) { column.first_row = 1; });
  expect_refused([](BlockColumn& column) { column.scales.push_back(0); });
  expect_refused([](BlockColumn& column) { column.block = 2; });
}

TEST_F(ExportMessages, scales_of_a_weight_that_no_file_has_are_of_no_meaning) {
  std::vector<std::string> all = holdings;
  ExportHoldings told = decode_holdings(all[1]);
  told.columns.push_back({"a weight of another family", 0, std::int64_t{1} << 60, {1}});
  all[1] = encode_holdings(told);
  EXPECT_EQ(plan_export(all, request, directory.path).shares,
            plan_export(holdings, request, directory.path).shares);
}

TEST_F(ExportMessages, ranks_that_were_asked_for_something_else_are_named) {
  const auto expect_named = [&](const ExportRequest& other, const char* words) {
    std::vector<std::string> all = holdings;
    all[2] = describe_export(specs[2], states[2], other);
    expect_error(ErrorKind::mismatch, {"different arguments", "rank 2: expected", words},
                 [&] { plan_export(all, request, directory.path); });
  };
  ExportRequest other = request;
  other.max_file_bytes = 1200;
  expect_named(other, "max_shard_size 5000000000 as on rank 0, found max_shard_size 1200");
  other = request;
  other.quantize = nullptr;
  expect_named(other, "quantization mxfp8 as on rank 0, found quantization none");
  other = request;
  other.file_numbers = {{"lm_head.weight", 1}};
  expect_named(other, "file numbers none as on rank 0, found file numbers ");
  other = request;
  const WeightMap map = unchanged_names();
  other.map = &map;
  expect_named(other, "rules none as on rank 0, found rules ");
}

/// Two templates whose headers are alike to the byte, with and without checksums.
TEST_F(ExportMessages, ranks_whose_templates_hold_other_bytes_are_named) {
  const auto template_of = [&](const std::string& name, char byte) {
    std::string bytes = one_tensor_file("lm_head.weight", 100'000);
    bytes[bytes.size() / 2] = byte;
    write_file(directory / name / "model.safetensors", bytes);
    return read_catalog(directory / name);
  };
  const Catalog catalogs[]{template_of("one", 0), template_of("copy", 0), template_of("two", 1)};
  const auto told_by = [&](std::size_t rank, const Catalog& catalog) {
    ExportRequest asked = request;
    asked.quantize = nullptr;
    asked.template_catalog = &catalog;
    return describe_export(specs[rank], states[rank], asked);
  };
  ExportRequest asked = request;
  asked.quantize = nullptr;
  asked.template_catalog = &catalogs[0];
  const auto plan_with = [&](const Catalog& of_rank_2) {
    plan_export({told_by(0, catalogs[0]), told_by(1, catalogs[1]), told_by(2, of_rank_2)}, asked,
                directory.path);
  };
  expect_error(ErrorKind::mismatch,
               {"different arguments", "rank 2: expected template's pages of files ", "as on rank 0"},
               [&] { plan_with(catalogs[2]); });
  expect_error(ErrorKind::mismatch, {"cannot export these tensors with the names and shapes of"},
               [&] { plan_with(catalogs[1]); });  // which has no q_proj
}

TEST_F(ExportMessages, the_header_of_a_file_that_there_is_not_is_refused) {
  const PlannedExport planned = plan_export(holdings, request, directory.path);
  ExportShare share = decode_share(planned.shares[0]);
  share.headers.push_back(1);
  expect_error(ErrorKind::malformed, {"the header of file 1 of 1"},
               [&] { run_export(encode_share(share), specs[0], states[0], request, directory.path); });
}

}  // namespace
}  // namespace shardwright
