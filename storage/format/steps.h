#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace shardwright {

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

/// A place in the order of the saves of one training, which is told by manifests.
struct SaveOrder {
  std::uint64_t order = 0;
  std::vector<std::string> unread;  ///< a line for each step whose place is not known, and why
};

/// The place of a save to `directory`: one more than that of any other step beside it; 0 for a directory that
/// is not called as those of steps are. A step that cannot be read counts as saved now, in seconds since
/// 1970, which is more than any that counting came to.
SaveOrder next_order(const std::filesystem::path& directory);

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
