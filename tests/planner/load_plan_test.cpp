#include "planner/load/load_plan.h"

#include <gtest/gtest.h>

#include <set>

#include "planner/models/models.h"
#include "planner/names/mesh.h"
#include "planner/names/weight_map.h"
#include "planner/problems.h"
#include "tests/planner/random_checkpoint.h"
#include "tests/planner/released_model.h"
#include "tests/planner/rounds.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

/// Where a destination element comes from: which element of which tensor of the catalog, the scale that it is
/// multiplied with, and where it lies in that scale's block.
struct Origin {
  std::int64_t tensor = -1;
  std::size_t element = 0;
  std::int64_t scale_tensor = -1;
  std::size_t scale = 0;
  Shape in_block;

  bool operator==(const Origin&) const = default;
};

/// The chunk of a tensor that holds an index, and the position of the index in it.
std::pair<std::int64_t, std::size_t> find_element(const Catalog& catalog, const std::string& name,
                                                  const Shape& index) {
  for (std::size_t t = 0; t < catalog.tensors.size(); ++t) {
    const SourceTensor& tensor = catalog.tensors[t];
    if (tensor.name != name || !holds({tensor.offset, tensor.shape}, index)) continue;
    Shape inside = index;
    for (std::size_t d = 0; d < inside.size(); ++d) inside[d] -= tensor.offset[d];
    return {static_cast<std::int64_t>(t), flat(inside, tensor.shape)};
  }
  return {-1, 0};
}

/// By the definition: the HF element from the table of names, its scale from the block that it lies in.
Origin defined_origin(const Catalog& catalog, const Native& native, const Shape& at) {
  const HfElement hf = hf_element(native, at);
  Origin origin;
  std::tie(origin.tensor, origin.element) = find_element(catalog, hf.name, hf.index);
  if (hf.index.size() != 2) return origin;
  for (const char* suffix : {"_scale_inv", "_scale"}) {
    const std::span<const SourceTensor> scales = catalog.find(hf.name + suffix);
    if (scales.empty()) continue;
    const ScaleElement scale = scale_element(scales.front().dtype, Catalog::global_shape(scales), hf.index);
    std::tie(origin.scale_tensor, origin.scale) = find_element(catalog, hf.name + suffix, scale.index);
    origin.in_block = scale.in_block;
  }
  return origin;
}

/// What running the plan would do to each element of one destination.
std::vector<std::vector<Origin>> run(const LoadPlan& plan, const Catalog& catalog, const TensorSpec& spec,
                                     std::uint32_t destination) {
  std::vector<std::vector<Origin>> written(static_cast<std::size_t>(volume(spec.local_shape)));
  for (const Transfer& transfer : plan.transfers) {
    if (transfer.destination != destination) continue;
    const SourceTensor& source = catalog.tensors.at(transfer.source);
    EXPECT_EQ(transfer.encoding.element, source.dtype);
    for_each_index(transfer.source_box.size, [&](const Shape& step) {
      const Shape from = plus(step, transfer.source_box.offset);
      Shape to = transfer.destination_offset;
      for (std::size_t i = 0; i < step.size(); ++i) to[static_cast<std::size_t>(transfer.axes[i])] += step[i];
      Origin origin;
      origin.tensor = transfer.source;
      origin.element = flat(from, source.shape);
      EXPECT_TRUE(holds(whole(source.shape), from)) << source.name;
      if (transfer.scales >= 0) {
        const SourceTensor& scales = catalog.tensors.at(static_cast<std::size_t>(transfer.scales));
        const Shape in_blocks = {step[0] + transfer.first_row_in_block,
                                 step[1] + transfer.first_column_in_block};
        const Shape block = {transfer.encoding.block_rows, transfer.encoding.block_columns};
        Shape scale = transfer.scale_box.offset;
        if (scale.size() == 2) scale = plus(scale, {in_blocks[0] / block[0], in_blocks[1] / block[1]});
        EXPECT_TRUE(holds(transfer.scale_box, scale)) << scales.name;
        EXPECT_TRUE(holds(whole(scales.shape), scale)) << scales.name;
        origin.scale_tensor = transfer.scales;
        origin.scale = flat(scale, scales.shape);
        origin.in_block = {in_blocks[0] % block[0], in_blocks[1] % block[1]};
      }
      EXPECT_TRUE(holds(whole(spec.local_shape), to)) << spec.fqn;
      written.at(flat(to, spec.local_shape)).push_back(origin);
    });
  }
  return written;
}

