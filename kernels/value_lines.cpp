#include "kernels/value_lines.h"

#include "kernels/decode.h"

namespace shardwright {

void fill_line_panel(const InstructionSet& set, const ValueTile& values, std::int64_t row, std::int64_t rows,
                     std::int64_t column, std::int64_t columns, std::byte* panel, std::int64_t pitch) {
  const std::byte* from = value_at(values, row, column);
  if (values.row_stride != 1 && rows != 1) {
    for (std::int64_t r = 0; r < rows; ++r) {
      place({value_at(values, row + r, column), values.dtype, columns, 1, values.column_stride},
            {panel + r * pitch * bytes_of(values.dtype), values.dtype, 1, 1});
    }
    return;
  }
  // The tile's columns, which its rows lie along, are the rows of what is transposed.
  const TransposePanel transpose =
      bytes_of(values.dtype) == 2 ? set.transpose_2_bytes : set.transpose_4_bytes;
  if (transpose != nullptr) return transpose(from, values.column_stride, columns, rows, panel, pitch);
  place({from, values.dtype, columns, rows, values.column_stride}, {panel, values.dtype, 1, pitch});
}

}  // namespace shardwright
