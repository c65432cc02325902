#include "planner/exchange.h"

#include <ATen/ATen.h>

#include <cerrno>
#include <charconv>
#include <optional>
#include <utility>

#include "planner/error.h"
#include "planner/problems.h"

namespace shardwright {
namespace {

// A message is one letter that says what it is, then: the bytes themselves; or how many of them follow over
// the process group; or the kind of an error, as a letter, and its text.
constexpr char is_bytes = 'b';
constexpr char is_size = 's';
constexpr char is_error = 'e';

std::string message_of(const Error& error) {
  return {std::string{is_error, static_cast<char>('0' + static_cast<int>(error.kind))} + error.what()};
}

Error error_from(const std::string& message) {
  const auto kind = static_cast<ErrorKind>(message.at(1) - '0');
  return {kind, message.substr(2), kind == ErrorKind::io ? ETIMEDOUT : 0};
}

class Exchange {
 public:
  explicit Exchange(const Peers& peers) : peers_(peers) {}

  std::string follow(const std::function<std::string()>& mine) const {
    give("from", peers_.rank, 0, outcome_of(mine));
    const std::string key = key_of("to", peers_.rank);
    try {
      peers_.store->wait({key}, 2 * peers_.timeout);
    } catch (const std::exception&) {
      throw Error(
          ErrorKind::io,
          peers_.name + ": rank 0 has not answered within " + seconds(2) + "; look for why it stopped",
          ETIMEDOUT);
    }
    std::string answer = take("to", peers_.rank, 0);
    if (answer[0] == is_error) throw error_from(answer);
    return answer.substr(1);
  }

  std::string lead(const std::function<std::string()>& mine,
                   const std::function<std::vector<std::string>(std::vector<std::string>)>& answers) const {
    std::vector<std::string> replies;
    std::string failure;
    try {
      std::string own = outcome_of(mine);
      wait_for_all();
      replies = answers(gather(std::move(own)));
      if (replies.size() != static_cast<std::size_t>(peers_.ranks))
        throw Error(ErrorKind::argument, peers_.name + ": expected an answer for each rank");
    } catch (const Error& error) {
      failure = message_of(error);
    } catch (const std::exception& error) {
      failure = message_of(Error(ErrorKind::mismatch, peers_.name + ": rank 0: " + error.what()));
    }
    for (int r = 1; r < peers_.ranks; ++r)
      give("to", r, r, failure.empty() ? is_bytes + replies[static_cast<std::size_t>(r)] : failure);
    if (!failure.empty()) throw error_from(failure);
    return std::move(replies.front());
  }

 private:
  std::string key_of(const char* direction, int rank) const {
    return "shardwright/" + peers_.name + "/" + direction + "/" + std::to_string(rank);
  }

  std::string seconds(int times) const { return std::to_string(times * peers_.timeout.count()) + " ms"; }

  static std::string outcome_of(const std::function<std::string()>& mine) {
    try {
      return is_bytes + mine();
    } catch (const Error& error) {
      return message_of(error);
    } catch (const std::exception& error) {
      return message_of(Error(ErrorKind::mismatch, error.what()));
    }
  }

  std::vector<std::string> gather(std::string own) const {
    std::vector<std::string> messages{std::move(own)};
    for (int r = 1; r < peers_.ranks; ++r) messages.push_back(take("from", r, r));
    Problems problems;
    std::optional<ErrorKind> kind;
    for (std::size_t r = 0; r < messages.size(); ++r) {
      if (messages[r][0] == is_error) {
        const Error error = error_from(messages[r]);
        if (!kind) kind = error.kind;
        problems.add("rank " + std::to_string(r) + ": " + error.what());
      } else {
        messages[r].erase(0, 1);
      }
    }
    problems.throw_if_any(kind.value_or(ErrorKind::mismatch), peers_.name + ": no rank goes on, because of");
    return messages;
  }

