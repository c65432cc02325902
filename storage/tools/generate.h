#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "planner/names/catalog.h"
#include "storage/progress.h"

namespace shardwright {

/// What checkpoint to generate: MiniMax M3's in one of its presets, or one of any family.
struct GenerateOptions {
  std::string preset = {};    ///< tiny (also where it is empty), small or bench; of MiniMax M3 also full
  std::string encoding = {};  ///< of what releases quantize, see stored_encodings(); empty: as released
  bool layout_only = false;   ///< true headers, index and config.json, but sparse files behind them
  bool any_values = false;    ///< all that the formats can hold, instead of what a trained model has
  std::uint64_t seed = 0;     ///< equal seeds give equal bytes, on any machine and with any number of threads
  int threads = 0;            ///< 0: as many as there are processors
  int layers = 0;             ///< 0: as many as the preset has; more than its dense ones otherwise

  std::string family = {};  ///< instead of MiniMax M3: a family, as models() calls it
  std::string form = {};    ///< in which it is released, see sample_forms(); empty: its first
  std::string config = {};  ///< a JSON object of values for the family's config.json, which decides all sizes
  std::uint64_t max_file_bytes = 0;  ///< of tensors, but for one tensor that is larger; 0: several files

  Progress* progress = nullptr;  ///< counts bytes of tensors
};

/// What was written.
struct GenerateReport {
  std::int64_t tensors = 0;
  std::int64_t files = 0;
  std::uint64_t bytes = 0;  ///< of tensor data, as index.json's total_size says
};

/// Writes a checkpoint with the names, shapes and formats of the released model into `directory` (made if
/// missing): model-0000i-of-0000n.safetensors, model.safetensors.index.json, config.json and what a trainer
/// needs to begin (generate_tokenizer.h). Values are random, and of the size that a trained model's have: see
/// trained_values() in generate_values.h, and any_values() there. Throws Error, argument where options
/// contradict each other; refuses a directory that already holds a file of such a name.
GenerateReport generate(const std::filesystem::path& directory, const GenerateOptions& options);

/// What read_catalog would find in a directory that `generate` wrote with these options, without writing
/// anything: for planning and simulation. Its directory is "(preset NAME)" or "(family NAME)".
Catalog generated_catalog(const GenerateOptions& options);

/// The forms in which a family is released, as options spell them, the usual one first. Throws
/// Error(argument) for an unknown family.
std::vector<std::string> sample_forms(std::string_view family);

}  // namespace shardwright
