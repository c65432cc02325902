#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "planner/names/catalog.h"

namespace shardwright {

/// Names of the encodings that can be asked for: those that MiniMax M3 and its like have been released in.
const std::vector<std::string_view>& generated_encodings();

/// What checkpoint to generate.
struct GenerateOptions {
  std::string preset = "tiny";     ///< tiny, small, bench or full: see planner/models/minimax_m3_presets.h
  std::string encoding = "mxfp8";  ///< of the block-scaled weights, see generated_encodings()
  bool layout_only = false;        ///< true headers, index and config.json, but sparse files behind them
  std::uint64_t seed = 0;  ///< equal seeds give equal bytes, on any machine and with any number of threads
  int threads = 0;         ///< 0: as many as there are processors
  int layers = 0;          ///< 0: as many as the preset has; more than its dense ones otherwise
};

/// What was written.
struct GenerateReport {
  std::int64_t tensors = 0;
  std::int64_t files = 0;
  std::uint64_t bytes = 0;  ///< of tensor data, as index.json's total_size says
};

/// Writes an FP8 checkpoint with the names, shapes and formats of MiniMax M3 VL into `directory` (made if
/// missing): model-0000i-of-0000n.safetensors, model.safetensors.index.json and config.json. Values are
/// random and exercise the formats: every FP8 code but NaN, scales over a wide range. Throws Error; refuses a
/// directory that already holds safetensors.
GenerateReport generate(const std::filesystem::path& directory, const GenerateOptions& options);

/// What read_catalog would find in a directory that `generate` wrote with these options, without writing
/// anything: for planning and simulation. Its directory is "(preset NAME)".
Catalog generated_catalog(const GenerateOptions& options);

}  // namespace shardwright
