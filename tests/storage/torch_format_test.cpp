#include <gtest/gtest.h>

#include "storage/files/input_file.h"
#include "storage/format/checkpoint_in_place.h"
#include "storage/format/checksum.h"
#include "storage/format/pickle.h"
#include "storage/format/torch_metadata.h"
#include "storage/format/torch_stream.h"
#include "storage/jobs/save_checkpoint.h"
#include "storage/tools/verify.h"
#include "storage/write/rank_files.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

using namespace std::string_literals;

TEST(pickle, values_are_the_opcodes_of_protocol_2) {
  Pickle pickle;
  pickle.mark();
  for (const std::int64_t number : {0L, 255L, 256L, -1L, 1L << 31, -(1L << 40)}) pickle.integer(number);
  pickle.text("\xc3\xa4");
  pickle.truth(true);
  pickle.none();
  pickle.tuple();
  EXPECT_EQ(std::move(pickle).finish(),
            "\x80\x02(K\0K\xffJ\0\1\0\0J\xff\xff\xff\xff\x8a\x08\0\0\0\x80\0\0\0\0"
            "\x8a\x08\0\0\0\0\0\xff\xff\xffX\2\0\0\0\xc3\xa4\x88Nt."s);
}

TEST(pickle, what_comes_again_is_fetched_from_the_memo) {
  Pickle pickle;
  pickle.mark();
  pickle.shared_text("torch");
  pickle.shared_global("torch", "Size");
  pickle.shared_text("torch");
  pickle.shared_global("torch", "Size");
  pickle.tuple();
  EXPECT_EQ(std::move(pickle).finish(), "\x80\x02(X\5\0\0\0torchq\0ctorch\nSize\nq\1h\0h\1t."s);
  Pickle many;
  many.empty_list();
  many.mark();
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 300; ++i) many.shared_text(std::to_string(i));
  }
  many.appends();
  const std::string bytes = std::move(many).finish();
  EXPECT_NE(bytes.find("299r\x2b\1\0\0"s), std::string::npos);
  EXPECT_TRUE(bytes.ends_with("j\x2b\1\0\0e."s));
}

TEST(pickle, a_name_that_would_be_more_than_a_name_is_refused) {
  for (const char* name : {"float32\nos\nsystem", "", "1x", "a b"}) {
    Pickle pickle;
    expect_error(ErrorKind::argument, {"a name that Python can have"}, [&] { pickle.global("torch", name); });
  }
}

TEST(torch_stream, headers_end_at_multiples_of_64_with_the_count_of_bytes) {
  for (const Shape& shape : {Shape{}, {0}, {3, 0}, {7}, {2, 3}, {1 << 20, 1 << 15, 4}}) {
    for (const char* dtype : {"bool", "float32", "float8_e4m3fnuz"}) {
      const std::string header = torch_stream_header("w", dtype, 4, whole(shape));
      EXPECT_EQ(header.size() % torch_stream_alignment, 0);
      EXPECT_EQ(header, torch_stream_header("w", dtype, 4, whole(shape)));
      const auto bytes = 4 * static_cast<std::uint64_t>(volume(shape));
      EXPECT_TRUE(header.ends_with(little_endian(bytes)));
      EXPECT_NE(header, torch_stream_header("v", dtype, 4, whole(shape)));
    }
  }
}

