#include <gtest/gtest.h>

#include "tests/storage/random_export.h"

namespace shardwright {
namespace {

constexpr DeviceStatus some_failure = 999;

/// One export, over and over, each time with something else that fails.
struct Job {
  Random random;
  RandomExport state;
  std::map<std::string, RandomExport::Expected> expected;
  int last_operations = 0;  // done on the devices by the last export

  explicit Job(std::uint64_t seed) : random(seed), state(random, 60) {
    state.request.quantize = quantization_named("mxfp8");
    state.request.max_file_bytes = 1 << 30;
    expected = state.expected();
  }

  using Break = std::function<void(FakeDevices&, ExportWriting&, std::vector<std::vector<TensorSpec>>&)>;

  /// Runs the export, which must fail as `break_it` makes it: with an error of this kind and these texts,
  /// that names a tensor, and with nothing left behind. False, and the files whole, if what should fail never
  /// came.
  bool fails(std::uint64_t seed, ErrorKind kind, const std::vector<std::string>& texts,
             const Break& break_it) {
    const TemporaryDirectory folder;
    FakeDevices devices(seed);
    ExportWriting writing;
    writing.threads = static_cast<int>(random.between(1, 3));
    writing.staging_bytes = 65536 * static_cast<std::size_t>(random.one_of<int>({1, 3, 8}));
    writing.devices.memory = 64 << 10;
    DeviceSources sources(devices, random, state, 4, writing.devices);
    break_it(devices, writing, sources.specs);
    bool failed = false;
    ExportLayout layout;
    try {
      run_on_all_ranks(sources.specs, state.request, folder / "to", writing, &layout);
    } catch (const Error& error) {
      failed = true;
      const std::string message = error.what();
      EXPECT_EQ(static_cast<int>(error.kind), static_cast<int>(kind)) << message;
      for (const std::string& text : texts)
        EXPECT_NE(message.find(text), std::string::npos) << text << " in " << message;
      EXPECT_TRUE(names_tensor(message) || kind != ErrorKind::device) << message;
    }
    EXPECT_EQ(devices.faults(), std::vector<std::string>());
    last_operations = devices.operations_done();
    sources.expect_unchanged();
    if (!failed) expect_files(folder / "to", layout, expected);
    return failed;
  }

 private:
  bool names_tensor(const std::string& message) const {
    for (const auto& [name, _] : expected)
      if (message.starts_with(name)) return true;
    return std::any_of(state.natives.begin(), state.natives.end(),
                       [&](const Native& native) { return message.starts_with(native.fqn); });
  }
};

TEST(device_export_failure, of_any_call_names_tensor_and_call_and_leaves_nothing_behind) {
  const std::vector<std::pair<std::string, std::string>> calls = {
      {"device_count", "cudaGetDeviceCount"},
      {"set_device", "cudaSetDevice"},
      {"load_kernels", "loading the kernels"},
      {"pinned_allocate", "cudaHostAlloc"},
      {"pinned_free", "cudaFreeHost"},
      {"device_allocate", "cudaMalloc"},
      {"device_free", "cudaFree"},
      {"stream_create", "cudaStreamCreate"},
      {"stream_destroy", "cudaStreamDestroy"},
      {"stream_wait_event", "cudaStreamWaitEvent"},
      {"event_create", "cudaEventCreate"},
      {"event_destroy", "cudaEventDestroy"},
      {"event_record", "cudaEventRecord"},
      {"event_synchronize", "cudaEventSynchronize"},
      {"copy_to_device", "cudaMemcpyAsync"},
      {"copy_from_device", "cudaMemcpyAsync"},
      {"place", "launching a kernel"},
      {"encode", "launching a kernel"},
  };
  std::map<std::string, int> failures;
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    Job job(seed);
    for (const auto& [call, text] : calls) {
      failures[call] += fail_in_turn(8, 23, [&, &name = call, &in_message = text](int number) {
        return job.fails(
            seed + static_cast<std::uint64_t>(number - 1), ErrorKind::device, {in_message},
            [&](FakeDevices& devices, auto&, auto&) { devices.fail(name, number, some_failure); });
      });
    }
  }
  for (const auto& [call, _] : calls) EXPECT_GT(failures[call], 0) << call;
  EXPECT_GT(failures["copy_from_device"], 20);
  EXPECT_GT(failures["encode"], 5);
}

TEST(device_export_failure, of_an_operation_comes_out_whenever_it_happens) {
  int failures = 0;
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    Job job(seed);
    EXPECT_FALSE(job.fails(seed, ErrorKind::device, {}, [](auto&, auto&, auto&) {}));
    const int operations = job.last_operations;
    for (const int number : {1, 2, operations / 2, operations - 7, operations - 1, operations}) {
      failures += static_cast<int>(job.fails(
          seed, ErrorKind::device, {"failed"},
          [&](FakeDevices& devices, auto&, auto&) { devices.fail_operation(std::max(1, number)); }));
    }
  }
  EXPECT_GT(failures, 50);
}

