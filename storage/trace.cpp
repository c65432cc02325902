#include "storage/trace.h"

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "storage/pending_file.h"

namespace shardwright {

void Trace::add(std::vector<Event> events) {
  const std::lock_guard lock(mutex_);
  threads_.push_back(std::move(events));
}

void Trace::write(const std::filesystem::path& path, Clock::time_point begin, int process,
                  const Catalog& catalog) const {
  const auto microseconds = [](Clock::duration duration) {
    return std::chrono::duration<double, std::micro>(duration).count();
  };
  PendingFile file(path);
  file.append("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n");
  std::string lines;
  for (std::size_t thread = 0; thread < threads_.size(); ++thread) {
    for (const Event& event : threads_[thread]) {
      const SourceTensor& tensor = catalog.tensors[event.tensor];
      const nlohmann::json line = {{"name", event.what},
                                   {"ph", "X"},
                                   {"pid", process},
                                   {"tid", thread},
                                   {"ts", microseconds(event.begin - begin)},
                                   {"dur", microseconds(event.end - event.begin)},
                                   {"args", {{"tensor", tensor.name}, {"bytes", event.bytes}}}};
      lines += line.dump() + ",\n";
      if (lines.size() > (std::size_t{1} << 16)) file.append(std::exchange(lines, {}));
    }
  }
  const nlohmann::json name = {
      {"name", "process_name"}, {"ph", "M"}, {"pid", process}, {"args", {{"name", "shardwright load"}}}};
  file.append(lines + name.dump() + "\n]}\n");
  file.publish();
}

}  // namespace shardwright
