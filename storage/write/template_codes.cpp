#include "storage/write/template_codes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "kernels/encode.h"
#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/load/transfers.h"
#include "planner/names/companions.h"
#include "storage/boxes/box_reading.h"
#include "storage/boxes/placing.h"

namespace shardwright {
namespace {

/// A value that much larger than what its code stands for was too large for it: half a step of the widest
/// codes and a little more.
constexpr float most_above_largest = 1.13F;

bool is_largest(DType element, unsigned code) {
  if (element == DType::F4) return (code & 7) == 7;
  if (element == DType::I4) return code == 0 || code == 15;
  return element == DType::F8_E4M3 ? (code & 0x7F) == 0x7E : (code & 0x7F) == 0x7B;
}

unsigned code_at(const std::byte* row, DType element, std::int64_t at) {
  if (!is_packed(element)) return std::to_integer<unsigned>(row[at]);
  const auto both = std::to_integer<unsigned>(row[at / 2]);
  return at % 2 == 0 ? both & 15 : both >> 4;
}

void set_code(std::byte* row, DType element, std::int64_t at, unsigned code) {
  if (!is_packed(element)) {
    row[at] = static_cast<std::byte>(code);
    return;
  }
  const auto both = std::to_integer<unsigned>(row[at / 2]);
  row[at / 2] = static_cast<std::byte>(at % 2 == 0 ? (both & 0xF0) | code : (both & 0x0F) | code << 4);
}

/// One row of a box: its values, its codes in the template, and what they have to become.
struct Row {
  const std::byte* values;
  std::int64_t value_stride;  ///< elements
  std::int64_t columns;
  std::int64_t first;  ///< column of the first value in the row of codes
  std::byte* codes;    ///< of the template; changed in place
  BlockScales scales;
};

/// What a row is made of is kept from row to row.
struct Buffers {
  std::vector<std::byte> decoded;
  std::vector<std::byte> codes;
  std::vector<float> values;
  std::vector<float> back;
};

/// Changes the codes of values that theirs do not stand for. Returns the first column whose value is too
/// large for its scale; `columns` if none is. `may_change_first` tells whether the first code may be changed.
std::int64_t encode_row(const Row& row, DType element, DType dtype, bool may_change_first,
                        bool& changed_first, Buffers& buffers) {
  const std::int64_t size = shardwright::bytes_of(dtype);
  const bool is_odd = is_packed(element) && row.first % 2 != 0;
  const std::byte* const first_byte = row.codes + (is_packed(element) ? row.first / 2 : row.first);
  buffers.decoded.resize(static_cast<std::size_t>(row.columns * size));
  decode({first_byte, element, 1, row.columns, 2 * row.columns, is_odd}, row.scales,
         {buffers.decoded.data(), dtype, row.columns, 1});
  const auto is_kept = [&](std::int64_t c) {
    return std::memcmp(row.values + c * row.value_stride * size, buffers.decoded.data() + c * size,
                       static_cast<std::size_t>(size)) == 0;
  };
  std::int64_t changed = 0;
  while (changed < row.columns && is_kept(changed)) ++changed;
  if (changed == row.columns) return row.columns;

  const std::int64_t code_bytes = is_packed(element) ? (row.columns + 1) / 2 : row.columns;
  buffers.codes.assign(static_cast<std::size_t>(code_bytes), std::byte{0});
  buffers.values.resize(static_cast<std::size_t>(row.columns));
  buffers.back.resize(static_cast<std::size_t>(row.columns));
  encode_with_scales(element, {row.values, dtype, 1, row.columns, 0, row.value_stride}, row.scales,
                     {buffers.codes.data(), 2 * code_bytes, false});
  decode({buffers.codes.data(), element, 1, row.columns, 2 * code_bytes, false}, row.scales,
         {buffers.back.data(), DType::F32, row.columns, 1});
  copy_box({{row.columns, row.value_stride, 1}}, dtype, DType::F32, row.values,
           reinterpret_cast<std::byte*>(buffers.values.data()));
  for (std::int64_t c = changed; c < row.columns; ++c) {
    if (is_kept(c)) continue;
    if (c == 0 && !may_change_first) {
      changed_first = true;
      return 0;
    }
    const unsigned code = code_at(buffers.codes.data(), element, c);
    const auto at = static_cast<std::size_t>(c);
    const bool fits = !is_largest(element, code) ||
                      std::fabs(buffers.values[at]) <= most_above_largest * std::fabs(buffers.back[at]);
    if (!fits || std::isnan(buffers.values[at])) return c;
    set_code(row.codes, element, row.first + c, code);
  }
  return row.columns;
}

}  // namespace

Box TemplateCodes::written_box(const Transfer& transfer, const Box& box) {
  if (!is_packed(transfer.encoding.element) || is_empty(box)) return box;
  Box written = box;
  const std::int64_t end = box.offset.back() + box.size.back();
  written.offset.back() += box.offset.back() % 2;
  written.size.back() = end + end % 2 - written.offset.back();
  return written;
}

std::vector<std::byte> TemplateCodes::bytes_of_box(const SourceTensor& tensor, const Shape& shape,
                                                   const Box& box) const {
  const ReadCosts each_run{0, 1};  // gaps are never read
  const BoxReading reading = reading_of(tensor, shape, box, each_run);
  std::vector<std::byte> bytes(static_cast<std::size_t>(shardwright::bytes_of_box(tensor.dtype, box)));
  const OpenFiles::Uses uses = files_.use(tensor, nullptr);
  std::byte* to = bytes.data();
  for_each_run(reading, [&](std::uint64_t begin) {
    read_of(*uses.weights, tensor, begin, to, reading.run_bytes);
    to += reading.run_bytes;
  });
  return bytes;
}

std::vector<std::byte> TemplateCodes::bytes_of(const std::string& name) const {
  const SourceTensor& tensor = template_.find(name).front();
  return bytes_of_box(tensor, tensor.shape, whole(tensor.shape));
}

std::vector<std::byte> TemplateCodes::bytes_of(const std::string& name, const Box& box) const {
  const SourceTensor& tensor = template_.find(name).front();
  return bytes_of_box(tensor, tensor.shape, box);
}

float TemplateCodes::global_of(const Encoding& encoding, const std::string& weight) const {
  const auto of_weight = global_scale_of(template_, encoding, weight);
  if (of_weight.empty()) return 1;
  const std::lock_guard hold(lock_);
  const auto [known, is_new] = globals_.try_emplace(weight, 1.0F);
  if (is_new) std::memcpy(&known->second, bytes_of(of_weight.front().name).data(), sizeof known->second);
  return known->second;
}

std::vector<std::byte> TemplateCodes::encode(const Transfer& transfer, const SourceTensor& stored,
                                             const Box& box, const StridedMemory& values, DType dtype) const {
  const SourceTensor& weight = template_.find(stored.name).front();
  const SourceTensor& scales = scales_of(template_, stored.name).front();
  const Encoding& encoding = transfer.encoding;
  const Shape shape = seen_shape(transfer, weight);
  const Box scale_box = scale_box_of(encoding, box);
  std::vector<std::byte> codes = bytes_of_box(weight, shape, box);
  const std::vector<std::byte> scale_bytes =
      bytes_of_box(scales, seen_scale_shape(transfer, scales), scale_box);
  const float global = global_of(encoding, stored.name);

  const std::size_t rank = box.size.size();
  const Shape rows_of_codes = contiguous_strides(in_units(encoding.element, box).size);
  const Shape rows_of_scales = contiguous_strides(scale_box.size);
  const bool begins_odd = is_packed(encoding.element) && box.offset.back() % 2 != 0;
  const auto where = [&](const Shape& index, std::int64_t column) {
    Shape at = box.offset;
    for (std::size_t d = 0; d + 1 < rank; ++d) at[d] += index[d];
    at.back() += column;
    return stored_name(weight) + " at " + to_string(at);
  };
  Buffers buffers;
  Shape index(rank - 1, 0);
  do {
    std::int64_t value = 0;
    std::int64_t code = 0;
    std::int64_t scale = 0;
    for (std::size_t d = 0; d + 1 < rank; ++d) {
      value += index[d] * values.strides[d];
      code += index[d] * rows_of_codes[d];
      if (d < scale_box.size.size()) {
        const std::int64_t block = block_along(encoding, rank, d);
        scale += ((box.offset[d] + index[d]) / block - scale_box.offset[d]) * rows_of_scales[d];
      }
    }
    const BlockScales of_row{scale_bytes.data() + scale * shardwright::bytes_of(encoding.scale),
                             0,
                             1,
                             encoding.block_columns,
                             0,
                             box.offset.back() % encoding.block_columns,
                             encoding.scale,
                             encoding.product,
                             global,
                             encoding.code_eight_is_plus_zero};
    bool changed_first = false;
    const Row row{values.data + value * shardwright::bytes_of(dtype),
                  values.strides.back(),
                  box.size.back(),
                  begins_odd ? 1 : 0,
                  codes.data() + code,
                  of_row};
    const std::int64_t bad = encode_row(row, encoding.element, dtype, !begins_odd, changed_first, buffers);
    if (changed_first) {
      throw Error(ErrorKind::mismatch,
                  where(index, 0) +
                      ": has changed, and shares a byte with an element of another part of the "
                      "tensor; expected parts of an even number of columns where weights are "
                      "stored in 4 bits: shard another dimension to export in this encoding");
    }
    if (bad < box.size.back()) {
      throw Error(ErrorKind::mismatch,
                  where(index, bad) +
                      ": is too large for the scale that the template has there, or NaN; export "
                      "with quantization=\"mxfp8\" or None, which find scales anew or need none");
    }
  } while (next_index(index, box.size));
  if (!begins_odd) return codes;
  // The first byte of each row is written by whoever has its lower half.
  const std::int64_t in_row = in_units(encoding.element, box).size.back();
  std::vector<std::byte> rest;
  for (std::size_t at = 0; at < codes.size(); at += static_cast<std::size_t>(in_row))
    rest.insert(rest.end(), codes.begin() + static_cast<std::ptrdiff_t>(at) + 1,
                codes.begin() + static_cast<std::ptrdiff_t>(at) + in_row);
  return rest;
}

}  // namespace shardwright
