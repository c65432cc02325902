#pragma once

// Internal: how values and factors become codes. The definition, one number at a time; each instruction set
// has a kernel for each of `code_rules`, which must equal it bit for bit.

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/float_arithmetic.h"

namespace shardwright {

/// What a factor does to a value before it is rounded to a code. The result is an F32 number, rounded once.
enum class Change : std::uint8_t { multiply, divide };

/// What F4 makes of a magnitude halfway between two codes: the even one, the smaller, the larger.
enum class Ties : std::uint8_t { to_even, down, up };

/// Which numbers get the sign bit of F4: those below zero; those that are not above it, NaN included; those
/// whose own is set.
enum class Sign : std::uint8_t { below_zero, not_above_zero, as_it_is };

/// A way from values and factors to codes.
struct CodeRule {
  DType element = DType::F8_E4M3;  ///< F8_E4M3, F4 or I4
  Change change = Change::divide;
  Ties ties = Ties::to_even;              ///< of F4; the others' go to even codes
  Sign sign = Sign::as_it_is;             ///< of F4
  bool is_rounded_to_bf16_first = false;  ///< of I4

  bool operator==(const CodeRule&) const = default;
};

/// All that there are.
inline constexpr std::array<CodeRule, 8> code_rules{{
    {DType::F8_E4M3, Change::multiply},
    {DType::F8_E4M3, Change::divide},
    {DType::F4, Change::divide, Ties::down, Sign::not_above_zero},
    {DType::F4, Change::divide, Ties::to_even, Sign::below_zero},
    {DType::F4, Change::divide, Ties::to_even, Sign::as_it_is},
    {DType::F4, Change::multiply, Ties::up, Sign::as_it_is},
    {DType::I4, Change::divide},
    {DType::I4, Change::divide, Ties::to_even, Sign::as_it_is, true},
}};

/// Where a rule stands in code_rules; its size for one that is not there.
constexpr std::size_t index_of(const CodeRule& rule) {
  std::size_t index = 0;
  while (index < code_rules.size() && !(code_rules[index] == rule)) ++index;
  return index;
}

/// The magnitude's code, 0 to 7, of F4: how many of the bounds between codes it is above. A NaN gets 0.
template <Ties ties>
std::uint32_t e2m1_magnitude(float magnitude) {
  const auto above = [magnitude](float bound) { return magnitude > bound ? 1U : 0U; };
  const auto from = [magnitude](float bound) { return magnitude >= bound ? 1U : 0U; };
  const auto to_odd = [&](float bound) { return ties == Ties::up ? from(bound) : above(bound); };
  const auto to_even = [&](float bound) { return ties == Ties::down ? above(bound) : from(bound); };
  return to_odd(0.25F) + to_even(0.75F) + to_odd(1.25F) + to_even(1.75F) + to_odd(2.5F) + to_even(3.5F) +
         to_odd(5.0F);
}

template <Ties ties, Sign sign>
std::uint8_t e2m1_code(float number) {
  const std::uint32_t bits = bits_of_float(number);
  bool is_negative = bits >> 31 != 0;
  if (sign == Sign::below_zero) is_negative = number < 0;
  if (sign == Sign::not_above_zero) is_negative = !(number > 0);
  return static_cast<std::uint8_t>((is_negative ? 8 : 0) |
                                   e2m1_magnitude<ties>(float_of_bits(bits & 0x7FFFFFFF)));
}

/// q + 8 of the nearest integer q from -8 to 7, ties to even; 8 for a NaN.
inline std::uint8_t int4_code(float number) {
  if (!(number == number)) return 8;
  if (number < -8.0F) number = -8.0F;
  if (number > 7.0F) number = 7.0F;
  // The last bit of 1.5 * 2^23 is worth 1.
  return static_cast<std::uint8_t>(bits_of_float(number + 0x1.8p23F) - (bits_of_float(0x1.8p23F) - 8));
}

/// The code of a value. REQUIRES: the default floating-point mode.
template <CodeRule rule>
std::uint8_t code_of(float value, float factor) {
  float number = rule.change == Change::multiply ? value * factor : value / factor;
  if constexpr (rule.element == DType::F8_E4M3) return encoded_float(bits_of_float(number), 127);
  if constexpr (rule.element == DType::F4) return e2m1_code<rule.ties, rule.sign>(number);
  if constexpr (rule.is_rounded_to_bf16_first) {
    number = float_of_bits(nearest_of_float<bfloat16>(bits_of_float(number)) << 16);
  }
  return int4_code(number);
}

}  // namespace shardwright
