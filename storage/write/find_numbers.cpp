#include "storage/write/find_numbers.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <string>
#include <utility>

#include "kernels/encode.h"
#include "planner/error.h"
#include "storage/boxes/placing.h"
#include "storage/device/device_gatherers.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

/// Pinned memory of all threads, where values come from devices.
constexpr std::size_t pinned_bytes = std::size_t{32} << 20;

/// Bytes of values that are looked at at once: in CPU memory, and on a device at most.
constexpr std::int64_t bytes_at_once = std::int64_t{4} << 20;

/// What is looked for in a part of a held box.
enum class Sought { largest, magnitudes, values };

struct Look {
  const HeldBox* held;
  Box part;
  Sought sought;
};

/// Adds parts of so many elements.
void add_look(const HeldBox& held, const Box& part, Sought sought, std::int64_t most_elements,
              std::vector<Look>& looks) {
  if (is_empty(part)) return;
  std::size_t d = 0;
  while (d + 1 < part.size.size() && part.size[d] == 1) ++d;
  if (volume(part.size) <= most_elements || part.size[d] == 1) {
    looks.push_back({&held, part, sought});
    return;
  }
  const std::int64_t strip =
      std::max<std::int64_t>(1, most_elements / std::max<std::int64_t>(1, volume(part.size) / part.size[d]));
  for (std::int64_t done = 0; done < part.size[d]; done += strip) {
    Box one = part;
    one.offset[d] += done;
    one.size[d] = std::min(strip, part.size[d] - done);
    add_look(held, one, sought, most_elements, looks);
  }
}

/// The magnitudes of all blocks that a part has something of.
void find_in(const StridedMemory& values, DType dtype, const Look& look, KnownNumbers& known) {
  const HeldBox& held = *look.held;
  const Box blocks = scale_box_of(held.encoding, look.part);
  const Shape grid = scale_shape_of(held.encoding, held.shape);
  const Shape strides = contiguous_strides(grid);
  const std::size_t rank = look.part.size.size();
  const std::int64_t columns = blocks.size[rank - 1];
  std::vector<float> magnitudes(static_cast<std::size_t>(blocks.size[rank - 2] * columns));
  for_each_matrix(values, dtype, look.part, [&](const Shape& index, const ValueTile& tile) {
    // Of the rules only mxfp8 has scales of powers of two for FP8, and it leaves NaNs out.
    const bool is_mxfp8 = held.encoding.element == DType::F8_E4M3 && bytes_of(held.encoding.scale) == 1;
    find_magnitudes(tile, grid_at(held.encoding, look.part), magnitudes.data(), columns, is_mxfp8);
    if (look.sought == Sought::largest) {
      float largest = 0;
      for (const float magnitude : magnitudes) largest = larger_magnitude(largest, magnitude);
      return known.add_largest(held.weight, largest);
    }
    std::int64_t first = blocks.offset[rank - 1] + blocks.offset[rank - 2] * strides[rank - 2];
    for (std::size_t d = 0; d < index.size(); ++d) first += (look.part.offset[d] + index[d]) * strides[d];
    for (std::size_t m = 0; m < magnitudes.size(); ++m) {
      const auto at = static_cast<std::int64_t>(m);
      known.add_magnitude(held.weight, first + at / columns * strides[rank - 2] + at % columns,
                          magnitudes[m]);
    }
  });
}

void look_at(const StridedMemory& values, DType dtype, const Look& look, KnownNumbers& known) {
  if (look.sought != Sought::values) return find_in(values, dtype, look, known);
  std::vector<float> numbers(static_cast<std::size_t>(volume(look.part.size)));
  copy_box(copied_dimensions(look.part.size, values.strides, contiguous_strides(look.part.size)), dtype,
           DType::F32, values.data, reinterpret_cast<std::byte*>(numbers.data()));
  std::size_t n = 0;
  for_each_number(look.part, look.held->shape,
                  [&](std::int64_t element) { known.add_value(look.held->weight, element, numbers[n++]); });
}

