#include "storage/tools/verify.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "planner/error.h"
#include "planner/problems.h"
#include "storage/count_progress.h"
#include "storage/device/staging.h"
#include "storage/files/entries.h"
#include "storage/files/input_file.h"
#include "storage/files/printable.h"
#include "storage/files/remote_calls.h"
#include "storage/format/checkpoint_in_place.h"
#include "storage/format/checkpoint_place.h"
#include "storage/format/checksum.h"
#include "storage/format/checksums_file.h"
#include "storage/format/read_catalog.h"
#include "storage/format/row_checksums.h"
#include "storage/format/safetensors.h"
#include "storage/format/torch_metadata.h"
#include "storage/format/torch_stream.h"
#include "storage/threads.h"
#include "storage/tools/undamaged.h"
#include "storage/tools/verify_scales.h"

namespace shardwright {

namespace {

namespace fs = std::filesystem;

/// Collects problems from several threads; each comes with the order that it is told in.
class Findings {
 public:
  void add(std::size_t order, const std::string& name, std::string line) {
    const std::lock_guard lock(mutex_);
    lines_.emplace(order, std::move(line));
    if (!name.empty()) damaged_.insert(name);
  }

  void add(std::size_t order, const std::string& name, const std::string& before, const Error& error) {
    add(order, name, before + error.what());
    const std::lock_guard lock(mutex_);
    if (refusal_ == 0 && refused_by_system(error)) refusal_ = error.system_error;
  }

  /// errno of the first that the operating system refused to read; 0: none.
  int refusal() const { return refusal_; }

  void move_to(VerifyReport& report) {
    for (auto& [order, line] : lines_) report.problems.push_back(std::move(line));
    report.damaged.assign(damaged_.begin(), damaged_.end());
  }

 private:
  std::mutex mutex_;
  std::multimap<std::size_t, std::string> lines_;
  std::set<std::string> damaged_;
  int refusal_ = 0;
};

/// Files by index, opened when asked for and closed when nobody uses them, but for the last one: a checkpoint
/// may have more than a process may have open. Null, and told once, for one that cannot be opened.
class Files {
 public:
  Files(const Manifest& manifest, const fs::path& directory, Findings& findings)
      : manifest_(manifest), directory_(directory), findings_(findings), files_(manifest.files.size()) {
    if (!is_remote(directory)) return;
    for (RemoteObject& object : remote_calls(directory).list(directory.native()))
      listed_.emplace(object.name, std::move(object));
  }

  /// True where a save that did not end, or runs, has left its folder.
  bool are_beside_an_unfinished_save() const {
    if (!is_remote(directory_)) return entry_at(directory_ / unfinished_save_name).has_value();
    return std::any_of(listed_.begin(), listed_.end(), [](const auto& object) {
      return object.first.starts_with(std::string(unfinished_save_name) + "/");
    });
  }

  std::shared_ptr<InputFile> open(std::size_t index) {
    const std::lock_guard lock(mutex_);
    Slot& slot = files_[index];
    std::shared_ptr<InputFile> file = slot.file.lock();
    if (file || slot.is_lost) return file;
    try {
      const std::string& name = manifest_.files[index].name;
      const auto known = listed_.find(name);
      file = known == listed_.end()
                 ? std::make_shared<InputFile>(directory_ / name)
                 : std::make_shared<InputFile>(directory_ / name, known->second.size, known->second.version);
    } catch (const Error& error) {
      if (error.system_error == EMFILE || error.system_error == ENFILE) throw;  // no fault of the checkpoint
      slot.is_lost = true;
      findings_.add(index, "", "", error);
      return nullptr;
    }
    slot.file = file;
    last_ = file;
    return file;
  }

