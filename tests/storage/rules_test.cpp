/// Rules with random views, boxes and axes, from files to shards and back, against counting factors.

#include <gtest/gtest.h>

#include <set>

#include "planner/load/plan_wire.h"
#include "planner/load/request_list.h"
#include "planner/load/transfers.h"
#include "planner/names/companions.h"
#include "storage/boxes/place_from_memory.h"
#include "storage/load/load.h"
#include "tests/planner/plain_lattice.h"
#include "tests/planner/random_rules.h"
#include "tests/planner/rounds.h"
#include "tests/storage/decoded_checkpoint.h"
#include "tests/storage/random_export.h"
#include "tests/storage/ways_to_read.h"

namespace shardwright {
namespace {

/// What the rules are, when a test has found something.
std::string described(const RandomRules& rules) {
  std::string text;
  for (const Rule& rule : rules.map.rules)
    text += rule.hf.text() + ": " + rule.axes.text() + " of " + rule.native.text() + "\n";
  for (const Native& native : rules.model.natives) text += native.fqn + to_string(native.shape) + " ";
  return text;
}

void expect_loaded(const RandomRules& rules, const Checkpoint& checkpoint, const Destinations& destinations) {
  for (std::size_t n = 0; n < destinations.specs.size(); ++n) {
    const TensorSpec& spec = destinations.specs[n];
    std::set<const std::uint8_t*> written;
    for_each_index(spec.local_shape, [&](const Shape& at) {
      const HfElement hf = rules.element(n, global_index(destinations.lists[n], at));
      const std::uint8_t* found = address(spec, at);
      ASSERT_TRUE(is_decoded(checkpoint, hf, found, spec.dtype))
          << spec.fqn << to_string(at) << " from " << hf.name << to_string(hf.index) << "\n"
          << described(rules);
      for (int byte = 0; byte < bytes_of(spec.dtype); ++byte) written.insert(found + byte);
    });
    for (const std::uint8_t& byte : destinations.memory[n].bytes)
      ASSERT_TRUE(byte == Memory::untouched || written.contains(&byte)) << spec.fqn;
  }
}

TEST(rules, a_load_through_any_views_gives_every_element_its_own) {
  Random random(1);
  for (int round = 0; round < rounds(400); ++round) {
    const RandomRules rules(random);
    const Checkpoint checkpoint(random, rules.model.stored);
    const Destinations destinations(random, rules.model);
    LoadPlan plan;
    ASSERT_NO_THROW(plan = plan_load(destinations.specs, checkpoint.catalog, rules.map)) << described(rules);
    LoadOptions options;
    options.threads = static_cast<int>(random.between(1, 3));
    options.staging_bytes = static_cast<std::size_t>(random.one_of<int>({0, 4096, 9000, 1 << 20}));
    choose_reads(random, options);
    // The plan that was sent to another process is the same.
    const std::string bytes = encode_plan(plan, checkpoint.catalog, destinations.specs);
    ASSERT_TRUE(decode_plan(bytes, checkpoint.catalog, destinations.specs) == plan) << described(rules);
    load(plan, checkpoint.catalog, destinations.specs, options);
    ASSERT_NO_FATAL_FAILURE(expect_loaded(rules, checkpoint, destinations)) << "round " << round;
  }
}

TEST(rules, a_plan_reads_what_is_needed_and_asks_for_what_is_touched) {
  Random random(2);
  for (int round = 0; round < rounds(200); ++round) {
    const RandomRules rules(random);
    const Catalog catalog = catalog_of(random, rules.model.stored);
    const Destinations destinations(random, rules.model);
    const LoadPlan plan = plan_load(destinations.specs, catalog, rules.map);
    std::set<std::pair<std::string, Shape>> needed;
    std::set<std::string> asked;
    for (std::size_t n = 0; n < destinations.specs.size(); ++n) {
      for_each_index(destinations.specs[n].local_shape, [&](const Shape& at) {
        HfElement hf = rules.element(n, global_index(destinations.lists[n], at));
        const auto scales = scales_of(catalog, hf.name);
        if (!scales.empty()) {
          needed.emplace(scales.front().name,
                         scale_element(scales.front().dtype, Catalog::global_shape(scales), hf.index).index);
        }
        asked.insert(hf.name);
        needed.emplace(std::move(hf.name), std::move(hf.index));
      });
    }
    std::uint64_t bytes = 0;
    for (const auto& [name, index] : needed) bytes += bytes_of(catalog.find(name).front().dtype);
    ASSERT_EQ(plan.bytes_needed, bytes) << described(rules);
    std::set<std::string> requested;
    for (const Request& request : request_list(destinations.specs, rules.map, &catalog)) {
      if (request.placeholder) continue;
      ASSERT_TRUE(requested.insert(request.name).second) << "asked for twice: " << request.name;
      ASSERT_EQ(request.shape, Catalog::global_shape(catalog.find(request.name)));
    }
    ASSERT_TRUE(std::includes(requested.begin(), requested.end(), asked.begin(), asked.end()))
        << described(rules);
  }
}

TEST(rules, a_load_onto_devices_gives_every_element_its_own) {
  Random random(4);
  for (std::uint64_t round = 0; round < 100; ++round) {
    const RandomRules rules(random);
    const Checkpoint checkpoint(random, rules.model.stored);
    Destinations destinations(random, rules.model);
    DeviceDestinations there(round, random, destinations, 4);
    const LoadPlan plan = plan_load(there.specs, checkpoint.catalog, rules.map);
    load(plan, checkpoint.catalog, there.specs, there.options);
    ASSERT_EQ(there.devices.faults(), std::vector<std::string>()) << "round " << round;
    there.collect();
    ASSERT_NO_FATAL_FAILURE(expect_loaded(rules, checkpoint, destinations)) << "round " << round;
  }
}

TEST(rules, an_export_through_any_views_gives_every_element_its_own) {
  Random random(5);
  for (int round = 0; round < rounds(200); ++round) {
    const RandomRules rules(random);
    RandomModel model = rules.model;
    for (Native& native : model.natives) native.dtype = model.natives.front().dtype;
    const RandomExport state(random, model, &rules.map,
                             [&](std::size_t n, const Shape& at) { return rules.element(n, at); });
    const TemporaryDirectory folder;
    ExportWriting writing;
    writing.threads = static_cast<int>(random.between(1, 3));
    std::vector<std::vector<TensorSpec>> specs;
    for (const RankTensors& rank : state.ranks) specs.push_back(rank.specs);
    ExportLayout layout;
    ASSERT_NO_THROW(run_on_all_ranks(specs, state.request, folder / "to", writing, &layout))
        << described(rules);
    expect_files(folder / "to", layout, state.expected());
    if (testing::Test::HasFailure()) FAIL() << "round " << round << "\n" << described(rules);
  }
}

/// One transfer is left out, there twice, shorter, elsewhere, or with another step.
void change(Random& random, std::vector<Transfer>& transfers) {
  Transfer& transfer = transfers[static_cast<std::size_t>(random.between(0, std::ssize(transfers) - 1))];
  const auto factor =
      static_cast<std::size_t>(random.between(0, std::max<std::int64_t>(0, std::ssize(transfer.axes) - 1)));
  switch (random.between(0, 4)) {
    case 0:
      transfer = transfers.back();
      transfers.pop_back();
      break;
    case 1:
      transfers.push_back(Transfer(transfer));
      break;
    case 2:
      transfer.source_box.size[factor] = random.between(1, transfer.source_box.size[factor]);
      break;
    case 3:
      for (std::int64_t& offset : transfer.destination_offset) offset += random.between(-1, 1);
      break;
    default:
      if (transfer.steps.empty()) transfer.steps.assign(transfer.axes.size(), 1);
      transfer.steps[factor] = random.between(1, 4);
  }
}

/// How often each element is written; false if a transfer leaves the tensor, or meets an element twice, which
/// is refused before the proof. (That factors nest is asked there, too.)
bool count_writes(const Shape& shape, const std::vector<Transfer>& transfers, std::vector<int>& written) {
  written.assign(static_cast<std::size_t>(volume(shape)), 0);
  bool are_inside = true;
  const Box all = whole(shape);
  for (const Transfer& transfer : transfers) {
    const Lattice lattice = written_lattice(transfer);
    std::set<std::size_t> own;
    bool is_inside = true;
    for_each_index(transfer.source_box.size, [&](const Shape& at) {
      const Shape to = element_of(lattice, at);
      is_inside = is_inside && holds(all, to) && own.insert(flat(to, shape)).second;
      if (is_inside) ++written[flat(to, shape)];
    });
    EXPECT_TRUE(is_inside || !lies_inside(lattice, shape));
    are_inside = are_inside && lies_inside(lattice, shape);
  }
  return are_inside;
}

TEST(rules, the_proof_finds_what_marking_every_element_finds) {
  Random random(3);
  int faults = 0;
  for (int round = 0; round < rounds(400); ++round) {
    const RandomRules rules(random);
    const Catalog catalog = catalog_of(random, rules.model.stored);
    const Destinations destinations(random, rules.model);
    const TensorSpec& spec = destinations.specs.front();
    std::vector<Transfer> transfers;
    for (const Transfer& transfer : plan_load(destinations.specs, catalog, rules.map).transfers) {
      if (transfer.destination == 0) transfers.push_back(transfer);
    }
    if (transfers.empty()) continue;
    ASSERT_EQ(fault_of_writing(spec.local_shape, transfers), "");
    change(random, transfers);
    std::vector<int> written;
    const bool are_inside = count_writes(spec.local_shape, transfers, written);
    const bool is_right = std::all_of(written.begin(), written.end(), [](int times) { return times == 1; });
    if (!are_inside) continue;
    faults += is_right ? 0 : 1;
    ASSERT_EQ(fault_of_writing(spec.local_shape, transfers).empty(), is_right) << described(rules);
  }
  EXPECT_GT(faults, rounds(100));
}

}  // namespace
}  // namespace shardwright
