#include "storage/jobs/adapters.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <set>

#include "planner/error.h"
#include "storage/boxes/placing.h"
#include "storage/files/output_file.h"
#include "storage/format/pending_checkpoint.h"
#include "storage/jobs/packed_texts.h"
#include "storage/lora/adapter_file.h"
#include "storage/lora/load_adapter.h"
#include "storage/write/export.h"

namespace shardwright {
ExportReport save_adapter(const std::vector<TensorSpec>& specs, const std::filesystem::path& directory,
                          const AdapterAsked& asked, const Job& job, const SaveAdapterOptions& options) {
  const ExportWriting writing{options.threads, options.staging_bytes, options.devices};
  std::vector<TensorSpec> lora;
  std::copy_if(specs.begin(), specs.end(), std::back_inserter(lora),
               [](const TensorSpec& spec) { return lora_name_of(spec.fqn).has_value(); });
  ExportRequest request;
  request.adapter = asked;
  std::unique_ptr<PendingCheckpoint> pending;  // on rank 0; its end removes what is not published
  PlannedExport planned;
  RankState state;
  const std::string word = round_of(
      job,
      [&] {
        state = state_of(lora, job.rank);
        return describe_export(lora, state, request, writing.devices);
      },
      [&](const std::vector<std::string>& holdings) {
        pending = std::make_unique<PendingCheckpoint>(directory, CheckpointKind::adapter, options.overwrite);
        planned = plan_export(holdings, request, pending->final_path());
        pending->expect_free({adapter_weights_name, adapter_config_name});
        std::vector<std::string> words;
        for (const std::string& share : planned.shares)
          words.push_back(pack_texts({pending->path().string(), share}));
        return words;
      });
  ExportReport report;
  round_of(
      job,
      [&] {
        const std::vector<std::string> texts = unpack_texts(word);
        if (texts.size() != 2)
          throw Error(ErrorKind::malformed, "what rank 0 has told of saving an adapter is cut short");
        report = run_export(texts[1], lora, state, request, texts[0], writing);
        return std::string();
      },
      [&](const std::vector<std::string>& done) {
        write_whole_file(pending->path() / adapter_config_name, planned.adapter_config);
        pending->publish(adapter_weights_name);
        return done;
      });
  return report;
}

LoadReport load_adapter(const std::filesystem::path& directory, const std::vector<TensorSpec>& specs,
                        const AdapterRequest& request, bool strict, const LoadOptions& options) {
  const Catalog catalog = read_adapter_catalog(directory / adapter_weights_name);
  std::vector<NativeTensor> tensors;
  std::set<std::string> seen;
  for (const TensorSpec& spec : specs) {
    if (seen.insert(spec.fqn).second) tensors.push_back({spec.fqn, spec.dtype, spec.global_shape, false});
  }
  const AdapterPlan planned = plan_adapter(tensors, specs, catalog, request, strict);
  for (const TensorSpec& spec : specs) {
    if (std::find(planned.zeroed.begin(), planned.zeroed.end(), spec.fqn) != planned.zeroed.end())
      fill_with_zeros(spec);
  }
  return load(planned.plan, catalog, specs, options);
}

}  // namespace shardwright
