#pragma once

#include <cstddef>
#include <functional>

namespace shardwright {

/// Processors that this process may use, at least 1.
int processors();

/// Seconds that this thread has had a processor: what work would take with one of its own, whatever else
/// runs.
double processor_seconds();

/// Calls work(0) … work(count - 1), each once, on up to `threads` threads (0: all processors), in about that
/// order. If some throw, what has not begun is left out, and the exception of the lowest index is rethrown
/// once all threads have stopped.
void for_each_index(std::size_t count, int threads, const std::function<void(std::size_t)>& work);

/// What a thread calls before it does anything: has the runtime allocate what this library and its exceptions
/// keep in each thread. Where memory is short when they first need that, the runtime ends the process.
void prepare_for_exceptions();

/// Runs work on a thread of its own, and throws here what it throws.
void on_its_own_thread(const std::function<void()>& work);

}  // namespace shardwright
