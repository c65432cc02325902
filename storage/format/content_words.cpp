#include "storage/format/content_words.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>

#include "planner/error.h"
#include "planner/problems.h"
#include "storage/files/entries.h"
#include "storage/files/input_file.h"
#include "storage/files/remote_calls.h"
#include "storage/format/checksum.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

constexpr std::uint64_t page_bytes = 4096;
constexpr std::uint64_t pages_of_file = 5;

std::string in_hex(std::uint64_t number) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text;
  for (int shift = 60; shift >= 0; shift -= 4) text += digits[(number >> shift) & 15];
  return text;
}

std::string digest_of(const std::string& text) { return in_hex(checksum_of(text.data(), text.size())); }

/// Of pages of a file, the first and the last among them.
std::uint64_t sample_of(const InputFile& file) {
  std::array<char, page_bytes> page{};
  std::uint64_t sum = 0;
  const std::uint64_t count = std::min(page_bytes, file.size());
  for (std::uint64_t n = 0; n < pages_of_file; ++n) {
    const std::uint64_t last = file.size() - count;
    const std::uint64_t offset = last / (pages_of_file - 1) * n;
    file.read(n + 1 == pages_of_file ? last : offset, page.data(), count);
    sum = checksum_of(page.data(), count, sum);
  }
  return sum;
}

}  // namespace

std::vector<std::string> content_words(const Catalog& catalog, int threads) {
  std::string files;
  for (const SourceFile& file : catalog.files)
    files += file.name + " " + std::to_string(file.size) + " " + file.version + "\n";
  std::string tensors;
  for (const SourceTensor& tensor : catalog.tensors) {
    tensors += stored_name(tensor) + " " + std::string(name_of(tensor.dtype)) + " " +
               to_string(tensor.shape) + " " + to_string(tensor.offset) + " " + std::to_string(tensor.file) +
               " " + std::to_string(tensor.begin) + "\n";
  }
  std::uint64_t checksums = 0;
  if (catalog.checksums != nullptr) {
    for (const RowChecksums& rows : *catalog.checksums)
      checksums = checksum_of(rows.sums.data(), rows.sums.size() * sizeof(rows.sums[0]), checksums);
  }
  std::vector<std::uint64_t> samples(catalog.files.size());
  // The version of an object tells its content, and its pages would be a request each.
  const bool is_here = !is_remote(catalog.directory) && target_at(catalog.directory).has_value();
  if (is_here) {
    for_each_index(catalog.files.size(), threads, [&](std::size_t f) {
      samples[f] = sample_of(InputFile(catalog.directory / catalog.files[f].name));
    });
  }
  const std::uint64_t sampled = checksum_of(samples.data(), samples.size() * sizeof(samples[0]));
  return {"names and sizes of files " + digest_of(files), "tensors " + digest_of(tensors),
          "config.json " + digest_of(catalog.config),
          "checksums " + (catalog.checksums == nullptr ? "none" : in_hex(checksums)),
          "pages of files " + (is_here ? in_hex(sampled) : "none")};
}

std::vector<std::string> differences_of_ranks(const std::vector<std::vector<std::string>>& words_of_ranks,
                                              const std::string& what) {
  std::vector<std::string> lines;
  for (std::size_t rank = 1; rank < words_of_ranks.size(); ++rank) {
    const std::vector<std::string>& expected = words_of_ranks.front();
    const std::vector<std::string>& found = words_of_ranks[rank];
    if (found == expected) continue;
    std::size_t i = 0;
    while (i < found.size() && i < expected.size() && found[i] == expected[i]) ++i;
    const auto word = [&](const std::vector<std::string>& words) {
      return i < words.size() ? what + words[i] : "nothing more";
    };
    lines.push_back("rank " + std::to_string(rank) + ": expected " + word(expected) +
                    " as on rank 0, found " + word(found));
  }
  return lines;
}

void expect_one_checkpoint(const std::vector<std::vector<std::string>>& words_of_ranks) {
  Problems problems{differences_of_ranks(words_of_ranks, "a checkpoint's ")};
  problems.throw_if_any(ErrorKind::mismatch,
                        "the ranks load from different checkpoints; nothing has been written. Give all of "
                        "them one path, or copies of one checkpoint:");
}

}  // namespace shardwright
