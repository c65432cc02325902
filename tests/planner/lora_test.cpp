#include <gtest/gtest.h>

#include <algorithm>

#include "planner/error.h"
#include "planner/load/load_plan.h"
#include "planner/lora/adapter_fit.h"
#include "planner/lora/adapter_form.h"
#include "planner/lora/lora_state_dict.h"
#include "planner/save/export_form.h"

namespace shardwright {
namespace {

constexpr std::int64_t experts = 2;
constexpr std::int64_t hidden = 6;
constexpr std::int64_t inter = 4;

const std::string stack = "model.layers.1.mlp.experts.lora_gate_and_up_";
const std::string file_stack = "base_model.model.language_model.model.layers.1.block_sparse_moe.experts.";

std::vector<NativeTensor> experts_of_rank(std::int64_t r) {
  return {{stack + "A", DType::F32, {experts, hidden, r}, false},
          {stack + "B", DType::F32, {experts, r, 2 * inter}, false}};
}

/// A module for each expert and projection, all of rank 2.
Catalog modules() {
  Catalog catalog;
  catalog.files = {{"adapter_model.safetensors", 0}};
  for (std::int64_t e = 0; e < experts; ++e) {
    for (const char* name : {"w1", "w3"}) {
      const std::string module = file_stack + std::to_string(e) + "." + name;
      catalog.tensors.push_back({module + ".lora_A.weight", DType::F32, {2, hidden}, {0, 0}});
      catalog.tensors.push_back({module + ".lora_B.weight", DType::F32, {inter, 2}, {0, 0}});
    }
  }
  return catalog;
}

std::vector<TensorSpec> whole_specs(const std::vector<NativeTensor>& tensors) {
  std::vector<TensorSpec> specs;
  for (const NativeTensor& tensor : tensors)
    specs.push_back(whole_tensor(tensor.fqn, tensor.dtype, tensor.shape));
  return specs;
}

AdapterFit fit(const std::vector<NativeTensor>& tensors, const Catalog& catalog) {
  std::vector<std::string> problems;
  AdapterFit fit = fit_adapter(lora_pairs(tensors, problems), catalog, {});
  EXPECT_EQ(problems, std::vector<std::string>());
  return fit;
}

/// What the message of a load says; empty: it is planned.
std::string fault_of_load(const std::vector<NativeTensor>& tensors, const Catalog& catalog,
                          const WeightMap& map) {
  try {
    plan_load(whole_specs(tensors), catalog, map);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, ErrorKind::mismatch);
    return error.what();
  }
  return "";
}

TEST(lora, names_say_which_weight_a_tensor_is_for) {
  const auto module = lora_name_of("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight");
  ASSERT_TRUE(module);
  EXPECT_EQ(module->prefix, peft_prefix);
  EXPECT_EQ(module->weight, "model.layers.0.self_attn.q_proj.weight");
  EXPECT_EQ(module->letter, 'B');
  const auto of_experts = lora_name_of("layers.1.mlp.experts.lora_gate_and_up_A");
  ASSERT_TRUE(of_experts);
  EXPECT_EQ(of_experts->weight, "model.layers.1.mlp.experts.gate_and_up_projs");
  EXPECT_EQ(lora_key(of_experts->weight, 'A'), "model.layers.1.mlp.experts.lora_gate_and_up_A");
  for (const char* other : {"model.norm.weight", "x.lora_magnitude_vector", "x.lora_embedding_A.0",
                            "x{expert}.lora_A.weight", "lora_A.weight", "x.lora__C"})
    EXPECT_FALSE(lora_name_of(other)) << other;
}

TEST(lora, gate_and_up_share_an_a_of_which_one_is_read_and_all_have_to_be_there) {
  const std::vector<NativeTensor> tensors = experts_of_rank(2);
  Catalog catalog = modules();
  const AdapterFit found = fit(tensors, catalog);
  ASSERT_EQ(found.pairs.size(), 1);
  EXPECT_TRUE(found.pairs[0].shares_a());
  const LoadPlan plan = plan_load(whole_specs(tensors), catalog, found.map);
  for (const Transfer& transfer : plan.transfers)
    EXPECT_EQ(catalog.tensors[transfer.source].name.find("w3.lora_A"), std::string::npos);
  EXPECT_EQ(plan.transfers.size(), 6);  // of each expert: an A, two B

  Catalog wider = catalog;
  std::find_if(wider.tensors.begin(), wider.tensors.end(), [](const SourceTensor& tensor) {
    return tensor.name.ends_with("1.w3.lora_A.weight");
  })->shape = {2, hidden + 1};
  EXPECT_NE(fault_of_load(tensors, wider, found.map).find("1.w3.lora_A.weight in"), std::string::npos);
  std::erase_if(catalog.tensors,
                [](const SourceTensor& tensor) { return tensor.name.ends_with("1.w3.lora_A.weight"); });
  EXPECT_NE(fault_of_load(tensors, catalog, found.map).find("lacks " + file_stack + "1.w3.lora_A.weight"),
            std::string::npos);
}

TEST(lora, an_export_writes_a_shared_a_for_each_of_its_modules) {
  const AdapterForm form = adapter_form(experts_of_rank(2), {.model = "minimax_m3", .layout = "huggingface"});
  const Catalog catalog = modules();
  LoadPlanOptions options;
  options.exporting = true;
  const LoadPlan plan = plan_load(whole_specs(experts_of_rank(2)), catalog, form.map, options);
  std::vector<std::string> written;
  for (const Transfer& transfer : plan.transfers) written.push_back(catalog.tensors[transfer.source].name);
  std::sort(written.begin(), written.end());
  std::vector<std::string> expected;
  for (const SourceTensor& tensor : catalog.tensors) expected.push_back(tensor.name);
  EXPECT_EQ(written, expected);
}

TEST(lora, tensors_of_twice_the_rank_have_both_and_zeros_beside) {
  const std::vector<NativeTensor> tensors = experts_of_rank(4);
  const Catalog catalog = modules();
  AdapterFit found = fit(tensors, catalog);
  ASSERT_EQ(found.pairs.size(), 1);
  EXPECT_TRUE(found.pairs[0].has_zeros());
  EXPECT_EQ(fault_of_load(tensors, catalog, found.map), "");
  for (Rule& rule : found.map.rules) rule.rest_is_zero = false;
  EXPECT_NE(fault_of_load(tensors, catalog, found.map).find(stack + "B: "), std::string::npos);
}

TEST(lora, elements_that_come_from_two_places_are_told_also_where_the_rest_is_zero) {
  WeightMap map = lora_map("");
  for (const char* name : {"one", "two"}) {
    map.rules.push_back({NamePattern(name), NamePattern("native"), AxisExpression("r i -> (0/2 r) i")});
    map.rules.back().rest_is_zero = true;
  }
  Catalog catalog;
  catalog.files = {{"file", 0}};
  catalog.tensors = {{"one", DType::F32, {2, 3}, {0, 0}}, {"two", DType::F32, {2, 3}, {0, 0}}};
  EXPECT_NE(fault_of_load({{"native", DType::F32, {4, 3}, false}}, catalog, map)
                .find("native: 6 of its elements come from more than one place"),
            std::string::npos);
}

TEST(lora, pairs_that_a_file_joins_are_a_block_diagonal_one) {
  std::vector<NativeTensor> tensors;
  for (const char* name : {"gate_proj", "up_proj"}) {
    const std::string module = "model.layers.0.mlp." + std::string(name);
    tensors.push_back({module + ".lora_A.weight", DType::F32, {2, hidden}, false});
    tensors.push_back({module + ".lora_B.weight", DType::F32, {inter, 2}, false});
  }
  for (const std::size_t count : {std::size_t{4}, std::size_t{2}}) {  // up projections may have none
    tensors.resize(count);
    const AdapterForm adapter = adapter_form(tensors, {.model = "minimax_m3"});
    ExportForm form;
    form.map = adapter.map;
    form.keeps_dtypes = true;
    std::vector<SavedTensor> saved;
    for (const NativeTensor& tensor : tensors) saved.push_back({tensor.fqn, tensor.dtype, tensor.shape});
    const std::vector<SourceTensor> stored = exported_tensors(saved, form).tensors;
    ASSERT_EQ(stored.size(), 2);
    EXPECT_EQ(stored[0].name,
              "base_model.model.model.language_model.layers.0.mlp.gate_up_proj.lora_A.weight");
    EXPECT_EQ(stored[0].shape, (Shape{4, hidden}));
    EXPECT_EQ(stored[1].shape, (Shape{2 * inter, 4}));
    EXPECT_EQ(stored[1].dtype, DType::F32);
    EXPECT_NE(adapter.config.find("\"r\": 4"), std::string::npos);
  }
}

}  // namespace
}  // namespace shardwright
