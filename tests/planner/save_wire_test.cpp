#include "planner/save/save_wire.h"

#include <gtest/gtest.h>

#include <functional>

#include "planner/error.h"
#include "planner/save/global_save_plan.h"
#include "planner/save/plan_together.h"
#include "planner/save/write_results.h"
#include "tests/planner/random_saves.h"

namespace shardwright {
namespace {

/// A message of each kind, with the function that decodes it and encodes it again.
struct Message {
  std::string what;
  std::string bytes;
  std::function<std::string(const std::string&)> again;
};

std::vector<Message> messages(Random& random) {
  const RandomSave save = random_save(random, true);
  ValuesByHash known;
  for (const RankState& state : save.states) learn_values(state, known);
  const GlobalSavePlan plan = plan_save(save.states, known);
  const RankState& state = save.states.back();
  std::vector<std::size_t> counts;
  for (const SavedItems& items : items_of(state)) counts.push_back(items.value.size());
  return {
      {"values", state.values.front(), [](const std::string& bytes) { return encode(decode_values(bytes)); }},
      {"state", encode(state), [](const std::string& bytes) { return encode(decode_state(bytes)); }},
      {"writes", encode(RankWrites{plan.left_to_others.back(), {{0, 0, 1, 2, 3}}}),
       [=](const std::string& bytes) { return encode(decode_writes(bytes, counts)); }},
      {"results", encode(random_results(random)),
       [](const std::string& bytes) { return encode(decode_results(bytes)); }},
      {"metadata", encode(plan.metadata),
       [](const std::string& bytes) { return encode(decode_metadata(bytes)); }},
  };
}

TEST(save_wire, what_was_encoded_is_decoded) {
  Random random(1);
  for (int round = 0; round < 50; ++round) {
    for (const RankState& state : random_save(random, true).states) {
      ASSERT_TRUE(decode_state(encode(state)) == state);
      for (const std::string& bytes : state.values) {
        const SavedValues values = decode_values(bytes);
        ASSERT_EQ(encode(values), bytes);
      }
    }
  }
}

TEST(save_wire, what_a_rank_has_written_is_decoded_as_it_was_encoded) {
  Random random(2);
  for (int round = 0; round < 100; ++round) {
    const WriteResults results = random_results(random);
    ASSERT_TRUE(decode_results(encode(results)) == results);
  }
  WriteResults failed;
  failed.rank = 3;
  failed.failure = "No space left on device";
  failed.error_number = 28;
  failed.misfit = true;
  EXPECT_TRUE(decode_results(encode(failed)) == failed);
}

TEST(save_wire, results_that_do_not_lie_in_their_files_are_refused) {
  const auto expect_refusal = [](const WriteResults& results, const std::string& why) {
    try {
      decode_results(encode(results));
      ADD_FAILURE() << why;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind, ErrorKind::malformed);
      EXPECT_NE(std::string(error.what()).find(why), std::string::npos) << error.what();
    }
  };
  WriteResults good;
  good.values.values = {{"w", SavedValue::Kind::shards, {"float32", "strided", 4, 0}, {6}, {}, {}}};
  good.items.add(0, {2}, {3});
  good.files = {{"a", 32, 20, 5}};
  good.ranges = {{0, {20, 32, {7}}}};
  ASSERT_TRUE(decode_results(encode(good)) == good);
  const std::vector<std::pair<std::string, std::function<void(WriteResults&)>>> harms{
      {"an item in no file", [](WriteResults& r) { r.ranges[0].file = 1; }},
      {"an item outside its file", [](WriteResults& r) { r.files[0].size = 31; }},
      {"an item outside its file", [](WriteResults& r) { r.files[0].header_bytes = 21; }},
      {"a file shorter than its header", [](WriteResults& r) { r.files[0].header_bytes = 33; }},
      {"a tensor of more bytes than its box", [](WriteResults& r) { r.ranges[0].bytes.end = 31; }},
      {"a file that is not one of its directory", [](WriteResults& r) { r.files[0].name = "../a"; }},
      {"a file that is not one of its directory", [](WriteResults& r) { r.files[0].name = ".."; }},
      {"items without their ranges", [](WriteResults& r) { r.ranges.clear(); }},
      {"a box outside its tensor", [](WriteResults& r) { r.items.corners[0] = 4; }},
  };
  for (const auto& [why, harm] : harms) {
    WriteResults results = good;
    harm(results);
    expect_refusal(results, why);
  }
}

TEST(save_wire, all_facts_of_a_value_survive) {
  SavedValues values;
  values.mesh_shape = {2, 3};
  values.mesh_ranks = {7, 8, 9, 1, 2, 30};
  values.values = {
      {"layers.10.w",
       SavedValue::Kind::shards,
       {"bfloat16", "strided", 2, 5},
       {4, 0, 9},
       {{Placement::Kind::shard, 2, 1}, {Placement::Kind::strided_shard, 0, 6}},
       {{"layers", false}, {"10", true}, {"w", false}}},
      {"layers.10.b", SavedValue::Kind::tensor, {"float8_e4m3fnuz", "sparse_coo", 1, 0}, {}, {{}, {}}, {}},
      {"a.b", SavedValue::Kind::shards, {"float64", "strided", 8, 0}, {1}, {{}, {}}, {{"a.b", false}}},
  };
  EXPECT_TRUE(decode_values(encode(values)) == values);
}

TEST(save_wire, equal_input_is_equal_bytes) {
  Random one(3);
  Random same(3);
  Random other(4);
  const auto a = messages(one);
  const auto b = messages(same);
  const auto c = messages(other);
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].bytes, b[i].bytes) << a[i].what;
    EXPECT_EQ(a[i].again(a[i].bytes), a[i].bytes) << a[i].what;
  }
  EXPECT_NE(a[0].bytes, c[0].bytes);
}

