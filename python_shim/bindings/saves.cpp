// Sharded checkpoints: the pending directory, the files of a rank, the manifest, verifying.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <cstring>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <unordered_set>

#include "planner/error.h"
#include "python_shim/bindings/bindings.h"
#include "python_shim/bindings/interruptible.h"
#include "python_shim/bindings/sending.h"
#include "storage/device/copy_out.h"
#include "storage/files/entries.h"
#include "storage/files/input_file.h"
#include "storage/format/checkpoint_in_place.h"
#include "storage/format/checkpoint_place.h"
#include "storage/format/checksum.h"
#include "storage/format/checksums_file.h"
#include "storage/format/manifest.h"
#include "storage/format/pending_checkpoint.h"
#include "storage/jobs/save_checkpoint.h"
#include "storage/jobs/save_order.h"
#include "storage/tools/undamaged.h"
#include "storage/tools/verify.h"
#include "storage/write/rank_files.h"

namespace py = pybind11;

namespace shardwright {
namespace {

/// item, address, shape, strides, bytes of an element, CUDA device or -1
using PartTuple = std::tuple<std::size_t, std::uintptr_t, Shape, Shape, std::uint64_t, int>;

TensorInMemory tensor_of(const PartTuple& part) {
  const auto& [item, address, shape, strides, element_bytes, device] = part;
  return {reinterpret_cast<const std::byte*>(address),  // NOLINT(performance-no-int-to-ptr)
          shape, strides, element_bytes, device};
}

GatherFigures write_parts(RankFiles& files, const std::vector<PartTuple>& parts, int threads,
                          const DeviceOptions& devices) {
  std::vector<std::size_t> items;
  std::vector<TensorInMemory> tensors;
  for (const PartTuple& part : parts) {
    items.push_back(std::get<0>(part));
    tensors.push_back(tensor_of(part));
  }
  return files.write(items, tensors, threads, devices);
}

/// Parts as above, their items the addresses that they are copied to.
GatherFigures copy_parts_out(const std::vector<PartTuple>& parts, const std::vector<std::string>& names,
                             int threads, const DeviceOptions& devices) {
  std::vector<CopyOut> copies;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    copies.push_back(
        {names.at(i), tensor_of(parts[i]),
         reinterpret_cast<std::byte*>(std::get<0>(parts[i]))});  // NOLINT(performance-no-int-to-ptr)
  }
  return copy_out(copies, threads, devices);
}

CheckpointKind kind_named(const std::string& name) {
  if (name == "sharded") return CheckpointKind::sharded;
  if (name == "huggingface") return CheckpointKind::huggingface;
  if (name == "adapter") return CheckpointKind::adapter;
  throw Error(ErrorKind::argument, "kind: expected sharded, huggingface or adapter, found '" + name + "'");
}

bool is_torchs_format(const std::string& name) {
  if (name == "torch") return true;
  if (name == "safetensors") return false;
  throw Error(ErrorKind::argument, "format: expected torch or safetensors, found '" + name + "'");
}

void bind_writing(py::module_& m) {
  py::class_<PendingCheckpoint>(m, "PendingCheckpoint", "See storage/format/pending_checkpoint.h.")
      .def(py::init([](const std::filesystem::path& directory, const std::string& kind,
                       std::optional<bool> overwrite, const std::vector<std::filesystem::path>& sources) {
             const py::gil_scoped_release release;
             return std::make_unique<PendingCheckpoint>(directory, kind_named(kind), overwrite, sources);
           }),
           py::arg("directory"), py::arg("kind"), py::arg("overwrite") = py::none(),
           py::arg("sources") = std::vector<std::filesystem::path>())
      .def_property_readonly("path", &PendingCheckpoint::path)
      .def_property_readonly("tag", &PendingCheckpoint::tag)
      .def("expect_free", &PendingCheckpoint::expect_free, py::arg("names"))
      .def(
          "announce", [](PendingCheckpoint& pending) { pending.announce(); },
          py::call_guard<py::gil_scoped_release>())
      .def(
          "publish",
          [](PendingCheckpoint& pending, const std::string& commit_name) { pending.publish(commit_name); },
          py::arg("commit_name"), py::call_guard<py::gil_scoped_release>())
      .def("abandon", &PendingCheckpoint::abandon, py::call_guard<py::gil_scoped_release>());
  m.def("tag_of_save_under_way", &tag_of_save_under_way, py::arg("address"),
        py::call_guard<py::gil_scoped_release>(), "See storage/format/pending_objects.h.");
  m.attr("saving_name") = unfinished_save_name;
  m.attr("checksums_name") = checksums_name;
  py::class_<GatherFigures>(m, "GatherFigures", "Of tensors on CUDA devices.")
      .def_readonly("pinned_bytes", &GatherFigures::pinned_bytes)
      .def_readonly("bytes_copied", &GatherFigures::bytes_copied)
      .def_readonly("batches", &GatherFigures::batches)
      .def_readonly("peak_device_bytes", &GatherFigures::peak_device_bytes);
  m.def("copy_out", &copy_parts_out, py::arg("parts"), py::arg("names"), py::arg("threads"),
        py::arg("devices"), py::call_guard<py::gil_scoped_release>(),
        "Of (address to copy to, address, shape, strides, bytes of an element, CUDA device).");
  py::class_<RankFiles>(m, "RankFiles", "See storage/write/rank_files.h.")
      .def(py::init([](const std::filesystem::path& directory, std::int64_t rank, const std::string& values,
                       const std::vector<std::tuple<std::uint32_t, Shape, Shape>>& items,
                       std::vector<std::uint64_t> object_bytes, bool single_file, bool flush,
                       std::function<std::string(const std::string&, std::size_t)> name,
                       const std::string& format, std::string tag, const py::object& send) {
             RankItems what;
             what.values = decode_values(values);
             for (const auto& [index, offset, size] : items) what.items.add(index, offset, size);
             what.object_bytes = std::move(object_bytes);
             return std::make_unique<RankFiles>(
                 directory, rank, std::move(what),
                 RankFilesOptions{single_file, flush, is_torchs_format(format), std::move(name),
                                  std::move(tag), send_by(send)});
           }),
           py::arg("directory"), py::arg("rank"), py::arg("values"), py::arg("items"),
           py::arg("object_bytes"), py::arg("single_file"), py::arg("flush"), py::arg("name") = py::none(),
           py::arg("format") = "safetensors", py::arg("tag") = "", py::arg("send") = py::none(),
           "`items`: [(index of the value, offset, size)], in the order of the values; `object_bytes`: for "
           "each of them, the size of an object. `send`: takes (file, its size, byte, SentBytes) in place of "
           "a "
           "directory.")
      .def("write", &write_parts, py::arg("parts"), py::arg("threads"), py::arg("devices"),
           py::call_guard<py::gil_scoped_release>(),
           "Of (item, address, shape, strides, bytes of an element, CUDA device or -1).")
      .def(
          "finish",
          [](RankFiles& files) {
            WriteResults results;
            std::string bytes;
            {
              const py::gil_scoped_release release;
              results = files.finish();
              bytes = encode(results);
            }
            std::uint64_t written = 0;
            for (const StoredFile& file : results.files) written += file.size;
            return py::make_tuple(py::bytes(bytes), results.files.size(), written);
          },
          "(what to tell the coordinator, files, their bytes)")
      .def_property_readonly("peak_bytes_to_send", &RankFiles::peak_bytes_to_send);
}

/// The ranges of these chunks (name, offset) and objects, and whose they are.
std::pair<std::vector<const FileRange*>, std::vector<std::string>> find_ranges(
    const Manifest& manifest, const std::vector<std::pair<std::string, Shape>>& chunks,
    const std::vector<std::string>& objects) {
  std::unordered_map<std::string, const StoredTensor*> tensors;
  for (const StoredTensor& tensor : manifest.tensors) tensors.emplace(tensor.name, &tensor);
  std::pair<std::vector<const FileRange*>, std::vector<std::string>> found;
  for (const auto& [name, offset] : chunks) {
    for (const StoredChunk& chunk : tensors.at(name)->chunks) {
      if (chunk.box.offset != offset) continue;
      found.first.push_back(&chunk.range);
      found.second.push_back(name);
    }
  }
  const std::unordered_set<std::string> wanted(objects.begin(), objects.end());
  for (const StoredObject& object : manifest.objects) {
    if (!wanted.contains(object.name)) continue;
    found.first.push_back(&object.range);
    found.second.push_back(object.name);
  }
  return found;
}

py::list tensors_of(const Manifest& manifest) {
  py::list tensors;
  for (const StoredTensor& tensor : manifest.tensors) {
    tensors.append(py::make_tuple(tensor.name, tensor.dtype, tensor.safetensors_dtype, tensor.shape,
                                  tensor.requires_grad, tensor.pin_memory, tensor.element_bytes));
  }
  return tensors;
}

py::list chunks_of(const Manifest& manifest, std::size_t tensor) {
  py::list chunks;
  for (const StoredChunk& chunk : manifest.tensors.at(tensor).chunks) {
    const FileRange& range = chunk.range;
    chunks.append(py::make_tuple(chunk.box.offset, chunk.box.size, manifest.files[range.file].name,
                                 range.bytes.begin, range.bytes.end));
  }
  return chunks;
}

void bind_manifest(py::module_& m) {
  m.attr("manifest_name") = manifest_name;
  py::class_<Manifest>(m, "Manifest", "See storage/format/manifest.h.")
      .def_property_readonly(
          "tensors", &tensors_of,
          "(name, dtype, safetensors dtype, shape, requires_grad, pin_memory, bytes of an element).")
      .def_property_readonly(
          "files",
          [](const Manifest& manifest) {
            std::vector<std::pair<std::string, std::uint64_t>> files;
            for (const StoredFile& file : manifest.files) files.emplace_back(file.name, file.size);
            return files;
          },
          "(name, bytes).")
      .def_property_readonly("file_count", [](const Manifest& manifest) { return manifest.files.size(); })
      .def("chunks", &chunks_of, py::arg("tensor"),
           "(offset, shape, file, begin, end) of the chunks of a tensor, by its number.")
      .def_property_readonly("objects",
                             [](const Manifest& manifest) {
                               py::list objects;
                               for (const StoredObject& object : manifest.objects) {
                                 const FileRange& range = object.range;
                                 objects.append(py::make_tuple(object.name, manifest.files[range.file].name,
                                                               range.bytes.begin, range.bytes.end));
                               }
                               return objects;
                             })
      .def_property_readonly("planner_data",
                             [](const Manifest& manifest) { return py::bytes(manifest.planner_data); })
      .def(
          "catalog",
          [](const Manifest& manifest, const std::filesystem::path& directory) {
            return std::make_shared<Catalog>(catalog_of(manifest, directory));
          },
          py::arg("directory"), py::call_guard<py::gil_scoped_release>())
      .def(
          "expect_told_alike",
          [](const Manifest& manifest, const std::filesystem::path& directory,
             const std::vector<std::pair<std::string, Shape>>& chunks, int threads) {
            const py::gil_scoped_release release;
            std::set<std::uint32_t> files;
            for (const FileRange* range : find_ranges(manifest, chunks, {}).first) files.insert(range->file);
            expect_told_alike(manifest, directory, files, threads);
          },
          py::arg("directory"), py::arg("chunks"), py::arg("threads"))
      .def(
          "expect_undamaged",
          [](const Manifest& manifest, const std::filesystem::path& directory,
             const std::vector<std::pair<std::string, Shape>>& chunks,
             const std::vector<std::string>& objects, int threads) {
            const py::gil_scoped_release release;
            const auto [ranges, names] = find_ranges(manifest, chunks, objects);
            expect_undamaged(manifest, directory, ranges, names, threads);
          },
          py::arg("directory"), py::arg("chunks"), py::arg("objects"), py::arg("threads"));
}

void bind_paths(py::module_& m) {
  m.def("resolved_path", &resolved_path, py::arg("path"));
  m.def(
      "has_file",
      [](const std::filesystem::path& path) {
        const auto entry = target_at(path);
        return entry && S_ISREG(entry->st_mode);
      },
      py::arg("path"), py::call_guard<py::gil_scoped_release>(),
      "Whether a file or an object has this name.");
  m.def(
      "names_in",
      [](const std::filesystem::path& directory) {
        std::vector<std::string> names;
        {
          const py::gil_scoped_release release;
          names = names_in(directory);
        }
        py::list listed;
        for (const std::string& name : names)  // as Python spells those that are no UTF-8
          listed.append(py::reinterpret_steal<py::str>(
              PyUnicode_DecodeFSDefaultAndSize(name.data(), static_cast<Py_ssize_t>(name.size()))));
        return listed;
      },
      py::arg("directory"), "The names in a directory or below an address, sorted; none if it is not there.");
  m.def("expect_local_path", &expect_local_path, py::arg("path"));
  m.def(
      "read_bytes",
      [](const std::filesystem::path& path, std::uint64_t begin, std::optional<std::uint64_t> end) {
        std::optional<InputFile> file;
        {
          const py::gil_scoped_release release;
          file.emplace(path);
        }
        const std::uint64_t stop = end.value_or(file->size());
        if (begin > stop) throw Error(ErrorKind::argument, "expected bytes in rising order");
        auto bytes = py::reinterpret_steal<py::bytes>(
            PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(stop - begin)));
        if (!bytes) throw py::error_already_set();
        char* const into = PyBytes_AS_STRING(bytes.ptr());
        const py::gil_scoped_release release;
        file->read(begin, into, stop - begin);
        return bytes;
      },
      py::arg("path"), py::arg("begin") = 0, py::arg("end") = py::none(),
      "Bytes of a regular file, or of one that a link leads to; anything else is refused, by name.");
  m.def("size_of_file", &size_of_file, py::arg("path"), py::call_guard<py::gil_scoped_release>());
}

