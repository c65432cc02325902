#include <ATen/ATen.h>

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <utility>
#include <vector>

#include "planner/error.h"
#include "planner/torch/peers.h"

namespace shardwright {
namespace {

/// Any number that other messages of the job do not use.
constexpr int tag = 7252;

/// What has been begun, by number; called from several threads.
class Messages {
 public:
  explicit Messages(Peers peers) : peers_(std::move(peers)) {}

  std::uint64_t send(int rank, const std::byte* data, std::size_t bytes) {
    if (peers_.group) {
      auto* memory = const_cast<std::byte*>(data);  // NOLINT(cppcoreguidelines-pro-type-const-cast)
      std::vector<at::Tensor> tensors{tensor_of(memory, bytes)};  // which is not written to
      return begin({peers_.group->send(tensors, rank, tag), "", nullptr, bytes});
    }
    const auto* first = reinterpret_cast<const std::uint8_t*>(data);
    peers_.store->set(next_key(peers_.rank, rank), std::vector<std::uint8_t>(first, first + bytes));
    return begin({});
  }

  std::uint64_t receive(int rank, std::byte* data, std::size_t bytes) {
    if (!peers_.group) return begin({nullptr, next_key(rank, peers_.rank), data, bytes});
    std::vector<at::Tensor> tensors{tensor_of(data, bytes)};
    return begin({peers_.group->recv(tensors, rank, tag), "", data, bytes});
  }

  void wait(std::uint64_t number) {
    Begun begun;
    {
      const std::scoped_lock lock(mutex_);
      begun = begun_.extract(number).mapped();
    }
    if (begun.work) {
      begun.work->wait();
    } else if (!begun.key.empty()) {
      const std::vector<std::uint8_t> bytes = peers_.store->get(begun.key);
      peers_.store->deleteKey(begun.key);
      if (bytes.size() != begun.bytes)
        throw Error(ErrorKind::malformed, peers_.name + ": expected a message of " +
                                              std::to_string(begun.bytes) + " bytes, found " +
                                              std::to_string(bytes.size()));
      std::memcpy(begun.data, bytes.data(), bytes.size());
    }
  }

  void post(const std::string& key, const std::string& text) { peers_.store->set(key, text); }

  std::optional<std::string> look(const std::string& key) {
    if (!peers_.store->check({key})) return std::nullopt;
    return peers_.store->get_to_str(key);
  }

 private:
  struct Begun {
    c10::intrusive_ptr<c10d::Work> work;  ///< over the group
    std::string key;                      ///< of what comes over the store; empty: nothing
    std::byte* data = nullptr;
    std::size_t bytes = 0;
  };

  static at::Tensor tensor_of(std::byte* data, std::size_t bytes) {
    return at::from_blob(data, {static_cast<std::int64_t>(bytes)}, at::kByte);
  }

  std::string next_key(int from, int to) {
    const std::scoped_lock lock(mutex_);
    return "shardwright/" + peers_.name + "/message/" + std::to_string(from) + "/" + std::to_string(to) +
           "/" + std::to_string(counts_[{from, to}]++);
  }

  std::uint64_t begin(Begun begun) {
    const std::scoped_lock lock(mutex_);
    begun_.emplace(next_, std::move(begun));
    return next_++;
  }

  const Peers peers_;
  std::mutex mutex_;
  std::uint64_t next_ = 0;
  std::map<std::uint64_t, Begun> begun_;
  std::map<std::pair<int, int>, std::uint64_t> counts_;
};

/// What c10d throws, as an Error.
template <typename Work>
auto reaching(const Peers& peers, const Work& work) {
  try {
    return work();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw Error(ErrorKind::io, peers.name + ": another rank cannot be reached: " + error.what());
  }
}

}  // namespace

Transport transport_over(const Peers& peers) {
  const auto messages = std::make_shared<Messages>(peers);
  Transport transport;
  transport.send = [messages, peers](int rank, const std::byte* data, std::size_t bytes) {
    return reaching(peers, [&] { return messages->send(rank, data, bytes); });
  };
  transport.receive = [messages, peers](int rank, std::byte* data, std::size_t bytes) {
    return reaching(peers, [&] { return messages->receive(rank, data, bytes); });
  };
  transport.wait = [messages, peers](std::uint64_t number) {
    reaching(peers, [&] { messages->wait(number); });
  };
  transport.post = [messages](const std::string& key, const std::string& text) { messages->post(key, text); };
  transport.look = [messages](const std::string& key) { return messages->look(key); };
  return transport;
}

}  // namespace shardwright
