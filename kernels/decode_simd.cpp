// The run kernels, written once with Highway and compiled for each instruction set. Integer arithmetic
// throughout, apart from two exact subtractions of normal numbers: no rounding mode and no FTZ or DAZ setting
// can reach a result. Only FromTimesFloat and rule_simd-inl.h calculate with floats, and have the mode set
// for it.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

// SSSE3 without SSE4 is older than any machine worth training on; lengthless vectors (SVE, RVV) do not fit
// the 16-byte blocks of the transposition. All of these use the definition.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/decode_simd.cpp"
#include "hwy/foreach_target.h"
//
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/float_arithmetic.h"
#include "kernels/instruction_sets.h"
#include "kernels/rule_codes.h"

HWY_BEFORE_NAMESPACE();
namespace shardwright {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128

// Without vectors there is nothing to gain over the definition.
const InstructionSet* kernels() { return nullptr; }

#else

namespace hn = hwy::HWY_NAMESPACE;

constexpr hn::ScalableTag<std::uint8_t> bytes;
constexpr hn::ScalableTag<std::uint16_t> words;
constexpr hn::ScalableTag<std::int32_t> integers;  // signed, because x86 compares signed integers
constexpr hn::RebindToUnsigned<decltype(integers)> unsigned_integers;
constexpr hn::RebindToFloat<decltype(integers)> floats;
using Words = hn::Vec<decltype(words)>;
using Integers = hn::Vec<decltype(integers)>;
using Floats = hn::Vec<decltype(floats)>;
using HalfWords = hn::Rebind<std::uint16_t, decltype(integers)>;

constexpr std::size_t word_count = hn::MaxLanes(words);
constexpr std::size_t integer_count = hn::MaxLanes(integers);
constexpr std::size_t cache_line = 64;

HWY_INLINE Integers all(std::int32_t value) { return hn::Set(integers, value); }

template <int bits>
HWY_INLINE Integers shift_right_unsigned(Integers value) {
  return hn::BitCast(integers, hn::ShiftRight<bits>(hn::BitCast(unsigned_integers, value)));
}

HWY_INLINE Integers shift_right_unsigned(Integers value, Integers bits) {
  return hn::BitCast(integers,
                     hn::Shr(hn::BitCast(unsigned_integers, value), hn::BitCast(unsigned_integers, bits)));
}

/// An exact difference of two normal F32 numbers that is zero or normal itself. Rounding down would make -0
/// of zero.
HWY_INLINE Integers difference_of_floats(Integers larger, float smaller) {
  const auto difference = hn::Sub(hn::BitCast(floats, larger), hn::Set(floats, smaller));
  return hn::And(hn::BitCast(integers, difference), all(0x7FFFFFFF));
}

// Loads: 32-bit lanes that hold the bits of the F32 number with the exact value of the source element.

struct FromBF16 {
  const std::uint16_t* source;
  HWY_INLINE Integers operator()(std::size_t index) const {
    const hn::Rebind<std::uint16_t, decltype(integers)> narrow;
    const Integers wide = hn::ShiftLeft<16>(hn::PromoteTo(integers, hn::LoadU(narrow, source + index)));
    const auto is_nan = hn::Gt(hn::And(wide, all(0x7FFFFFFF)), all(0x7F800000));
    const Integers quiet = hn::Or(hn::AndNot(all(0x7FFFFFFF), wide), all(0x7FC00000));
    return hn::IfThenElse(is_nan, quiet, wide);
  }
};

/// The bits of the F32 number with the value of an F16 number that is given by its bits.
HWY_INLINE Integers f32_of_f16(Integers half) {
  const Integers magnitude = hn::And(half, all(0x7FFF));
  const Integers sign = hn::ShiftLeft<16>(hn::And(half, all(0x8000)));
  const Integers shifted = hn::ShiftLeft<13>(magnitude);
  // A subnormal m stands for m * 2^-24, which is (1 + m / 1024) * 2^-14 - 2^-14.
  const Integers subnormal = difference_of_floats(hn::Add(shifted, all(113 << 23)), 0x1p-14F);
  Integers wide = hn::IfThenElse(hn::Lt(magnitude, all(0x400)), subnormal, hn::Add(shifted, all(112 << 23)));
  wide = hn::IfThenElse(hn::Eq(magnitude, all(0x7C00)), all(0x7F800000), wide);
  wide = hn::IfThenElse(hn::Gt(magnitude, all(0x7C00)), all(0x7FC00000), wide);
  return hn::Or(sign, wide);
}

struct FromF16 {
  const std::uint16_t* source;
  HWY_INLINE Integers operator()(std::size_t index) const {
    const hn::Rebind<std::uint16_t, decltype(integers)> narrow;
    return f32_of_f16(hn::PromoteTo(integers, hn::LoadU(narrow, source + index)));
  }
};

struct FromF32 {
  const std::uint32_t* source;
  HWY_INLINE Integers operator()(std::size_t index) const {
    const Integers wide = hn::BitCast(integers, hn::LoadU(unsigned_integers, source + index));
    const auto is_nan = hn::Gt(hn::And(wide, all(0x7FFFFFFF)), all(0x7F800000));
    return hn::IfThenElse(is_nan, hn::Or(hn::AndNot(all(0x7FFFFFFF), wide), all(0x7FC00000)), wide);
  }
};

struct FromScaled {
  const std::uint8_t* elements;
  const std::uint8_t* scales;
  HWY_INLINE Integers operator()(std::size_t index) const {
    const hn::Rebind<std::uint8_t, decltype(integers)> narrow;
    const Integers element = hn::PromoteTo(integers, hn::LoadU(narrow, elements + index));
    const Integers scale = hn::PromoteTo(integers, hn::LoadU(narrow, scales + index));
    const Integers magnitude = hn::And(element, all(0x7F));
    const Integers sign = hn::ShiftLeft<24>(hn::And(element, all(0x80)));

    // e4m3 to F32. A subnormal m stands for m * 2^-9, which is (1 + m / 8) * 2^-6 - 2^-6.
    const Integers shifted = hn::ShiftLeft<20>(magnitude);
    const Integers subnormal = difference_of_floats(hn::Add(shifted, all(121 << 23)), 0x1p-6F);
    const Integers number =
        hn::IfThenElse(hn::Lt(magnitude, all(8)), subnormal, hn::Add(shifted, all(120 << 23)));

    // The product, exact but for overflow: its 4 significant bits reach down to 2^-136, F32 to 2^-149.
    const Integers power = hn::Sub(scale, all(127));
    const Integers exponent = hn::Add(hn::ShiftRight<23>(number), power);
    const Integers significand = hn::Or(hn::And(number, all(0x7FFFFF)), all(0x800000));
    const Integers below_normal = hn::Min(hn::Max(hn::Sub(all(1), exponent), all(0)), all(31));
    Integers product =
        hn::IfThenElse(hn::Lt(exponent, all(1)), shift_right_unsigned(significand, below_normal),
                       hn::Add(number, hn::ShiftLeft<23>(power)));
    product = hn::IfThenElse(hn::Gt(exponent, all(254)), all(0x7F800000), product);
    product = hn::IfThenZeroElse(hn::Eq(magnitude, all(0)), product);
    const auto is_nan = hn::Or(hn::Eq(magnitude, all(0x7F)), hn::Eq(scale, all(255)));
    return hn::Or(sign, hn::IfThenElse(is_nan, all(0x7FC00000), product));
  }
};

// Rounding, to nearest even, of the bits of an F32 number to a 16-bit format in each lane, and packing two
// vectors of them into one. A NaN must have an otherwise empty payload, which rounding cannot carry out of.

struct ToBF16 {
  static HWY_INLINE Integers round(Integers wide) {
    const Integers upper = shift_right_unsigned<16>(wide);
    const Integers odd = hn::And(upper, all(1));
    return hn::Add(hn::Add(wide, all(0x7FFF)), odd);
  }
  static HWY_INLINE Words pack(Integers lower, Integers upper) {
    return hn::ConcatOdd(words, hn::BitCast(words, upper), hn::BitCast(words, lower));
  }
};

struct ToF16 {
  static HWY_INLINE Integers round(Integers wide) {
    const Integers magnitude = hn::And(wide, all(0x7FFFFFFF));
    const Integers sign = hn::And(shift_right_unsigned<16>(wide), all(0x8000));

    const Integers odd = hn::And(hn::ShiftRight<13>(magnitude), all(1));
    const Integers rounded = hn::ShiftRight<13>(hn::Add(hn::Add(magnitude, all(0xFFF)), odd));
    const Integers normal = hn::Min(hn::Sub(rounded, all(112 << 10)), all(0x7C00));

    // Below 2^-14 the unit is 2^-24. With 25 bits dropped or more, less than half a unit is left.
    const Integers dropped =
        hn::Max(hn::Min(hn::Sub(all(126), hn::ShiftRight<23>(magnitude)), all(25)), all(1));
    const Integers significand = hn::Or(hn::And(magnitude, all(0x7FFFFF)), all(0x800000));
    const Integers below_half = shift_right_unsigned(all(-1), hn::Min(hn::Sub(all(33), dropped), all(31)));
    const Integers last = hn::And(shift_right_unsigned(significand, dropped), all(1));
    const Integers subnormal = shift_right_unsigned(hn::Add(hn::Add(significand, below_half), last), dropped);

    Integers half = hn::IfThenElse(hn::Lt(magnitude, all(113 << 23)), subnormal, normal);
    half = hn::IfThenElse(hn::Gt(magnitude, all(0x7F800000)), all(0x7E00), half);
    return hn::Or(sign, half);
  }
  static HWY_INLINE Words pack(Integers lower, Integers upper) {
    const hn::Half<decltype(words)> half_words;
    return hn::Combine(words, hn::DemoteTo(half_words, upper), hn::DemoteTo(half_words, lower));
  }
};

// Sources of whole vectors of destination elements.

template <class From, class To>
struct Rounded {
  From from;
  HWY_INLINE Words operator()(std::size_t index) const {
    return To::pack(To::round(from(index)), To::round(from(index + integer_count)));
  }
};

template <class From>
struct Widened {
  From from;
  HWY_INLINE hn::Vec<decltype(unsigned_integers)> operator()(std::size_t index) const {
    return hn::BitCast(unsigned_integers, from(index));
  }
};

template <class T>
struct Copied {
  const T* source;
  HWY_INLINE hn::Vec<hn::ScalableTag<T> > operator()(std::size_t index) const {
    return hn::LoadU(hn::ScalableTag<T>(), source + index);
  }
};

/// MXFP8 to BF16 where the scale is an addition to the exponent, see lowest_scale_in_range.
struct ScaledInRange {
  const std::uint8_t* elements;
  const std::uint8_t* scales;
  HWY_INLINE Words operator()(std::size_t index) const {
    const hn::Rebind<std::uint8_t, decltype(words)> narrow;
    const Words element = hn::PromoteTo(words, hn::LoadU(narrow, elements + index));
    const Words scale = hn::PromoteTo(words, hn::LoadU(narrow, scales + index));
    const Words magnitude = hn::And(element, hn::Set(words, 0x7F));

    // Exponent + 2 and mantissa, with the subnormals 1 to 7 written as the normal numbers that they are.
    alignas(16) static constexpr std::uint8_t table[16] = {0, 0, 8, 12, 16, 18, 20, 22};
    const Words index_in_table = magnitude;  // the upper byte of each lane looks up entry 0, which is 0
    const Words subnormal = hn::BitCast(
        words, hn::TableLookupBytes(hn::LoadDup128(bytes, table), hn::BitCast(bytes, index_in_table)));
    const auto is_subnormal = hn::Lt(hn::BitCast(hn::RebindToSigned<decltype(words)>(), magnitude),
                                     hn::Set(hn::RebindToSigned<decltype(words)>(), 8));
    const Words number = hn::IfThenElse(hn::RebindMask(words, is_subnormal), subnormal,
                                        hn::Add(magnitude, hn::Set(words, 16)));

    // e4m3's exponent is biased by 7 + 2 here, and BF16's by as much as the scale's.
    Words product = hn::Add(hn::ShiftLeft<4>(number), hn::ShiftLeft<7>(hn::Sub(scale, hn::Set(words, 9))));
    product = hn::IfThenZeroElse(hn::Eq(magnitude, hn::Zero(words)), product);
    product = hn::IfThenElse(hn::Eq(magnitude, hn::Set(words, 0x7F)), hn::Set(words, 0x7FC0), product);
    return hn::Or(product, hn::ShiftLeft<8>(hn::And(element, hn::Set(words, 0x80))));
  }
};

/// MXFP8 to BF16 with any scales. Those of most vectors are in range, even where those of a run are not.
struct ScaledByVector {
  ScaledInRange in_range;
  HWY_INLINE Words operator()(std::size_t index) const {
    const hn::Rebind<std::uint8_t, decltype(words)> narrow;
    const auto above_lowest =
        hn::Sub(hn::LoadU(narrow, in_range.scales + index), hn::Set(narrow, lowest_scale_in_range));
    const auto most = hn::Set(narrow, highest_scale_in_range - lowest_scale_in_range);
    const auto is_in_range = hn::Eq(hn::Min(above_lowest, most), above_lowest);
    if (HWY_LIKELY(hn::AllTrue(narrow, is_in_range))) return in_range(index);
    return Rounded<FromScaled, ToBF16>{{in_range.elements, in_range.scales}}(index);
  }
};

/// Writes count >= Lanes elements. The last vector may overlap the one before it.
template <class T, class Values>
HWY_INLINE void write_run(const Values values, std::int64_t signed_count, T* HWY_RESTRICT destination,
                          Store store) {
  const hn::ScalableTag<T> tag;
  constexpr std::size_t lanes = hn::MaxLanes(tag);
  constexpr std::size_t lanes_in_line = cache_line / sizeof(T);
  const std::size_t count = static_cast<std::size_t>(signed_count);
  const std::size_t address = reinterpret_cast<std::uintptr_t>(destination);
  std::size_t index = 0;
  if (store == Store::streaming && address % sizeof(T) == 0 && count >= 2 * lanes_in_line) {
    const std::size_t before_line = (cache_line - address % cache_line) % cache_line / sizeof(T);
    for (; index + lanes <= before_line; index += lanes) {
      hn::StoreU(values(index), tag, destination + index);
    }
    if (index < before_line) hn::StoreU(values(index), tag, destination + index);
    // Whole lines only: a line that is streamed in part is read, merged and written by the memory controller.
    for (index = before_line; index + lanes_in_line <= count; index += lanes_in_line) {
      for (std::size_t in_line = 0; in_line < lanes_in_line; in_line += lanes) {
        hn::Stream(values(index + in_line), tag, destination + index + in_line);
      }
    }
  }
  for (; index + lanes <= count; index += lanes) hn::StoreU(values(index), tag, destination + index);
  if (index < count) hn::StoreU(values(count - lanes), tag, destination + (count - lanes));
}

template <class From, class To>
void round_run(const void* source, std::int64_t count, void* destination, Store store) {
  write_run(Rounded<From, To>{{static_cast<decltype(From::source)>(source)}}, count,
            static_cast<std::uint16_t*>(destination), store);
}

template <class From>
void widen_run(const void* source, std::int64_t count, void* destination, Store store) {
  write_run(Widened<From>{{static_cast<decltype(From::source)>(source)}}, count,
            static_cast<std::uint32_t*>(destination), store);
}

template <class T>
void copy_run(const void* source, std::int64_t count, void* destination, Store store) {
  if (count < static_cast<std::int64_t>(hn::MaxLanes(hn::ScalableTag<T>()))) {
    std::memcpy(destination, source, static_cast<std::size_t>(count) * sizeof(T));
    return;
  }
  write_run(Copied<T>{static_cast<const T*>(source)}, count, static_cast<T*>(destination), store);
}

/// From memory several parts of a run at a time come faster than one: a processor fetches ahead in each of
/// them.
void copy_from_memory(const void* source, std::int64_t count, void* destination) {
  constexpr std::size_t parts = 4;
  constexpr std::size_t least_part = std::size_t{16} << 10;
  constexpr std::size_t lanes = hn::MaxLanes(bytes);
  const auto* from = static_cast<const std::uint8_t*>(source);
  auto* to = static_cast<std::uint8_t*>(destination);
  const std::size_t address = reinterpret_cast<std::uintptr_t>(destination);
  const std::size_t before_line = (cache_line - address % cache_line) % cache_line;
  const auto size = static_cast<std::size_t>(count);
  if (size < before_line + parts * least_part)
    return copy_run<std::uint8_t>(source, count, destination, Store::streaming);
  const std::size_t part = (size - before_line) / parts / cache_line * cache_line;
  for (std::size_t line = before_line; line < before_line + part; line += cache_line) {
    for (std::size_t at = line; at < line + parts * part; at += part) {
      for (std::size_t lane = at; lane < at + cache_line; lane += lanes)
        hn::Stream(hn::LoadU(bytes, from + lane), bytes, to + lane);
    }
  }
  const std::size_t copied = before_line + parts * part;
  std::memcpy(to, from, before_line);
  std::memcpy(to + copied, from + copied, size - copied);
}

void decode_to_bf16_in_range(const std::uint8_t* elements, const std::uint8_t* scales, std::int64_t count,
                             void* destination, Store store) {
  write_run(ScaledInRange{elements, scales}, count, static_cast<std::uint16_t*>(destination), store);
}

void decode_to_bf16(const std::uint8_t* elements, const std::uint8_t* scales, std::int64_t count,
                    void* destination, Store store) {
  write_run(ScaledByVector{{elements, scales}}, count, static_cast<std::uint16_t*>(destination), store);
}

template <class To>
void decode_and_round(const std::uint8_t* elements, const std::uint8_t* scales, std::int64_t count,
                      void* destination, Store store) {
  write_run(Rounded<FromScaled, To>{{elements, scales}}, count, static_cast<std::uint16_t*>(destination),
            store);
}

void decode_to_f32(const std::uint8_t* elements, const std::uint8_t* scales, std::int64_t count,
                   void* destination, Store store) {
  write_run(Widened<FromScaled>{{elements, scales}}, count, static_cast<std::uint32_t*>(destination), store);
}

#include "kernels/scale_simd-inl.h"
//
#include "kernels/rule_simd-inl.h"
//
#include "kernels/transpose_simd-inl.h"
//
#include "kernels/mxfp8_simd-inl.h"

void finish_streaming() { hwy::FlushStream(); }

constexpr InstructionSet kernels_of_target() {
  InstructionSet result;
  result.name = HWY_TARGET == HWY_AVX3_DL ? "avx3_dl"
                : HWY_TARGET == HWY_AVX3  ? "avx3"
                : HWY_TARGET == HWY_AVX2  ? "avx2"
                : HWY_TARGET == HWY_SSE4  ? "sse4"
                : HWY_TARGET == HWY_NEON  ? "neon"
                                          : "simd";
  result.shortest_run = word_count;
  result.decode_to_bf16 = decode_to_bf16;
  result.decode_to_bf16_in_range = decode_to_bf16_in_range;
  result.decode_to_f16 = decode_and_round<ToF16>;
  result.decode_to_f32 = decode_to_f32;
  result.encode_by_rule = encode_runs(std::make_index_sequence<code_rules.size()>());
  result.encode_mxfp8_blocks = encode_mxfp8_blocks;
  result.encode_mxfp8_upright = encode_mxfp8_upright;
  result.magnitudes = magnitude_runs<false>();
  result.magnitudes_without_nan = magnitude_runs<true>();
  result.scale_e4m3 = scale_runs_of<Fp8<E4M3> >();
  result.scale_e5m2 = scale_runs_of<Fp8<E5M2> >();
  result.scale_unpacked = scale_runs_of<Unpacked>();
  result.scale_f16 = scale_runs_of<Wide<FromF16> >();
  result.scale_bf16 = scale_runs_of<Wide<FromBF16> >();
  result.scale_f32 = scale_runs_of<Wide<FromF32> >();
  result.spread_bytes = spread_scales<std::uint8_t>;
  result.spread_floats = spread_scales<float>;
  result.unpack_nibbles = unpack_nibbles;
  result.e4m3_to_f32 = widen_run<Fp8<E4M3> >;
  result.bf16_to_f32 = widen_run<FromBF16>;
  result.bf16_to_f16 = round_run<FromBF16, ToF16>;
  result.f16_to_f32 = widen_run<FromF16>;
  result.f16_to_bf16 = round_run<FromF16, ToBF16>;
  result.f32_to_bf16 = round_run<FromF32, ToBF16>;
  result.f32_to_f16 = round_run<FromF32, ToF16>;
  result.copy_1_byte = copy_run<std::uint8_t>;
  result.copy_2_bytes = copy_run<std::uint16_t>;
  result.copy_4_bytes = copy_run<std::uint32_t>;
  result.copy_8_bytes = copy_run<std::uint64_t>;
  result.transpose_1_byte = transpose_panel<std::uint8_t>;
  result.transpose_2_bytes = transpose_panel<std::uint16_t>;
  result.transpose_4_bytes = transpose_panel<std::uint32_t>;
  result.transpose_8_bytes = transpose_panel<std::uint64_t>;
  result.copy_from_memory = copy_from_memory;
  result.finish_streaming = finish_streaming;
  return result;
}

const InstructionSet* kernels() {
  static constexpr InstructionSet set = kernels_of_target();
  return &set;
}

#if HWY_TARGET == HWY_AVX3
const InstructionSet* kernels_with_bf16() {
  static constexpr InstructionSet set = [] {
    InstructionSet result = kernels_of_target();
    result.name = "avx3_bf16";
    result.scale_e4m3.in_range.to_bf16 = scale_and_round<Fp8<E4M3>, false, ToBF16AtOnce>;
    result.scale_e5m2.in_range.to_bf16 = scale_and_round<Fp8<E5M2>, false, ToBF16AtOnce>;
    result.scale_unpacked.in_range.to_bf16 = scale_and_round<Unpacked, false, ToBF16AtOnce>;
    return result;
  }();
  return &set;
}
#endif

#endif

}  // namespace HWY_NAMESPACE
}  // namespace shardwright
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shardwright {

std::vector<const InstructionSet*> simd_instruction_sets() {
  // Not Highway's own dispatch table: that one has a state which all users of Highway in the process share.
  using Kernels = const InstructionSet* (*)();
  struct Target {
    std::int64_t bit;
    Kernels kernels;
  };
  const Target targets[] = {
#if HWY_ARCH_X86
    {HWY_AVX3_DL, HWY_CHOOSE_AVX3_DL(kernels)},
    {HWY_AVX3, HWY_CHOOSE_AVX3(kernels)},
    {HWY_AVX2, HWY_CHOOSE_AVX2(kernels)},
    {HWY_SSE4, HWY_CHOOSE_SSE4(kernels)},
#else
    {HWY_STATIC_TARGET, &HWY_STATIC_DISPATCH(kernels)},
#endif
  };
  std::vector<const InstructionSet*> sets;
#if HWY_TARGETS & HWY_AVX3
  if ((hwy::SupportedTargets() & HWY_AVX3) != 0 && __builtin_cpu_supports("avx512bf16")) {
    sets.push_back(N_AVX3::kernels_with_bf16());
  }
#endif
  for (const Target& target : targets) {
    if (target.kernels == nullptr || (hwy::SupportedTargets() & target.bit) == 0) continue;
    if (const InstructionSet* set = target.kernels()) sets.push_back(set);
  }
  return sets;
}

}  // namespace shardwright
#endif
