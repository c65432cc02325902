#include "storage/lora/load_adapter.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "planner/error.h"
#include "storage/lora/adapter_values.h"

namespace shardwright {
AdapterPlan plan_adapter(const std::vector<NativeTensor>& tensors, const std::vector<TensorSpec>& specs,
                         const StoredAdapter& adapter, AdapterRequest request, bool strict) {
  const Catalog& catalog = adapter.catalog;
  request.written = adapter.config.written;
  request.target_parameters = adapter.config.target_parameters;
  request.name = catalog.files.front().name;
  request.path = (catalog.directory / request.name).string();
  LoadPlanOptions options;
  options.strict = strict;
  options.parts_elsewhere = true;
  options.what = "the adapter " + request.path;
  const std::vector<LoraPair> pairs = lora_pairs(tensors, options.problems);
  AdapterFit fit = fit_adapter(pairs, catalog, request);
  const auto add_problems = [&](std::vector<std::string> lines) {
    std::move(lines.begin(), lines.end(), std::back_inserter(options.problems));
  };
  add_problems(std::move(fit.problems));
  add_problems(faults_of_values(fit, catalog, specs, strict));

  // What has no rules has been told of.
  std::set<std::string> names;
  for (const FittedPair& one : fit.pairs) names.insert({one.pair.a.fqn, one.pair.b.fqn});
  AdapterPlan planned;
  std::vector<TensorSpec> ruled;
  std::vector<std::uint32_t> number_of;
  for (std::size_t s = 0; s < specs.size(); ++s) {
    if (!names.contains(specs[s].fqn)) continue;
    ruled.push_back(specs[s]);
    number_of.push_back(static_cast<std::uint32_t>(s));
  }
  planned.plan = plan_load(ruled, catalog, fit.map, options);
  for (Transfer& transfer : planned.plan.transfers) transfer.destination = number_of[transfer.destination];
  planned.layout = fit.layout;
  planned.sense = fit.sense;
  for (const FittedPair& one : fit.pairs) {
    if (one.has_zeros()) planned.zeroed.push_back(one.pair.b.fqn);
    planned.scaled.push_back({one.pair.weight, one.module(), file_rank(one.pair, one.place, one.fit.spread)});
  }
  return planned;
}

}  // namespace shardwright
