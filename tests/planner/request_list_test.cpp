#include "planner/load/request_list.h"

#include <gtest/gtest.h>

#include <set>

#include "planner/models/models.h"
#include "planner/names/mesh.h"
#include "planner/names/weight_map.h"
#include "tests/planner/random_layouts.h"
#include "tests/planner/released_model.h"

namespace shardwright {
namespace {

std::map<std::string, std::string> forms_of(const std::vector<Request>& requests) {
  std::map<std::string, std::string> forms;
  for (const Request& request : requests) {
    const std::string form = std::string(name_of(request.dtype)) + " " + to_string(request.shape);
    EXPECT_TRUE(forms.emplace(request.name, form).second) << request.name;
    EXPECT_EQ(request.placeholder, request.name.ends_with("_scale_inv"));
  }
  return forms;
}

std::map<std::string, std::string> forms_of(const std::vector<NamedShape>& tensors) {
  std::map<std::string, std::string> forms;
  for (const NamedShape& tensor : tensors)
    forms[tensor.name] = std::string(name_of(tensor.dtype)) + " " + to_string(tensor.shape);
  return forms;
}

TEST(request_list, asks_for_every_tensor_of_the_released_model_with_its_dtype_and_global_shape) {
  const Catalog catalog = preset_catalog("full");
  const WeightMap map = weight_map_for(catalog);
  const std::vector<TensorSpec> specs = specs_on_mesh(native_tensors(catalog, map), {}, 0);
  const auto expected = forms_of(preset_tensors("full"));
  const auto found = forms_of(request_list(specs, map, &catalog));
  EXPECT_EQ(found.size(), 46521U);
  EXPECT_TRUE(found == expected);
}

TEST(request_list, without_a_catalog_the_rule_of_names_leaves_out_one_scale) {
  const Catalog catalog = preset_catalog("full");
  const WeightMap map = weight_map_for(catalog);
  const std::vector<TensorSpec> specs = specs_on_mesh(native_tensors(catalog, map), {}, 0);
  auto expected = forms_of(preset_tensors("full"));
  expected.erase("language_model.model.mtp.layers.0.eh_proj.weight_scale_inv");
  expected["language_model.model.mtp.layers.0.eh_proj.weight"] = "BF16 [6144, 12288]";
  const auto found = forms_of(request_list(specs, map));
  EXPECT_EQ(found.size(), 46520U);
  EXPECT_TRUE(found == expected);
}

TEST(request_list, a_rank_asks_for_whole_scales_of_the_experts_that_it_holds_a_part_of) {
  const Catalog catalog = preset_catalog("tiny");
  const WeightMap map = weight_map_for(catalog);
  const std::vector<NativeTensor> natives = native_tensors(catalog, map);
  const auto whole_list = forms_of(request_list(specs_on_mesh(natives, {}, 0), map, &catalog));
  std::set<std::string> asked;
  for (std::int64_t rank = 0; rank < 4; ++rank) {
    const std::vector<MeshDimension> mesh = {{"ep", 2}, {"ep_shard", 2}};
    for (const auto& [name, form] :
         forms_of(request_list(specs_on_mesh(natives, mesh, rank), map, &catalog))) {
      EXPECT_EQ(form, whole_list.at(name)) << name;
      const std::size_t at = name.find(".experts.");
      EXPECT_TRUE(at == std::string::npos || std::stoi(name.substr(at + 9)) / 2 == rank / 2) << name;
      asked.insert(name);
    }
  }
  EXPECT_EQ(asked.size(), whole_list.size());
}

TEST(request_list, scales_follow_their_weight_and_go_into_the_same_tensor) {
  const Catalog catalog = preset_catalog("tiny");
  const WeightMap map = weight_map_for(catalog);
  const std::vector<Request> requests =
      request_list(specs_on_mesh(native_tensors(catalog, map), {}, 0), map, &catalog);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    if (!requests[i].placeholder) continue;
    ASSERT_GT(i, 0U);
    EXPECT_EQ(requests[i].name, requests[i - 1].name + "_scale_inv");
    EXPECT_EQ(requests[i].fqn, requests[i - 1].fqn);
  }
}

TEST(request_list, weights_that_the_checkpoint_lacks_are_asked_for_all_the_same) {
  const Catalog empty = catalog_of({});
  const WeightMap map = weight_map_for(empty, "minimax_m3");
  const auto requests = request_list(
      {whole_tensor("model.layers.0.self_attn.q_proj.weight", DType::BF16, {4, 40})}, map, &empty);
  ASSERT_EQ(requests.size(), 1U);
  EXPECT_EQ(requests[0].name, "language_model.model.layers.0.self_attn.q_proj.weight");
  EXPECT_EQ(requests[0].dtype, DType::BF16);
}

}  // namespace
}  // namespace shardwright
