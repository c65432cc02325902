/// A checkpoint of every family, in each form and layout, on two ranks: loaded, saved, resumed, exported, and
/// its LoRA adapters, with the elements of the files as the reference.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "planner/lora/lora_pairs.h"
#include "planner/models/known_models.h"
#include "planner/names/companions.h"
#include "planner/names/rule_pieces.h"
#include "planner/names/weight_map.h"
#include "storage/format/read_catalog.h"
#include "storage/jobs/adapters.h"
#include "storage/jobs/export_checkpoint.h"
#include "storage/jobs/load_checkpoint.h"
#include "storage/jobs/save_checkpoint.h"
#include "storage/tools/generate.h"
#include "tests/kernels/slow_definition.h"
#include "tests/planner/plain_axes.h"
#include "tests/planner/random_checkpoint.h"
#include "tests/planner/random_layouts.h"
#include "tests/planner/rounds.h"
#include "tests/storage/checkpoint_files.h"
#include "tests/storage/threads_as_ranks.h"

namespace shardwright {
namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr int ranks = 2;

struct Decoded {
  DType dtype;
  Shape shape;
  Bytes bytes;
};

/// Where the scale of an element is, as the formats of the releases that are generated say.
Shape index_of_scale(const SourceTensor& tensor, DType dtype, const Shape& grid, const Shape& at) {
  if (is_packed(tensor.dtype)) {
    Shape index = at;
    index.back() /= dtype == DType::F8_E4M3 ? 16 : 32;
    return index;
  }
  if (!grid.empty() && grid.back() == 1 && tensor.shape.back() > 1 && grid[0] == tensor.shape[0] &&
      grid[0] > 1)
    return {at[0], 0};  // one for each row
  if (dtype == DType::F8_E8M0) return {at[0] / 128, at[1] / 128};
  return scale_element(dtype, grid, at).index;
}

/// Each tensor of a checkpoint, decoded as the definition says: what has scales becomes BF16, all else is as
/// it is. Companions are none of them.
std::map<std::string, Decoded> decoded_tensors(const Catalog& catalog,
                                               const std::filesystem::path& directory) {
  std::map<std::uint32_t, std::string> files;
  for (std::uint32_t f = 0; f < catalog.files.size(); ++f)
    files[f] = read_file(directory / catalog.files[f].name);
  std::map<std::string, Decoded> tensors;
  const auto data_of = [&](const SourceTensor& tensor) { return files[tensor.file].data() + tensor.begin; };
  for (const SourceTensor& tensor : catalog.tensors) {
    if (is_scale_name(tensor.name) || is_companion(catalog, tensor.name)) continue;
    const char* data = data_of(tensor);
    const auto scales = scales_of(catalog, tensor.name);
    Decoded& made = tensors[tensor.name];
    made = {tensor.dtype, tensor.shape, Bytes(data, data + (tensor.end - tensor.begin))};
    if (scales.empty()) continue;
    made.dtype = DType::BF16;
    made.bytes.resize(static_cast<std::size_t>(2 * volume(tensor.shape)));
    const DType dtype = scales.front().dtype;
    const Shape& grid = scales.front().shape;
    slow::Scales by{dtype, slow::is_e8m0(dtype) || tensor.dtype == DType::I4 ? Product::exact_once
                                                                             : Product::to_f32_first};
    by.code_eight_is_plus_zero = tensor.stored != nullptr && tensor.stored->dtype == DType::I8;
    if (const auto global = catalog.find(tensor.name + "_scale_2"); !global.empty()) {
      by.product = Product::modelopt_nvfp4;
      std::memcpy(&by.global, data_of(global.front()), sizeof by.global);
    }
    for_each_index(tensor.shape, [&](const Shape& at) {
      const auto place = static_cast<std::int64_t>(flat(at, tensor.shape));
      const Shape index = index_of_scale(tensor, dtype, grid, at);
      const auto number = static_cast<std::int64_t>(flat(index, grid));
      slow::store(made.bytes.data(), place, DType::BF16,
                  slow::decoded(DType::BF16, tensor.dtype, slow::load(data, place, tensor.dtype), by,
                                slow::load(data_of(scales.front()), number, dtype)));
    });
  }
  return tensors;
}

/// What a trainer that multiplies weights by their multipliers makes of the tensors, and exports: the
/// products, and multipliers of one.
std::map<std::string, Decoded> multiplied(std::map<std::string, Decoded> tensors, const WeightMap& map) {
  std::map<std::string, std::string> multipliers;
  for (const auto& [name, tensor] : tensors) {
    if (is_multiplier(map, name)) continue;
    for (const NameMatch& match : native_matches_of(map, name)) {
      if (match.rule->multiplier) multipliers[name] = match.rule->multiplier->fill(match.captures);
    }
  }
  for (const auto& [name, multiplier_name] : multipliers) {
    Decoded& tensor = tensors.at(name);
    Decoded& multiplier = tensors.at(multiplier_name);
    const Decoded stored = tensor;
    for_each_index(tensor.shape, [&](const Shape& at) {
      const auto place = static_cast<std::int64_t>(flat(at, tensor.shape));
      slow::store(
          tensor.bytes.data(), place, tensor.dtype,
          slow::decoded(tensor.dtype, stored.dtype, slow::load(stored.bytes.data(), place, stored.dtype),
                        {multiplier.dtype}, slow::load(multiplier.bytes.data(), at[0], multiplier.dtype)));
    });
    const std::uint64_t one = slow::rounded(multiplier.dtype, 1);
    for (std::int64_t e = 0; e < multiplier.shape[0]; ++e)
      slow::store(multiplier.bytes.data(), e, multiplier.dtype, one);
  }
  return tensors;
}

/// Every native tensor whole, put together element by element.
std::map<std::string, Bytes> native_values(const std::vector<NativeTensor>& natives, const WeightMap& map,
                                           const std::map<std::string, Decoded>& tensors) {
  std::map<std::string, Bytes> values;
  std::map<std::string, const NativeTensor*> by_name;
  std::map<std::string, std::int64_t> missing;
  for (const NativeTensor& native : natives) {
    by_name[native.fqn] = &native;
    missing[native.fqn] = volume(native.shape);
    values[native.fqn].resize(static_cast<std::size_t>(volume(native.shape) * bytes_of(native.dtype)));
  }
  for (const auto& [name, tensor] : tensors) {
    if (is_multiplier(map, name)) continue;
    for (const NameMatch& place : native_matches_of(map, name)) {
      const auto found = by_name.find(place.fqn);
      if (found == by_name.end()) continue;
      const NativeTensor& native = *found->second;
      EXPECT_EQ(native.dtype, tensor.dtype) << name;
      const auto width = static_cast<std::size_t>(bytes_of(tensor.dtype));
      PlainAxes axes(place.rule->axes.text(), tensor.shape, native.shape, map.sizes);
      Bytes& into = values[native.fqn];
      for_each_index(tensor.shape, [&](const Shape& at) {
        const auto to = axes.native_of(at, place.captures.expert);
        if (!to) return;
        std::memcpy(into.data() + flat(*to, native.shape) * width,
                    tensor.bytes.data() + flat(at, tensor.shape) * width, width);
        --missing[native.fqn];
      });
    }
  }
  for (const auto& [name, elements] : missing) EXPECT_EQ(elements, 0) << name;
  return values;
}

/// What a rank holds of tensors that are sharded on this dimension: the first, or the last (-1).
struct Held {
  std::vector<Bytes> memory;
  std::vector<TensorSpec> specs;
  std::vector<IndexLists> lists;

