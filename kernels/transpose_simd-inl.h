// The transposition of panels. A part of decode_simd.cpp, which includes it once for each instruction set,
// inside of that one's namespace.

/// Writes block k of 16 bytes to destination + k * distance.
template <class T>
HWY_INLINE void store_blocks(hn::Vec<hn::ScalableTag<T> > value, T* destination, std::int64_t distance) {
  const hn::Full128<T> block;
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  const hn::Half<hn::ScalableTag<T> > half;
  const auto lower = hn::LowerHalf(half, value);
  const auto upper = hn::UpperHalf(half, value);
  hn::StoreU(hn::LowerHalf(block, lower), block, destination);
  hn::StoreU(hn::UpperHalf(block, lower), block, destination + distance);
  hn::StoreU(hn::LowerHalf(block, upper), block, destination + 2 * distance);
  hn::StoreU(hn::UpperHalf(block, upper), block, destination + 3 * distance);
#elif HWY_TARGET == HWY_AVX2
  hn::StoreU(hn::LowerHalf(block, value), block, destination);
  hn::StoreU(hn::UpperHalf(block, value), block, destination + distance);
#else
  (void)distance;
  hn::StoreU(value, block, destination);
#endif
}

/// Transposes squares of 16 bytes by as many rows as fit in 16 bytes, as many squares side by side as a
/// vector has blocks, from lines[i] to to[i]. With 2^n rows, each round of interleaving rows i and i +
/// 2^(n-1) turns the bits of the address (row, column) by one place; after n rounds row and column have
/// changed places.
template <class T>
HWY_INLINE void transpose_squares(const T* const* lines, T* to, std::int64_t pitch) {
  const hn::ScalableTag<T> tag;
  constexpr int square = 16 / sizeof(T);
  hn::Vec<decltype(tag)> even[square];
  hn::Vec<decltype(tag)> odd[square];
  for (int line = 0; line < square; ++line) even[line] = hn::LoadU(tag, lines[line]);
  const auto turn = [&tag](const auto* from, auto* turned) HWY_ATTR {
    for (int pair = 0; pair < square / 2; ++pair) {
      turned[2 * pair] = hn::InterleaveLower(tag, from[pair], from[pair + square / 2]);
      turned[2 * pair + 1] = hn::InterleaveUpper(tag, from[pair], from[pair + square / 2]);
    }
  };
  turn(even, odd);
  if constexpr (square == 4) turn(odd, even);
  if constexpr (square == 8) turn(odd, even), turn(even, odd);
  if constexpr (square == 16) turn(odd, even), turn(even, odd), turn(odd, even);
  const auto* const turned = square == 2 || square == 8 ? odd : even;
  for (int line = 0; line < square; ++line) store_blocks<T>(turned[line], to + line * pitch, square * pitch);
}

template <class T>
void transpose_panel(const void* source, std::int64_t row_stride, std::int64_t rows, std::int64_t columns,
                     void* panel, std::int64_t pitch) {
  constexpr std::int64_t lanes = hn::MaxLanes(hn::ScalableTag<T>());
  constexpr std::int64_t square = 16 / sizeof(T);
  const T* from = static_cast<const T*>(source);
  T* to = static_cast<T*>(panel);
  for (std::int64_t row = 0; row < rows; row += square) {
    const T* lines[square];
    for (std::int64_t line = 0; line < square; ++line) {
      // Below the last row its values are repeated; nobody uses them.
      lines[line] = from + std::min(row + line, rows - 1) * row_stride;
      hwy::Prefetch(lines[line] + cache_line / sizeof(T));  // of what is transposed after it
    }
    std::int64_t column = 0;
    for (; column + lanes <= columns; column += lanes) {
      transpose_squares<T>(lines, to + column * pitch + row, pitch);
      for (const T*& line : lines) line += lanes;
    }
    if (column < columns) {
      // Right of the last column there may be nothing to read.
      T padded[square][lanes] = {};
      for (std::int64_t line = 0; line < square; ++line) {
        std::memcpy(padded[line], lines[line], static_cast<std::size_t>(columns - column) * sizeof(T));
        lines[line] = padded[line];
      }
      transpose_squares<T>(lines, to + column * pitch + row, pitch);
    }
  }
}
