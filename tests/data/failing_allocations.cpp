// Preloaded: after fail_allocation(n), the n-th allocation that the library's own code makes on its own
// threads fails, once. Those of others, such as torch, are left alone, and those on the interpreter's thread:
// pybind11 ends the process where it cannot register an object.

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {
std::atomic<long> left{0};
}

extern "C" void fail_allocation(long number) { left = number; }

/// How many were still to come.
extern "C" long allocations_left() { return left; }

void* operator new(std::size_t bytes) {
  if (left > 0 && ::gettid() != ::getpid()) {
    Dl_info of;
    const bool is_ours = ::dladdr(__builtin_return_address(0), &of) != 0 && of.dli_fname != nullptr &&
                         std::strstr(of.dli_fname, "shardwright/_core") != nullptr;
    if (is_ours && left.fetch_sub(1) == 1) throw std::bad_alloc();
  }
  if (void* const memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}

void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
