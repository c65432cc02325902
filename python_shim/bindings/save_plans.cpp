/// Planning a save over all ranks, for save_planner.py: descriptions and states as bytes, plans as objects.

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "planner/error.h"
#include "planner/save/global_save_plan.h"
#include "planner/save/plan_together.h"
#include "planner/save/save_wire.h"
#include "python_shim/bindings/bindings.h"

namespace py = pybind11;

namespace shardwright {
namespace {

using ValueBox = std::tuple<std::uint32_t, Shape, Shape>;  // index of the value, offset, size

py::tuple tuple_of(const std::int64_t* first, std::size_t count) {
  py::tuple tuple(count);
  for (std::size_t i = 0; i < count; ++i) tuple[i] = first[i];
  return tuple;
}

py::str text_of(const std::string& bytes) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "surrogatepass"));
}

py::object path_of(const SavedValue& value) {
  if (value.path.empty()) return py::make_tuple(text_of(value.fqn));
  py::tuple path(value.path.size());
  for (std::size_t k = 0; k < value.path.size(); ++k) {
    const PathKey& key = value.path[k];
    path[k] = key.is_number ? py::object(py::int_(py::str(key.text))) : py::object(text_of(key.text));
  }
  return path;
}

/// (fqn, kind, dtype, layout, flags, shape, path)
py::tuple facts_of(const SavedValue& value) {
  return py::make_tuple(text_of(value.fqn), static_cast<int>(value.kind), value.properties.dtype,
                        value.properties.layout, value.properties.flags,
                        tuple_of(value.shape.data(), value.shape.size()), path_of(value));
}

/// What a rank writes of what it holds: [(facts of the value, offset, size)].
py::list written_items(const RankState& state, const ValuesByHash& known,
                       const LeftToOthers& left_to_others) {
  py::list written;
  each_written(state, known, {left_to_others, {}}, [&](const SavedValue& value, const Box& box) {
    written.append(py::make_tuple(facts_of(value), tuple_of(box.offset.data(), box.offset.size()),
                                  tuple_of(box.size.data(), box.size.size())));
  });
  return written;
}

SavedItems items_from(const std::vector<ValueBox>& boxes, const SavedValues& values) {
  SavedItems items;
  for (const auto& [index, offset, size] : boxes) {
    const std::size_t rank = values.values.at(index).shape.size();
    if (offset.size() != rank || size.size() != rank)
      throw Error(ErrorKind::argument,
                  values.values[index].fqn + ": expected a box of " + std::to_string(rank) + " dimensions");
    items.add(index, offset, size);
  }
  return items;
}

/// A value as save_description.py gives it.
using ValueFacts = std::tuple<std::string, int, std::string, std::string, std::uint32_t, std::uint32_t, Shape,
                              std::vector<Placement>, std::vector<std::pair<std::string, bool>>>;

std::string encode_values(std::vector<ValueFacts> facts, Shape mesh_shape, Shape mesh_ranks) {
  SavedValues values;
  values.mesh_shape = std::move(mesh_shape);
  values.mesh_ranks = std::move(mesh_ranks);
  for (auto& [fqn, kind, dtype, layout, element_bytes, flags, shape, placements, path] : facts) {
    SavedValue& value = values.values.emplace_back();
    value.fqn = std::move(fqn);
    value.kind = static_cast<SavedValue::Kind>(kind);
    value.properties = {std::move(dtype), std::move(layout), element_bytes, flags};
    value.shape = std::move(shape);
    value.placements = std::move(placements);
    for (auto& [text, is_number] : path) value.path.push_back({std::move(text), is_number});
  }
  std::string bytes = encode(values);
  decode_values(bytes);  // what could not be read is refused where it is made
  return bytes;
}

void bind_descriptions(py::module_& m) {
  m.def(
      "encode_values",
      [](std::vector<ValueFacts> values, Shape mesh_shape, Shape mesh_ranks) {
        return py::bytes(encode_values(std::move(values), std::move(mesh_shape), std::move(mesh_ranks)));
      },
      py::arg("values"), py::arg("mesh_shape") = Shape{}, py::arg("mesh_ranks") = Shape{},
      "A description as bytes, from (fqn, kind, dtype, layout, element bytes, flags, shape, placements, "
      "path).");
  m.def(
      "encode_state",
      [](std::int64_t rank,
         const std::vector<std::pair<std::string, std::optional<std::vector<ValueBox>>>>& holdings) {
        RankState state;
        state.rank = rank;
        for (const auto& [values, boxes] : holdings) {
          RankState::Holding& holding = state.holdings.emplace_back();
          holding.values = hash_of(values);
          if (boxes) {
            const SavedValues decoded = decode_values(values);
            holding.packed = pack(items_from(*boxes, decoded), decoded);
          }
          state.values.push_back(values);
        }
        return py::bytes(encode(state));
      },
      py::arg("rank"), py::arg("holdings"),
      "What a rank has to save: for each holding the description, and its boxes or None where the mesh says "
      "them.");
  m.def(
      "items_of_state",
      [](const std::string& bytes, const std::optional<LeftToOthers>& left_to_others) {
        const RankState state = decode_state(bytes);
        ValuesByHash known;
        learn_values(state, known);
        return written_items(state, known, left_to_others.value_or(LeftToOthers(state.holdings.size())));
      },
      py::arg("bytes"), py::arg("left_to_others") = py::none(),
      "What a rank holds, but for what others write: [(facts of the value, offset, size)].");
}

