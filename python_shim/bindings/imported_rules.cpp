#include "planner/models/imported_rules.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "planner/geometry/recorded_part.h"
#include "planner/models/general_rows.h"
#include "planner/names/axis_text.h"
#include "planner/names/rule_pieces.h"
#include "python_shim/bindings/bindings.h"

namespace py = pybind11;

namespace shardwright {
namespace {

using RowTuple = std::tuple<std::string, std::string, std::string, bool>;

std::vector<ImportedRow> rows_of(const std::vector<RowTuple>& tuples) {
  std::vector<ImportedRow> rows;
  rows.reserve(tuples.size());
  for (const auto& [hf, native, axes, only_read] : tuples) rows.push_back({hf, native, axes, only_read});
  return rows;
}

std::vector<RowTuple> tuples_of(const std::vector<ImportedRow>& rows) {
  std::vector<RowTuple> tuples;
  tuples.reserve(rows.size());
  for (const auto& [hf, native, axes, only_read] : rows) tuples.emplace_back(hf, native, axes, only_read);
  return tuples;
}

void bind_recorded_part(py::module_& m) {
  py::register_exception<NoBox>(m, "NoBox").doc() =
      "What was done to a tensor makes no boxes of views of it; says what.";
  py::class_<RecordedPart>(m, "RecordedPart",
                           "Where elements of a regrouped tensor came from: a box of a view of a source.")
      .def_static("whole", &whole_part, py::arg("source"), py::arg("shape"), "All of a source.")
      .def_readonly("source", &RecordedPart::source, "The name of the source.")
      .def_property_readonly("elements", &elements_of, "How many.")
      .def("joined", &joined, py::arg("dimension"), py::arg("begin"), py::arg("total"),
           "The part, once its dimension is the range from `begin` on of one of size `total`.")
      .def("narrowed", &narrowed, py::arg("dimension"), py::arg("begin"), py::arg("end"),
           "What of it lies in a range of a dimension, once that is all of the dimension; None: nothing.")
      .def("permuted", &permuted, py::arg("order"), "The part, once dimension i is what order[i] was.")
      .def("reshaped", &reshaped, py::arg("shape"), "The part, once the tensor is seen in another shape.")
      .def(
          "axis_text",
          [](const RecordedPart& part) {
            const AxisText axes = axis_text(part);
            return std::make_pair(axes.text,
                                  std::map<std::string, std::int64_t>(axes.sizes.begin(), axes.sizes.end()));
          },
          "Its axis expression, empty where the source is the tensor, and sizes of axes that this names.");
}

}  // namespace

void bind_imported_rules(py::module_& m) {
  bind_recorded_part(m);
  m.def(
      "general_rows",
      [](const std::vector<RowTuple>& rows) { return tuples_of(general_rows(rows_of(rows))); },
      py::arg("rows"),
      "Rows of patterns that say the same of the tensors named, and of others that differ in numbers alone.");
  m.def("general_names", &general_names, py::arg("names"),
        "Patterns of names: of those that differ in one number, {shard} stands for it.");
  m.def(
      "weight_map_of",
      [](std::string family, std::string layout, const std::vector<RowTuple>& rows,
         std::vector<std::string> without_place, std::vector<std::string> strangers,
         std::vector<std::string> layers, std::vector<std::string> after_layers,
         const std::map<std::string, std::int64_t>& sizes) {
        ImportedRules rules;
        rules.family = std::move(family);
        rules.layout = std::move(layout);
        rules.rows = rows_of(rows);
        rules.without_place = std::move(without_place);
        rules.strangers = std::move(strangers);
        rules.layers = std::move(layers);
        rules.after_layers = std::move(after_layers);
        rules.sizes = {sizes.begin(), sizes.end()};
        return std::make_shared<WeightMap>(weight_map_of(rules));
      },
      py::arg("family"), py::arg("layout"), py::arg("rows"),
      py::arg("without_place") = std::vector<std::string>(),
      py::arg("strangers") = std::vector<std::string>(), py::arg("layers") = std::vector<std::string>(),
      py::arg("after_layers") = std::vector<std::string>(),
      py::arg("sizes") = std::map<std::string, std::int64_t>(),
      "The weight map of rows (HF pattern, native pattern, axis expression, whether it is only read).");
  m.def(
      "said_otherwise",
      [](const WeightMap& map, const Catalog& catalog, const std::vector<RowTuple>& rows,
         const std::map<std::string, Shape>& shapes) {
        return said_otherwise(map, catalog, rows_of(rows), shapes);
      },
      py::arg("map"), py::arg("catalog"), py::arg("rows"), py::arg("shapes"),
      "The native tensors of which the map does not say what these rows, of single tensors, say of them.");
  m.def(
      "rows_of",
      [](const WeightMap& map) {
        std::vector<RowTuple> rows;
        for (const Rule& rule : map.rules)
          rows.emplace_back(rule.hf.text(), rule.native.text(), rule.axes.text(), rule.only_read);
        return rows;
      },
      py::arg("map"), "The rules of a map as such rows.");
}

}  // namespace shardwright
