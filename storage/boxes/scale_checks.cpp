#include "storage/boxes/scale_checks.h"

#include <cmath>
#include <cstring>
#include <sstream>
#include <string>

#include "planner/error.h"
#include "planner/load/transfers.h"

namespace shardwright {
namespace {

/// The first of so many scales side by side that is not meant; `count` if there is none. A number is meant if
/// its bits, without a sign, are less than those of infinity, or if it is -0.
template <class Bits>
std::int64_t first_above(const std::byte* scales, std::int64_t count, Bits most) {
  constexpr Bits minus_zero = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  const auto bits_at = [scales](std::int64_t i) {
    Bits bits = 0;
    std::memcpy(&bits, scales + i * static_cast<std::int64_t>(sizeof bits), sizeof bits);
    return bits;
  };
  const auto is_meant = [most](Bits bits) { return (bits <= most) | (bits == minus_zero); };
  // A loop without an exit, whose sum is as wide as what it looks at: the compiler makes vectors of it.
  Bits others = 0;
  for (std::int64_t i = 0; i < count; ++i) others |= is_meant(bits_at(i)) ? Bits{0} : Bits{1};
  if (others == 0) return count;
  std::int64_t first = 0;
  while (is_meant(bits_at(first))) ++first;
  return first;
}

std::int64_t first_not_meant(DType dtype, const std::byte* scales, std::int64_t count) {
  switch (dtype) {
    case DType::U8:
    case DType::F8_E8M0:
      return first_above<std::uint8_t>(scales, count, 0xFE);
    case DType::F8_E4M3:
      return first_above<std::uint8_t>(scales, count, 0x7E);
    case DType::F16:
      return first_above<std::uint16_t>(scales, count, 0x7BFF);
    case DType::BF16:
      return first_above<std::uint16_t>(scales, count, 0x7F7F);
    default:
      return first_above<std::uint32_t>(scales, count, 0x7F7FFFFF);
  }
}

/// The number that so many bits stand for, all of which a float holds: a sign, an exponent, a mantissa.
float number_of(std::uint32_t bits, int mantissa_bits, int bias, int sign_bit) {
  const auto mantissa = static_cast<float>(bits & ((1U << mantissa_bits) - 1));
  const int exponent = static_cast<int>((bits & ((1U << sign_bit) - 1)) >> mantissa_bits);
  const float one = std::ldexp(1.0F, mantissa_bits);
  const float size = exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                                   : std::ldexp(one + mantissa, exponent - bias - mantissa_bits);
  return (bits >> sign_bit) != 0 ? -size : size;
}

/// A scale that is not meant, in words.
std::string text_of(DType dtype, const std::byte* scale) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, scale, static_cast<std::size_t>(bytes_of(dtype)));
  if (dtype == DType::U8 || dtype == DType::F8_E8M0) return "the byte 255, which is no number";
  float number = 0;
  switch (dtype) {
    case DType::F8_E4M3:
      number = (bits & 0x7F) == 0x7F ? std::nanf("") : number_of(bits, 3, 7, 7);
      break;
    case DType::F16:
      number = (bits & 0x7FFF) > 0x7C00 ? std::nanf("") : number_of(bits, 10, 15, 15);
      if ((bits & 0x7FFF) == 0x7C00) number = std::copysign(HUGE_VALF, number);
      break;
    case DType::BF16:
      bits <<= 16;
      [[fallthrough]];
    default:
      std::memcpy(&number, &bits, sizeof number);
  }
  if (std::isnan(number)) return "NaN";
  std::ostringstream text;
  text << number;
  return text.str();
}

}  // namespace

std::optional<OddScale> odd_scale_in(DType dtype, const std::byte* scales, std::int64_t count) {
  const std::int64_t index = first_not_meant(dtype, scales, count);
  if (index == count) return std::nullopt;
  return OddScale{index, text_of(dtype, scales + index * bytes_of(dtype))};
}

void expect_meant_scales(const Transfer& transfer, const BoxInMemory& part, const Catalog& catalog) {
  const DType element = transfer.encoding.element;
  if (!is_packed(element) && !is_float8(element)) return;
  if (part.scales.data == nullptr || is_empty(part.box)) return;
  const DType dtype = transfer.encoding.scale;
  const Box box = scale_box_of_part(transfer, part.box);
  Shape strides = part.scales.strides;  // of the dimensions outside what lies side by side
  std::int64_t count = 1;
  while (!strides.empty() && (strides.back() == count || box.size[strides.size() - 1] == 1)) {
    count *= box.size[strides.size() - 1];
    strides.pop_back();
  }
  Shape index(strides.size(), 0);
  do {
    const std::byte* const first = part.scales.data + elements_to(index, strides) * bytes_of(dtype);
    if (const std::optional<OddScale> odd = odd_scale_in(dtype, first, count)) {
      Shape at = box.offset;
      for (std::size_t d = 0; d < index.size(); ++d) at[d] += index[d];
      std::int64_t rest = odd->index;
      for (std::size_t d = at.size(); d-- > index.size(); rest /= box.size[d]) at[d] += rest % box.size[d];
      const SourceTensor& scales = catalog.tensors[static_cast<std::size_t>(transfer.scales)];
      throw Error(ErrorKind::malformed,
                  stored_name(scales) + " in " + catalog.files[scales.file].name + ": the scale at " +
                      to_string(at) + (transfer.source_view.empty() ? "" : " (in the rule's view)") + " is " +
                      odd->text + "; expected numbers of 0 or more, as encoders write the scales of " +
                      stored_name(catalog.tensors[transfer.source]) +
                      "; the file is damaged, download it again");
    }
  } while (next_index(index, box.size));
}

std::string fault_of_global(float global, Product product, const SourceTensor& tensor,
                            const Catalog& catalog) {
  const bool divides = product == Product::compressed_tensors_nvfp4;
  if (std::isfinite(global) && (global > 0 || (global == 0 && !divides))) return "";
  return stored_name(tensor) + " in " + catalog.files[tensor.file].name + ": expected a " +
         (divides ? "positive" : "finite") + " number, which is the global scale of a weight, found " +
         std::to_string(global) + "; the file is damaged, download it again";
}

}  // namespace shardwright
