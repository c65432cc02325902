#include "storage/load/cooperative_load.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <optional>

#include "planner/load/plan_wire.h"
#include "storage/files/uring.h"
#include "storage/load/load.h"
#include "tests/planner/rounds.h"
#include "tests/storage/decoded_checkpoint.h"
#include "tests/storage/device_destinations.h"
#include "tests/storage/threads_as_ranks.h"
#include "tests/storage/ways_to_read.h"

namespace shardwright {
namespace {

/// Gives a rank what came in, in memory that devices can copy from if `devices` are there.
void place(CooperativeLoad& load, std::size_t round, const std::string& incoming, FakeDevices* devices) {
  EXPECT_TRUE(devices != nullptr || !load.to_devices());
  if (devices == nullptr) return load.place(round, reinterpret_cast<const std::byte*>(incoming.data()));
  std::byte* const pinned = devices->pinned_memory(incoming.size());
  std::memcpy(pinned, incoming.data(), incoming.size());
  try {
    load.place(round, pinned);
  } catch (...) {
    devices->give_back(pinned);
    throw;
  }
  devices->give_back(pinned);
}

/// What ranks of one process do together: each reads its pieces, the bytes are exchanged, each places them,
/// and loads the rest for itself. Returns each rank's report.
std::vector<LoadReport> load_together(const std::vector<LoadPlan>& plans, const Checkpoint& checkpoint,
                                      const std::vector<std::vector<TensorSpec>>& specs,
                                      const std::vector<LoadOptions>& options,
                                      FakeDevices* devices_of_first = nullptr) {
  const std::size_t count = specs.size();
  std::vector<std::vector<Transfer>> transfers;
  for (std::size_t r = 0; r < count; ++r) {
    const std::string bytes = encode_plan(plans[r], checkpoint.catalog, specs[r]);
    transfers.push_back(decode_transfers(bytes, checkpoint.catalog));
    EXPECT_EQ(transfers[r].size(), plans[r].transfers.size());
  }
  std::vector<std::unique_ptr<CooperativeLoad>> loads;
  std::vector<CooperationTerms> terms;
  for (std::size_t r = 0; r < count; ++r) {
    loads.push_back(std::make_unique<CooperativeLoad>(plans[r], checkpoint.catalog, specs[r], options[r]));
    terms.push_back(loads[r]->terms());
  }
  for (std::size_t r = 0; r < count; ++r) {
    loads[r]->begin(transfers, terms, static_cast<int>(r));
    EXPECT_EQ(loads[r]->rounds(), loads[0]->rounds());
  }
  for (std::size_t round = 0; round < loads[0]->rounds(); ++round) {
    std::vector<std::vector<std::string>> sent(count);  // [from][to]
    for (std::size_t r = 0; r < count; ++r) {
      const std::vector<std::uint64_t> to = loads[r]->bytes_to(round);
      std::string outgoing(std::accumulate(to.begin(), to.end(), std::uint64_t{0}), '\0');
      loads[r]->read(round, reinterpret_cast<std::byte*>(outgoing.data()));
      std::size_t begin = 0;
      for (const std::uint64_t bytes : to) {
        sent[r].push_back(outgoing.substr(begin, bytes));
        begin += bytes;
      }
      EXPECT_TRUE(sent[r][r].empty());
    }
    for (std::size_t r = 0; r < count; ++r) {
      std::string incoming;
      const std::vector<std::uint64_t> from = loads[r]->bytes_from(round);
      for (std::size_t other = 0; other < count; ++other) {
        EXPECT_EQ(sent[other][r].size(), from[other]);
        incoming += sent[other][r];
      }
      place(*loads[r], round, incoming, r == 0 ? devices_of_first : nullptr);
    }
  }
  std::vector<LoadReport> reports;
  for (std::size_t r = 0; r < count; ++r) {
    EXPECT_EQ(loads[r]->bytes_done(), loads[r]->bytes_in_all());
    reports.push_back(loads[r]->finish(options[r]));
  }
  return reports;
}

/// The same, through memory that the ranks share, each on a thread.
std::vector<LoadReport> load_on_node(const std::vector<LoadPlan>& plans, const Checkpoint& checkpoint,
                                     const std::vector<std::vector<TensorSpec>>& specs,
                                     const std::vector<LoadOptions>& options) {
  const std::size_t count = specs.size();
  std::vector<std::vector<Transfer>> transfers;
  std::vector<std::unique_ptr<CooperativeLoad>> loads;
  std::vector<CooperationTerms> terms;
  for (std::size_t r = 0; r < count; ++r) {
    transfers.push_back(plans[r].transfers);
    loads.push_back(std::make_unique<CooperativeLoad>(plans[r], checkpoint.catalog, specs[r], options[r]));
    terms.push_back(loads[r]->terms());
  }
  std::optional<SharedMemory> memory;  // of the first, for the others to open
  for (std::size_t r = 0; r < count; ++r) {
    loads[r]->begin(transfers, terms, static_cast<int>(r), {HandingOver::by_shared_memory});
    if (!memory) memory.emplace(SharedMemory::create(loads[r]->node_bytes()));
    loads[r]->join_node(SharedMemory::open(memory->path(), loads[r]->node_bytes()));
  }
  ThreadsAsRanks ranks(static_cast<int>(count));
  const auto errors = ranks.run([&](const Job& job) {
    EXPECT_TRUE(loads[static_cast<std::size_t>(job.rank)]->read_on_node(std::chrono::seconds(60), {}));
  });
  for (const auto& error : errors)
    if (error) throw *error;
  std::vector<LoadReport> reports;
  for (std::size_t r = 0; r < count; ++r) {
    EXPECT_EQ(loads[r]->bytes_done(), loads[r]->bytes_in_all());
    reports.push_back(loads[r]->finish(options[r]));
  }
  return reports;
}

TEST(cooperative_load, ranks_of_any_shards_get_what_plain_decoding_gives_and_never_read_more_than_alone) {
  Random random(5);
  int saved = 0;
  int direct = 0;
  int in_background = 0;
  bool may_be_direct = true;
  for (int round = 0; round < rounds(90); ++round) {
    const RandomModel model = random_model(random);
    const Checkpoint checkpoint(random, model.stored);
    may_be_direct = may_be_direct && allows_direct_reads(checkpoint);
    std::vector<std::unique_ptr<Destinations>> ranks;
    std::vector<LoadPlan> plans;
    std::vector<LoadOptions> options;
    std::uint64_t alone = 0;
    const bool as_usual = random.once_in(2);
    const std::int64_t count = random.between(1, 5);
    for (std::int64_t r = 0; r < count; ++r) {
      ranks.push_back(std::make_unique<Destinations>(random, model));
      plans.push_back(ranks.back()->plan(checkpoint));
      alone += reading_figures(plans.back(), checkpoint.catalog).bytes;
      options.emplace_back().threads = static_cast<int>(random.between(1, 4));
      if (as_usual) continue;
      choose_reads(random, options.back());
      options.back().staging_bytes =
          static_cast<std::size_t>(random.one_of<int>({0, 8192, 20000, 300000, 5 << 20}));
    }
    std::uint64_t together = 0;
    std::vector<std::vector<TensorSpec>> specs;
    for (const auto& rank : ranks) specs.push_back(rank->specs);
    const auto reports = round % 2 == 0 ? load_together(plans, checkpoint, specs, options)
                                        : load_on_node(plans, checkpoint, specs, options);
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      ASSERT_NO_FATAL_FAILURE(ranks[r]->expect_decoded(checkpoint)) << "round " << round;
      together += reports[r].bytes_read;
      EXPECT_TRUE(options[r].staging_bytes < 20000 ||
                  reports[r].peak_staging_bytes <= options[r].staging_bytes)
          << reports[r].peak_staging_bytes << " of " << options[r].staging_bytes;
      EXPECT_EQ(reports[r].bytes_needed, plans[r].bytes_needed);
      EXPECT_LE(reports[r].files_direct, reports[r].files);
      EXPECT_LE(reports[r].files_io_uring, reports[r].files);
      direct += reports[r].bytes_received > 0 && reports[r].files_direct > 0;
      in_background += reports[r].bytes_received > 0 && reports[r].files_io_uring > 0;
    }
    if (!as_usual) continue;
    EXPECT_LE(together, alone);
    saved += together < alone;
  }
  EXPECT_GT(saved, rounds(10));
  EXPECT_TRUE(direct > rounds(5) || !may_be_direct);
  EXPECT_TRUE(in_background > rounds(5) || !has_io_uring());
}

/// Ranks of which the first has tensors on devices.
struct RanksWithDevices {
  RandomModel model;
  Checkpoint checkpoint;
  std::vector<std::unique_ptr<Destinations>> ranks;
  std::vector<LoadPlan> plans;
  std::vector<std::vector<TensorSpec>> specs;
  std::vector<LoadOptions> options;
  std::vector<Bytes> untouched;
  DeviceDestinations moved;

