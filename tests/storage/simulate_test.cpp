#include "storage/tools/simulate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <tuple>
#include <utility>

#include "planner/models/models.h"
#include "planner/save/saved_values.h"
#include "storage/tools/generate.h"
#include "storage/tools/simulate_save.h"
#include "tests/planner/random_checkpoint.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

/// The plain reference: bytes of files, one by one.
using Bytes = std::set<std::pair<std::uint32_t, std::uint64_t>>;

void add_element(const Catalog& catalog, const std::string& name, const Shape& index, Bytes& bytes) {
  for (const SourceTensor& chunk : catalog.find(name)) {
    if (!holds({chunk.offset, chunk.shape}, index)) continue;
    Shape inside = index;
    for (std::size_t d = 0; d < inside.size(); ++d) inside[d] -= chunk.offset[d];
    const auto size = static_cast<std::uint64_t>(bytes_of(chunk.dtype));
    for (std::uint64_t byte = 0; byte < size; ++byte)
      bytes.emplace(chunk.file, chunk.begin + flat(inside, chunk.shape) * size + byte);
  }
}

std::uint64_t ranges_in(const Bytes& bytes) {
  std::uint64_t ranges = 0;
  for (const auto& [file, byte] : bytes) ranges += byte == 0 || !bytes.contains({file, byte - 1}) ? 1 : 0;
  return ranges;
}

std::uint64_t size_of(const Bytes& bytes) { return bytes.size(); }

bool is_expert(const Native& native) { return native.fqn.find("mlp.experts.") != std::string::npos; }

/// As random_model makes them: all layers but number 3 are empty.
NativeTensor tensor_of(const Native& native) {
  std::int64_t layer = after_layers;
  if (native.fqn.starts_with("vision_tower.")) layer = before_layers;
  if (native.fqn.starts_with("model.layers.3.")) layer = 3;
  return {native.fqn, native.dtype, native.shape, is_expert(native), layer};
}

/// A mesh as the simulator gets it, and as the plain reference for placements takes it.
struct NamedMesh {
  std::vector<MeshDimension> dimensions;
  DenseSharding dense = DenseSharding::named;
  Shape sizes;
  Mesh of_experts;
  Mesh of_others;
};

NamedMesh random_named_mesh(Random& random) {
  struct Word {
    const char* name;
    int of_experts, of_others, of_others_over_stage;
  };
  std::vector<Word> words{
      {"pp", -1, -1, -1},          {"dp", 1, 0, 0},    {"ep", 0, -1, 0},   {"ep_shard", 1, -1, 0},
      {"ep_replicate", -1, -1, 0}, {"fsdp", -1, 0, 0}, {"shard", 0, 0, 0}, {"replicate", -1, -1, -1}};
  random.shuffle(words);
  NamedMesh mesh;
  if (random.once_in(2)) mesh.dense = DenseSharding::stage;
  const auto placed = [](int dimension) {
    return dimension < 0 ? Placement{} : Placement{Placement::Kind::shard, dimension, 1};
  };
  for (std::int64_t d = random.between(0, 3); d-- > 0;) {
    const Word& word = words[static_cast<std::size_t>(d)];
    const std::int64_t size = random.between(1, 3);
    mesh.dimensions.push_back({word.name, size});
    mesh.sizes.push_back(size);
    mesh.of_experts.placements.push_back(placed(word.of_experts));
    mesh.of_others.placements.push_back(
        placed(mesh.dense == DenseSharding::stage ? word.of_others_over_stage : word.of_others));
  }
  mesh.of_experts.shape = mesh.of_others.shape = mesh.sizes;
  return mesh;
}

struct Expected {
  Bytes needed;
  std::uint64_t held = 0;
  std::int64_t stage = 0;
};

