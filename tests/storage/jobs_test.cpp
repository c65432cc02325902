#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>

#include "storage/format/read_catalog.h"
#include "storage/jobs/export_checkpoint.h"
#include "storage/jobs/load_checkpoint.h"
#include "storage/jobs/save_checkpoint.h"
#include "storage/tools/verify.h"
#include "tests/planner/random_layouts.h"
#include "tests/storage/checkpoint_files.h"
#include "tests/storage/threads_as_ranks.h"

namespace shardwright {
namespace {

/// A tensor whose elements say where they are: the one at a place of the row-major order is a number of its
/// own.
struct Saved {
  std::string name;
  DType dtype = DType::F32;
  Shape shape;

  std::uint64_t element(std::size_t place) const {
    return (place + 1) * 0x9E3779B97F4A7C15U + name.size() * 0x632BE59BD9B4E019U;
  }
};

std::int64_t ranks_of(const Mesh& mesh) {
  std::int64_t ranks = 1;
  for (const std::int64_t size : mesh.shape) ranks *= size;
  return ranks;
}

Shape coordinate_of(const Mesh& mesh, std::int64_t rank) {
  Shape coordinate(mesh.shape.size());
  for (std::size_t d = coordinate.size(); d-- > 0; rank /= mesh.shape[d])
    coordinate[d] = rank % mesh.shape[d];
  return coordinate;
}

/// What one rank holds of all tensors, each on a mesh of its own; a rank that is on none of them holds
/// nothing.
struct OfRank {
  std::vector<std::vector<std::uint8_t>> memory;
  std::vector<TensorSpec> specs;
  std::vector<IndexLists> lists;  // of specs[i]; and memory[i] is its memory

  OfRank(const std::vector<Saved>& tensors, const std::vector<Mesh>& meshes, int rank, bool filled) {
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      if (rank >= ranks_of(meshes[i])) continue;
      const Shape coordinate = coordinate_of(meshes[i], rank);
      lists.push_back(index_lists(tensors[i].shape, meshes[i], coordinate));
      const auto width = static_cast<std::size_t>(bytes_of(tensors[i].dtype));
      memory.emplace_back(static_cast<std::size_t>(volume(shape_of(lists.back()))) * width);
      if (filled) fill(tensors[i]);
      specs.push_back(sharded_tensor(tensors[i].name, tensors[i].dtype, tensors[i].shape, meshes[i].shape,
                                     coordinate, meshes[i].placements, memory.back().data()));
    }
  }

  void fill(const Saved& tensor) {
    const auto width = static_cast<std::size_t>(bytes_of(tensor.dtype));
    std::uint8_t* to = memory.back().data();
    for_each_index(shape_of(lists.back()), [&](const Shape& local) {
      const std::uint64_t value = tensor.element(flat(global_index(lists.back(), local), tensor.shape));
      std::memcpy(to, &value, width);
      to += width;
    });
  }
};

std::vector<Saved> random_tensors(Random& random) {
  std::vector<Saved> tensors;
  for (std::int64_t i = random.between(1, 6); i > 0; --i) {
    tensors.push_back({"tensor." + std::string(static_cast<std::size_t>(i), 'x'),
                       random.one_of<DType>({DType::F32, DType::BF16, DType::I64, DType::U8, DType::F8_E4M3}),
                       random_shape(random, random.between(0, 3), 1, 7)});
  }
  return tensors;
}

std::vector<Mesh> random_meshes(Random& random, const std::vector<Saved>& tensors) {
  std::vector<Mesh> meshes;
  for (const Saved& tensor : tensors)
    meshes.push_back(random_mesh(random, static_cast<std::int64_t>(tensor.shape.size())));
  return meshes;
}

int ranks_for(const std::vector<Mesh>& meshes) {
  std::int64_t most = 1;
  for (const Mesh& mesh : meshes) most = std::max(most, ranks_of(mesh));
  return static_cast<int>(most);
}

std::map<std::string, std::string> contents_of(const std::filesystem::path& directory) {
  std::map<std::string, std::string> contents;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    if (entry.is_regular_file()) contents[entry.path().string()] = read_file(entry.path());
  }
  return contents;
}

TEST(Jobs, WhatAnyRanksSaveAnyOthersResume) {
  Random random(14);
  for (int round = 0; round < 60; ++round) {
    const TemporaryDirectory directory;
    const std::vector<Saved> tensors = random_tensors(random);
    const std::vector<Mesh> before = random_meshes(random, tensors);
    for (const auto& error : ThreadsAsRanks(ranks_for(before)).run([&](const Job& job) {
           const OfRank held(tensors, before, job.rank, true);
           save_checkpoint(held.specs, directory / "saved", job, {.sync = false});
         })) {
      ASSERT_FALSE(error) << error->what();
    }
    ASSERT_EQ(verify_checkpoint(directory / "saved").problems, std::vector<std::string>()) << round;
    const std::vector<Mesh> after = random_meshes(random, tensors);
    for (const auto& error : ThreadsAsRanks(ranks_for(after)).run([&](const Job& job) {
           const OfRank expected(tensors, after, job.rank, true);
           const OfRank found(tensors, after, job.rank, false);
           CheckpointLoadOptions options;
           options.reading.checks = Checks::all;
           resume_checkpoint(found.specs, directory / "saved", job, options);
           if (found.memory != expected.memory)
             throw Error(ErrorKind::mismatch, "other elements than were saved");
         })) {
      ASSERT_FALSE(error) << error->what() << " in round " << round;
    }
  }
}

