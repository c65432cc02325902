/// The Python module shardwright._core: the planner and the storage layer as they are, plain data in and out.
/// It knows no torch: tensors arrive as TensorSpecs that the package describes.

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <set>
#include <string>
#include <system_error>
#include <tuple>

#include "kernels/decode.h"
#include "kernels/value_range.h"
#include "planner/error.h"
#include "planner/load/codes_alone.h"
#include "planner/load/load_plan.h"
#include "planner/load/plan_wire.h"
#include "planner/load/read_items.h"
#include "planner/load/read_plan.h"
#include "planner/load/request_list.h"
#include "planner/load/rounding.h"
#include "planner/models/models.h"
#include "planner/models/samples.h"
#include "planner/names/held_tensors.h"
#include "planner/names/mesh.h"
#include "planner/names/name_hints.h"
#include "planner/names/native_tensors.h"
#include "planner/names/packed_tensors.h"
#include "planner/names/packed_weights.h"
#include "planner/names/quantization_config.h"
#include "planner/names/tied_heads.h"
#include "planner/names/weight_map.h"
#include "planner/problems.h"
#include "python_shim/bindings/bindings.h"
#include "python_shim/bindings/interruptible.h"
#include "storage/boxes/place_items.h"
#include "storage/device/device_calls.h"
#include "storage/files/pending_file.h"
#include "storage/files/remote_objects.h"
#include "storage/files/secrets.h"
#include "storage/format/content_words.h"
#include "storage/format/kind_of.h"
#include "storage/format/read_catalog.h"
#include "storage/tools/generate.h"

namespace py = pybind11;

namespace shardwright {
namespace {

DType dtype_from(const std::string& name) {
  const std::optional<DType> dtype = dtype_named(name);
  if (!dtype) throw Error(ErrorKind::argument, "dtype '" + name + "' is not one that safetensors has");
  return *dtype;
}

/// Text from the library, which may hold bytes from disk that are no UTF-8.
py::str text_of(const std::string& bytes) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "backslashreplace"));
}

void raise_in_python(const Error& error, PyObject* format_error, PyObject* plan_error) {
  const py::str message = text_of(without_secrets(error.what()));
  const auto raise_exception = [&](const py::object& exception) {
    py::list partly_written;
    for (const std::string& name : error.partly_written) partly_written.append(text_of(name));
    exception.attr("partly_written") = partly_written;
    PyErr_SetObject(py::type::handle_of(exception).ptr(), exception.ptr());
  };
  const auto raise = [&](PyObject* type) {
    raise_exception(py::reinterpret_borrow<py::object>(type)(message));
  };
  const auto raise_system_error = [&](PyObject* type, int number) {  // of which errno may make a subclass
    raise_exception(py::reinterpret_borrow<py::object>(type)(number, message));
  };
  switch (error.kind) {
    case ErrorKind::not_found:
      raise_system_error(PyExc_FileNotFoundError, ENOENT);
      break;
    case ErrorKind::io:
      if (error.system_error == ENOMEM) {
        raise(PyExc_MemoryError);
        break;
      }
      raise_system_error(PyExc_OSError, error.system_error);
      break;
    case ErrorKind::malformed:
      raise(format_error);
      break;
    case ErrorKind::mismatch:
      raise(plan_error);
      break;
    case ErrorKind::argument:
      raise(PyExc_ValueError);
      break;
    case ErrorKind::device:
      raise(PyExc_RuntimeError);
      break;
  }
}

void bind_errors(py::module_& m) {
  static py::exception<Error> format_error(m, "CheckpointFormatError", PyExc_ValueError);
  static py::exception<Error> plan_error(m, "PlanError", PyExc_ValueError);
  format_error.attr("__doc__") = "What is on disk breaks its format; names the file and the tensor.";
  plan_error.attr("__doc__") =
      "Checkpoint and trainer do not fit together; lists every tensor concerned, with what was expected and "
      "found.";
  py::register_exception_translator([](std::exception_ptr failure) {
    try {
      if (failure) std::rethrow_exception(failure);
    } catch (const Error& error) {
      raise_in_python(error, format_error.ptr(), plan_error.ptr());
    } catch (const std::system_error& error) {  // no thread to be had, or an old file system's fault
      const bool is_of_system = error.code().category() == std::generic_category() ||
                                error.code().category() == std::system_category();
      raise_in_python({ErrorKind::io, error.what(), is_of_system ? error.code().value() : EIO},
                      format_error.ptr(), plan_error.ptr());
    }
  });
}