TEST(rank_files, torchs_format_is_one_file_of_streams_and_objects_behind_them) {
  RankItems what;
  const auto tensor = [](std::string name, std::string dtype, std::uint32_t element_bytes, Shape shape) {
    return SavedValue{std::move(name),
                      SavedValue::Kind::shards,
                      {std::move(dtype), "strided", element_bytes, 0},
                      std::move(shape),
                      {},
                      {}};
  };
  what.values.values = {tensor("matrix", "int32", 4, {4, 3}),
                        {"object", SavedValue::Kind::object, {}, {}, {}, {}},
                        tensor("odd", "complex128", 16, {2})};
  what.items.add(0, {0, 0}, {2, 3});
  what.items.add(0, {2, 0}, {2, 3});
  what.items.add(1, {}, {});
  what.items.add(2, {0}, {2});
  what.object_bytes = {0, 0, 7, 0};
  std::vector<std::vector<std::byte>> bytes;
  for (const std::size_t size : {24, 24, 7, 32}) bytes.emplace_back(size, static_cast<std::byte>(size));
  const std::vector<TensorInMemory> memory{{bytes[0].data(), {2, 3}, {3, 1}, 4},
                                           {bytes[1].data(), {2, 3}, {3, 1}, 4},
                                           {bytes[2].data(), {7}, {1}, 1},
                                           {bytes[3].data(), {2}, {1}, 16}};
  const TemporaryDirectory folder;
  RankFilesOptions options;
  options.as_torch = true;
  RankFiles files(folder.path, 2, what, options);
  files.write(std::vector<std::size_t>{0, 1, 2, 3}, memory, 2);
  const WriteResults results = files.finish();
  ASSERT_EQ(results.files.size(), 1);
  EXPECT_TRUE(results.files[0].name.starts_with("rank-00002-00000-"));
  EXPECT_TRUE(results.files[0].name.ends_with(".distcp"));
  EXPECT_EQ(results.files[0].header_bytes, 0);
  const std::string file = read_file(folder / results.files[0].name);
  EXPECT_EQ(file.size(), results.files[0].size);
  std::uint64_t end = 0;
  for (const std::size_t item : {0, 1, 3}) {
    const StoredBytes& range = results.ranges[item].bytes;
    const std::string header =
        item == 3 ? torch_stream_header("odd", "complex128", 16, whole({2}))
                  : torch_stream_header("matrix", "int32", 4, {{item == 0 ? 0 : 2, 0}, {2, 3}});
    EXPECT_EQ(range.begin, (end + 63) / 64 * 64 + header.size());
    EXPECT_EQ(file.substr(range.begin - header.size(), header.size()), header);
    EXPECT_EQ(file.substr(range.begin, range.end - range.begin),
              std::string(bytes[item].size(), static_cast<char>(bytes[item].size())));
    end = range.end;
  }
  EXPECT_EQ(results.ranges[2].bytes.begin, end);
  EXPECT_EQ(results.ranges[2].bytes.end, file.size());
}

TEST(save_checkpoint, in_torchs_format_has_torchs_metadata_which_the_manifest_names) {
  const TemporaryDirectory folder;
  std::vector<float> values(12, 1.5F);
  const TensorSpec spec = whole_tensor("w", DType::F32, {3, 4}, values.data());
  SaveOptions options;
  options.format = ShardFormat::torch;
  save_checkpoint({spec}, folder.path, {}, options);
  const Manifest manifest = read_manifest(folder.path);
  EXPECT_TRUE(is_readable_by_torch(manifest));
  const std::string metadata = read_file(folder / torch_metadata_name);
  EXPECT_EQ(manifest.files.back(), (StoredFile{torch_metadata_name, metadata.size(), metadata.size(),
                                               checksum_of(metadata.data(), metadata.size())}));
  EXPECT_TRUE(verify_checkpoint(folder.path).problems.empty());
  const std::vector<CheckpointInPlace> found = checkpoints_in(folder.path);
  ASSERT_EQ(found.size(), 1);
  EXPECT_EQ(found[0].files.size(), 3);

  options.format = ShardFormat::safetensors;
  save_checkpoint({spec}, folder.path, {}, options);
  EXPECT_FALSE(std::filesystem::exists(folder / torch_metadata_name));
  EXPECT_FALSE(is_readable_by_torch(read_manifest(folder.path)));
}

TEST(checkpoints_in, metadata_that_no_manifest_names_or_that_has_changed_is_torchs) {
  const TemporaryDirectory folder;
  Manifest manifest;
  write_file(folder / torch_metadata_name, "pickle");
  manifest.files.push_back({torch_metadata_name, 6, 6, checksum_of("pickle", 6)});
  write_manifest(folder.path, manifest);
  EXPECT_EQ(checkpoints_in(folder.path).size(), 1);
  write_file(folder / torch_metadata_name, "pickl3");
  const std::vector<CheckpointInPlace> found = checkpoints_in(folder.path);
  ASSERT_EQ(found.size(), 2);
  EXPECT_EQ(found[0].changed, std::vector<std::string>{torch_metadata_name});
  EXPECT_EQ(found[1].kind, CheckpointKind::torch);
}

}  // namespace
}  // namespace shardwright
