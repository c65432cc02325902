#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <map>

namespace shardwright {

/// Lets Ctrl-C stop what runs without the interpreter: throws what Python's signal handlers raise. For any
/// thread; only Python's main thread runs handlers. Defined in module.cpp.
void check_for_interrupt();

/// How objects at addresses are reached. Defined in remote.cpp.
void bind_remote(pybind11::module_& m);

/// CUDA devices, and how they are reached. Defined in devices.cpp.
void bind_devices(pybind11::module_& m);

/// Streams of devices as torch gives them, which are addresses, as DeviceOptions takes them.
std::map<int, void*> streams_from(const std::map<int, std::uintptr_t>& addresses);

/// LoadOptions, LoadReport and running a plan. Defined in loads.cpp.
void bind_loads(pybind11::module_& m);

/// What the state-dict adapters need: HF state dicts in memory, both ways between HF and native names.
/// Defined in state_dicts.cpp; the classes of module.cpp must be bound before.
void bind_state_dicts(pybind11::module_& m);

/// Weight maps out of rows that the package makes. Defined in imported_rules.cpp.
void bind_imported_rules(pybind11::module_& m);

/// Planning a save over all ranks. Defined in save_plans.cpp; the classes of module.cpp must be bound before.
void bind_save_plans(pybind11::module_& m);

/// What ranks of a save have written. Defined in write_results.cpp.
void bind_write_results(pybind11::module_& m);

/// Exports. Defined in exports.cpp; the classes of module.cpp must be bound before.
void bind_exports(pybind11::module_& m);
/// Loads planned for a whole cluster; simulation.cpp.
void bind_simulate(pybind11::module_& m);

/// Sharded checkpoints: writing, reading, verifying. Defined in saves.cpp; Catalog must be bound before.
void bind_saves(pybind11::module_& m);

/// How LoRA adapters are loaded. Defined in adapters.cpp; Catalog and LoadPlan must be bound before.
void bind_adapters(pybind11::module_& m);

}  // namespace shardwright
