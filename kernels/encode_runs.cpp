#include "kernels/encode_runs.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "kernels/encode.h"
#include "kernels/float_arithmetic.h"

namespace shardwright {
namespace {

/// An F32 number with the value of a BF16, F16 or F32 number that lies anywhere.
template <DType dtype>
float load_float(const std::byte* address) {
  if constexpr (dtype == DType::F32) {
    float number;
    std::memcpy(&number, address, sizeof number);
    return number;
  } else {
    std::uint16_t bits;
    std::memcpy(&bits, address, sizeof bits);
    return float_of_bits(dtype == DType::BF16 ? float_bits<bfloat16>(bits) : float_bits<float16>(bits));
  }
}

/// The definition of FindMagnitudes.
template <DType dtype, bool leaves_out_nan>
void find_magnitudes_of_pieces(const void* source, std::int64_t first_length, std::int64_t length,
                               std::int64_t total, float* magnitudes) {
  constexpr std::uint32_t infinity = 0x7F800000;
  const auto* from = static_cast<const std::byte*>(source);
  for (std::int64_t begin = 0, end = std::min(first_length, total); begin < total; ++magnitudes) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::uint32_t bits = bits_of_float(load_float<dtype>(from + i * bytes_of(dtype))) & 0x7FFFFFFF;
      if (leaves_out_nan && bits > infinity) continue;
      *magnitudes = larger_magnitude(*magnitudes, float_of_bits(bits > infinity ? 0x7FC00000 : bits));
    }
    begin = end;
    end = std::min(end + length, total);
  }
}

template <bool leaves_out_nan>
constexpr MagnitudeRuns definition = {find_magnitudes_of_pieces<DType::BF16, leaves_out_nan>,
                                      find_magnitudes_of_pieces<DType::F16, leaves_out_nan>,
                                      find_magnitudes_of_pieces<DType::F32, leaves_out_nan>};

template <CodeRule rule, DType dtype>
std::uint8_t encode_one(const std::byte* value, float factor) {
  return code_of<rule>(load_float<dtype>(value), factor);
}

/// For each of code_rules those of BF16, F16 and F32.
constexpr auto encode_ones = []<std::size_t... index>(std::index_sequence<index...>) {
  return std::array<std::array<EncodeOne, 3>, sizeof...(index)>{
      {{encode_one<code_rules[index], DType::BF16>, encode_one<code_rules[index], DType::F16>,
        encode_one<code_rules[index], DType::F32>}...}};
}
(std::make_index_sequence<code_rules.size()>());

void set_low_nibble(std::uint8_t& byte, std::uint8_t code) {
  byte = static_cast<std::uint8_t>((byte & 0xF0) | code);
}

void set_high_nibble(std::uint8_t& byte, std::uint8_t code) {
  byte = static_cast<std::uint8_t>((byte & 0x0F) | code << 4);
}

}  // namespace

FindMagnitudes magnitudes_kernel(const InstructionSet& set, DType dtype, bool leaves_out_nan) {
  const MagnitudeRuns* runs = leaves_out_nan ? &set.magnitudes_without_nan : &set.magnitudes;
  if (runs->of_bf16 == nullptr) runs = leaves_out_nan ? &definition<true> : &definition<false>;
  return dtype == DType::BF16 ? runs->of_bf16 : dtype == DType::F16 ? runs->of_f16 : runs->of_f32;
}

Encoder encoder_of(const InstructionSet& set, const CodeRule& rule, DType dtype) {
  const std::size_t index = index_of(rule);
  const EncodeRuns& runs = set.encode_by_rule.at(index);
  const std::size_t of_dtype = dtype == DType::BF16 ? 0 : dtype == DType::F16 ? 1 : 2;
  const EncodeRun run[] = {runs.from_bf16, runs.from_f16, runs.from_f32};
  return {is_packed(rule.element), bytes_of(dtype), encode_ones[index][of_dtype], run[of_dtype],
          set.shortest_run};
}

void encode_values(const Encoder& encoder, const std::byte* values, const float* factors, std::int64_t count,
                   std::uint8_t* codes, std::int64_t element) {
  if (encoder.is_packed && element % 2 != 0 && count > 0) {
    set_high_nibble(codes[element / 2], encoder.one(values, factors[0]));
    values += encoder.value_bytes;
    ++factors;
    ++element;
    --count;
  }
  const auto code_at = [&](std::int64_t i) {
    return encoder.one(values + i * encoder.value_bytes, factors[i]);
  };
  std::uint8_t* to = codes + (encoder.is_packed ? element / 2 : element);
  const std::int64_t whole = encoder.is_packed ? count / 2 * 2 : count;
  if (encoder.run != nullptr && whole >= encoder.shortest_run) {
    encoder.run(values, factors, whole, to);
  } else if (encoder.is_packed) {
    for (std::int64_t i = 0; i < whole; i += 2) {
      to[i / 2] = static_cast<std::uint8_t>(code_at(i) | code_at(i + 1) << 4);
    }
  } else {
    for (std::int64_t i = 0; i < whole; ++i) to[i] = code_at(i);
  }
  if (whole < count) set_low_nibble(to[whole / 2], code_at(whole));
}

void spread_factors(const InstructionSet& set, const float* factors, std::int64_t first_length,
                    std::int64_t length, std::int64_t total, float* spread) {
  if (set.spread_floats != nullptr) return set.spread_floats(factors, first_length, length, total, spread);
  for (std::int64_t begin = 0, end = std::min(first_length, total); begin < total; ++factors) {
    std::fill(spread + begin, spread + end, *factors);
    begin = end;
    end = std::min(end + length, total);
  }
}

}  // namespace shardwright
