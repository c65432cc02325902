/// Plans of loads: made, sent, looked at, and run item by item for readers that are not ours.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/value_range.h"
#include "planner/load/codes_alone.h"
#include "planner/load/load_plan.h"
#include "planner/load/plan_wire.h"
#include "planner/load/read_items.h"
#include "planner/load/read_plan.h"
#include "planner/load/rounding.h"
#include "planner/names/companions.h"
#include "planner/names/held_tensors.h"
#include "planner/names/packed_weights.h"
#include "planner/names/tied_heads.h"
#include "python_shim/bindings/bindings.h"
#include "storage/boxes/place_items.h"
#include "storage/format/content_words.h"
#include "storage/format/kind_of.h"

namespace py = pybind11;

namespace shardwright {
namespace {

/// An address that torch gave.
const std::byte* bytes_at(std::uintptr_t address) {
  return reinterpret_cast<const std::byte*>(address);  // NOLINT(performance-no-int-to-ptr)
}

void bind_load_plan(py::module_& m) {
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
}

void bind_load_planning(py::module_& m) {
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
}

void bind_checks_before_a_load(py::module_& m) {
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
}

void bind_reads(py::module_& m) {
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

}  // namespace

void bind_load(py::module_& m) {
  bind_load_plan(m);
  bind_load_planning(m);
  bind_checks_before_a_load(m);
  bind_reads(m);
}

}  // namespace shardwright
