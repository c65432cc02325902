// The encoder's kernels over whole blocks. A part of decode_simd.cpp, which includes it once for each
// instruction set, inside of that one's namespace.

constexpr std::size_t block_columns = 32;
static_assert(block_columns % integer_count == 0);

/// Of the magnitudes of a block the largest, NaNs left out. Bits of F32 numbers compare as the numbers do.
template <class From>
HWY_INLINE std::int32_t largest_of_block(const From from, std::size_t begin) {
  Integers largest = all(0);
  for (std::size_t lane = 0; lane < block_columns; lane += integer_count) {
    const Integers magnitude = hn::And(from(begin + lane), all(0x7FFFFFFF));
    const auto is_nan = hn::Gt(magnitude, all(0x7F800000));
    largest = hn::Max(largest, hn::IfThenZeroElse(is_nan, magnitude));
  }
  return hn::GetLane(hn::MaxOfLanes(integers, largest));
}

template <class From>
void find_scales_of_blocks(const void* source, std::int64_t blocks, std::uint8_t* scales) {
  const From from{static_cast<decltype(From::source)>(source)};
  for (std::int64_t block = 0; block < blocks; ++block) {
    // A mantissa beyond that of 1.75 carries into the exponent; 448 is 1.75 * 2^8.
    const std::int32_t largest = largest_of_block(from, static_cast<std::size_t>(block) * block_columns);
    const auto carried = (static_cast<std::uint32_t>(largest) + 0x1FFFFF) >> 23;
    scales[block] = static_cast<std::uint8_t>(carried > 8 ? carried - 8 : 0);
  }
}

/// The e4m3 codes, in 32-bit lanes, of F32 numbers over a scale. Integers only, apart from an exact
/// conversion.
HWY_INLINE Integers e4m3_of(Integers wide, std::int32_t scale) {
  const Integers magnitude = hn::And(wide, all(0x7FFFFFFF));
  const Integers sign = hn::And(shift_right_unsigned<24>(wide), all(0x80));
  // F32's own subnormals m * 2^-149, written as the normal numbers that they are.
  const auto is_subnormal = hn::Lt(magnitude, all(0x800000));
  const Integers normal =
      hn::IfThenElse(is_subnormal, hn::BitCast(integers, hn::ConvertTo(floats, magnitude)), magnitude);
  const Integers exponent = hn::Sub(hn::ShiftRight<23>(normal), hn::IfThenElseZero(is_subnormal, all(149)));
  const Integers significand = hn::Or(hn::And(normal, all(0x7FFFFF)), all(0x800000));

  // The exponent's field in e4m3, if it were wide enough; at 1 it stops falling, and bits are dropped
  // instead. With 26 dropped, less than half a unit is left.
  const Integers field = hn::Add(exponent, all(7 - scale));
  const Integers kept_field = hn::Max(field, all(1));
  const Integers dropped = hn::Min(hn::Add(hn::Sub(kept_field, field), all(20)), all(26));
  const Integers below_half = hn::Sub(hn::Shl(all(1), hn::Sub(dropped, all(1))), all(1));
  const Integers odd = hn::And(shift_right_unsigned(significand, dropped), all(1));
  const Integers kept = shift_right_unsigned(hn::Add(hn::Add(significand, below_half), odd), dropped);
  Integers code = hn::Min(hn::Add(kept, hn::ShiftLeft<3>(hn::Sub(kept_field, all(1)))), all(0x7E));
  code = hn::IfThenZeroElse(hn::Eq(magnitude, all(0)), code);
  code = hn::IfThenElse(hn::Eq(magnitude, all(0x7F800000)), all(0x7E), code);
  code = hn::IfThenElse(hn::Gt(magnitude, all(0x7F800000)), all(0x7F), code);
  return hn::Or(sign, code);
}

template <class From>
void encode_blocks(const void* source, const std::uint8_t* scales, std::int64_t blocks,
                   std::uint8_t* elements) {
  const From from{static_cast<decltype(From::source)>(source)};
  const hn::Rebind<std::uint8_t, decltype(integers)> narrow;
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::size_t begin = static_cast<std::size_t>(block) * block_columns;
    for (std::size_t lane = begin; lane < begin + block_columns; lane += integer_count) {
      hn::StoreU(hn::DemoteTo(narrow, e4m3_of(from(lane), scales[block])), narrow, elements + lane);
    }
  }
}