  /// Waits until every rank has come, or says which have not.
  void wait_for_all() const {
    std::vector<std::string> keys;
    for (int r = 1; r < peers_.ranks; ++r) keys.push_back(key_of("from", r));
    if (keys.empty()) return;
    try {
      peers_.store->wait(keys, peers_.timeout);
    } catch (const std::exception&) {
      std::vector<std::int64_t> absent;
      for (int r = 1; r < peers_.ranks; ++r) {
        if (!peers_.store->check({keys[static_cast<std::size_t>(r) - 1]})) absent.push_back(r);
      }
      if (absent.empty()) return;  // they came at the last moment
      throw Error(ErrorKind::io,
                  peers_.name + ": ranks " + ranges_of(absent) + " of " + std::to_string(peers_.ranks) +
                      " have not come within " + seconds(1) + "; look for why they stopped",
                  ETIMEDOUT);
    }
  }

  /// Leaves a message for another rank: in the store, or its size there and the bytes over the group.
  void give(const char* direction, int rank, int to, const std::string& message) const {
    const std::string key = key_of(direction, rank);
    const bool over_group = peers_.group && message[0] == is_bytes;
    const std::string text = over_group ? is_size + std::to_string(message.size() - 1) : message;
    peers_.store->set(key, std::vector<std::uint8_t>(text.begin(), text.end()));
    if (!over_group || message.size() == 1) return;
    at::Tensor tensor = at::empty({static_cast<std::int64_t>(message.size()) - 1}, at::kByte);
    std::copy(message.begin() + 1, message.end(), tensor.mutable_data_ptr<std::uint8_t>());
    move("send to", to, [&] {
      std::vector<at::Tensor> tensors{tensor};
      return peers_.group->send(tensors, to, tag);
    });
  }

  /// The message of a rank that has given one.
  std::string take(const char* direction, int rank, int from) const {
    const std::string key = key_of(direction, rank);
    const std::vector<std::uint8_t> bytes = peers_.store->get(key);
    peers_.store->deleteKey(key);
    std::string message(bytes.begin(), bytes.end());
    if (message.empty() || message[0] != is_size) return message;
    std::int64_t size = 0;
    std::from_chars(message.data() + 1, message.data() + message.size(), size);
    if (size == 0) return std::string{is_bytes};
    const at::Tensor tensor = at::empty({size}, at::kByte);
    move("receive from", from, [&] {
      std::vector<at::Tensor> tensors{tensor};
      return peers_.group->recv(tensors, from, tag);
    });
    const auto* data = tensor.const_data_ptr<std::uint8_t>();
    return is_bytes + std::string(data, data + size);
  }

  template <typename Start>
  void move(const char* what, int rank, const Start& start) const {
    try {
      start()->wait(peers_.timeout);
    } catch (const std::exception& error) {
      throw Error(ErrorKind::io,
                  peers_.name + ": could not " + what + " rank " + std::to_string(rank) +
                      ", which may have stopped: " + error.what(),
                  EIO);
    }
  }

  static constexpr int tag = 7251;  // any number that other messages of the job do not use

  const Peers& peers_;
};

}  // namespace

Peers peers_of(const c10::intrusive_ptr<c10d::ProcessGroup>& group, std::string name,
               std::chrono::milliseconds timeout) {
  Peers peers{group->getRank(), group->getSize(), group->getStore(), group, std::move(name), timeout};
  if (!peers.store) throw Error(ErrorKind::argument, peers.name + ": expected a process group with a store");
  return peers;
}

std::string exchange(const Peers& peers, const std::function<std::string()>& mine,
                     const std::function<std::vector<std::string>(std::vector<std::string>)>& answers) {
  const Exchange exchange(peers);
  return peers.rank == 0 ? exchange.lead(mine, answers) : exchange.follow(mine);
}

void agree(c10d::Store& store, int rank, int ranks, const std::string& name, const std::string& problem,
           std::chrono::milliseconds timeout) {
  const Peers peers{rank,    ranks, c10::intrusive_ptr<c10d::Store>::reclaim_copy(&store),
                    nullptr, name,  timeout};
  exchange(
      peers,
      [&]() -> std::string {
        if (!problem.empty()) throw Error(ErrorKind::mismatch, problem);
        return {};
      },
      [&](const std::vector<std::string>& all) { return std::vector<std::string>(all.size()); });
}

}  // namespace shardwright
