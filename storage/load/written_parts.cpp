#include "storage/load/written_parts.h"

#include <utility>

#include "planner/problems.h"

namespace shardwright {

WrittenParts::WrittenParts(const LoadPlan& plan, std::size_t destinations)
    : wanted_(destinations), begun_(destinations), ended_(destinations) {
  for (const Transfer& transfer : plan.transfers) {
    wanted_.at(transfer.destination) += volume(transfer.source_box.size);
  }
}

std::vector<std::string> WrittenParts::partly_written(const std::vector<TensorSpec>& specs) const {
  std::vector<std::string> names;
  for (std::size_t d = 0; d < wanted_.size(); ++d) {
    if (begun_[d] > 0 && ended_[d] < wanted_[d]) names.push_back(specs[d].fqn);
  }
  return names;
}

Error WrittenParts::with_names(const Error& error, const std::vector<TensorSpec>& specs) const {
  std::vector<std::string> names = partly_written(specs);
  std::string message = error.what();
  if (!names.empty()) {
    message = in_lines(message + "\npartly written:", grouped_names(names));
  }
  Error named(error.kind, message, error.system_error);
  named.partly_written = std::move(names);
  return named;
}

}  // namespace shardwright