Expected expected_of(const RandomModel& model, const Catalog& catalog, const NamedMesh& mesh,
                     const Shape& coordinate) {
  Expected expected;
  std::int64_t stages = 1;
  for (std::size_t d = 0; d < mesh.dimensions.size(); ++d) {
    if (mesh.dimensions[d].name != "pp") continue;
    stages = mesh.sizes[d];
    expected.stage = coordinate[d];
  }
  for (const Native& native : model.natives) {
    const std::int64_t stage = native.fqn.starts_with("vision_tower.") ? 0 : stages - 1;
    if (stage != expected.stage) continue;
    Mesh placed = is_expert(native) ? mesh.of_experts : mesh.of_others;
    if (native.shape.empty()) placed.placements.assign(placed.placements.size(), {});
    const IndexLists lists = index_lists(native.shape, placed, coordinate);
    expected.held += static_cast<std::uint64_t>(volume(shape_of(lists)) * bytes_of(native.dtype));
    for_each_index(shape_of(lists), [&](const Shape& local) {
      const HfElement element = hf_element(native, global_index(lists, local));
      add_element(catalog, element.name, element.index, expected.needed);
      for (const char* suffix : {"_scale_inv", "_scale"}) {
        const auto chunks = catalog.find(element.name + suffix);
        if (chunks.empty()) continue;
        const Shape whole_shape = Catalog::global_shape(chunks);
        add_element(catalog, element.name + suffix,
                    scale_element(chunks.front().dtype, whole_shape, element.index).index, expected.needed);
      }
    });
  }
  return expected;
}

TEST(simulate, counts_what_counting_every_byte_counts) {
  Random random(1);
  for (int round = 0; round < 40; ++round) {
    const RandomModel model = random_model(random, 40);
    const Catalog catalog = catalog_of(random, model.stored);
    const NamedMesh mesh = random_named_mesh(random);
    std::vector<NativeTensor> tensors;
    std::uint64_t native_bytes = 0;
    for (const Native& native : model.natives) {
      tensors.push_back(tensor_of(native));
      native_bytes += static_cast<std::uint64_t>(volume(native.shape) * bytes_of(native.dtype));
    }
    SimulateOptions options;
    options.ranks_per_node = random.between(1, 5);
    options.threads = static_cast<int>(random.between(1, 3));
    const Simulation found = simulate(TensorsOnMesh(tensors, mesh.dimensions, mesh.dense), catalog,
                                      weight_map_for(catalog, "minimax_m3"), options);
    ASSERT_EQ(std::ssize(found.ranks), volume(mesh.sizes));
    ASSERT_EQ(found.world, volume(mesh.sizes));

    Bytes all;
    std::map<std::int64_t, Bytes> by_node;
    std::int64_t rank = 0;
    std::uint64_t saved = 0, exported = 0, needed = 0;
    for_each_index(mesh.sizes, [&](const Shape& coordinate) {
      const SimulatedRank& of_rank = found.ranks[static_cast<std::size_t>(rank)];
      const Expected expected = expected_of(model, catalog, mesh, coordinate);
      ASSERT_EQ(of_rank.rank, rank);
      ASSERT_EQ(of_rank.stage, expected.stage);
      ASSERT_EQ(of_rank.bytes_needed, size_of(expected.needed)) << "round " << round << " rank " << rank;
      ASSERT_EQ(of_rank.bytes_held, expected.held);
      ASSERT_EQ(of_rank.extents, ranges_in(expected.needed)) << "round " << round << " rank " << rank;
      std::map<std::uint32_t, std::uint64_t> by_file;
      for (const auto& [file, byte] : expected.needed) ++by_file[file];
      std::uint64_t read = 0;
      ASSERT_EQ(of_rank.files.size(), by_file.size());
      for (const FileShare& share : of_rank.files) {
        ASSERT_GE(share.bytes, by_file.at(share.file));
        read += share.bytes;
      }
      ASSERT_EQ(of_rank.bytes_read, read);
      ASSERT_LE(of_rank.bytes_saved, of_rank.bytes_held);
      saved += of_rank.bytes_saved;
      exported += of_rank.bytes_exported;
      needed += of_rank.bytes_needed;
      by_node[rank / options.ranks_per_node].insert(expected.needed.begin(), expected.needed.end());
      all.insert(expected.needed.begin(), expected.needed.end());
      ++rank;
    });
    ASSERT_EQ(found.nodes.size(), by_node.size());
    for (const SimulatedNode& node : found.nodes) {
      ASSERT_EQ(node.bytes_distinct, size_of(by_node.at(node.node))) << "round " << round;
      ASSERT_GE(node.bytes_read_together, node.bytes_distinct);
    }
    ASSERT_EQ(found.bytes_distinct, size_of(all));
    ASSERT_EQ(found.bytes_needed_by_job, size_of(all));
    ASSERT_EQ(found.bytes_read_by_job, size_of(all));
    ASSERT_EQ(found.bytes_distinct, found.bytes_checkpoint);  // the model takes all that is there
    ASSERT_EQ(saved, native_bytes);
    ASSERT_EQ(found.bytes_native, native_bytes);
    ASSERT_GE(exported, found.bytes_distinct);
    ASSERT_LE(exported, needed);
  }
}

