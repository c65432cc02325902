// The table of calls of FakeDevices.

#include <algorithm>
#include <cstring>

#include "tests/storage/fake_devices.h"

namespace shardwright {
namespace {

constexpr DeviceStatus illegal_address = 700;

}  // namespace

template <class Action>
DeviceStatus FakeDevices::call(const char* name, Action action) {
  const std::lock_guard lock(mutex_);
  const int number = ++counts_[name];
  if (eagerness_ == 1) {
    for (const auto& stream : streams_) finish(*stream, stream->issued);
  } else if (eagerness_ > 1) {
    for (std::int64_t i = random_.between(0, eagerness_ - 1); i > 0; --i) do_something();
  }
  const bool fails = failing_call_ == name && failing_number_ == number;
  const bool releases = std::strstr(name, "free") != nullptr || std::strstr(name, "destroy") != nullptr;
  DeviceStatus status = 0;
  if (releases || (!fails && !is_dead_)) status = action();  // what was to be released is gone in any case
  if (fails) {
    has_failed_ = true;
    status = failing_status_;
  } else if (is_dead_) {
    status = illegal_address;
  }
  return status;
}

const DeviceCalls* FakeDevices::calls() const {
  static constexpr DeviceCalls table{
      .device_count =
          [](int* count) {
            return current->call("device_count", [&] {
              *count = current->devices_;
              return 0;
            });
          },
      .driver_version =
          [](int* version) {
            return current->call("driver_version", [&] {
              *version = current->driver;
              return 0;
            });
          },
      .runtime_version =
          [](int* version) {
            return current->call("runtime_version", [&] {
              *version = 13000;
              return 0;
            });
          },
      .compute_capability =
          [](int* value, int) {
            return current->call("compute_capability", [&] {
              *value = 75;
              return 0;
            });
          },
      .set_device =
          [](int device) {
            return current->call("set_device", [&] {
              if (device < 0 || device >= current->devices_) return 101;
              current->set_device_here(device);
              current->expect_used("set_device", device);
              return 0;
            });
          },
      .load_kernels =
          [] {
            return current->call("load_kernels", [&] {
              current->expect_used("load_kernels", current->device_here());
              return 0;
            });
          },
      .pinned_allocate =
          [](void** memory, std::size_t bytes) {
            return current->call("pinned_allocate", [&] {
              current->expect_used("pinned_allocate", current->device_here());
              *memory = current->map(Memory::pinned, -1, bytes);
              return 0;
            });
          },
      .pinned_free =
          [](void* memory) {
            return current->call("pinned_free", [&] {
              current->expect_used("pinned_free", current->device_here());
              current->unmap(static_cast<std::byte*>(memory), "pinned_free");
              return 0;
            });
          },
      .device_allocate =
          [](void** memory, std::size_t bytes) {
            return current->call("device_allocate", [&] {
              const int device = current->device_here();
              current->expect_used("device_allocate", device);
              if (current->device_bytes_[device] + bytes > current->memory_of_device) {
                return device_status::out_of_memory;
              }
              *memory = current->map(Memory::device, device, bytes);
              return 0;
            });
          },
      .device_free =
          [](void* memory) {
            return current->call("device_free", [&] {
              current->unmap(static_cast<std::byte*>(memory), "device_free");
              return 0;
            });
          },
      .stream_create =
          [](DeviceStream* stream) {
            return current->call("stream_create", [&] {
              const int device = current->device_here();
              current->expect_used("stream_create", device);
              current->streams_.push_back(std::make_unique<Stream>());
              current->streams_.back()->device = device;
              *stream = current->streams_.back().get();
              return 0;
            });
          },
      .stream_destroy =
          [](DeviceStream handle) {
            return current->call("stream_destroy", [&] {
              const Stream* stream = current->find(handle);
              if (stream == nullptr || stream->is_trainers) return 400;
              if (!current->is_dead_ && current->host_knows_[stream] < stream->issued) {
                current->fault("a stream is destroyed that may have work left in it");
              }
              for (const auto& event : current->events_) {
                if (event->stream == stream) event->stream = nullptr;
              }
              current->host_knows_.erase(stream);
              std::erase_if(current->past_, [&](const Past& past) { return past.stream == stream; });
              std::erase_if(current->streams_, [&](const auto& one) { return one.get() == stream; });
              return 0;
            });
          },
      .stream_synchronize =
          [](DeviceStream handle) {
            return current->call("stream_synchronize", [&] {
              current->expect_used("stream_synchronize", current->device_here());
              const Stream* stream = current->find(handle);
              if (stream == nullptr) return 400;
              current->finish(*stream, stream->issued);
              merge(current->host_knows_, stream->knows);
              return 0;
            });
          },
      .stream_wait_event =
          [](DeviceStream handle, DeviceEvent of) {
            return current->call("stream_wait_event", [&] {
              Stream* stream = current->find(handle);
              const Event* event = current->find(of, "stream_wait_event");
              if (stream == nullptr || event == nullptr) return 400;
              Operation wait;
              wait.after = event->stream;
              wait.after_number = event->number;
              wait.run = [] {};
              merge(stream->knows, event->clock);
              current->add(*stream, std::move(wait));
              return 0;
            });
          },
      .event_create =
          [](DeviceEvent* event) {
            return current->call("event_create", [&] {
              current->expect_used("event_create", current->device_here());
              auto created = std::make_unique<Event>();
              created->device = current->device_here();
              *event = created.get();
              current->events_.insert(std::move(created));
              return 0;
            });
          },
      .event_destroy =
          [](DeviceEvent handle) {
            return current->call("event_destroy", [&] {
              const Event* event = current->find(handle, "event_destroy");
              if (event == nullptr) return 400;
              std::erase_if(current->events_, [&](const auto& one) { return one.get() == event; });
              return 0;
            });
          },
      .event_record =
          [](DeviceEvent handle, DeviceStream of) {
            return current->call("event_record", [&] {
              const Stream* stream = current->find(of);
              Event* event = current->find(handle, "event_record");
              if (stream == nullptr || event == nullptr) return 400;
              if (stream->device != event->device)
                current->fault("an event is recorded on another device's stream");
              event->stream = stream;
              event->number = stream->issued;
              event->clock = stream->knows;
              return 0;
            });
          },
      .event_query =
          [](DeviceEvent handle) {
            return current->call("event_query", [&] {
              const Event* event = current->find(handle, "event_query");
              if (event == nullptr) return 400;
              if (event->stream != nullptr && event->stream->done < event->number)
                return device_status::not_ready;
              merge(current->host_knows_, event->clock);
              return 0;
            });
          },
      .event_synchronize =
          [](DeviceEvent handle) {
            return current->call("event_synchronize", [&] {
              const Event* event = current->find(handle, "event_synchronize");
              if (event == nullptr) return 400;
              if (event->stream != nullptr) current->finish(*event->stream, event->number);
              merge(current->host_knows_, event->clock);
              return 0;
            });
          },
      .copy_to_device =
          [](void* to, const void* from, std::size_t bytes, DeviceStream stream) {
            return current->call("copy_to_device",
                                 [&] { return current->copy(to, from, bytes, stream, true); });
          },
      .copy_from_device =
          [](void* to, const void* from, std::size_t bytes, DeviceStream stream) {
            return current->call("copy_from_device",
                                 [&] { return current->copy(to, from, bytes, stream, false); });
          },
      .place =
          [](std::span<const cuda::Placing> placings, DeviceStream stream) {
            return current->call("place", [&] { return current->place(placings, stream); });
          },
      .encode =
          [](std::span<const cuda::TileToEncode> encodings, DeviceStream stream) {
            return current->call("encode", [&] { return current->encode(encodings, stream); });
          },
      .error_text = [](DeviceStatus) { return "as the fake was told"; },
  };
  return &table;
}

}  // namespace shardwright