void bind_global_plan(py::module_& m) {
  py::class_<GlobalMetadata>(m, "GlobalMetadata", "What a checkpoint holds.")
      .def_property_readonly(
          "values",
          [](const GlobalMetadata& metadata) {
            py::list values;
            for (std::size_t i = 0; i < metadata.chunking.size(); ++i)
              values.append(py::make_tuple(facts_of(metadata.values.values[i]), metadata.chunking[i]));
            return values;
          },
          "[((fqn, kind, dtype, layout, flags, shape, path), number of its chunking)]")
      .def_property_readonly(
          "chunkings",
          [](const GlobalMetadata& metadata) {
            py::list chunkings;
            for (const Chunking& chunking : metadata.chunkings) {
              const std::size_t rank = chunking.rank;
              py::list chunks(chunking.count());
              for (std::size_t c = 0; c < chunking.count(); ++c) {
                const std::int64_t* corner = chunking.corners.data() + 2 * rank * c;
                chunks[c] = py::make_tuple(tuple_of(corner, rank), tuple_of(corner + rank, rank));
              }
              chunkings.append(std::move(chunks));
            }
            return chunkings;
          },
          "For each chunking its chunks: [(offset, size)]")
      .def_property_readonly("names",
                             [](const GlobalMetadata& metadata) {
                               py::list names;
                               for (const SavedValue& value : metadata.values.values)
                                 names.append(text_of(value.fqn));
                               return names;
                             })
      .def("encode", [](const GlobalMetadata& metadata) { return py::bytes(encode(metadata)); });
  m.def(
      "decode_metadata", [](const std::string& bytes) { return decode_metadata(bytes); }, py::arg("bytes"));
  py::class_<GlobalSavePlan, std::shared_ptr<GlobalSavePlan>>(m, "GlobalSavePlan")
      .def_readonly("bytes_of_rank", &GlobalSavePlan::bytes_of_rank)
      .def_readonly("bytes_held", &GlobalSavePlan::bytes_held)
      .def_readonly("chunks", &GlobalSavePlan::chunks)
      .def_readonly("metadata", &GlobalSavePlan::metadata, py::return_value_policy::reference_internal);
}

void bind_planning_together(py::module_& m) {
  py::class_<SavePlanCache, std::shared_ptr<SavePlanCache>>(m, "SavePlanCache",
                                                            "What planning remembers from save to save.")
      .def(py::init<>())
      .def_property_readonly(
          "plan",
          [](const SavePlanCache& cache) { return std::const_pointer_cast<GlobalSavePlan>(cache.plan); },
          "On rank 0: the last plan.")
      .def(
          "items",
          [](const SavePlanCache& cache, std::size_t position) {
            return written_items(decode_state(cache.states.at(cache.states_of_ranks.at(position))),
                                 cache.known, cache.plan->left_to_others.at(position));
          },
          py::arg("position"),
          "On rank 0, what a rank of the last plan writes: [(facts of the value, offset, size)].");
  m.def(
      "told_state", [](const std::string& state) { return py::bytes(told_state(decode_state(state))); },
      py::arg("state"), "What goes to rank 0 of a state that has all its descriptions.");
  m.def(
      "tell",
      [](const std::string& told_state, SavePlanCache& cache) { return py::bytes(tell(told_state, cache)); },
      py::arg("told_state"), py::arg("cache"));
  m.def(
      "answer",
      [](const std::vector<std::string>& told, SavePlanCache& cache, bool to_lowest) {
        std::vector<std::string> answers;
        {
          const py::gil_scoped_release release;
          answers = answer(told, cache, to_lowest);
        }
        return std::vector<py::bytes>(answers.begin(), answers.end());
      },
      py::arg("told"), py::arg("cache"), py::arg("to_lowest") = false,
      "On rank 0: plans, unless all is as it was, and answers each rank. PlanError lists all that is wrong.");
  m.def(
      "is_refused",
      [](const std::vector<std::string_view>& answers) {
        return std::any_of(answers.begin(), answers.end(), is_refusal);
      },
      py::arg("answers"), "True where rank 0 has made no plan.");
  m.def(
      "understand",
      [](const std::string& answer, const std::string& state, SavePlanCache& cache) {
        SavePlanOfRank plan = understand(answer, decode_state(state), cache);
        return std::pair(std::move(plan.left_to_others), plan.unchanged);
      },
      py::arg("answer"), py::arg("state"), py::arg("cache"),
      "(for each holding, the items that others write; whether nothing has changed). PlanError for "
      "a refusal.");
}

}  // namespace

void bind_save_plans(py::module_& m) {
  bind_descriptions(m);
  bind_global_plan(m);
  bind_planning_together(m);
}

}  // namespace shardwright
