#pragma once

// A random tile to place or decode, with the result that the slow definition gives.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/cuda/placed_tile.h"
#include "slow_definition.h"
#include "tiles.h"

namespace shardwright::cuda {

inline const std::vector<DType> wide_floats = {DType::BF16, DType::F16, DType::F32, DType::F64};

/// From one dtype to another; with a format, decoded.
struct Change {
  DType source;
  DType destination;
  std::optional<Format> format;
};

inline std::vector<Change> every_change() {
  std::vector<Change> changes;
  for (const DType to : wide_floats) {
    for (const Format& format : formats) changes.push_back({format.element, to, format});
    for (const DType from :
         {DType::F8_E4M3, DType::F8_E5M2, DType::F16, DType::BF16, DType::F32, DType::F64}) {
      changes.push_back({from, to, std::nullopt});
    }
  }
  for (const DType same :
       {DType::BOOL, DType::F8_E4M3, DType::F8_E8M0, DType::I16, DType::I32, DType::I64, DType::C64}) {
    changes.push_back({same, same, std::nullopt});
  }
  return changes;
}

struct RandomPlacing {
  RandomSource source;
  std::optional<RandomScales> scales;
  RandomDestination destination;
  RandomDestination expected;
  std::string format_name;

  RandomPlacing(Random& random, const Change& change, std::int64_t rows, std::int64_t columns,
                Strides strides)
      : source(random, change.source, rows, columns),
        destination(random, change.destination, rows, columns, strides),
        expected(destination) {
    if (change.format) {
      scales.emplace(random, *change.format, rows, columns);
      format_name = change.format->name();
      slow::decode(source.tile, scales->scales, expected.tile);
    } else {
      slow::place(source.tile, expected.tile);
    }
  }

  Placing placing() const { return {source.tile, scales ? scales->scales : BlockScales{}, destination.tile}; }

  /// The whole memory: what lies around the tile and between its elements has not changed.
  bool is_as_expected() const { return destination.memory == expected.memory; }

  std::string describe() const {
    std::string text = description(source.tile, destination.tile);
    if (scales) {
      const BlockScales& s = scales->scales;
      text += ", " + format_name + ", here " + std::to_string(s.block_rows) + " x " +
              std::to_string(s.block_columns) + " from " + std::to_string(s.first_row) + ", " +
              std::to_string(s.first_column);
    }
    return text;
  }
};

}  // namespace shardwright::cuda
