#include "storage/write/encode_part.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>
#include <vector>

#include "kernels/encode.h"
#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "storage/boxes/placing.h"
#include "storage/write/find_numbers.h"

namespace shardwright {
namespace {

/// The blocks of which a box has the first element.
Box blocks_begun_in(const Encoding& encoding, const Box& box) {
  Box blocks = scale_box_of(encoding, box);
  const std::size_t rank = box.offset.size();
  for (std::size_t d = 0; d < blocks.offset.size(); ++d) {
    const std::int64_t block = block_along(encoding, rank, d);
    const bool begins_before = box.offset[d] % block != 0;
    blocks.offset[d] += begins_before ? 1 : 0;
    blocks.size[d] -= begins_before ? 1 : 0;
  }
  return blocks;
}

[[noreturn]] void refuse_unknown(const WeightPart& part, std::string_view what) {
  throw Error(
      ErrorKind::mismatch,
      part.weight.name + ": a rank's part of it (of " + part.fqn + ") begins or ends inside of " +
          std::string(what) +
          ", on which the ranks have not agreed; save with shardwright.SavePlanner, which sees to it");
}

/// One matrix of the part: where it lies, its blocks, and the element that a value of it is.
struct Matrix {
  Shape index;  ///< in the weight, of its first element
  Box blocks;
  std::int64_t block_columns;  ///< of `blocks`
};

[[noreturn]] void refuse_values(const WeightPart& part, const ValueTile& tile, const Matrix& matrix) {
  std::vector<float> row(static_cast<std::size_t>(tile.columns));
  for (std::int64_t r = 0; r < tile.rows; ++r) {
    const auto* from = static_cast<const std::byte*>(tile.data) + r * tile.row_stride * bytes_of(tile.dtype);
    copy_box({{tile.columns, tile.column_stride, 1}}, tile.dtype, DType::F32, from,
             reinterpret_cast<std::byte*>(row.data()));
    const auto bad = std::find_if(row.begin(), row.end(), [](float value) { return !std::isfinite(value); });
    if (bad == row.end()) continue;
    Shape at = matrix.index;
    at[at.size() - 2] += r;
    at.back() += bad - row.begin();
    throw Error(ErrorKind::mismatch, part.fqn + ": is " + (std::isnan(*bad) ? "NaN" : "infinite") + " at " +
                                         part.weight.name + " " + to_string(at) +
                                         "; expected finite values for " +
                                         std::string(part.quantization.name) +
                                         ": set it to a number, or leave the weight in BF16 "
                                         "(quantized_weights)");
  }
  throw Error(ErrorKind::mismatch, part.weight.name + ": expected finite values for " +
                                       std::string(part.quantization.name) +
                                       ", found a NaN or an infinity in another rank's part of it");
}

class PartEncoder {
 public:
  PartEncoder(const WeightPart& part, const KnownNumbers& numbers, DType dtype, std::byte* codes,
              std::byte* scales)
      : part_(part),
        numbers_(numbers),
        boxes_(boxes_of(part)),
        grid_shape_(scale_shape_of(part.encoding, part.weight.shape)),
        codes_(codes),
        scales_(scales) {
    if (!part.quantization.has_global()) return;
    const std::optional<float> largest = numbers.largest(part.weight.name);
    if (!largest) refuse_unknown(part, "a tensor with a global scale");
    global_ = global_scale(part.quantization.rule, dtype, *largest);
  }

