#pragma once

#include <cstdint>
#include <span>

#include "kernels/dtype.h"
#include "planner/models/stored_encodings.h"

namespace shardwright {

/// Fills `into` with the bytes of a random tensor from `offset` on, which must be a multiple of 8. The same
/// key gives the same tensor, however it is cut.
///
/// Any values. F8_E4M3: every code but NaN. U8, taken for e8m0 scales: 15 of 16 are 100 to 140, that is 2^-27
/// to 2^13, the rest anywhere in 0 to 254, so that products overflow BF16, become subnormal and vanish; never
/// 255, which is NaN. BF16 and F32: any finite number, subnormals included.
/// I64: 0 to 3, which number the experts of a small checkpoint.
/// Codes: any bytes, of U8, I8 and I32.
/// Scales: U8 and F8_E8M0 100 to 140; F8_E4M3 from 2^-9 to 448; BF16 2^-10 to 2^-6; F32 2^-10 everywhere.
/// Other dtypes: Error (argument). Numbers that are given are not random.
void fill_random(DType dtype, SampleValues values, std::uint64_t key, std::uint64_t offset,
                 std::span<char> into);

}  // namespace shardwright
