#include "storage/boxes/joined_tasks.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace shardwright {
namespace {

/// A request for bytes of one file, and how many of a task's lie between its weights and its scales.
struct Request {
  std::uint32_t file;
  std::uint64_t begin, end, gap;
};

/// Bytes between two requests; 0 where they overlap.
std::uint64_t between(const Request& a, const Request& b) {
  const std::uint64_t begin = std::min(a.end, b.end);
  const std::uint64_t end = std::max(a.begin, b.begin);
  return end > begin ? end - begin : 0;
}

/// What brings all of a task; nothing where its runs or its scales are apart.
std::optional<Request> request_of(const ReadTask& task, const Catalog& catalog) {
  if (!task.weights.in_one_request) return std::nullopt;
  const std::uint32_t file = catalog.tensors[task.source].file;
  Request request{file, task.weights.begin, task.weights.begin + task.weights.staged_bytes, 0};
  if (task.scale_source < 0) return request;
  if (!task.scales.in_one_request) return std::nullopt;
  if (catalog.tensors[static_cast<std::size_t>(task.scale_source)].file != file) return std::nullopt;
  request.begin = std::min(request.begin, task.scales.begin);
  request.end = std::max(request.end, task.scales.begin + task.scales.staged_bytes);
  request.gap = request.end - request.begin - task.bytes();
  return request;
}

}  // namespace

bool TaskJoiner::next(JoinedTasks& joined) {
  joined.tasks.resize(1);
  if (std::exchange(is_ahead_, false)) {
    joined.tasks.front() = std::move(ahead_);
  } else if (!cutter_.next(joined.tasks.front())) {
    return false;
  }
  if (joining_.request_bytes == 0) return true;
  std::optional<Request> request = request_of(joined.tasks.front(), catalog_);
  const auto may_read = [&](const Request& wanted, std::uint64_t gap) {
    return gap <= std::min(joining_.gap_bytes, joining_.gaps_bytes) &&
           wanted.end - wanted.begin <= joining_.request_bytes;
  };
  if (!request || !may_read(*request, request->gap)) return true;
  std::uint64_t own_gap = request->gap;  // is read along only where something joins
  // Half of a request is long enough for what can be read to where it belongs, as what comes alone.
  const bool is_long = request->end - request->begin >= joining_.request_bytes / 2;
  while (!is_long && cutter_.next(ahead_)) {
    is_ahead_ = true;
    const std::optional<Request> more = request_of(ahead_, catalog_);
    if (!more || more->file != request->file) break;
    const Request both{request->file, std::min(request->begin, more->begin),
                       std::max(request->end, more->end), 0};
    const std::uint64_t gap = between(*request, *more) + more->gap;
    if (!may_read(both, gap) || own_gap + gap > joining_.gaps_bytes) break;
    joining_.gaps_bytes -= std::exchange(own_gap, 0) + gap;
    request = both;
    joined.tasks.push_back(std::move(ahead_));
    is_ahead_ = false;
  }
  joined.begin = request->begin;
  joined.end = request->end;
  return true;
}

}  // namespace shardwright
