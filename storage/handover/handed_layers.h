#pragma once

#include "planner/handover/refit_plan.h"
#include "planner/names/catalog.h"

namespace shardwright {

/// The layers of what a catalog lists, as pieces name them and in the order in which these come: see
/// piece_order.h.
HandedLayers layers_of(const Catalog& catalog);

}  // namespace shardwright
