#include "planner/models/rules.h"

#include <algorithm>
#include <array>
#include <string>

namespace shardwright {
namespace {

constexpr std::array split_automodel = {
    Row{"{expert}.gate_proj.weight", "gate_and_up_projs", "o i -> {expert} i (0/2 o)"},
    Row{"{expert}.up_proj.weight", "gate_and_up_projs", "o i -> {expert} i (1/2 o)"},
    Row{"{expert}.down_proj.weight", "down_projs", "o i -> {expert} i o"},
};

constexpr std::array split_transformers = {
    Row{"{expert}.gate_proj.weight", "gate_up_proj", "o i -> {expert} (0/2 o) i"},
    Row{"{expert}.up_proj.weight", "gate_up_proj", "o i -> {expert} (1/2 o) i"},
    Row{"{expert}.down_proj.weight", "down_proj", "o i -> {expert} o i"},
};

constexpr std::array stacked_automodel = {
    Row{"gate_up_proj", "gate_and_up_projs", "e o i -> e i o"},
    Row{"down_proj", "down_projs", "e o i -> e i o"},
};

constexpr std::array stacked_transformers = {
    Row{"gate_up_proj", "gate_up_proj"},
    Row{"down_proj", "down_proj"},
};

}  // namespace

bool any_begins(const Catalog& catalog, std::string_view prefix) {
  return std::any_of(catalog.tensors.begin(), catalog.tensors.end(),
                     [&](const SourceTensor& tensor) { return tensor.name.starts_with(prefix); });
}

void add_rules(std::vector<Rule>& rules, std::span<const Row> rows, std::string_view hf_prefix,
               std::string_view native_prefix, bool known, int alternative) {
  for (const Row& row : rows) {
    Rule& rule = rules.emplace_back(Rule{NamePattern(std::string(hf_prefix) + std::string(row.hf)),
                                         NamePattern(std::string(native_prefix) + std::string(row.native))});
    if (!row.axes.empty()) rule.axes = AxisExpression(row.axes);
    rule.known = known;
    rule.alternative = alternative;
    rule.only_read = row.only_read;
  }
}

void add_rules(std::vector<Rule>& rules, std::span<const std::string_view> names, std::string_view hf_prefix,
               std::string_view native_prefix, bool known) {
  for (const std::string_view name : names) {
    const Row row{name, name};
    add_rules(rules, std::span(&row, 1), hf_prefix, native_prefix, known);
  }
}

std::span<const Row> split_experts(std::string_view layout) {
  if (layout == "automodel") return split_automodel;
  return split_transformers;
}

std::span<const Row> stacked_experts(std::string_view layout) {
  if (layout == "automodel") return stacked_automodel;
  return stacked_transformers;
}

}  // namespace shardwright
