#pragma once

// Devices that exist in a test only. What is given to a stream waits in a queue, and is done late, early or
// at random moments between calls, in any order that streams and events allow; kernels run as their host
// bodies. Rules of the run-time that cost nothing when they are broken, most of the time, are faults here.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "storage/device/device_calls.h"
#include "storage/files/gpu_direct.h"
#include "tests/planner/random_layouts.h"

namespace shardwright {

/// Calls fails(n) for each n from 1 to `dense` and for every `stride`-th behind it, below 200, until it says
/// that the n-th never came. Returns how many came.
template <class Fails>
int fail_in_turn(int dense, int stride, const Fails& fails) {
  int failures = 0;
  for (int before = 0; before < 200 && fails(before + 1); before += before < dense ? 1 : stride) ++failures;
  return failures;
}

class FakeDevices {
 public:
  explicit FakeDevices(std::uint64_t seed, int devices = 3);
  ~FakeDevices();
  FakeDevices(const FakeDevices&) = delete;
  FakeDevices& operator=(const FakeDevices&) = delete;

  /// Only one of these may exist at a time: calls know no object.
  const DeviceCalls* calls() const;
  const GpuDirectCalls* gpu_direct_calls() const;

  // The trainer's side.

  /// Memory on a device that stays. Nobody but operations of streams may touch it until `open_memory`.
  std::byte* tensor_memory(int device, std::size_t bytes);

  /// Pinned memory of the trainer's, which no operation may use any more when it is given back.
  std::byte* pinned_memory(std::size_t bytes);
  void give_back(std::byte* pinned);

  /// The trainer's stream on a device, with something in it: writes these bytes to the memory, or `value` all
  /// over it.
  DeviceStream stream_that_writes(int device, std::byte* memory, std::vector<std::uint8_t> bytes);
  DeviceStream stream_that_fills(int device, std::byte* memory, std::size_t bytes, std::uint8_t value);

  /// Does what is left to be done in the trainer's streams, and lets the test look at the memory.
  void open_memory();

  // What goes wrong.

  /// The call of that name (of DeviceCalls) number `which`, from 1 on, returns this.
  void fail(const std::string& call, int which, DeviceStatus status);

  /// The operation number `which`, from 1 on, of those that are done fails, and with it every call from then
  /// on.
  void fail_operation(int which) { failing_operation_ = which; }

  /// Nothing is done from now on before somebody waits for it.
  void be_lazy() { eagerness_ = 0; }

  /// About one in so many calls of GPUDirect Storage that can be refused is; 0: none.
  std::int64_t gpu_direct_refuses_one_in = 0;

  std::size_t memory_of_device = std::size_t{1} << 40;
  int driver = 13000;

  // What was seen.

  int count(const std::string& call) const;
  bool has_failed() const { return has_failed_; }  ///< as fail() or fail_operation() asked
  std::uint64_t gpu_direct_bytes() const { return gpu_direct_bytes_; }
  int operations_done() const { return operations_done_; }
  std::size_t peak_pinned_bytes() const { return peak_pinned_bytes_; }
  std::size_t peak_device_bytes() const;  ///< of the device where it was most

  /// What was against the rules, and what is left behind: pending work, memory, streams, events.
  std::vector<std::string> faults() const;

 private:
  struct Stream;
  using Clock = std::map<const Stream*, std::uint64_t>;  // of each stream, the operations known to be before

  enum class Memory { pinned, device, tensor };
  struct Region {
    Memory kind;
    int device;
    std::size_t bytes;
    std::byte* mapped;
    std::size_t mapped_bytes;
  };
  struct Access {
    const std::byte* begin;
    std::size_t bytes;
    bool writes;
  };
  struct Past {  // an access to staging, or one of the trainer's
    Access access;
    const Stream* stream;
    std::uint64_t number;
  };
  struct Operation {
    std::function<void()> run;
    std::vector<Access> accesses;
    const Stream* after = nullptr;  // waits until so many of that stream's operations are done
    std::uint64_t after_number = 0;
  };
  struct Stream {
    int device = 0;
    bool is_trainers = false;
    std::deque<Operation> pending;
    std::uint64_t issued = 0;
    std::uint64_t done = 0;
    Clock knows;
  };
  struct Event {
    int device = 0;
    const Stream* stream = nullptr;
    std::uint64_t number = 0;
    Clock clock;
  };

  static FakeDevices* current;

  template <class Action>
  DeviceStatus call(const char* name, Action action);
  void fault(std::string what) { faults_.push_back(std::move(what)); }
  int device_here() const;  // current on this thread
  void set_device_here(int device);
  bool gpu_direct_refuses();
  void expect_gpu_direct(const char* call);
  std::int64_t read_gpu_direct(void* file, std::byte* memory, std::size_t offset, std::size_t bytes,
                               std::uint64_t offset_in_file);
  void expect_used(const char* call, int device);
  Stream* find(DeviceStream stream);
  Event* find(DeviceEvent event, const char* call);
  void add(Stream& stream, Operation operation);
  void expect_order(Stream& stream, const Access& access);
  void forget_what_is_known();
  bool is_blocked(const Stream& stream) const;
  void do_next(Stream& stream);
  void do_something();
  void finish(const Stream& stream, std::uint64_t number);
  const Region* region_of(const std::byte* address) const;
  std::byte* map(Memory kind, int device, std::size_t bytes);
  void unmap(std::byte* memory, const char* call);
  bool is_unused(const Region& region, const std::byte* memory) const;
  DeviceStatus copy(void* to, const void* from, std::size_t bytes, DeviceStream stream, bool to_device);
  DeviceStatus place(std::span<const cuda::Placing> placings, DeviceStream stream);
  DeviceStatus encode(std::span<const cuda::TileToEncode> encodings, DeviceStream stream);
  Access reach(const void* first, std::int64_t rows, std::int64_t row_stride, std::int64_t columns,
               std::int64_t column_stride, std::int64_t element_bytes, bool writes) const;
  void expect_on_device(const Stream& stream, const void* address);
  static void merge(Clock& into, const Clock& from);

  mutable std::mutex mutex_;
  Random random_;
  const std::uint64_t serial_;  // no two have the same
  const int devices_;
  std::int64_t eagerness_;  // 0: nothing is done before it has to be; 1: at once; else now and then
  const std::thread::id callers_thread_ = std::this_thread::get_id();
  std::map<const std::byte*, Region> regions_;
  std::set<int> used_devices_;
  std::vector<std::unique_ptr<Stream>> streams_;  // the trainer's first: the default stream of each device
  std::set<std::unique_ptr<Event>> events_;
  std::vector<Past> past_;
  Clock host_knows_;
  std::map<std::string, int> counts_;
  std::string failing_call_;
  int failing_number_ = 0;
  DeviceStatus failing_status_ = 0;
  int failing_operation_ = 0;
  bool has_failed_ = false;
  bool is_dead_ = false;  // an operation has failed: the context is lost
  int operations_done_ = 0;
  std::size_t pinned_bytes_ = 0;
  std::size_t peak_pinned_bytes_ = 0;
  int gpu_direct_drivers_ = 0;
  std::map<void*, int> gpu_direct_files_;                      // descriptors
  std::map<const std::byte*, std::size_t> gpu_direct_memory_;  // bytes
  std::uint64_t gpu_direct_bytes_ = 0;
  std::map<int, std::size_t> device_bytes_;
  std::map<int, std::size_t> peak_device_bytes_;
  std::vector<std::string> faults_;
};

}  // namespace shardwright