 private:
  struct Slot {
    std::weak_ptr<InputFile> file;
    bool is_lost = false;
  };
  const Manifest& manifest_;
  const fs::path& directory_;
  Findings& findings_;
  std::map<std::string, RemoteObject> listed_;  // of an address: opening one asks for nothing more
  std::mutex mutex_;
  std::vector<Slot> files_;
  std::shared_ptr<InputFile> last_;
};

struct Block {
  std::size_t range;
  std::uint64_t number;
  std::size_t order;  // that it is told in
};

/// In the order of the files.
std::vector<Block> blocks_of(const std::vector<const FileRange*>& ranges) {
  std::vector<Block> blocks;
  for (std::size_t p = 0; p < ranges.size(); ++p) {
    for (std::uint64_t number = 0; number < ranges[p]->bytes.checksums.size(); ++number)
      blocks.push_back({p, number, blocks.size()});
  }
  std::stable_sort(blocks.begin(), blocks.end(), [&](const Block& a, const Block& b) {
    const auto place_of = [&](const Block& block) {
      return std::pair(ranges[block.range]->file, ranges[block.range]->bytes.begin);
    };
    return place_of(a) < place_of(b);
  });
  return blocks;
}

/// The rows of what lies at the ranges.
std::vector<RowGeometry> geometries_of(const Manifest& manifest,
                                       const std::vector<const FileRange*>& ranges) {
  std::unordered_map<const FileRange*, std::uint64_t> row_bytes;
  for (const StoredTensor& tensor : manifest.tensors) {
    if (tensor.safetensors_dtype.empty()) continue;
    for (const StoredChunk& chunk : tensor.chunks) {
      const std::int64_t last = chunk.box.size.empty() ? 1 : chunk.box.size.back();
      row_bytes.emplace(&chunk.range, static_cast<std::uint64_t>(last) * tensor.element_bytes);
    }
  }
  std::vector<RowGeometry> geometries;
  for (const FileRange* range : ranges) {
    const std::uint64_t bytes = range->bytes.end - range->bytes.begin;
    const auto known = row_bytes.find(range);
    geometries.push_back({bytes, known == row_bytes.end() ? bytes : known->second});
  }
  return geometries;
}

/// Hashes what lies at the ranges. Returns the bytes that were hashed.
std::uint64_t check_ranges(const Manifest& manifest, const std::vector<const FileRange*>& ranges,
                           const std::vector<std::string>& names, Files& files, Findings& findings,
                           int threads, Progress* progress) {
  const std::vector<RowGeometry> geometries = geometries_of(manifest, ranges);
  const std::vector<Block> blocks = blocks_of(ranges);
  std::atomic<std::uint64_t> hashed = 0;
  for (const FileRange* range : ranges) expect_in_all(progress, range->bytes.end - range->bytes.begin);
  for_each_index(blocks.size(), threads, [&](std::size_t index) {
    const Block& block = blocks[index];
    const FileRange& range = *ranges[block.range];
    const std::size_t order = manifest.files.size() + block.order;
    const std::uint64_t begin = range.bytes.begin + block.number * checksum_block_bytes;
    const std::uint64_t count = std::min(checksum_block_bytes, range.bytes.end - begin);
    const std::string& name = names[block.range];
    const std::shared_ptr<InputFile> file = files.open(range.file);
    if (!file) return findings.add(order, name, in_quotes(name) + ": its file cannot be opened");
    thread_local Staging staging;
    std::byte* bytes = staging.room_for(count);
    try {
      file->read(begin, reinterpret_cast<char*>(bytes), count);
    } catch (const Error& error) {
      return findings.add(order, name, in_quotes(name) + ": ", error);
    }
    hashed += count;
    count_done(progress, count);
    const std::uint64_t found =
        manifest.version == 1
            ? checksum_of(bytes, count)
            : sum_of_block(geometries[block.range], {}, bytes, block.number * checksum_block_bytes, count);
    if (found != range.bytes.checksums[block.number]) {
      findings.add(order, name,
                   printable(file->path().native()) + ": " + in_quotes(name) + " is damaged: bytes " +
                       std::to_string(begin) + " to " + std::to_string(begin + count) +
                       " do not have the checksum that they were saved with");
    }
  });
  return hashed;
}

/// A chunk that the manifest says a file holds.
struct Listed {
  const StoredTensor* tensor;
  const StoredChunk* chunk;
};

/// By file.
std::vector<std::vector<Listed>> listed_in_files(const Manifest& manifest) {
  std::vector<std::vector<Listed>> found(manifest.files.size());
  for (const StoredTensor& tensor : manifest.tensors) {
    for (const StoredChunk& chunk : tensor.chunks) found[chunk.range.file].push_back({&tensor, &chunk});
  }
  return found;
}

/// What the manifest says of a safetensors file's chunks has to be what the header says.
void compare(const std::vector<Listed>& listed, std::size_t index, const SafetensorsHeader& header,
             const std::string& path, Findings& findings) {
  std::unordered_map<std::string_view, const SourceTensor*> in_header;
  for (const SourceTensor& tensor : header.tensors) in_header.emplace(tensor.name, &tensor);
  const auto text = [](std::string_view dtype, const Shape& shape, std::uint64_t begin, std::uint64_t end) {
    return std::string(dtype) + " " + to_string(shape) + " in bytes " + std::to_string(begin) + " to " +
           std::to_string(end);
  };
  for (const auto& [tensor, chunk] : listed) {
    const StoredBytes& bytes = chunk->range.bytes;
    const std::string expected = text(tensor->safetensors_dtype, chunk->box.size, bytes.begin, bytes.end);
    const auto found = in_header.find(tensor->name);
    const std::string told = found == in_header.end()
                                 ? "no such tensor"
                                 : text(name_of(found->second->dtype), found->second->shape,
                                        found->second->begin, found->second->end);
    if (told == expected) continue;
    findings.add(index, tensor->name,
                 path + ": " + in_quotes(tensor->name) + ": the manifest says " + expected +
                     ", the header of the file says " + told +
                     "; they are of different saves, or one is damaged");
  }
}

void check_header(const Manifest& manifest, const std::vector<Listed>& listed, std::size_t index,
                  Files& files, Findings& findings) {
  const StoredFile& expected = manifest.files[index];
  const std::shared_ptr<InputFile> file = files.open(index);
  if (!file) return;
  const std::string path = printable(file->path().native());
  // A save gives torch's metadata its name just before the manifest, which commits. True: that is all.
  const auto is_of_the_next = [&] {
    if (expected.name != torch_metadata_name || !files.are_beside_an_unfinished_save()) return false;
    findings.add(index, "",
                 path + ": is of a save that has not ended (" + unfinished_save_name +
                     " is there), or damaged: torch's readers find that save here, Shardwright finds the "
                     "one before; the next save or export to this path puts it right");
    return true;
  };
  if (file->size() != expected.size) {
    if (is_of_the_next()) return;
    findings.add(index, "",
                 path + ": expected " + std::to_string(expected.size) + " bytes, found " +
                     std::to_string(file->size()));
  }
  if (expected.header_bytes == 0 || file->size() < expected.header_bytes) return;
  std::string header(expected.header_bytes, '\0');
  try {
    file->read(0, header.data(), header.size());
  } catch (const Error& error) {
    return findings.add(index, "", "", error);
  }
  if (checksum_of(header.data(), header.size()) != expected.header_checksum) {
    if (is_of_the_next()) return;
    findings.add(index, "",
                 path + ": the header is damaged: it does not have the checksum that it was saved with");
    for (const auto& [tensor, chunk] : listed)  // other readers find these by the header
      findings.add(index, tensor->name, path + ": holds a chunk of " + in_quotes(tensor->name));
    return;
  }
  if (listed.empty()) return;  // torch's metadata, which is all header
  try {
    compare(listed, index, parse_safetensors_header(std::string_view(header).substr(8), file->size(), path),
            path, findings);
  } catch (const Error& error) {
    findings.add(index, "", "", error);
  }
}

/// What torch reads before the bytes of a chunk has to be what the manifest says of it.
void check_streams(const std::vector<Listed>& chunks, Files& files, Findings& findings, int threads) {
  for_each_index(chunks.size(), threads, [&](std::size_t index) {
    const StoredTensor& tensor = *chunks[index].tensor;
    const StoredChunk& chunk = *chunks[index].chunk;
    const FileRange& range = chunk.range;
    const std::shared_ptr<InputFile> file = files.open(range.file);
    if (!file) return;
    const auto differ = [&](const std::string& what) {
      findings.add(range.file, tensor.name,
                   printable(file->path().native()) + ": " + in_quotes(tensor.name) + ": " + what);
    };
    try {
      const std::string expected =
          torch_stream_header(tensor.name, tensor.dtype, tensor.element_bytes, chunk.box);
      if (expected.size() > range.bytes.begin) return differ("there is no room for torch's header");
      std::string found(expected.size(), '\0');
      file->read(range.bytes.begin - found.size(), found.data(), found.size());
      if (found != expected)
        differ("the header that torch reads, before byte " + std::to_string(range.bytes.begin) +
               ", is not that of a chunk of " + tensor.dtype + " " + to_string(chunk.box.size));
    } catch (const Error& error) {
      findings.add(range.file, tensor.name, in_quotes(tensor.name) + ": ", error);
    }
  });
}

void verify_sharded(const fs::path& directory, int threads, Progress* progress, VerifyReport& report,
                    Findings& findings) {
  const Manifest manifest = read_manifest(directory);
  report.files = static_cast<std::int64_t>(manifest.files.size());
  report.tensors = static_cast<std::int64_t>(manifest.tensors.size());
  report.objects = static_cast<std::int64_t>(manifest.objects.size());
  Files files(manifest, directory, findings);
  const std::vector<std::vector<Listed>> listed = listed_in_files(manifest);
  for_each_index(manifest.files.size(), threads,
                 [&](std::size_t index) { check_header(manifest, listed[index], index, files, findings); });
  if (is_readable_by_torch(manifest)) {
    for (const std::vector<Listed>& of_file : listed) check_streams(of_file, files, findings, threads);
  }
  std::vector<const FileRange*> ranges;
  std::vector<std::string> names;
  for (const StoredTensor& tensor : manifest.tensors) {
    for (const StoredChunk& chunk : tensor.chunks) {
      ranges.push_back(&chunk.range);
      names.push_back(tensor.name);
    }
  }
  for (const StoredObject& object : manifest.objects) {
    ranges.push_back(&object.range);
    names.push_back(object.name);
  }
  report.bytes_hashed = check_ranges(manifest, ranges, names, files, findings, threads, progress);
}

void verify_hugging_face(const fs::path& directory, int threads, Progress* progress, VerifyReport& report,
                         Findings& findings) {
  const Catalog catalog = read_catalog(directory, threads);
  report.files = static_cast<std::int64_t>(catalog.files.size());
  const std::vector<StoredScales> scales = scales_in(catalog);
  for (const StoredScales& one : scales) expect_in_all(progress, one.bytes);
  std::atomic<std::uint64_t> hashed = 0;
  if (catalog.checksums != nullptr) {
    for (const SourceTensor& tensor : catalog.tensors) expect_in_all(progress, tensor.end - tensor.begin);
  }
  for_each_index(catalog.tensors.size(), threads, [&](std::size_t tensor) {
    std::uint64_t bytes = 0;
    for (std::string& line : faults_of_rows(catalog, tensor, bytes))
      findings.add(tensor, catalog.tensors[tensor].name, std::move(line));
    hashed += bytes;
    count_done(progress, bytes);
  });
  report.bytes_hashed = hashed;
  for (ScaleFault& fault : faults_of_scales(catalog, scales, threads, progress))
    findings.add(fault.tensor, stored_name(catalog.tensors[fault.tensor]), std::move(fault.line));
  if (const std::optional<Checksums> listed = read_checksums(directory)) {
    for (const StoredFile& file : listed->beside) {
      try {
        if (whole_file(directory, file.name) == file) continue;
        findings.add(catalog.tensors.size(), "",
                     printable((directory / file.name).native()) +
                         ": this is not the file that was exported beside the weights");
      } catch (const Error& error) {
        findings.add(catalog.tensors.size(), "", error.what());
      }
    }
  }
  for (auto first = catalog.tensors.begin(); first != catalog.tensors.end();) {
    auto last = std::find_if(first, catalog.tensors.end(),
                             [&](const SourceTensor& tensor) { return tensor.name != first->name; });
    ++report.tensors;
    std::vector<Box> boxes;
    for (auto chunk = first; chunk != last; ++chunk) {
      if (volume(chunk->shape) > 0) boxes.push_back({chunk->offset, chunk->shape});
    }
    const Shape shape = Catalog::global_shape({&*first, static_cast<std::size_t>(last - first)});
    if (const std::string fault = tiling_fault(whole(shape), boxes); !fault.empty()) {
      findings.add(0, first->name,
                   printable(catalog.path_of(*first).native()) + ": " + in_quotes(first->name) +
                       ": its chunks do not make up the whole: " + fault);
    }
    first = last;
  }
}

void throw_if_any(Findings& findings) {
  VerifyReport report;
  findings.move_to(report);
  Problems problems;
  problems.lines = std::move(report.problems);
  try {
    problems.throw_if_any(ErrorKind::malformed, findings.refusal() == 0 ? "the checkpoint is damaged"
                                                                        : "the checkpoint cannot be read");
  } catch (const Error& error) {
    if (findings.refusal() == 0) throw;
    throw Error(ErrorKind::io, error.what(), findings.refusal());
  }
}

}  // namespace

VerifyReport verify_checkpoint(const fs::path& directory, int given_threads, Progress* progress) {
  const int threads = threads_for(directory, given_threads);
  VerifyReport report;
  Findings findings;
  const bool sharded = has_manifest(directory);
  report.kind = sharded ? "sharded" : "Hugging Face";
  try {
    if (sharded) {
      verify_sharded(directory, threads, progress, report, findings);
    } else {
      verify_hugging_face(directory, threads, progress, report, findings);
    }
  } catch (const Error& error) {
    if (error.kind != ErrorKind::malformed) throw;
    findings.add(0, "", error.what());
  }
  findings.move_to(report);
  return report;
}

void expect_undamaged(const Manifest& manifest, const fs::path& directory,
                      const std::vector<const FileRange*>& ranges, const std::vector<std::string>& names,
                      int threads) {
  Findings findings;
  Files files(manifest, directory, findings);
  check_ranges(manifest, ranges, names, files, findings, threads_for(directory, threads), nullptr);
  throw_if_any(findings);
}

void expect_told_alike(const Manifest& manifest, const fs::path& directory,
                       const std::set<std::uint32_t>& read, int given_threads) {
  const int threads = threads_for(directory, given_threads);
  Findings findings;
  Files files(manifest, directory, findings);
  const std::vector<std::uint32_t> indices(read.begin(), read.end());
  const std::vector<std::vector<Listed>> listed = listed_in_files(manifest);
  for_each_index(indices.size(), threads, [&](std::size_t i) {
    check_header(manifest, listed[indices[i]], indices[i], files, findings);
  });
  if (is_readable_by_torch(manifest)) {
    for (const std::uint32_t index : indices) check_streams(listed[index], files, findings, threads);
  }
  throw_if_any(findings);
}

}  // namespace shardwright