bool by_name_and_offset(const SourceTensor& a, const SourceTensor& b) {
  return std::tie(a.name, a.offset) < std::tie(b.name, b.offset);
}

void bind_catalog(py::module_& m) {
  py::class_<SourceTensor>(m, "SourceTensor", "One tensor of a checkpoint, or one chunk of a larger one.")
      .def_readonly("name", &SourceTensor::name)
      .def_property_readonly("dtype", [](const SourceTensor& t) { return std::string(name_of(t.dtype)); })
      .def_readonly("shape", &SourceTensor::shape)
      .def_readonly("offset", &SourceTensor::offset)
      .def_readonly("file", &SourceTensor::file)
      .def_readonly("begin", &SourceTensor::begin)
      .def_readonly("end", &SourceTensor::end);
  py::class_<SourceFile>(m, "SourceFile")
      .def_property_readonly("name",
                             [](const SourceFile& file) {  // as Python spells file names that are no UTF-8
                               return py::reinterpret_steal<py::str>(PyUnicode_DecodeFSDefaultAndSize(
                                   file.name.data(), static_cast<Py_ssize_t>(file.name.size())));
                             })
      .def_readonly("size", &SourceFile::size)
      .def_readonly("version", &SourceFile::version, "Of an object at an address; empty for a file.");
  py::class_<Catalog, std::shared_ptr<Catalog>>(m, "Catalog", "What a checkpoint directory holds.")
      .def_property_readonly(
          "directory",
          [](const Catalog& catalog) -> py::object {
            if (is_remote(catalog.directory)) return py::str(catalog.directory.native());
            return py::cast(catalog.directory);
          },
          "A pathlib.Path, or an address as a text: pathlib would take its two slashes for one.")
      .def_readonly("files", &Catalog::files)
      .def_readonly("tensors", &Catalog::tensors)
      .def_readonly("config", &Catalog::config, "Text of config.json; empty where there is none.")
      .def_property_readonly(
          "whole_tensors",
          [](const Catalog& catalog) {
            py::list tensors;
            for (std::size_t first = 0; first < catalog.tensors.size();) {
              const std::span<const SourceTensor> chunks = catalog.find(catalog.tensors[first].name);
              tensors.append(py::make_tuple(chunks.front().name, name_of(chunks.front().dtype),
                                            Catalog::global_shape(chunks)));
              first += chunks.size();
            }
            return tensors;
          },
          "(name, dtype, shape) of the tensors that the chunks make up.")
      .def(
          "chunks",
          [](const Catalog& catalog, const std::string& name) {
            py::list chunks;
            for (const SourceTensor& chunk : catalog.find(name))
              chunks.append(py::make_tuple(chunk.offset, chunk.shape));
            return chunks;
          },
          py::arg("name"), "(offset, shape) of the chunks of a tensor.")
      .def(
          "as_stored",
          [](const std::shared_ptr<Catalog>& catalog) {
            return is_as_stored(*catalog) ? catalog : std::make_shared<Catalog>(as_stored(*catalog));
          },
          "The same with the names, dtypes and shapes that the files have, packed weights and all.");
  m.def(
      "catalog_of_tensors",
      [](const std::vector<std::tuple<std::string, std::string, Shape, Shape>>& tensors, std::string config) {
        auto catalog = std::make_shared<Catalog>();
        catalog->directory = "(tensors in memory)";
        catalog->files = {{"memory", 0}};
        for (const auto& [name, dtype, shape, offset] : tensors) {
          catalog->tensors.push_back({name, dtype_from(dtype), shape, offset, 0, 0, 0});
        }
        if (!std::is_sorted(catalog->tensors.begin(), catalog->tensors.end(), by_name_and_offset)) {
          throw Error(ErrorKind::argument,
                      "catalog_of_tensors: expected the tensors sorted by name, then by offset");
        }
        see_packed_weights(*catalog);
        catalog->config = std::move(config);
        catalog->fault_of_config = fault_of_quantization_config(*catalog);
        return catalog;
      },
      py::arg("tensors"), py::arg("config") = "",
      "A catalog of tensors in memory, from (name, dtype, shape, offset), sorted. Packed weights are seen as "
      "in "
      "files.");
  m.def(
      "catalog_of_chunks",
      [](const std::filesystem::path& directory,
         const std::vector<std::pair<std::string, std::uint64_t>>& files,
         const std::vector<std::tuple<std::string, std::string, Shape, Shape, std::uint32_t, std::uint64_t>>&
             chunks) {
        auto catalog = std::make_shared<Catalog>();
        catalog->directory = directory;
        for (const auto& [name, size] : files) catalog->files.push_back({name, size});
        for (const auto& [name, dtype_name, shape, offset, file, begin] : chunks) {
          const DType dtype = dtype_from(dtype_name);
          const std::uint64_t size = static_cast<std::uint64_t>(volume(shape) * bytes_of(dtype));
          if (begin > files.at(file).second || size > files.at(file).second - begin)
            throw Error(ErrorKind::malformed, files.at(file).first + ": " + name + ": expected " +
                                                  std::to_string(size) + " bytes at byte " +
                                                  std::to_string(begin) + ", found a file of " +
                                                  std::to_string(files.at(file).second) + "; copy it again");
          catalog->tensors.push_back({name, dtype, shape, offset, file, begin, begin + size});
        }
        std::sort(catalog->tensors.begin(), catalog->tensors.end(), by_name_and_offset);
        return catalog;
      },
      py::arg("directory"), py::arg("files"), py::arg("chunks"), py::call_guard<py::gil_scoped_release>(),
      "A catalog of what lies row by row in files: (name, bytes), sorted, and of each chunk (name, dtype, "
      "shape, offset, file, first byte).");
  m.def(
      "read_catalog",
      [](const std::filesystem::path& directory, int threads) {
        return std::make_shared<Catalog>(read_catalog(directory, threads));
      },
      py::arg("directory"), py::arg("threads") = 0, py::call_guard<py::gil_scoped_release>());
  m.def(
      "encodings",
      [] {
        std::vector<std::string_view> names;
        for (const KnownEncoding& blocks : known_encodings()) names.push_back(blocks.name);
        return names;
      },
      "The names of the encodings that are known.");
  m.def(
      "generated_encodings",
      [] {
        std::vector<std::string_view> names;
        for (const StoredEncoding& encoding : stored_encodings()) names.push_back(encoding.name);
        return names;
      },
      "The names of those that generate() makes.");
  m.def(
      "can_convert",
      [](const std::string& source, const std::string& destination) {
        return can_convert(dtype_from(source), dtype_from(destination));
      },
      py::arg("source"), py::arg("destination"),
      "Whether the kernels turn elements of one dtype into another.");
  m.def(
      "stored_alike",
      [](const Catalog& catalog) {
        py::dict stored;
        for (const auto& [name, alike] : stored_alike(catalog))
          stored[py::str(name)] = py::make_tuple(alike.weights, alike.parameters, alike.bytes);
        return stored;
      },
      py::arg("catalog"),
      "{encoding, or dtype without scales: (weights, parameters, bytes with their companions)}.");
  m.def("scaled_weights", &scaled_weights, py::arg("catalog"),
        "How many weights have scales, by encoding; those whose scales fit none that is known under "
        "\"unknown\".");
}

