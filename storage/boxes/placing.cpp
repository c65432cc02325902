#include "storage/boxes/placing.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>
#include <vector>

#include "kernels/decode.h"
#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/geometry/lattice.h"
#include "planner/load/transfers.h"
#include "planner/names/encodings.h"

namespace shardwright {
namespace {

/// Where a box goes: the address of its first element, and the stride of each of its dimensions.
struct Target {
  std::byte* data;
  Shape strides;
};

Target target_of(const Transfer& transfer, const Box& box, const TensorSpec& spec) {
  Target target{static_cast<std::byte*>(spec.data), {}};
  std::int64_t offset = elements_to(transfer.destination_offset, spec.local_strides);
  target.strides = strides_along(written_lattice(transfer), spec.local_strides);
  for (std::size_t i = 0; i < transfer.axes.size(); ++i) {
    offset += (box.offset[i] - transfer.source_box.offset[i]) * target.strides[i];
  }
  target.data += offset * bytes_of(spec.dtype);
  return target;
}

/// Visits a box of a source with scales: the last dimension as columns and the innermost other one that has
/// several indices as rows, for each index of those further out.
template <class Visit>
void for_each_scaled_tile(const Transfer& transfer, const BoxInMemory& part, const Target& target,
                          DType destination, const Visit& visit) {
  const Encoding& encoding = transfer.encoding;
  const std::size_t rank = part.box.size.size();
  const std::size_t columns = rank - 1;
  std::size_t rows = rank - 2;
  while (rows > 0 && part.box.size[rows] == 1) --rows;
  if (part.box.size[rows] == 1) rows = rank - 2;
  Shape scale_strides = part.scales.strides;  // 0 along what the scales have no dimension for
  scale_strides.resize(rank, 0);
  const auto first_in_block = [&](std::size_t d, std::int64_t first) {
    return (first + part.box.offset[d] - transfer.source_box.offset[d]) % block_along(encoding, rank, d);
  };
  const BlockScales scales{part.scales.data,
                           scale_strides[rows],
                           block_along(encoding, rank, rows),
                           encoding.block_columns,
                           rows + 2 == rank ? first_in_block(rows, transfer.first_row_in_block) : 0,
                           first_in_block(columns, transfer.first_column_in_block),
                           encoding.scale,
                           encoding.product,
                           part.global,
                           encoding.code_eight_is_plus_zero};
  cuda::Placing tile{
      {part.elements.data, encoding.element, part.box.size[rows], part.box.size[columns],
       part.elements.strides[rows], is_packed(encoding.element) && part.box.offset[columns] % 2 != 0},
      scales,
      {target.data, destination, target.strides[rows], target.strides[columns]}};
  Shape index(rank, 0);  // of the dimensions further out
  for (;;) {
    visit(static_cast<const cuda::Placing&>(tile));
    std::size_t d = rows;
    while (d-- > 0) {
      ++index[d];
      const bool wraps = index[d] == part.box.size[d];
      const std::int64_t steps = wraps ? 1 - part.box.size[d] : 1;
      const auto moved = [&](const void* data, std::int64_t elements, DType dtype) {
        return static_cast<const std::byte*>(data) + steps * bytes_to(dtype, elements);
      };
      tile.source.data = moved(tile.source.data, part.elements.strides[d], encoding.element);
      tile.scales.data = moved(tile.scales.data, scale_strides[d], encoding.scale);
      tile.destination.data =
          static_cast<std::byte*>(tile.destination.data) + steps * target.strides[d] * bytes_of(destination);
      if (!wraps) break;
      index[d] = 0;
    }
    if (d > rows) return;  // all have wrapped
  }
}

/// Elements, apart from each other in the source, that are worth a tile of their own.
constexpr std::int64_t shortest_line = 16;

/// Visits a plain box of any rank: the two innermost dimensions as one tile, for each index of the outer
/// ones.
template <class Visit>
void for_each_plain_tile(const std::vector<CopiedDimension>& dimensions, DType source, DType destination,
                         const std::byte* from, std::byte* to, const Visit& visit) {
  const std::size_t rank = dimensions.size();
  if (rank > 2) {
    const std::vector<CopiedDimension> inner(dimensions.begin() + 1, dimensions.end());
    for (std::int64_t i = 0; i < dimensions[0].size; ++i) {
      for_each_plain_tile(inner, source, destination,
                          from + i * dimensions[0].source_stride * bytes_of(source),
                          to + i * dimensions[0].destination_stride * bytes_of(destination), visit);
    }
    return;
  }
  const CopiedDimension one{1, 0, 0};
  const CopiedDimension columns = rank >= 1 ? dimensions[rank - 1] : one;
  const CopiedDimension rows = rank >= 2 ? dimensions[rank - 2] : one;
  // A tile's columns are contiguous in the source; a box with single columns further apart is one of many
  // rows.
  const bool contiguous = columns.size == 1 || columns.source_stride == 1;
  if (contiguous) {
    visit({{from, source, rows.size, columns.size, rows.source_stride},
           {},
           {to, destination, rows.destination_stride, columns.destination_stride}});
    return;
  }
  const bool by_columns = columns.size < shortest_line && columns.size < rows.size;
  const CopiedDimension& line = by_columns ? rows : columns;
  const CopiedDimension& lines = by_columns ? columns : rows;
  for (std::int64_t i = 0; i < lines.size; ++i) {
    visit({{from + i * lines.source_stride * bytes_of(source), source, line.size, 1, line.source_stride},
           {},
           {to + i * lines.destination_stride * bytes_of(destination), destination, line.destination_stride,
            1}});
  }
}

/// What is contiguous in the source has to come last, and what is the same element over and over first.
std::vector<CopiedDimension> in_order_of_source(std::vector<CopiedDimension> dimensions) {
  const auto distance = [](const CopiedDimension& dimension) {
    const std::int64_t stride = std::abs(dimension.source_stride);
    return stride == 0 ? std::numeric_limits<std::int64_t>::max() : stride;
  };
  std::stable_sort(
      dimensions.begin(), dimensions.end(),
      [&](const CopiedDimension& a, const CopiedDimension& b) { return distance(a) > distance(b); });
  return joined_dimensions(dimensions);
}

void place_tile(const cuda::Placing& tile) {
  if (tile.scales.data == nullptr) {
    place(tile.source, tile.destination);
  } else {
    decode(tile.source, tile.scales, tile.destination);
  }
}

}  // namespace

std::vector<CopiedDimension> copied_dimensions(const Shape& size, const Shape& source_strides,
                                               const Shape& destination_strides) {
  std::vector<CopiedDimension> dimensions;
  for (std::size_t d = 0; d < size.size(); ++d)
    dimensions.push_back({size[d], source_strides[d], destination_strides[d]});
  return dimensions;
}

bool is_one_run(const std::vector<CopiedDimension>& dimensions) {
  const std::vector<CopiedDimension> joined = joined_dimensions(dimensions);
  return joined.empty() ||
         (joined.size() == 1 && joined[0].source_stride == 1 && joined[0].destination_stride == 1);
}

std::vector<CopiedDimension> joined_dimensions(const std::vector<CopiedDimension>& dimensions) {
  std::vector<CopiedDimension> simple;
  for (const CopiedDimension& inner : dimensions) {
    if (inner.size == 1) continue;
    if (!simple.empty() && simple.back().source_stride == inner.size * inner.source_stride &&
        simple.back().destination_stride == inner.size * inner.destination_stride) {
      simple.back() = {simple.back().size * inner.size, inner.source_stride, inner.destination_stride};
    } else {
      simple.push_back(inner);
    }
  }
  return simple;
}

void copy_box(const std::vector<CopiedDimension>& dimensions, DType source, DType destination,
              const std::byte* from, std::byte* to) {
  for_each_plain_tile(in_order_of_source(dimensions), source, destination, from, to, place_tile);
}

void for_each_tile(const std::vector<CopiedDimension>& dimensions, DType source, DType destination,
                   const std::byte* from, std::byte* to,
                   const std::function<void(const cuda::Placing&)>& visit) {
  for_each_plain_tile(in_order_of_source(dimensions), source, destination, from, to, visit);
}

void for_each_tile(const Transfer& transfer, DType source, const BoxInMemory& part,
                   const TensorSpec& destination, const std::function<void(const cuda::Placing&)>& visit) {
  const Target target = target_of(transfer, part.box, destination);
  if (transfer.encoding.scaled) {
    for_each_scaled_tile(transfer, part, target, destination.dtype, visit);
  } else {
    for_each_plain_tile(
        joined_dimensions(copied_dimensions(part.box.size, part.elements.strides, target.strides)), source,
        destination.dtype, part.elements.data, target.data, visit);
  }
}

void place_box(const Transfer& transfer, DType source, const BoxInMemory& part,
               const TensorSpec& destination) {
  for_each_tile(transfer, source, part, destination, place_tile);
}

std::byte* place_as_it_is(const Transfer& transfer, DType source, const Box& box, const Shape& strides,
                          const TensorSpec& destination) {
  if (transfer.encoding.scaled || source != destination.dtype) return nullptr;
  const Target target = target_of(transfer, box, destination);
  return is_one_run(copied_dimensions(box.size, strides, target.strides)) ? target.data : nullptr;
}

void fill_with_zeros(const TensorSpec& spec) {
  if (spec.device != DeviceKind::cpu)
    throw Error(ErrorKind::argument, spec.fqn + ": expected CPU memory, found it on " + spec.device_name);
  constexpr std::array<std::byte, 16> zero{};  // an element of any dtype
  std::vector<CopiedDimension> dimensions;
  for (std::size_t d = 0; d < spec.local_shape.size(); ++d)
    dimensions.push_back({spec.local_shape[d], 0, spec.local_strides[d]});
  if (volume(spec.local_shape) == 0) return;
  copy_box(dimensions, spec.dtype, spec.dtype, zero.data(), static_cast<std::byte*>(spec.data));
}

void expect_memory(const LoadPlan& plan, const std::vector<TensorSpec>& specs) {
  for (const std::uint32_t zero : plan.zeros) {
    if (specs.at(zero).data == nullptr && volume(specs[zero].local_shape) > 0)
      throw Error(ErrorKind::argument,
                  specs[zero].fqn + ": has no memory to load into; it was described for a plan only");
  }
  for (const Transfer& transfer : plan.transfers) {
    if (const TensorSpec& spec = specs.at(transfer.destination); spec.data == nullptr) {
      throw Error(ErrorKind::argument,
                  spec.fqn + ": has no memory to load into; it was described for a plan only");
    }
  }
}

void expect_cpu_memory(const LoadPlan& plan, const std::vector<TensorSpec>& specs, const std::string& what) {
  expect_memory(plan, specs);
  std::vector<std::uint32_t> destinations = plan.zeros;
  for (const Transfer& transfer : plan.transfers) destinations.push_back(transfer.destination);
  for (const std::uint32_t destination : destinations) {
    if (const TensorSpec& spec = specs[destination]; spec.device != DeviceKind::cpu) {
      throw Error(ErrorKind::argument,
                  spec.fqn + ": expected CPU memory for " + what + ", found it on " + spec.device_name);
    }
  }
}

}  // namespace shardwright
