#include "storage/boxes/box_reading.h"

#include <gtest/gtest.h>

#include "planner/models/models.h"
#include "tests/planner/random_checkpoint.h"

namespace shardwright {
namespace {

std::vector<ReadTask> cut_into_tasks(const LoadPlan& plan, const Catalog& catalog,
                                     std::uint64_t buffer_bytes) {
  std::vector<ReadTask> tasks;
  ReadTask task;
  for (TaskCutter cutter(plan, catalog, buffer_bytes); cutter.next(task);) tasks.push_back(task);
  return tasks;
}

std::uint64_t position(const Shape& index, const Shape& strides) {
  std::int64_t sum = 0;
  for (std::size_t d = 0; d < index.size(); ++d) sum += index[d] * strides[d];
  return static_cast<std::uint64_t>(sum);
}

/// The positions in the file of the bytes that the reading puts into staging, in that order.
std::vector<std::uint64_t> staging_after(const BoxReading& reading) {
  std::vector<std::uint64_t> staging;
  const auto read = [&](std::uint64_t begin, std::uint64_t length) {
    for (std::uint64_t byte = 0; byte < length; ++byte) staging.push_back(begin + byte);
  };
  if (reading.in_one_request) {
    read(reading.begin, reading.staged_bytes);
    return staging;
  }
  Shape counts, strides;
  for (std::size_t d = 0; d < reading.run_counts.size(); ++d) {
    counts.push_back(static_cast<std::int64_t>(reading.run_counts[d]));
    strides.push_back(static_cast<std::int64_t>(reading.run_strides[d]));
  }
  for_each_index(counts,
                 [&](const Shape& run) { read(reading.begin + position(run, strides), reading.run_bytes); });
  return staging;
}

TEST(box_reading, reads_no_more_than_a_twentieth_beside_runs_of_a_page) {
  const auto read = [](std::int64_t columns, std::int64_t taken, const ReadCosts& costs) {
    return reading_of(0, {64, columns}, 2, {{0, 0}, {64, taken}}, costs).staged_bytes;
  };
  const std::uint64_t rows = 64;
  EXPECT_EQ(read(4096, 2048, costs_of_cached_files), rows * 4096);               // half of each row: a page
  EXPECT_EQ(read(4096, 2047, costs_of_cached_files), (rows - 1) * 8192 + 4094);  // less than a page
  EXPECT_EQ(read(2100, 2048, costs_of_cached_files), (rows - 1) * 4200 + 4096);  // little beside it
  EXPECT_EQ(read(4096, 2048, costs_of_files_on_disk),
            (rows - 1) * 8192 + 4096);  // a disk's requests cost more
}

TEST(box_reading, stages_every_byte_where_its_strides_say_and_reads_gaps_only_where_that_costs_less) {
  Random random(1);
  int split = 0;
  for (int round = 0; round < 600; ++round) {
    const std::int64_t rank = random.between(0, 4);
    Shape shape = random_shape(random, rank, 1, 4);
    if (rank > 0) shape[static_cast<std::size_t>(random.between(0, rank - 1))] = random.between(1, 3000);
    const Box box = random_box(random, shape, 1);
    const auto element = static_cast<std::uint64_t>(random.one_of<int>({1, 2, 4, 8}));
    const auto begin = static_cast<std::uint64_t>(random.between(0, 1000));
    const std::uint64_t per_request = static_cast<std::uint64_t>(random.one_of<int>({0, 500, 4096, 10000}));
    const ReadCosts costs{static_cast<double>(per_request), 1};
    const BoxReading reading = reading_of(begin, shape, element, box, costs);

    std::vector<std::uint64_t> needed;  // positions in the file
    const std::vector<std::uint64_t> staging = staging_after(reading);
    ASSERT_EQ(reading.staged_bytes, staging.size());
    for_each_index(box.size, [&](const Shape& step) {
      for (std::uint64_t byte = 0; byte < element; ++byte) {
        needed.push_back(begin + flat(plus(step, box.offset), shape) * element + byte);
        ASSERT_EQ(staging.at(position(step, reading.staged_strides) * element + byte), needed.back());
      }
    });
    std::uint64_t runs = 1;
    for (std::size_t i = 1; i < needed.size(); ++i) runs += needed[i] != needed[i - 1] + 1;
    const std::uint64_t gaps = needed.back() - needed.front() + 1 - needed.size();
    if (gaps <= (runs - 1) * per_request) {
      ASSERT_EQ(reading.requests, 1U);
      ASSERT_EQ(staging.size(), needed.size() + gaps);
    } else {
      ASSERT_EQ(reading.requests, runs);
      ASSERT_EQ(staging.size(), needed.size());
      ++split;
    }
  }
  EXPECT_GT(split, 30);
}

TEST(box_reading, tasks_tile_the_transfers_in_their_order_with_their_scales_and_fit_the_buffer) {
  Random random(2);
  std::size_t cuts = 0;
  for (int round = 0; round < 20; ++round) {
    const RandomModel model = random_model(random, random.once_in(4) ? 400 : 200);
    const Catalog catalog = catalog_of(random, model.stored);
    std::vector<TensorSpec> specs;
    for (const Native& native : model.natives) {
      const Mesh mesh = random_mesh(random, std::ssize(native.shape));
      specs.push_back(sharded_tensor(native.fqn, native.dtype, native.shape, mesh.shape,
                                     Shape(mesh.shape.size(), 0), mesh.placements));
    }
    const LoadPlan plan = plan_load(specs, catalog, weight_map_for(catalog, "minimax_m3"));
    const auto buffer = static_cast<std::uint64_t>(random.between(4096, 12000));
    const std::vector<ReadTask> tasks = cut_into_tasks(plan, catalog, buffer);
    std::size_t next = 0;
    for (std::uint32_t t = 0; t < plan.transfers.size(); ++t) {
      const Transfer& transfer = plan.transfers[t];
      std::vector<int> count(static_cast<std::size_t>(volume(transfer.source_box.size)), 0);
      const std::size_t first = next;
      for (; next < tasks.size() && tasks[next].transfer == t; ++next) {
        const ReadTask& task = tasks[next];
        ASSERT_LE(scales_offset_in_staging(task) + task.scales.staged_bytes, buffer);
        ASSERT_GE(scales_offset_in_staging(task), task.weights.staged_bytes);
        const std::size_t scale_rank = transfer.scale_box.offset.size();
        Box needed_scales{Shape(scale_rank, 1 << 20),
                          Shape(scale_rank, 0)};  // grows to hold the scale of each element
        for_each_index(task.box.size, [&](const Shape& step) {
          Shape in_transfer = plus(step, task.box.offset);
          for (std::size_t d = 0; d < step.size(); ++d) in_transfer[d] -= transfer.source_box.offset[d];
          ++count.at(flat(in_transfer, transfer.source_box.size));
          if (transfer.scales < 0) return;
          const Shape in_first_block = {in_transfer[0] + transfer.first_row_in_block,
                                        in_transfer[1] + transfer.first_column_in_block};
          const SourceTensor& scales = catalog.tensors[static_cast<std::size_t>(transfer.scales)];
          const Shape scale = plus(
              transfer.scale_box.offset,
              scale_element(scales.dtype, Catalog::global_shape(catalog.find(scales.name)), in_first_block)
                  .index);
          for (std::size_t d = 0; d < scale_rank; ++d) {
            needed_scales.offset[d] = std::min(needed_scales.offset[d], scale[d]);
            needed_scales.size[d] = std::max(needed_scales.size[d], scale[d] + 1);  // the end, for now
          }
        });
        if (transfer.scales < 0) {
          ASSERT_EQ(task.scales.staged_bytes, 0U);
          continue;
        }
        for (std::size_t d = 0; d < scale_rank; ++d) needed_scales.size[d] -= needed_scales.offset[d];
        ASSERT_EQ(task.scale_box, needed_scales);
        const SourceTensor& scales = catalog.tensors[static_cast<std::size_t>(transfer.scales)];
        ASSERT_EQ(task.scales.begin, scales.begin + flat(task.scale_box.offset, scales.shape) *
                                                        static_cast<std::size_t>(bytes_of(scales.dtype)));
      }
      ASSERT_EQ(count, std::vector<int>(count.size(), 1));
      cuts += next - first > 1;
    }
    ASSERT_EQ(next, tasks.size());
  }
  EXPECT_GT(cuts, 50U);
}

TEST(box_reading, rows_are_cut_at_multiples_of_64_if_so_many_fit) {
  Catalog catalog;
  catalog.files = {{"model.safetensors", 0}};
  for (const std::int64_t rows : {100, 129, 1000, 4096}) {
    catalog.tensors = {{"w", DType::F8_E4M3, {rows, 64}, {0, 0}, 0, 0, 0}};
    LoadPlan plan;
    plan.transfers.emplace_back();
    plan.transfers[0].source_box = whole({rows, 64});
    for (const std::uint64_t buffer : {4096, 5000, 6000, 20000, 100000}) {
      for (const ReadTask& task : cut_into_tasks(plan, catalog, buffer)) {
        EXPECT_EQ(task.box.offset[0] % 64, 0) << rows << " rows, buffer " << buffer;
        EXPECT_EQ(task.box.offset[1], 0);
      }
    }
  }
}

TEST(box_reading, a_row_longer_than_the_buffer_is_cut_along_its_columns) {
  Catalog catalog;
  catalog.files = {{"model.safetensors", 0}};
  catalog.tensors = {{"w", DType::F32, {3, 1, 5000}, {0, 0, 0}, 0, 0, 0}};
  LoadPlan plan;
  plan.transfers.emplace_back();
  plan.transfers[0].source_box = {{1, 0, 7}, {2, 1, 4990}};
  std::int64_t elements = 0;
  for (const ReadTask& task : cut_into_tasks(plan, catalog, 4096)) {
    EXPECT_LE(task.weights.staged_bytes, 4096U);
    elements += volume(task.box.size);
  }
  EXPECT_EQ(elements, 2 * 4990);
}

}  // namespace
}  // namespace shardwright
