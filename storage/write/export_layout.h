#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "planner/names/catalog.h"
#include "planner/save/export_form.h"

namespace shardwright {

/// A small tensor that the export makes.
struct Made {
  std::uint32_t tensor = 0;  ///< index into Catalog::tensors
  MadeTensor how;
};

/// The files of an export before any of them is written: every byte's place is known.
struct ExportLayout {
  Catalog catalog;                            ///< what the directory will hold
  std::vector<std::string> headers;           ///< by index into Catalog::files: the bytes before the tensors
  std::uint64_t total_size = 0;               ///< bytes of all tensors
  const Catalog* template_catalog = nullptr;  ///< whose encodings and scales weights get; null: nobody's
  std::shared_ptr<const Catalog> packed_template =
      nullptr;                             ///< which that points to, if it is not the caller's
  std::vector<std::uint32_t> copied;       ///< indices into Catalog::tensors of what is the template's
  std::vector<Made> made;                  ///< what is neither the template's nor in a state dict
  const Quantization* quantize = nullptr;  ///< by which weights with scales are encoded; null: as_template
  bool has_holes = false;                  ///< what nobody writes of the files is zero
  bool has_checksums = true;               ///< a list of checksums will lie beside the files
};

/// Spreads the tensors over files, <start_of_names>-XXXXX-of-YYYYY.safetensors, in the order given. A new
/// file begins whenever the next tensor would make the last one's tensors take more than `max_file_bytes` (as
/// transformers splits; a larger tensor gets a file of its own); or as `file_numbers` says, which counts
/// files from 1, scales going with their weights. Throws Error(argument) for a tensor that it does not list.
ExportLayout lay_out(const std::filesystem::path& directory, std::vector<SourceTensor> tensors,
                     std::uint64_t max_file_bytes, const std::map<std::string, int>& file_numbers = {},
                     const std::string& start_of_names = "model");

/// Puts all tensors into one file of that name, in the order given, with such metadata beside the format's
/// own. Nothing lies beside it that this library knows of.
ExportLayout lay_out_one_file(const std::filesystem::path& directory, std::vector<SourceTensor> tensors,
                              const std::string& name, std::map<std::string, std::string> metadata);

/// The text of its model.safetensors.index.json: tensors in the order in which they lie in the files.
std::string hf_index_of(const ExportLayout& layout);

}  // namespace shardwright
