#include "storage/tools/generate_values.h"

#include <bit>
#include <cstring>
#include <string>

#include "planner/error.h"
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

void fill_random(DType dtype, SampleValues values, std::uint64_t key, std::uint64_t offset,
                 std::span<char> into) {
  const std::uint64_t first = offset / 8;
  const auto refuse = [&] {
    throw Error(ErrorKind::argument,
                "expected a dtype that the generator has values for, found " + std::string(name_of(dtype)));
  };
  if (values == SampleValues::codes)
    return fill_words(first, into, [key](std::uint64_t i) { return random_word(key, i); });
  if (values == SampleValues::scales) {
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
  switch (dtype) {
    case DType::F8_E4M3:
      return fill_words(first, into, [key](std::uint64_t i) { return finite_e4m3(random_word(key, i)); });
    case DType::U8:
      return fill_words(first, into, [key](std::uint64_t i) { return scales(key, i); });
    case DType::BF16:
      return fill_words(first, into, [key](std::uint64_t i) { return finite_bf16(random_word(key, i)); });
    case DType::F32:
      return fill_words(first, into, [key](std::uint64_t i) { return finite_f32(random_word(key, i)); });
    case DType::I64:
      return fill_words(first, into, [key](std::uint64_t i) { return random_word(key, i) & 3; });
    default:
      refuse();
  }
}

}  // namespace shardwright