void run(const std::vector<Look>& looks, const std::vector<TensorSpec>& specs, const DeviceOptions& options,
         KnownNumbers& known) {
  if (looks.empty()) return;
  std::vector<TensorOnDevice> on_devices;
  for (const Look& look : looks) {
    const TensorSpec& spec = specs[look.held->spec];
    if (spec.device == DeviceKind::cuda) on_devices.push_back({spec.fqn, spec.device_index});
  }
  DevicesInUse devices(on_devices, options);
  devices.run([&] {
    const GatherBounds bounds =
        devices.any()
            ? bounds_for_blocks(0, looks.size(), static_cast<std::size_t>(bytes_at_once), devices, options)
            : GatherBounds{processors(), 0, 0};
    std::vector<Look> cut;  // so that each fits into a gatherer's block
    for (const Look& look : looks) {
      const TensorSpec& spec = specs[look.held->spec];
      const std::size_t room = spec.device == DeviceKind::cuda ? bounds.block_bytes - DeviceGatherer::slack
                                                               : static_cast<std::size_t>(bytes_at_once);
      add_look(*look.held, look.part, look.sought, static_cast<std::int64_t>(room) / bytes_of(spec.dtype),
               cut);
    }
    std::vector<KnownNumbers> of_thread(static_cast<std::size_t>(bounds.threads));
    gather_on_threads(
        cut.size(), devices, bounds, [&](std::size_t n, std::size_t thread, DeviceGatherers& gatherers) {
          const Look& look = cut[n];
          const TensorSpec& spec = specs[look.held->spec];
          StridedMemory values = values_of(look.held->in_local, spec);
          for (std::size_t d = 0; d < look.part.offset.size(); ++d) {
            values.data +=
                (look.part.offset[d] - look.held->box.offset[d]) * values.strides[d] * bytes_of(spec.dtype);
          }
          KnownNumbers& numbers = of_thread[thread];
          if (spec.device != DeviceKind::cuda) return look_at(values, spec.dtype, look, numbers);
          gather_values(gatherers.of(spec.device_index), values, spec.dtype, look.part, look.held->weight,
                        [&look, &numbers, dtype = spec.dtype](const std::byte* bytes) {
                          look_at({bytes, contiguous_strides(look.part.size)}, dtype, look, numbers);
                        });
        });
    for (const KnownNumbers& numbers : of_thread) {
      for (const WeightNumbers& of_weight : numbers.all()) known.add(of_weight);
    }
  });
}

bool is_inside(const Box& inner, const Box& outer) { return intersection(inner, outer) == inner; }

}  // namespace

BlockGrid grid_at(const Encoding& encoding, const Box& box) {
  const std::size_t rank = box.offset.size();
  return {encoding.block_rows, encoding.block_columns, box.offset[rank - 2] % encoding.block_rows,
          box.offset[rank - 1] % encoding.block_columns};
}

void for_each_matrix(const StridedMemory& values, DType dtype, const Box& box,
                     const std::function<void(const Shape& index, const ValueTile& tile)>& visit) {
  const std::size_t leading = box.size.size() - 2;
  const Shape counts(box.size.begin(), box.size.begin() + static_cast<std::ptrdiff_t>(leading));
  Shape index(leading, 0);
  do {
    const std::byte* data = values.data;
    for (std::size_t d = 0; d < leading; ++d) data += index[d] * values.strides[d] * bytes_of(dtype);
    visit(index, {data, dtype, box.size[leading], box.size[leading + 1], values.strides[leading],
                  values.strides[leading + 1]});
  } while (next_index(index, counts));
}

void gather_values(DeviceGatherer& gatherer, const StridedMemory& values, DType dtype, const Box& box,
                   const std::string& name, const DeviceGatherer::Receive& receive) {
  const std::vector<CopiedDimension> dimensions =
      copied_dimensions(box.size, values.strides, contiguous_strides(box.size));
  const auto bytes = static_cast<std::size_t>(volume(box.size) * bytes_of(dtype));
  if (bytes + DeviceGatherer::slack > gatherer.block_bytes()) {
    throw Error(ErrorKind::argument, name + ": expected room on the device for " + std::to_string(bytes) +
                                         " bytes, which are encoded at once, found " +
                                         std::to_string(gatherer.block_bytes()) +
                                         "; raise device_memory (and staging_bytes, if it is given)");
  }
  gatherer.begin(bytes, name, receive);
  if (is_one_run(dimensions)) return gatherer.copy(values.data, bytes);
  for_each_tile(dimensions, dtype, dtype, values.data, gatherer.stretch(bytes),
                [&](const cuda::Placing& placing) { gatherer.place(placing); });
}

