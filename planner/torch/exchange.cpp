#include "planner/torch/exchange.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "planner/error.h"
#include "planner/problems.h"

namespace shardwright {
namespace {

// A message is one letter that says what it is, then: the bytes themselves; or how many of them follow over
// the process group; or the kind of an error, as a letter, its errno, a blank, and its text.
constexpr char is_bytes = 'b';
constexpr char is_size = 's';
constexpr char is_error = 'e';

/// For so long, at most, rank 0 waits for others to take what it tells them of an error.
constexpr std::chrono::milliseconds longest_hearing{5000};

constexpr std::chrono::milliseconds between_looks{10};

std::string message_of(const Error& error) {
  return std::string{is_error, static_cast<char>('0' + static_cast<int>(error.kind))} +
         std::to_string(error.system_error) + " " + error.what();
}

Error error_from(const std::string& message) {
  const std::size_t blank = message.find(' ');
  if (blank == std::string::npos || blank < 2)
    return {ErrorKind::malformed,
            "another rank has told of an error in a form that this release does not know"};
  const auto kind = static_cast<ErrorKind>(message[1] - '0');
  int system_error = 0;
  std::from_chars(message.data() + 2, message.data() + blank, system_error);
  return {kind, message.substr(blank + 1), system_error};
}

class Exchange {
 public:
  explicit Exchange(const Peers& peers) : peers_(peers) {}

