/// libFuzzer target: the readers of a checkpoint's files take any bytes. The first byte says which reader.
///
///     shardwright_files_fuzz --seeds=DIR      writes a corpus to begin with
///     shardwright_files_fuzz DIR              runs

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "planner/error.h"
#include "storage/format/adapter_config.h"
#include "storage/format/checksum.h"
#include "storage/format/checksums_file.h"
#include "storage/format/hf_index.h"
#include "storage/format/manifest.h"
#include "storage/format/safetensors.h"
#include "tests/fuzz/entry.h"

namespace shardwright {
namespace {

enum Reader : char { header, index, manifest, checksums, adapter, readers };

void require(bool holds) {
  if (!holds) std::abort();
}

std::string varint(std::uint64_t number) {
  std::string bytes;
  for (; number >= 0x80; number >>= 7) bytes += static_cast<char>(number | 0x80);
  return bytes + static_cast<char>(number);
}

/// The file of a manifest or of checksums, whose own checksum is right: else no fuzzer gets past it
/// (wire::ManifestFile, wire::ChecksumsFile).
std::string checked_file(std::string_view bytes) {
  std::uint64_t checksum = checksum_of(bytes.data(), bytes.size());
  std::string file = "\x0a" + varint(bytes.size()) + std::string(bytes) + "\x11";
  for (int byte = 0; byte < 8; ++byte, checksum >>= 8) file += static_cast<char>(checksum);
  return file;
}

void read(char reader, std::string_view bytes) {
  switch (reader) {
    case header:
      for (const SourceTensor& tensor : parse_safetensors_header(bytes, bytes.size() + 50, "file").tensors)
        require(tensor.begin <= tensor.end && tensor.end <= bytes.size() + 50);
      break;
    case index:
      for (const HfIndex index = parse_hf_index(bytes, "file"); const HfIndex::Entry& entry : index.entries)
        require(entry.file < index.files.size());
      break;
    case manifest:
      decode_manifest(encode_manifest(decode_manifest(checked_file(bytes), "file")), "file");
      break;
    case adapter:
      require(parse_adapter_config(bytes, "file").r > 0);
      break;
    default: {
      const Checksums decoded = decode_checksums(checked_file(bytes), "file");
      const Checksums again = decode_checksums(encode_checksums(decoded), "file");
      require(again.files.size() == decoded.files.size() && again.tensors.size() == decoded.tensors.size());
    }
  }
}

void write_seeds(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  int number = 0;
  const auto write = [&](Reader reader, std::string_view bytes) {
    std::ofstream(folder / std::to_string(number++), std::ios::binary) << static_cast<char>(reader) << bytes;
  };
  write(header, R"({"__metadata__":{"DCP_SHARDING_INFO":"{\"a\":{\"saved_offsets\":[0,4]}}","format":"pt"},)"
                R"("a":{"dtype":"BF16","shape":[3,5],"data_offsets":[0,30]},)"
                R"("b":{"dtype":"F4","shape":[24],"data_offsets":[30,42]}})");
  write(index, R"({"metadata":{"total_size":42},"weight_map":{"a":"x/1.safetensors","b":"2.safetensors"}})");
  write(adapter, R"({"peft_type":"LORA","r":4,"lora_alpha":8,"alpha_pattern":{"q":1.5},"use_dora":false,)"
                 R"("target_parameters":["a.b"],"peft_version":"0.19.1"})");
  Manifest whole;
  whole.files = {{"a.safetensors", 110, 100, 1}, {"b.bin", 20, 0, 2}};
  whole.tensors = {{"t",
                    "bfloat16",
                    "BF16",
                    2,
                    {2, 3},
                    true,
                    false,
                    {{{{0, 0}, {1, 3}}, {0, {100, 106, {7}}}}, {{{1, 0}, {1, 3}}, {1, {0, 6, {8}}}}}}};
  whole.objects = {{"object", {1, {8, 20, {13}}}}};
  const auto write_unchecked = [&](Reader reader, std::string_view file) {
    const std::size_t begin = file[1] < 0 ? 3 : 2;  // behind a tag, and a length of one byte or two
    write(reader, file.substr(begin, file.size() - begin - 9));
  };
  write_unchecked(manifest, encode_manifest(whole));
  write_unchecked(checksums, encode_checksums({{{"model.safetensors", 110, 100, 1}},
                                               {{"config.json", 20, 0, 2}},
                                               {{"t", {{4, 12}, {7, 8}}}, {"u", {{12}, {9}}}}}));
}

}  // namespace

const FuzzTarget fuzz_target{readers, read, write_seeds};

}  // namespace shardwright