void bind_steps(py::module_& m) {
  m.def("has_manifest", &has_manifest, py::arg("directory"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "next_order",
      [](const std::filesystem::path& directory) {
        SaveOrder next = next_order(directory);
        return std::pair(next.order, std::move(next.unread));
      },
      py::arg("directory"), py::call_guard<py::gil_scoped_release>(),
      "(order, a line for each step that is not known): see storage/jobs/save_order.h.");
  m.def("step_of", &step_of, py::arg("directory"), "See storage/jobs/save_checkpoint.h.");
  m.def("step_path", &step_path, py::arg("root"), py::arg("step"), py::call_guard<py::gil_scoped_release>(),
        "See storage/jobs/save_checkpoint.h.");
  m.def(
      "latest_checkpoint",
      [](const std::filesystem::path& root) -> std::optional<std::string> {
        const auto found = latest_checkpoint(root);
        return found ? std::optional(found->string()) : std::nullopt;
      },
      py::arg("root"), py::call_guard<py::gil_scoped_release>(), "See storage/jobs/save_checkpoint.h.");
  m.def("keep_last_steps", &keep_last_steps, py::arg("root"), py::arg("keep"),
        py::call_guard<py::gil_scoped_release>(), "See storage/jobs/save_checkpoint.h.");
  m.def("read_manifest", &read_manifest, py::arg("directory"), py::call_guard<py::gil_scoped_release>());
}

void bind_verify(py::module_& m) {
  py::class_<VerifyReport>(m, "VerifyReport", "What a checkpoint was found to be.")
      .def(py::init([](std::string kind, std::int64_t files, std::int64_t tensors, std::int64_t objects,
                       std::uint64_t bytes_hashed, std::vector<std::string> problems,
                       std::vector<std::string> damaged) {
             return VerifyReport{std::move(kind),   files,        tensors,
                                 objects,           bytes_hashed, std::move(problems),
                                 std::move(damaged)};
           }),
           py::arg("kind"), py::arg("files"), py::arg("tensors"), py::arg("objects"), py::arg("bytes_hashed"),
           py::arg("problems"), py::arg("damaged"))
      .def_readonly("kind", &VerifyReport::kind)
      .def_readonly("files", &VerifyReport::files)
      .def_readonly("tensors", &VerifyReport::tensors)
      .def_readonly("objects", &VerifyReport::objects)
      .def_readonly("bytes_hashed", &VerifyReport::bytes_hashed)
      .def_readonly("problems", &VerifyReport::problems)
      .def_readonly("damaged", &VerifyReport::damaged);
  m.def(
      "tiling_fault",
      [](const Shape& shape, const std::vector<std::pair<Shape, Shape>>& chunks) {
        std::vector<Box> boxes;
        for (const auto& [offset, size] : chunks) {
          if (volume(size) > 0) boxes.push_back({offset, size});
        }
        return tiling_fault(whole(shape), std::move(boxes));
      },
      py::arg("shape"), py::arg("chunks"), "Of (offset, size): what keeps them from making up the whole.");
  m.def(
      "verify_checkpoint",
      [](const std::filesystem::path& directory, int threads, Progress* watched) {
        return interruptible(
            watched, [&](Progress& progress) { return verify_checkpoint(directory, threads, &progress); });
      },
      py::arg("directory"), py::arg("threads") = 0, py::arg("progress") = nullptr,
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace

void bind_saves(py::module_& m) {
  bind_sending(m);
  bind_writing(m);
  bind_manifest(m);
  bind_paths(m);
  bind_steps(m);
  bind_verify(m);
}

}  // namespace shardwright
