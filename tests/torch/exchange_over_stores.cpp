/// Ranks, each a process of its own, plan a save together or not at all: 2, 4 and 8 of them, with nothing
/// between them but a FileStore or a TCPStore, or with a process group over one.

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <vector>

#include "planner/error.h"
#include "planner/job.h"
#include "planner/save/plan_together.h"
#include "planner/torch/exchange.h"

namespace {

using namespace shardwright;  // NOLINT(google-build-using-namespace): a program of its own

using Clock = std::chrono::steady_clock;
using Outcome = std::function<std::string(const Peers&)>;  // of a rank: "" or what is not as it should be

struct Trial {
  std::filesystem::path folder;
  bool over_tcp;
  int ranks;
  bool has_group = false;
};

/// A process group that moves tensors over a store: torch's wheel brings no header of Gloo's.
class GroupOverStore : public c10d::ProcessGroup {
 public:
  GroupOverStore(const c10::intrusive_ptr<c10d::Store>& store, int rank, int ranks)
      : ProcessGroup(rank, ranks), store_(store) {}

  c10::intrusive_ptr<c10d::Work> send(std::vector<at::Tensor>& tensors, int to, int tag) override {
    const auto* data = tensors.at(0).const_data_ptr<std::uint8_t>();
    store_->set(key_of(rank_, to, tag), std::vector<std::uint8_t>(data, data + tensors[0].numel()));
    return c10::make_intrusive<Done>();
  }

  c10::intrusive_ptr<c10d::Work> recv(std::vector<at::Tensor>& tensors, int from, int tag) override {
    const std::string key = key_of(from, rank_, tag);
    const std::vector<std::uint8_t> bytes = store_->get(key);
    store_->deleteKey(key);
    if (std::ssize(bytes) != tensors.at(0).numel()) throw std::runtime_error("a tensor of another size");
    std::copy(bytes.begin(), bytes.end(), tensors[0].mutable_data_ptr<std::uint8_t>());
    return c10::make_intrusive<Done>();
  }

 private:
  struct Done : c10d::Work {
    bool wait(std::chrono::milliseconds /*timeout*/) override { return true; }
  };

  static std::string key_of(int from, int to, int tag) {
    return "tensor/" + std::to_string(from) + "/" + std::to_string(to) + "/" + std::to_string(tag);
  }