  Held(const std::vector<NativeTensor>& tensors, int rank, int dimension) {
    for (const NativeTensor& tensor : tensors) {
      Mesh mesh{{ranks}, {{}}};
      const auto last = static_cast<int>(tensor.shape.size()) - 1;
      if (last >= 0) mesh.placements = {{Placement::Kind::shard, dimension < 0 ? last : dimension}};
      lists.push_back(index_lists(tensor.shape, mesh, {rank}));
      const auto elements = static_cast<std::size_t>(volume(shape_of(lists.back())));
      memory.emplace_back(elements * static_cast<std::size_t>(bytes_of(tensor.dtype)), std::uint8_t{0xA5});
      specs.push_back(sharded_tensor(tensor.fqn, tensor.dtype, tensor.shape, mesh.shape, {rank},
                                     mesh.placements, memory.back().data()));
    }
  }

  void expect(const std::map<std::string, Bytes>& values) const {
    for (std::size_t i = 0; i < specs.size(); ++i) {
      const auto width = static_cast<std::size_t>(bytes_of(specs[i].dtype));
      const Bytes& whole = values.at(specs[i].fqn);
      const std::uint8_t* found = memory[i].data();
      for_each_index(specs[i].local_shape, [&](const Shape& at) {
        const std::size_t from = flat(global_index(lists[i], at), specs[i].global_shape) * width;
        if (std::memcmp(found, whole.data() + from, width) != 0)
          throw Error(ErrorKind::mismatch, specs[i].fqn + to_string(at) + " is another element");
        found += width;
      });
    }
  }
};

void run(const std::function<void(const Job&)>& work, const std::string& what) {
  for (const auto& error : ThreadsAsRanks(ranks).run(work))
    if (error) ADD_FAILURE() << what << ": " << error->what();
}

/// The exported files hold what the source's do, FP8 decoded, but for what has no place in the layout.
void expect_exported(const std::filesystem::path& directory, const WeightMap& map,
                     const std::map<std::string, Decoded>& tensors, const std::string& what) {
  const Catalog catalog = read_catalog(directory);
  const auto exported = decoded_tensors(catalog, directory);
  std::set<std::string> expected;
  for (const auto& [name, tensor] : tensors) {
    if (!is_multiplier(map, name) && (is_without_place(map, name) || is_ignored(map, name))) continue;
    expected.insert(name);
    const auto found = exported.find(name);
    if (found == exported.end()) continue;
    EXPECT_EQ(found->second.dtype, tensor.dtype) << what << name;
    EXPECT_EQ(found->second.shape, tensor.shape) << what << name;
    EXPECT_TRUE(found->second.bytes == tensor.bytes) << what << name;
  }
  std::set<std::string> names;
  for (const auto& [name, tensor] : exported) names.insert(name);
  EXPECT_EQ(names, expected) << what;
}

/// LoRA tensors of one layer's matrices, as the trainer has them: of attention, and experts where there are
/// any.
std::vector<NativeTensor> lora_tensors(const std::vector<NativeTensor>& natives) {
  constexpr std::int64_t r = 4;
  // All three, as some families store them as one.
  constexpr std::array<std::string_view, 3> attention{"self_attn.q_proj.weight", "self_attn.k_proj.weight",
                                                      "self_attn.v_proj.weight"};
  std::vector<NativeTensor> pairs;
  const auto add = [&](const NativeTensor& weight) {
    const Shape& shape = weight.shape;
    if (shape.size() == 3) {
      pairs.push_back({lora_key(weight.fqn, 'A'), DType::F32, {shape[0], shape[1], r}, true});
      pairs.push_back({lora_key(weight.fqn, 'B'), DType::F32, {shape[0], r, shape[2]}, true});
    } else {
      pairs.push_back({lora_key(weight.fqn, 'A'), DType::F32, {r, shape[1]}, false});
      pairs.push_back({lora_key(weight.fqn, 'B'), DType::F32, {shape[0], r}, false});
    }
  };
  for (const NativeTensor& native : natives) {
    if (native.fqn.find("layers.1.") == std::string::npos || native.fqn.find("vision") != std::string::npos ||
        native.fqn.find("mtp") != std::string::npos)
      continue;
    const bool is_experts =
        native.fqn.ends_with("experts.gate_and_up_projs") || native.fqn.ends_with("experts.down_projs");
    const bool is_attention = std::any_of(attention.begin(), attention.end(),
                                          [&](std::string_view end) { return native.fqn.ends_with(end); });
    if (is_experts || is_attention || native.fqn.ends_with("mlp.down_proj.weight")) add(native);
  }
  return pairs;
}

void expect_adapter(const Model& model, const std::vector<NativeTensor>& natives,
                    const std::filesystem::path& directory) {
  const std::string family(model.family);
  const std::vector<NativeTensor> tensors = lora_tensors(natives);
  ASSERT_FALSE(tensors.empty()) << family;
  std::map<std::string, Bytes> values;
  std::uint32_t number = 1;
  for (const NativeTensor& tensor : tensors) {
    Bytes& bytes = values[tensor.fqn];
    for (std::int64_t i = 0; i < volume(tensor.shape); ++i) {
      const auto element = static_cast<float>(number++);
      const auto* of_element = reinterpret_cast<const std::uint8_t*>(&element);
      bytes.insert(bytes.end(), of_element, of_element + sizeof element);
    }
  }
  for (const char* layout : {"transformers", "huggingface"}) {
    if (layout != std::string("huggingface") &&
        std::find(model.layouts.begin(), model.layouts.end(), layout) == model.layouts.end())
      continue;
    run(
        [&](const Job& job) {
          const Held held(tensors, job.rank, 0);
          for (std::size_t i = 0; i < held.specs.size(); ++i) {
            std::uint8_t* to = static_cast<std::uint8_t*>(held.specs[i].data);
            for_each_index(held.specs[i].local_shape, [&](const Shape& at) {
              const std::size_t from = flat(global_index(held.lists[i], at), held.specs[i].global_shape) * 4;
              std::memcpy(to, values.at(held.specs[i].fqn).data() + from, 4);
              to += 4;
            });
          }
          save_adapter(held.specs, directory / layout, {.model = family, .layout = layout, .alpha = 8}, job);
          const Held back(tensors, job.rank, -1);
          AdapterRequest request;
          request.model = family;
          load_adapter(directory / layout, back.specs, request);
          back.expect(values);
        },
        family + ", LoRA, " + layout);
  }
}

/// Small, but for a side that has more than one block of scales where weights have any.
std::string sizes_for(const std::string& form) {
  const auto has = [&](const char* part) { return form.find(part) != std::string::npos; };
  // More than a block, and gpt-oss has whole ones.
  const char* hidden = has("mxfp4") ? "160" : has("fp8") || has("fp4") || has("int4") ? "136" : "24";
  return std::string(R"({"vocab_size": 24, "hidden_size": )") + hidden + "}";
}

/// One form in one layout: loaded on two ranks, sharded on the first and on the last dimension, saved,
/// resumed with the other sharding, exported with its template.
void expect_flows(const std::filesystem::path& source, const std::filesystem::path& folder,
                  const Catalog& catalog, const std::map<std::string, Decoded>& stored,
                  const std::string& layout, const std::string& what) {
  const WeightMap map = weight_map_for(catalog, "auto", layout);
  const std::map<std::string, Decoded> tensors = multiplied(stored, map);
  const std::vector<NativeTensor> natives = native_tensors(catalog, map);
  const auto values = native_values(natives, map, tensors);
  for (const int dimension : {0, -1}) {
    if (dimension != 0 && rounds(2) < 2) break;  // the resume of the first has both shardings
    const std::string name = layout + std::to_string(dimension);
    run(
        [&](const Job& job) {
          const Held held(natives, job.rank, dimension);
          load_checkpoint(held.specs, source, job, {.layout = layout});
          held.expect(values);
          save_checkpoint(held.specs, folder / (name + "saved"), job, {.sync = false});
          const Held back(natives, job.rank, -1 - dimension);
          resume_checkpoint(back.specs, folder / (name + "saved"), job);
          back.expect(values);
          ExportOptions options{.template_directory = source, .layout = layout};
          // Of gpt-oss, a matrix in BF16 is the transpose of what the template has.
          if (what.starts_with("mxfp4")) options.quantization = "template";
          export_checkpoint(held.specs, folder / (name + "to"), job, options);
        },
        what);
    if (testing::Test::HasFailure()) return;
    expect_exported(folder / (name + "to"), map, tensors, what + ": ");
  }
}

class Families : public testing::TestWithParam<const Model*> {};

TEST_P(Families, LoadResumeAndExportOnTwoRanksAndTakeAdapters) {
  const Model& model = *GetParam();
  const std::string family(model.family);
  const std::vector<std::string> forms = sample_forms(family);
  ASSERT_FALSE(forms.empty());
  for (const std::string& form : forms) {
    const TemporaryDirectory directory;
    const std::filesystem::path source = directory / "from";
    generate(source, {.any_values = true, .family = family, .form = form, .config = sizes_for(form)});
    const Catalog catalog = read_catalog(source);
    const auto tensors = decoded_tensors(catalog, source);
    std::vector<std::string> layouts(model.layouts.begin(), model.layouts.end());
    layouts.emplace_back("huggingface");
    for (const std::string& layout : layouts) {
      expect_flows(source, directory.path, catalog, tensors, layout, form + ", " + layout);
      if (HasFailure()) return;
    }
    if (form == forms.front()) {
      const WeightMap map = weight_map_for(catalog, "auto", layouts.front());
      std::vector<NativeTensor> natives = native_tensors(catalog, map);
      // Beside what has a multiplier in it, HF has no place for an adapter.
      std::erase_if(natives, [&](const NativeTensor& native) {
        return std::any_of(map.rules.begin(), map.rules.end(), [&](const Rule& rule) {
          return rule.multiplier && rule.native.match(native.fqn);
        });
      });
      expect_adapter(model, natives, directory.path);
    }
  }
}

std::vector<const Model*> all_models() {
  std::vector<const Model*> all;
  for (const Model& model : models()) all.push_back(&model);
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, Families, testing::ValuesIn(all_models()),
                         [](const auto& of) { return std::string(of.param->family); });

}  // namespace
}  // namespace shardwright
