#include "planner/models/imported_rules.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

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

}  // namespace

void bind_imported_rules(py::module_& m) {
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