  std::string follow(const std::function<std::string()>& mine) const {
    const std::string message = outcome_of(mine);
    announce("from", peers_.rank, message);
    if (goes_over_group(message)) {
      // Only once all ranks have come does rank 0 receive; what is sent in vain breaks the group for good.
      const std::string word = await("go");
      if (word[0] == is_error) throw error_from(word);
      try {
        send(0, message);
      } catch (const Error&) {
        const std::string why = await("to");  // rank 0 may know more
        if (why[0] == is_error) throw error_from(why);
        throw;
      }
    }
    const std::string answer = receive(0, await("to"));
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
    for (int r = 1; r < peers_.ranks; ++r) {
      const std::string answer = failure.empty() ? is_bytes + replies[static_cast<std::size_t>(r)] : failure;
      if (answer[0] == is_error && peers_.group) announce("go", r, answer);  // for those still waiting for it
      announce("to", r, answer);
      if (!goes_over_group(answer)) continue;
      try {
        send(r, answer);
      } catch (const Error& error) {
        failure = message_of(error);  // what the ranks after it are told
      }
    }
    if (!failure.empty()) {
      wait_until_heard();
      throw error_from(failure);
    }
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

  /// The bytes of all ranks, which have come; or what those with a problem say.
  std::vector<std::string> gather(std::string own) const {
    std::vector<std::string> messages{std::move(own)};
    for (int r = 1; r < peers_.ranks; ++r) messages.push_back(take("from", r));
    for (int r = 1; r < peers_.ranks; ++r) {
      if (messages[static_cast<std::size_t>(r)][0] == is_size) announce("go", r, std::string{is_bytes});
    }
    for (int r = 1; r < peers_.ranks; ++r) {
      std::string& message = messages[static_cast<std::size_t>(r)];
      message = receive(r, std::move(message));
    }
    std::optional<Error> first;
    std::vector<std::pair<std::string, std::vector<std::int64_t>>> told;  // a text, and the ranks that say it
    for (std::size_t r = 0; r < messages.size(); ++r) {
      if (messages[r][0] != is_error) {
        messages[r].erase(0, 1);
        continue;
      }
      const Error error = error_from(messages[r]);
      if (!first) first = error;
      const std::string text = error.what();
      auto same = std::find_if(told.begin(), told.end(), [&](const auto& one) { return one.first == text; });
      if (same == told.end()) same = told.insert(told.end(), {text, {}});
      same->second.push_back(static_cast<std::int64_t>(r));
    }
    Problems problems;
    for (const auto& [text, ranks] : told)
      problems.add((ranks.size() == 1 ? "rank " : "ranks ") + ranges_of(ranks) + ": " + text);
    try {
      problems.throw_if_any(first ? first->kind : ErrorKind::mismatch,
                            peers_.name + ": no rank goes on, because of");
    } catch (Error& error) {
      error.system_error = first->system_error;
      throw;
    }
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

  /// Waits until the others have taken what they were told: whoever catches an error may end its process, and
  /// with it the store, if that is the one that keeps it. Some may never have come.
  void wait_until_heard() const {
    const auto until = std::chrono::steady_clock::now() + std::min(longest_hearing, peers_.timeout);
    try {
      for (int r = 1; r < peers_.ranks; ++r) {
        while (!has_heard(r) && std::chrono::steady_clock::now() < until)
          std::this_thread::sleep_for(between_looks);
      }
    } catch (const std::exception&) {  // a store that is gone tells nobody anything
    }
  }

  /// Whether a rank has taken an error, from one of the places where it may have waited for it.
  bool has_heard(int rank) const {
    return !peers_.store->check({key_of("to", rank)}) ||
           (peers_.group && !peers_.store->check({key_of("go", rank)}));
  }

  bool goes_over_group(const std::string& message) const {
    return peers_.group && message[0] == is_bytes && message.size() > 1;
  }

  /// Puts a message into the store, or how large it is if it goes over the group.
  void announce(const char* direction, int rank, const std::string& message) const {
    const std::string text =
        goes_over_group(message) ? is_size + std::to_string(message.size() - 1) : message;
    peers_.store->set(key_of(direction, rank), std::vector<std::uint8_t>(text.begin(), text.end()));
  }

  /// What has been put into the store.
  std::string take(const char* direction, int rank) const {
    const std::string key = key_of(direction, rank);
    const std::vector<std::uint8_t> bytes = peers_.store->get(key);
    peers_.store->deleteKey(key);
    if (bytes.empty()) throw Error(ErrorKind::malformed, peers_.name + ": an empty message at " + key);
    return {bytes.begin(), bytes.end()};
  }

  /// What rank 0 puts into the store for this rank.
  std::string await(const char* direction) const {
    try {
      peers_.store->wait({key_of(direction, peers_.rank)}, 2 * peers_.timeout);
    } catch (const std::exception&) {
      throw Error(
          ErrorKind::io,
          peers_.name + ": rank 0 has not answered within " + seconds(2) + "; look for why it stopped",
          ETIMEDOUT);
    }
    return take(direction, peers_.rank);
  }

  void send(int rank, const std::string& message) const {
    std::vector<at::Tensor> tensors{at::empty({static_cast<std::int64_t>(message.size()) - 1}, at::kByte)};
    std::copy(message.begin() + 1, message.end(), tensors[0].mutable_data_ptr<std::uint8_t>());
    move("send to", rank, [&] { return peers_.group->send(tensors, rank, tag); });
  }

  /// The message that a rank has announced.
  std::string receive(int rank, std::string announced) const {
    if (announced[0] != is_size) return announced;
    std::int64_t size = 0;
    std::from_chars(announced.data() + 1, announced.data() + announced.size(), size);
    std::vector<at::Tensor> tensors{at::empty({size}, at::kByte)};
    move("receive from", rank, [&] { return peers_.group->recv(tensors, rank, tag); });
    const auto* data = tensors[0].const_data_ptr<std::uint8_t>();
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

Job job_over(Peers peers) {
  Job job{peers.rank, peers.ranks, nullptr};
  job.round = [peers = std::move(peers), number = std::make_shared<std::int64_t>(0)](const auto& mine,
                                                                                     const auto& answers) {
    Peers of_round = peers;
    of_round.name += " " + std::to_string(++*number);
    return exchange(of_round, mine, answers);
  };
  return job;
}

}  // namespace shardwright
