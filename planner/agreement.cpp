#include "planner/agreement.h"

#include <cerrno>
#include <vector>

#include "planner/problems.h"

namespace shardwright {
namespace {

std::string key_of(const std::string& name, int rank) {
  return "shardwright/" + name + "/" + std::to_string(rank);
}

/// Waits for all keys, or says which ranks' are not there.
void wait_for_all(c10d::Store& store, int ranks, const std::string& name, std::chrono::milliseconds timeout) {
  std::vector<std::string> keys;
  for (int r = 0; r < ranks; ++r) keys.push_back(key_of(name, r));
  try {
    store.wait(keys, timeout);
  } catch (const std::exception&) {
    std::vector<std::int64_t> absent;
    for (int r = 0; r < ranks; ++r) {
      if (!store.check({keys[static_cast<std::size_t>(r)]})) absent.push_back(r);
    }
    if (absent.empty()) return;  // they came at the last moment
    throw Error(ErrorKind::io,
                name + ": ranks " + ranges_of(absent) + " of " + std::to_string(ranks) +
                    " have not come within " + std::to_string(timeout.count()) +
                    " ms; look for why they stopped",
                ETIMEDOUT);
  }
}

}  // namespace

void agree(c10d::Store& store, int rank, int ranks, const std::string& name, const std::string& problem,
           std::chrono::milliseconds timeout) {
  store.set(key_of(name, rank), std::vector<std::uint8_t>(problem.begin(), problem.end()));
  wait_for_all(store, ranks, name, timeout);
  Problems problems;
  for (int r = 0; r < ranks; ++r) {
    const std::vector<std::uint8_t> bytes = store.get(key_of(name, r));
    if (!bytes.empty())
      problems.add("rank " + std::to_string(r) + ": " + std::string(bytes.begin(), bytes.end()));
  }
  problems.throw_if_any(ErrorKind::mismatch, name + ": no rank goes on, because of");
}

}  // namespace shardwright
