/// Planning a save over all ranks, for save_planning.py: descriptions and states as bytes, plans as objects.

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <tuple>

#include "planner/error.h"
#include "planner/save/global_save_plan.h"
#include "planner/save/plan_together.h"
#include "planner/save/save_wire.h"
#include "python_shim/bindings/bindings.h"

namespace py = pybind11;

namespace shardwright {
namespace {

using BoxFacts = std::tuple<std::uint32_t, Shape, Shape>;  // index of the value, offset, size

py::bytes bytes_from(const Hash& hash) { return {hash.data(), hash.size()}; }

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

py::list boxes_of(const SavedItems& items, const SavedValues& values) {
  py::list boxes(items.value.size());
  const std::int64_t* corner = items.corners.data();
  for (std::size_t i = 0; i < items.value.size(); ++i) {
    const std::size_t rank = values.values[items.value[i]].shape.size();
    boxes[i] = py::make_tuple(items.value[i], tuple_of(corner, rank), tuple_of(corner + rank, rank));
    corner += 2 * rank;
  }
  return boxes;
}

SavedItems items_from(const std::vector<BoxFacts>& boxes, const SavedValues& values) {
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

/// A value as save_planning.py gives it.
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
      "decode_values",
      [](const std::string& bytes) {
        py::list facts;
        for (const SavedValue& value : decode_values(bytes).values) facts.append(facts_of(value));
        return facts;
      },
      py::arg("bytes"), "[(fqn, kind, dtype, layout, flags, shape, path)]");
  m.def(
      "hash_of", [](const std::string& bytes) { return bytes_from(hash_of(bytes)); }, py::arg("bytes"));
  m.def(
      "encode_state",
      [](std::int64_t rank,
         const std::vector<std::pair<std::string, std::optional<std::vector<BoxFacts>>>>& parts,
         const std::vector<bool>& brings) {
        RankState state;
        state.rank = rank;
        for (std::size_t p = 0; p < parts.size(); ++p) {
          const auto& [values, boxes] = parts[p];
          RankState::Part& part = state.parts.emplace_back();
          part.values = hash_of(values);
          if (boxes) {
            const SavedValues decoded = decode_values(values);
            part.packed = pack(items_from(*boxes, decoded), decoded);
          }
          if (brings.at(p)) state.values.push_back(values);
        }
        return py::bytes(encode(state));
      },
      py::arg("rank"), py::arg("parts"), py::arg("brings"),
      "What a rank has to save: for each part the description, and its boxes or None where the mesh says "
      "them; `brings`: whether the description goes along.");
  m.def(
      "boxes_of_state",
      [](const std::string& bytes) {
        const RankState state = decode_state(bytes);
        const std::vector<SavedItems> items = items_of(state);
        ValuesByHash known;
        learn_values(state, known);
        py::list parts;
        for (std::size_t p = 0; p < items.size(); ++p)
          parts.append(boxes_of(items[p], *known.at(state.parts[p].values)));
        return parts;
      },
      py::arg("bytes"), "For each part, its items: [(index of the value, offset, size)].");
  m.def(
      "enumerate_states",
      [](const std::string& bytes) {
        const SavedValues on_mesh = decode_values(bytes);
        SavedValues values = on_mesh;
        values.mesh_shape.clear();
        values.mesh_ranks.clear();
        for (SavedValue& value : values.values) value.placements.clear();
        const std::string encoded = encode(values);
        std::vector<py::bytes> states;
        for (const std::int64_t rank : on_mesh.mesh_ranks) {
          const RankState state{
              rank, {{hash_of(encoded), pack(items_on_mesh(on_mesh, rank), values)}}, {encoded}, {}};
          states.emplace_back(encode(state));
        }
        return states;
      },
      py::arg("values"),
      "The states of all ranks of a mesh, every box named instead of derived from the mesh.");
  m.def(
      "read_writes",
      [](const std::string& bytes, const std::string& state) {
        return read_writes(bytes, decode_state(state));
      },
      py::arg("bytes"), py::arg("state"),
      "For each part of a rank's state, which must bring its descriptions, the items that others write.");
}

/// A plan, and what is needed to say what it means.
struct PlannedSave : GlobalSavePlan {
  ValuesByHash known;

