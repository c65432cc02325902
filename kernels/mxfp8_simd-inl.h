// The kernel of encode.cpp over whole blocks. A part of decode_simd.cpp, which includes it once for each
// instruction set, inside of that one's namespace. Integer arithmetic throughout.

/// A code that is no subnormal has the last three bits of the exponent of its number, biased anew, and the
/// first three of the mantissa: the number's bits, less the scale's exponent, rounded to four bits fewer.
std::int64_t encode_mxfp8_blocks(const void* source, std::int64_t blocks, std::uint8_t* codes,
                                 std::uint8_t* scales) {
  constexpr std::size_t length = 32;
  constexpr std::size_t vectors = length / word_count;
  constexpr std::uint32_t infinity = 0x7F80;
  constexpr int mantissa_bits = 7;
  constexpr int bias = 7;  // of e4m3
  // A block is a cache line, and has to be there in full before anything of it is known.
  constexpr std::size_t blocks_ahead = 40;
  const hn::RebindToSigned<decltype(words)> comparable;
  const hn::Rebind<std::uint8_t, decltype(words)> narrow;
  const auto* values = static_cast<const std::uint16_t*>(source);
  for (std::int64_t block = 0; block < blocks; ++block, values += length, codes += length) {
    hwy::Prefetch(values + blocks_ahead * length);
    const auto magnitudes = [&](std::size_t v) HWY_ATTR {
      return hn::And(hn::LoadU(words, values + v * word_count), hn::Set(words, 0x7FFF));
    };
    Words most = magnitudes(0);
    for (std::size_t v = 1; v < vectors; ++v) most = hn::Max(most, magnitudes(v));
    const std::uint32_t largest = largest_lane(words, most);
    const std::uint8_t scale = smallest_scale_of_float(largest << 16);
    if (largest >= infinity || scale < bias) return block;
    const auto less = static_cast<std::uint16_t>((scale - bias) << mantissa_bits);
    const auto least = hn::Set(comparable, static_cast<std::int16_t>(less + (1 << mantissa_bits)));
    const auto are_subnormal = [&](std::size_t v) HWY_ATTR {
      const auto magnitude = hn::BitCast(comparable, magnitudes(v));
      return hn::And(hn::Gt(magnitude, hn::Zero(comparable)), hn::Lt(magnitude, least));
    };
    auto any = are_subnormal(0);
    for (std::size_t v = 1; v < vectors; ++v) any = hn::Or(any, are_subnormal(v));
    if (!hn::AllFalse(comparable, any)) return block;
    scales[block] = scale;
    for (std::size_t v = 0; v < vectors; ++v) {
      const Words bits = hn::LoadU(words, values + v * word_count);
      const Words biased = hn::SaturatedSub(magnitudes(v), hn::Set(words, less));
      const Words is_odd = hn::And(hn::ShiftRight<4>(biased), hn::Set(words, 1));
      const Words rounded = hn::ShiftRight<4>(hn::Add(hn::Add(biased, hn::Set(words, 7)), is_odd));
      const Words sign = hn::And(hn::ShiftRight<8>(bits), hn::Set(words, 0x80));
      hn::StoreU(hn::TruncateTo(narrow, hn::Or(rounded, sign)), narrow, codes + v * word_count);
    }
  }
  return blocks;
}
