// Work in which each allocation fails in turn, of memory or of a thread: it ends with an error or succeeds,
// nothing crashes, nothing is lost, and what has been written is told.

#include "tests/storage/failing_allocations.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "storage/files/uring.h"
#include "storage/format/manifest.h"
#include "storage/format/pending_checkpoint.h"
#include "storage/load/cooperative_load.h"
#include "storage/load/load.h"
#include "storage/tools/verify.h"
#include "storage/write/shard_file.h"
#include "tests/storage/random_export.h"
#include "tests/storage/ways_to_read.h"

namespace shardwright {
namespace {

struct Way {
  const char* name;
  Reads reads;
  DirectIo direct_io;
};

std::vector<Way> ways() {
  std::vector<Way> all = {{"pread", Reads::pread, DirectIo::never},
                          {"pread past the page cache", Reads::pread, DirectIo::always}};
  if (has_io_uring()) {
    all.push_back({"io_uring", Reads::io_uring, DirectIo::never});
    all.push_back({"io_uring past the page cache", Reads::io_uring, DirectIo::always});
  }
  return all;
}

/// What a rank loads, over and over.
struct Job {
  Destinations host;
  LoadPlan plan;
  std::vector<Bytes> untouched, expected;
  LoadOptions options;

  Job(Random& random, const RandomModel& model, const Checkpoint& checkpoint)
      : host(random, model), plan(host.plan(checkpoint)) {
    for (const Memory& memory : host.memory) untouched.push_back(memory.bytes);
    load(plan, checkpoint.catalog, host.specs);
    host.expect_decoded(checkpoint);
    for (const Memory& memory : host.memory) expected.push_back(memory.bytes);
    options.threads = 2;
    options.staging_bytes = 256 << 10;
    clear();
  }

  void clear() {
    for (std::size_t n = 0; n < untouched.size(); ++n)
      std::copy(untouched[n].begin(), untouched[n].end(), host.memory[n].bytes.begin());
  }

