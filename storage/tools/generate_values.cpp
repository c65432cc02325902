#include "storage/tools/generate_values.h"

#include <array>
#include <bit>
#include <cstring>
#include <string>

#include "kernels/number_formats.h"
#include "planner/error.h"
#include "planner/names/companions.h"
#include "storage/tools/random.h"

namespace shardwright {

namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little endian");

// Each of these turns 64 random bits into 8 bytes of values. In a word of several lanes, `exponent + lowest
// exponent bit` carries into the sign bit of just the lanes that are NaN or infinite; that bit, moved down,
// then takes them back.

std::uint64_t finite_e4m3(std::uint64_t bits) {
  const std::uint64_t magnitude = bits & 0x7F7F7F7F7F7F7F7Fu;
  const std::uint64_t is_nan = (magnitude + 0x0101010101010101u) & 0x8080808080808080u;
  return bits ^ (is_nan >> 7);  // 0x7F, the NaN, becomes 0x7E, the largest number
}

std::uint64_t finite_bf16(std::uint64_t bits) {
  const std::uint64_t exponent = bits & 0x7F807F807F807F80u;
  const std::uint64_t is_special = (exponent + 0x0080008000800080u) & 0x8000800080008000u;
  return bits ^ (is_special >> 1);  // an exponent of 255 becomes 127
}

std::uint64_t finite_f32(std::uint64_t bits) {
  const std::uint64_t exponent = bits & 0x7F8000007F800000u;
  const std::uint64_t is_special = (exponent + 0x0080000000800000u) & 0x8000000080000000u;
  return bits ^ (is_special >> 1);
}

/// Neither negative, zero nor NaN: 0 becomes 1, 0x7F becomes 0x7E.
std::uint64_t positive_e4m3(std::uint64_t bits) {
  std::uint64_t result = 0;
  for (int lane = 0; lane < 8; ++lane) {
    const std::uint64_t code = (bits >> (8 * lane)) & 0x7F;
    result |= (code == 0 ? 1 : code == 0x7F ? 0x7E : code) << (8 * lane);
  }
  return result;
}

/// Bytes from 100 to 140.
std::uint64_t usual_e8m0(std::uint64_t bits) {
  std::uint64_t result = 0;
  for (int lane = 0; lane < 8; ++lane)
    result |= (100 + ((bits >> (8 * lane) & 0xFF) * 41 >> 8)) << (8 * lane);
  return result;
}

/// Positive, with exponents from -10 to -7: those of scales of integers.
std::uint64_t small_bf16(std::uint64_t bits) { return (bits & 0x01FF01FF01FF01FFu) + 0x3A803A803A803A80u; }

constexpr std::uint64_t two_small_f32 = 0x3A8000003A800000u;  // 2^-10

/// Takes 16 random bits.
std::uint64_t scale(std::uint64_t bits) {
  const std::uint64_t value = (bits >> 4) & 0xFFF;
  return (bits & 15) == 0 ? value * 255 >> 12 : 100 + (value * 41 >> 12);
}

std::uint64_t scales(std::uint64_t key, std::uint64_t i) {
  std::uint64_t result = 0;
  for (std::uint64_t half = 0; half < 2; ++half) {
    const std::uint64_t bits = random_word(key, 2 * i + half);
    for (std::uint64_t lane = 0; lane < 4; ++lane) {
      result |= scale(bits >> (16 * lane)) << (8 * (4 * half + lane));
    }
  }
  return result;
}

/// Of weights when they are decoded, and of their FP8 and 4-bit elements: the latter are any code, of E2M1 or
/// of integers.
constexpr float weight_deviation = 0.02F;
constexpr float fp8_deviation = 128;
constexpr float four_bit_deviation = 3;
constexpr float block_scale = 4;  // of NVFP4, which has a scale for the tensor, too
constexpr float activation_scale = 1.0F / 64;

/// The code of the number in the dtype.
std::uint64_t code_of(DType dtype, float number) {
  const ExactNumber exact = exact_value<float32>(std::bit_cast<std::uint32_t>(number));
  switch (dtype) {
    case DType::F32:
      return std::bit_cast<std::uint32_t>(number);
    case DType::BF16:
      return nearest<bfloat16>(exact);
    case DType::F16:
      return nearest<float16>(exact);
    case DType::F8_E4M3:
      return nearest<e4m3fn>(exact);
    case DType::U8:
    case DType::F8_E8M0:  // the power of two that is not larger
      return static_cast<std::uint8_t>(exact.exponent + highest_bit(exact.significand) + 127);
    default:
      throw Error(ErrorKind::argument, "expected a dtype that the generator has trained values for, found " +
                                           std::string(name_of(dtype)));
  }
}

/// The sum of four random bytes is as good as normal, and the same on any machine.
constexpr std::size_t sums = 4 * 255 + 1;
constexpr float mean_of_sums = 510;
constexpr float deviation_of_sums = 147.8F;

std::size_t sum_of_bytes(std::uint64_t bits) {
  std::size_t sum = 0;
  for (int lane = 0; lane < 4; ++lane) sum += (bits >> (8 * lane)) & 0xFF;
  return sum;
}

std::array<std::uint64_t, sums> normal_codes(const RandomValues& values) {
  std::array<std::uint64_t, sums> codes{};
  for (std::size_t sum = 0; sum < sums; ++sum) {
    const float steps = (static_cast<float>(sum) - mean_of_sums) / deviation_of_sums;
    codes[sum] = code_of(values.dtype, values.mean + steps * values.deviation);
  }
  return codes;
}

/// The words of elements that are drawn one by one.
auto normal_words(const RandomValues& values, std::uint64_t key) {
  const auto bytes = static_cast<std::uint64_t>(bytes_of(values.dtype));
  return [codes = normal_codes(values), key, bytes](std::uint64_t i) {
    std::uint64_t word = 0;
    for (std::uint64_t lane = 0; lane < 8 / bytes; ++lane) {
      const std::uint64_t element = i * (8 / bytes) + lane;
      const std::uint64_t bits = random_word(key, element / 2) >> (32 * (element % 2));
      word |= codes[sum_of_bytes(bits)] << (8 * bytes * lane);
    }
    return word;
  };
}

std::string_view last_part(std::string_view name) { return name.substr(name.rfind('.') + 1); }
std::string_view module_of(std::string_view name) { return name.substr(0, name.rfind('.')); }

bool is_encoded(const NamedShape& weight) {
  return weight.values == SampleValues::codes || weight.dtype == DType::F8_E4M3;
}

/// Around a number that is no weight: copies differ, so that it is seen which of them was read.
RandomValues around(DType dtype, float number) {
  return {dtype, RandomValues::Kind::normal, number, number / 8};
}

/// Writes word_at(i) for each word of 8 bytes; the last may be cut.
template <typename Word>
void fill_words(std::uint64_t first, std::span<char> into, Word word_at) {
  const std::size_t words = into.size() / 8;
  for (std::size_t i = 0; i < words; ++i) {
    const std::uint64_t word = word_at(first + i);
    std::memcpy(into.data() + 8 * i, &word, 8);
  }
  if (const std::size_t rest = into.size() % 8; rest != 0) {
    const std::uint64_t word = word_at(first + words);
    std::memcpy(into.data() + 8 * words, &word, rest);
  }
}

}  // namespace

