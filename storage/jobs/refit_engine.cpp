#include "storage/jobs/refit_engine.h"

#include <exception>

#include "planner/error.h"
#include "planner/save/rank_states.h"
#include "storage/format/read_catalog.h"
#include "storage/handover/hand_over.h"
#include "storage/load/shared_memory.h"

namespace shardwright {

KeptRefit::KeptRefit() : planned_(std::make_unique<PlannedRefit>()) {}
KeptRefit::KeptRefit(KeptRefit&&) noexcept = default;
KeptRefit& KeptRefit::operator=(KeptRefit&&) noexcept = default;
KeptRefit::~KeptRefit() = default;

RefitOutcome refit_engine(const TrainerAndEngine& side, const Job& job, const Transport& transport,
                          KeptRefit& kept, const RefitEngineOptions& options) {
  Catalog template_catalog;
  ExportRequest request;
  RankState state;
  RefitSide brought;
  on_all_ranks(job, [&] {
    request.model = options.model;
    request.layout = options.layout;
    request.set_quantization(options.quantization, options.quantized_weights);
    request.strict = options.strict;
    request.strict_dtypes = options.strict_dtypes;
    if (!options.template_directory.empty()) {
      template_catalog = read_catalog(options.template_directory, options.threads);
      request.template_catalog = &template_catalog;
    }
    if (side.trainer != nullptr) state = state_of(*side.trainer, job.rank);
    brought = {side.trainer, &state, side.engine, side.memory};
  });
  const RefitOptions how{options.staging_bytes,
                         options.threads,
                         options.devices,
                         options.check_for_interrupt,
                         options.share_memory ? this_node() : "",
                         options.timeout};
  RefitOutcome outcome = hand_over(job, brought, request, kept.planned(), transport, how);
  try {
    on_all_ranks(job, [&] {
      if (outcome.failure) std::rethrow_exception(outcome.failure);
    });
  } catch (...) {
    outcome.failure = std::current_exception();
  }
  return outcome;
}

}  // namespace shardwright
