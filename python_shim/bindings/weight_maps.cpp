/// Families, weight maps, and what a trainer holds and a load asks for by them.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "planner/load/request_list.h"
#include "planner/models/known_models.h"
#include "planner/names/held_tensors.h"
#include "planner/names/mesh.h"
#include "planner/names/packed_tensors.h"
#include "planner/names/weight_map.h"
#include "python_shim/bindings/bindings.h"

namespace py = pybind11;

namespace shardwright {

void bind_weight_map(py::module_& m) {
  py::class_<WeightMap, std::shared_ptr<WeightMap>>(m, "WeightMap")
      .def_readonly("family", &WeightMap::family)
      .def_readonly("layout", &WeightMap::layout)
      .def_property_readonly(
          "packed_weights",
          [](const WeightMap& map) {
            std::map<std::string, std::string> weight_of;
            if (!map.packed) return weight_of;
            for (const auto& [name, tensor] : map.packed->tensors) weight_of.emplace(name, tensor.weight);
            return weight_of;
          },
          "{codes or companion: the weight that they are of}, of what as_packed() has held packed.");
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
      .def_readonly("trained_as_transformers", &Model::trained_as_transformers)
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

}  // namespace shardwright
