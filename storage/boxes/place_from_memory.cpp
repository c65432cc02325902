#include "storage/boxes/place_from_memory.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/geometry/lattice.h"
#include "planner/load/transfers.h"
#include "storage/boxes/placing.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

/// Elements of a piece of work: enough that handing it out costs nothing, few enough that all threads get
/// some.
constexpr std::int64_t piece_elements = std::int64_t{1} << 20;

/// A strip of a transfer's source box.
struct Strip {
  std::size_t transfer;
  Box box;
};

std::vector<Strip> cut_into_strips(const LoadPlan& plan) {
  std::vector<Strip> strips;
  for (std::size_t t = 0; t < plan.transfers.size(); ++t) {
    const Box& box = plan.transfers[t].source_box;
    if (box.size.empty()) {
      strips.push_back({t, box});
      continue;
    }
    const std::int64_t per_row =
        std::max<std::int64_t>(1, volume(box.size) / std::max<std::int64_t>(1, box.size[0]));
    const std::int64_t rows = std::max<std::int64_t>(64, piece_elements / per_row / 64 * 64);
    for (std::int64_t begin = 0; begin < box.size[0]; begin += rows) {
      Box strip = box;
      strip.offset[0] += begin;
      strip.size[0] = std::min(rows, box.size[0] - begin);
      strips.push_back({t, std::move(strip)});
    }
  }
  return strips;
}

/// The memory from the element at that offset on; the strides may be those of a view of it.
StridedMemory from(const StridedMemory& memory, Shape strides, DType dtype, const Shape& offset) {
  const std::byte* const first = memory.data + bytes_to(dtype, elements_to(offset, strides));
  return {first, std::move(strides)};
}

void check(const SourceTensor& tensor, const StridedMemory& memory, bool rows_must_be_contiguous) {
  const bool fits = memory.data != nullptr && memory.strides.size() == tensor.shape.size();
  if (fits && (!rows_must_be_contiguous || memory.strides.empty() || memory.strides.back() == 1 ||
               tensor.shape.back() <= 1)) {
    return;
  }
  throw Error(ErrorKind::argument,
              tensor.name + ": expected its memory" +
                  (rows_must_be_contiguous ? ", the elements of a row side by side" : "") + ", found " +
                  (fits ? "strides " + to_string(memory.strides) : "none"));
}

}  // namespace

void place_from_memory(const LoadPlan& plan, const Catalog& catalog,
                       const std::vector<StridedMemory>& sources, const std::vector<TensorSpec>& specs,
                       int threads) {
  expect_cpu_memory(plan, specs, "placing from memory");
  for (const Transfer& transfer : plan.transfers) {
    check(catalog.tensors[transfer.source], sources.at(transfer.source), transfer.encoding.scaled);
    if (transfer.scales >= 0) {
      const auto scales = static_cast<std::size_t>(transfer.scales);
      check(catalog.tensors[scales], sources.at(scales), true);
    }
    if (transfer.global >= 0) {
      const auto global = static_cast<std::size_t>(transfer.global);
      check(catalog.tensors[global], sources.at(global), true);
    }
  }
  for (const std::uint32_t zero : plan.zeros) fill_with_zeros(specs[zero]);
  const std::vector<Strip> strips = cut_into_strips(plan);
  for_each_index(strips.size(), threads, [&](std::size_t i) {
    const Strip& strip = strips[i];
    const Transfer& transfer = plan.transfers[strip.transfer];
    const DType dtype = catalog.tensors[transfer.source].dtype;
    const bool is_seen = !transfer.source_view.empty();
    const auto strides_of = [&](const StridedMemory& memory, const auto& lattice) {
      return is_seen ? strides_along(lattice(), memory.strides) : memory.strides;
    };
    const StridedMemory& source = sources[transfer.source];
    Shape strides =
        strides_of(source, [&] { return read_lattice(transfer, catalog.tensors[transfer.source]); });
    BoxInMemory part{strip.box, from(source, std::move(strides), dtype, strip.box.offset)};
    if (transfer.global >= 0)
      std::memcpy(&part.global, sources[static_cast<std::size_t>(transfer.global)].data, sizeof part.global);
    if (transfer.scales >= 0) {
      const StridedMemory& scales = sources[static_cast<std::size_t>(transfer.scales)];
      Shape scale_strides = strides_of(scales, [&] {
        return scale_lattice(transfer, catalog.tensors[static_cast<std::size_t>(transfer.scales)]);
      });
      part.scales = from(scales, std::move(scale_strides), transfer.encoding.scale,
                         scale_box_of_part(transfer, strip.box).offset);
    }
    place_box(transfer, dtype, part, specs[transfer.destination]);
  });
}

}  // namespace shardwright