  RanksWithDevices(Random& random, std::uint64_t seed)
      : model(random_model(random)),
        checkpoint(random, model.stored),
        ranks(some_ranks(random, model)),
        moved(seed, random, *ranks[0], 3) {
    for (const auto& rank : ranks) {
      plans.push_back(rank->plan(checkpoint));
      specs.push_back(rank->specs);
      options.emplace_back().threads = static_cast<int>(random.between(1, 4));
      choose_reads(random, options.back());
      options.back().staging_bytes = static_cast<std::size_t>(random.one_of<int>({0, 8192, 20000, 5 << 20}));
    }
    specs[0] = moved.specs;
    options[0].devices = moved.options.devices;
    options[0].devices.memory = static_cast<std::size_t>(random.one_of<int>({64 << 10, 70001, 256 << 20}));
    untouched = host_bytes(*ranks[0]);
  }

  static std::vector<std::unique_ptr<Destinations>> some_ranks(Random& random, const RandomModel& model) {
    std::vector<std::unique_ptr<Destinations>> ranks;
    for (std::int64_t r = random.between(2, 4); r > 0; --r)
      ranks.push_back(std::make_unique<Destinations>(random, model));
    return ranks;
  }
};

TEST(cooperative_load, tensors_on_devices_get_what_plain_decoding_gives) {
  Random random(7);
  std::uint64_t received = 0;
  for (std::uint64_t round = 0; round < 60; ++round) {
    RanksWithDevices job(random, round);
    const auto reports =
        round % 2 == 0 ? load_together(job.plans, job.checkpoint, job.specs, job.options, &job.moved.devices)
                       : load_on_node(job.plans, job.checkpoint, job.specs, job.options);
    ASSERT_EQ(job.moved.devices.faults(), std::vector<std::string>()) << "round " << round;
    job.moved.collect();
    for (const auto& rank : job.ranks)
      ASSERT_NO_FATAL_FAILURE(rank->expect_decoded(job.checkpoint)) << "round " << round;
    const std::size_t most = job.moved.devices.peak_device_bytes();
    EXPECT_LE(most, job.options[0].devices.memory);
    EXPECT_EQ(reports[0].peak_device_bytes, most);
    received += reports[0].bytes_received;
  }
  EXPECT_GT(received, 0u);
}

TEST(cooperative_load, a_device_that_fails_is_named_and_left_with_nothing) {
  Random random(8);
  std::map<std::string, int> failures;
  for (std::uint64_t round = 0; round < 120; ++round) {
    const auto call = random.one_of<std::string>(
        {"load_kernels", "pinned_allocate", "pinned_free", "device_allocate", "device_free", "stream_create",
         "stream_wait_event", "stream_synchronize", "event_create", "event_record", "event_synchronize",
         "copy_to_device", "place"});
    RanksWithDevices job(random, round);
    job.moved.devices.fail(call, static_cast<int>(random.between(1, random.once_in(2) ? 3 : 20)), 999);
    std::vector<std::string> named;
    try {
      load_together(job.plans, job.checkpoint, job.specs, job.options, &job.moved.devices);
    } catch (const Error& error) {
      EXPECT_EQ(static_cast<int>(error.kind), static_cast<int>(ErrorKind::device)) << error.what();
      named = error.partly_written;
      ++failures[call];
    }
    EXPECT_EQ(job.moved.devices.faults(), std::vector<std::string>()) << call << " in round " << round;
    job.moved.collect();
    const Destinations& rank = *job.ranks[0];
    for (std::size_t n = 0; n < rank.specs.size(); ++n) {
      const std::string& fqn = rank.specs[n].fqn;
      const bool is_named = std::find(named.begin(), named.end(), fqn) != named.end();
      EXPECT_TRUE(is_named || rank.memory[n].bytes == job.untouched[n] ||
                  rank.is_decoded_at(job.checkpoint, n))
          << fqn << " after a failure of " << call << " in round " << round;
    }
  }
  EXPECT_GT(failures.size(), 10u);
}

TEST(cooperative_load, a_rank_that_sees_another_checkpoint_is_an_error_that_names_the_tensor) {
  Random random(6);
  const RandomModel model = random_model(random);
  const Checkpoint checkpoint(random, model.stored);
  const Destinations destinations(random, model);
  const LoadPlan plan = destinations.plan(checkpoint);
  const std::string bytes = encode_plan(plan, checkpoint.catalog, destinations.specs);
  Catalog other = checkpoint.catalog;
  SourceTensor& changed = other.tensors[plan.transfers.front().source];
  changed.shape.push_back(7);
  expect_error(ErrorKind::mismatch, {changed.name, "another checkpoint"},
               [&] { decode_transfers(bytes, other); });
  expect_error(ErrorKind::malformed, {"load plan"},
               [&] { decode_transfers(bytes.substr(0, bytes.size() / 2), checkpoint.catalog); });
}

}  // namespace
}  // namespace shardwright
