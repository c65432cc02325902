// The kernels of encode.cpp over whole blocks. A part of decode_simd.cpp, which includes it once for each
// instruction set, inside of that one's namespace. Integer arithmetic throughout.

constexpr std::size_t mxfp8_block = 32;
constexpr std::uint16_t bf16_magnitude = 0x7FFF;
constexpr std::uint16_t bf16_infinity = 0x7F80;
constexpr int bf16_mantissa_bits = 7;
constexpr int e4m3_bias = 7;

/// The least scale, above that of a block of zeros, with which these kernels deal. From here on a number
/// whose exponent field is 0 is less than half of the least code, whatever its mantissa.
constexpr std::uint16_t least_mxfp8_scale = 11;

/// What is taken from a number's bits so that the exponent of its code is left, from the scale.
HWY_INLINE Words mxfp8_less(Words scale) {
  return hn::ShiftLeft<bf16_mantissa_bits>(hn::SaturatedSub(scale, hn::Set(words, e4m3_bias)));
}

/// The lanes whose codes are subnormal and whose numbers are no zeros.
HWY_INLINE auto are_subnormal_codes(Words magnitude, Words less) {
  const hn::RebindToSigned<decltype(words)> comparable;
  const auto least = hn::BitCast(comparable, hn::Add(less, hn::Set(words, 1 << bf16_mantissa_bits)));
  const auto number = hn::BitCast(comparable, magnitude);
  return hn::RebindMask(words, hn::And(hn::Gt(number, hn::Zero(comparable)), hn::Lt(number, least)));
}

/// To nearest even, without the last `shift` bits (1 .. 15).
HWY_INLINE Words rounded_off(Words value, Words shift) {
  const Words one = hn::Set(words, 1);
  const Words is_odd = hn::And(hn::Shr(value, shift), one);
  const Words below_half = hn::Sub(hn::Shl(one, hn::Sub(shift, one)), one);
  return hn::Shr(hn::Add(hn::Add(value, below_half), is_odd), shift);
}

/// The codes of BF16 numbers, in lanes of 16 bits. A code that is no subnormal has the last three bits of the
/// exponent of its number, biased anew, and the first three of the mantissa: the number's bits, less the
/// scale's exponent, rounded to four bits fewer.
template <bool has_subnormals>
HWY_INLINE Words mxfp8_codes(Words bits, Words less) {
  const Words magnitude = hn::And(bits, hn::Set(words, bf16_magnitude));
  const Words biased = hn::SaturatedSub(magnitude, less);
  const Words is_odd = hn::And(hn::ShiftRight<4>(biased), hn::Set(words, 1));
  Words codes = hn::ShiftRight<4>(hn::Add(hn::Add(biased, hn::Set(words, 7)), is_odd));
  if constexpr (has_subnormals) {
    // The bit before the mantissa is written out, and moves right with the exponent.
    const Words significand = hn::Or(hn::And(magnitude, hn::Set(words, 0x7F)), hn::Set(words, 0x80));
    const Words below =
        hn::Sub(hn::ShiftRight<bf16_mantissa_bits>(less), hn::ShiftRight<bf16_mantissa_bits>(magnitude));
    const Words shift = hn::Min(hn::Add(below, hn::Set(words, 5)), hn::Set(words, 15));
    codes = hn::IfThenElse(are_subnormal_codes(magnitude, less), rounded_off(significand, shift), codes);
  }
  return hn::Or(codes, hn::And(hn::ShiftRight<8>(bits), hn::Set(words, 0x80)));
}

std::int64_t encode_mxfp8_blocks(const void* source, std::int64_t blocks, std::uint8_t* codes,
                                 std::uint8_t* scales) {
  constexpr std::size_t vectors = mxfp8_block / word_count;
  // A block is a cache line, and has to be there in full before anything of it is known.
  constexpr std::size_t blocks_ahead = 40;
  const hn::Rebind<std::uint8_t, decltype(words)> narrow;
  const auto* values = static_cast<const std::uint16_t*>(source);
  for (std::int64_t block = 0; block < blocks; ++block, values += mxfp8_block, codes += mxfp8_block) {
    hwy::Prefetch(values + blocks_ahead * mxfp8_block);
    const auto bits = [&](std::size_t v) HWY_ATTR { return hn::LoadU(words, values + v * word_count); };
    const auto magnitudes = [&](std::size_t v)
                                HWY_ATTR { return hn::And(bits(v), hn::Set(words, bf16_magnitude)); };
    Words most = magnitudes(0);
    for (std::size_t v = 1; v < vectors; ++v) most = hn::Max(most, magnitudes(v));
    const std::uint32_t largest = largest_lane(words, most);
    const std::uint8_t scale = smallest_scale_of_float(largest << 16);
    if (largest >= bf16_infinity || (largest != 0 && scale < least_mxfp8_scale)) return block;
    const Words less = mxfp8_less(hn::Set(words, scale));
    auto any = are_subnormal_codes(magnitudes(0), less);
    for (std::size_t v = 1; v < vectors; ++v) any = hn::Or(any, are_subnormal_codes(magnitudes(v), less));
    scales[block] = scale;
    const auto write = [&](std::size_t v, Words of_vector) HWY_ATTR {
      hn::StoreU(hn::TruncateTo(narrow, of_vector), narrow, codes + v * word_count);
    };
    if (HWY_LIKELY(hn::AllFalse(words, any))) {
      for (std::size_t v = 0; v < vectors; ++v) write(v, mxfp8_codes<false>(bits(v), less));
    } else {
      for (std::size_t v = 0; v < vectors; ++v) write(v, mxfp8_codes<true>(bits(v), less));
    }
  }
  return blocks;
}