TEST(load_plan, every_destination_element_comes_from_where_the_definition_says) {
  Random random(1);
  for (int round = 0; round < rounds(150); ++round) {
    const RandomModel model = random_model(random, random.once_in(10) ? 300 : 70);
    const Catalog catalog = catalog_of(random, model.stored);
    const WeightMap map = weight_map_for(catalog, "minimax_m3");
    std::vector<Native> natives;
    std::vector<TensorSpec> specs;
    std::vector<IndexLists> lists;
    std::set<std::string> left_out;
    for (const Native& native : model.natives) {
      if (random.once_in(8)) {
        for_each_index(native.shape, [&](const Shape& at) { left_out.insert(hf_element(native, at).name); });
        continue;
      }
      const Mesh mesh = random_mesh(random, std::ssize(native.shape));
      Shape coordinate;
      for (const std::int64_t size : mesh.shape) coordinate.push_back(random.between(0, size - 1));
      natives.push_back(native);
      specs.push_back(
          sharded_tensor(native.fqn, native.dtype, native.shape, mesh.shape, coordinate, mesh.placements));
      lists.push_back(index_lists(native.shape, mesh, coordinate));
    }
    const LoadPlan plan = plan_load(specs, catalog, map);

    std::set<std::pair<std::int64_t, std::size_t>> needed;
    std::set<std::string> tensors;
    std::uint64_t bytes_written = 0;
    for (std::size_t s = 0; s < specs.size(); ++s) {
      const auto written = run(plan, catalog, specs[s], static_cast<std::uint32_t>(s));
      bytes_written += written.size() * static_cast<std::uint64_t>(bytes_of(specs[s].dtype));
      ASSERT_EQ(specs[s].local_shape, shape_of(lists[s]));
      for_each_index(specs[s].local_shape, [&](const Shape& at) {
        const Origin origin = defined_origin(catalog, natives[s], global_index(lists[s], at));
        const auto& found = written[flat(at, specs[s].local_shape)];
        ASSERT_EQ(found.size(), 1U) << specs[s].fqn << to_string(at);
        ASSERT_TRUE(found[0] == origin) << specs[s].fqn << to_string(at) << " round " << round;
        needed.emplace(origin.tensor, origin.element);
        if (origin.scale_tensor >= 0) needed.emplace(origin.scale_tensor, origin.scale);
      });
    }
    std::uint64_t bytes_needed = 0;
    for (const auto& [tensor, element] : needed) {
      bytes_needed +=
          static_cast<std::uint64_t>(bytes_of(catalog.tensors[static_cast<std::size_t>(tensor)].dtype));
      tensors.insert(catalog.tensors[static_cast<std::size_t>(tensor)].name);
    }
    ASSERT_EQ(plan.bytes_needed, bytes_needed) << "round " << round;
    ASSERT_EQ(plan.bytes_written, bytes_written);
    ASSERT_EQ(plan.tensors, std::ssize(tensors));
    ASSERT_EQ(plan.unused, std::vector<std::string>(left_out.begin(), left_out.end()));
    for (std::size_t t = 1; t < plan.transfers.size(); ++t) {
      const SourceTensor& previous = catalog.tensors[plan.transfers[t - 1].source];
      const SourceTensor& source = catalog.tensors[plan.transfers[t].source];
      ASSERT_LE(std::pair(previous.file, previous.begin), std::pair(source.file, source.begin));
    }
  }
}

