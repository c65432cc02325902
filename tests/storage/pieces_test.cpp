#include "storage/handover/pieces.h"

#include <gtest/gtest.h>

#include "storage/handover/piece_order.h"
#include "storage/handover/piece_source.h"
#include "storage/handover/stored_box.h"
#include "tests/planner/rounds.h"
#include "tests/storage/random_export.h"
#include "tests/storage/threads_as_ranks.h"

namespace shardwright {
namespace {

using Values = std::map<std::string, RandomExport::Expected>;

/// What the pieces of one rank come to, element by element, added to what others have; each comes once.
class Together {
 public:
  void add(const EncodedPiece& piece, const std::byte* bucket) {
    RandomExport::Expected& tensor = values[piece.name];
    tensor.dtype = piece.dtype;
    tensor.shape = piece.shape;
    tensor.bits.resize(static_cast<std::size_t>(volume(piece.shape)));
    ASSERT_EQ(piece.unit, piece.dtype) << piece.name;
    ASSERT_EQ(volume(piece.view), volume(piece.shape)) << piece.name;
    ASSERT_TRUE(lies_inside(piece.box, piece.view)) << piece.name;
    const Shape strides = contiguous_strides(piece.view);
    std::int64_t n = 0;
    for_each_index(piece.box.size, [&](const Shape& at) {
      std::int64_t element = 0;
      for (std::size_t d = 0; d < at.size(); ++d) element += (at[d] + piece.box.offset[d]) * strides[d];
      ASSERT_TRUE(seen.emplace(piece.name, element).second) << piece.name << " twice";
      tensor.bits[static_cast<std::size_t>(element)] = slow::load(bucket + piece.offset, n++, piece.dtype);
    });
    ASSERT_EQ(static_cast<std::size_t>(n * bytes_of(piece.dtype)), piece.bytes);
  }

  Values values;
  std::set<std::pair<std::string, std::int64_t>> seen;
};

void expect_same(const Together& found, const Values& expected) {
  for (const auto& [name, tensor] : expected) {
    if (volume(tensor.shape) == 0 && !found.values.contains(name)) FAIL() << name << " is not there";
    ASSERT_TRUE(found.values.contains(name)) << name;
    const RandomExport::Expected& other = found.values.at(name);
    ASSERT_EQ(name_of(other.dtype), name_of(tensor.dtype)) << name;
    ASSERT_EQ(other.shape, tensor.shape) << name;
    for (std::size_t i = 0; i < tensor.bits.size(); ++i) {
      ASSERT_TRUE(found.seen.contains({name, static_cast<std::int64_t>(i)})) << name << " element " << i;
      ASSERT_TRUE(is_same(tensor.dtype, other.bits[i], tensor.bits[i])) << name << " element " << i;
    }
  }
  ASSERT_EQ(found.values.size(), expected.size());
}

/// All pieces of all ranks; each rank's layers in their order, and no bucket fuller than it may be.
Together hand_over(const std::vector<std::vector<TensorSpec>>& specs, const ExportRequest& request,
                   const ExportWriting& writing, std::size_t bucket_bytes) {
  std::vector<std::string> holdings;
  std::vector<RankState> states;
  for (const std::vector<TensorSpec>& of_rank : specs) {
    states.push_back(state_of(of_rank, std::ssize(states)));
    holdings.push_back(describe_export(of_rank, states.back(), request, writing.devices));
  }
  const PlannedExport planned = plan_export(holdings, request, {});
  Together together;
  for (std::size_t rank = 0; rank < specs.size(); ++rank) {
    Pieces pieces(piece_source(planned.shares[rank], specs[rank], states[rank], request, bucket_bytes,
                               nullptr, writing));
    EXPECT_LE(pieces.bucket_bytes(), bucket_bytes);
    std::vector<std::byte> bucket(pieces.bucket_bytes());
    std::uint32_t place = 0;
    for (auto some = pieces.next(bucket.data()); !some.empty(); some = pieces.next(bucket.data())) {
      for (const EncodedPiece& piece : some) {
        EXPECT_LE(piece.offset + piece.bytes, bucket.size());
        EXPECT_GE(piece.place, place);
        place = piece.place;
        together.add(piece, bucket.data());
      }
    }
    EXPECT_TRUE(pieces.next(bucket.data()).empty());
  }
  return together;
}

TEST(pieces, of_any_state_of_any_ranks_are_what_the_definition_says) {
  Random random(11);
  for (int round = 0; round < rounds(25); ++round) {
    const RandomExport state(random, random.once_in(4) ? 200 : 70);
    std::vector<std::vector<TensorSpec>> specs;
    for (const RankTensors& rank : state.ranks) specs.push_back(rank.specs);
    ExportWriting writing;
    writing.threads = static_cast<int>(random.between(1, 4));
    const auto bucket = static_cast<std::size_t>(random.one_of<int>({64 << 10, 100000, 1 << 20}));
    expect_same(hand_over(specs, state.request, writing, bucket), state.expected());
    if (testing::Test::HasFailure()) FAIL() << "round " << round;
  }
}

/// Matrices are cut both ways for the threads that encode them.
TEST(pieces, of_matrices_with_more_columns_than_are_encoded_at_a_time) {
  Random random(14);
  for (int round = 0; round < 4; ++round) {
    const RandomExport state(random, 700);
    std::vector<std::vector<TensorSpec>> specs;
    for (const RankTensors& rank : state.ranks) specs.push_back(rank.specs);
    ExportWriting writing;
    writing.threads = 2;
    writing.staging_bytes = std::size_t{128} << 10;
    expect_same(hand_over(specs, state.request, writing, std::size_t{1} << 20), state.expected());
    if (testing::Test::HasFailure()) FAIL() << "round " << round;
  }
}

TEST(pieces, of_tensors_on_devices_are_the_same) {
  Random random(12);
  for (std::uint64_t round = 0; round < 10; ++round) {
    const RandomExport state(random, 70);
    FakeDevices devices(round);
    ExportWriting writing;
    writing.threads = static_cast<int>(random.between(1, 4));
    DeviceSources sources(devices, random, state, 3, writing.devices);
    const Together found = hand_over(sources.specs, state.request, writing, std::size_t{64} << 10);
    ASSERT_EQ(devices.faults(), std::vector<std::string>()) << "round " << round;
    sources.expect_unchanged();
    expect_same(found, state.expected());
    if (testing::Test::HasFailure()) FAIL() << "round " << round;
  }
}

TEST(pieces, in_too_small_a_bucket_are_refused) {
  Random random(13);
  const RandomExport state(random, 20);
  EXPECT_THROW(hand_over({state.ranks.front().specs}, state.request, {}, 1000), Error);
}

/// A matrix of known values, of which each of three ranks holds some columns.
struct Columns {
  static constexpr std::int64_t rows = 40;
  static constexpr std::int64_t columns = 100;
  std::vector<float> values;
  std::vector<TensorSpec> specs;

