#include "storage/format/kind_of.h"

#include <gtest/gtest.h>

#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

TEST(KindOf, TheFirstMarkThatIsThereSays) {
  const TemporaryDirectory folder;
  const auto kind = [&] { return std::string(name_of(kind_of(folder.path))); };
  EXPECT_EQ(kind(), "nothing");
  // Each of these comes before all that are there already.
  const std::pair<const char*, const char*> marks[]{
      {"config.json", "nothing"},
      {"shard-1-model-1-of-1.bin", "nothing"},
      {"adapter_model.safetensors", "adapter"},
      {"shard-00001-model-00001-of-0001.safetensors", "huggingface"},  // a digit is lacking
      {"model.safetensors", "huggingface"},
      {"shard-00001-model-00001-of-00001.safetensors", "torch_safetensors"},
      {"__0.metadata", "torch_of_ranks"},
      {".metadata", "torch"},
      {"shardwright.manifest", "sharded"},
  };
  for (const auto& [name, expected] : marks) {
    write_file(folder / name, "");
    EXPECT_EQ(kind(), expected) << name;
    EXPECT_EQ(is_of_trainer(kind_of(folder.path)),
              std::string(expected).starts_with("torch") || std::string(expected) == "sharded");
  }
}

TEST(KindOf, AnIndexAloneIsACheckpointOfHuggingFaceAndWhatIsNoFolderIsNothing) {
  const TemporaryDirectory folder;
  write_file(folder / "hf/model.safetensors.index.json", "{}");
  EXPECT_EQ(kind_of(folder / "hf"), PathKind::huggingface);
  EXPECT_EQ(kind_of(folder / "hf/model.safetensors.index.json"), PathKind::nothing);
  EXPECT_EQ(kind_of(folder / "absent"), PathKind::nothing);
  std::filesystem::create_symlink(folder / "gone", folder / "link");
  EXPECT_EQ(kind_of(folder / "link"), PathKind::nothing);
}

}  // namespace
}  // namespace shardwright
