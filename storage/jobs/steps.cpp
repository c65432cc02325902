#include <algorithm>
#include <charconv>
#include <chrono>
#include <exception>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "planner/error.h"
#include "storage/files/entries.h"
#include "storage/files/printable.h"
#include "storage/format/checkpoint_place.h"
#include "storage/format/manifest.h"
#include "storage/format/pending_checkpoint.h"
#include "storage/jobs/save_checkpoint.h"
#include "storage/jobs/save_order.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

bool is_link(const fs::path& path) {
  const std::optional<struct stat> entry = entry_at(path);
  return entry && S_ISLNK(entry->st_mode);
}

/// Whether there is a manifest that is a file: a pipe, a directory or a link to nothing is no checkpoint.
bool is_published(const fs::path& path) {
  const std::optional<struct stat> manifest = target_at(path / manifest_name);
  return manifest && S_ISREG(manifest->st_mode);
}

/// The folders of a root, and the links in it, that are called as those of steps are.
std::vector<SavedStep> named_steps(const fs::path& root) {
  std::vector<SavedStep> steps;
  for (const std::string& name : names_in(root.empty() ? "." : root)) {
    if (const std::optional<std::uint64_t> step = step_of(name)) steps.push_back({0, *step, root / name});
  }
  return steps;
}

void expect_each_step_once(const std::vector<SavedStep>& steps) {
  std::map<std::uint64_t, std::vector<std::string>> paths;
  for (const SavedStep& one : steps) paths[one.step].push_back(printable(one.path.native()));
  for (const auto& [step, names] : paths) {
    if (names.size() < 2) continue;
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
    throw Error(ErrorKind::argument, "step " + std::to_string(step) + " is there twice: " + text +
                                         "; expected one folder for a step. Rename or remove one of them");
  }
}

}  // namespace

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

std::vector<SavedStep> saved_steps(const std::filesystem::path& root) {
  const std::vector<SavedStep> named = named_steps(root);
  std::set<fs::path> own;
  for (const SavedStep& one : named) {
    if (!is_link(one.path)) own.insert(resolved_path(one.path));
  }
  std::vector<SavedStep> saved;
  for (SavedStep one : named) {
    if (!is_published(one.path) || (is_link(one.path) && own.contains(resolved_path(one.path)))) continue;
    try {
      one.order = read_order(one.path);
    } catch (const Error& error) {
      if (error.kind != ErrorKind::not_found) throw;
      continue;  // it is being removed
    }
    saved.push_back(std::move(one));
  }
  expect_each_step_once(saved);
  std::sort(saved.begin(), saved.end());
  return saved;
}

std::optional<std::filesystem::path> latest_checkpoint(const std::filesystem::path& root) {
  const std::vector<SavedStep> saved = saved_steps(root);
  if (saved.empty()) return std::nullopt;
  return saved.back().path;
}

SaveOrder next_order(const std::filesystem::path& directory) {
  SaveOrder next;
  if (!step_of(directory)) return next;
  for (const SavedStep& other : named_steps(directory.parent_path())) {
    try {
      if (is_published(other.path)) next.order = std::max(next.order, read_order(other.path));
    } catch (const Error& error) {
      if (error.kind == ErrorKind::not_found) continue;  // it is being removed
      const auto now = std::chrono::system_clock::now().time_since_epoch();
      const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(now).count();
      next.order = std::max(next.order, static_cast<std::uint64_t>(seconds));
      next.unread.push_back(printable(other.path.native()) +
                            ": its place in the order of steps is not known: " + error.what());
    }
  }
  ++next.order;
  return next;
}

fs::path step_path(const fs::path& root, std::uint64_t step) {
  std::vector<SavedStep> there;
  for (SavedStep& one : named_steps(root)) {
    if (one.step == step) there.push_back(std::move(one));
  }
  expect_each_step_once(there);
  if (!there.empty()) return there.front().path;
  const std::string number = std::to_string(step);
  return root / ("step-" + std::string(number.size() < 8 ? 8 - number.size() : 0, '0') + number);
}

std::vector<std::string> keep_last_steps(const fs::path& root, std::size_t keep) {
  std::vector<std::string> problems;
  const auto start = "keep_last=" + std::to_string(keep) + ": ";
  const auto try_to = [&](const fs::path& path, const char* what, const auto& act) {
    try {
      act();
    } catch (const std::exception& error) {
      problems.push_back(start + what + printable(path.native()) + " was not removed: " + error.what());
    }
  };
  try {
    std::vector<std::pair<fs::path, fs::path>> links;  // and what they lead to, as long as it is there
    for (const SavedStep& one : named_steps(root)) {
      try {
        if (is_link(one.path)) links.emplace_back(one.path, resolved_path(one.path));
      } catch (const Error&) {  // it leads in a circle
      }
    }
    const std::vector<SavedStep> saved = saved_steps(root);
    for (std::size_t i = 0; i + keep < saved.size(); ++i) {
      const fs::path& path = saved[i].path;
      try_to(path, "", [&] {
        remove_checkpoint(path);
        const fs::path gone = resolved_path(path);
        for (const auto& [link, target] : links) {
          if (link != path && target == gone) remove_checkpoint(link);
        }
      });
    }
    for (const SavedStep& one : named_steps(root)) {
      if (!is_link(one.path))
        try_to(one.path, "what a dead save left in ", [&] { clean_up_after_dead_save(one.path); });
    }
  } catch (const std::exception& error) {
    problems.push_back(start + "not all of " + printable(root.native()) + " was looked at: " + error.what());
  }
  return problems;
}

}  // namespace shardwright