std::vector<WeightNumbers> find_numbers(const std::vector<TensorSpec>& specs, const ExportForm& form,
                                        const DeviceOptions& options) {
  const std::vector<HeldBox> all = held_boxes(specs, form);
  std::vector<Look> looks;
  std::map<std::string, std::vector<std::int64_t>> wanted;
  KnownNumbers known;
  for (const HeldBox& held : all) {
    if (is_empty(held.box) || !is_told_by_numbers(form, held.encoding, held.shape.size())) continue;
    if (!can_encode(specs[held.spec].dtype)) continue;  // which planning refuses, by name
    if (form.quantize->has_global()) looks.push_back({&held, held.box, Sought::largest});
    for (Box& part : in_cut_blocks(held.encoding, held.box, held.shape))
      looks.push_back({&held, std::move(part), Sought::magnitudes});
    if (auto column = column_for_another(held.encoding, held.box))
      looks.push_back({&held, *std::move(column), Sought::values});
    if (const auto column = column_of_another(held.encoding, held.box)) {
      known.add_largest(held.weight, 0);
      for_each_number(*column, held.shape,
                      [&](std::int64_t element) { wanted[held.weight].push_back(element); });
    }
  }
  run(looks, specs, options, known);
  std::vector<WeightNumbers> numbers = known.all();
  for (WeightNumbers& of_weight : numbers) {
    const auto found = wanted.find(of_weight.weight);
    if (found == wanted.end()) continue;
    of_weight.wanted = std::move(found->second);
    std::sort(of_weight.wanted.begin(), of_weight.wanted.end());
  }
  return numbers;
}

void complete_numbers(const std::vector<TensorSpec>& specs, const std::vector<TensorSpec>& parts,
                      const ExportForm& form, const DeviceOptions& options, KnownNumbers& known) {
  const std::vector<HeldBox> all = held_boxes(specs, form);
  std::multimap<std::string, const HeldBox*> by_weight;
  for (const HeldBox& held : all) by_weight.emplace(held.weight, &held);
  std::vector<Look> looks;
  const auto look_for = [&](const std::string& weight, const Box& box, Sought sought) {
    const auto [begin, end] = by_weight.equal_range(weight);
    const auto holder =
        std::find_if(begin, end, [&](const auto& entry) { return is_inside(box, entry.second->box); });
    if (holder != end) looks.push_back({holder->second, box, sought});
  };
  for (const HeldBox& part : held_boxes(parts, form)) {
    if (!is_told_by_numbers(form, part.encoding, part.shape.size())) continue;
    const Shape grid = scale_shape_of(part.encoding, part.shape);
    for (const Box& cut : in_cut_blocks(part.encoding, part.box, part.shape)) {
      const Box blocks = scale_box_of(part.encoding, cut);
      Shape index(blocks.size.size(), 0);
      do {
        Box block{blocks.offset, Shape(index.size(), 1)};
        for (std::size_t d = 0; d < index.size(); ++d) block.offset[d] += index[d];
        bool is_known = false;
        for_each_number(block, grid, [&](std::int64_t number) {
          is_known = known.magnitude(part.weight, number).has_value();
        });
        if (!is_known)
          look_for(part.weight, weight_box_of(part.encoding, block, part.shape), Sought::magnitudes);
      } while (next_index(index, blocks.size));
    }
    const auto column = column_of_another(part.encoding, part.box);
    if (!column) continue;
    bool is_known = true;
    for_each_number(*column, part.shape, [&](std::int64_t element) {
      is_known = is_known && known.value(part.weight, element).has_value();
    });
    if (!is_known) look_for(part.weight, *column, Sought::values);
  }
  run(looks, specs, options, known);
}

}  // namespace shardwright
