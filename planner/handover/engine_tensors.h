#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "planner/geometry/box.h"

namespace shardwright {

/// A box of a tensor that a checkpoint would hold, and where its elements lie in an engine's tensor.
///
/// Rank 1 of 4 has rows 16 to 31 of k_proj [64, 32] behind 64 rows of queries in its qkv_proj:
///
///     {"k_proj.weight", {{16, 0}, {16, 32}}, {64, 0}, {0, 1}}
struct EnginePart {
  std::string hf_name;  ///< as files hold it: codes and scales are two tensors
  Box box = {};         ///< of it, as it is seen; of no dimensions: all of it
  Shape at = {};        ///< index of the box's first element in the engine's tensor; empty: its first one

  /// The engine's dimension along which each one of the box runs; -1: it has one index. Empty: the last ones
  /// of the engine's tensor, in order.
  std::vector<int> axes = {};
  Shape steps = {};  ///< from one index to the next along it; empty: 1 for all
  /// The tensor's dimensions, each in one factor or more, of which `box` is a box: every other column of
  /// [6, 10] is one of [6, 5, 2]. Empty: the tensor's own shape.
  Shape view = {};

  bool operator==(const EnginePart&) const = default;
};

/// A tensor of one rank of an engine: what is in it, whatever its memory is like.
struct EngineTensor {
  std::string name;
  DType dtype = DType::BF16;
  Shape shape;  ///< of this rank's tensor
  std::vector<EnginePart> parts;

  bool operator==(const EngineTensor&) const = default;
};

/// A tensor of an engine in CPU memory, which the caller keeps alive.
struct EngineMemory {
  std::byte* data = nullptr;
  Shape strides;  ///< elements
};

/// What a rank did in a hand-over.
struct RefitReport {
  std::uint64_t bytes_sent = 0;
  std::uint64_t bytes_received = 0;
  std::uint64_t bytes_kept = 0;       ///< that went from this rank to itself
  std::uint64_t bytes_in_memory = 0;  ///< of those sent and received, through memory that ranks share
  std::uint64_t messages = 0;         ///< sent
  std::size_t peak_staging_bytes = 0;
  std::size_t layers = 0;  ///< of this rank's engine
  double seconds = 0;
};

/// What became of it. The engine's tensors are new in `committed` layers, and as they were in `left` ones.
struct RefitOutcome {
  RefitReport report = {};
  std::vector<std::string> committed = {};
  std::vector<std::string> left = {};
  std::exception_ptr failure = nullptr;  ///< null: all is well

  /// Whether it was ended before all messages had come.
  bool has_ended_early = false;

  /// Why ranks of this rank's node share no memory; empty where they do, or there are none.
  std::string not_shared = {};
};

}  // namespace shardwright
