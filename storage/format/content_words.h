#pragma once

#include <string>
#include <vector>

#include "planner/names/catalog.h"

namespace shardwright {

/// What a checkpoint holds, in a few words by which ranks find out that they have been given different ones:
/// names and sizes of its files; names, dtypes, shapes and places of its tensors; config.json; its checksums,
/// where it has some; and 5 pages of 4 KiB of each file, evenly spread. Its path and its times are left out,
/// as nodes may have copies of their own. Two checkpoints whose words are alike may still differ in bytes
/// that no checksum tells of and that are in none of the pages. `threads`: 0 for all processors. Throws Error
/// as InputFile.
std::vector<std::string> content_words(const Catalog& catalog, int threads);

/// Says in what the words of ranks differ, a line for each rank whose words are not those of rank 0; empty:
/// in nothing. `what` begins each word, such as "template's ".
std::vector<std::string> differences_of_ranks(const std::vector<std::vector<std::string>>& words_of_ranks,
                                              const std::string& what = "");

/// Throws Error(mismatch) that names the ranks whose checkpoint is not that of rank 0.
void expect_one_checkpoint(const std::vector<std::vector<std::string>>& words_of_ranks);

}  // namespace shardwright