/// A device as torch names it: "cpu", "meta", "cuda:1". Without kernels for GPUs these are as any other
/// device.
void set_device(TensorSpec& spec, const std::string& name) {
  spec.device_name = name;
  spec.device = DeviceKind::other;
  if (name == "cpu") spec.device = DeviceKind::cpu;
  if (name == "meta") spec.device = DeviceKind::meta;
  if (name.starts_with("cuda:") && cuda_calls() != nullptr) {
    spec.device = DeviceKind::cuda;
    spec.device_index = std::stoi(name.substr(5));
  }
}

void bind_specs(py::module_& m) {
  py::class_<Placement>(m, "Placement")
      .def_static("replicate", [] { return Placement{}; })
      .def_static("shard",
                  [](int dimension) {
                    return Placement{Placement::Kind::shard, dimension, 1};
                  })
      .def_static("strided_shard",
                  [](int dimension, std::int64_t split_factor) {
                    return Placement{Placement::Kind::strided_shard, dimension, split_factor};
                  })
      .def_property_readonly("is_shard", [](const Placement& p) { return p.kind == Placement::Kind::shard; })
      .def_readonly("dimension", &Placement::dimension)
      .def("__repr__", [](const Placement& p) {
        switch (p.kind) {
          case Placement::Kind::replicate:
            return std::string("Replicate()");
          case Placement::Kind::shard:
            return "Shard(" + std::to_string(p.dimension) + ")";
          default:
            return "StridedShard(" + std::to_string(p.dimension) + ", " + std::to_string(p.split_factor) +
                   ")";
        }
      });
  py::class_<LocalBox>(m, "LocalBox")
      .def(py::init([](Shape offset, Shape size, Shape local_offset) {
             return LocalBox{{std::move(offset), std::move(size)}, std::move(local_offset)};
           }),
           py::arg("offset"), py::arg("size"), py::arg("local_offset"))
      .def_property_readonly("offset", [](const LocalBox& box) { return box.global.offset; })
      .def_property_readonly("size", [](const LocalBox& box) { return box.global.size; })
      .def_readonly("local_offset", &LocalBox::local_offset);
  py::class_<TensorSpec>(m, "TensorSpec", "A tensor of the trainer as one rank sees it.")
      .def(py::init([](std::string fqn, const std::string& dtype, Shape global_shape, Shape local_shape,
                       Shape local_strides, std::uintptr_t data, const std::string& device,
                       std::vector<LocalBox> boxes) {
             TensorSpec spec;
             spec.fqn = std::move(fqn);
             spec.dtype = dtype_from(dtype);
             spec.global_shape = std::move(global_shape);
             spec.local_shape = std::move(local_shape);
             spec.local_strides = std::move(local_strides);
             spec.data =
                 reinterpret_cast<void*>(data);  // NOLINT(performance-no-int-to-ptr): an address from torch
             set_device(spec, device);
             spec.boxes = std::move(boxes);
             return spec;
           }),
           py::arg("fqn"), py::arg("dtype"), py::arg("global_shape"), py::arg("local_shape"),
           py::arg("local_strides"), py::arg("data"), py::arg("device"), py::arg("boxes"))
      .def_readonly("fqn", &TensorSpec::fqn)
      .def_property_readonly("dtype", [](const TensorSpec& spec) { return std::string(name_of(spec.dtype)); })
      .def_readonly("global_shape", &TensorSpec::global_shape)
      .def_readonly("local_shape", &TensorSpec::local_shape)
      .def_readonly("boxes", &TensorSpec::boxes);
  m.def("local_boxes", &local_boxes, py::arg("global_shape"), py::arg("mesh_shape"), py::arg("coordinate"),
        py::arg("placements"));
  m.def("local_shape", &local_shape, py::arg("global_shape"), py::arg("mesh_shape"), py::arg("coordinate"),
        py::arg("placements"));
}