  /// Every tensor is whole, or untouched, or named where a name could be given.
  void check(const Outcome& outcome) {
    const std::vector<std::string>& named = outcome.partly_written;
    for (std::size_t n = 0; n < expected.size(); ++n) {
      const Bytes& bytes = host.memory[n].bytes;
      const std::string& name = host.specs[n].fqn;
      if (outcome.kind == Outcome::Kind::success) {
        EXPECT_EQ(bytes, expected[n]) << name;
      } else if (outcome.is_told && std::find(named.begin(), named.end(), name) == named.end()) {
        EXPECT_TRUE(bytes == expected[n] || bytes == untouched[n]) << name;
      }
    }
    clear();
  }
};

TEST(failing_allocations, of_a_load_are_told_however_it_reads) {
  for (const Way& way : ways()) {
    Random random(3);
    const RandomModel model = random_model(random, 70);
    const Checkpoint checkpoint(random, model.stored);
    Job job(random, model, checkpoint);
    job.options.reads = way.reads;
    job.options.direct_io = way.direct_io;
    int told = 0;
    int named = 0;
    const int failed = fail_each_allocation(
        {}, [&] { load(job.plan, checkpoint.catalog, job.host.specs, job.options); },
        [&](const Outcome& outcome) {
          told += outcome.kind == Outcome::Kind::no_memory && outcome.is_told;
          named += !outcome.partly_written.empty();
          job.check(outcome);
        });
    EXPECT_GT(failed, 200) << way.name;
    EXPECT_GT(told, 20) << way.name;
    EXPECT_GT(named, 5) << way.name;
  }
}

/// Two ranks of this process, as in cooperative_load_test.cpp.
void load_together(const std::vector<Job*>& jobs, const Checkpoint& checkpoint) {
  std::vector<std::vector<Transfer>> transfers;
  std::vector<CooperationTerms> terms;
  std::vector<std::unique_ptr<CooperativeLoad>> loads;
  for (const Job* job : jobs) {
    transfers.push_back(job->plan.transfers);
    loads.push_back(
        std::make_unique<CooperativeLoad>(job->plan, checkpoint.catalog, job->host.specs, job->options));
    terms.push_back(loads.back()->terms());
  }
  for (std::size_t r = 0; r < loads.size(); ++r) loads[r]->begin(transfers, terms, static_cast<int>(r));
  for (std::size_t round = 0; round < loads[0]->rounds(); ++round) {
    std::vector<std::string> incoming(loads.size());
    for (const auto& load : loads) {
      const std::vector<std::uint64_t> to = load->bytes_to(round);
      std::string outgoing(std::accumulate(to.begin(), to.end(), std::uint64_t{0}), '\0');
      load->read(round, reinterpret_cast<std::byte*>(outgoing.data()));
      std::size_t begin = 0;
      for (std::size_t r = 0; r < to.size(); begin += to[r++]) incoming[r] += outgoing.substr(begin, to[r]);
    }
    for (std::size_t r = 0; r < loads.size(); ++r)
      loads[r]->place(round, reinterpret_cast<const std::byte*>(incoming[r].data()));
  }
  for (std::size_t r = 0; r < loads.size(); ++r) loads[r]->finish(jobs[r]->options);
}

TEST(failing_allocations, of_ranks_that_read_together_are_told) {
  for (const Way& way : ways()) {
    Random random(4);
    const RandomModel model = random_model(random, 40);
    const Checkpoint checkpoint(random, model.stored);
    Job first(random, model, checkpoint);
    Job second(random, model, checkpoint);
    for (Job* job : {&first, &second}) {
      job->options.reads = way.reads;
      job->options.direct_io = way.direct_io;
    }
    const int failed = fail_each_allocation(
        {37, 0},
        [&] {
          load_together({&first, &second}, checkpoint);
        },
        [&](const Outcome& outcome) {
          Outcome of_each = outcome;
          // An error names what its own rank has left.
          if (outcome.kind != Outcome::Kind::success) of_each.is_told = false;
          first.check(of_each);
          second.check(of_each);
        });
    EXPECT_GT(failed, 200) << way.name;
  }
}

TEST(failing_allocations, of_reading_a_catalog_and_verifying_are_told) {
  Random random(6);
  const Checkpoint checkpoint(random, random_model(random, 30).stored);
  const int failed = fail_each_allocation(
      {3, 0},
      [&] {
        read_catalog(checkpoint.directory.path, 2);
        if (!verify_checkpoint(checkpoint.directory.path, 2).problems.empty())
          throw Error(ErrorKind::malformed, "damaged");
      },
      [&](const Outcome& outcome) {
        // Nothing on disk is at fault.
        EXPECT_NE(static_cast<int>(outcome.kind), static_cast<int>(Outcome::Kind::error));
      });
  EXPECT_GT(failed, 200);
}

TEST(failing_allocations, of_a_save_leave_the_old_checkpoint_or_the_new_one) {
  const TemporaryDirectory folder;
  const std::filesystem::path path = folder / "checkpoint";
  std::vector<std::byte> values(3000);
  int saves = 0;
  const auto save = [&] {
    PendingCheckpoint pending(path, CheckpointKind::sharded, std::nullopt);
    const std::string name = "rank-" + std::to_string(saves % 2) + ".safetensors";
    std::vector<SourceTensor> chunks{{"w", DType::U8, {3000}, {0}, 0, 0, 0}};
    ShardFile file(pending.path() / name, chunks, false);
    const std::vector<std::size_t> items{0};
    const std::vector<TensorInMemory> tensors{{values.data(), {3000}, {1}, 1}};
    file.write(items, tensors, 2);
    file.finish();
    Manifest manifest;
    manifest.files.push_back({name, file.size(), file.header_bytes(), file.header_checksum()});
    manifest.tensors.push_back(
        {"w", "uint8", "U8", 1, {3000}, false, false, {{whole({3000}), {0, file.items()[0]}}}});
    write_manifest(pending.path(), manifest, false);
    pending.publish(manifest_name);
  };
  save();
  const int failed = fail_each_allocation(
      {19, 1},
      [&] {
        ++saves;
        save();
      },
      [&](const Outcome&) {
        for (const std::string& problem : verify_checkpoint(path).problems)
          EXPECT_NE(problem.find("that the manifest does not list"), std::string::npos) << problem;
        save();  // what the failure has left is cleaned up by the next
        EXPECT_EQ(verify_checkpoint(path).problems, std::vector<std::string>());
        std::set<std::string> names;
        for (const auto& entry : std::filesystem::directory_iterator(path))
          names.insert(entry.path().filename().string());
        const std::string name = "rank-" + std::to_string(saves % 2) + ".safetensors";
        EXPECT_EQ(names, (std::set<std::string>{name, manifest_name}));
      });
  EXPECT_GT(failed, 20);
}

TEST(failing_allocations, of_an_export_are_told) {
  Random random(9);
  RandomExport state(random, 20);
  state.request.max_file_bytes = 1 << 30;  // flushing each of many files would take long
  std::vector<std::vector<TensorSpec>> specs;
  for (const RankTensors& rank : state.ranks) specs.push_back(rank.specs);
  const TemporaryDirectory folder;
  ExportWriting writing;
  writing.threads = 2;
  ExportLayout layout;
  const int failed = fail_each_allocation(
      {401, 1}, [&] { run_on_all_ranks(specs, state.request, folder / "to", writing); },
      [&](const Outcome& outcome) {
        EXPECT_NE(static_cast<int>(outcome.kind), static_cast<int>(Outcome::Kind::error));
        std::filesystem::remove_all(folder / "to");
      });
  run_on_all_ranks(specs, state.request, folder / "to", writing, &layout);
  expect_files(folder / "to", layout, state.expected());
  EXPECT_GT(failed, 10);
}

}  // namespace
}  // namespace shardwright
