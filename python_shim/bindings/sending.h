#pragma once

#include <pybind11/pybind11.h>

#include "storage/files/upload.h"

namespace shardwright {

/// Binds SentBytes, the memory of a part that Python is given.
void bind_sending(pybind11::module_& m);

/// Hands parts to a function of Python (name of the file, its size, byte that the part begins at, SentBytes).
/// None: null.
SendPart send_by(const pybind11::object& function);

}  // namespace shardwright
