#include "storage/load/load.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "storage/files/uring.h"
#include "tests/planner/rounds.h"
#include "tests/storage/decoded_checkpoint.h"
#include "tests/storage/ways_to_read.h"

namespace shardwright {
namespace {

TEST(load, every_element_is_what_plain_decoding_gives_and_nothing_else_is_touched) {
  Random random(1);
  for (int round = 0; round < rounds(60); ++round) {
    const RandomModel model = random_model(random, random.once_in(8) ? 300 : 70);
    const Checkpoint checkpoint(random, model.stored);
    const Destinations destinations(random, model);
    const LoadPlan plan = destinations.plan(checkpoint);
    LoadOptions options;
    options.threads = static_cast<int>(random.between(1, 4));
    options.staging_bytes =
        static_cast<std::size_t>(random.one_of<int>({0, 4096, 9000, 20000, 100000, 1 << 20, 5 << 20}));
    choose_reads(random, options);
    const LoadReport report = load(plan, checkpoint.catalog, destinations.specs, options);
    ASSERT_NO_FATAL_FAILURE(destinations.expect_decoded(checkpoint)) << "round " << round;

    std::set<std::uint32_t> files;
    for (const Transfer& transfer : plan.transfers) {
      files.insert(checkpoint.catalog.tensors[transfer.source].file);
      if (transfer.scales >= 0)
        files.insert(checkpoint.catalog.tensors[static_cast<std::size_t>(transfer.scales)].file);
    }
    EXPECT_EQ(report.files, std::ssize(files));
    EXPECT_GE(report.bytes_read, report.bytes_needed);
    EXPECT_EQ(report.bytes_needed, plan.bytes_needed);
    EXPECT_EQ(report.bytes_written, plan.bytes_written);
    EXPECT_EQ(report.tensors, plan.tensors);
    const bool may_be_direct = (options.staging_bytes == 0 || options.staging_bytes >= (64 << 10)) &&
                               allows_direct_reads(checkpoint);
    EXPECT_EQ(report.files_direct, options.direct_io == DirectIo::always && may_be_direct ? report.files : 0);
    EXPECT_EQ(report.files_io_uring, options.reads == Reads::io_uring ||
                                             (options.reads == Reads::automatic && report.files_direct > 0)
                                         ? report.files
                                         : 0);
    const bool waits = options.reads == Reads::pread && report.files_direct > 0;
    EXPECT_LE(report.threads, options.threads * (waits ? 4 : 1));
    EXPECT_TRUE(options.staging_bytes == 0 || report.peak_staging_bytes <= options.staging_bytes);
  }
}

/// One FP8 matrix with scales, as lm_head, in a file of its own.
struct OneMatrix {
  Random random{7};
  Native native;
  Checkpoint checkpoint;
  std::vector<TensorSpec> specs;
  Memory memory;
  LoadPlan plan;

