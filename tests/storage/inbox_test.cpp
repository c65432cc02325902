#include "storage/handover/inbox.h"

#include <gtest/gtest.h>

#include <csignal>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "storage/handover/message_memory.h"
#include "storage/handover/node_board.h"
#include "tests/storage/checkpoint_files.h"
#include "tests/storage/child_processes.h"

namespace shardwright {
namespace {

constexpr std::chrono::milliseconds soon{200};
constexpr std::chrono::milliseconds long_after{60000};

/// A plan in which this rank gets random boxes of layers from ranks 1 to `senders`.
struct Received {
  Catalog catalog;
  HandedLayers layers;
  RefitPlan plan;

  Received(std::size_t layer_count, int senders, std::mt19937& random) {
    plan.message_bytes = 4096;
    for (int rank = 1; rank <= senders; ++rank) plan.receives.push_back({rank, {}});
    for (std::uint32_t l = 0; l < layer_count; ++l) {
      const std::int64_t rows = 1 + static_cast<std::int64_t>(random() % 60);
      catalog.tensors.push_back({"layer " + std::to_string(l), DType::BF16, {rows, 64}, {0, 0}});
      layers.names.push_back(catalog.tensors.back().name);
      layers.of_tensor.push_back(l);
      for (HandedList& list : plan.receives)
        for (std::int64_t row = 0; row < rows; ++row)
          if (random() % 2 == 0) list.boxes.push_back({0, {l, {}, {{row, 0}, {1, 64}}}});
    }
  }

