#include "storage/boxes/place_from_memory.h"

#include <gtest/gtest.h>

#include "planner/names/companions.h"
#include "tests/planner/rounds.h"
#include "tests/storage/decoded_checkpoint.h"

namespace shardwright {
namespace {

/// The tensors (or chunks) of a checkpoint in memory, laid out at random; rows of `contiguous` ones are side
/// by side.
struct Sources {
  std::vector<Memory> memory;
  std::vector<StridedMemory> sources;

  Sources(Random& random, const Checkpoint& checkpoint) : memory(checkpoint.catalog.tensors.size()) {
    for (std::size_t t = 0; t < memory.size(); ++t) {
      const SourceTensor& tensor = checkpoint.catalog.tensors[t];
      const auto element = static_cast<std::size_t>(bytes_of(tensor.dtype));
      TensorSpec spec = whole_tensor(tensor.name, tensor.dtype, tensor.shape);
      const bool contiguous =
          !tensor.shape.empty() && (is_float8(tensor.dtype) || is_scale_name(tensor.name));
      do {
        memory[t].give(random, spec);
      } while (contiguous && spec.local_strides.back() != 1);
      for_each_index(tensor.shape, [&](const Shape& at) {
        const std::size_t from = flat(plus(at, tensor.offset), checkpoint.tensors.at(tensor.name).shape);
        std::memcpy(address(spec, at), checkpoint.bytes.at(tensor.name).data() + from * element, element);
      });
      sources.push_back({static_cast<const std::byte*>(spec.data), spec.local_strides});
    }
  }
};

TEST(place_from_memory, every_element_is_what_plain_decoding_gives_and_nothing_else_is_touched) {
  Random random(1);
  for (int round = 0; round < rounds(40); ++round) {
    const RandomModel model = random_model(random, random.once_in(8) ? 300 : 70);
    const Checkpoint checkpoint(random, model.stored);
    const Sources memory(random, checkpoint);
    const Destinations destinations(random, model);
    place_from_memory(destinations.plan(checkpoint), checkpoint.catalog, memory.sources, destinations.specs,
                      static_cast<int>(random.between(1, 4)));
    ASSERT_NO_FATAL_FAILURE(destinations.expect_decoded(checkpoint)) << "round " << round;
  }
}

TEST(place_from_memory,
     a_source_that_is_not_there_or_laid_out_otherwise_is_refused_before_anything_is_written) {
  Random random(2);
  const Shape shape = {6, 40};
  RandomModel model;
  model.natives = {{"lm_head.weight", DType::BF16, shape}};
  model.stored = {{"language_model.lm_head.weight", DType::F8_E4M3, shape, {whole(shape)}},
                  {"language_model.lm_head.weight_scale_inv", DType::U8, {6, 2}, {whole({6, 2})}}};
  const Checkpoint checkpoint(random, model.stored);
  Destinations destinations(random, model);
  destinations.specs = {whole_tensor("lm_head.weight", DType::BF16, shape)};
  destinations.memory[0].give(random, destinations.specs[0]);
  const auto expect_refusal = [&](std::size_t index, StridedMemory source, std::string_view text) {
    Sources memory(random, checkpoint);
    memory.sources[index] = std::move(source);
    expect_error(ErrorKind::argument, {checkpoint.catalog.tensors[index].name, text}, [&] {
      place_from_memory(destinations.plan(checkpoint), checkpoint.catalog, memory.sources,
                        destinations.specs);
    });
    for (const std::uint8_t byte : destinations.memory[0].bytes) ASSERT_EQ(byte, Memory::untouched);
  };
  std::vector<std::byte> data(1000);
  expect_refusal(0, {}, "none");
  expect_refusal(1, {}, "none");
  expect_refusal(0, {nullptr, {40, 1}}, "none");
  expect_refusal(0, {data.data(), {40}}, "none");
  expect_refusal(0, {data.data(), {1, 6}}, "[1, 6]");
  expect_refusal(1, {data.data(), {1, 6}}, "[1, 6]");
}

}  // namespace
}  // namespace shardwright