void bind_weight_map(py::module_& m) {
  py::class_<WeightMap, std::shared_ptr<WeightMap>>(m, "WeightMap")
      .def_readonly("family", &WeightMap::family)
      .def_readonly("layout", &WeightMap::layout);
  m.def(
      "weight_map",
      [](const Catalog& catalog, const std::string& model, const std::string& layout) {
        return std::make_shared<WeightMap>(weight_map_for(catalog, model, layout));
      },
      py::arg("catalog"), py::arg("model") = "auto", py::arg("layout") = "automodel");
  py::class_<Model>(m, "Family", "A family that has tables.")
      .def_property_readonly("name", [](const Model& model) { return std::string(model.family); })
      .def_property_readonly("model_types", [](const Model& model) { return model.model_types; })
      .def_property_readonly("layouts", [](const Model& model) { return model.layouts; })
      .def_property_readonly("refused", [](const Model& model) { return model.refused; });
  m.def("families", &models, py::return_value_policy::reference, "All families that have tables.");
  m.def("has_table", &has_table, py::arg("catalog"), py::arg("model"), py::arg("layout"),
        "Whether weight_map has a table for that.");
  py::class_<NativeTensor>(m, "NativeTensor")
      .def_readonly("fqn", &NativeTensor::fqn)
      .def_property_readonly("dtype", [](const NativeTensor& t) { return std::string(name_of(t.dtype)); })
      .def_readonly("shape", &NativeTensor::shape)
      .def_readonly("stacked", &NativeTensor::stacked);
  m.def(
      "native_tensors",
      [](const Catalog& catalog, const WeightMap& map, const std::string& dtype) {
        return native_tensors(catalog, map, dtype_from(dtype));
      },
      py::arg("catalog"), py::arg("map"), py::arg("dtype") = "BF16");
  m.def(
      "as_packed",
      [](const Catalog& catalog, const WeightMap& map, const std::optional<std::vector<TensorSpec>>& specs) {
        HeldDtypes held;
        for (const TensorSpec& spec : specs.value_or(std::vector<TensorSpec>()))
          held.emplace(spec.fqn, spec.dtype);
        Packed packed = specs ? as_packed(catalog, map, held) : as_packed(catalog, map);
        return std::tuple(std::make_shared<Catalog>(std::move(packed.catalog)),
                          std::make_shared<WeightMap>(std::move(packed.map)), std::move(packed.problems));
      },
      py::arg("catalog"), py::arg("map"), py::arg("specs") = py::none(),
      "(catalog, map, problems) by which encoded weights are held as files do; those of the specs that are "
      "no "
      "wide floats, or all.");
  py::class_<MeshDimension>(m, "MeshDimension")
      .def_readonly("name", &MeshDimension::name)
      .def_readonly("size", &MeshDimension::size);
  m.def("parse_mesh", &parse_mesh, py::arg("text"));
  m.def(
      "specs_on_mesh",
      [](const std::vector<NativeTensor>& tensors, const std::vector<MeshDimension>& mesh, std::int64_t rank,
         const std::string& dense) {
        return specs_on_mesh(tensors, mesh, rank, dense_sharding_named(dense));
      },
      py::arg("tensors"), py::arg("mesh"), py::arg("rank"), py::arg("dense") = "auto");
  m.def(
      "placements_on_mesh",
      [](const NativeTensor& tensor, const std::vector<MeshDimension>& mesh) {
        return placements_on_mesh(tensor, mesh);
      },
      py::arg("tensor"), py::arg("mesh"));
  m.def(
      "request_list",
      [](const std::vector<TensorSpec>& specs, const WeightMap& map, const Catalog* catalog) {
        std::vector<std::tuple<std::string, std::string, Shape>> requests;
        for (const Request& request : request_list(specs, map, catalog)) {
          requests.emplace_back(request.name, name_of(request.dtype), request.shape);
        }
        return requests;
      },
      py::arg("specs"), py::arg("map"), py::arg("catalog") = nullptr,
      "[(name, dtype, global shape)] of the HF tensors that a load of these specs asks for, scales "
      "included.");
}

