#include <gtest/gtest.h>

#include "tests/storage/device_destinations.h"

namespace shardwright {
namespace {

constexpr DeviceStatus some_failure = 999;

/// One load, over and over, each time with something else that fails.
struct Job {
  Random random;
  RandomModel model;
  Checkpoint checkpoint;
  Destinations host;
  LoadPlan plan;
  std::vector<Bytes> expected;
  const bool gpu_direct;    // read what can be so straight into the devices
  int last_operations = 0;  // done on the devices by the last load

  explicit Job(std::uint64_t seed)
      : random(seed),
        model(random_model(random, 90)),
        checkpoint(random, model.stored),
        host(random, model),
        plan(host.plan(checkpoint)),
        gpu_direct(seed % 2 == 0) {
    load(plan, checkpoint.catalog, host.specs);
    expected = host_bytes(host);
    clear(host);
  }

  /// Runs the load, which must fail as `break_it` makes it: with an error of this kind and these texts, with
  /// nothing left behind, and every tensor either named as partly written, or whole, or untouched. False if
  /// what should fail never came.
  bool fails(std::uint64_t seed, ErrorKind kind, const std::vector<std::string>& texts,
             const std::function<void(DeviceDestinations&)>& break_it) {
    clear(host);
    const std::vector<Bytes> untouched = host_bytes(host);
    DeviceDestinations destinations(seed, random, host, 4);
    destinations.options.threads = static_cast<int>(random.between(1, 3));
    destinations.options.staging_bytes = 4096 * static_cast<std::size_t>(random.one_of<int>({1, 3, 12, 300}));
    destinations.options.devices.memory = 64 << 10;
    if (gpu_direct) {
      destinations.options.devices.memory = 2 << 20;
      destinations.options.staging_bytes = 1 << 20;
      destinations.options.direct_io = DirectIo::always;
      destinations.options.devices.gpu_direct_calls = destinations.devices.gpu_direct_calls();
    }
    break_it(destinations);
    std::vector<std::string> named;
    bool failed = false;
    try {
      load(plan, checkpoint.catalog, destinations.specs, destinations.options);
    } catch (const Error& error) {
      failed = true;
      const std::string message = error.what();
      EXPECT_EQ(static_cast<int>(error.kind), static_cast<int>(kind)) << message;
      for (const std::string& text : texts)
        EXPECT_NE(message.find(text), std::string::npos) << text << " in " << message;
      bool names_tensor = false;
      for (const TensorSpec& spec : host.specs) names_tensor |= message.starts_with(spec.fqn);
      for (const SourceTensor& source : checkpoint.catalog.tensors)
        names_tensor |= message.starts_with(source.name);
      EXPECT_TRUE(names_tensor || kind != ErrorKind::device) << message;
      named = error.partly_written;
      for (const std::string& name : named)
        EXPECT_NE(message.find("partly written"), std::string::npos) << name;
    }
    EXPECT_EQ(destinations.devices.faults(), std::vector<std::string>());
    last_operations = destinations.devices.operations_done();
    destinations.collect();
    for (std::size_t n = 0; n < expected.size(); ++n) {
      const Bytes& bytes = host.memory[n].bytes;
      const bool is_named = std::find(named.begin(), named.end(), host.specs[n].fqn) != named.end();
      const bool is_whole = bytes == expected[n];
      EXPECT_TRUE(is_named || is_whole || (failed && bytes == untouched[n])) << host.specs[n].fqn;
    }
    return failed;
  }
};

TEST(device_failure, of_any_call_names_tensor_and_call_and_leaves_nothing_behind) {
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
      {"stream_synchronize", "cudaStreamSynchronize"},
      {"stream_wait_event", "cudaStreamWaitEvent"},
      {"event_create", "cudaEventCreate"},
      {"event_destroy", "cudaEventDestroy"},
      {"event_record", "cudaEventRecord"},
      {"event_query", "cudaEventQuery"},
      {"event_synchronize", "cudaEventSynchronize"},
      {"copy_to_device", "cudaMemcpyAsync"},
      {"place", "launching a kernel"},
  };
  std::map<std::string, int> failures;
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    Job job(seed);
    for (const auto& [call, text] : calls) {
      failures[call] += fail_in_turn(12, 17, [&, &name = call, &in_message = text](int number) {
        return job.fails(seed + static_cast<std::uint64_t>(number - 1), ErrorKind::device, {in_message},
                         [&](DeviceDestinations& destinations) {
                           if (name == "event_synchronize") destinations.devices.be_lazy();
                           destinations.devices.fail(name, number, some_failure);
                         });
      });
    }
  }
  for (const auto& [call, _] : calls) EXPECT_GT(failures[call], 0) << call;
  EXPECT_GT(failures["copy_to_device"], 20);
  EXPECT_GT(failures["place"], 10);
}

