#pragma once

#include <cerrno>

#include "planner/error.h"

namespace shardwright {

/// What a load ends with in the place of bad_alloc, so that it can name what is partly written. In Python a
/// MemoryError, as every io error with ENOMEM.
inline Error no_memory() {
  return {ErrorKind::io,
          "there is not enough memory for this load; free some, or give it fewer threads or less "
          "staging_bytes",
          ENOMEM};
}

}  // namespace shardwright
