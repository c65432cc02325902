#include "storage/write/written_beside.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "planner/error.h"
#include "storage/files/entries.h"
#include "storage/files/output_file.h"
#include "storage/files/printable.h"
#include "storage/format/checksum.h"
#include "storage/format/shadow_folder.h"

namespace shardwright {
namespace {

using SumsOfFiles = std::map<std::string, std::vector<std::uint64_t>>;

std::uint64_t sum_of(const std::string& content) { return checksum_of(content.data(), content.size()); }

/// Nothing for what is no file.
std::optional<std::uint64_t> sum_of_file(const std::filesystem::path& file) {
  const std::optional<struct stat> found = target_at(file);
  if (!found || !S_ISREG(found->st_mode)) return std::nullopt;
  return sum_of(bytes_of_file(file));
}

bool is_known(std::optional<std::uint64_t> sum, const std::vector<std::uint64_t>& sums) {
  return sum && std::find(sums.begin(), sums.end(), *sum) != sums.end();
}

/// What is no such record says nothing of any file.
SumsOfFiles record_of(const std::filesystem::path& folder) {
  SumsOfFiles record;
  const std::filesystem::path file = folder / written_beside_name;
  const std::optional<struct stat> found = target_at(file);
  if (!found || !S_ISREG(found->st_mode)) return record;
  const auto told = nlohmann::json::parse(bytes_of_file(file), nullptr, /*allow_exceptions=*/false);
  if (!told.is_object()) return record;
  for (const auto& [name, sums] : told.items()) {
    if (!sums.is_array()) continue;
    for (const auto& sum : sums) {
      if (sum.is_number_unsigned()) record[name].push_back(sum.get<std::uint64_t>());
    }
  }
  return record;
}

/// In one step, and in place of a link, not of what that leads to.
void replace_file(const std::filesystem::path& file, const std::string& content) {
  const std::filesystem::path aside =
      file.parent_path() / ("." + file.filename().string() + "-" + std::to_string(::getpid()) + ".tmp");
  try {
    write_whole_file(aside, content);
    if (std::rename(aside.c_str(), file.c_str()) != 0)
      throw Error(ErrorKind::io,
                  printable(file.native()) + ": cannot give a file this name: " + std::strerror(errno),
                  errno);
  } catch (...) {
    ::unlink(aside.c_str());
    throw;
  }
}

}  // namespace

void expect_replaceable(const std::filesystem::path& folder,
                        const std::map<std::string, std::optional<std::string>>& contents,
                        std::optional<bool> overwrite, const std::string& advice) {
  if (overwrite == true) return;
  SumsOfFiles record = overwrite ? SumsOfFiles() : record_of(folder);
  std::string others;
  for (const auto& [name, content] : contents) {
    if (!entry_at(folder / name)) continue;
    const std::optional<std::uint64_t> found = sum_of_file(folder / name);
    if (is_known(found, record[name]) || (found && content && *found == sum_of(*content))) continue;
    others += (others.empty() ? "" : ", ") + name;
  }
  if (others.empty()) return;
  throw Error(ErrorKind::io,
              others + " in " + printable(folder.native()) +
                  ": expected no such file, or one that was written here before and nobody has edited since; "
                  "nothing was written. " +
                  advice,
              EEXIST);
}

void write_beside(const std::filesystem::path& folder, const FileContents& contents) {
  SumsOfFiles record = record_of(folder);
  for (const auto& [name, content] : contents) {
    // A job that ends between record and file leaves the earlier one, which is known still.
    const std::optional<std::uint64_t> there = sum_of_file(folder / name);
    std::vector<std::uint64_t> sums;
    if (is_known(there, record[name])) sums.push_back(*there);
    sums.push_back(sum_of(content));
    record[name] = std::move(sums);
  }
  replace_file(folder / written_beside_name, nlohmann::json(record).dump(1));
  for (const auto& [name, content] : contents) replace_file(folder / name, content);
}

}  // namespace shardwright
