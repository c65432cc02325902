#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/dtype.h"
#include "planner/models/stored_encodings.h"

namespace shardwright {

/// What random values are wanted of a dtype.
struct RandomValues {
  enum class Kind : std::uint8_t {
    any,
    magnitudes,  ///< as any, but not negative
    codes,       ///< any bytes
    scales,      ///< positive numbers, none extreme
    normal,      ///< of this mean and deviation, none more than 3.46 deviations away
  };
  DType dtype;
  Kind kind = Kind::any;
  float mean = 0;
  float deviation = 0;
};

/// Values that reach everywhere a format does, to test those who read it. Scales are not negative.
RandomValues any_values(const NamedShape& tensor);

/// Values of the size that a trained model has, so that it can be run: weights of deviation 0.02 when they
/// are decoded, 1 in norms and other factors. `weight` is the last tensor before this one that is no scale,
/// or null: a scale follows its weight.
RandomValues trained_values(const NamedShape& tensor, const NamedShape* weight);

/// Whether a tensor is called as scales are.
bool is_named_scale(std::string_view name);

/// Fills `into` with the bytes of a random tensor from `offset` on, which must be a multiple of 8. The same
/// key gives the same tensor, however it is cut.
///
/// Of kind `any`: F8_E4M3: every code but NaN. U8, taken for e8m0 scales: 15 of 16 are 100 to 140, that is
/// 2^-27 to 2^13, the rest anywhere in 0 to 254, so that products overflow BF16, become subnormal and vanish;
/// never 255, which is NaN. BF16 and F32: any finite number, subnormals included. I64: 0 to 3, which number
/// the experts of a small checkpoint. Of kind `scales`: U8 and F8_E8M0 100 to 140; F8_E4M3 from 2^-9 to 448;
/// BF16 2^-10 to 2^-6; F32 2^-10 everywhere. Of kind `normal`: F16 as well; U8 and F8_E8M0 the power of two
/// below. Other dtypes: Error (argument).
void fill_random(RandomValues values, std::uint64_t key, std::uint64_t offset, std::span<char> into);

}  // namespace shardwright
