#pragma once

/// All of Shardwright but what speaks torch, which is in <shardwright/torch.h>. What is included here, and
/// nothing else, is public and installed.

// What a tensor is, and where it lies.
#include "kernels/dtype.h"
#include "planner/geometry/box.h"
#include "planner/names/tensor_spec.h"

// What a checkpoint holds.
#include "planner/names/catalog.h"
#include "storage/format/read_catalog.h"

// How a trainer's names relate to a checkpoint's.
#include "planner/models/models.h"
#include "planner/names/weight_map.h"

// Ranks together: load, resume, save and export in one call.
#include "planner/job.h"
#include "planner/lora/adapter.h"
#include "storage/jobs/adapters.h"
#include "storage/jobs/export_checkpoint.h"
#include "storage/jobs/load_checkpoint.h"
#include "storage/jobs/save_checkpoint.h"
#include "storage/write/export_report.h"

// The same without files.
#include "planner/handover/engine_tensors.h"
#include "storage/handover/pieces.h"
#include "storage/jobs/refit_engine.h"

// A load in its steps: what one rank plans and runs.
#include "planner/load/load_plan.h"
#include "storage/device/device_options.h"
#include "storage/files/remote_objects.h"
#include "storage/load/load.h"

// State dicts in memory, without files.
#include "storage/boxes/state_dicts.h"

// Checking and generating.
#include "storage/progress.h"
#include "storage/tools/generate.h"
#include "storage/tools/verify.h"

// What all of it throws.
#include "planner/error.h"