/// An address that torch gave.
const std::byte* bytes_at(std::uintptr_t address) {
  return reinterpret_cast<const std::byte*>(address);  // NOLINT(performance-no-int-to-ptr)
}

void bind_load(py::module_& m) {
  py::class_<Transfer>(m, "Transfer")
      .def_readonly("source", &Transfer::source, "Index into Catalog.tensors.")
      .def_readonly("scales", &Transfer::scales, "Index into Catalog.tensors; -1 where there are none.")
      .def_readonly("destination", &Transfer::destination, "Index into the specs.")
      .def_readonly("destination_offset", &Transfer::destination_offset)
      .def_readonly("axes", &Transfer::axes)
      .def_property_readonly("source_offset", [](const Transfer& t) { return t.source_box.offset; })
      .def_property_readonly("source_size", [](const Transfer& t) { return t.source_box.size; })
      .def_property_readonly("scale_offset", [](const Transfer& t) { return t.scale_box.offset; })
      .def_property_readonly("scale_size", [](const Transfer& t) { return t.scale_box.size; });
  py::class_<LoadPlan, std::shared_ptr<LoadPlan>>(m, "LoadPlan")
      .def_readonly("transfers", &LoadPlan::transfers)
      .def_readonly("tensors", &LoadPlan::tensors)
      .def_readonly("bytes_needed", &LoadPlan::bytes_needed)
      .def_readonly("bytes_written", &LoadPlan::bytes_written)
      .def_readonly("seconds", &LoadPlan::seconds)
      .def_readonly("unused", &LoadPlan::unused)
      .def_readonly("unknown", &LoadPlan::unknown)
      .def_readonly("not_loaded", &LoadPlan::not_loaded)
      .def_readonly("zeros", &LoadPlan::zeros, "Indices into the specs of what is filled with zeros.");
  m.def(
      "plan_load",
      [](const std::vector<TensorSpec>& specs, const Catalog& catalog, const WeightMap& map, bool strict,
         bool allow_missing, std::vector<std::string> problems) {
        const py::gil_scoped_release release;
        return std::make_shared<LoadPlan>(
            plan_load(specs, catalog, map, {strict, allow_missing, std::move(problems)}));
      },
      py::arg("specs"), py::arg("catalog"), py::arg("map"), py::arg("strict") = true,
      py::arg("allow_missing") = false, py::arg("problems") = std::vector<std::string>());
  m.def(
      "plan_resume",
      [](const std::vector<TensorSpec>& specs, const Catalog& catalog) {
        const py::gil_scoped_release release;
        LoadPlanOptions options;
        options.strict = false;
        options.resuming = true;
        return std::make_shared<LoadPlan>(plan_load(specs, catalog, unchanged_names(), options));
      },
      py::arg("specs"), py::arg("catalog"),
      "Plans a load of the trainer's own tensors under their own names.");
  m.def(
      "chunks_read",
      [](const LoadPlan& plan, const Catalog& catalog) {
        std::set<std::pair<std::string, Shape>> chunks;
        const auto add = [&](std::size_t tensor) {
          chunks.emplace(catalog.tensors[tensor].name, catalog.tensors[tensor].offset);
        };
        for (const Transfer& transfer : plan.transfers) {
          add(transfer.source);
          if (transfer.scales >= 0) add(static_cast<std::size_t>(transfer.scales));
        }
        return std::vector<std::pair<std::string, Shape>>(chunks.begin(), chunks.end());
      },
      py::arg("plan"), py::arg("catalog"), "[(name, offset)] of the chunks that a plan reads something of.");
  m.def(
      "encode_plan",
      [](const LoadPlan& plan, const Catalog& catalog, const std::vector<TensorSpec>& specs) {
        return py::bytes(encode_plan(plan, catalog, specs));
      },
      py::arg("plan"), py::arg("catalog"), py::arg("specs"),
      "A plan as bytes; equal plans give equal bytes.");
  m.def(
      "decode_plan",
      [](const std::string& bytes, const Catalog& catalog, const std::vector<TensorSpec>& specs) {
        return std::make_shared<LoadPlan>(decode_plan(bytes, catalog, specs));
      },
      py::arg("bytes"), py::arg("catalog"), py::arg("specs"));
  m.def(
      "kind_of", [](const std::filesystem::path& path) { return std::string(name_of(kind_of(path))); },
      py::arg("path"), py::call_guard<py::gil_scoped_release>(),
      "What a path is: sharded, torch, torch_of_ranks, torch_safetensors, huggingface, adapter or nothing.");
  m.def("codes_alone", &codes_alone, py::arg("plan"), py::arg("specs"), py::arg("catalog"), py::arg("packed"),
        "Names of packed codes of which this rank does not hold all the scales.");
  m.def("may_be_tied", &may_be_tied, py::arg("fqn"),
        "Whether it may be a head, or an embedding that one is tied to, by its name.");
  m.def(
      "tied_heads", [](const std::vector<TensorSpec>& specs) { return tied_heads(specs); }, py::arg("specs"),
      "Names of heads that are the memory of an embedding.");
  m.def("content_words", &content_words, py::arg("catalog"), py::arg("threads") = 0,
        py::call_guard<py::gil_scoped_release>(),
        "What a checkpoint holds, in words to be compared between ranks.");
  m.def("expect_one_checkpoint", &expect_one_checkpoint, py::arg("words_of_ranks"),
        "Raises PlanError that names the ranks whose words are not those of rank 0.");
  m.def(
      "plan_reads",
      [](const std::vector<std::tuple<std::string, Shape, Shape, Shape>>& requests,
         const std::vector<TensorSpec>& specs, const Catalog& catalog) {
        std::vector<ReadRequest> reads;
        for (const auto& [name, chunk_offset, offset, size] : requests) {
          reads.push_back({name, chunk_offset, {offset, size}});
        }
        return std::make_shared<LoadPlan>(plan_reads(reads, specs, catalog));
      },
      py::arg("requests"), py::arg("specs"), py::arg("catalog"),
      "Plans reading (name, chunk offset, offset in the chunk, size), each into the spec of its index: as it "
      "is stored, decoded or converted.");
  m.def("roundings_of", &roundings_of, py::arg("plan"), py::arg("specs"), py::arg("catalog"),
        "{name: \"F32 -> BF16\"} of the tensors that running the plan rounds.");
  m.def(
      "holds_all",
      [](const std::string& to, const std::string& from) {
        return holds_all(dtype_from(to), dtype_from(from));
      },
      py::arg("to"), py::arg("source"), "Whether every number of a dtype is one of the other.");
  m.def("scale_names_of", &scale_names_of, py::arg("weight_name"),
        "The names that the scales of a weight may have.");
  m.def("needs_scales", &needs_scales, py::arg("catalog"), py::arg("name"),
        "True for a tensor whose elements are not its numbers: it has scales, or must have had some.");
  m.def(
      "read_items",
      [](const LoadPlan& plan, const Catalog& catalog) {
        py::list items;
        for (const ReadItem& item : read_items(plan, catalog)) {
          const SourceTensor& tensor = catalog.tensors[item.tensor];
          items.append(py::make_tuple(item.transfer, static_cast<int>(item.part), stored_name(tensor),
                                      name_of(tensor.stored == nullptr ? tensor.dtype : tensor.stored->dtype),
                                      offset_in_file(tensor, tensor.offset), item.box.offset, item.box.size));
        }
        return items;
      },
      py::arg("plan"), py::arg("catalog"),
      "[(transfer, part, stored name, stored dtype, offset of the chunk, offset in it, size)] of what "
      "another reader "
      "is to read; part 0 is the transfer's elements, 1 its scales, 2 its global scale.");
  m.def(
      "place_items",
      [](const LoadPlan& plan, std::size_t index, const Catalog& catalog, std::uintptr_t elements,
         std::uintptr_t scales, std::uintptr_t global, const std::vector<TensorSpec>& specs) {
        const Transfer& transfer = plan.transfers.at(index);
        const py::gil_scoped_release release;
        place_items(transfer, catalog, {bytes_at(elements), bytes_at(scales), bytes_at(global)},
                    specs.at(transfer.destination));
      },
      py::arg("plan"), py::arg("index"), py::arg("catalog"), py::arg("elements"), py::arg("scales"),
      py::arg("global_scale"), py::arg("specs"),
      "Runs one transfer whose items lie contiguous in memory at these addresses; 0 where it has none.");
}

