#include "storage/tools/generate.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "planner/error.h"
#include "planner/models/known_models.h"
#include "planner/models/minimax_m3_presets.h"
#include "planner/models/samples.h"
#include "planner/names/catalog.h"
#include "planner/names/packed_weights.h"
#include "storage/count_progress.h"
#include "storage/files/entries.h"
#include "storage/files/made_directories.h"
#include "storage/files/pending_file.h"
#include "storage/files/printable.h"
#include "storage/format/checkpoint_place.h"
#include "storage/format/hf_index.h"
#include "storage/format/kind_of.h"
#include "storage/format/safetensors.h"
#include "storage/threads.h"
#include "storage/tools/generate_tokenizer.h"
#include "storage/tools/generate_values.h"
#include "storage/tools/random.h"

namespace shardwright {

namespace {

namespace fs = std::filesystem;

constexpr std::size_t buffer_bytes =
    8 << 20;  // of each thread; large enough that the calls to write cost nothing

/// One file to be: its tensors, one after the other, and the bytes before them.
struct Layout {
  std::string name;
  std::string header;
  std::vector<SourceTensor> tensors;
  std::vector<NamedShape> wanted;    ///< the same, as they were asked for
  std::vector<RandomValues> values;  ///< of each

  std::uint64_t bytes() const { return tensors.back().end; }
};

/// What is to be written, before it is laid out.
struct Wanted {
  SampleCheckpoint checkpoint;
  std::uint64_t max_file_bytes = 0;
  std::string name;
};

MiniMaxM3Preset chosen_preset(const GenerateOptions& options) {
  const std::string name = options.preset.empty() ? "tiny" : options.preset;
  if (const MiniMaxM3Preset* found = find_minimax_m3_preset(name)) {
    MiniMaxM3Preset preset = *found;
    if (options.layers == 0) return preset;
    if (options.layers <= preset.dense_layers) {
      throw Error(ErrorKind::argument, "layers: expected more than the preset's " +
                                           std::to_string(preset.dense_layers) + " dense ones, found " +
                                           std::to_string(options.layers));
    }
    preset.layers = options.layers;
    return preset;
  }
  std::string known;
  for (const MiniMaxM3Preset& preset : minimax_m3_presets()) {
    known += (known.empty() ? "" : ", ") + std::string(preset.name);
  }
  throw Error(ErrorKind::argument, "preset " + in_quotes(name) + ": expected one of " + known);
}

Wanted wanted_preset(const GenerateOptions& options) {
  if (!options.form.empty() || !options.config.empty()) {
    throw Error(ErrorKind::argument,
                "form and config are a family's: expected family, too; a preset has encoding and layers");
  }
  const MiniMaxM3Preset preset = chosen_preset(options);
  const MiniMaxM3Encodings encodings =
      options.encoding.empty() ? minimax_m3_encodings() : minimax_m3_encodings(options.encoding);
  return {{minimax_m3_checkpoint(preset, encodings), minimax_m3_config(preset, encodings)},
          static_cast<std::uint64_t>(preset.max_file_bytes),
          "(preset " + std::string(preset.name) + ")"};
}

const Model& family_to_sample(std::string_view family) {
  const std::string name = family_named(family);
  return *std::find_if(models().begin(), models().end(),
                       [&](const Model& model) { return model.family == name; });
}

Wanted wanted_family(const GenerateOptions& options) {
  if (options.layers != 0) {
    throw Error(ErrorKind::argument,
                "layers are MiniMax M3's presets': expected them without family, whose config says "
                "how many there are, such as {\"num_hidden_layers\": 4}");
  }
  const Model& family = family_to_sample(options.family);
  Wanted wanted{sample_checkpoint(family, options.form, {options.encoding, options.preset, options.config}),
                0, "(family " + std::string(family.family) + ")"};
  std::uint64_t bytes = 0;
  for (const NamedShape& tensor : wanted.checkpoint.tensors)
    bytes += stored_bytes(tensor.dtype, tensor.shape);
  constexpr std::uint64_t usual_file_bytes = 5'000'000'000;
  wanted.max_file_bytes = std::min(bytes / 2, usual_file_bytes);  // even a small one has several files
  return wanted;
}

Wanted wanted(const GenerateOptions& options) {
  Wanted found = options.family.empty() ? wanted_preset(options) : wanted_family(options);
  if (options.max_file_bytes != 0) found.max_file_bytes = options.max_file_bytes;
  return found;
}

/// The tensors in their order, a new file whenever the next would make the last too large.
std::vector<Layout> lay_out(std::vector<NamedShape> tensors, std::uint64_t max_file_bytes, bool any) {
  std::vector<Layout> files;
  std::uint64_t filled = 0;
  std::optional<NamedShape> weight;  // the last that is no scale
  for (NamedShape& tensor : tensors) {
    const std::uint64_t bytes = stored_bytes(tensor.dtype, tensor.shape);
    if (files.empty() || filled + bytes > max_file_bytes) {
      files.emplace_back();
      filled = 0;
    }
    filled += bytes;
    files.back().values.push_back(any ? any_values(tensor)
                                      : trained_values(tensor, weight ? &*weight : nullptr));
    if (!is_named_scale(tensor.name)) weight = tensor;
    SourceTensor& source = files.back().tensors.emplace_back();
    source.name = tensor.name;
    source.dtype = tensor.dtype;
    source.shape = tensor.shape;
    files.back().wanted.push_back(std::move(tensor));
  }
  for (std::size_t i = 0; i < files.size(); ++i) {
    char name[64];
    std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, files.size());
    files[i].name = name;
    files[i].header = make_safetensors_header(files[i].tensors, {{"format", "pt"}});
  }
  return files;
}

/// The directory must not hold a checkpoint, whose files would mix with the new ones.
void expect_no_checkpoint(const fs::path& directory) {
  const auto refuse = [&](const std::string& found) {
    throw Error(ErrorKind::argument, printable(directory.native()) +
                                         ": expected a directory without a checkpoint, found " + found +
                                         "; give an empty directory, or empty this one");
  };
  if (is_of_trainer(kind_of(directory))) refuse("one of training");
  for (const std::string& file : names_in(directory)) {
    const fs::path name = file;
    if (name.extension() == ".safetensors" || name == hf_index_name || name == "config.json" ||
        is_beside_generated(file))
      refuse(in_quotes(name.native()));
  }
}

/// Better now than after the first terabyte.
void check_space(const fs::path& directory, std::uint64_t bytes) {
  std::error_code code;
  const fs::space_info space = fs::space(directory, code);
  if (code || space.available >= bytes) return;
  throw Error(ErrorKind::io,
              printable(directory.native()) + ": expected " + std::to_string(bytes) +
                  " bytes of free space, found " + std::to_string(space.available) +
                  "; choose a smaller preset, or only its layout",
              ENOSPC);
}

/// The bytes of numbers that are given.
std::string bytes_of_given(const NamedShape& tensor) {
  std::string bytes;
  for (const std::int64_t number : tensor.given)
    bytes.append(reinterpret_cast<const char*>(&number), static_cast<std::size_t>(bytes_of(tensor.dtype)));
  return bytes;
}

void write_values(PendingFile& file, const Layout& layout, const GenerateOptions& options,
                  std::vector<char>& buffer) {
  std::size_t used = 0;
  const auto flush = [&] {
    file.append({buffer.data(), used});
    used = 0;
  };
  for (std::size_t i = 0; i < layout.tensors.size(); ++i) {
    const SourceTensor& tensor = layout.tensors[i];
    if (layout.wanted[i].values == SampleValues::given) {
      flush();
      file.append(bytes_of_given(layout.wanted[i]));
      count_done(options.progress, tensor.end - tensor.begin);
      continue;
    }
    const std::uint64_t key = random_key(options.seed, tensor.name);
    const std::uint64_t bytes = tensor.end - tensor.begin;
    for (std::uint64_t offset = 0; offset < bytes;) {
      // Values come in words of 8 bytes: only the end of the tensor may cut one.
      std::size_t count = std::min<std::uint64_t>(bytes - offset, buffer.size() - used);
      if (count < bytes - offset) count -= count % 8;
      if (count == 0) {
        flush();
        continue;
      }
      fill_random(layout.values[i], key, offset, std::span(buffer).subspan(used, count));
      used += count;
      offset += count;
      count_done(options.progress, count);
    }
  }
  flush();
}

PendingFile write_file(const fs::path& directory, const Layout& layout, const GenerateOptions& options,
                       std::vector<char>& buffer) {
  PendingFile file(directory / layout.name);
  file.append(layout.header);
  if (options.layout_only) {
    file.resize(layout.bytes());
  } else {
    write_values(file, layout, options, buffer);
  }
  file.close();
  return file;
}

/// All files under their temporary names. Each thread takes a whole file at a time.
std::vector<PendingFile> write_files(const fs::path& directory, const std::vector<Layout>& layouts,
                                     const GenerateOptions& options) {
  std::vector<std::optional<PendingFile>> files(layouts.size());
  for_each_index(layouts.size(), options.threads, [&](std::size_t i) {
    std::vector<char> buffer(options.layout_only ? 0 : buffer_bytes);
    files[i].emplace(write_file(directory, layouts[i], options, buffer));
  });
  std::vector<PendingFile> written;
  for (std::optional<PendingFile>& file : files) written.push_back(std::move(*file));
  return written;
}

PendingFile write_text(const fs::path& path, const std::string& text) {
  PendingFile file(path);
  file.append(text);
  file.close();
  return file;
}

}  // namespace