  std::vector<Message> messages(std::size_t stream) const {
    return messages_of(plan.receives[stream].boxes, catalog, layers, plan.message_bytes);
  }
};

TEST(InboxPlaces, MessagesThatMayBeThereAtATimeLieApart) {
  std::mt19937 random(5);
  for (int turn = 0; turn < 100; ++turn) {
    const Received received(1 + random() % 9, 3, random);
    const std::size_t most = 1000 + random() % 20000;
    const InboxPlaces places =
        inbox_places(received.plan, received.catalog, received.layers, {false, true, true, true}, most);
    ASSERT_LE(places.bytes, most);
    ASSERT_EQ(places.streams.size(), received.plan.receives.size());
    const std::size_t count = received.layers.names.size();
    std::vector<std::size_t> in_layer(count);  // bytes of messages
    std::vector<std::vector<InboxPlaces::Range>> there(count);
    for (std::size_t s = 0; s < places.streams.size(); ++s) {
      const std::vector<Message> messages = received.messages(s);
      ASSERT_EQ(places.streams[s].messages.size(), messages.size());
      for (std::size_t m = 0; m < messages.size(); ++m) {
        const std::uint64_t begin = places.streams[s].messages[m];
        in_layer[messages[m].layer] += size_with_footer(messages[m]);
        if (begin == InboxPlaces::nowhere) continue;
        ASSERT_EQ(begin % alignment_in_message, 0u);
        ASSERT_LE(begin + size_with_footer(messages[m]), places.bytes);
        there[messages[m].layer].push_back({begin, begin + size_with_footer(messages[m])});
      }
    }
    for (std::uint32_t layer = 0; layer < count; ++layer) {
      if (there[layer].empty() && in_layer[layer] > 0) {
        EXPECT_GT(in_layer[layer] + 64 * 64, most);  // with what messages lie apart by
      }
      EXPECT_TRUE(places.is_free(layer, layer));
      for (std::uint32_t placed = 0; placed <= layer; ++placed) {
        if (!places.is_free(layer, placed)) continue;
        std::vector<bool> is_taken(places.bytes);
        for (const InboxPlaces::Range& range : there[layer])
          for (std::uint64_t b = range.begin; b < range.end; ++b) {
            ASSERT_FALSE(is_taken[b]);
            is_taken[b] = true;
          }
        for (std::uint32_t l = placed; l < layer; ++l)  // which have come before it
          for (const InboxPlaces::Range& range : there[l])
            for (std::uint64_t b = range.begin; b < range.end; ++b) ASSERT_FALSE(is_taken[b]);
      }
    }
  }
}

TEST(InboxPlaces, TakeAllOfTheStagingWhereNothingElseNeedsIt) {
  std::mt19937 random(7);
  Received received(5, 2, random);
  std::vector<std::uint64_t> in_layer(received.layers.names.size());
  for (std::size_t s = 0; s < received.plan.receives.size(); ++s)
    for (const Message& message : received.messages(s)) in_layer[message.layer] += size_with_footer(message);
  const std::uint64_t largest = *std::max_element(in_layer.begin(), in_layer.end());
  const std::size_t staging =
      largest + 64 * 64;  // of which a layer takes nearly all, with what messages lie apart by
  const auto places = [&](const std::vector<bool>& shares) {
    return inbox_places_in_staging(received.plan, received.catalog, received.layers, shares, staging);
  };
  const auto has_all = [](const InboxPlaces& found) {
    for (const InboxPlaces::Stream& stream : found.streams)
      for (const std::uint64_t begin : stream.messages)
        if (begin == InboxPlaces::nowhere) return false;
    return true;
  };
  EXPECT_TRUE(has_all(places({false, true, true})));
  EXPECT_LE(places({false, true, true}).bytes, staging);
  EXPECT_LE(places({false, false, true}).bytes, staging / 2);  // rank 1 is on another node
  received.plan.sends.push_back({2, received.plan.receives.front().boxes});
  EXPECT_TRUE(has_all(places({false, true, true})));
  received.plan.sends.push_back({0, received.plan.receives.front().boxes});  // to itself
  EXPECT_FALSE(has_all(places({false, true, true})));
  EXPECT_LE(places({false, true, true}).bytes, staging / 2);
}

/// Makes each message of the number that it is, three hand-overs long.
bool send_all(Outbox& outbox, const std::vector<Message>& messages) {
  for (int turn = 1; turn <= 3; ++turn) {
    outbox.begin();
    for (std::size_t m = 0; m < messages.size(); ++m) {
      if (outbox.message(m) == nullptr) continue;
      if (!outbox.wait_for(messages[m].layer, {long_after})) return false;
      std::memset(outbox.message(m), static_cast<int>(m + static_cast<std::size_t>(turn)),
                  size_with_footer(messages[m]));
      outbox.send(m);
    }
  }
  return true;
}

TEST(Inbox, EachMessageComesWholeInEachHandOver) {
  std::mt19937 random(9);
  const Received received(40, 2, random);
  Inbox inbox(inbox_places(received.plan, received.catalog, received.layers, {false, true, true}, 16384));
  std::vector<pid_t> children;
  for (std::size_t s = 0; s < 2; ++s) {
    children.push_back(in_child([&] {
      Outbox outbox(0, inbox.path(), inbox.size(), static_cast<int>(s) + 1, received.messages(s), 40);
      return send_all(outbox, received.messages(s));
    }));
  }
  for (int turn = 1; turn <= 3; ++turn) {
    inbox.begin();
    std::vector<std::size_t> next(2);
    std::uint32_t open = 0;
    for (std::uint32_t layer = 0; layer < 40; ++layer) {
      for (; open < 40 && inbox.places().is_free(open, layer); ++open) inbox.open(open);
      for (std::size_t s = 0; s < 2; ++s) {
        const std::vector<Message> messages = received.messages(s);
        for (; next[s] < messages.size() && messages[next[s]].layer == layer; ++next[s]) {
          const std::byte* const message = inbox.message(s, next[s]);
          if (message == nullptr) continue;
          inbox.wait_for(s, next[s], {long_after});
          const auto expected = static_cast<std::byte>(next[s] + static_cast<std::size_t>(turn));
          for (std::size_t b = 0; b < size_with_footer(messages[next[s]]); ++b)
            ASSERT_EQ(message[b], expected);
        }
      }
    }
  }
  for (const pid_t child : children) EXPECT_TRUE(ended_well(child));
}

TEST(Inbox, ARankThatHasEndedOrDoesNothingIsNamed) {
  std::mt19937 random(1);
  const Received received(2, 1, random);
  Inbox inbox(inbox_places(received.plan, received.catalog, received.layers, {false, true}, 1 << 20));
  inbox.begin();
  expect_error(ErrorKind::io, {"rank 1 has done nothing for 0 s"}, [&] { inbox.wait_for(0, 0, {soon}); });
  EXPECT_TRUE(ended_well(in_child([&] {
    Outbox outbox(0, inbox.path(), inbox.size(), 1, received.messages(0), 2);
    return true;
  })));
  expect_error(ErrorKind::io, {"rank 1 has ended"}, [&] { inbox.wait_for(0, 0, {long_after}); });
  Outbox outbox(0, inbox.path(), inbox.size(), 1, received.messages(0), 2);
  outbox.begin();
  expect_error(ErrorKind::io, {"rank 0 has done nothing for 0 s"}, [&] { outbox.wait_for(0, {soon}); });
  EXPECT_FALSE(outbox.wait_for(0, {long_after, [] { return true; }})) << "stopped";
  inbox.open(0);
  EXPECT_TRUE(outbox.wait_for(0, {long_after}));
}

TEST(Inbox, MemoryThatIsNoneForWhatARankSendsIsRefused) {
  std::mt19937 random(2);
  const Received received(3, 2, random);
  Inbox inbox(inbox_places(received.plan, received.catalog, received.layers, {false, true, true}, 1 << 20));
  const auto refused = [&](int rank, const std::vector<Message>& messages) {
    expect_error(ErrorKind::malformed, {"the inbox of rank 0", "same version"},
                 [&] { Outbox(0, inbox.path(), inbox.size(), rank, messages, 3); });
  };
  refused(3, received.messages(0));
  refused(1, {});
  std::vector<Message> longer = received.messages(1);
  longer.back().bytes = 1 << 20;
  refused(2, longer);
  expect_error(ErrorKind::io, {"is not sealed memory"},
               [&] { Outbox(0, inbox.path(), 1, 1, received.messages(0), 3); });
  const SharedMemory other = SharedMemory::create(64);
  expect_error(ErrorKind::malformed, {"the inbox of rank 0"},
               [&] { Outbox(0, other.path(), 64, 1, received.messages(0), 3); });
  const SharedMemory random_one = SharedMemory::create(4096);
  for (int turn = 0; turn < 200; ++turn) {
    for (std::size_t b = 0; b < random_one.size(); ++b)
      random_one.data()[b] = static_cast<std::byte>(random() % 3 == 0 ? random() % 256 : 0);
    expect_error(ErrorKind::malformed, {"the inbox of rank 0"},
                 [&] { Outbox(0, random_one.path(), 4096, 1, received.messages(0), 3); });
  }
}

TEST(NodeBoard, EachRankGetsWhatAllTellInEachTurn) {
  constexpr std::size_t ranks = 4;
  constexpr int turns = 500;
  const SharedMemory memory = SharedMemory::create(NodeBoard::bytes_of(ranks, 8));
  const auto run = [&](std::size_t rank) {
    NodeBoard board(SharedMemory::open(memory.path(), memory.size()), ranks, rank, 8);
    for (int turn = 0; turn < turns; ++turn) {
      const auto text = [&](std::size_t of) {
        return std::to_string(10000 * (of + 1) + static_cast<std::size_t>(turn));
      };
      const std::vector<std::string> told = board.gather(text(rank), long_after);
      for (std::size_t of = 0; of < ranks; ++of)
        if (told[of] != text(of)) return false;
    }
    return true;
  };
  std::vector<pid_t> children;
  for (std::size_t rank = 1; rank < ranks; ++rank)
    children.push_back(in_child([&, rank] { return run(rank); }));
  EXPECT_TRUE(run(0));
  for (const pid_t child : children) EXPECT_TRUE(ended_well(child));
}

TEST(NodeBoard, ARankThatHasEndedOrDoesNotComeIsNamed) {
  const SharedMemory memory = SharedMemory::create(NodeBoard::bytes_of(2, 8));
  NodeBoard board(SharedMemory::open(memory.path(), memory.size()), 2, 0, 8);
  expect_error(ErrorKind::io, {"rank 1 has not come for 0 s"}, [&] { board.gather("told", soon); });
  EXPECT_TRUE(ended_well(in_child([&] {
    NodeBoard(SharedMemory::open(memory.path(), memory.size()), 2, 1, 8);
    return true;
  })));
  expect_error(ErrorKind::io, {"rank 1 has ended"}, [&] { board.gather("told", long_after); });
  expect_error(ErrorKind::argument, {"8 bytes"}, [&] { board.gather("more than that", soon); });
}

}  // namespace
}  // namespace shardwright
