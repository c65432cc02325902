#include "storage/write/cut_block_scales.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "storage/device/device_gatherers.h"
#include "storage/write/export_tasks.h"

namespace shardwright {
namespace {

/// Pinned memory to bring them by.
constexpr std::size_t staging_bytes = std::size_t{512} << 10;

void find_on_device(const ValueTile& tile, std::int64_t first_column, BlockColumn& column,
                    DeviceGatherer& gatherer) {
  const auto most = static_cast<std::int64_t>(gatherer.block_bytes() - DeviceGatherer::slack);
  for (std::int64_t row = 0; row < tile.rows; row += most) {
    ValueTile part = tile;
    part.rows = std::min(most, tile.rows - row);
    part.data = static_cast<const std::byte*>(tile.data) + row * tile.row_stride * bytes_of(tile.dtype);
    gatherer.find_scales(part, first_column, column.weight,
                         [to = column.scales.data() + row, count = part.rows](const std::byte* found) {
                           std::memcpy(to, found, static_cast<std::size_t>(count));
                         });
  }
}

}  // namespace

std::vector<BlockColumn> scales_of_cut_blocks(const std::vector<TensorSpec>& specs, const ExportForm& form,
                                              const DeviceOptions& options) {
  std::vector<CutBlocks> cuts = cut_blocks(specs, form);
  std::vector<TensorOnDevice> on_devices;
  for (CutBlocks& cut : cuts) {
    cut.column.scales.resize(static_cast<std::size_t>(cut.part.size[0]));
    const TensorSpec& spec = specs[cut.spec];
    if (spec.device == DeviceKind::cuda) on_devices.push_back({spec.fqn, spec.device_index});
  }
  DevicesInUse devices(on_devices, options);
  devices.run([&] {
    const GatherBounds bounds = gather_bounds(1, staging_bytes, devices.count(), options.memory);
    gather_on_threads(cuts.size(), devices, bounds,
                      [&](std::size_t n, std::size_t, DeviceGatherers& gatherers) {
                        CutBlocks& cut = cuts[n];
                        const TensorSpec& spec = specs[cut.spec];
                        const ValueTile tile = tile_of(values_of(cut.in_local, spec), spec.dtype, cut.part);
                        const std::int64_t first_column = cut.part.offset[1] % mxfp8_block_columns;
                        if (spec.device == DeviceKind::cuda) {
                          find_on_device(tile, first_column, cut.column, gatherers.of(spec.device_index));
                        } else {
                          find_scales(tile, first_column, cut.column.scales.data(), 1);
                        }
                      });
  });
  std::vector<BlockColumn> columns;
  for (CutBlocks& cut : cuts) columns.push_back(std::move(cut.column));
  return columns;
}

}  // namespace shardwright