TEST(load_plan, bytes_that_two_destinations_share_are_needed_once) {
  const Catalog catalog = catalog_of({{"language_model.lm_head.weight", DType::F8_E4M3, {4, 64}},
                                      {"language_model.lm_head.weight_scale_inv", DType::U8, {4, 2}}});
  const WeightMap map = weight_map_for(catalog, "minimax_m3");
  // Columns 0-7 and 16-23: two boxes under the same scales.
  const TensorSpec strided = sharded_tensor("lm_head.weight", DType::BF16, {4, 64}, {2}, {0},
                                            {{Placement::Kind::strided_shard, 1, 4}});
  ASSERT_GT(strided.boxes.size(), 1U);
  EXPECT_EQ(plan_load({strided}, catalog, map).bytes_needed, 4U * 32 + 4 * 2);
  const TensorSpec whole_matrix = whole_tensor("lm_head.weight", DType::BF16, {4, 64});
  EXPECT_EQ(plan_load({strided, whole_matrix}, catalog, map).bytes_needed, 4U * 64 + 4 * 2);
}

TEST(load_plan, the_whole_released_model_is_planned_once_over_all_ranks) {
  const Catalog catalog = preset_catalog("full");
  const WeightMap map = weight_map_for(catalog);
  const std::vector<NativeTensor> natives = native_tensors(catalog, map);
  const LoadPlan plan = plan_load(specs_on_mesh(natives, {}, 0), catalog, map);
  EXPECT_EQ(plan.tensors, 46521);
  EXPECT_EQ(plan.bytes_needed, catalog.files[0].size);
  EXPECT_TRUE(plan.unused.empty());
  std::uint64_t needed = 0;
  for (std::int64_t rank = 0; rank < 64; rank += 21) {
    const LoadPlan part =
        plan_load(specs_on_mesh(natives, parse_mesh("ep=32,ep_shard=2"), rank), catalog, map);
    if (rank == 0) needed = part.bytes_needed;
    EXPECT_EQ(part.bytes_needed, needed);
  }
}

// What bad input gets. All on the tiny preset, whole on one rank.

struct Job {
  std::vector<NamedShape> tensors = preset_tensors("tiny");
  std::vector<TensorSpec> specs;
  LoadPlanOptions options;

  Job() {
    const Catalog catalog = catalog_of(tensors);
    specs = specs_on_mesh(native_tensors(catalog, weight_map_for(catalog)), {}, 0);
  }
  TensorSpec& spec(const std::string& fqn) {
    return *std::find_if(specs.begin(), specs.end(), [&](const TensorSpec& s) { return s.fqn == fqn; });
  }
  NamedShape& tensor(const std::string& name) {
    return *std::find_if(tensors.begin(), tensors.end(), [&](const NamedShape& t) { return t.name == name; });
  }
  std::size_t remove(const std::string& text) {
    return std::erase_if(tensors,
                         [&](const NamedShape& t) { return t.name.find(text) != std::string::npos; });
  }
  LoadPlan plan() const {
    const Catalog catalog = catalog_of(tensors);
    return plan_load(specs, catalog, weight_map_for(catalog, "minimax_m3"), options);
  }
  /// The lines of the error that planning this job gives.
  std::vector<std::string> problems() const {
    std::vector<std::string> lines;
    try {
      plan();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind, ErrorKind::mismatch);
      std::istringstream text(error.what());
      for (std::string line; std::getline(text, line);) lines.push_back(line);
      EXPECT_NE(lines[0].find("/checkpoint"), std::string::npos);
      EXPECT_NE(lines[0].find("nothing has been written"), std::string::npos);
      lines.erase(lines.begin());
    }
    return lines;
  }
  /// Exactly one problem, which holds all of these texts.
  void expect_problem(std::initializer_list<std::string_view> texts) const {
    const std::vector<std::string> lines = problems();
    EXPECT_EQ(lines.size(), 1U) << ::testing::PrintToString(lines);
    if (lines.empty()) return;
    for (const std::string_view text : texts) {
      EXPECT_NE(lines[0].find(text), std::string::npos) << "expected: " << text << "\nfound: " << lines[0];
    }
  }
};