GenerateReport generate(const fs::path& directory, const GenerateOptions& options) {
  if (options.threads < 0) {
    throw Error(ErrorKind::argument, "threads: expected 0 or more, found " + std::to_string(options.threads));
  }
  Wanted wanted_one = wanted(options);
  const std::vector<Layout> layouts =
      lay_out(std::move(wanted_one.checkpoint.tensors), wanted_one.max_file_bytes, options.any_values);
  GenerateReport report;
  std::vector<std::string> names;
  std::vector<HfIndex::Entry> entries;
  for (const Layout& layout : layouts) {
    for (const SourceTensor& tensor : layout.tensors) {
      report.bytes += tensor.end - tensor.begin;
      entries.push_back({tensor.name, static_cast<std::uint32_t>(names.size())});
    }
    names.push_back(layout.name);
  }
  report.tensors = static_cast<std::int64_t>(entries.size());
  report.files = static_cast<std::int64_t>(layouts.size());

  const fs::path place = resolved_path(directory);
  const std::vector<fs::path> made = make_directories(place);
  try {
    expect_no_checkpoint(place);
    if (!options.layout_only) {
      check_space(place, report.bytes);
      expect_in_all(options.progress, report.bytes);
    }

    // Nothing takes its final name before all is written, and the index takes it last: a checkpoint that has
    // its index is whole, and after a failure the directory is as it was.
    std::vector<PendingFile> files = write_files(place, layouts, options);
    files.push_back(write_text(place / "config.json", wanted_one.checkpoint.config));
    for (const auto& [name, text] : beside_generated(wanted_one.checkpoint.config))
      files.push_back(write_text(place / name, text));
    files.push_back(write_text(place / hf_index_name, make_hf_index(names, entries, report.bytes)));
    for (PendingFile& file : files) file.publish();
  } catch (...) {
    remove_directories(made);
    throw;
  }
  return report;
}

Catalog generated_catalog(const GenerateOptions& options) {
  Wanted wanted_one = wanted(options);
  Catalog catalog;
  catalog.directory = wanted_one.name;
  catalog.config = wanted_one.checkpoint.config;
  for (Layout& layout :
       lay_out(std::move(wanted_one.checkpoint.tensors), wanted_one.max_file_bytes, options.any_values)) {
    const auto file = static_cast<std::uint32_t>(catalog.files.size());
    catalog.files.push_back({layout.name, layout.bytes()});
    for (SourceTensor& tensor : layout.tensors) {
      tensor.file = file;
      tensor.offset.assign(tensor.shape.size(), 0);
      catalog.tensors.push_back(std::move(tensor));
    }
  }
  std::sort(catalog.tensors.begin(), catalog.tensors.end(),
            [](const SourceTensor& a, const SourceTensor& b) { return a.name < b.name; });
  see_packed_weights(catalog);
  return catalog;
}

std::vector<std::string> sample_forms(std::string_view family) {
  std::vector<std::string> forms;
  for (const Sample& sample : family_to_sample(family).samples()) forms.emplace_back(sample.form);
  return forms;
}

}  // namespace shardwright
