// The calls of libcufile, made to a library of that name that is ours. SHARDWRIGHT_FAKE_CUFILE is its path.

#include "storage/files/gpu_direct.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>

#include "tests/cufile/fake_cufile.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

constexpr int allow_compatibility = 1;
constexpr int force_compatibility = 2;
constexpr int use_peer_to_peer = 7;

struct gpu_direct : testing::Test {
  FakeCufile* library = nullptr;
  const GpuDirectCalls* calls = nullptr;

  void SetUp() override {
    // Under its own name it is found from now on, whatever is installed.
    void* const loaded = ::dlopen(SHARDWRIGHT_FAKE_CUFILE, RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(loaded, nullptr) << ::dlerror();
    library = reinterpret_cast<FakeCufile* (*)()>(::dlsym(loaded, "fake_cufile"))();
    *library = {};
    library->switches[allow_compatibility] = true;
    library->switches[use_peer_to_peer] = true;
    calls = gpu_direct_calls();
    ASSERT_NE(calls, nullptr);
  }
};

TEST_F(gpu_direct, reads_what_is_asked_for_to_where_it_is_asked_for) {
  const TemporaryDirectory directory;
  std::string text(10000, ' ');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>('a' + i % 23);
  write_file(directory / "file", text);
  const int descriptor = ::open((directory / "file").c_str(), O_RDONLY);
  ASSERT_TRUE(calls->open());
  void* const file = calls->register_file(descriptor);
  std::string memory(8192, '-');
  ASSERT_TRUE(calls->register_memory(memory.data(), memory.size()));
  EXPECT_EQ(calls->read(file, memory.data(), 100, 50, 4096), 50);
  EXPECT_EQ(memory.substr(100, 50), text.substr(4096, 50));
  EXPECT_EQ(memory.find_first_not_of('-'), 100u);
  EXPECT_EQ(memory.substr(150), std::string(8192 - 150, '-'));
  EXPECT_EQ(calls->read(file, memory.data(), 0, 8192, 8192), 10000 - 8192);
  EXPECT_EQ(library->files, 1);
  EXPECT_EQ(library->memories, 1);
  calls->release_memory(memory.data());
  calls->release_file(file);
  calls->close();
  EXPECT_EQ(library->files, 0);
  EXPECT_EQ(library->memories, 0);
  EXPECT_EQ(library->users, 0);
  ::close(descriptor);
}

TEST_F(gpu_direct, is_asked_not_to_stage_in_cpu_memory_and_left_as_it_was) {
  ASSERT_TRUE(calls->open());
  EXPECT_FALSE(library->allowed_compatibility_at_open);
  ASSERT_TRUE(calls->open());  // another load at the same time
  calls->close();
  EXPECT_FALSE(library->switches[allow_compatibility]);
  calls->close();
  EXPECT_TRUE(library->switches[allow_compatibility]);

  library->refuses_driver = true;
  EXPECT_FALSE(calls->open());
  EXPECT_FALSE(library->allowed_compatibility_at_open);
  EXPECT_TRUE(library->switches[allow_compatibility]);
}

TEST_F(gpu_direct, is_left_alone_where_others_use_it) {
  library->users = 1;
  EXPECT_FALSE(calls->open());  // it would stage in CPU memory, as the others may want
  EXPECT_TRUE(library->switches[allow_compatibility]);
  library->switches[allow_compatibility] = false;
  ASSERT_TRUE(calls->open());
  EXPECT_EQ(library->users, 2);
  calls->close();
  EXPECT_EQ(library->users, 1);
  EXPECT_FALSE(library->switches[allow_compatibility]);
  library->switches[allow_compatibility] = true;
  EXPECT_TRUE(library->switches[allow_compatibility]);
}

TEST_F(gpu_direct, is_not_used_where_it_would_stage_in_cpu_memory) {
  library->switches[force_compatibility] = true;
  EXPECT_FALSE(calls->open());
  library->switches[force_compatibility] = false;
  library->switches[use_peer_to_peer] = false;
  const bool has_module = ::access("/proc/driver/nvidia-fs/version", R_OK) == 0;
  EXPECT_EQ(calls->open(), has_module);
  if (has_module) calls->close();
}

TEST_F(gpu_direct, a_refused_file_is_no_file) {
  library->refuses_file = true;
  ASSERT_TRUE(calls->open());
  EXPECT_EQ(calls->register_file(0), nullptr);
  calls->close();
}

}  // namespace
}  // namespace shardwright
