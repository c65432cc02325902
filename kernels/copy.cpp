#include "kernels/copy.h"

#include <cstdint>
#include <cstring>

#include "kernels/instruction_sets.h"
#include "kernels/panels.h"

namespace shardwright {

void copy_from_memory(const void* source, std::size_t bytes, void* destination) {
  const InstructionSet& set = instruction_set_in_use();
  const auto count = static_cast<std::int64_t>(bytes);
  if (set.copy_from_memory == nullptr || count < least_streamed_bytes) {
    std::memcpy(destination, source, bytes);
    return;
  }
  set.copy_from_memory(source, count, destination);
  set.finish_streaming();
}

}  // namespace shardwright