  py::list items(std::size_t position, const RankState& state) const {
    py::list written;
    for (std::size_t p = 0; p < state.parts.size(); ++p) {
      const SavedValues& values = *known.at(state.parts[p].values);
      const SavedItems held =
          values.has_mesh() ? items_on_mesh(values, state.rank) : unpack(state.parts[p].packed, values);
      const std::vector<std::uint32_t>& left = left_to_others.at(position).at(p);
      const py::list boxes = boxes_of(held, values);
      for (std::uint32_t i = 0; i < held.value.size(); ++i) {
        if (std::binary_search(left.begin(), left.end(), i)) continue;
        const py::tuple box = boxes[i];
        written.append(py::make_tuple(facts_of(values.values[held.value[i]]), box[1], box[2]));
      }
    }
    return written;
  }
};

void bind_global_plan(py::module_& m) {
  py::class_<GlobalMetadata>(m, "GlobalMetadata", "What a checkpoint holds.")
      .def_property_readonly(
          "values",
          [](const GlobalMetadata& metadata) {
            py::list values;
            for (std::size_t i = 0; i < metadata.layout.size(); ++i)
              values.append(py::make_tuple(facts_of(metadata.values.values[i]), metadata.layout[i]));
            return values;
          },
          "[((fqn, kind, dtype, layout, flags, shape, path), number of its layout)]")
      .def_property_readonly(
          "layouts",
          [](const GlobalMetadata& metadata) {
            py::list layouts;
            for (const ChunkLayout& layout : metadata.layouts) {
              const std::size_t rank = layout.rank;
              py::list chunks(layout.count());
              for (std::size_t c = 0; c < layout.count(); ++c) {
                const std::int64_t* corner = layout.corners.data() + 2 * rank * c;
                chunks[c] = py::make_tuple(tuple_of(corner, rank), tuple_of(corner + rank, rank));
              }
              layouts.append(std::move(chunks));
            }
            return layouts;
          },
          "For each layout its chunks: [(offset, size)]")
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
      .def_readonly("metadata", &GlobalSavePlan::metadata, py::return_value_policy::reference_internal)
      .def("writes", [](const GlobalSavePlan& plan, std::size_t position) {
        return py::bytes(encode(RankWrites{plan.left_to_others.at(position), {}}));
      });
  py::class_<PlannedSave, GlobalSavePlan, std::shared_ptr<PlannedSave>>(m, "PlannedSave")
      .def(
          "items",
          [](const PlannedSave& plan, std::size_t position, const std::string& bytes) {
            return plan.items(position, decode_state(bytes));
          },
          py::arg("position"), py::arg("state"),
          "What a rank writes: [(facts of the value, offset, size)]; `state` as it was planned.");
  m.def(
      "plan_save",
      [](const std::vector<std::string>& encoded) {
        const py::gil_scoped_release release;
        auto planned = std::make_shared<PlannedSave>();
        const std::vector<RankState> states = decode_states(encoded, planned->known);
        static_cast<GlobalSavePlan&>(*planned) = plan_save(states, planned->known);
        return planned;
      },
      py::arg("states"), "Plans a save from the states of all ranks; PlanError lists all that is wrong.");
  m.def(
      "lost_descriptions",
      [](const std::vector<std::string>& encoded) {
        ValuesByHash known;
        const std::vector<RankState> states = decode_states(encoded, known);
        std::vector<std::tuple<std::size_t, std::int64_t, std::vector<py::bytes>>> lost;
        for (const std::size_t s : with_lost_values(states, known)) {
          std::vector<py::bytes> of_its_meshes;
          for (const auto& [hash, values] : known) {
            const auto& ranks = values->mesh_ranks;
            if (std::find(ranks.begin(), ranks.end(), states[s].rank) != ranks.end())
              of_its_meshes.emplace_back(encode(*values));
          }
          lost.emplace_back(s, states[s].rank, std::move(of_its_meshes));
        }
        return lost;
      },
      py::arg("states"),
      "[(position, rank, descriptions of the meshes it is on)] of states that refer to a description that no "
      "state brings.");
  m.def(
      "description_differences",
      [](const std::string& expected, const std::string& found, std::int64_t rank) {
        const SavedValues theirs = decode_values(expected);
        const SavedValues mine = decode_values(found);
        if (theirs.mesh_ranks != mine.mesh_ranks) return std::vector<std::string>{};
        return differences(theirs, "rank " + std::to_string(theirs.mesh_ranks.front()), mine,
                           "rank " + std::to_string(rank));
      },
      py::arg("expected"), py::arg("found"), py::arg("rank"),
      "A line for each tensor that two descriptions of one mesh do not have in common.");
}

void bind_planning_together(py::module_& m) {
  py::class_<SavePlanCache, std::shared_ptr<SavePlanCache>>(m, "SavePlanCache")
      .def(py::init<>())
      .def_property_readonly("plan", [](const SavePlanCache& cache) {
        return std::const_pointer_cast<GlobalSavePlan>(cache.plan);
      });
  m.def(
      "plan_save_together",
      [](const std::string& state, SavePlanCache& cache, const py::function& round) {
        SavePlanOfRank plan = plan_save_together(
            decode_state(state), cache, [&](const std::string& mine, const Answers& answers) -> std::string {
              const py::cpp_function give([&](const std::vector<std::string>& all) {
                const std::vector<std::string> given = answers(all);
                return std::vector<py::bytes>(given.begin(), given.end());
              });
              return round(py::bytes(mine), give).cast<std::string>();
            });
        return std::pair(std::move(plan.left_to_others), plan.unchanged);
      },
      py::arg("state"), py::arg("cache"), py::arg("round"),
      "Plans a save with all ranks: (for each part of the state, the items that others write; whether "
      "nothing "
      "had changed). `round(mine, answers)` gives rank 0 bytes and returns its answer; on rank 0 `answers` "
      "turns "
      "the bytes of all ranks into the answers.");
  m.def(
      "introduce",
      [](const std::string& state, const SavePlanCache& cache) {
        return py::bytes(introduce(decode_state(state), cache));
      },
      py::arg("state"), py::arg("cache"));
  const auto as_bytes = [](const std::vector<std::string>& answers) {
    return std::vector<py::bytes>(answers.begin(), answers.end());
  };
  m.def(
      "ask",
      [=](const std::vector<std::string>& introductions, SavePlanCache& cache) {
        return as_bytes(ask(introductions, cache));
      },
      py::arg("introductions"), py::arg("cache"));
  m.def("is_plan", &is_plan, py::arg("answer"));
  m.def(
      "state_for",
      [](const std::string& answer, const std::string& state) {
        return py::bytes(state_for(answer, decode_state(state)));
      },
      py::arg("answer"), py::arg("state"));
  m.def(
      "plan_for_all",
      [=](const std::vector<std::string>& states, SavePlanCache& cache) {
        return as_bytes(plan_for_all(states, cache));
      },
      py::arg("states"), py::arg("cache"));
  m.def(
      "understand",
      [](const std::string& answer, const std::string& state, SavePlanCache& cache) {
        SavePlanOfRank plan = understand(answer, decode_state(state), cache);
        return std::pair(std::move(plan.left_to_others), plan.unchanged);
      },
      py::arg("answer"), py::arg("state"), py::arg("cache"));
}

}  // namespace

void bind_save_plans(py::module_& m) {
  bind_descriptions(m);
  bind_global_plan(m);
  bind_planning_together(m);
}

}  // namespace shardwright
