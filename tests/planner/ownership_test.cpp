#include "planner/save/ownership.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "tests/planner/random_layouts.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

double two_bytes(const SavedTensor&) { return 2; }
std::size_t along_the_first(const SavedTensor&, const Box&) { return 0; }

/// Tensors in boxes that cover them, each box held by one rank or more.
std::vector<Holdings> random_holdings(Random& random, std::int64_t ranks, std::int64_t largest) {
  std::vector<Holdings> holdings(static_cast<std::size_t>(ranks));
  for (std::int64_t t = random.between(1, 5); t > 0; --t) {
    const SavedTensor tensor{"t" + std::to_string(t), DType::BF16,
                             random_shape(random, random.between(0, 3), 1, largest)};
    std::vector<HeldBoxes> held(holdings.size(), {tensor, {}});
    for (const Box& box : random_tiling(random, whole(tensor.shape), random.between(0, 5))) {
      const std::int64_t always = random.between(0, ranks - 1);
      const std::int64_t rarity = random.between(1, 4);
      for (std::int64_t rank = 0; rank < ranks; ++rank) {
        if (rank == always || random.once_in(rarity))
          held[static_cast<std::size_t>(rank)].boxes.push_back(box);
      }
    }
    for (std::size_t rank = 0; rank < holdings.size(); ++rank) {
      random.shuffle(held[rank].boxes);
      if (!held[rank].boxes.empty() || random.once_in(2)) holdings[rank].push_back(held[rank]);
    }
  }
  return holdings;
}

bool lies_in_one_of(const Box& box, const Holdings& holdings, const std::string& fqn) {
  for (const HeldBoxes& held : holdings) {
    for (const Box& outer : held.boxes) {
      if (held.tensor.fqn == fqn && intersection(outer, box) == box) return true;
    }
  }
  return false;
}

double bytes_of_share(const Holdings& share) {
  double bytes = 0;
  for (const HeldBoxes& held : share) {
    for (const Box& box : held.boxes) bytes += 2 * static_cast<double>(volume(box.size));
  }
  return bytes;
}

double busiest_by_mean(const std::vector<Holdings>& shares) {
  double most = 0;
  double sum = 0;
  for (const Holdings& share : shares) {
    most = std::max(most, bytes_of_share(share));
    sum += bytes_of_share(share);
  }
  return most * static_cast<double>(shares.size()) / sum;
}

TEST(ownership, each_element_is_written_once_by_a_rank_that_holds_it) {
  Random random(1);
  for (int round = 0; round < 300; ++round) {
    // Small tensors, and now and then ones that are large enough to be cut.
    const std::int64_t largest = random.once_in(4) ? 130 : 9;
    const std::vector<Holdings> holdings = random_holdings(random, random.between(1, 6), largest);
    const auto cut = [&](const SavedTensor& tensor, const Box&) {
      return tensor.shape.empty() ? 0 : (tensor.shape.size() - 1) % 2;
    };
    const std::vector<Holdings> shares = deal_out(holdings, two_bytes, cut);
    ASSERT_EQ(shares.size(), holdings.size());
    std::map<std::string, std::vector<int>> written;
    for (std::size_t rank = 0; rank < shares.size(); ++rank) {
      for (const HeldBoxes& held : shares[rank]) {
        std::vector<int>& counts = written[held.tensor.fqn];
        counts.resize(static_cast<std::size_t>(volume(held.tensor.shape)));
        for (const Box& box : held.boxes) {
          ASSERT_TRUE(lies_in_one_of(box, holdings[rank], held.tensor.fqn));
          for_each_index(box.size,
                         [&](const Shape& at) { ++counts[flat(plus(at, box.offset), held.tensor.shape)]; });
        }
      }
    }
    for (const SavedTensor& tensor : all_tensors(holdings)) {
      const std::vector<int>& counts = written.at(tensor.fqn);
      ASSERT_EQ(std::count(counts.begin(), counts.end(), 1), std::ssize(counts)) << tensor.fqn;
    }
    ASSERT_EQ(deal_out(holdings, two_bytes, cut), shares) << "the same input, another result";
  }
}

TEST(ownership, what_all_ranks_hold_is_dealt_out_evenly) {
  Random random(2);
  for (int round = 0; round < 100; ++round) {
    const std::int64_t ranks = random.between(2, 16);
    Holdings all;
    for (std::int64_t t = 0; t < 40; ++t) {
      const SavedTensor tensor{"t" + std::to_string(t), DType::BF16,
                               random_shape(random, random.between(1, 2), 1, 3000)};
      all.push_back({tensor, {whole(tensor.shape)}});
    }
    const std::vector<Holdings> holdings(static_cast<std::size_t>(ranks), all);
    ASSERT_LE(busiest_by_mean(deal_out(holdings, two_bytes, along_the_first)), 1.1);
  }
}

