#include "storage/load/trace.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "planner/error.h"
#include "storage/files/entries.h"
#include "storage/files/input_file.h"
#include "storage/files/printable.h"

namespace shardwright {
namespace {

constexpr std::string_view begin_of_traces = R"({"displayTimeUnit":"ms","traceEvents":[)";

/// A mistyped name may be that of a weight. What is no regular file has nothing to lose, and is not opened.
void expect_trace_or_nothing(const std::filesystem::path& path) {
  const std::optional<struct stat> there = target_at(path);
  if (!there || !S_ISREG(there->st_mode) || there->st_size == 0) return;
  const InputFile file(path);
  std::string begin(std::min<std::uint64_t>(file.size(), begin_of_traces.size()), '\0');
  file.read(0, begin.data(), begin.size());
  if (begin == begin_of_traces) return;
  throw Error(ErrorKind::argument,
              "trace: " + printable(path.native()) +
                  ": is there and was not written by this option; remove it, or name another file");
}

}  // namespace

Trace::Trace(const std::filesystem::path& path, int process, const std::function<void()>& check_for_interrupt)
    : process_(process) {
  if (path.empty()) return;
  if (!is_written_into(path)) expect_trace_or_nothing(path);
  file_.emplace(path, check_for_interrupt);
}

void Trace::add(std::string thread, std::vector<Event> events) {
  const std::lock_guard lock(mutex_);
  threads_.push_back({std::move(thread), std::move(events)});
}

void Trace::write(const Catalog& catalog) {
  using nlohmann::json;
  if (!file_) return;
  const auto microseconds = [](Clock::duration duration) {
    return std::chrono::duration<double, std::micro>(duration).count();
  };
  std::string lines = std::string(begin_of_traces) + "\n";
  const auto name = [&](const char* of, std::size_t thread, const std::string& is) {
    lines +=
        json{{"name", of}, {"ph", "M"}, {"pid", process_}, {"tid", thread}, {"args", {{"name", is}}}}.dump();
  };
  std::uint64_t id = 0;
  for (std::size_t thread = 0; thread < threads_.size(); ++thread) {
    name("thread_name", thread, threads_[thread].name);
    lines += ",\n";
    for (const Event& event : threads_[thread].events) {
      json arguments = {{"bytes", event.bytes}};
      if (event.tensor >= 0) {
        arguments["tensor"] = catalog.tensors[static_cast<std::size_t>(event.tensor)].name;
      }
      json line = {{"name", event.what},
                   {"ph", "X"},
                   {"pid", process_},
                   {"tid", thread},
                   {"ts", microseconds(event.begin - begin_)},
                   {"dur", microseconds(event.end - event.begin)},
                   {"args", std::move(arguments)}};
      if (event.in_background) {  // one line for its beginning, one for its end
        line["ph"] = "b";
        line["cat"] = "io_uring";
        line["id"] = ++id;
        line.erase("dur");
        lines += line.dump() + ",\n";
        line["ph"] = "e";
        line["ts"] = microseconds(event.end - begin_);
        line.erase("args");
      }
      lines += line.dump() + ",\n";
      if (lines.size() > (std::size_t{1} << 16)) file_->append(std::exchange(lines, {}));
    }
  }
  name("process_name", 0, "shardwright load");
  file_->append(lines + "\n]}\n");
  file_->publish();
  file_.reset();
}

}  // namespace shardwright