  void encode(const Shape& index, const ValueTile& tile) {
    const std::size_t rank = part_.box.offset.size();
    Matrix matrix{part_.box.offset, scale_box_of(part_.encoding, part_.box), 0};
    for (std::size_t d = 0; d < index.size(); ++d) {
      matrix.index[d] += index[d];
      matrix.blocks.offset[d] = matrix.index[d];
      matrix.blocks.size[d] = 1;
    }
    matrix.block_columns = matrix.blocks.size[rank - 1];
    const auto count = static_cast<std::size_t>(volume(matrix.blocks.size));
    magnitudes_.resize(count);
    factors_.resize(count);
    stored_.resize(count * static_cast<std::size_t>(bytes_of(part_.encoding.scale)));
    const bool takes_any = part_.quantization.rule == EncodingRule::mxfp8;
    find_magnitudes(tile, grid_at(part_.encoding, part_.box), magnitudes_.data(), matrix.block_columns,
                    takes_any);
    add_what_others_hold(matrix);
    if (!takes_any && std::any_of(magnitudes_.begin(), magnitudes_.end(),
                                  [](float magnitude) { return !std::isfinite(magnitude); }))
      refuse_values(part_, tile, matrix);
    scales_of_magnitudes(part_.quantization.rule, tile.dtype, magnitudes_.data(),
                         static_cast<std::int64_t>(count), global_, stored_.data(), factors_.data());
    if (std::any_of(factors_.begin(), factors_.end(), [](float factor) { return !std::isfinite(factor); })) {
      throw Error(ErrorKind::mismatch,
                  part_.fqn + ": a block of " + part_.weight.name + " has values so small that " +
                      std::string(part_.quantization.name) +
                      " finds no scale for them; set them to zero, or leave the weight out "
                      "of quantized_weights");
    }
    write_scales(matrix);
    write_codes(matrix, tile);
  }

 private:
  /// Blocks that reach beyond the part have the magnitudes on which the ranks have agreed.
  void add_what_others_hold(const Matrix& matrix) {
    const std::size_t rank = part_.box.offset.size();
    Box of_matrix = part_.box;
    for (std::size_t d = 0; d + 2 < rank; ++d) {
      of_matrix.offset[d] = matrix.index[d];
      of_matrix.size[d] = 1;
    }
    for (const Box& cut : in_cut_blocks(part_.encoding, of_matrix, part_.weight.shape)) {
      const Box blocks = scale_box_of(part_.encoding, cut);
      const std::int64_t row = blocks.offset[rank - 2] - matrix.blocks.offset[rank - 2];
      const std::int64_t column = blocks.offset[rank - 1] - matrix.blocks.offset[rank - 1];
      std::int64_t n = 0;
      for_each_number(blocks, grid_shape_, [&](std::int64_t number) {
        const std::optional<float> agreed = numbers_.magnitude(part_.weight.name, number);
        if (!agreed) refuse_unknown(part_, "a block");
        const std::int64_t at =
            (row + n / blocks.size[rank - 1]) * matrix.block_columns + column + n % blocks.size[rank - 1];
        float& magnitude = magnitudes_[static_cast<std::size_t>(at)];
        magnitude = larger_magnitude(magnitude, *agreed);
        ++n;
      });
    }
  }

  void write_scales(const Matrix& matrix) {
    if (is_empty(boxes_.scales)) return;
    const std::size_t rank = part_.box.offset.size();
    const std::int64_t size = bytes_of(part_.encoding.scale);
    const std::int64_t first_row = boxes_.scales.offset[rank - 2] - matrix.blocks.offset[rank - 2];
    const std::int64_t first_column = boxes_.scales.offset[rank - 1] - matrix.blocks.offset[rank - 1];
    const auto row_bytes = static_cast<std::size_t>(boxes_.scales.size[rank - 1] * size);
    for (std::int64_t row = 0; row < boxes_.scales.size[rank - 2]; ++row) {
      const std::int64_t from = (first_row + row) * matrix.block_columns + first_column;
      std::memcpy(scales_, stored_.data() + from * size, row_bytes);
      scales_ += row_bytes;
    }
  }