TEST(Jobs, AHeadThatIsTheEmbeddingIsExportedOnce) {
  for (const bool is_tied : {true, false}) {
    const TemporaryDirectory directory;
    for (const auto& error : ThreadsAsRanks(2).run([&](const Job& job) {
           std::vector<std::uint16_t> memory[2];
           for (std::vector<std::uint16_t>& one : memory) one.assign(4 * 3, 0x3F80);
           const auto part = [&](const char* fqn, std::vector<std::uint16_t>& of) {
             return sharded_tensor(fqn, DType::BF16, {7, 3}, {2}, {job.rank},
                                   {{Placement::Kind::shard, 0, 1}}, of.data());
           };
           ExportOptions options;
           options.layout = "huggingface";
           const ExportReport report = export_checkpoint(
               {part("embed_tokens.weight", memory[0]), part("lm_head.weight", memory[is_tied ? 0 : 1])},
               directory / "to", job, options);
           if (report.left_out != std::vector<std::string>(is_tied ? 1 : 0, "lm_head.weight"))
             throw Error(ErrorKind::mismatch, "other tensors left out");
         })) {
      ASSERT_FALSE(error) << error->what();
    }
    const Catalog catalog = read_catalog(directory / "to");
    EXPECT_EQ(catalog.find("lm_head.weight").empty(), is_tied);
    EXPECT_FALSE(catalog.find("embed_tokens.weight").empty());
  }
}

