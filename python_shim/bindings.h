#pragma once

#include <pybind11/pybind11.h>

namespace shardwright {

/// LoadOptions, LoadReport and running a plan. Defined in loads.cpp.
void bind_loads(pybind11::module_& m);

/// What the state-dict adapters need: HF state dicts in memory, both ways between HF and native names.
/// Defined in state_dicts.cpp; the classes of module.cpp must be bound before.
void bind_state_dicts(pybind11::module_& m);

/// Exports. Defined in exports.cpp; the classes of module.cpp must be bound before.
void bind_exports(pybind11::module_& m);
/// Loads planned for a whole cluster; simulation.cpp.
void bind_simulate(pybind11::module_& m);

}  // namespace shardwright