void bind_progress(py::module_& m) {
  py::class_<Progress>(m, "Progress",
                       "How far a piece of work is; it may be looked at while the work goes on.")
      .def(py::init<>())
      .def_property_readonly("done", [](const Progress& progress) { return progress.done.load(); })
      .def_property_readonly("total", [](const Progress& progress) { return progress.total.load(); })
      .def(
          "set",
          [](Progress& progress, std::uint64_t done, std::uint64_t total) {
            progress.done = done;
            progress.total = total;
          },
          py::arg("done"), py::arg("total"));
}

void bind_generate(py::module_& m) {
  py::class_<GenerateReport>(m, "GenerateReport")
      .def_readonly("tensors", &GenerateReport::tensors)
      .def_readonly("files", &GenerateReport::files)
      .def_readonly("bytes", &GenerateReport::bytes);
  m.def(
      "generate",
      [](const std::filesystem::path& directory, const std::string& preset, const std::string& encoding,
         bool layout_only, std::uint64_t seed, int threads, int layers, const std::string& family,
         const std::string& form, const std::string& config, std::uint64_t max_file_bytes,
         const std::string& values, Progress* watched) {
        if (values != "trained" && values != "any")
          throw Error(ErrorKind::argument, "values '" + values + "': expected trained or any");
        return interruptible(watched, [&](Progress& progress) {
          return generate(directory, {preset, encoding, layout_only, values == "any", seed, threads, layers,
                                      family, form, config, max_file_bytes, &progress});
        });
      },
      py::arg("directory"), py::arg("preset") = "", py::arg("encoding") = "", py::arg("layout_only") = false,
      py::arg("seed") = 0, py::arg("threads") = 0, py::arg("layers") = 0, py::arg("family") = "",
      py::arg("form") = "", py::arg("config") = "", py::arg("max_file_bytes") = 0,
      py::arg("values") = "trained", py::arg("progress") = nullptr, py::call_guard<py::gil_scoped_release>());
  m.def(
      "generated_catalog",
      [](const std::string& preset, int layers, const std::string& family, const std::string& form,
         const std::string& config, const std::string& encoding) {
        GenerateOptions options;
        options.encoding = encoding;
        options.preset = preset;
        options.layers = layers;
        options.family = family;
        options.form = form;
        options.config = config;
        return std::make_shared<Catalog>(generated_catalog(options));
      },
      py::arg("preset") = "", py::arg("layers") = 0, py::arg("family") = "", py::arg("form") = "",
      py::arg("config") = "", py::arg("encoding") = "",
      "The catalog of what `generate` would write, without writing it.");
  m.def("sample_forms", &sample_forms, py::arg("family"),
        "The forms in which a family is released, as `generate` takes them, the usual one first.");
}

}  // namespace