TEST(ownership, who_writes_more_of_its_own_writes_less_of_what_is_shared) {
  // Rank r alone holds r + 1 parts of ten; a tensor that all hold evens that out.
  std::vector<Holdings> holdings(4);
  const SavedTensor own{"own", DType::BF16, {10, 500, 500}};
  const SavedTensor shared{"shared", DType::BF16, {4000, 500}};
  std::int64_t begin = 0;
  for (std::int64_t rank = 0; rank < 4; ++rank) {
    holdings[static_cast<std::size_t>(rank)] = {{own, {{{begin, 0, 0}, {rank + 1, 500, 500}}}},
                                                {shared, {whole(shared.shape)}}};
    begin += rank + 1;
  }
  EXPECT_LE(busiest_by_mean(deal_out(holdings, two_bytes, along_the_first)), 1.1);
}

TEST(ownership, replicas_on_some_of_the_ranks_are_dealt_out_among_them) {
  // As HSDP has it: rank 2 i and rank 2 i + 1 hold the same shard; and one tensor is on all.
  std::vector<Holdings> holdings(8);
  const SavedTensor sharded{"sharded", DType::BF16, {4000, 30000}};
  const SavedTensor norm{"norm", DType::BF16, {1'000'000}};
  for (std::int64_t rank = 0; rank < 8; ++rank) {
    holdings[static_cast<std::size_t>(rank)] = {{sharded, {{{rank / 2 * 1000, 0}, {1000, 30000}}}},
                                                {norm, {whole(norm.shape)}}};
  }
  EXPECT_LE(busiest_by_mean(deal_out(holdings, two_bytes, along_the_first)), 1.1);
}

TEST(ownership, a_small_tensor_is_written_by_one_rank) {
  const SavedTensor tensor{"norm", DType::BF16, {4096}};
  const std::vector<Holdings> holdings(8, {{tensor, {whole(tensor.shape)}}});
  int writers = 0;
  for (const Holdings& share : deal_out(holdings, two_bytes, along_the_first))
    writers += share.empty() ? 0 : 1;
  EXPECT_EQ(writers, 1);
}

TEST(ownership, elements_that_no_rank_holds_and_boxes_that_overlap_are_errors) {
  const SavedTensor a{"a", DType::BF16, {6}};
  const SavedTensor b{"b", DType::BF16, {6}};
  const std::vector<Holdings> holdings{{{a, {{{0}, {3}}}}, {b, {{{0}, {4}}}}},
                                       {{a, {{{4}, {2}}}}, {b, {{{3}, {3}}}}}};
  expect_error(ErrorKind::mismatch, {"a: the parts that the ranks hold", "b: the parts that the ranks hold"},
               [&] { deal_out(holdings, two_bytes, along_the_first); });
}

TEST(ownership, a_tensor_that_differs_between_ranks_is_an_error_that_names_both) {
  const std::vector<Holdings> holdings{{{{"a", DType::BF16, {6}}, {}}},
                                       {{{"a", DType::BF16, {6}}, {}}},
                                       {{{"a", DType::F32, {6}}, {}}, {{"b", DType::F32, {1}}, {}}},
                                       {{{"b", DType::F32, {1, 1}}, {}}}};
  expect_error(
      ErrorKind::mismatch,
      {"a: BF16 [6] on rank 0, but F32 [6] on rank 2", "b: F32 [1] on rank 2, but F32 [1, 1] on rank 3"},
      [&] { all_tensors(holdings); });
}

TEST(ownership, a_part_of_a_tensor_has_its_memory) {
  Random random(3);
  for (int round = 0; round < 200; ++round) {
    const Shape shape = random_shape(random, random.between(1, 3), 1, 9);
    const Mesh mesh = random_mesh(random, std::ssize(shape));
    Shape coordinate;
    for (const std::int64_t size : mesh.shape) coordinate.push_back(random.between(0, size - 1));
    const IndexLists lists = index_lists(shape, mesh, coordinate);
    // Each local element holds its position in the whole tensor.
    std::vector<std::int32_t> memory(static_cast<std::size_t>(volume(shape_of(lists))));
    std::size_t filled = 0;
    for_each_index(shape_of(lists), [&](const Shape& local) {
      memory[filled++] = static_cast<std::int32_t>(flat(global_index(lists, local), shape));
    });
    const TensorSpec spec =
        sharded_tensor("t", DType::I32, shape, mesh.shape, coordinate, mesh.placements, memory.data());
    for (const LocalBox& local : spec.boxes) {
      Box box = random_box(random, local.global.size, 1);
      box.offset = plus(box.offset, local.global.offset);
      ASSERT_TRUE(holds(spec, box));
      const TensorSpec part = part_of(spec, box);
      ASSERT_EQ(fault_of(part), "");
      for_each_index(box.size, [&](const Shape& at) {
        std::int64_t offset = 0;
        for (std::size_t d = 0; d < at.size(); ++d) offset += at[d] * part.local_strides[d];
        ASSERT_EQ(static_cast<const std::int32_t*>(part.data)[offset],
                  static_cast<std::int32_t>(flat(plus(at, box.offset), shape)));
      });
    }
    Box outside = whole(shape);
    ++outside.size[0];
    EXPECT_FALSE(holds(spec, outside));
  }
}

}  // namespace
}  // namespace shardwright