TEST(Jobs, RanksThatLoadFromDifferentCheckpointsAreToldSoAndNothingIsWritten) {
  const TemporaryDirectory directory;
  std::string bytes = one_tensor_file("w", 100'000);
  for (const char* name : {"one", "copy", "two"}) {
    bytes[bytes.size() / 2] = name[0] == 't' ? 1 : 0;
    write_file(directory / name / "model.safetensors", bytes);
  }
  const auto load_with = [&](const char* of_rank_1) {
    std::vector<std::vector<char>> memory(2, std::vector<char>(200'000, 7));
    const auto errors = ThreadsAsRanks(2).run([&](const Job& job) {
      std::vector<TensorSpec> specs{whole_tensor("w", DType::BF16, {100'000})};
      specs[0].data = memory[static_cast<std::size_t>(job.rank)].data();
      CheckpointLoadOptions options;
      options.layout = "huggingface";
      load_checkpoint(specs, directory / (job.rank == 0 ? "one" : of_rank_1), job, options);
    });
    for (const auto& of_rank : memory)
      EXPECT_EQ(of_rank == std::vector<char>(200'000, 7), errors[0].has_value());
    return errors;
  };
  for (const auto& error : load_with("copy")) EXPECT_FALSE(error) << error->what();
  for (const auto& error : load_with("two")) {
    ASSERT_TRUE(error);
    EXPECT_NE(std::string(error->what()).find("rank 1: expected a checkpoint's pages of files "),
              std::string::npos)
        << error->what();
  }
}

/// The job, whose rank `failing` cannot do what it does in that round, such as the one in which all write.
Job failing_in_round(const Job& job, int failing, int number) {
  Job fails = job;
  fails.round = [job, failing, number, now = 0](const auto& mine, const auto& answers) mutable {
    ++now;
    return job.round(
        [&]() -> std::string {
          if (job.rank != failing || now != number) return mine();
          throw Error(ErrorKind::io, "the disk is full", ENOSPC);
        },
        answers);
  };
  return fails;
}

TEST(Jobs, AllRanksHearOfOneThatFailsAndNothingIsPublished) {
  const TemporaryDirectory directory;
  const std::vector<Saved> tensors{{"weight", DType::F32, {6, 4}}, {"norm", DType::BF16, {5}}};
  const std::vector<Mesh> meshes{{{3}, {{Placement::Kind::shard, 0}}}, {{3}, {{}}}};
  const auto save = [&](const Job& job) {
    save_checkpoint(OfRank(tensors, meshes, job.rank, true).specs, directory / "saved", job, {.sync = false});
  };
  for (const bool is_there : {false, true}) {
    if (is_there) {
      for (const auto& error : ThreadsAsRanks(3).run(save)) ASSERT_FALSE(error);
    }
    const auto before = contents_of(directory.path);
    for (int failing = 0; failing < 3; ++failing) {
      // A save takes three rounds: the folder, planning, and writing.
      for (int round = 1; round <= 3; ++round) {
        for (const auto& error :
             ThreadsAsRanks(3).run([&](const Job& job) { save(failing_in_round(job, failing, round)); })) {
          ASSERT_TRUE(error) << "rank " << failing << " in round " << round;
          EXPECT_EQ(error->system_error, ENOSPC);
          EXPECT_NE(std::string(error->what()).find("rank " + std::to_string(failing)), std::string::npos);
        }
        EXPECT_EQ(contents_of(directory.path), before) << "rank " << failing << " in round " << round;
        EXPECT_EQ(std::filesystem::exists(directory / "saved"), is_there);
      }
    }
  }
}

TEST(Jobs, RanksThatDoNotFitReadNothing) {
  const TemporaryDirectory directory;
  const std::vector<Saved> tensors{{"weight", DType::F32, {6, 4}}};
  const std::vector<Mesh> meshes{{{2}, {{Placement::Kind::shard, 0}}}};
  ASSERT_FALSE(ThreadsAsRanks(1).run([&](const Job& job) {
    save_checkpoint(OfRank(tensors, {{{1}, {{}}}}, 0, true).specs, directory / "saved", job);
  })[0]);
  for (const auto& error : ThreadsAsRanks(2).run([&](const Job& job) {
         OfRank found(tensors, meshes, job.rank, false);
         const OfRank untouched = found;
         if (job.rank == 1) found.specs[0].fqn = "another name";
         try {
           resume_checkpoint(found.specs, directory / "saved", job);
         } catch (const Error&) {
           if (found.memory != untouched.memory) throw Error(ErrorKind::argument, "memory was written");
           throw;
         }
       })) {
    ASSERT_TRUE(error);
    EXPECT_EQ(error->kind, ErrorKind::mismatch);
    EXPECT_NE(std::string(error->what()).find("another name"), std::string::npos) << error->what();
    EXPECT_TRUE(error->partly_written.empty());
  }
}

TEST(Jobs, SaveTellsWhatItCannotSave) {
  const TemporaryDirectory directory;
  std::vector<float> memory(4);
  const TensorSpec good = whole_tensor("good", DType::F32, {4}, memory.data());
  TensorSpec meta = good;
  meta.fqn = "meta";
  meta.device = DeviceKind::meta;
  const TensorSpec none = whole_tensor("none", DType::F32, {4});
  const TensorSpec packed = whole_tensor("packed", DType::F4, {4}, memory.data());
  try {
    save_checkpoint({good, good, meta, none, packed}, directory / "saved");
    FAIL() << "these cannot be saved";
  } catch (const Error& error) {
    for (const char* name : {"good", "meta", "none", "packed"})
      EXPECT_NE(std::string(error.what()).find("\n  " + std::string(name) + ": "), std::string::npos)
          << error.what();
  }
  EXPECT_FALSE(std::filesystem::exists(directory / "saved"));
}

TEST(Jobs, EmptyTensorsAreSavedAndFound) {
  const TemporaryDirectory directory;
  std::vector<float> memory(2);
  save_checkpoint(
      {whole_tensor("empty", DType::F32, {0, 5}), whole_tensor("full", DType::F32, {2}, memory.data())},
      directory / "saved");
  EXPECT_EQ(verify_checkpoint(directory / "saved").tensors, 2);
  resume_checkpoint({whole_tensor("empty", DType::F32, {0, 5})}, directory / "saved");
}

TEST(Jobs, SavesKeepTheLastStepsAndWhatElseLiesThere) {
  const TemporaryDirectory directory;
  std::vector<float> memory(2);
  const std::vector<TensorSpec> specs{whole_tensor("weight", DType::F32, {2}, memory.data())};
  const auto save = [&](std::uint64_t step) {
    const SaveReport report =
        save_checkpoint(specs, step_path(directory.path, step), {}, {.keep_last = 2, .sync = false});
    EXPECT_EQ(report.warnings, std::vector<std::string>());
  };
  std::filesystem::create_directories(directory / "step-7");  // a folder of that step that is there
  write_file(directory / "notes.txt", "mine");
  for (const std::uint64_t step : {7, 100, 50, 123456789}) save(step);  // rolled back, once
  std::vector<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(directory.path))
    left.push_back(entry.path().filename().string());
  std::sort(left.begin(), left.end());
  EXPECT_EQ(left, (std::vector<std::string>{"notes.txt", "step-00000050", "step-123456789"}));
  EXPECT_EQ(latest_checkpoint(directory.path), directory / "step-123456789");
}

TEST(Jobs, AJobOfSeveralRanksNeedsARound) {
  EXPECT_THROW(round_of(
                   Job{1, 2, nullptr}, [] { return ""; }, [](const auto& all) { return all; }),
               Error);
}

}  // namespace
}  // namespace shardwright
