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

std::optional<std::string> sense_or_none(std::optional<WrapperSense> sense) {
  return sense ? std::optional(std::string(name_of(*sense))) : std::nullopt;
}

}  // namespace

void bind_adapters(py::module_& m) {
  py::class_<StoredAdapter>(m, "StoredAdapter", "What an adapter's two files say.")
      .def_property_readonly("catalog",
                             [](const StoredAdapter& a) { return std::make_shared<Catalog>(a.catalog); })
      .def_property_readonly(
          "config",
          [](const StoredAdapter& a) {
            const AdapterConfig& config = a.config;
            return std::tuple(config.r, config.lora_alpha, config.use_rslora, config.alpha_pattern,
                              config.target_parameters, sense_or_none(config.written));
          },
          "(r, lora_alpha, use_rslora, [(pattern, alpha)], target_parameters, the writer's sense or None).");
  m.def("read_adapter", &read_adapter, py::arg("directory"), py::call_guard<py::gil_scoped_release>(),
        "Reads what an adapter's two files say, of the weights the header.");
  m.def(
      "is_lora_name", [](const std::string& key) { return lora_name_of(key).has_value(); }, py::arg("key"),
      "Whether a trainer's tensor of this name is an A or B of LoRA.");
  py::class_<AdapterPlan>(m, "AdapterPlan", "How an adapter is loaded into a trainer's tensors.")
      .def_property_readonly("plan", [](const AdapterPlan& p) { return std::make_shared<LoadPlan>(p.plan); })
      .def_readonly("layout", &AdapterPlan::layout, "Of the model that the adapter is for.")
      .def_property_readonly(
          "sense", [](const AdapterPlan& p) { return sense_or_none(p.sense); },
          "Of its ParamWrappers; None: it has none.")
      .def_readonly("zeroed", &AdapterPlan::zeroed, "What is to be zero before the plan is run.")
      .def_property_readonly(
          "scaled",
          [](const AdapterPlan& p) {
            std::vector<std::tuple<std::string, std::string, std::int64_t>> scaled;
            for (const ScaledWeight& one : p.scaled) scaled.emplace_back(one.weight, one.module, one.rank);
            return scaled;
          },
          "[(weight of the trainer, module as adapter_config.json names it, rank)].");
  m.def(
      "plan_adapter",
      [](const std::vector<TensorFacts>& tensors, const std::vector<TensorSpec>& specs,
         const StoredAdapter& adapter, const std::string& model, const std::string& sense, bool strict) {
        AdapterRequest request;
        request.model = model;
        request.sense = wrapper_sense_named(sense);
        const std::vector<NativeTensor> natives = native_from(tensors);
        const py::gil_scoped_release release;
        return plan_adapter(natives, specs, adapter, std::move(request), strict);
      },
      py::arg("tensors"), py::arg("specs"), py::arg("adapter"), py::arg("model"), py::arg("sense"),
      py::arg("strict"),
      "Plans a load of an adapter into the trainer's tensors, given as (name, dtype, global shape); raises "
      "PlanError with all that does not fit.");
}

}  // namespace shardwright
