#include "kernels/instruction_sets.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels/decode.h"

namespace shardwright {
namespace {

constinit const InstructionSet scalar{};

std::atomic<const InstructionSet*> in_use{nullptr};

const std::vector<const InstructionSet*>& all_instruction_sets() {
  static const std::vector<const InstructionSet*> all = [] {
    std::vector<const InstructionSet*> sets = simd_instruction_sets();
    sets.push_back(&scalar);
    return sets;
  }();
  return all;
}

const InstructionSet* find(const std::string& name, const char* where) {
  if (name.empty()) return all_instruction_sets().front();
  std::string names;
  for (const InstructionSet* set : all_instruction_sets()) {
    if (name == set->name) return set;
    names += (names.empty() ? "" : ", ") + std::string(set->name);
  }
  throw std::invalid_argument(std::string(where) + " names the instruction set \"" + name +
                              "\"; this build on this machine has: " + names);
}

}  // namespace

const InstructionSet& instruction_set_in_use() {
  const InstructionSet* set = in_use.load(std::memory_order_acquire);
  if (set != nullptr) return *set;
  const char* wanted = std::getenv("SHARDWRIGHT_SIMD");
  const InstructionSet* first = find(wanted != nullptr ? wanted : "", "SHARDWRIGHT_SIMD");
  // Whoever comes first decides; a call of use_instruction_set in between wins.
  in_use.compare_exchange_strong(set, first, std::memory_order_acq_rel);
  return set != nullptr ? *set : *first;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet* set : all_instruction_sets()) names.emplace_back(set->name);
  return names;
}

std::string instruction_set() { return instruction_set_in_use().name; }

void use_instruction_set(const std::string& name) {
  in_use.store(find(name, "use_instruction_set()"), std::memory_order_release);
}

}  // namespace shardwright
