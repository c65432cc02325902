#include "planner/save/shared_blocks.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <tuple>

#include "planner/models/models.h"
#include "planner/names/companions.h"
#include "tests/planner/plain_lattice.h"
#include "tests/planner/random_checkpoint.h"
#include "tests/planner/rounds.h"

namespace shardwright {
namespace {

/// A row of a block of 32 columns: (HF weight, row, number of the block).
using BlockRow = std::tuple<std::string, std::int64_t, std::int64_t>;

/// The native tensors of the model on a random mesh, as one of its ranks holds them.
std::vector<TensorSpec> specs_of_a_rank(Random& random, const RandomModel& model) {
  std::vector<TensorSpec> specs;
  for (const Native& native : model.natives) {
    const Mesh mesh = random_mesh(random, std::ssize(native.shape));
    Shape coordinate;
    for (const std::int64_t size : mesh.shape) coordinate.push_back(random.between(0, size - 1));
    specs.push_back(
        sharded_tensor(native.fqn, native.dtype, native.shape, mesh.shape, coordinate, mesh.placements));
  }
  return specs;
}

std::map<std::string, Shape> scaled_weights_of(const RandomModel& model, const Catalog& catalog) {
  std::map<std::string, Shape> shapes;
  for (const Stored& stored : model.stored) {
    if (!scales_of(catalog, stored.name).empty()) shapes[stored.name] = stored.shape;
  }
  return shapes;
}

TEST(shared_blocks, are_those_of_which_a_box_holds_some_elements_and_not_all) {
  Random random(1);
  int found = 0;
  for (int round = 0; round < rounds(60); ++round) {
    const RandomModel model = random_model(random, 150);
    const Catalog catalog = catalog_of(random, model.stored);
    ExportForm form;
    form.map = weight_map_for(catalog);
    form.template_catalog = &catalog;
    form.quantize = quantization_named("mxfp8");
    form.by_rule_of_names = false;
    const std::map<std::string, Shape> scaled = scaled_weights_of(model, catalog);
    const std::vector<TensorSpec> specs = specs_of_a_rank(random, model);
    const std::vector<CutBlocks> cuts = cut_blocks(specs, form);

    // The slow definition: every element of every box, one by one.
    std::set<std::tuple<std::size_t, std::size_t, BlockRow>> expected;
    for (std::size_t s = 0; s < specs.size(); ++s) {
      for (std::size_t b = 0; b < specs[s].boxes.size(); ++b) {
        const Box& box = specs[s].boxes[b].global;
        std::map<BlockRow, std::int64_t> held;
        for_each_index(box.size, [&](const Shape& at) {
          const HfElement element = hf_element(model.natives[s], plus(at, box.offset));
          if (scaled.contains(element.name)) ++held[{element.name, element.index[0], element.index[1] / 32}];
        });
        for (const auto& [row, count] : held) {
          const std::int64_t columns = scaled.at(std::get<0>(row))[1];
          const std::int64_t in_block = std::min<std::int64_t>(32, columns - 32 * std::get<2>(row));
          if (count < in_block) expected.emplace(s, b, row);
        }
      }
    }

    std::set<std::tuple<std::size_t, std::size_t, BlockRow>> seen;
    for (const CutBlocks& cut : cuts) {
      const TensorSpec& spec = specs[cut.spec];
      ASSERT_EQ(cut.column.first_row, cut.part.offset[0]);
      std::size_t box = spec.boxes.size();
      for_each_index(cut.part.size, [&](const Shape& at) {
        // The element of the HF weight and the local one are the same.
        const Shape local = element_of(cut.in_local, at);
        Shape global;
        for (std::size_t b = 0; b < spec.boxes.size(); ++b) {
          const LocalBox& one = spec.boxes[b];
          if (!holds(Box{one.local_offset, one.global.size}, local)) continue;
          box = b;
          for (std::size_t d = 0; d < local.size(); ++d)
            global.push_back(local[d] - one.local_offset[d] + one.global.offset[d]);
        }
        ASSERT_EQ(global.size(), local.size());
        const HfElement element = hf_element(model.natives[cut.spec], global);
        ASSERT_EQ(element.name, cut.column.weight);
        ASSERT_EQ(element.index, plus(at, cut.part.offset));
        ASSERT_EQ(element.index[1] / 32, cut.column.block);
      });
      for (std::int64_t row = 0; row < cut.part.size[0]; ++row) {
        const bool is_new =
            seen.emplace(cut.spec, box,
                         BlockRow{cut.column.weight, cut.part.offset[0] + row, cut.column.block})
                .second;
        ASSERT_TRUE(is_new) << "told twice";
      }
    }
    ASSERT_EQ(seen, expected);
    found += static_cast<int>(cuts.size());
    form.quantize = nullptr;
    ASSERT_TRUE(cut_blocks(specs, form).empty());
  }
  EXPECT_GT(found, rounds(100));
}

TEST(shared_blocks, each_gets_the_largest_scale_that_any_rank_found) {
  Random random(2);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::vector<BlockColumn>> ranks(static_cast<std::size_t>(random.between(1, 5)));
    std::map<BlockRow, std::uint8_t> largest;
    for (std::vector<BlockColumn>& columns : ranks) {
      for (std::int64_t i = random.between(0, 6); i > 0; --i) {
        BlockColumn column{
            "w" + std::to_string(random.between(1, 2)), random.between(0, 2), random.between(0, 9), {}};
        for (std::int64_t rows = random.between(1, 9); rows > 0; --rows)
          column.scales.push_back(static_cast<std::uint8_t>(random.between(0, 255)));
        for (std::size_t r = 0; r < column.scales.size(); ++r) {
          std::uint8_t& scale =
              largest[{column.weight, column.first_row + static_cast<std::int64_t>(r), column.block}];
          scale = std::max(scale, column.scales[r]);
        }
        columns.push_back(std::move(column));
      }
    }
    const std::vector<std::vector<BlockColumn>> before = ranks;
    share_scales(ranks);
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      ASSERT_EQ(ranks[rank].size(), before[rank].size());
      for (std::size_t c = 0; c < ranks[rank].size(); ++c) {
        BlockColumn expected = before[rank][c];
        for (std::size_t r = 0; r < expected.scales.size(); ++r) {
          expected.scales[r] = largest.at(
              {expected.weight, expected.first_row + static_cast<std::int64_t>(r), expected.block});
        }
        ASSERT_EQ(ranks[rank][c], expected);
      }
    }
  }
}

}  // namespace
}  // namespace shardwright
