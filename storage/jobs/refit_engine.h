#pragma once

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "planner/handover/engine_tensors.h"
#include "planner/job.h"
#include "planner/names/tensor_spec.h"
#include "storage/device/device_options.h"

namespace shardwright {

/// What a rank brings: the trainer's tensors, an engine's, both or neither. All of it is the caller's.
struct TrainerAndEngine {
  const std::vector<TensorSpec>* trainer = nullptr;  ///< this rank's parts; null: it is none of the trainer's
  std::vector<EngineTensor> engine = {};
  std::vector<EngineMemory> memory = {};  ///< of each of them
};

/// What is asked for: the same on every rank, but for threads and devices.
struct RefitEngineOptions {
  std::filesystem::path template_directory = {};  ///< these as ExportOptions has them
  std::string model = "auto";
  std::string layout = "automodel";
  std::string quantization = "none";
  std::vector<std::string> quantized_weights = {};
  bool strict = true;
  bool strict_dtypes = false;

  /// Memory for what is on the way, both directions together. A layer of the engine is received in full
  /// before it is put in its place: where it takes more than half of this, it is given what it takes.
  std::size_t staging_bytes = std::size_t{120} << 20;

  /// Ranks of one node hand over through memory that they share, where the system lets them; it is a part of
  /// staging_bytes. Otherwise all goes by the transport.
  bool share_memory = true;

  /// How long a rank waits where another one of its node does nothing.
  std::chrono::milliseconds timeout = std::chrono::minutes(30);

  int threads = 0;             ///< of this rank; 0: as many as this process may use processors
  DeviceOptions devices = {};  ///< for the trainer's tensors on CUDA devices

  /// Called some times a second by the calling thread while weights are on the way. What it throws ends the
  /// hand-over on all ranks, where the transport has a board. May be null.
  std::function<void()> check_for_interrupt = {};
};

struct PlannedRefit;  // what KeptRefit holds; internal

/// What a rank keeps from one hand-over to the next, empty at first: the plan, for as long as all ranks bring
/// the same tensors, and the memory that it shares.
class KeptRefit {
 public:
  KeptRefit();
  KeptRefit(KeptRefit&&) noexcept;
  KeptRefit& operator=(KeptRefit&&) noexcept;
  ~KeptRefit();

  PlannedRefit& planned() { return *planned_; }  ///< for refit_engine()

 private:
  std::unique_ptr<PlannedRefit> planned_;
};

/// Hands the trainer's weights to an engine: the engine's tensors become, in place, what their parts name of
/// the checkpoint that export_checkpoint() would write, bit for bit. All ranks of the job call it;
/// `transport` speaks of the job's ranks, and `kept` is each rank's own.
///
/// Throws the same Error on all ranks, before anything is sent: mismatch that tells what does not fit, by
/// name, argument. What goes wrong later, on any rank, is a failure in the outcome of all of them, which says
/// what has become of this rank's engine.
RefitOutcome refit_engine(const TrainerAndEngine& side, const Job& job, const Transport& transport,
                          KeptRefit& kept, const RefitEngineOptions& options = {});

}  // namespace shardwright
