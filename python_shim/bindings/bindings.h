#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <map>
#include <string>

#include "kernels/dtype.h"
#include "planner/job.h"

namespace shardwright {

/// Lets Ctrl-C stop what runs without the interpreter: throws what Python's signal handlers raise. For any
/// thread; only Python's main thread runs handlers. Defined in interruptible.cpp.
void check_for_interrupt();

/// A job whose rounds are run by round(mine, answers), of bytes; and where it is given, by gather(size,
/// mine). Copies and calls need the interpreter's lock, which a call takes. Defined in jobs.cpp.
Job job_of(int rank, int ranks, const pybind11::function& round);
Job job_of(int rank, int ranks, const pybind11::function& round, const pybind11::function& gather);

/// How far a piece of work is. Defined in interruptible.cpp.
void bind_progress(pybind11::module_& m);

/// CheckpointFormatError, PlanError, and how errors become Python's. Defined in errors.cpp.
void bind_errors(pybind11::module_& m);

/// Catalogs. Defined in catalogs.cpp.
void bind_catalog(pybind11::module_& m);

/// The dtype of a safetensors name; ValueError for others. Defined in catalogs.cpp.
DType dtype_from(const std::string& name);

/// Placements, and a rank's tensors. Defined in tensor_specs.cpp.
void bind_specs(pybind11::module_& m);

/// Families and weight maps. Defined in weight_maps.cpp; Catalog and TensorSpec must be bound before.
void bind_weight_map(pybind11::module_& m);

/// Plans of loads. Defined in load_plans.cpp; Catalog, TensorSpec and WeightMap must be bound before.
void bind_load(pybind11::module_& m);

/// Checkpoints made up. Defined in generate.cpp; Catalog and Progress must be bound before.
void bind_generate(pybind11::module_& m);

/// How objects at addresses are reached. Defined in remote.cpp.
void bind_remote(pybind11::module_& m);

/// CUDA devices, and how they are reached. Defined in devices.cpp.
void bind_devices(pybind11::module_& m);

/// Streams of devices as torch gives them, which are addresses, as DeviceOptions takes them.
std::map<int, void*> streams_from(const std::map<int, std::uintptr_t>& addresses);

/// LoadOptions, LoadReport and running a plan. Defined in loads.cpp.
void bind_loads(pybind11::module_& m);

/// What the state-dict adapters need: HF state dicts in memory, both ways between HF and native names.
/// Defined in state_dicts.cpp; Catalog, TensorSpec and LoadPlan must be bound before.
void bind_state_dicts(pybind11::module_& m);

/// Weight maps out of rows that the package makes. Defined in imported_rules.cpp.
void bind_imported_rules(pybind11::module_& m);

/// Planning a save over all ranks. Defined in save_plans.cpp; Catalog, TensorSpec and LoadPlan must be bound
/// before.
void bind_save_plans(pybind11::module_& m);

/// What ranks of a save have written. Defined in write_results.cpp.
void bind_write_results(pybind11::module_& m);

/// Exports. Defined in exports.cpp; Catalog, TensorSpec and LoadPlan must be bound before.
void bind_exports(pybind11::module_& m);

/// Handing over without files. Defined in handover.cpp; TensorSpec and ExportRequest must be bound before.
void bind_handover(pybind11::module_& m);

/// Handing weights to an engine. Defined in refits.cpp; TensorSpec and ExportRequest must be bound before.
void bind_refits(pybind11::module_& m);

/// Loads planned for a whole cluster; simulation.cpp.
void bind_simulate(pybind11::module_& m);

/// Sharded checkpoints: writing, reading, verifying. Defined in saves.cpp; Catalog must be bound before.
void bind_saves(pybind11::module_& m);

/// How LoRA adapters are loaded. Defined in adapters.cpp; Catalog and LoadPlan must be bound before.
void bind_adapters(pybind11::module_& m);

}  // namespace shardwright