  void write_codes(const Matrix& matrix, const ValueTile& tile) {
    if (is_empty(boxes_.codes)) return;
    const std::size_t rank = part_.box.offset.size();
    const DType element = part_.encoding.element;
    const std::int64_t skipped = boxes_.codes.offset[rank - 1] - part_.box.offset[rank - 1];
    ValueTile kept = tile;
    kept.columns = std::min(tile.columns - skipped, boxes_.codes.size[rank - 1]);
    kept.data =
        static_cast<const std::byte*>(tile.data) + skipped * tile.column_stride * bytes_of(tile.dtype);
    const std::int64_t row_bytes = in_units(element, boxes_.codes).size[rank - 1];
    const std::int64_t row_stride = is_packed(element) ? 2 * row_bytes : row_bytes;
    const auto encode_columns = [&](const ValueTile& values, std::int64_t column, const CodeTile& codes) {
      Box at = part_.box;
      at.offset[rank - 1] = column;
      const std::int64_t block = column / part_.encoding.block_columns - matrix.blocks.offset[rank - 1];
      encode_elements(part_.quantization.rule, values, grid_at(part_.encoding, at), factors_.data() + block,
                      matrix.block_columns, codes);
    };
    encode_columns(kept, boxes_.codes.offset[rank - 1], {codes_, row_stride, false});
    const std::int64_t end = part_.box.offset[rank - 1] + part_.box.size[rank - 1];
    if (boxes_.codes.offset[rank - 1] + boxes_.codes.size[rank - 1] > end) {
      const std::vector<std::byte> values = values_at(matrix, end, tile);
      encode_columns({values.data(), tile.dtype, tile.rows, 1, 1, 1}, end,
                     {codes_ + row_bytes - 1, row_stride, true});
    }
    codes_ += tile.rows * row_bytes;
  }

  /// A column of the matrix that another rank holds, in the dtype of the tile.
  std::vector<std::byte> values_at(const Matrix& matrix, std::int64_t column, const ValueTile& tile) const {
    Box box{matrix.index, Shape(matrix.index.size(), 1)};
    box.offset.back() = column;
    box.size[box.size.size() - 2] = tile.rows;
    std::vector<float> numbers;
    for_each_number(box, part_.weight.shape, [&](std::int64_t element) {
      const std::optional<float> value = numbers_.value(part_.weight.name, element);
      if (!value) refuse_unknown(part_, "a byte");
      numbers.push_back(*value);
    });
    std::vector<std::byte> values(numbers.size() * static_cast<std::size_t>(bytes_of(tile.dtype)));
    copy_box({{tile.rows, 1, 1}}, DType::F32, tile.dtype, reinterpret_cast<const std::byte*>(numbers.data()),
             values.data());
    return values;
  }

  const WeightPart& part_;
  const KnownNumbers& numbers_;
  const PartBoxes boxes_;
  const Shape grid_shape_;
  std::byte* codes_;
  std::byte* scales_;
  float global_ = 1;
  std::vector<float> magnitudes_;
  std::vector<float> factors_;
  std::vector<std::byte> stored_;
};

}  // namespace

PartBoxes boxes_of(const WeightPart& part) {
  PartBoxes boxes{part.box, 0, blocks_begun_in(part.encoding, part.box), 0};
  if (is_packed(part.encoding.element) && !is_empty(part.box)) {
    const std::int64_t end = part.box.offset.back() + part.box.size.back();
    boxes.codes.offset.back() += part.box.offset.back() % 2;
    boxes.codes.size.back() = end + end % 2 - boxes.codes.offset.back();
  }
  boxes.code_bytes = static_cast<std::size_t>(bytes_of_box(part.encoding.element, boxes.codes));
  boxes.scale_bytes = static_cast<std::size_t>(volume(boxes.scales.size) * bytes_of(part.encoding.scale));
  return boxes;
}

void encode_part(const WeightPart& part, const StridedMemory& values, DType dtype,
                 const KnownNumbers& numbers, std::byte* codes, std::byte* scales) {
  PartEncoder encoder(part, numbers, dtype, codes, scales);
  for_each_matrix(values, dtype, part.box,
                  [&](const Shape& index, const ValueTile& tile) { encoder.encode(index, tile); });
}

}  // namespace shardwright