  explicit Columns(const Job& job) {
    const Placement by_columns{Placement::Kind::shard, 1};
    const Shape local = local_shape({rows, columns}, {job.ranks}, {job.rank}, {by_columns});
    const std::int64_t first = (columns + job.ranks - 1) / job.ranks * job.rank;
    for (std::int64_t r = 0; r < local[0]; ++r) {
      for (std::int64_t c = 0; c < local[1]; ++c)
        values.push_back(static_cast<float>(r * columns + first + c));
    }
    specs = {sharded_tensor("model.layers.0.weight", DType::F32, {rows, columns}, {job.ranks}, {job.rank},
                            {by_columns}, values.data())};
  }
};

PieceOptions as_they_are() {
  PieceOptions options;
  options.layout = "huggingface";
  options.bucket_bytes = smallest_bucket;
  options.threads = 1;
  return options;
}

std::vector<EncodedPiece> all_pieces(Pieces& pieces, std::vector<std::byte>& bucket) {
  bucket.resize(pieces.bucket_bytes());
  std::vector<EncodedPiece> all = pieces.next(bucket.data());
  EXPECT_TRUE(pieces.next(bucket.data()).empty());
  return all;
}

TEST(pieces, of_ranks_that_begin_together_are_what_each_holds) {
  std::vector<std::string> seen(3);
  const auto errors = ThreadsAsRanks(3).run([&](const Job& job) {
    const Columns held(job);
    Pieces pieces = begin_pieces(held.specs, job, as_they_are());
    std::vector<std::byte> bucket;
    for (const EncodedPiece& piece : all_pieces(pieces, bucket)) {
      EXPECT_EQ(piece.layer, "model.layers.0");
      EXPECT_EQ(piece.shape, (Shape{Columns::rows, Columns::columns}));
      EXPECT_EQ(std::memcmp(bucket.data() + piece.offset, held.values.data(), piece.bytes), 0);
      seen[static_cast<std::size_t>(job.rank)] += to_string(piece.box);
    }
    EXPECT_EQ(pieces.tensors().size(), 1U);
  });
  for (const auto& error : errors) EXPECT_FALSE(error) << error->what();
  EXPECT_EQ(seen, (std::vector<std::string>{"[0:40, 0:34]", "[0:40, 34:68]", "[0:40, 68:100]"}));
}

TEST(pieces, of_ranks_that_differ_are_one_error_for_all) {
  const auto refused = [](const std::function<void(const Job&, PieceOptions&)>& change) {
    std::set<std::string> told;
    for (const auto& error : ThreadsAsRanks(3).run([&](const Job& job) {
           const Columns held(job);
           PieceOptions options = as_they_are();
           change(job, options);
           begin_pieces(held.specs, job, options);
         })) {
      told.insert(error ? error->what() : "nothing");
    }
    EXPECT_EQ(told.size(), 1U);
    return *told.begin();
  };
  EXPECT_NE(refused([](const Job& job, PieceOptions& options) {
              options.strict = job.rank != 2;
            }).find("rank 2: expected strict true as on rank 0, found strict false"),
            std::string::npos);
  EXPECT_NE(refused([](const Job& job, PieceOptions& options) {
              options.bucket_bytes = job.rank == 1 ? 5 : smallest_bucket;
            }).find("bucket_bytes is 5"),
            std::string::npos);
}

TEST(pieces, that_have_not_changed_do_not_come_again) {
  Columns held(Job{});
  PieceSums sums;
  PieceOptions options = as_they_are();
  options.changed_since = &sums;
  std::vector<std::byte> bucket;
  const auto step = [&](bool keep) {
    Pieces pieces = begin_pieces(held.specs, {}, options);
    std::vector<EncodedPiece> all = all_pieces(pieces, bucket);
    if (keep) pieces.keep_sums();
    return all;
  };
  EXPECT_EQ(step(true).size(), 1U);
  EXPECT_EQ(step(true).size(), 0U);
  held.values[5 * Columns::columns + 7] = -1;
  for (const bool keep : {false, true}) {  // what has not been kept comes again
    const std::vector<EncodedPiece> changed = step(keep);
    ASSERT_EQ(changed.size(), 1U);
    EXPECT_LE(changed.front().bytes, sums.block_bytes);
    const Box& box = changed.front().box;
    EXPECT_TRUE(intersects(box, {{5, 7}, {1, 1}})) << to_string(box);
    EXPECT_EQ(std::memcmp(bucket.data() + changed.front().offset,
                          held.values.data() + box.offset[0] * Columns::columns + box.offset[1],
                          changed.front().bytes),
              0);
  }
  EXPECT_EQ(step(true).size(), 0U);
  sums.forget();
  EXPECT_EQ(step(true).size(), 1U);
}

TEST(piece_order, layers_go_by_their_numbers_and_come_as_the_files_have_them) {
  Catalog catalog;
  std::uint64_t at = 0;
  for (const char* name : {"model.embed.weight", "model.layers.10.a.weight", "model.layers.2.b.weight",
                           "model.layers.2.b.weight_scale_inv", "lm_head.weight"}) {
    SourceTensor tensor;
    tensor.name = name;
    tensor.begin = at++;
    catalog.tensors.push_back(tensor);
  }
  const HandoverOrder order = order_by_layer(catalog);
  EXPECT_EQ(order.places, (std::vector<std::uint32_t>{0, 3, 1, 2, 4}));
  EXPECT_EQ(order.layers, (std::vector<std::uint32_t>{0, 2, 1, 1, 3}));
  EXPECT_EQ(layer_of("model.layers.2.mlp.experts.5.w1.weight"), "model.layers.2");
  EXPECT_EQ(layer_of("lm_head.weight"), "lm_head");
  EXPECT_EQ(layer_of("weight"), "weight");
}

TEST(stored_box, of_another_view_is_a_box_where_it_has_no_gaps) {
  EXPECT_EQ(box_in_shape({2, 6, 5}, {{1, 0, 0}, {1, 3, 5}}, {12, 5}), (Box{{6, 0}, {3, 5}}));
  EXPECT_EQ(box_in_shape({2, 6, 5}, {{0, 1, 0}, {2, 1, 5}}, {12, 5}), std::nullopt);
  EXPECT_EQ(box_in_shape({4, 64}, {{1, 16}, {2, 32}}, {4, 4, 16}), (Box{{1, 1, 0}, {2, 2, 16}}));
  EXPECT_EQ(box_in_shape({4, 64}, {{1, 8}, {2, 8}}, {4, 4, 16}), (Box{{1, 0, 8}, {2, 1, 8}}));
  EXPECT_EQ(box_in_shape({4, 64}, {{1, 8}, {2, 16}}, {4, 4, 16}), std::nullopt);
  EXPECT_EQ(box_in_shape({}, {{}, {}}, {1}), (Box{{0}, {1}}));
}

}  // namespace
}  // namespace shardwright
