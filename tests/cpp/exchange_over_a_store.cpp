/// Ranks (threads here, with a FileStore between them) load together or not at all.

#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <vector>

#include "planner/agreement.h"
#include "planner/error.h"

namespace {

constexpr int ranks = 3;

/// What each rank's agreement ended with: "" or the message of the error.
std::array<std::string, ranks> outcomes(const std::filesystem::path& file, const std::string& name,
                                        const std::array<std::string, ranks>& problems, int missing = -1) {
  std::array<std::string, ranks> results;
  std::vector<std::jthread> threads;
  for (int r = 0; r < ranks; ++r) {
    if (r == missing) continue;
    threads.emplace_back([&, r] {
      c10d::FileStore store(file.string(), ranks);
      const auto i = static_cast<std::size_t>(r);
      try {
        shardwright::agree(store, r, ranks, name, problems[i],
                           std::chrono::milliseconds(missing < 0 ? 20000 : 300));
      } catch (const shardwright::Error& error) {
        results[i] = error.what();
      }
    });
  }
  threads.clear();
  return results;
}

void expect(bool holds, const std::string& claim) {
  if (holds) return;
  std::cerr << "not so: " << claim << "\n";
  std::exit(1);
}

}  // namespace

int main() {
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / ("shardwright_store_" + std::to_string(getpid()));
  for (const std::string& outcome : outcomes(file, "first", {})) {
    expect(outcome.empty(), "ranks without a problem go on: " + outcome);
  }
  for (const std::string& outcome : outcomes(file, "second", {"", "model.norm.weight is missing", ""})) {
    expect(outcome.find("rank 1: model.norm.weight is missing") != std::string::npos,
           "all ranks hear of one rank's problem: " + outcome);
  }
  const auto late = outcomes(file, "third", {}, 2);
  expect(late[0].find("ranks 2 of 3") != std::string::npos, "a rank that does not come is named: " + late[0]);
  std::filesystem::remove(file);
  return 0;
}
