#include "kernels/copy.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tiles.h"

namespace shardwright {
namespace {

class CopyFromMemory : public EveryInstructionSet {};
INSTANTIATE_TEST_SUITE_P(Each, CopyFromMemory, testing::ValuesIn(instruction_sets()), name_of_parameter);

TEST_P(CopyFromMemory, WritesAnyRunFromAnyAddressToAnyAndNothingElse) {
  constexpr std::size_t most = 300'000;
  std::vector<std::uint8_t> source(most + 64);
  for (std::size_t i = 0; i < source.size(); ++i) source[i] = static_cast<std::uint8_t>(1 + i * 37 % 251);
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{1}, std::size_t{63}, std::size_t{65'535}, std::size_t{65'536},
        std::size_t{65'599}, std::size_t{65'600}, std::size_t{262'144}, most}) {
    for (const std::size_t from : {0, 1, 16, 63}) {
      for (const std::size_t to : {0, 1, 16, 63}) {
        std::vector<std::uint8_t> destination(most + 192);
        copy_from_memory(source.data() + from, size, destination.data() + 64 + to);
        for (std::size_t i = 0; i < destination.size(); ++i) {
          const bool is_inside = i >= 64 + to && i < 64 + to + size;
          ASSERT_EQ(destination[i], is_inside ? source[from + i - 64 - to] : 0)
              << size << " bytes from " << from << " to " << to << ", byte " << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace shardwright
