#pragma once

#include <cstdint>
#include <vector>

namespace shardwright {

/// Which file each of some tensors goes into, files numbered from 0: in their order, a new file begun where
/// the next tensor would make one larger than `most_bytes`. A tensor larger than that has a file of its own.
std::vector<std::uint32_t> place_in_files(const std::vector<std::uint64_t>& bytes_of_tensor,
                                          std::uint64_t most_bytes);

}  // namespace shardwright
