#include "storage/format/read_catalog.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <optional>
#include <system_error>
#include <utility>

#include "planner/error.h"
#include "planner/names/packed_weights.h"
#include "planner/names/quantization_config.h"
#include "planner/problems.h"
#include "storage/files/entries.h"
#include "storage/files/input_file.h"
#include "storage/files/printable.h"
#include "storage/files/remote_calls.h"
#include "storage/files/uninterrupted.h"
#include "storage/format/checkpoint_place.h"
#include "storage/format/checksums_file.h"
#include "storage/format/hf_index.h"
#include "storage/format/json_events.h"
#include "storage/format/safetensors.h"
#include "storage/format/text_file.h"
#include "storage/seconds.h"
#include "storage/threads.h"

namespace shardwright {

namespace {

namespace fs = std::filesystem;

// Far above what any model has, so that a wrong file is an error and not a machine out of memory.
constexpr std::uint64_t max_index_bytes = 1'000'000'000;
constexpr std::uint64_t max_config_bytes = 100'000'000;

constexpr char config_name[] = "config.json";

/// Throws unless there is such a directory.
void expect_directory(const fs::path& directory) {
  const std::string where = printable(directory.native());
  struct stat status {};
  if (uninterrupted([&] { return ::stat(directory.c_str(), &status); }) != 0) {
    const int code = errno;
    if (code == ENOENT) {
      throw Error(ErrorKind::not_found, where + ": no such directory; " + advice_for_absent(directory), code);
    }
    if (code != ENOTDIR) {
      throw Error(ErrorKind::io, where + ": cannot read this directory: " + std::strerror(code), code);
    }
    status.st_mode = S_IFREG;  // a part of the path is one
  }
  if (!S_ISDIR(status.st_mode)) {
    throw Error(
        ErrorKind::not_found,
        where + ": expected the directory of a checkpoint, found a file; give the directory that holds it: " +
            printable(fs::absolute(directory).parent_path().native()),
        ENOTDIR);
  }
}

/// What lies directly in a directory. Of a local one the sizes are looked up when its files are opened.
std::vector<RemoteObject> list(const fs::path& directory) {
  if (!is_remote(directory)) {
    expect_directory(directory);
    std::vector<RemoteObject> found;
    for (std::string& name : names_in(directory)) found.push_back({std::move(name), 0, {}, false});
    return found;
  }
  std::vector<RemoteObject> found = remote_calls(directory).list(directory.native());
  if (found.empty()) {
    throw Error(
        ErrorKind::not_found,
        printable(directory.native()) +
            ": expected a checkpoint, found nothing at this address; give that of a folder that holds "
            "one",
        ENOENT);
  }
  std::sort(found.begin(), found.end(),
            [](const RemoteObject& a, const RemoteObject& b) { return a.name < b.name; });
  return found;
}

/// All names *.safetensors, sorted. Hidden files are left out, as a shell's * leaves them out: such are the
/// ._ files that macOS puts beside others.
std::vector<std::string> safetensors_of(const std::vector<RemoteObject>& listed) {
  std::vector<std::string> names;
  for (const RemoteObject& one : listed) {
    if (one.name.front() != '.' && fs::path(one.name).extension() == ".safetensors")
      names.push_back(one.name);
  }
  return names;
}

const RemoteObject* find(const std::vector<RemoteObject>& listed, const std::string& name) {
  const auto found = std::find_if(listed.begin(), listed.end(), [&](const RemoteObject& one) {
    return one.name == name && !one.is_folder;
  });
  return found == listed.end() ? nullptr : &*found;
}

/// The text of a file of the directory, if there is such a file. A store is asked for what it has listed.
std::optional<std::string> read_if_there(const fs::path& directory, const std::vector<RemoteObject>& listed,
                                         const std::string& name, std::uint64_t max_bytes) {
  const fs::path path = directory / name;
  if (is_remote(path)) {
    const RemoteObject* const object = find(listed, name);
    if (object == nullptr) return std::nullopt;
    return read_text(InputFile(path, object->size, object->version), max_bytes);
  }
  try {
    return read_text(path, max_bytes);
  } catch (const Error& error) {
    struct stat link {};  // one that leads nowhere is no absent file
    const bool is_there = uninterrupted([&] { return ::lstat(path.c_str(), &link); }) == 0;
    if (error.kind == ErrorKind::not_found && !is_there) return std::nullopt;
    throw;
  }
}

std::string read_config(const fs::path& directory, const std::vector<RemoteObject>& listed) {
  const fs::path path = directory / config_name;
  std::optional<std::string> config = read_if_there(directory, listed, config_name, max_config_bytes);
  if (!config) return {};
  JsonEvents events;
  if (const auto fault = parse_json_object(*config, events)) {
    throw Error(
        ErrorKind::malformed,
        printable(path.native()) + ": expected the JSON of a model's configuration, but " + *fault +
            "; download it again, or remove it: the model is then recognised by the names of its tensors");
  }
  return *std::move(config);
}

void check_presence(const Catalog& catalog, const fs::path& index) {
  std::vector<std::string> absent;
  for (const SourceFile& file : catalog.files) {
    if (is_remote(catalog.directory)) {
      if (file.size == 0 && !entry_at(catalog.directory / file.name)) absent.push_back(file.name);
      continue;
    }
    std::error_code code;
    const fs::file_status status = fs::status(catalog.directory / file.name, code);
    if (status.type() == fs::file_type::not_found) absent.push_back(file.name);
  }
  if (absent.empty()) return;
  throw Error(ErrorKind::malformed, printable(index.native()) + ": expected " +
                                        std::to_string(catalog.files.size()) + " files beside it, " +
                                        std::to_string(absent.size()) +
                                        " of them are absent: " + listed(absent) + "; download them");
}

/// Headers of all files, read side by side. If several are faulty, the error tells of all.
void read_headers(Catalog& catalog, int threads) {
  std::vector<std::vector<SourceTensor>> tensors(catalog.files.size());
  std::vector<std::string> faults(tensors.size());
  for_each_index(tensors.size(), threads_for(catalog.directory, threads), [&](std::size_t i) {
    SourceFile& file = catalog.files[i];
    try {
      const fs::path path = catalog.directory / file.name;
      const bool is_known = file.size > 0;  // of an object that was listed
      const InputFile input = is_known ? InputFile(path, file.size, file.version) : InputFile(path);
      tensors[i] = read_safetensors_header(input).tensors;
      file.size = input.size();
      file.version = input.version();
    } catch (const Error& error) {
      if (error.kind != ErrorKind::malformed) throw;
      faults[i] = error.what();
    }
    for (SourceTensor& tensor : tensors[i]) tensor.file = static_cast<std::uint32_t>(i);
  });
  std::erase(faults, "");
  if (faults.size() == 1) throw Error(ErrorKind::malformed, faults.front());
  Problems{faults}.throw_if_any(ErrorKind::malformed,
                                printable(catalog.directory.native()) + ": several files are faulty:");
  std::size_t total = 0;
  for (const auto& some : tensors) total += some.size();
  catalog.tensors.reserve(total);
  for (auto& some : tensors) {
    catalog.tensors.insert(catalog.tensors.end(), std::make_move_iterator(some.begin()),
                           std::make_move_iterator(some.end()));
  }
  std::sort(catalog.tensors.begin(), catalog.tensors.end(), [](const SourceTensor& a, const SourceTensor& b) {
    const int names = a.name.compare(b.name);
    if (names != 0) return names < 0;
    return a.offset != b.offset ? a.offset < b.offset : a.file < b.file;
  });
}

std::string file_text(const Catalog& catalog, std::uint32_t file) {
  return in_quotes(catalog.files[file].name);
}

/// The index and the files must tell of the same tensors, in the same files.
void check_index(const Catalog& catalog, const HfIndex& index, const fs::path& path) {
  std::vector<std::string> lacking;
  std::vector<std::string> unknown;
  std::vector<std::string> elsewhere;
  auto entry = index.entries.begin();
  for (auto tensor = catalog.tensors.begin();
       tensor != catalog.tensors.end() || entry != index.entries.end();) {
    const int order = tensor == catalog.tensors.end() ? 1
                      : entry == index.entries.end()  ? -1
                                                      : tensor->name.compare(entry->tensor);
    if (order < 0) {
      unknown.push_back(tensor->name + " in " + catalog.files[tensor->file].name);
      ++tensor;
    } else if (order > 0) {
      lacking.push_back(entry->tensor + " in " + index.files[entry->file]);
      ++entry;
    } else {
      bool is_there = false;
      std::string found;
      for (; tensor != catalog.tensors.end() && tensor->name == entry->tensor; ++tensor) {
        if (tensor->file == entry->file) {
          is_there = true;
        } else {
          found = catalog.files[tensor->file].name;
        }
      }
      if (!found.empty()) {
        elsewhere.push_back(entry->tensor + " in " + index.files[entry->file] + ", found " +
                            (is_there ? "also in " : "in ") + found);
      }
      ++entry;
    }
  }
  std::string faults;
  const auto report = [&](const char* what, const std::vector<std::string>& names) {
    if (!names.empty())
      faults += "; " + std::string(what) + " (" + std::to_string(names.size()) + "): " + listed(names);
  };
  report("expected by the index, but not in its file", lacking);
  report("in a file, but not in the index", unknown);
  report("expected by the index in one file, found in another", elsewhere);
  if (faults.empty()) return;
  throw Error(ErrorKind::malformed, printable(path.native()) + ": the index and the files do not agree" +
                                        faults +
                                        "; they are of different checkpoints, or the download is incomplete: "
                                        "download them again");
}

/// Chunks of one tensor must be parts of one whole, and all of it.
void check_chunks(const Catalog& catalog, std::span<const SourceTensor> chunks) {
  const SourceTensor& first = chunks.front();
  const auto fail = [&](const std::string& what) {
    std::vector<std::string> files;
    for (const SourceTensor& chunk : chunks) files.push_back(catalog.files[chunk.file].name);
    files.erase(std::unique(files.begin(), files.end()), files.end());
    throw Error(ErrorKind::malformed, printable(catalog.directory.native()) + ": tensor " +
                                          in_quotes(first.name) + ": " + what + "; its chunks are in " +
                                          listed(files) +
                                          "; save or download the checkpoint again, into an empty directory");
  };
  for (const SourceTensor& chunk : chunks) {
    if (chunk.dtype != first.dtype || chunk.shape.size() != first.shape.size()) {
      fail("expected chunks of one dtype and rank, found " + std::string(name_of(first.dtype)) + " " +
           to_string(first.shape) + " in " + file_text(catalog, first.file) + " and " +
           std::string(name_of(chunk.dtype)) + " " + to_string(chunk.shape) + " in " +
           file_text(catalog, chunk.file));
    }
  }
  // Ranks that hold nothing all begin where the tensor ends: empty chunks may repeat.
  for (std::size_t i = 1; i < chunks.size(); ++i) {
    if (chunks[i - 1].offset == chunks[i].offset && volume(chunks[i - 1].shape) > 0 &&
        volume(chunks[i].shape) > 0) {
      fail("expected each part of a tensor once, found " + to_string(Box{chunks[i].offset, chunks[i].shape}) +
           " in " + file_text(catalog, chunks[i - 1].file) + " and again in " +
           file_text(catalog, chunks[i].file));
    }
  }
  const Shape shape = Catalog::global_shape(chunks);
  std::int64_t bound = 1;
  for (const std::int64_t size : shape) {
    if (__builtin_mul_overflow(bound, std::max<std::int64_t>(size, 1), &bound)) {
      fail("chunks make up shape " + to_string(shape) + ", more elements than 64 bits can count");
    }
  }
  std::vector<Box> boxes;
  for (const SourceTensor& chunk : chunks) boxes.push_back({chunk.offset, chunk.shape});
  const std::string fault = tiling_fault(whole(shape), std::move(boxes));
  if (!fault.empty()) {
    fail("expected chunks that make up the whole of shape " + to_string(shape) +
         ", each element once, found that " + fault);
  }
}

void check_all_chunks(const Catalog& catalog) {
  const auto& tensors = catalog.tensors;
  for (std::size_t i = 0; i < tensors.size();) {
    std::size_t end = i + 1;
    while (end < tensors.size() && tensors[end].name == tensors[i].name) ++end;
    const bool is_whole = end == i + 1 && std::all_of(tensors[i].offset.begin(), tensors[i].offset.end(),
                                                      [](std::int64_t start) { return start == 0; });
    if (!is_whole) check_chunks(catalog, std::span(tensors).subspan(i, end - i));
    i = end;
  }
}

/// What it means also from another working directory.
fs::path lasting(const fs::path& directory) {
  if (is_remote(directory)) return directory;
  std::error_code code;
  const fs::path whole = fs::absolute(directory, code);
  return code ? directory : whole;
}

}  // namespace

Catalog read_catalog(const fs::path& directory, int threads) {
  if (threads < 0) {
    throw Error(ErrorKind::argument, "threads: expected 0 or more, found " + std::to_string(threads));
  }

  expect_location(directory);
  const Clock::time_point begin = Clock::now();
  Catalog catalog;
  catalog.directory = lasting(directory);
  const std::vector<RemoteObject> listed = list(directory);
  std::vector<std::string> names = safetensors_of(listed);
  const fs::path index_path = directory / hf_index_name;
  std::optional<HfIndex> index;
  if (const auto text = read_if_there(directory, listed, hf_index_name, max_index_bytes)) {
    index = parse_hf_index(*text, printable(index_path.native()));
    names = index->files;
  }
  if (names.empty()) {
    throw Error(ErrorKind::not_found, printable(directory.native()) + ": expected *.safetensors, found " +
                                          found_in_place_of_safetensors(directory));
  }
  const bool are_shards = std::all_of(names.begin(), names.end(),
                                      [](const std::string& name) { return name.starts_with("rank-"); });
  // The files of an export lie in a store before its index does.
  if (!index && (are_shards || is_remote(directory)) && is_unfinished_save(directory)) {
    throw Error(ErrorKind::not_found,
                printable(directory.native()) +
                    ": expected a checkpoint, found the files of a save that has not been published; it "
                    "still runs or was interrupted: give a checkpoint whose save has ended");
  }
  for (std::string& name : names) {
    SourceFile file{std::move(name), 0};
    if (const RemoteObject* const object = find(listed, file.name)) {
      file.size = object->size;
      file.version = object->version;
    }
    catalog.files.push_back(std::move(file));
  }
  if (index) check_presence(catalog, index_path);
  catalog.config = read_config(directory, listed);
  read_headers(catalog, threads);
  if (index) check_index(catalog, *index, index_path);
  check_all_chunks(catalog);
  add_checksums(catalog, threads);
  see_packed_weights(catalog);
  catalog.fault_of_config = fault_of_quantization_config(catalog);
  catalog.seconds = seconds_since(begin);
  return catalog;
}

}  // namespace shardwright
