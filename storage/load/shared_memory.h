#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace shardwright {

/// Memory that processes of one node share. It has no name in any file system: it is gone with the last
/// process that holds it, and neither children nor programs that a process starts inherit it.
class SharedMemory {
 public:
  /// New memory of so many bytes, zeros, that nobody can make shorter. All of it is reserved, so that none of
  /// its pages can be lacking later. Throws Error(io), saying why, where the system has not so much or does
  /// not let this process share memory.
  static SharedMemory create(std::size_t bytes);

  /// The memory that another process, or this one, knows by that path(). It must keep it until this returns.
  /// Throws Error(io) if it cannot be opened, or is not memory of create() of so many bytes.
  static SharedMemory open(const std::string& path, std::size_t bytes);

  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&&) = delete;
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory();

  std::byte* data() const { return memory_; }
  std::size_t size() const { return bytes_; }

  /// By which processes of the same user and the same namespace of processes can open it. REQUIRES: create()
  /// has made it, and forget_path() was not called.
  std::string path() const;

  /// No other process opens it from here on: the descriptor is closed, which children would inherit.
  void forget_path();

 private:
  SharedMemory(int descriptor, std::size_t bytes);

  int descriptor_ = -1;
  std::byte* memory_ = nullptr;
  std::size_t bytes_ = 0;
  int process_ = -1;  // that mapped it
};

/// Names the machine and its namespace of processes: where two processes get the same, they can share memory
/// and see each other end. Empty where the system does not tell: such a process shares with none.
std::string this_node();

/// A process of this node. Trivial, so that it can lie in shared memory.
struct NodeProcess {
  long long number = 0;
  unsigned long long started = 0;  ///< tells it from a later process of that number; 0: not known

  static NodeProcess own();

  /// True once it has ended; false where that cannot be known.
  bool is_gone() const;
};

/// A process that uses shared memory, in which this lies, as zeros at first.
struct NodeMember {
  NodeProcess process;
  std::atomic<std::uint32_t> has_joined;  ///< once `process` says which

  void join();

  /// True once it has joined and ended.
  bool is_gone() const;
};

}  // namespace shardwright
