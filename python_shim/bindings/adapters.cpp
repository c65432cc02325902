// LoRA adapters: what the file holds, and how it is loaded. What writes it is in exports.cpp.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "planner/error.h"
#include "python_shim/bindings/bindings.h"
#include "storage/format/adapter_file.h"
#include "storage/lora/load_adapter.h"

namespace py = pybind11;

namespace shardwright {
namespace {

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
        request.sense = wrapper_sense_named(sense);
        request.written = wrapper_sense_named(written);
        request.target_parameters = target_parameters;
        const std::vector<NativeTensor> natives = native_from(tensors);
        const py::gil_scoped_release release;
        return plan_adapter(natives, specs, catalog, std::move(request), strict);
      },
      py::arg("tensors"), py::arg("specs"), py::arg("catalog"), py::arg("model"), py::arg("sense"),
      py::arg("written"), py::arg("target_parameters"), py::arg("strict"),
      "Plans a load of an adapter into the trainer's tensors, given as (name, dtype, global shape); raises "
      "PlanError with all that does not fit.");
}

}  // namespace shardwright