TEST(device_export_failure, of_a_file_leaves_nothing_behind_on_the_devices) {
  Job job(3);
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    const TemporaryDirectory folder;
    FakeDevices devices(seed);
    ExportWriting writing;
    writing.threads = 3;
    writing.staging_bytes = 64 << 10;
    DeviceSources sources(devices, job.random, job.state, 0, writing.devices);
    job.state.request.max_file_bytes = 1;  // a file for each tensor, of which one cannot be made
    std::vector<std::string> holdings;
    std::vector<RankState> states;
    for (const auto& specs : sources.specs) {
      states.push_back(state_of(specs, std::ssize(states)));
      holdings.push_back(describe_export(specs, states.back(), job.state.request, writing.devices));
    }
    const PlannedExport planned = plan_export(holdings, job.state.request, folder / "to");
    const SourceFile& file = planned.layout.catalog.files[5];
    std::filesystem::create_directories(folder.path / "to" / file.name);
    bool failed = false;
    for (std::size_t rank = 0; rank < sources.specs.size(); ++rank) {
      try {
        run_export(planned.shares[rank], sources.specs[rank], states[rank], job.state.request, folder / "to",
                   writing);
      } catch (const Error& error) {
        failed = true;
        EXPECT_EQ(static_cast<int>(error.kind), static_cast<int>(ErrorKind::io)) << error.what();
        EXPECT_NE(std::string(error.what()).find(file.name), std::string::npos) << error.what();
      }
    }
    EXPECT_TRUE(failed);
    EXPECT_EQ(devices.faults(), std::vector<std::string>());
  }
}

TEST(device_export_failure, tells_what_to_do) {
  Job job(5);
  const auto fails = [&](ErrorKind kind, const std::vector<std::string>& texts, const Job::Break& break_it) {
    EXPECT_TRUE(job.fails(1, kind, texts, break_it)) << texts.front();
  };
  fails(ErrorKind::device, {"cudaGetDeviceCount", "CUDA 13.0 or later", "12.4", "update"},
        [](FakeDevices& devices, auto&, auto&) {
          devices.driver = 12040;
          devices.fail("device_count", 1, device_status::driver_too_old);
        });
  fails(ErrorKind::device, {"compute capability 7.5", "CMAKE_CUDA_ARCHITECTURES=75", "CPU memory"},
        [](FakeDevices& devices, auto&, auto&) {
          devices.fail("load_kernels", 1, device_status::no_kernel_image);
        });
  fails(ErrorKind::device, {"cudaMalloc", "device_memory", "empty_cache"},
        [](FakeDevices& devices, auto&, auto&) { devices.memory_of_device = 5000; });
  fails(ErrorKind::device, {"cudaHostAlloc", "staging_bytes"}, [](FakeDevices& devices, auto&, auto&) {
    devices.fail("pinned_allocate", 1, device_status::out_of_memory);
  });
  fails(ErrorKind::argument, {"device_memory", "65535", "65536"},
        [](auto&, ExportWriting& writing, auto&) { writing.devices.memory = 65535; });
  fails(ErrorKind::argument, {"staging_bytes", "65535", "65536"},
        [](auto&, ExportWriting& writing, auto&) { writing.staging_bytes = 65535; });
  fails(ErrorKind::device, {"cuda:0 to cuda:2", "cuda:3"}, [](auto&, auto&, auto& ranks) {
    for (std::vector<TensorSpec>& specs : ranks) {
      for (TensorSpec& spec : specs) {
        if (spec.device == DeviceKind::cuda) spec.device_index = 3;
      }
    }
  });
}

TEST(device_export_failure, a_build_or_a_machine_without_devices_refuses_before_anything_is_written) {
  const Job job(6);
  const TemporaryDirectory folder;
  std::vector<std::vector<TensorSpec>> ranks;
  for (const RankTensors& rank : job.state.ranks) {
    ranks.push_back(rank.specs);
    for (TensorSpec& spec : ranks.back()) {
      spec.device = DeviceKind::cuda;
      spec.device_index = 1000;
      spec.device_name = "cuda:1000";
    }
  }
  const bool has_kernels = cuda_calls() != nullptr;
  expect_error(has_kernels ? ErrorKind::device : ErrorKind::mismatch,
               {"model.", has_kernels ? "cuda" : "expected CPU memory, found it on cuda:1000"},
               [&] { run_on_all_ranks(ranks, job.state.request, folder / "to", {}); });
  EXPECT_TRUE(!std::filesystem::exists(folder / "to") || std::filesystem::is_empty(folder / "to"));
}

}  // namespace
}  // namespace shardwright