  explicit OneMatrix(const Shape& shape, const Mesh& mesh = {}, DType dtype = DType::BF16)
      : native{"lm_head.weight", dtype, shape},
        checkpoint(random, {{"language_model.lm_head.weight", DType::F8_E4M3, shape, {whole(shape)}},
                            {"language_model.lm_head.weight_scale_inv",
                             DType::U8,
                             {shape[0], (shape[1] + 31) / 32},
                             {whole({shape[0], (shape[1] + 31) / 32})}}}) {
    specs.push_back(
        sharded_tensor(native.fqn, dtype, shape, mesh.shape, Shape(mesh.shape.size(), 0), mesh.placements));
    memory.bytes.assign(static_cast<std::size_t>(volume(specs[0].local_shape) * bytes_of(dtype)),
                        Memory::untouched);
    specs[0].data = memory.bytes.data();
    plan = plan_load(specs, checkpoint.catalog, weight_map_for(checkpoint.catalog, "minimax_m3"));
  }
  std::filesystem::path weights() const {
    return checkpoint.catalog.path_of(checkpoint.catalog.find("language_model.lm_head.weight")[0]);
  }
  LoadReport run(const LoadOptions& options = {}) const {
    return load(plan, checkpoint.catalog, specs, options);
  }
};

TEST(load, a_trace_tells_when_each_tensor_was_read_decoded_and_waited_for) {
  const OneMatrix job({500, 400});
  const TemporaryDirectory directory;
  for (const Reads reads : {Reads::pread, has_io_uring() ? Reads::io_uring : Reads::pread}) {
    LoadOptions options;
    options.reads = reads;
    options.trace = directory / "trace.json";
    options.trace_process = 3;
    options.staging_bytes = 50000;
    const auto start = std::chrono::steady_clock::now();
    const LoadReport report = job.run(options);
    const std::chrono::duration<double, std::micro> taken = std::chrono::steady_clock::now() - start;
    const auto events = nlohmann::json::parse(read_file(options.trace)).at("traceEvents");
    std::map<std::string, std::uint64_t> bytes;  // by what was done
    std::map<std::uint64_t, double> begun;       // in the background, by id
    std::set<std::uint64_t> named, seen;         // threads
    for (const auto& event : events) {
      EXPECT_EQ(event.at("pid"), 3);
      if (event.at("ph") == "M") {
        if (event.at("name") == "thread_name") named.insert(event.at("tid").get<std::uint64_t>());
        continue;
      }
      seen.insert(event.at("tid").get<std::uint64_t>());
      double end = event.at("ts").get<double>();
      EXPECT_GE(end, 0);
      if (event.at("ph") == "e") {
        EXPECT_GE(end, begun.at(event.at("id").get<std::uint64_t>()));
      } else {
        EXPECT_EQ(event.at("args").at("tensor"), "language_model.lm_head.weight");
        bytes[event.at("name")] += event.at("args").at("bytes").get<std::uint64_t>();
        if (event.at("ph") == "b") {
          EXPECT_TRUE(begun.emplace(event.at("id").get<std::uint64_t>(), end).second);
        } else {
          EXPECT_EQ(event.at("ph"), "X");
          EXPECT_GE(event.at("dur").get<double>(), 0);
          end += event.at("dur").get<double>();
        }
      }
      EXPECT_LE(end, taken.count());
    }
    EXPECT_TRUE(std::includes(named.begin(), named.end(), seen.begin(), seen.end()));
    EXPECT_EQ(bytes["read"], report.bytes_read);
    EXPECT_EQ(bytes["decode"], report.bytes_read);
    EXPECT_EQ(bytes["wait"], reads == Reads::io_uring ? report.bytes_read : 0);
  }
}

TEST(load, a_trace_that_cannot_be_made_is_refused_before_anything_is_written) {
  const OneMatrix job({60, 100});
  LoadOptions options;
  options.trace = job.checkpoint.directory / "no_such_directory" / "trace.json";
  expect_error(ErrorKind::io, {options.trace.string()}, [&] { job.run(options); });
  EXPECT_EQ(std::count(job.memory.bytes.begin(), job.memory.bytes.end(), Memory::untouched),
            std::ssize(job.memory.bytes));
}

TEST(load, a_load_that_fails_leaves_a_trace_of_what_it_did) {
  const OneMatrix job({600, 1000});
  std::filesystem::resize_file(job.weights(), 300000);
  const std::uint64_t size = std::filesystem::file_size(job.weights());
  Catalog catalog = job.checkpoint.catalog;
  for (auto& file : catalog.files) {
    if (job.weights().filename() == file.name) file.size = size;  // as if it were cut while it is read
  }
  const TemporaryDirectory directory;
  LoadOptions options;
  options.trace = directory / "trace.json";
  options.threads = 1;
  options.staging_bytes = 40000;
  expect_error(ErrorKind::io, {job.weights().string(), "cut short"},
               [&] { load(job.plan, catalog, job.specs, options); });
  const auto events = nlohmann::json::parse(read_file(options.trace)).at("traceEvents");
  EXPECT_GT(events.size(), 6U);
}

TEST(load, io_uring_where_there_is_none_is_refused) {
  if (has_io_uring()) return;
  const OneMatrix job({5, 40});
  LoadOptions options;
  options.reads = Reads::io_uring;
  expect_error(ErrorKind::argument, {"io_uring", "pread"}, [&] { job.run(options); });
}

TEST(load, rows_longer_than_the_staging_are_read_in_parts) {
  OneMatrix job({3, 9001});
  std::swap(job.specs[0].local_strides[0], job.specs[0].local_strides[1]);
  job.specs[0].local_strides = {1, 3};
  for (const std::size_t staging : {4096, 5000, 12289}) {
    std::fill(job.memory.bytes.begin(), job.memory.bytes.end(), Memory::untouched);
    LoadOptions options;
    options.staging_bytes = staging;
    EXPECT_LE(job.run(options).peak_staging_bytes, staging);
    for_each_index(job.native.shape, [&](const Shape& at) {
      ASSERT_TRUE(
          is_decoded(job.checkpoint, hf_element(job.native, at), address(job.specs[0], at), DType::BF16))
          << to_string(at);
    });
  }
}

TEST(load, runs_far_apart_are_read_one_by_one) {
  Random random(3);
  const Shape shape = {3, 4, 3, 6000};
  RandomModel model;
  for (const DType dtype : {DType::F32, DType::BF16}) {
    const std::string fqn = dtype == DType::F32
                                ? "vision_tower.vision_model.embeddings.patch_embedding.weight"
                                : "vision_tower.patch_merge_mlp.linear_1.weight";
    model.natives.push_back({fqn, dtype, shape});
    model.stored.push_back(
        {hf_element(model.natives.back(), {0, 0, 0, 0}).name, DType::F32, shape, {whole(shape)}});
  }
  const Checkpoint checkpoint(random, model.stored);
  const Mesh mesh = {{2, 2, 2},
                     {{Placement::Kind::shard, 1}, {Placement::Kind::shard, 2}, {Placement::Kind::shard, 3}}};
  Destinations destinations(random, model);
  for (std::size_t n = 0; n < model.natives.size(); ++n) {
    const auto& [fqn, dtype, _] = model.natives[n];
    destinations.specs[n] = sharded_tensor(fqn, dtype, shape, mesh.shape, {1, 0, 1}, mesh.placements);
    destinations.lists[n] = index_lists(shape, mesh, {1, 0, 1});
    destinations.memory[n].give(random, destinations.specs[n]);
  }
  for (const std::size_t staging : {0, 20000, 50000}) {
    LoadOptions options;
    options.staging_bytes = staging;
    const LoadReport report =
        load(destinations.plan(checkpoint), checkpoint.catalog, destinations.specs, options);
    EXPECT_EQ(report.bytes_read, 2U * 3 * 2 * 2 * 3000 * 4);
    EXPECT_TRUE(staging != 0 || report.read_requests == 2U * 3 * 2 * 2) << report.read_requests;
    ASSERT_NO_FATAL_FAILURE(destinations.expect_decoded(checkpoint));
  }
}

TEST(load, whole_rows_are_read_exactly) {
  for (const std::size_t staging : {0, 4096, 40000}) {
    const OneMatrix job({301, 200}, {{4}, {{Placement::Kind::shard, 0, 1}}});
    LoadOptions options;
    options.staging_bytes = staging;
    const LoadReport report = job.run(options);
    EXPECT_EQ(report.bytes_needed, 76U * 200 + 76 * 7);
    EXPECT_EQ(report.bytes_read, report.bytes_needed);
  }
}

TEST(load, staging_stays_within_what_the_caller_gives_for_any_number_of_threads) {
  const OneMatrix job({500, 400});
  for (const int threads : {1, 2, 3, 4}) {
    for (const std::size_t staging : {4096, 8191, 8192, 30000, 1 << 20}) {
      LoadOptions options;
      options.threads = threads;
      options.staging_bytes = staging;
      const LoadReport report = job.run(options);
      EXPECT_LE(report.peak_staging_bytes, staging);
      EXPECT_GT(report.peak_staging_bytes, 0U);
      EXPECT_LE(report.threads, threads);
      EXPECT_GE(report.threads, 1);
    }
  }
  LoadOptions options;
  options.staging_bytes = 4095;
  expect_error(ErrorKind::argument, {"staging_bytes", "4095", "4096"}, [&] { job.run(options); });
}

TEST(load, a_file_cut_short_after_planning_is_an_error_with_file_and_offset) {
  for (const int threads : {1, 4}) {
    const OneMatrix job({600, 1000});
    const std::uint64_t size = std::filesystem::file_size(job.weights()) - 12345;
    std::filesystem::resize_file(job.weights(), size);
    LoadOptions options;
    options.threads = threads;
    options.staging_bytes = 40000;
    expect_error(ErrorKind::io,
                 {job.weights().string(), "language_model.lm_head.weight",
                  threads == 1 ? std::to_string(size) : "offset", std::to_string(size + 12345), "cut short"},
                 [&] { job.run(options); });
  }
}

TEST(load, a_file_cut_to_nothing_is_an_error) {
  const OneMatrix job({60, 100});
  std::filesystem::resize_file(job.weights(), 0);
  expect_error(ErrorKind::io, {job.weights().string(), "offset"}, [&] { job.run(); });
}

TEST(load, a_file_that_is_gone_or_no_longer_a_file_is_an_error_and_no_hang) {
  const OneMatrix job({60, 100});
  std::filesystem::remove(job.weights());
  try {
    job.run();
    ADD_FAILURE() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, ErrorKind::io);
    EXPECT_EQ(error.system_error, ENOENT);
    EXPECT_NE(std::string(error.what()).find(job.weights().string()), std::string::npos);
  }
  std::filesystem::create_directory(job.weights());
  expect_error(ErrorKind::io, {job.weights().string()}, [&] { job.run(); });
  std::filesystem::remove(job.weights());
  ASSERT_EQ(mkfifo(job.weights().c_str(), 0600), 0);
  expect_error(ErrorKind::io, {job.weights().string()}, [&] { job.run(); });
}

TEST(load, progress_grows_and_ends_with_all_bytes) {
  const OneMatrix job({500, 400});
  std::vector<std::uint64_t> seen;
  std::uint64_t total = 0;
  LoadOptions options;
  options.threads = 2;
  options.staging_bytes = 8192;
  options.progress = [&](std::uint64_t done, std::uint64_t all) {
    seen.push_back(done);
    if (seen.size() == 1)
      std::this_thread::sleep_for(std::chrono::milliseconds(20));  // the load may end meanwhile
    total = all;
  };
  const LoadReport report = job.run(options);
  ASSERT_FALSE(seen.empty());
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_EQ(seen.back(), report.bytes_read);
  EXPECT_EQ(total, report.bytes_read);
}

TEST(load, progress_that_throws_stops_the_load) {
  OneMatrix job({2000, 400});
  LoadOptions options;
  options.threads = 3;
  options.staging_bytes = 12288;
  options.progress = [](std::uint64_t, std::uint64_t) { throw std::runtime_error("enough"); };
  // On a busy machine a load may be done before it can be stopped: but not every time.
  bool stopped = false;
  for (int attempt = 0; attempt < 50 && !stopped; ++attempt) {
    std::fill(job.memory.bytes.begin(), job.memory.bytes.end(), Memory::untouched);
    EXPECT_THROW(job.run(options), std::runtime_error);
    stopped = std::count(job.memory.bytes.begin(), job.memory.bytes.end(), Memory::untouched) > 100'000;
  }
  EXPECT_TRUE(stopped);
}

TEST(load, a_plan_for_memory_that_is_not_there_is_refused) {
  OneMatrix job({6, 10});
  job.specs[0].data = nullptr;
  expect_error(ErrorKind::argument, {"lm_head.weight"}, [&] { job.run(); });
}

TEST(load, an_empty_plan_does_nothing) {
  const LoadReport report = load({}, {}, {});
  EXPECT_EQ(report.bytes_read, 0U);
  EXPECT_EQ(report.peak_staging_bytes, 0U);
  EXPECT_EQ(report.files, 0);
}

}  // namespace
}  // namespace shardwright
