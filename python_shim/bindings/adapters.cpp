// adapter_model.safetensors: its catalog, other shapes for its tensors, and the header of a new one.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "planner/error.h"
#include "python_shim/bindings/bindings.h"
#include "storage/format/safetensors.h"
#include "storage/lora/adapter_file.h"
#include "storage/lora/load_adapter.h"

namespace py = pybind11;

namespace shardwright {
namespace {

/// "modern", "legacy", or "" or "auto" for what is not said.
std::optional<WrapperSense> sense_from(const std::string& name) {
  for (const WrapperSense sense : {WrapperSense::modern, WrapperSense::legacy}) {
    if (name == name_of(sense)) return sense;
  }
  return std::nullopt;
}

using TensorFacts = std::tuple<std::string, std::string, Shape>;  // name, dtype, global shape

std::vector<NativeTensor> native_from(const std::vector<TensorFacts>& tensors) {
  std::vector<NativeTensor> found;
  for (const auto& [fqn, dtype, shape] : tensors) {
    const std::optional<DType> known = dtype_named(dtype);
    if (!known) throw Error(ErrorKind::argument, fqn + ": safetensors has no dtype '" + dtype + "'");
    found.push_back({fqn, *known, shape, false});
  }
  return found;
}

std::int64_t volume_of(const Shape& shape) {
  std::int64_t product = 1;
  for (const std::int64_t size : shape) product *= size;
  return product;
}

std::shared_ptr<Catalog> with_shapes(const Catalog& catalog, const std::map<std::string, Shape>& shapes) {
  auto seen = std::make_shared<Catalog>(catalog);
  for (SourceTensor& tensor : seen->tensors) {
    const auto found = shapes.find(tensor.name);
    if (found == shapes.end()) continue;
    if (volume_of(found->second) != volume_of(tensor.shape)) {
      throw Error(ErrorKind::argument, tensor.name + ": expected a shape of as many elements as " +
                                           to_string(tensor.shape) + ", found " + to_string(found->second));
    }
    tensor.shape = found->second;
    tensor.offset = Shape(tensor.shape.size());
  }
  return seen;
}

}  // namespace

void bind_adapters(py::module_& m) {
  m.def(
      "read_file_catalog",
      [](const std::filesystem::path& path) { return std::make_shared<Catalog>(read_adapter_catalog(path)); },
      py::arg("path"), py::call_guard<py::gil_scoped_release>(), "The catalog of one safetensors file.");
  m.def(
      "is_lora_name", [](const std::string& key) { return lora_name_of(key).has_value(); }, py::arg("key"),
      "Whether a trainer's tensor of this name is an A or B of LoRA.");
  py::class_<AdapterPlan>(m, "AdapterPlan", "How an adapter is loaded into a trainer's tensors.")
      .def_property_readonly("plan", [](const AdapterPlan& p) { return std::make_shared<LoadPlan>(p.plan); })
      .def_readonly("layout", &AdapterPlan::layout, "Of the model that the adapter is for.")
      .def_property_readonly(
          "sense",
          [](const AdapterPlan& p) {
            return p.sense ? std::optional(std::string(name_of(*p.sense))) : std::nullopt;
          },
          "Of its ParamWrappers; None: it has none.")
      .def_readonly("zeroed", &AdapterPlan::zeroed, "What is to be zero before the plan is run.")
      .def_property_readonly(
          "scaled",
          [](const AdapterPlan& p) {
            std::vector<std::tuple<std::string, std::string, std::int64_t>> scaled;
            for (const AdapterPlan::Scaled& one : p.scaled)
              scaled.emplace_back(one.weight, one.module, one.rank);
            return scaled;
          },
          "[(weight of the trainer, module as adapter_config.json names it, rank)].");
  m.def(
      "plan_adapter",
      [](const std::vector<TensorFacts>& tensors, const std::vector<TensorSpec>& specs,
         const Catalog& catalog, const std::string& model, const std::string& sense,
         const std::string& written, const std::vector<std::string>& target_parameters, bool strict) {
        AdapterRequest request;
        request.model = model;
        request.sense = sense_from(sense);
        request.written = sense_from(written);
        request.target_parameters = target_parameters;
        const std::vector<NativeTensor> natives = native_from(tensors);
        const py::gil_scoped_release release;
        return plan_adapter(natives, specs, catalog, std::move(request), strict);
      },
      py::arg("tensors"), py::arg("specs"), py::arg("catalog"), py::arg("model"), py::arg("sense"),
      py::arg("written"), py::arg("target_parameters"), py::arg("strict"),
      "Plans a load of an adapter into the trainer's tensors, given as (name, dtype, global shape); raises "
      "PlanError with all that does not fit.");
  m.def("with_shapes", &with_shapes, py::arg("catalog"), py::arg("shapes"),
        "The catalog with the tensors named seen in these shapes, of as many elements, row-major.");
  m.def(
      "safetensors_header",
      [](const std::vector<std::tuple<std::string, std::string, Shape>>& tensors,
         const std::map<std::string, std::string>& metadata) {
        std::vector<SourceTensor> stored;
        for (const auto& [name, dtype, shape] : tensors) {
          const std::optional<DType> known = dtype_named(dtype);
          if (!known) throw Error(ErrorKind::argument, name + ": safetensors has no dtype '" + dtype + "'");
          stored.push_back({name, *known, shape, Shape(shape.size())});
        }
        const std::string header = make_safetensors_header(stored, metadata);
        std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
        for (const SourceTensor& tensor : stored) ranges.emplace_back(tensor.begin, tensor.end);
        return std::pair{py::bytes(header), ranges};
      },
      py::arg("tensors"), py::arg("metadata"),
      "(bytes, [(begin, end)]): how a file of these (name, dtype, shape) begins, and where in it each tensor "
      "lies.");
}

}  // namespace shardwright