  c10::intrusive_ptr<c10d::Store> store_;
};

c10::intrusive_ptr<c10d::Store> store_of(const Trial& trial, int rank) {
  if (!trial.over_tcp)
    return c10::make_intrusive<c10d::FileStore>((trial.folder / "store").string(), trial.ranks);
  const std::filesystem::path port_file = trial.folder / "port";
  c10d::TCPStoreOptions options;
  options.isServer = rank == 0;
  options.waitWorkers = false;
  options.port = 0;
  if (rank != 0) {
    while (!std::filesystem::exists(port_file)) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::ifstream(port_file) >> options.port;
  }
  auto store = c10::make_intrusive<c10d::TCPStore>("localhost", options);
  if (rank == 0) {
    std::ofstream(trial.folder / "port.new") << store->getPort();
    std::filesystem::rename(trial.folder / "port.new", port_file);
  }
  return store;
}

/// When the rank that is missing ends: before it has said anything, or by its outcome in the midst of it.
enum class Ends { at_once, later };

/// Runs each rank in a process, of which `missing` ends. The last rank to be done with a TCPStore is the one
/// that keeps it.
bool all_hold(const Trial& trial, const Outcome& outcome, int missing = -1, Ends ends = Ends::at_once) {
  std::filesystem::create_directories(trial.folder);
  std::vector<pid_t> children;
  for (int rank = 0; rank < trial.ranks; ++rank) {
    const pid_t child = fork();
    if (child != 0) {
      children.push_back(child);
      continue;
    }
    if (rank == missing && ends == Ends::at_once) std::_Exit(0);
    std::string fault;
    c10::intrusive_ptr<c10d::Store> store;
    try {
      store = store_of(trial, rank);
      const auto group =
          trial.has_group ? c10::make_intrusive<GroupOverStore>(store, rank, trial.ranks) : nullptr;
      fault = outcome({rank, trial.ranks, store, group, "test", std::chrono::seconds(60)});
    } catch (const std::exception& error) {
      fault = error.what();
    }
    if (!fault.empty()) std::cerr << "rank " << rank << " of " << trial.ranks << ": " << fault << "\n";
    std::ofstream(trial.folder / ("done" + std::to_string(rank))) << fault;
    for (int other = 0; rank == 0 && other < trial.ranks; ++other) {  // a TCPStore is rank 0's
      while (other != missing && !std::filesystem::exists(trial.folder / ("done" + std::to_string(other))))
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    std::_Exit(fault.empty() ? 0 : 1);
  }
  bool hold = true;
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    hold = hold && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  std::filesystem::remove_all(trial.folder);
  return hold;
}

/// What a rank holds of a matrix in rows and of a vector that all have.
RankState state_of(int rank, int ranks, std::int64_t columns = 3) {
  SavedValues values;
  values.mesh_shape = {ranks};
  for (std::int64_t r = 0; r < ranks; ++r) values.mesh_ranks.push_back(r);
  values.values = {{"matrix",
                    SavedValue::Kind::shards,
                    {"float32", "strided", 4, 0},
                    {17, columns},
                    {{Placement::Kind::shard, 0, 1}},
                    {}},
                   {"vector", SavedValue::Kind::shards, {"float32", "strided", 4, 0}, {5}, {{}}, {}}};
  RankState state;
  state.rank = rank;
  state.values = {encode(values)};
  state.holdings = {{hash_of(state.values[0]), {}}};
  return state;
}

SavePlanOfRank plan(Peers peers, const RankState& state, SavePlanCache& cache, const std::string& name) {
  int number = 0;
  const Job job{peers.rank, peers.ranks, [&](const auto& mine, const auto& answers) {
                  peers.name = name + std::to_string(++number);
                  return exchange(peers, mine, answers);
                }};
  return plan_save_together(state, cache, job);
}

std::string plans_twice(const Peers& peers) {
  std::vector<RankState> states;
  ValuesByHash known;
  for (int r = 0; r < peers.ranks; ++r) states.push_back(state_of(r, peers.ranks));
  learn_values(states[0], known);
  const GlobalSavePlan expected = plan_save(states, known);
  const RankState& mine = states[static_cast<std::size_t>(peers.rank)];
  SavePlanCache cache;
  for (const char* name : {"first", "second"}) {
    const SavePlanOfRank found = plan(peers, mine, cache, name);
    if (found.left_to_others != expected.left_to_others[static_cast<std::size_t>(peers.rank)])
      return "expected the plan that one process makes";
    if (found.unchanged != (name[0] == 's')) return "expected the second save, and only it, to be unchanged";
  }
  return "";
}

/// Runs what should fail and says what is missing in its message.
std::string expect_failure(const std::function<void()>& work, ErrorKind kind,
                           const std::vector<std::string>& words) {
  try {
    work();
  } catch (const Error& error) {
    if (error.kind != kind) return std::string("another kind of error: ") + error.what();
    for (const std::string& word : words) {
      if (std::string(error.what()).find(word) == std::string::npos)
        return "expected '" + word + "' in: " + error.what();
    }
    return "";
  }
  return "expected an error";
}

std::string last_rank_differs(const Peers& peers) {
  const int last = peers.ranks - 1;
  return expect_failure(
      [&] {
        SavePlanCache cache;
        plan(peers, state_of(peers.rank, peers.ranks, peers.rank == last ? 4 : 3), cache, "differs");
      },
      ErrorKind::mismatch,
      {"matrix: expected float32 [17, 3] as on rank",
       "found float32 [17, 4] on rank " + std::to_string(last)});
}

std::string one_rank_has_a_problem(const Peers& peers) {
  return expect_failure(
      [&] {
        on_all_ranks(job_over(peers), [&] {
          if (peers.rank == 1) throw Error(ErrorKind::mismatch, "model.norm.weight is missing");
        });
      },
      ErrorKind::mismatch, {"rank 1: model.norm.weight is missing"});
}

/// Rank 0 ends as soon as it has its error, and a TCPStore with it.
std::string rank_0_ends_with_its_error(const Peers& peers) {
  const std::string fault = one_rank_has_a_problem(peers);
  if (peers.rank == 0) std::_Exit(fault.empty() ? 0 : 1);
  return fault;
}

/// A text that several ranks say stands there once: of many lines only the first are told.
std::string all_ranks_but_one_have_a_problem(const Peers& peers) {
  const std::string last = std::to_string(peers.ranks - 1);
  return expect_failure(
      [&] {
        on_all_ranks(job_over(peers), [&] {
          if (peers.rank != 0) throw Error(ErrorKind::mismatch, "model.norm.weight is missing");
        });
      },
      ErrorKind::mismatch,
      {"because of\n  " + (peers.ranks == 2 ? std::string("rank 1") : "ranks 1-" + last) +
       ": model.norm.weight is missing"});
}

std::string nobody_has_a_problem(const Peers& peers) {
  on_all_ranks(job_over(peers), [] {});
  return "";
}

/// A job counts its rounds: the second is none of the first. What a rank's system call said, all hear.
std::string one_rank_of_a_job_fails(const Peers& peers) {
  const Job job = job_over(peers);
  on_all_ranks(job, [] {});
  try {
    on_all_ranks(job, [&] {
      if (job.rank == 1) throw Error(ErrorKind::io, "no space is left", ENOSPC);
    });
  } catch (const Error& error) {
    const bool is_told = std::string(error.what()).find("rank 1: no space is left") != std::string::npos;
    const bool is_whole = error.kind == ErrorKind::io && error.system_error == ENOSPC;
    on_all_ranks(job, [] {});
    return is_told && is_whole ? "" : std::string("another error: ") + error.what();
  }
  return "expected an error";
}

/// Rank 0 gives up soon; all others wait for it. On a busy machine more may be late than the one that is
/// missing, and are then named before it.
Peers with_an_impatient_rank_0(Peers peers) {
  if (peers.rank == 0) peers.timeout = std::chrono::milliseconds(700);
  return peers;
}

std::string last_rank_is_missing(const Peers& peers) {
  const auto start = Clock::now();
  const std::string fault = expect_failure(
      [&] {
        SavePlanCache cache;
        plan(with_an_impatient_rank_0(peers), state_of(peers.rank, peers.ranks), cache, "missing");
      },
      ErrorKind::io,
      {std::to_string(peers.ranks - 1) + " of " + std::to_string(peers.ranks) + " have not come", "700 ms"});
  return Clock::now() - start > std::chrono::seconds(50) ? "it took too long" : fault;
}

/// A first save goes well.
std::string last_rank_dies_between_saves(const Peers& peers) {
  const int last = peers.ranks - 1;
  SavePlanCache cache;
  plan(peers, state_of(peers.rank, peers.ranks), cache, "dies");
  if (peers.rank == last) std::_Exit(0);
  return expect_failure(
      [&] { plan(with_an_impatient_rank_0(peers), state_of(peers.rank, peers.ranks), cache, "again"); },
      ErrorKind::io,
      {"again1: ranks ", std::to_string(last) + " of " + std::to_string(peers.ranks) + " have not come",
       "700 ms"});
}

std::string rank_0_is_missing(const Peers& peers) {
  return expect_failure(
      [&] {
        SavePlanCache cache;
        Peers impatient = peers;
        impatient.timeout = std::chrono::milliseconds(700);
        plan(impatient, state_of(peers.rank, peers.ranks), cache, "missing");
      },
      ErrorKind::io, {"rank 0 has not answered within 1400 ms"});
}

}  // namespace

int main() {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("shardwright_exchange_" + std::to_string(getpid()));
  bool hold = true;
  const auto check = [&](const char* claim, const Trial& trial, const Outcome& outcome, int missing = -1,
                         Ends ends = Ends::at_once) {
    if (all_hold(trial, outcome, missing, ends)) return;
    hold = false;
    std::cerr << "not so over a " << (trial.over_tcp ? "TCPStore" : "FileStore") << ": " << claim << "\n";
  };
  for (const bool over_tcp : {false, true}) {
    for (const int ranks : {2, 4, 8}) {
      const Trial trial{folder, over_tcp, ranks};
      check("ranks plan together what one process plans, and again with hashes alone", trial, plans_twice);
      check("ranks without a problem go on", trial, nobody_has_a_problem);
      check("all ranks hear of one rank's problem", trial, one_rank_has_a_problem);
      check("all ranks hear of a problem though rank 0 ends then", trial, rank_0_ends_with_its_error);
      check("all ranks hear once of a problem that several have", trial, all_ranks_but_one_have_a_problem);
      check("all ranks of a job hear of one that fails", trial, one_rank_of_a_job_fails);
      check("all ranks hear which ranks differ in which tensor", trial, last_rank_differs);
      check("a rank that does not come is named by all others", trial, last_rank_is_missing, ranks - 1);
      check("a rank that dies between saves is named by all others", trial, last_rank_dies_between_saves,
            ranks - 1, Ends::later);
      const Trial with_group{folder, over_tcp, ranks, true};
      check("ranks plan over a process group what one process plans", with_group, plans_twice);
      check("all ranks of a group hear of one rank's problem", with_group, last_rank_differs);
      check("all ranks of a group hear of a problem though rank 0 ends then", with_group,
            rank_0_ends_with_its_error);
      check("a rank of a group that does not come is named by all others", with_group, last_rank_is_missing,
            ranks - 1);
    }
  }
  check("ranks do not wait for ever for rank 0", {folder, false, 4}, rank_0_is_missing, 0);
  return hold ? 0 : 1;
}