const std::string layer = "language_model.model.layers.1.";
const std::string experts_hf = layer + "block_sparse_moe.experts.";
const std::string gate_and_up = "model.layers.1.mlp.experts.gate_and_up_projs";
const std::string down = "model.layers.1.mlp.experts.down_projs";
const std::string q_proj = "model.layers.1.self_attn.q_proj.weight";

TEST(load_plan_problems, a_job_without_faults_has_none) {
  EXPECT_EQ(Job().problems(), std::vector<std::string>{});
}

TEST(load_plan_problems, an_fp8_weight_without_its_scale) {
  Job job;
  job.remove(layer + "self_attn.q_proj.weight_scale_inv");
  job.expect_problem({q_proj, layer + "self_attn.q_proj.weight in model.safetensors", "F8_E4M3 [64, 64]",
                      "expected " + layer + "self_attn.q_proj.weight_scale_inv"});
}

TEST(load_plan_problems, a_scale_of_the_wrong_shape_or_dtype) {
  Job job;
  job.tensor(layer + "self_attn.q_proj.weight_scale_inv").shape = {64, 3};
  job.expect_problem(
      {q_proj, layer + "self_attn.q_proj.weight_scale_inv in model.safetensors", "[64, 3]", "[64, 2]"});
  job.tensor(layer + "self_attn.q_proj.weight_scale_inv") = {
      layer + "self_attn.q_proj.weight_scale_inv", DType::BF16, {64, 2}};
  job.expect_problem({q_proj, "self_attn.q_proj.weight_scale_inv", "BF16", "U8 or F8_E8M0"});
}

TEST(load_plan_problems, a_scale_for_the_whole_tensor_with_two_elements) {
  Job job;
  job.tensor(layer + "self_attn.q_proj.weight_scale_inv") = {
      layer + "self_attn.q_proj.weight_scale_inv", DType::F32, {2}};
  job.expect_problem({q_proj, "self_attn.q_proj.weight_scale_inv in model.safetensors (F32 [2])",
                      "F32 or BF16 [] (one for the whole tensor)"});
}

TEST(load_plan_problems, a_scale_beside_a_plain_weight) {
  Job job;
  job.tensor(layer + "self_attn.q_proj.weight").dtype = DType::BF16;
  job.expect_problem({q_proj, "BF16 [64, 64]", "F8_E4M3", "self_attn.q_proj.weight_scale_inv"});
}

TEST(load_plan_problems, missing_experts_are_listed_in_ranges) {
  Job job;
  for (const char* name : {"0.w1", "1.w1", "3.w1", "2.w2"}) EXPECT_EQ(job.remove(experts_hf + name), 2U);
  const std::vector<std::string> lines = job.problems();
  ASSERT_EQ(lines.size(), 2U) << ::testing::PrintToString(lines);
  EXPECT_EQ(lines[0],
            "  " + down + ": expected 4 experts, but the checkpoint lacks " + experts_hf + "2.w2.weight");
  EXPECT_EQ(lines[1], "  " + gate_and_up + ": expected 4 experts, but the checkpoint lacks " + experts_hf +
                          "{0-1, 3}.w1.weight");
}

TEST(load_plan_problems, missing_experts_are_told_to_ranks_that_do_not_hold_them_too) {
  Job job;
  job.remove(experts_hf + "3.w2");
  job.spec(down) =
      sharded_tensor(down, DType::BF16, job.spec(down).global_shape, {4}, {0}, {{Placement::Kind::shard, 0}});
  job.expect_problem({down, "experts.3.w2.weight"});
}