Simulation of_preset(const std::string& preset, const std::string& mesh,
                     const SimulateOptions& options = {}) {
  GenerateOptions generated;
  generated.preset = preset;
  const Catalog catalog = generated_catalog(generated);
  const WeightMap map = weight_map_for(catalog);
  return simulate(TensorsOnMesh(native_tensors(catalog, map), parse_mesh(mesh)), catalog, map, options);
}

TEST(simulate, the_full_model_on_1024_ranks_is_read_evenly_within_each_stage) {
  SimulateOptions options;
  options.sample = 128;
  const Simulation found = of_preset("full", "pp=8,ep=64,ep_shard=2", options);
  EXPECT_EQ(found.world, 1024);
  std::map<std::int64_t, std::vector<double>> read;
  for (const SimulatedRank& rank : found.ranks)
    read[rank.stage].push_back(static_cast<double>(rank.bytes_read));
  ASSERT_EQ(read.size(), 8U);
  for (const auto& [stage, bytes] : read) {
    const double mean = std::accumulate(bytes.begin(), bytes.end(), 0.0) / static_cast<double>(bytes.size());
    EXPECT_LE(*std::max_element(bytes.begin(), bytes.end()), 1.05 * mean) << "stage " << stage;
  }
}

TEST(simulate, copies_share_what_a_save_and_an_export_write) {
  const Simulation found = of_preset("small", "replicate=4");
  std::uint64_t saved = 0, exported = 0;
  for (const SimulatedRank& rank : found.ranks) {
    EXPECT_EQ(rank.bytes_held, found.bytes_native);
    EXPECT_LE(rank.bytes_saved * 4, found.bytes_native * 21 / 20);
    saved += rank.bytes_saved;
    exported += rank.bytes_exported;
  }
  EXPECT_EQ(saved, found.bytes_native);
  EXPECT_EQ(exported, found.bytes_checkpoint);
  // The four are one node: each reads everything, together once.
  ASSERT_EQ(found.nodes.size(), 1U);
  EXPECT_EQ(found.nodes[0].bytes_read, 4 * found.bytes_checkpoint);
  EXPECT_EQ(found.nodes[0].bytes_read_together, found.bytes_checkpoint);
}