/// The codes are found as they stand, half as wide as the values, and lie down then.
bool encode_mxfp8_upright(const void* source, std::int64_t column_stride, std::int64_t signed_rows,
                          std::uint8_t* codes, std::int64_t row_stride, std::uint8_t* scales,
                          std::int64_t scale_row_stride) {
  constexpr std::size_t pitch =
      static_cast<std::size_t>(most_upright_rows) + cache_line / sizeof(std::uint16_t);
  const auto rows = static_cast<std::size_t>(signed_rows);
  const hn::Rebind<std::uint8_t, decltype(words)> narrow;
  alignas(64) std::uint16_t panel[mxfp8_block * pitch];
  alignas(64) std::uint16_t largest[most_upright_rows];
  alignas(64) std::uint16_t least[most_upright_rows];  // above zero, less one
  // Each value is fetched once, in runs as long as they get: the rows of large tensors are in the way of each
  // other in a cache.
  for (std::size_t column = 0; column < mxfp8_block; ++column) {
    const auto* from =
        static_cast<const std::uint16_t*>(source) + static_cast<std::int64_t>(column) * column_stride;
    std::uint16_t* to = panel + column * pitch;
    for (std::size_t at = 0; at < rows; at += word_count) {
      const Words bits = hn::LoadU(words, from + at);
      hn::Store(bits, words, to + at);
      const Words magnitude = hn::And(bits, hn::Set(words, bf16_magnitude));
      const Words before = column == 0 ? hn::Zero(words) : hn::Load(words, largest + at);
      hn::Store(hn::Max(before, magnitude), words, largest + at);
      const Words less_one = hn::Sub(magnitude, hn::Set(words, 1));
      hn::Store(column == 0 ? less_one : hn::Min(less_one, hn::Load(words, least + at)), words, least + at);
    }
  }
  const auto* behind = static_cast<const std::uint16_t*>(source) + mxfp8_block * column_stride;
  auto* narrow_panel = reinterpret_cast<std::uint8_t*>(panel);
  for (std::size_t at = 0; at < rows; at += word_count) {
    const Words most = hn::Load(words, largest + at);
    // As smallest_scale_of_float(), of numbers whose last 16 bits are zeros.
    const Words carried = hn::ShiftRight<bf16_mantissa_bits>(hn::Add(most, hn::Set(words, 0x1F)));
    const Words scale = hn::SaturatedSub(carried, hn::Set(words, 8));
    const auto is_infinite = hn::Eq(hn::Max(most, hn::Set(words, bf16_infinity)), most);
    const auto is_small =
        hn::Eq(hn::Max(scale, hn::Set(words, least_mxfp8_scale - 1)), hn::Set(words, least_mxfp8_scale - 1));
    const auto is_zero = hn::Eq(most, hn::Zero(words));
    if (!hn::AllFalse(words, hn::Or(is_infinite, hn::AndNot(is_zero, is_small)))) return false;
    alignas(64) std::uint8_t of_rows[word_count];
    hn::StoreU(hn::TruncateTo(narrow, scale), narrow, of_rows);
    for (std::size_t row = 0; row < word_count; ++row)
      scales[static_cast<std::int64_t>(at + row) * scale_row_stride] = of_rows[row];
    const Words less = mxfp8_less(scale);
    const auto bits = [&](std::size_t column)
                          HWY_ATTR { return hn::Load(words, panel + column * pitch + at); };
    const auto any = are_subnormal_codes(hn::Add(hn::Load(words, least + at), hn::Set(words, 1)), less);
    // Over the values of the vectors before, which nobody reads any more. Meanwhile the block behind comes.
    const auto write = [&](std::size_t column, Words of_vector) HWY_ATTR {
      hwy::Prefetch(behind + static_cast<std::int64_t>(column) * column_stride + at);
      hn::StoreU(hn::TruncateTo(narrow, of_vector), narrow, narrow_panel + column * pitch * 2 + at);
    };
    if (HWY_LIKELY(hn::AllFalse(words, any))) {
      for (std::size_t column = 0; column < mxfp8_block; ++column)
        write(column, mxfp8_codes<false>(bits(column), less));
    } else {
      for (std::size_t column = 0; column < mxfp8_block; ++column)
        write(column, mxfp8_codes<true>(bits(column), less));
    }
  }
  transpose_panel<std::uint8_t>(narrow_panel, pitch * 2, mxfp8_block, signed_rows, codes, row_stride);
  return true;
}
