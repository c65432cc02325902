// The kernels of encode_by_rule.cpp: largest magnitudes, and codes of values and factors. A part of
// decode_simd.cpp, which includes it once for each instruction set, inside of that one's namespace. Floats
// are added, multiplied and divided here: the caller sees to it that the floating-point mode is the default
// one.

/// The values of a dtype as F32 numbers. What a NaN's payload becomes is not said.
template <DType dtype>
HWY_INLINE Floats values_at(const void* source, std::size_t index) {
  if constexpr (dtype == DType::F32) {
    return hn::LoadU(floats, static_cast<const float*>(source) + index);
  } else {
    const auto half = hn::LoadU(HalfWords(), static_cast<const std::uint16_t*>(source) + index);
    if constexpr (dtype == DType::F16) return f32_of_f16_codes(half);
    return hn::BitCast(floats, hn::ShiftLeft<16>(hn::PromoteTo(integers, half)));
  }
}

// Codes, in 32-bit lanes. All of them round by an addition: the last bit of a power of two that is large
// enough weighs as much as the last bit of the code of a number near it.

/// The bits of the power of two that a magnitude, given by its bits, is from on; of `least` below that.
HWY_INLINE Integers power_below(Integers magnitude, std::int32_t least) {
  return hn::And(hn::Max(magnitude, all(least)), all(0x7F800000));
}

/// A magnitude, given by its bits, in units of 2^(24 - bits) times its power, to nearest even.
template <int bits>
HWY_INLINE Integers in_last_bits(Integers magnitude, Integers power) {
  const Integers large = hn::Add(power, all(bits << 23));
  const Floats sum = hn::Add(hn::BitCast(floats, magnitude), hn::BitCast(floats, large));
  return hn::Sub(hn::BitCast(integers, sum), large);
}

HWY_INLINE Integers e4m3_codes(Floats numbers) {
  const Integers bits = hn::BitCast(integers, numbers);
  const Integers magnitude = hn::And(bits, all(0x7FFFFFFF));
  const Integers sign = hn::And(shift_right_unsigned<24>(bits), all(0x80));
  const Integers most = hn::Min(magnitude, all(0x43E00000));  // 448
  const Integers power = power_below(most, 0x3C800000);       // 2^-6, below which e4m3 is subnormal
  const Integers eighths = in_last_bits<20>(most, power);     // 8 .. 16 of a normal number
  const Integers codes = hn::Add(eighths, hn::Sub(hn::ShiftRight<20>(power), all(0x3C8)));
  return hn::Or(sign, hn::IfThenElse(hn::Gt(magnitude, all(0x7F800000)), all(0x7F), codes));
}

/// Bounds between codes have zeros in their last 21 bits, so that the last bit may say on which side of a
/// bound a magnitude lies that is not to be halfway between two codes.
template <Ties ties>
HWY_INLINE Integers without_ties(Integers magnitude) {
  if constexpr (ties == Ties::up) return hn::Or(magnitude, all(1));
  if constexpr (ties == Ties::down) return hn::Or(hn::Max(hn::Sub(magnitude, all(1)), all(0)), all(1));
  return magnitude;
}

template <Ties ties, Sign sign>
HWY_INLINE Integers e2m1_codes(Floats numbers) {
  const Integers bits = hn::BitCast(integers, numbers);
  const Integers magnitude = hn::And(bits, all(0x7FFFFFFF));
  const Integers most = hn::Min(without_ties<ties>(magnitude), all(0x40C00000));  // 6
  const Integers power = power_below(most, 0x3F800000);                           // 1
  const Integers halves = in_last_bits<22>(most, power);                          // 2 .. 4 of a normal number
  const Integers codes = hn::Add(halves, hn::Sub(hn::ShiftRight<22>(power), all(0xFE)));
  const Integers of_magnitude = hn::IfThenZeroElse(hn::Gt(magnitude, all(0x7F800000)), codes);
  const Integers eight = all(8);
  if constexpr (sign == Sign::as_it_is) {
    return hn::Or(of_magnitude, hn::And(shift_right_unsigned<28>(bits), eight));
  } else if constexpr (sign == Sign::below_zero) {
    const auto is_below = hn::RebindMask(integers, hn::Lt(numbers, hn::Zero(floats)));
    return hn::Or(of_magnitude, hn::IfThenElseZero(is_below, eight));
  } else {
    const auto is_above = hn::RebindMask(integers, hn::Gt(numbers, hn::Zero(floats)));
    return hn::Or(of_magnitude, hn::IfThenZeroElse(is_above, eight));
  }
}

