#include <gtest/gtest.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels/decode.h"

namespace shardwright {
namespace {

TEST(InstructionSets, TheLastIsTheScalarDefinition) { EXPECT_EQ(instruction_sets().back(), "scalar"); }

#if defined(__x86_64__)
TEST(InstructionSets, AMachineWithAVX2HasVectorKernels) {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("f16c")) GTEST_SKIP() << "no AVX2 here";
  EXPECT_GE(instruction_sets().size(), 3U);
}
#endif

TEST(InstructionSets, EachCanBeChosenAndTheEmptyNameMeansTheBest) {
  for (const std::string& name : instruction_sets()) {
    use_instruction_set(name);
    EXPECT_EQ(instruction_set(), name);
  }
  use_instruction_set("");
  EXPECT_EQ(instruction_set(), instruction_sets().front());
}

TEST(InstructionSets, AnUnknownNameIsRefusedWithTheNamesThereAre) {
  const std::string before = instruction_set();
  try {
    use_instruction_set("abacus");
    FAIL() << "accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("abacus"), std::string::npos) << error.what();
    for (const std::string& name : instruction_sets()) {
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
    }
  }
  EXPECT_EQ(instruction_set(), before);
}

// Each of these asks for the first time, in a process of its own.

[[noreturn]] void exit_with_success_if(bool holds) { std::exit(holds ? 0 : 1); }

TEST(InstructionSetsDeathTest, TheEnvironmentVariableChoosesTheFirst) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        setenv("SHARDWRIGHT_SIMD", "scalar", 1);
        exit_with_success_if(instruction_set() == "scalar");
      },
      testing::ExitedWithCode(0), "");
}

TEST(InstructionSetsDeathTest, AnUnknownNameInTheEnvironmentIsAnError) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        setenv("SHARDWRIGHT_SIMD", "abacus", 1);
        try {
          instruction_set();
        } catch (const std::invalid_argument& error) {
          exit_with_success_if(std::string(error.what()).find("SHARDWRIGHT_SIMD") != std::string::npos);
        }
        exit_with_success_if(false);
      },
      testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace shardwright