void check_for_interrupt() {
  const py::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace shardwright

PYBIND11_MODULE(_core, m) {
  m.doc() =
      "Shardwright's planner and storage layer. Use the package `shardwright`, which describes tensors to "
      "it.";
  m.attr("__version__") = SHARDWRIGHT_VERSION;
  shardwright::bind_errors(m);
  shardwright::bind_progress(m);
  shardwright::bind_catalog(m);
  shardwright::bind_specs(m);
  shardwright::bind_weight_map(m);
  shardwright::bind_load(m);
  shardwright::bind_devices(m);
  shardwright::bind_remote(m);
  shardwright::bind_loads(m);
  shardwright::bind_state_dicts(m);
  shardwright::bind_imported_rules(m);
  shardwright::bind_save_plans(m);
  shardwright::bind_write_results(m);
  shardwright::bind_saves(m);
  shardwright::bind_adapters(m);
  shardwright::bind_exports(m);
  shardwright::bind_handover(m);
  shardwright::bind_refits(m);
  shardwright::bind_generate(m);
  shardwright::bind_simulate(m);
  m.def(
      "write_named_file",
      [](const std::filesystem::path& path, const std::string& bytes) {
        const py::gil_scoped_release release;
        shardwright::write_named_file(path, bytes, shardwright::check_for_interrupt);
      },
      py::arg("path"), py::arg("bytes"),
      "Writes a file that somebody has named: whole or not at all; into what is there if that is no regular "
      "file.");
  m.def("is_written_into", &shardwright::is_written_into, py::arg("path"),
        "Whether a file of this name would be written into, as /dev/null is, and not made or replaced.");
  m.def("hints_at_names", &shardwright::hints_at_names, py::arg("missing"), py::arg("available"),
        "See planner/names/name_hints.h.");
  m.def("grouped_names", &shardwright::grouped_names, py::arg("names"),
        "One line for each group of names that differ in one number, the numbers as ranges.");
}
