#pragma once

// Runs the launches of the CUDA kernels on the CPU: block by block, thread by thread, and what lies between
// two barriers for all threads of a block before what follows.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "kernels/cuda/encode_bodies.h"
#include "kernels/cuda/place_bodies.h"

namespace shardwright::cuda {

template <class Unit>
void run_blocks(const Launch& launch) {
  constexpr std::size_t guard = 64;
  alignas(16) static thread_local std::byte memory[square_bytes(8) + guard];
  for (std::uint32_t block = 0; block < launch.blocks; ++block) {
    const PlacedTile& tile = tile_of_block(launch.batch, block);
    if (launch.layout == Layout::straight) {
      for (std::uint32_t thread = 0; thread < threads_in_block; ++thread) {
        place_straight<Unit>(block, thread, tile);
      }
      continue;
    }
    std::memset(memory, 0xA5, sizeof memory);
    for (std::uint32_t thread = 0; thread < threads_in_block; ++thread) {
      transpose_in<Unit>(block, thread, tile, memory);
    }
    for (std::uint32_t thread = 0; thread < threads_in_block; ++thread) {
      transpose_out<Unit>(block, thread, tile, memory);
    }
    for (std::size_t i = launch.shared_bytes; i < sizeof memory; ++i) {
      if (memory[i] != std::byte{0xA5})
        throw std::logic_error("a thread wrote beyond its block's shared memory");
    }
  }
}

inline void run(const Launch& launch) {
  switch (launch.element_bytes) {
    case 1:
      return run_blocks<std::uint8_t>(launch);
    case 2:
      return run_blocks<std::uint16_t>(launch);
    case 4:
      return run_blocks<std::uint32_t>(launch);
    default:
      return run_blocks<std::uint64_t>(launch);
  }
}

template <class Unit>
void run_blocks(const EncodingLaunch& launch) {
  constexpr std::size_t guard = 64;
  alignas(16) static thread_local std::byte memory[encoding_shared_bytes(4) + guard];
  for (std::uint32_t block = 0; block < launch.blocks; ++block) {
    const EncodedPart& tile = tile_of_block(launch.batch, block);
    std::memset(memory, 0xA5, sizeof memory);
    for (std::uint32_t thread = 0; thread < threads_in_block; ++thread) {
      read_square<Unit>(block, thread, tile, memory);
    }
    for (std::uint32_t thread = 0; thread < threads_in_block; ++thread) {
      find_magnitudes<Unit>(thread, tile, memory);
    }
    for (std::uint32_t thread = 0; thread < threads_in_block; ++thread) {
      write_encoded<Unit>(block, thread, tile, memory);
    }
    for (std::size_t i = launch.shared_bytes; i < sizeof memory; ++i) {
      if (memory[i] != std::byte{0xA5})
        throw std::logic_error("a thread wrote beyond its block's shared memory");
    }
  }
}

inline void run(const EncodingLaunch& launch) {
  return launch.value_bytes == 2 ? run_blocks<std::uint16_t>(launch) : run_blocks<std::uint32_t>(launch);
}

}  // namespace shardwright::cuda
