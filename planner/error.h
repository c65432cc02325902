#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace shardwright {

/// What went wrong, in the classes that a caller treats differently. Each becomes a Python exception of its
/// own.
enum class ErrorKind {
  not_found,  ///< a directory or file is not there                         (FileNotFoundError)
  malformed,  ///< what is on disk breaks its format (shardwright.CheckpointFormatError)
  mismatch,   ///< checkpoint and trainer do not fit, or a tensor cannot be written (shardwright.PlanError)
  argument,   ///< an option that makes no sense                            (ValueError)
  io,         ///< the operating system refused or a file ended too early   (OSError)
  device,     ///< the run-time of a device refused                         (RuntimeError)
};

/// The one exception type of the library. The message names the tensor and the file, what was expected, what
/// was found and what to do.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind error_kind, const std::string& message, int error_number = 0)
      : std::runtime_error(message), kind(error_kind), system_error(error_number) {}

  ErrorKind kind;
  int system_error;  ///< errno of an io error, otherwise 0

  /// Tensors that a load which failed on its way may have written to, and that are not known to be whole.
  /// Those that are not named are whole, or as they were.
  std::vector<std::string> partly_written;
};

}  // namespace shardwright
