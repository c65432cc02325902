#include "storage/jobs/adapters.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <set>
#include <utility>

#include "planner/error.h"
#include "storage/boxes/placing.h"
#include "storage/format/adapter_file.h"
#include "storage/jobs/publication.h"
#include "storage/lora/load_adapter.h"

namespace shardwright {
ExportReport save_adapter(const std::vector<TensorSpec>& specs, const std::filesystem::path& directory,
                          const AdapterAsked& asked, const Job& job, const SaveAdapterOptions& options) {
  const ExportWriting writing{options.threads, options.staging_bytes, options.devices, nullptr};
  std::vector<TensorSpec> lora;
  std::copy_if(specs.begin(), specs.end(), std::back_inserter(lora),
               [](const TensorSpec& spec) { return lora_name_of(spec.fqn).has_value(); });
  ExportRequest request;
  request.adapter = asked;
  RankState state;
  return publish_together(
      job,
      [&] {
        state = state_of(lora, job.rank);
        return describe_export(lora, state, request, writing.devices);
      },
      [&] { return std::make_unique<Publication>(directory, request, options.overwrite); },
      [&](const std::string& told) { return write_share(told, lora, state, request, writing); });
}

AdapterReport load_adapter(const std::filesystem::path& directory, const std::vector<TensorSpec>& specs,
                           const AdapterRequest& request, bool strict, const LoadOptions& options) {
  StoredAdapter adapter = read_adapter(directory);
  std::vector<NativeTensor> tensors;
  std::set<std::string> seen;
  for (const TensorSpec& spec : specs) {
    if (seen.insert(spec.fqn).second) tensors.push_back({spec.fqn, spec.dtype, spec.global_shape, false});
  }
  AdapterPlan planned = plan_adapter(tensors, specs, adapter, request, strict);
  for (const TensorSpec& spec : specs) {
    if (std::find(planned.zeroed.begin(), planned.zeroed.end(), spec.fqn) != planned.zeroed.end())
      fill_with_zeros(spec);
  }
  AdapterReport report;
  report.load = load(planned.plan, adapter.catalog, specs, options);
  report.config = std::move(adapter.config);
  report.layout = std::move(planned.layout);
  report.sense = planned.sense;
  report.scaled = std::move(planned.scaled);
  return report;
}

}  // namespace shardwright
