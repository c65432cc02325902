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

/// Squares of 8 x 8 lanes, one for each 16 bytes of a vector, change rows and columns.
HWY_INLINE void turn_squares(Words* lines) {
  Words turned[8];
  const auto turn = [](const Words* from, Words* to) HWY_ATTR {
    for (int pair = 0; pair < 4; ++pair) {
      to[2 * pair] = hn::InterleaveLower(words, from[pair], from[pair + 4]);
      to[2 * pair + 1] = hn::InterleaveUpper(words, from[pair], from[pair + 4]);
    }
  };
  turn(lines, turned);
  turn(turned, lines);
  turn(lines, turned);
  for (int line = 0; line < 8; ++line) lines[line] = turned[line];
}

/// Writes rows of 32 bytes, the first 16 of each from one vector and the others from another one, `distance`
/// bytes apart.
HWY_INLINE void store_rows(Words first, Words second, std::uint8_t* rows, std::int64_t distance) {
#if HWY_TARGET <= HWY_AVX2 && HWY_ARCH_X86
  const auto even = hn::BitCast(bytes, hn::OddEvenBlocks(hn::SwapAdjacentBlocks(second), first));
  const auto odd = hn::BitCast(bytes, hn::OddEvenBlocks(second, hn::SwapAdjacentBlocks(first)));
#if HWY_TARGET <= HWY_AVX3
  const hn::Half<decltype(bytes)> row;
  hn::StoreU(hn::LowerHalf(row, even), row, rows);
  hn::StoreU(hn::LowerHalf(row, odd), row, rows + distance);
  hn::StoreU(hn::UpperHalf(row, even), row, rows + 2 * distance);
  hn::StoreU(hn::UpperHalf(row, odd), row, rows + 3 * distance);
#else
  hn::StoreU(even, bytes, rows);
  hn::StoreU(odd, bytes, rows + distance);
#endif
#else
  (void)distance;
  hn::StoreU(hn::BitCast(bytes, first), bytes, rows);
  hn::StoreU(hn::BitCast(bytes, second), bytes, rows + 16);
#endif
}

/// Rows whose values, of one column, are a cache line of 64 bytes.
constexpr std::size_t rows_of_line = 32;

/// The codes of two columns, those of the left one in the lower halves of the lanes.
template <bool has_subnormals>
HWY_INLINE Words mxfp8_pairs(const std::uint16_t* left, Words less) {
  const Words lower = mxfp8_codes<has_subnormals>(hn::Load(words, left), less);
  return hn::Or(lower,
                hn::ShiftLeft<8>(mxfp8_codes<has_subnormals>(hn::Load(words, left + rows_of_line), less)));
}

/// Of a vector of rows, where their scales are in order: no infinities, and no scales with which these
/// kernels do not deal.
struct UprightScales {
  Words scale;
  bool has_subnormals;  ///< a code may be one
};

/// Of rows whose largest and least magnitudes these are. Returns false where they are not in order.
HWY_INLINE bool find_upright_scales(Words most, Words least, UprightScales& found) {
  // As smallest_scale_of_float(), of numbers whose last 16 bits are zeros.
  const Words carried = hn::ShiftRight<bf16_mantissa_bits>(hn::Add(most, hn::Set(words, 0x1F)));
  found.scale = hn::SaturatedSub(carried, hn::Set(words, 8));
  const Words too_small = hn::Set(words, least_mxfp8_scale - 1);
  const auto is_infinite = hn::Eq(hn::Max(most, hn::Set(words, bf16_infinity)), most);
  const auto is_small = hn::Eq(hn::Max(found.scale, too_small), too_small);
  const auto is_zero = hn::Eq(most, hn::Zero(words));
  if (!hn::AllFalse(words, hn::Or(is_infinite, hn::AndNot(is_zero, is_small)))) return false;
  // Zeros count as such: weights have hardly any.
  const Words least_normal = hn::Add(mxfp8_less(found.scale), hn::Set(words, 1 << bf16_mantissa_bits));
  found.has_subnormals = !hn::AllTrue(words, hn::Eq(hn::Max(least, least_normal), least));
  return true;
}

/// A vector is of so many rows. Codes of two columns share a lane, and lie down as such.
bool encode_mxfp8_upright(const void* source, std::int64_t column_stride, std::int64_t rows,
                          const void* ahead, std::uint8_t* codes, std::int64_t row_stride,
                          std::uint8_t* scales, std::int64_t scale_row_stride) {
  constexpr std::size_t vectors = rows_of_line / word_count;
  constexpr std::size_t pairs = mxfp8_block / 2;
  constexpr std::size_t fetched = mxfp8_block / vectors;  // lines, while a vector's codes are made
  constexpr std::int64_t square = 8;
  const hn::Rebind<std::uint8_t, decltype(words)> narrow;
  alignas(64) std::uint16_t values[mxfp8_block * rows_of_line];
  alignas(64) std::uint8_t of_rows[word_count];
  for (std::int64_t first = 0; first < rows; first += rows_of_line) {
    Words most[vectors];
    Words least[vectors];
    for (std::size_t v = 0; v < vectors; ++v) {
      most[v] = hn::Zero(words);
      least[v] = hn::Set(words, bf16_magnitude);
    }
    // Rows of large tensors are in the way of each other in a cache: a line is taken at once, and not looked
    // for there again.
    const auto* from = static_cast<const std::uint16_t*>(source) + first;
    for (std::size_t column = 0; column < mxfp8_block; ++column, from += column_stride) {
      for (std::size_t v = 0; v < vectors; ++v) {
        const Words bits = hn::LoadU(words, from + v * word_count);
        hn::Store(bits, words, values + column * rows_of_line + v * word_count);
        const Words magnitude = hn::And(bits, hn::Set(words, bf16_magnitude));
        most[v] = hn::Max(most[v], magnitude);
        least[v] = hn::Min(least[v], magnitude);
      }
    }
    const auto* behind = static_cast<const std::uint16_t*>(ahead) + first;
    for (std::size_t v = 0; v < vectors; ++v) {
      UprightScales found;
      if (!find_upright_scales(most[v], least[v], found)) return false;
      const std::int64_t at = first + static_cast<std::int64_t>(v * word_count);
      hn::StoreU(hn::TruncateTo(narrow, found.scale), narrow, of_rows);
      for (std::size_t row = 0; row < word_count; ++row)
        scales[(at + static_cast<std::int64_t>(row)) * scale_row_stride] = of_rows[row];
      const Words less = mxfp8_less(found.scale);
      Words lines[pairs];
      for (std::size_t pair = 0; pair < pairs; ++pair) {
        // Lines are fetched all the time, as few can be under way at once.
        for (std::size_t i = pair * fetched / pairs; i < (pair + 1) * fetched / pairs; ++i) {
          hwy::Prefetch(behind);
          behind += column_stride;
        }
        const std::uint16_t* left = values + 2 * pair * rows_of_line + v * word_count;
        lines[pair] = HWY_UNLIKELY(found.has_subnormals) ? mxfp8_pairs<true>(left, less)
                                                         : mxfp8_pairs<false>(left, less);
      }
      turn_squares(lines);
      turn_squares(lines + square);
      for (std::int64_t line = 0; line < square; ++line)
        store_rows(lines[line], lines[square + line], codes + (at + line) * row_stride, square * row_stride);
    }
  }
  return true;
}
