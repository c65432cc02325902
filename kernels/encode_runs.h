#pragma once

// Internal: the kernels of the encoders over a line of values, and the definition where there are none.

#include <cstddef>
#include <cstdint>

#include "kernels/instruction_sets.h"
#include "kernels/rule_codes.h"

namespace shardwright {

FindMagnitudes magnitudes_kernel(const InstructionSet& set, DType dtype, bool leaves_out_nan);

/// The code of a value that may lie at any address.
using EncodeOne = std::uint8_t (*)(const std::byte* value, float factor);

/// How values of a dtype become codes.
struct Encoder {
  bool is_packed;
  std::int64_t value_bytes;
  EncodeOne one;
  EncodeRun run;  ///< null where there is none
  std::int64_t shortest_run;
};

/// REQUIRES: one of code_rules; BF16, F16 or F32.
Encoder encoder_of(const InstructionSet& set, const CodeRule& rule, DType dtype);

/// Writes the codes of neighbouring values, each with its factor, from an element of `codes` on. An element
/// that shares a byte with one of these stays. REQUIRES: the default floating-point mode.
void encode_values(const Encoder& encoder, const std::byte* values, const float* factors, std::int64_t count,
                   std::uint8_t* codes, std::int64_t element);

/// Fills `spread` as SpreadScales does; with room for most_spread_beyond more.
void spread_factors(const InstructionSet& set, const float* factors, std::int64_t first_length,
                    std::int64_t length, std::int64_t total, float* spread);

}  // namespace shardwright
