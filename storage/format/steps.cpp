#include "storage/format/steps.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <string_view>

#include "planner/error.h"
#include "storage/files/entries.h"
#include "storage/files/printable.h"
#include "storage/format/manifest.h"

namespace shardwright {

std::optional<std::uint64_t> step_of(const std::filesystem::path& directory) {
  const std::string name = directory.filename().string();
  constexpr std::string_view start = "step-";
  if (!name.starts_with(start)) return std::nullopt;
  std::uint64_t step = 0;
  const char* const end = name.data() + name.size();
  const auto [stopped, fault] = std::from_chars(name.data() + start.size(), end, step);
  if (fault != std::errc() || stopped != end) return std::nullopt;
  return step;
}

SaveOrder next_order(const std::filesystem::path& directory) {
  SaveOrder next;
  if (!step_of(directory)) return next;
  const std::filesystem::path root = directory.parent_path();
  for (const std::string& name : names_in(root.empty() ? "." : root)) {
    const std::filesystem::path other = root / name;
    if (!step_of(other)) continue;
    try {
      const std::optional<struct stat> manifest = target_at(other / manifest_name);
      if (!manifest || !S_ISREG(manifest->st_mode)) continue;  // a pipe or a directory is no manifest
      next.order = std::max(next.order, read_order(other));
    } catch (const Error& error) {
      if (error.kind == ErrorKind::not_found) continue;  // it is being removed
      const auto now = std::chrono::system_clock::now().time_since_epoch();
      const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(now).count();
      next.order = std::max(next.order, static_cast<std::uint64_t>(seconds));
      next.unread.push_back(printable(other.native()) +
                            ": its place in the order of steps is not known: " + error.what());
    }
  }
  ++next.order;
  return next;
}

}  // namespace shardwright
