#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "planner/load/hf_parts.h"
#include "planner/load/load_plan.h"
#include "planner/load/request_list.h"
#include "planner/lora/lora_state_dict.h"
#include "planner/models/known_models.h"
#include "planner/names/companions.h"
#include "planner/names/encodings.h"
#include "planner/names/held_tensors.h"
#include "planner/names/rule_pieces.h"
#include "planner/problems.h"
#include "python_shim/bindings/bindings.h"
#include "storage/boxes/place_from_memory.h"
#include "storage/boxes/state_dict_memory.h"
#include "storage/lora/adapter_values.h"

namespace py = pybind11;

namespace shardwright {
namespace {

void bind_names(py::module_& m) {
  m.def(
      "weight_map_for_names",
      [](const std::vector<std::string>& hf_names, const std::string& model, const std::string& layout) {
        Catalog catalog;
        for (const std::string& name : hf_names) catalog.tensors.push_back({name, DType::BF16, {}, {}});
        return std::make_shared<WeightMap>(weight_map_for(catalog, model, layout));
      },
      py::arg("hf_names"), py::arg("model"), py::arg("layout") = "automodel",
      "The weight map where no checkpoint is at hand: these names show how HF names begin.");
  m.def(
      "weight_map_for_natives",
      [](const std::vector<std::string>& names, const std::string& model, const std::string& layout) {
        return std::make_shared<WeightMap>(weight_map_for_natives(names, model, layout));
      },
      py::arg("names"), py::arg("model"), py::arg("layout"),
      "The weight map where no checkpoint is at hand, for a trainer's tensors of these names.");
  m.def(
      "lora_map_of_names",
      [](const std::vector<std::string>& keys, const std::string& family, const std::string& text) {
        return std::make_shared<WeightMap>(lora_map_of_names(keys, family, text));
      },
      py::arg("keys"), py::arg("family"), py::arg("text"),
      "The rules between a trainer's LoRA tensors and HF's, whose text part's names begin so.");
  m.def("projection_names", &projection_names, py::arg("stack"),
        "What the parts of a stack of experts are called one by one.");
  m.def("unchanged_names", [] { return std::make_shared<WeightMap>(unchanged_names()); });
  m.def(
      "native_place",
      [](const WeightMap& map, const std::string& hf_name) {
        using Match = std::tuple<std::string, std::int64_t, int>;
        const std::vector<NameMatch> matches = native_matches_of(map, hf_name);
        if (matches.empty()) return std::optional<Match>();
        const NameMatch& match = matches.front();
        return std::optional<Match>({match.fqn, match.captures.expert, match.number});
      },
      py::arg("map"), py::arg("hf_name"),
      "(FQN, expert or -1, which of the HF tensors joined there) of an HF tensor; None if no rule has it.");
  m.def("is_scale_name", &is_scale_name, py::arg("name"));
  m.def("weight_name_of", &weight_name_of, py::arg("name"),
        "The name of the weight that scales belong to; any other name as it is.");
  m.def("is_ignored", &is_ignored, py::arg("map"), py::arg("hf_name"));
  m.def("is_multiplier", &is_multiplier, py::arg("map"), py::arg("hf_name"));
  m.def("hf_names_of", &hf_names_of, py::arg("map"), py::arg("fqn"), py::arg("expert") = 0);
  m.def("quantized_patterns", &quantized_patterns, py::arg("map"));
}

void bind_requests(py::module_& m) {
  py::class_<Request>(m, "Request", "An HF tensor that a load asks for.")
      .def_readonly("name", &Request::name)
      .def_property_readonly("dtype", [](const Request& r) { return std::string(name_of(r.dtype)); })
      .def_readonly("shape", &Request::shape)
      .def_readonly("placeholder", &Request::placeholder)
      .def_readonly("fqn", &Request::fqn)
      .def_readonly("scaled", &Request::scaled)
      .def_readonly("axes", &Request::axes)
      .def_readonly("is_box", &Request::is_box)
      .def_readonly("seen_name", &Request::seen_name)
      .def_readonly("seen_shape", &Request::seen_shape)
      .def_property_readonly("native_offset", [](const Request& r) { return r.box.offset; })
      .def_property_readonly("native_size", [](const Request& r) { return r.box.size; });
  m.def(
      "requests",
      [](const std::vector<TensorSpec>& specs, const WeightMap& map, const Catalog* catalog,
         const Catalog* shapes) { return request_list(specs, map, catalog, shapes); },
      py::arg("specs"), py::arg("map"), py::arg("catalog") = nullptr, py::arg("shapes") = nullptr,
      "The request list with each entry's place in its native tensor.");
  py::class_<StridedPart>(m, "StridedPart", "Elements that an HF tensor and a native one have in common.")
      .def_readonly("fqn", &StridedPart::fqn)
      .def_readonly("sizes", &StridedPart::sizes)
      .def_readonly("hf_strides", &StridedPart::hf_strides)
      .def_readonly("hf_offset", &StridedPart::hf_offset)
      .def_readonly("native_strides", &StridedPart::native_strides)
      .def_readonly("native_offset", &StridedPart::native_offset);
  py::class_<HfParts>(m, "HfParts", "What this rank's part of an HF tensor is made of.")
      .def_readonly("parts", &HfParts::parts)
      .def_readonly("is_view", &HfParts::is_view);
  m.def("made_of", &made_of, py::arg("map"), py::arg("hf_name"),
        "The native tensors that an HF tensor is made of.");
  m.def(
      "hf_parts", &hf_parts, py::arg("map"), py::arg("hf"), py::arg("natives"), py::arg("shapes") = nullptr,
      "What the HF tensor is made of on this rank, as offsets and strides; raises PlanError if shards do not "
      "fit together.");
}

void bind_held_tensors(py::module_& m) {
  py::class_<HeldTensor>(m, "HeldTensor", "A native tensor that an HF state dict brings something for.")
      .def_readonly("fqn", &HeldTensor::fqn)
      .def_readonly("shape", &HeldTensor::shape)
      .def_readonly("stacked", &HeldTensor::stacked)
      .def_readonly("as_it_is", &HeldTensor::as_it_is)
      .def_readonly("sources", &HeldTensor::sources)
      .def_readonly("scales", &HeldTensor::scales)
      .def_readonly("experts", &HeldTensor::experts)
      .def_readonly("axes", &HeldTensor::axes)
      .def_readonly("joined", &HeldTensor::joined);
}

std::shared_ptr<WeightMap> lora_map_of(const StateDictMemory& held, const std::string& family,
                                       std::int64_t experts, std::optional<std::int64_t> width,
                                       const std::string& sense, const py::function& bytes_of) {
  AdapterFit fit = fit_state_dict(held.catalog, {family, experts, width, wrapper_sense_named(sense)});
  std::vector<TensorSpec> specs;
  for (const FittedPair& one : fit.pairs)
    specs.push_back(whole_tensor(one.pair.a.fqn, one.pair.a.dtype, one.pair.a.shape));
  const auto bytes_of_tensor = [&](const SourceTensor& tensor) {
    const std::string bytes = bytes_of(tensor.name).cast<std::string>();
    const auto* data = reinterpret_cast<const std::byte*>(bytes.data());
    return std::vector<std::byte>(data, data + bytes.size());
  };
  Problems problems{std::move(fit.problems)};
  for (std::string& fault :
       faults_of_values(fit, held.catalog, specs, /*strict=*/false, "the state dict", bytes_of_tensor))
    problems.add(std::move(fault));
  problems.throw_if_any(ErrorKind::mismatch,
                        "the LoRA tensors in HF's names do not fit together; nothing has been converted:");
  return std::make_shared<WeightMap>(std::move(fit.map));
}

void bind_memory(py::module_& m) {
  py::class_<StateDictMemory>(m, "StateDictMemory", "What this rank holds of an HF state dict, in memory.")
      .def(py::init(&memory_of), py::arg("hf_tensors"))
      .def(
          "weight_map",
          [](const StateDictMemory& held, const std::string& model, const std::string& layout) {
            return std::make_shared<WeightMap>(weight_map_for(held.catalog, model, layout));
          },
          py::arg("model"), py::arg("layout") = "automodel")
      .def("lora_map", &lora_map_of, py::arg("family"), py::arg("experts"), py::arg("width"),
           py::arg("sense"), py::arg("bytes_of"),
           "The rules that make a trainer's LoRA tensors of these; raises PlanError with all that does not "
           "fit. bytes_of(name) gives a tensor's bytes.")
      .def(
          "native_tensors",
          [](const StateDictMemory& held, const WeightMap& map, std::int64_t experts) {
            return held_tensors(held.catalog, map, experts);
          },
          py::arg("map"), py::arg("experts") = -1)
      .def(
          "missing_weights",
          [](const StateDictMemory& held, const WeightMap& map, const std::string& fqn, std::int64_t first,
             std::int64_t last) { return missing_weights(held.catalog, map, fqn, first, last); },
          py::arg("map"), py::arg("fqn"), py::arg("first"), py::arg("last"))
      .def(
          "plan",
          [](const StateDictMemory& held, const std::vector<TensorSpec>& specs, const WeightMap& map,
             std::optional<std::int64_t> mxfp8_block) {
            LoadPlanOptions options = options_for_memory();
            std::vector<KnownEncoding> encodings;
            if (mxfp8_block) {
              encodings = {known_encodings().front()};
              encodings[0].columns = *mxfp8_block;
              options.encodings = &encodings;
            }
            const py::gil_scoped_release release;
            return std::make_shared<LoadPlan>(plan_load(specs, held.catalog, map, options));
          },
          py::arg("specs"), py::arg("map"), py::arg("mxfp8_block") = py::none(),
          "Plans filling these native tensors; raises PlanError with all that does not fit. With "
          "mxfp8_block, "
          "all scales are e8m0, one for so many elements of a row.")
      .def(
          "place",
          [](const StateDictMemory& held, const LoadPlan& plan, const std::vector<TensorSpec>& specs,
             int threads) {
            const py::gil_scoped_release release;
            place_from_memory(plan, held.catalog, held.memory, specs, threads);
          },
          py::arg("plan"), py::arg("specs"), py::arg("threads") = 0,
          "Runs a plan: decodes straight from the HF tensors into the native ones, on several threads.");
}

}  // namespace

void bind_state_dicts(py::module_& m) {
  bind_names(m);
  bind_requests(m);
  bind_held_tensors(m);
  bind_memory(m);
}

}  // namespace shardwright