TEST(device_failure, of_an_operation_comes_out_whenever_it_happens) {
  int failures = 0;
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    Job job(seed);
    EXPECT_FALSE(job.fails(seed, ErrorKind::device, {}, [](DeviceDestinations&) {}));
    const int operations = job.last_operations;
    for (const int number :
         {1, 2, operations / 2, operations - 7, operations - 3, operations - 1, operations}) {
      failures += static_cast<int>(
          job.fails(seed, ErrorKind::device, {"failed"}, [&](DeviceDestinations& destinations) {
            destinations.devices.fail_operation(std::max(1, number));
          }));
    }
  }
  EXPECT_GT(failures, 200);
}

TEST(device_failure, of_a_file_leaves_nothing_behind_on_the_devices) {
  Job job(3);
  const std::filesystem::path file =
      job.checkpoint.catalog.path_of(job.checkpoint.catalog.tensors[job.plan.transfers.back().source]);
  std::filesystem::resize_file(file, std::filesystem::file_size(file) - 3);
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    EXPECT_TRUE(job.fails(seed, ErrorKind::io, {file.string()}, [](DeviceDestinations&) {}));
  }
}

TEST(device_failure, of_the_caller_leaves_nothing_behind_on_the_devices) {
  Job job(4);
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    job.fails(seed, ErrorKind::argument, {"enough"}, [](DeviceDestinations& destinations) {
      destinations.options.progress = [](std::uint64_t, std::uint64_t) {
        throw Error(ErrorKind::argument, "enough");
      };
    });
  }
}

TEST(device_failure, tells_what_to_do) {
  Job job(5);
  using Break = std::function<void(DeviceDestinations&)>;
  const auto fails = [&](ErrorKind kind, const std::vector<std::string>& texts, const Break& break_it) {
    EXPECT_TRUE(job.fails(1, kind, texts, break_it)) << texts.front();
  };
  fails(ErrorKind::device, {"cudaGetDeviceCount", "CUDA 13.0 or later", "12.4", "update"},
        [](auto& destinations) {
          destinations.devices.driver = 12040;
          destinations.devices.fail("device_count", 1, device_status::driver_too_old);
        });
  fails(ErrorKind::device, {"found none"}, [](auto& destinations) {
    destinations.devices.driver = 0;
    destinations.devices.fail("device_count", 1, device_status::driver_too_old);
  });
  fails(ErrorKind::device, {"compute capability 7.5", "CMAKE_CUDA_ARCHITECTURES=75"}, [](auto& destinations) {
    destinations.devices.fail("load_kernels", 1, device_status::no_kernel_image);
  });
  fails(ErrorKind::device, {"cudaMalloc", "device_memory", "empty_cache"},
        [](auto& destinations) { destinations.devices.memory_of_device = 5000; });
  fails(ErrorKind::device, {"cudaHostAlloc", "staging_bytes"}, [](auto& destinations) {
    destinations.devices.fail("pinned_allocate", 1, device_status::out_of_memory);
  });
  fails(ErrorKind::argument, {"device_memory", "65535", "65536"},
        [](auto& destinations) { destinations.options.devices.memory = 65535; });
  fails(ErrorKind::device, {"cuda:0 to cuda:2", "cuda:3"}, [](auto& destinations) {
    for (TensorSpec& spec : destinations.specs) {
      if (spec.device == DeviceKind::cuda) spec.device_index = 3;
    }
  });
}

TEST(device_failure, a_build_or_a_machine_without_devices_refuses_before_anything_is_written) {
  Job job(6);
  for (TensorSpec& spec : job.host.specs) {
    spec.device = DeviceKind::cuda;
    spec.device_index = 1000;
  }
  const std::vector<Bytes> untouched = host_bytes(job.host);
  const bool has_kernels = cuda_calls() != nullptr;
  expect_error(
      has_kernels ? ErrorKind::device : ErrorKind::mismatch,
      {job.host.specs[job.plan.transfers[0].destination].fqn, has_kernels ? "cuda" : "no kernels for GPUs"},
      [&] { load(job.plan, job.checkpoint.catalog, job.host.specs); });
  EXPECT_EQ(host_bytes(job.host), untouched);
}

}  // namespace
}  // namespace shardwright