template <bool is_rounded_to_bf16_first>
HWY_INLINE Integers int4_codes(Floats numbers) {
  if constexpr (is_rounded_to_bf16_first) {
    const Integers rounded = ToBF16::round(hn::BitCast(integers, numbers));
    const Floats bf16 = hn::BitCast(floats, hn::AndNot(all(0xFFFF), rounded));
    // A carry out of a NaN's payload would make a number of it.
    numbers = hn::IfThenElse(hn::IsNaN(numbers), numbers, bf16);
  }
  numbers = hn::IfThenZeroElse(hn::IsNaN(numbers), numbers);
  numbers = hn::Min(hn::Max(numbers, hn::Set(floats, -8.0F)), hn::Set(floats, 7.0F));
  const Floats sum = hn::Add(numbers, hn::Set(floats, 0x1.8p23F));
  return hn::Sub(hn::BitCast(integers, sum), all(0x4B400000 - 8));  // 1.5 * 2^23
}

template <CodeRule rule>
HWY_INLINE Integers codes_of(Floats values, Floats factors) {
  const Floats numbers =
      rule.change == Change::multiply ? hn::Mul(values, factors) : hn::Div(values, factors);
  if constexpr (rule.element == DType::F8_E4M3) return e4m3_codes(numbers);
  if constexpr (rule.element == DType::F4) return e2m1_codes<rule.ties, rule.sign>(numbers);
  if constexpr (rule.element == DType::I4) return int4_codes<rule.is_rounded_to_bf16_first>(numbers);
}

/// Writes the codes of as many values as there are lanes.
template <CodeRule rule, DType dtype>
HWY_INLINE void encode_at(const void* source, const float* factors, std::size_t index, std::uint8_t* to) {
  const Integers codes = codes_of<rule>(values_at<dtype>(source, index), hn::LoadU(floats, factors + index));
  if constexpr (rule.element == DType::F8_E4M3) {
    const hn::Rebind<std::uint8_t, decltype(integers)> narrow;
    hn::StoreU(hn::DemoteTo(narrow, codes), narrow, to + index);
  } else {
    const hn::RepartitionToWide<decltype(unsigned_integers)> pairs;
    const hn::Rebind<std::uint8_t, decltype(pairs)> narrow;
    const auto wide = hn::BitCast(pairs, codes);
    hn::StoreU(hn::TruncateTo(narrow, hn::Or(wide, hn::ShiftRight<28>(wide))), narrow, to + index / 2);
  }
}

/// The last vector may overlap the one before it.
template <CodeRule rule, DType dtype>
void encode_run(const void* source, const float* factors, std::int64_t signed_count, std::uint8_t* codes) {
  const auto count = static_cast<std::size_t>(signed_count);
  std::size_t index = 0;
  for (; index + integer_count <= count; index += integer_count) {
    encode_at<rule, dtype>(source, factors, index, codes);
  }
  if (index < count) encode_at<rule, dtype>(source, factors, count - integer_count, codes);
}

template <std::size_t... index>
constexpr auto encode_runs(std::index_sequence<index...> /*all*/) {
  return std::array<EncodeRuns, sizeof...(index)>{
      {{encode_run<code_rules[index], DType::BF16>, encode_run<code_rules[index], DType::F16>,
        encode_run<code_rules[index], DType::F32>}...}};
}

// Magnitudes, as the bits of the values' own dtype, which compare as the numbers do; those of NaN are the
// largest.

