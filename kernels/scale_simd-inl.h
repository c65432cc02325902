// Elements times F32 numbers, and four-bit elements apart. A part of decode_simd.cpp, which includes it once
// for each instruction set, inside of that one's namespace.

// Elements that are scaled by F32 numbers, as F32 numbers. Each NaN becomes the one with an otherwise empty
// payload.

HWY_INLINE Floats f32_of_f16_codes(hn::Vec<HalfWords> half) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
  return hn::PromoteTo(floats, hn::BitCast(hn::Rebind<hwy::float16_t, decltype(floats)>(), half));
#else  // elsewhere Highway may do it in software that knows neither infinities nor NaN
  return hn::BitCast(floats, f32_of_f16(hn::PromoteTo(integers, half)));
#endif
}

// FP8 codes, in lanes of 16 bits, to F16 numbers that times `factor` are their values.

struct E4M3 {
  static constexpr float factor = 256.0F;  // e4m3's exponent is biased by 7, F16's by 15
  template <class Lanes, class Codes = hn::Vec<Lanes> >
  static HWY_INLINE Codes to_f16(Lanes lanes, Codes codes) {
    const Codes magnitude = hn::And(codes, hn::Set(lanes, 0x7F));
    const Codes sign = hn::ShiftLeft<8>(hn::And(codes, hn::Set(lanes, 0x80)));
    const auto is_nan = hn::Eq(magnitude, hn::Set(lanes, 0x7F));
    return hn::Or(sign, hn::IfThenElse(is_nan, hn::Set(lanes, 0x7E00), hn::ShiftLeft<7>(magnitude)));
  }
};

struct E5M2 {
  static constexpr float factor = 1.0F;
  template <class Lanes, class Codes = hn::Vec<Lanes> >
  static HWY_INLINE Codes to_f16(Lanes lanes, Codes codes) {
    const Codes magnitude = hn::And(codes, hn::Set(lanes, 0x7F));
    const Codes sign = hn::ShiftLeft<8>(hn::And(codes, hn::Set(lanes, 0x80)));
    const hn::RebindToSigned<Lanes> signed_lanes;
    const auto is_nan =
        hn::RebindMask(lanes, hn::Gt(hn::BitCast(signed_lanes, magnitude), hn::Set(signed_lanes, 0x7C)));
    return hn::Or(sign, hn::IfThenElse(is_nan, hn::Set(lanes, 0x7E00), hn::ShiftLeft<8>(magnitude)));
  }
};

template <class Format>
struct Fp8 {
  const std::uint8_t* source;
  HWY_INLINE Floats operator()(std::size_t index) const {
    const hn::Rebind<std::uint8_t, HalfWords> narrow;
    const HalfWords lanes;
    const auto half = Format::to_f16(lanes, hn::PromoteTo(lanes, hn::LoadU(narrow, source + index)));
    return hn::Mul(f32_of_f16_codes(half), hn::Set(floats, Format::factor));
  }
};

/// e5m2 numbers that are zero, or normal and finite.
struct Unpacked {
  const std::uint8_t* source;
  HWY_INLINE Floats operator()(std::size_t index) const {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
    const hn::Rebind<std::uint8_t, HalfWords> narrow;
    return f32_of_f16_codes(hn::ShiftLeft<8>(hn::PromoteTo(HalfWords(), hn::LoadU(narrow, source + index))));
#else
    // The fields move to where F32 has them; the difference of the biases is made good by a factor.
    const hn::Rebind<std::uint8_t, decltype(integers)> narrow;
    const Integers top = hn::ShiftLeft<24>(hn::PromoteTo(integers, hn::LoadU(narrow, source + index)));
    const Integers fields = hn::And(hn::ShiftRight<3>(top), all(static_cast<std::int32_t>(0x8FE00000U)));
    return hn::Mul(hn::BitCast(floats, fields), hn::Set(floats, 0x1p112F));
#endif
  }
};

/// Those that are wider, by the loads above.
template <class From>
struct Wide {
  From source;
  HWY_INLINE Floats operator()(std::size_t index) const { return hn::BitCast(floats, source(index)); }
};