TEST(load_plan_problems, more_experts_than_the_trainer_has) {
  Job job;
  for (const std::string& fqn : {down, gate_and_up}) {
    Shape shape = job.spec(fqn).global_shape;
    shape[0] = 1;
    job.spec(fqn) = whole_tensor(fqn, DType::BF16, shape);
  }
  const std::vector<std::string> lines = job.problems();
  ASSERT_EQ(lines.size(), 2U) << ::testing::PrintToString(lines);
  EXPECT_NE(lines[0].find(down + ": expected"), std::string::npos);
  EXPECT_NE(lines[0].find("experts 1-3"), std::string::npos);
  EXPECT_NE(lines[1].find("[1, 64, 64]"), std::string::npos);
  job.options.strict = false;
  EXPECT_EQ(job.problems().size(), 2U);
}

TEST(load_plan_problems, a_shape_that_is_not_the_trainers) {
  Job job;
  job.spec(q_proj) = whole_tensor(q_proj, DType::BF16, {64, 32});
  job.expect_problem({q_proj, layer + "self_attn.q_proj.weight in model.safetensors",
                      "expected shape [64, 32]", "found [64, 64]"});
}

TEST(load_plan_problems, an_expert_shape_that_is_not_the_trainers) {
  Job job;
  job.tensor(experts_hf + "2.w3.weight").shape = {32, 32};
  job.expect_problem(
      {gate_and_up, experts_hf + "2.w3.weight", "expected shape [32, 64]", "[4, 64, 64]", "found [32, 32]"});
}

TEST(load_plan_problems, a_trainers_tensor_of_a_shape_that_no_rule_allows) {
  Job job;
  job.spec(gate_and_up) = whole_tensor(gate_and_up, DType::BF16, {4, 64, 65});
  job.expect_problem({gate_and_up, "multiple of 2", "[4, 64, 65]"});
  job.spec(gate_and_up) = whole_tensor(gate_and_up, DType::BF16, {4, 64});
  job.expect_problem({gate_and_up, "3 dimensions", "[4, 64]"});
}

TEST(load_plan_problems, a_trainers_tensor_without_a_source) {
  Job job;
  job.specs.push_back(whole_tensor("optimizer.step", DType::F32, {}));
  job.expect_problem({"optimizer.step", "no rule of minimax_m3"});
  job.specs.back() = whole_tensor("model.layers.7.input_layernorm.weight", DType::F32, {64});
  job.expect_problem({"model.layers.7.input_layernorm.weight",
                      "lacks language_model.model.layers.7.input_layernorm.weight"});
}

TEST(load_plan_problems, tensors_of_the_checkpoint_that_no_rule_knows_unless_not_strict) {
  Job job;
  for (int i = 0; i < 3; ++i)
    job.tensors.push_back(
        {"language_model.model.layers." + std::to_string(i) + ".extra.weight", DType::BF16, {4}});
  job.tensors.push_back({"rotary.table", DType::F32, {4}});
  const std::vector<std::string> lines = job.problems();
  ASSERT_EQ(lines.size(), 2U) << ::testing::PrintToString(lines);
  EXPECT_NE(lines[0].find("language_model.model.layers.{0-2}.extra.weight"), std::string::npos);
  EXPECT_NE(lines[0].find("strict=False"), std::string::npos);
  EXPECT_NE(lines[1].find("rotary.table"), std::string::npos);
  job.options.strict = false;
  EXPECT_EQ(job.problems(), std::vector<std::string>{});
}

TEST(load_plan_problems, a_scale_without_its_weight) {
  Job job;
  job.tensors.push_back({layer + "input_layernorm.other_scale_inv", DType::U8, {4}});
  job.expect_problem({layer + "input_layernorm.other_scale_inv", "scale", "strict=False"});
  job.options.strict = false;
  EXPECT_EQ(job.problems(), std::vector<std::string>{});
}