TEST(save_wire, another_version_is_refused) {
  Random random(5);
  for (Message& message : messages(random)) {
    ASSERT_EQ(message.bytes.substr(0, 2), "\x08\x01");  // field 1, the version
    message.bytes[1] = 2;
    try {
      message.again(message.bytes);
      ADD_FAILURE() << message.what;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind, ErrorKind::malformed);
      EXPECT_NE(std::string(error.what()).find("version 2"), std::string::npos) << error.what();
    }
  }
}

TEST(save_wire, a_message_cut_short_anywhere_is_refused) {
  Random random(6);
  for (const Message& message : messages(random)) {
    for (std::size_t length = 0; length < message.bytes.size(); ++length) {
      try {
        message.again(message.bytes.substr(0, length));
        ADD_FAILURE() << message.what << " of " << length << " bytes";
      } catch (const Error& error) {
        ASSERT_EQ(error.kind, ErrorKind::malformed) << error.what();
      }
    }
  }
}

TEST(save_wire, a_damaged_message_is_refused_or_means_something) {
  Random random(8);
  for (int round = 0; round < 20; ++round) {
    for (const Message& message : messages(random)) {
      for (int damage = 0; damage < 200; ++damage) {
        std::string damaged = message.bytes;
        damaged[static_cast<std::size_t>(random.between(0, std::ssize(damaged) - 1))] =
            static_cast<char>(random.between(0, 255));
        try {
          const std::string again = message.again(damaged);
          ASSERT_EQ(message.again(again), again);
        } catch (const Error& error) {
          ASSERT_EQ(error.kind, ErrorKind::malformed) << error.what();
        }
      }
    }
  }
}

TEST(save_wire, names_that_have_their_beginning_in_common_are_sent_once) {
  SavedValues values;
  for (int i = 0; i < 1000; ++i) {
    SavedValue& value = values.values.emplace_back();
    value.fqn = "model.language_model.layers." + std::to_string(i) + ".self_attn.q_proj.weight";
  }
  EXPECT_LT(encode(values).size(), 1000 * 40U);
}

TEST(save_wire, hashes_differ_in_every_bit_that_differs) {
  const std::string bytes(100, 'a');
  const Hash hash = hash_of(bytes);
  EXPECT_EQ(hash, hash_of(bytes));
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::string other = bytes;
    other[bit / 8] = static_cast<char>(other[bit / 8] ^ (1 << bit % 8));
    const Hash changed = hash_of(other);
    int differing = 0;
    for (std::size_t i = 0; i < hash.size(); ++i)
      differing += __builtin_popcount(static_cast<unsigned char>(hash[i] ^ changed[i]));
    ASSERT_GT(differing, 30) << bit;
  }
  EXPECT_NE(hash_of(std::string(8, '\0')), hash_of(std::string(9, '\0')));
}

}  // namespace
}  // namespace shardwright