/// A NaN element keeps its sign in any product of floats; `any_scale` sees to those that the scale brings
/// forth.
template <class Elements, bool any_scale>
struct FromTimesFloat {
  Elements elements;
  const float* scales;
  HWY_INLINE Integers operator()(std::size_t index) const {
    const Floats number = elements(index);
    const auto product = hn::Mul(number, hn::LoadU(floats, scales + index));
    if constexpr (!any_scale) return hn::BitCast(integers, product);
    const Integers nan = hn::Or(hn::AndNot(all(0x7FFFFFFF), hn::BitCast(integers, number)), all(0x7FC00000));
    return hn::IfThenElse(hn::RebindMask(integers, hn::IsNaN(product)), nan, hn::BitCast(integers, product));
  }
};

/// The elements at an address: Fp8 and Unpacked hold it themselves, Wide in what it is made of.
template <class Elements>
HWY_INLINE Elements elements_at(const void* address) {
  if constexpr (requires(Elements e) { e.source.source; }) {
    return {{static_cast<decltype(Elements::source.source)>(address)}};
  } else {
    return {static_cast<decltype(Elements::source)>(address)};
  }
}

template <class Elements, bool any_scale, class To>
void scale_and_round(const void* elements, const float* scales, std::int64_t count, void* destination,
                     Store store) {
  using From = FromTimesFloat<Elements, any_scale>;
  write_run(Rounded<From, To>{{elements_at<Elements>(elements), scales}}, count,
            static_cast<std::uint16_t*>(destination), store);
}

template <class Elements, bool any_scale>
void scale_to_f32(const void* elements, const float* scales, std::int64_t count, void* destination,
                  Store store) {
  using From = FromTimesFloat<Elements, any_scale>;
  write_run(Widened<From>{{elements_at<Elements>(elements), scales}}, count,
            static_cast<std::uint32_t*>(destination), store);
}

#if HWY_TARGET == HWY_AVX3
/// By AVX-512 BF16, which Highway does not know yet: one instruction rounds and packs. It takes subnormal
/// numbers for zeros, so it is for scales in range.
struct ToBF16AtOnce {
  static HWY_INLINE Integers round(Integers wide) { return wide; }
  static HWY_INLINE Words pack(Integers lower, Integers upper) {
    __m512i packed;
    __asm__("vcvtne2ps2bf16 %2, %1, %0" : "=v"(packed) : "v"(upper.raw), "v"(lower.raw));
    return Words{packed};
  }
};
#endif

template <class Elements, bool any_scale>
constexpr ScaleRuns scale_runs() {
  return {scale_and_round<Elements, any_scale, ToBF16>, scale_and_round<Elements, any_scale, ToF16>,
          scale_to_f32<Elements, any_scale>};
}

template <class Elements>
constexpr ScaleRunsOf scale_runs_of() {
  return {scale_runs<Elements, true>(), scale_runs<Elements, false>()};
}

template <class Scale>
void spread_scales(const Scale* scales, std::int64_t first_length, std::int64_t length, std::int64_t total,
                   Scale* spread) {
  const hn::ScalableTag<Scale> tag;
  constexpr std::int64_t lanes = hn::MaxLanes(tag);
  static_assert(lanes <= most_spread_beyond);
  for (std::int64_t begin = 0, end = std::min(first_length, total); begin < total; ++scales) {
    const auto scale = hn::Set(tag, *scales);
    for (std::int64_t at = begin; at < end; at += lanes) hn::StoreU(scale, tag, spread + at);
    begin = end;
    end = std::min(end + length, total);
  }
}

void unpack_nibbles(const std::uint8_t* packed, std::int64_t signed_bytes, const std::uint8_t* table,
                    std::uint8_t* unpacked) {
  const hn::Rebind<std::uint8_t, decltype(words)> narrow;
  const auto count = static_cast<std::size_t>(signed_bytes);
  const auto entries = hn::LoadDup128(bytes, table);
  const auto unpack = [&](std::size_t index) HWY_ATTR {
    const Words both = hn::PromoteTo(words, hn::LoadU(narrow, packed + index));
    const Words apart = hn::And(hn::Or(both, hn::ShiftLeft<4>(both)), hn::Set(words, 0x0F0F));
    hn::StoreU(hn::TableLookupBytes(entries, hn::BitCast(bytes, apart)), bytes, unpacked + 2 * index);
  };
  std::size_t index = 0;
  for (; index + word_count <= count; index += word_count) unpack(index);
  if (index == count) return;
  if (count >= word_count) return unpack(count - word_count);
  for (; index < count; ++index) {
    unpacked[2 * index] = table[packed[index] % 16];
    unpacked[2 * index + 1] = table[packed[index] / 16];
  }
}