TEST(load_plan_problems, a_catch_all_row_makes_a_known_tensor_only_of_what_the_trainer_asks_for) {
  Job job;
  job.tensors.push_back({"language_model.model.extra.weight", DType::BF16, {4}});
  job.expect_problem({"language_model.model.extra.weight"});
  job.specs.push_back(whole_tensor("model.extra.weight", DType::BF16, {4}));
  EXPECT_EQ(job.problems(), std::vector<std::string>{});
}

TEST(load_plan_problems, a_dtype_that_cannot_become_the_trainers) {
  Job job;
  job.tensor("language_model.model.norm.weight").dtype = DType::I64;
  job.expect_problem({"model.norm.weight", "model.safetensors", "I64", "BF16"});
  Job quantized;
  quantized.spec(q_proj).dtype = DType::F8_E4M3;
  quantized.expect_problem({q_proj, "F8_E4M3", "BF16, F16, F32"});
}

TEST(load_plan_problems, packed_formats_are_not_moved) {
  Job job;
  job.tensor("language_model.model.norm.weight").dtype = DType::F4;
  job.spec("model.norm.weight").dtype = DType::F4;
  job.expect_problem({"model.norm.weight", "F4"});
}

TEST(load_plan_problems, a_tensor_that_cannot_be_written_to_is_one_problem) {
  for (const std::string& fqn : {q_proj, gate_and_up}) {
    Job job;
    job.spec(fqn).device = DeviceKind::meta;
    job.expect_problem({fqn, "meta"});
    job.spec(fqn).device = DeviceKind::cpu;
    job.spec(fqn).local_strides.back() = 0;
    job.expect_problem({fqn, "share memory"});
    std::vector<std::uint16_t> data(1);
    job.spec(fqn).local_strides.pop_back();
    job.spec(fqn).data = data.data();
    job.expect_problem({fqn, "rank"});
  }
}

TEST(load_plan_problems, destinations_that_overlap_are_told_before_names_that_thousands_have_wrong) {
  Job job;
  std::vector<std::uint16_t> data(100);
  job.spec("model.norm.weight").data = data.data();
  job.spec("model.layers.0.input_layernorm.weight").data = data.data() + 32;
  for (int i = 0; i < 30; ++i)
    job.specs.push_back(whole_tensor("model.layers." + std::to_string(i) + ".odd.weight", DType::BF16, {4}));
  const std::vector<std::string> lines = job.problems();
  ASSERT_GT(lines.size(), lines_told);
  EXPECT_NE(lines[0].find("share memory"), std::string::npos) << lines[0];
}

TEST(load_plan_problems, destinations_that_overlap) {
  Job job;
  std::vector<std::uint16_t> data(100);
  job.spec("model.norm.weight").data = data.data();
  job.spec("model.layers.0.input_layernorm.weight").data = data.data() + 32;
  job.expect_problem({"model.norm.weight", "model.layers.0.input_layernorm.weight", "share memory"});
  job.spec("model.layers.0.input_layernorm.weight").data = data.data() + 36;
  job.spec("model.norm.weight").data = nullptr;
  EXPECT_EQ(job.problems(), std::vector<std::string>{});
}

TEST(load_plan_problems, are_listed_all_at_once) {
  Job job;
  job.remove(layer + "self_attn.k_proj.weight_scale_inv");
  job.remove(experts_hf + "0.w1");
  job.spec(q_proj) = whole_tensor(q_proj, DType::BF16, {64, 32});
  job.spec("model.norm.weight").device = DeviceKind::meta;
  job.specs.push_back(whole_tensor("optimizer.step", DType::F32, {}));
  job.tensors.push_back({"rotary.table", DType::F32, {4}});
  const std::vector<std::string> lines = job.problems();
  EXPECT_EQ(lines.size(), 6U) << ::testing::PrintToString(lines);
}

