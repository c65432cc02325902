#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "planner/names/catalog.h"
#include "storage/files/pending_file.h"
#include "storage/seconds.h"

namespace shardwright {

/// What each thread of a load did when: for chrome://tracing or Perfetto.
class Trace {
 public:
  struct Event {
    const char* what = "";     ///< "read", "wait" (for reads in the background), "decode", "exchange"
    std::int64_t tensor = -1;  ///< index into Catalog::tensors; -1: of no tensor alone
    std::uint64_t bytes = 0;   ///< read, taken in by the decoder, or exchanged
    Clock::time_point begin;
    Clock::time_point end;
    bool in_background = false;  ///< of io_uring: overlaps other events of the thread
  };

  /// A trace to be written to `path`; of nothing if that is empty. `process` is the number to show for this
  /// process: its rank. Creates the file now, as a load that has taken an hour must not fail for it, and
  /// waits for a reader if it is a named pipe. `check_for_interrupt`: see PendingFile. Throws Error: argument
  /// for a file that is there and is neither empty nor a trace; io.
  Trace(const std::filesystem::path& path, int process, const std::function<void()>& check_for_interrupt);

  /// False: events need not be gathered.
  bool is_wanted() const { return file_.has_value(); }

  /// Adds what one more thread did. Thread-safe.
  void add(std::string thread, std::vector<Event> events);

  /// Writes the file, once, in Chrome's trace event format (JSON; complete events, and asynchronous ones for
  /// what goes on in the background; in microseconds since this object was made). Throws Error(io).
  void write(const Catalog& catalog);

 private:
  struct Thread {
    std::string name;
    std::vector<Event> events;
  };

  std::optional<PendingFile> file_;
  const int process_;
  const Clock::time_point begin_ = Clock::now();
  std::mutex mutex_;  // guards the next
  std::vector<Thread> threads_;
};

}  // namespace shardwright
