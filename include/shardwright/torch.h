#pragma once

/// What speaks torch: tensors described, and ranks that reach each other over c10d. Public, like all that
/// <shardwright/shardwright.h> includes.

#include "planner/torch/peers.h"
#include "planner/torch/torch_tensor.h"
