#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace shardwright {

/// Element types of tensors on disk and in memory, spelled as the safetensors format spells them.
/// F8_E4M3 is the "fn" variant (no infinity, NaN is 0x7F and 0xFF), F8_E8M0 the OCP MX v1.0 scale byte.
/// F4 is e2m1 of OCP MX v1.0: two in a byte, the element of the even column in the low nibble.
/// I4 is no dtype of safetensors: the integer q from -8 to 7 stored as q + 8, packed as F4 is. Eight of them
/// in a little-endian I32, low nibble first, as compressed-tensors packs them, are the same bytes.
enum class DType : std::uint8_t {
  BOOL,
  U8,
  I8,
  U16,
  I16,
  U32,
  I32,
  U64,
  I64,
  F4,
  F6_E2M3,
  F6_E3M2,
  F8_E4M3,
  F8_E5M2,
  F8_E8M0,
  F16,
  BF16,
  F32,
  F64,
  C64,
  I4,
};

/// Bits that one element takes. Less than 8 for the packed formats F4, I4 and F6.
int bits_of(DType dtype);

/// Bytes that one element takes; 0 for a packed format, which has no byte of its own.
int bytes_of(DType dtype);

/// The safetensors spelling, such as "BF16"; "I4" for I4, which has none.
std::string_view name_of(DType dtype);

/// The inverse of name_of; nothing for a spelling that safetensors does not have.
std::optional<DType> dtype_named(std::string_view name);

/// True for F8_E4M3 and F8_E5M2, which mean nothing without scales.
bool is_float8(DType dtype);

/// True for F4 and I4, of which two elements share a byte.
bool is_packed(DType dtype);

/// True for real floating-point formats of 16 bits or more, the ones that weights are trained in.
bool is_wide_float(DType dtype);

}  // namespace shardwright
