#include "planner/load/plan_wire.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "planner/error.h"
#include "planner/load/transfers.h"
#include "planner/models/models.h"
#include "tests/planner/plain_lattice.h"
#include "tests/planner/random_checkpoint.h"
#include "tests/planner/random_layouts.h"

namespace shardwright {
namespace {

/// A random checkpoint and what one rank of a random mesh holds of it.
struct Job {
  Catalog catalog;
  std::vector<TensorSpec> specs;

  explicit Job(Random& random) {
    const RandomModel model = random_model(random);
    catalog = catalog_of(random, model.stored);
    for (const Native& native : model.natives) {
      const Mesh mesh = random_mesh(random, std::ssize(native.shape));
      Shape coordinate;
      for (const std::int64_t size : mesh.shape) coordinate.push_back(random.between(0, size - 1));
      specs.push_back(
          sharded_tensor(native.fqn, native.dtype, native.shape, mesh.shape, coordinate, mesh.placements));
    }
  }

  LoadPlan plan() const { return plan_load(specs, catalog, weight_map_for(catalog, "minimax_m3")); }
  std::string bytes() const { return encode_plan(plan(), catalog, specs); }
};

void expect_refusal(ErrorKind kind, const std::string& word, const std::string& bytes, const Job& job) {
  try {
    decode_plan(bytes, job.catalog, job.specs);
    ADD_FAILURE() << "expected a refusal with '" << word << "'";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, kind);
    EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
  }
}

/// Element by element.
void expect_written_once(const LoadPlan& plan, const std::vector<TensorSpec>& specs) {
  std::vector<std::vector<bool>> written;
  for (const TensorSpec& spec : specs) written.emplace_back(volume(spec.local_shape), false);
  for (const Transfer& transfer : plan.transfers) {
    const Shape& shape = specs[transfer.destination].local_shape;
    for_each_index(transfer.source_box.size, [&](const Shape& at) {
      const std::size_t element = flat(element_of(written_lattice(transfer), at), shape);
      ASSERT_FALSE(written[transfer.destination][element]);
      written[transfer.destination][element] = true;
    });
  }
  for (std::size_t s = 0; s < specs.size(); ++s) {
    const auto is_named = std::find(plan.not_loaded.begin(), plan.not_loaded.end(), specs[s].fqn);
    if (is_named != plan.not_loaded.end()) continue;
    ASSERT_EQ(std::count(written[s].begin(), written[s].end(), false), 0) << specs[s].fqn;
  }
}

TEST(plan_wire, what_was_encoded_is_decoded) {
  Random random(11);
  for (int round = 0; round < 40; ++round) {
    const Job job(random);
    const LoadPlan plan = job.plan();
    ASSERT_TRUE(decode_plan(encode_plan(plan, job.catalog, job.specs), job.catalog, job.specs) == plan);
  }
}

TEST(plan_wire, equal_plans_are_equal_bytes_and_others_are_not) {
  Random one(3);
  Random same(3);
  Random other(4);
  const std::string bytes = Job(one).bytes();
  EXPECT_EQ(bytes, Job(same).bytes());
  EXPECT_NE(bytes, Job(other).bytes());
}

TEST(plan_wire, another_version_is_refused) {
  Random random(5);
  const Job job(random);
  std::string bytes = job.bytes();
  ASSERT_EQ(bytes.substr(0, 2), "\x08\x03");  // field 1, the version
  bytes[1] = 2;
  expect_refusal(ErrorKind::malformed, "version 2", bytes, job);
}

TEST(plan_wire, a_plan_cut_short_anywhere_is_refused) {
  Random random(6);
  const Job job(random);
  const std::string bytes = job.bytes();
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_THROW(decode_plan(bytes.substr(0, length), job.catalog, job.specs), Error) << length;
  }
}

TEST(plan_wire, a_damaged_plan_is_refused_or_still_fills_every_tensor_once) {
  Random random(7);
  const Job job(random);
  const std::string bytes = job.bytes();
  for (int round = 0; round < 3000; ++round) {
    std::string damaged = bytes;
    damaged[static_cast<std::size_t>(random.between(0, std::ssize(bytes) - 1))] =
        static_cast<char>(random.between(0, 255));
    try {
      const LoadPlan plan = decode_plan(damaged, job.catalog, job.specs);
      for (const Transfer& transfer : plan.transfers) {
        ASSERT_TRUE(holds(whole(job.catalog.tensors.at(transfer.source).shape), transfer.source_box.offset));
        ASSERT_FALSE(is_empty(transfer.source_box));
      }
      expect_written_once(plan, job.specs);
    } catch (const Error&) {
    }
  }
}

TEST(plan_wire, a_plan_for_another_checkpoint_names_the_tensors) {
  Random random(8);
  Job job(random);
  const LoadPlan plan = job.plan();
  const std::string bytes = job.bytes();
  const std::string name = job.catalog.tensors.at(plan.transfers.front().source).name;
  std::erase_if(job.catalog.tensors, [&](const SourceTensor& tensor) { return tensor.name == name; });
  expect_refusal(ErrorKind::mismatch, name, bytes, job);
}

TEST(plan_wire, a_plan_for_another_rank_with_tensors_of_the_same_shapes_is_refused) {
  Random random(10);
  for (int round = 0; round < 100; ++round) {
    Job other(random);
    for (TensorSpec& spec : other.specs) {
      if (spec.boxes.empty() || spec.boxes[0].global.size.empty()) continue;
      const std::string bytes = other.bytes();
      std::int64_t& offset = spec.boxes[0].global.offset[0];
      offset += offset > 0 ? -1 : 1;
      expect_refusal(ErrorKind::mismatch, spec.fqn + ": expected a rank that holds", bytes, other);
      break;
    }
  }
}

TEST(plan_wire, fields_of_a_later_release_survive) {
  Random random(12);
  const Job job(random);
  const std::string later = job.bytes() + "\x82\xfa\x01\x03xyz";  // field 4000, three bytes
  EXPECT_EQ(encode_plan(decode_plan(later, job.catalog, job.specs), job.catalog, job.specs), later);
}

TEST(plan_wire, a_plan_for_another_trainer_names_the_tensors) {
  Random random(9);
  Job job(random);
  const std::string bytes = job.bytes();
  job.specs.front().dtype = job.specs.front().dtype == DType::F32 ? DType::BF16 : DType::F32;
  expect_refusal(ErrorKind::mismatch, job.specs.front().fqn, bytes, job);
}

}  // namespace
}  // namespace shardwright