RandomValues any_values(const NamedShape& tensor) {
  switch (tensor.values) {
    case SampleValues::codes:
      return {tensor.dtype, RandomValues::Kind::codes};
    case SampleValues::scales:
      return {tensor.dtype, RandomValues::Kind::scales};
    default:
      return {tensor.dtype,
              is_scale_name(tensor.name) ? RandomValues::Kind::magnitudes : RandomValues::Kind::any};
  }
}

bool is_named_scale(std::string_view name) { return last_part(name).find("scale") != std::string_view::npos; }

RandomValues trained_values(const NamedShape& tensor, const NamedShape* weight) {
  const std::string_view part = last_part(tensor.name);
  const DType dtype = tensor.dtype;
  if (part == "input_scale" || part == "activation_scale") return around(dtype, activation_scale);
  const bool is_of_weight = weight != nullptr && is_encoded(*weight) && is_named_scale(tensor.name) &&
                            module_of(weight->name) == module_of(tensor.name);
  if (is_of_weight) {
    constexpr float four_bit_scale = weight_deviation / four_bit_deviation;
    if (part == "weight_scale_2") return around(dtype, four_bit_scale / block_scale);
    if (part == "weight_global_scale") return around(dtype, block_scale / four_bit_scale);  // it divides
    if (dtype == DType::F8_E4M3) return around(dtype, block_scale);
    return around(dtype, weight->dtype == DType::F8_E4M3 ? weight_deviation / fp8_deviation : four_bit_scale);
  }
  if (dtype == DType::I64) return {dtype};
  if (tensor.values == SampleValues::codes) return {dtype, RandomValues::Kind::codes};
  if (dtype == DType::F8_E4M3) return {dtype, RandomValues::Kind::normal, 0, fp8_deviation};
  const bool is_factor = (part == "weight" && tensor.shape.size() < 2) || part == "gamma" || part == "D" ||
                         part == "scale" || part == "per_expert_scale" || part == "layer_scalar";
  return {dtype, RandomValues::Kind::normal, is_factor ? 1.0F : 0.0F, weight_deviation};
}

