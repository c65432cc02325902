#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "planner/job.h"
#include "planner/names/tensor_spec.h"
#include "storage/device/device_options.h"

namespace shardwright {

/// What the files of a sharded checkpoint look like to other programs.
enum class ShardFormat : std::uint8_t {
  safetensors,  ///< safetensors files, and bytes for what safetensors cannot hold
  torch,        ///< files and a .metadata that torch's FileSystemReader reads
};

/// How a save is made. `overwrite` and `keep_last` count on rank 0; the rest on each rank.
struct SaveOptions {
  /// Nothing: replaces a sharded checkpoint, and refuses where another kind of checkpoint is in the
  /// directory. True: replaces any. False: replaces none.
  std::optional<bool> overwrite = std::nullopt;

  /// Once the checkpoint is there: deletes all but so many checkpoints step-<number> beside it, those that
  /// were saved last; 0: none. What cannot be deleted is a warning.
  std::size_t keep_last = 0;

  /// Torch: with torch's metadata, too, so that its FileSystemReader reads the checkpoint. The same on all
  /// ranks.
  ShardFormat format = ShardFormat::torch;

  int threads = 0;   ///< of this rank, that write; 0: as many as this process may use processors
  bool sync = true;  ///< flush to the device; without, a crash of the machine can cost the checkpoint
  DeviceOptions devices = {};  ///< for tensors on CUDA devices
};

/// What this rank did. Seconds are wall time.
struct SaveReport {
  std::int64_t tensors = 0;         ///< boxes of tensors that this rank wrote
  std::int64_t files = 0;           ///< that this rank wrote
  std::uint64_t bytes_written = 0;  ///< of these files, headers included
  std::uint64_t bytes_from_devices = 0;
  double plan_seconds = 0;   ///< with the other ranks
  double write_seconds = 0;  ///< flushing included
  double total_seconds = 0;

  /// Steps beside this one whose place in the order of saves could not be read, or that were to be deleted
  /// and are not; on rank 0.
  std::vector<std::string> warnings;
};

/// Saves the tensors of all ranks as one sharded checkpoint, which resume_checkpoint() and Python's sw.load
/// read on any number of ranks in any placement. All ranks of the job call it, each with its own parts, whose
/// memory must not change until it returns. A box that several ranks hold is written by one of them.
///
/// The checkpoint is there when it returns, flushed to the device; files that other programs have in the
/// directory are left alone. A directory that is called step-<number>, as step_path() names it, takes its
/// place in the order by which latest_checkpoint() and Python's sw.latest tell the newest one.
///
/// Only tensors are saved. Numbers, texts and other objects of a training, which Python's sw.save pickles,
/// are not: save a number as a tensor of no dimensions, or have Python save it.
///
/// Throws the same Error on all ranks, and has published nothing then: mismatch for ranks that do not hold
/// one state between them, naming tensors and ranks, and for tensors that cannot be read or that safetensors
/// has no dtype for; io with errno, naming the file, if the operating system refuses, EEXIST where something
/// is in the place, EBUSY where another save is; device, naming tensor and call.
SaveReport save_checkpoint(const std::vector<TensorSpec>& specs, const std::filesystem::path& directory,
                           const Job& job = {}, const SaveOptions& options = {});

/// The training step of a directory that is called step-<number>; nothing for any other name.
std::optional<std::uint64_t> step_of(const std::filesystem::path& directory);

/// A published checkpoint of a training.
struct SavedStep {
  std::uint64_t order = 0;  ///< the how many-eth save of its training; 0: its manifest does not tell
  std::uint64_t step = 0;
  std::filesystem::path path;  ///< below the root as that was given

  auto operator<=>(const SavedStep&) const = default;
};

/// The published checkpoints step-<number> below a root, in the order in which they were saved; those that do
/// not tell come first, by their steps. None for a root that is not there. A link to another step of the root
/// is that step, and no further one. Throws Error: argument, naming both, for two folders of one step, such
/// as step-7 and step-00000007; io, naming it, for one that cannot be looked at.
std::vector<SavedStep> saved_steps(const std::filesystem::path& root);

/// The one of them that was saved last: the one to resume. Nothing if there is none. Throws as saved_steps().
std::optional<std::filesystem::path> latest_checkpoint(const std::filesystem::path& root);

/// Where the checkpoint of a training step goes, below a root: step-00000007, or the folder of that step that
/// is there already. Throws as saved_steps().
std::filesystem::path step_path(const std::filesystem::path& root, std::uint64_t step);

/// Deletes all but the `keep` published checkpoints of a root that were saved last, and what saves to its
/// steps that died have left. Other people's files in the folders of steps stay, and so do the folders then.
/// Of a step that is a symbolic link, deletes the link. A step of which files have been changed stays whole.
/// Returns a line for each that was not removed, and
/// why.
std::vector<std::string> keep_last_steps(const std::filesystem::path& root, std::size_t keep);

}  // namespace shardwright
