#pragma once

#include <cstddef>
#include <cstdint>

namespace shardwright {

/// The calls of NVIDIA's libcufile (GPUDirect Storage) that the engine makes: reads from a file on a disk
/// straight into the memory of a CUDA device. Tests put something else behind them. Whatever is refused here
/// is no error: the file is read by way of CPU memory then. Thread-safe; memory is that of the calling
/// thread's current device.
struct GpuDirectCalls {
  /// cuFileDriverOpen. False where it would stage in CPU memory itself, since kernel, disk or file system
  /// cannot do better: the engine's own staging is faster.
  bool (*open)();
  void (*close)();  ///< cuFileDriverClose; all files and all memory must have been released

  void* (*register_file)(int descriptor);  ///< cuFileHandleRegister; opened with O_DIRECT. Null: refused
  void (*release_file)(void* file);        ///< cuFileHandleDeregister; before the descriptor is closed

  bool (*register_memory)(void* memory, std::size_t bytes);  ///< cuFileBufRegister
  void (*release_memory)(void* memory);                      ///< cuFileBufDeregister

  /// cuFileRead, to `memory + offset`, `memory` as it was registered. The bytes read, fewer than asked for at
  /// the end of the file only; negative: refused. When it returns they are there; it waits for no stream.
  std::int64_t (*read)(void* file, void* memory, std::size_t offset, std::size_t bytes,
                       std::uint64_t offset_in_file);
};

/// The calls of the library that is installed; null where none is that this version knows how to call.
const GpuDirectCalls* gpu_direct_calls();

}  // namespace shardwright