void fill_random(RandomValues values, std::uint64_t key, std::uint64_t offset, std::span<char> into) {
  const std::uint64_t first = offset / 8;
  const DType dtype = values.dtype;
  const auto refuse = [&] {
    throw Error(ErrorKind::argument,
                "expected a dtype that the generator has values for, found " + std::string(name_of(dtype)));
  };
  if (values.kind == RandomValues::Kind::codes)
    return fill_words(first, into, [key](std::uint64_t i) { return random_word(key, i); });
  if (values.kind == RandomValues::Kind::normal) return fill_words(first, into, normal_words(values, key));
  if (values.kind == RandomValues::Kind::scales) {
    switch (dtype) {
      case DType::F32:
        return fill_words(first, into, [](std::uint64_t) { return two_small_f32; });
      case DType::F8_E4M3:
        return fill_words(first, into, [key](std::uint64_t i) { return positive_e4m3(random_word(key, i)); });
      case DType::U8:
      case DType::F8_E8M0:
        return fill_words(first, into, [key](std::uint64_t i) { return usual_e8m0(random_word(key, i)); });
      case DType::BF16:
        return fill_words(first, into, [key](std::uint64_t i) { return small_bf16(random_word(key, i)); });
      default:
        refuse();
    }
  }
  const bool has_signs = values.kind != RandomValues::Kind::magnitudes;
  switch (dtype) {
    case DType::F8_E4M3:
      return fill_words(first, into, [key](std::uint64_t i) { return finite_e4m3(random_word(key, i)); });
    case DType::U8:
      return fill_words(first, into, [key](std::uint64_t i) { return scales(key, i); });
    case DType::BF16:
      return fill_words(first, into,
                        [key, bits = has_signs ? ~0ULL : 0x7FFF7FFF7FFF7FFFULL](std::uint64_t i) {
                          return finite_bf16(random_word(key, i)) & bits;
                        });
    case DType::F32:
      return fill_words(first, into,
                        [key, bits = has_signs ? ~0ULL : 0x7FFFFFFF7FFFFFFFULL](std::uint64_t i) {
                          return finite_f32(random_word(key, i)) & bits;
                        });
    case DType::I64:
      return fill_words(first, into, [key](std::uint64_t i) { return random_word(key, i) & 3; });
    default:
      refuse();
  }
}

}  // namespace shardwright