TEST(simulate, planning_a_save_finds_the_chunks_that_ranks_hold_and_moves_each_description_once) {
  for (const char* mesh : {"ep=2,dp=3,pp=3,replicate=2", "shard=5", "replicate=3", "pp=2,ep=2,ep_shard=2"}) {
    GenerateOptions generated;
    generated.preset = "tiny";
    const Catalog catalog = generated_catalog(generated);
    const TensorsOnMesh tensors(native_tensors(catalog, weight_map_for(catalog)), parse_mesh(mesh));
    std::set<std::tuple<std::string, Shape, Shape>> chunks;
    std::uint64_t largest = 0;
    for (std::int64_t rank = 0; rank < tensors.ranks(); ++rank) {
      for (const TensorSpec& spec : tensors.specs_of_rank(rank)) {
        for (const LocalBox& box : spec.boxes) {
          chunks.emplace(spec.fqn, box.global.offset, box.global.size);
          largest =
              std::max(largest, static_cast<std::uint64_t>(volume(box.global.size) * bytes_of(spec.dtype)));
        }
      }
    }
    const SimulatedSave save = simulate_save(tensors);
    EXPECT_EQ(save.chunks, chunks.size()) << mesh;
    std::uint64_t native = 0, names = 0;
    for (const NativeTensor& tensor : tensors.tensors()) {
      native += static_cast<std::uint64_t>(volume(tensor.shape) * bytes_of(tensor.dtype));
      names += tensor.fqn.size();
    }
    EXPECT_EQ(std::accumulate(save.bytes_of_rank.begin(), save.bytes_of_rank.end(), std::uint64_t{0}),
              native);
    const auto ranks = static_cast<std::uint64_t>(tensors.ranks());
    EXPECT_EQ(save.bytes_unchanged, ranks * (2 * sizeof(Hash) + 2)) << mesh;
    EXPECT_LT(save.bytes_exchanged, names + 20 * tensors.tensors().size() + 200 * ranks) << mesh;
    EXPECT_LE(save.bytes_metadata, names + 200 * chunks.size()) << mesh;
  }
}

TEST(simulate, a_sample_takes_whole_nodes_from_all_over_the_mesh_and_counts_them_as_they_are_in_the_whole) {
  const std::string mesh = "ep=2,dp=3,pp=3,replicate=2";  // 36 ranks
  SimulateOptions options;
  options.ranks_per_node = 5;
  const Simulation whole_mesh = of_preset("tiny", mesh, options);
  options.sample = 11;
  const Simulation sample = of_preset("tiny", mesh, options);
  std::vector<std::int64_t> ranks, nodes;
  for (const SimulatedNode& node : sample.nodes) nodes.push_back(node.node);
  EXPECT_EQ(nodes, (std::vector<std::int64_t>{0, 2, 5}));  // of 8
  EXPECT_EQ(sample.world, 36);
  for (const SimulatedRank& rank : sample.ranks) {
    ranks.push_back(rank.rank);
    const SimulatedRank& same = whole_mesh.ranks.at(static_cast<std::size_t>(rank.rank));
    EXPECT_EQ(rank.bytes_read, same.bytes_read);
    EXPECT_EQ(rank.bytes_saved, same.bytes_saved);
    EXPECT_EQ(rank.requests, same.requests);
  }
  EXPECT_EQ(ranks, (std::vector<std::int64_t>{0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 25, 26, 27, 28, 29}));
}

TEST(simulate, options_that_make_no_sense_are_refused_by_name) {
  const auto refused = [](std::initializer_list<std::string_view> texts, const auto& set) {
    SimulateOptions options;
    set(options);
    expect_error(ErrorKind::argument, texts, [&] { of_preset("tiny", "ep=2", options); });
  };
  refused({"ranks_per_node", "found 0"}, [](SimulateOptions& o) { o.ranks_per_node = 0; });
  refused({"sample", "found -1"}, [](SimulateOptions& o) { o.sample = -1; });
  refused({"threads", "found -1"}, [](SimulateOptions& o) { o.threads = -1; });
  refused({"buffer_bytes", "found 100"}, [](SimulateOptions& o) { o.buffer_bytes = 100; });
  expect_error(ErrorKind::argument, {"pp=4", "1 to 3"}, [] { of_preset("tiny", "pp=4"); });
  expect_error(ErrorKind::argument, {"ranks", "sample"}, [] { of_preset("tiny", "replicate=100000000000"); });
}

}  // namespace
}  // namespace shardwright
