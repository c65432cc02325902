#pragma once

#include <shardwright/torch.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <string>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <vector>

/// Says what does not hold, and ends the process.
inline void expect(bool holds, const std::string& claim) {
  if (holds) return;
  std::cerr << "not so: " << claim << std::endl;
  std::_Exit(1);
}

/// A new folder for one program.
inline std::filesystem::path new_folder() {
  std::string name = (std::filesystem::temp_directory_path() / "shardwright_XXXXXX").string();
  expect(mkdtemp(name.data()) != nullptr, "a folder can be made");
  return name;
}

/// Runs `work` on so many ranks, each a process of its own, which meet over a FileStore.
inline void on_peers(int ranks, const std::function<void(const shardwright::Peers&)>& work) {
  const std::filesystem::path folder = new_folder();
  std::vector<pid_t> children;
  for (int rank = 0; rank < ranks; ++rank) {
    children.push_back(fork());
    if (children.back() != 0) continue;
    try {
      const auto store = c10::make_intrusive<c10d::FileStore>((folder / "store").string(), ranks);
      work({rank, ranks, store, nullptr, "example"});
      std::_Exit(0);
    } catch (const std::exception& error) {
      std::cerr << "rank " << rank << ": " << error.what() << std::endl;
      std::_Exit(1);
    }
  }
  bool all = true;
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    all = all && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  std::filesystem::remove_all(folder);
  expect(all, "every rank has succeeded");
}

/// The same, as a job. A trainer has its ranks already, and gives job_over() its store or its process group.
inline void on_ranks(int ranks, const std::function<void(const shardwright::Job&)>& work) {
  on_peers(ranks, [&](const shardwright::Peers& peers) { work(shardwright::job_over(peers)); });
}