template <class Lanes>
HWY_INLINE hn::TFromD<Lanes> largest_lane(Lanes lanes, hn::Vec<Lanes> vector) {
  if constexpr (hn::MaxLanes(lanes) * sizeof(hn::TFromD<Lanes>) > 16) {
    const hn::Half<Lanes> half;
    return largest_lane(half, hn::Max(hn::LowerHalf(half, vector), hn::UpperHalf(half, vector)));
  } else {
    return hn::GetLane(hn::MaxOfLanes(lanes, vector));
  }
}

/// A dtype as bits.
template <FloatFormat format>
struct Magnitudes {
  using Bits = std::conditional_t<format.mantissa_bits == 23, std::uint32_t, std::uint16_t>;
  static constexpr auto all_bits = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);
  static constexpr auto infinity =
      static_cast<Bits>(((1U << format.exponent_bits) - 1) << format.mantissa_bits);
};

/// The magnitudes of as many values as there are lanes; zero for a NaN that is left out.
template <FloatFormat format, bool leaves_out_nan, class Lanes>
HWY_INLINE hn::Vec<Lanes> magnitudes_at(Lanes lanes, const void* source, std::size_t index) {
  using Of = Magnitudes<format>;
  const auto* values = static_cast<const typename Of::Bits*>(source);
  const auto magnitudes = hn::And(hn::LoadU(lanes, values + index), hn::Set(lanes, Of::all_bits));
  if constexpr (!leaves_out_nan) return magnitudes;
  const hn::RebindToSigned<Lanes> comparable;
  const auto infinity = hn::BitCast(comparable, hn::Set(lanes, Of::infinity));
  const auto is_nan = hn::Gt(hn::BitCast(comparable, magnitudes), infinity);
  return hn::IfThenZeroElse(hn::RebindMask(lanes, is_nan), magnitudes);
}

template <FloatFormat format, bool leaves_out_nan>
HWY_INLINE typename Magnitudes<format>::Bits magnitude_at(const void* source, std::size_t index) {
  using Of = Magnitudes<format>;
  typename Of::Bits bits;
  std::memcpy(&bits, static_cast<const std::byte*>(source) + index * sizeof bits, sizeof bits);
  bits &= Of::all_bits;
  return leaves_out_nan && bits > Of::infinity ? 0 : bits;
}

template <FloatFormat format, bool leaves_out_nan>
HWY_INLINE typename Magnitudes<format>::Bits largest_of(const void* source, std::size_t begin,
                                                        std::size_t end) {
  using Bits = typename Magnitudes<format>::Bits;
  const hn::CappedTag<Bits, 16> lanes;  // the least block
  constexpr std::size_t step = hn::MaxLanes(lanes);
  if (end - begin < step) {
    Bits largest = 0;
    for (std::size_t i = begin; i < end; ++i) {
      largest = std::max(largest, magnitude_at<format, leaves_out_nan>(source, i));
    }
    return largest;
  }
  auto largest = magnitudes_at<format, leaves_out_nan>(lanes, source, end - step);
  for (std::size_t i = begin; i + step < end; i += step) {
    largest = hn::Max(largest, magnitudes_at<format, leaves_out_nan>(lanes, source, i));
  }
  return largest_lane(lanes, largest);
}

template <FloatFormat format, bool leaves_out_nan>
void find_magnitudes_of_pieces(const void* source, std::int64_t first_length, std::int64_t length,
                               std::int64_t total, float* magnitudes) {
  for (std::int64_t begin = 0, end = std::min(first_length, total); begin < total; ++magnitudes) {
    const auto largest = largest_of<format, leaves_out_nan>(source, static_cast<std::size_t>(begin),
                                                            static_cast<std::size_t>(end));
    // A NaN is the one with an otherwise empty payload.
    const std::uint32_t wide =
        largest > Magnitudes<format>::infinity ? 0x7FC00000 : float_bits<format>(largest);
    *magnitudes = float_of_bits(std::max(bits_of_float(*magnitudes), wide));
    begin = end;
    end = std::min(end + length, total);
  }
}

template <bool leaves_out_nan>
constexpr MagnitudeRuns magnitude_runs() {
  return {find_magnitudes_of_pieces<bfloat16, leaves_out_nan>,
          find_magnitudes_of_pieces<float16, leaves_out_nan>,
          find_magnitudes_of_pieces<float32, leaves_out_nan>};
}