TEST(load_plan_problems, chunks_that_leave_a_hole_or_overlap) {
  const auto problem = [](const Shape& second_offset, const Shape& second_scale_offset) {
    Catalog catalog = catalog_of({{"language_model.lm_head.weight", DType::F8_E4M3, {4, 64}},
                                  {"language_model.lm_head.weight", DType::F8_E4M3, {4, 64}},
                                  {"language_model.lm_head.weight_scale_inv", DType::U8, {4, 2}},
                                  {"language_model.lm_head.weight_scale_inv", DType::U8, {4, 2}}});
    catalog.tensors[1].offset = second_offset;
    catalog.tensors[3].offset = second_scale_offset;
    try {
      const std::int64_t columns = second_offset[1] + 64;
      plan_load({whole_tensor("lm_head.weight", DType::BF16, {4, columns})}, catalog,
                weight_map_for(catalog, "minimax_m3"));
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(problem({0, 64}, {0, 2}), "");
  EXPECT_NE(problem({0, 96}, {0, 3}).find("lm_head.weight: "), std::string::npos);
  EXPECT_NE(problem({0, 96}, {0, 3}).find("128 of 640 elements"), std::string::npos)
      << problem({0, 96}, {0, 3});
  EXPECT_NE(problem({0, 32}, {0, 1}).find("written twice"), std::string::npos) << problem({0, 32}, {0, 1});
}

TEST(load_plan_problems, a_tensor_that_the_checkpoint_lacks_altogether_may_be_left_as_it_is) {
  Job job;
  job.options.allow_missing = true;
  job.specs.push_back(whole_tensor("optimizer.step", DType::F32, {}));
  job.remove("layers.1.input_layernorm");
  job.remove(experts_hf);
  const LoadPlan plan = job.plan();
  for (const Transfer& transfer : plan.transfers) {
    const std::string& fqn = job.specs[transfer.destination].fqn;
    EXPECT_TRUE(fqn != "optimizer.step" && fqn != down && fqn != "model.layers.1.input_layernorm.weight")
        << fqn;
  }
}

TEST(load_plan_problems, a_tensor_that_the_checkpoint_lacks_in_part_may_not) {
  Job job;
  job.options.allow_missing = true;
  job.remove(experts_hf + "0.w2");
  job.expect_problem({down, "expected 4 experts", "experts.0.w2.weight"});
}

TEST(load_plan, what_the_trainer_does_not_hold_is_reported_as_unused) {
  Job job;
  std::erase_if(job.specs,
                [](const TensorSpec& spec) { return spec.fqn.find(".mtp.") != std::string::npos; });
  std::vector<std::string> expected;
  for (const NamedShape& tensor : job.tensors) {
    if (tensor.name.find(".mtp.") != std::string::npos && !tensor.name.ends_with("_scale_inv"))
      expected.push_back(tensor.name);
  }
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(job.plan().unused, expected);
}

TEST(load_plan, mtp_keys_outside_the_text_part_are_passed_over) {
  Job job;
  job.tensors.push_back({"mtp.layers.0.enorm.weight", DType::BF16, {4}});
  EXPECT_TRUE(job.plan().unused.empty());
}

TEST(load_plan, tensors_without_elements_need_nothing) {
  const Catalog catalog = catalog_of({{"language_model.lm_head.weight", DType::BF16, {0, 8}}});
  const WeightMap map = weight_map_for(catalog, "minimax_m3");
  EXPECT_TRUE(
      plan_load({whole_tensor("lm_head.weight", DType::BF16, {0, 8})}, catalog, map).transfers.empty());
  const TensorSpec no_experts = whole_tensor(down, DType::BF16, {0, 8, 8});
  EXPECT_TRUE(plan_load({whole_tensor("lm_head.weight", DType::BF16, {0, 8}), no_experts}, catalog, map)
                  .transfers.empty());
}

}  // namespace
}  // namespace shardwright
