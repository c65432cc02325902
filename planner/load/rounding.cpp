#include "planner/load/rounding.h"

#include "kernels/value_range.h"
#include "planner/problems.h"

namespace shardwright {

void note_cast(Roundings& roundings, const std::string& name, DType from, DType to) {
  if (holds_all(to, from)) return;
  const std::string cast = std::string(name_of(from)) + " -> " + std::string(name_of(to));
  std::string& casts = roundings[name];
  if (casts.find(cast) == std::string::npos) casts += (casts.empty() ? "" : ", ") + cast;
}

Roundings roundings_of(const LoadPlan& plan, const std::vector<TensorSpec>& specs, const Catalog& catalog) {
  Roundings roundings;
  for (const Transfer& transfer : plan.transfers) {
    if (transfer.encoding.scaled) continue;
    const TensorSpec& spec = specs[transfer.destination];
    note_cast(roundings, spec.fqn, catalog.tensors[transfer.source].dtype, spec.dtype);
  }
  return roundings;
}

std::vector<std::string> lines_of(const Roundings& roundings) {
  std::vector<std::string> casts;
  for (const auto& [name, cast] : roundings) casts.push_back(name + ": " + cast);
  std::vector<std::string> lines;
  for (const std::string& line : grouped_names(casts)) lines.push_back(line + " would lose bits");
  return lines;
}

void refuse(const Roundings& roundings, const std::string& headline) {
  Problems problems;
  problems.lines = lines_of(roundings);
  problems.throw_if_any(ErrorKind::mismatch, headline);
}

}  // namespace shardwright
