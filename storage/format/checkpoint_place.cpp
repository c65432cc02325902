#include "storage/format/checkpoint_place.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <system_error>
#include <vector>

#include "planner/error.h"
#include "storage/files/entries.h"
#include "storage/files/printable.h"
#include "storage/files/remote_calls.h"
#include "storage/format/checkpoint_in_place.h"
#include "storage/format/manifest.h"

namespace shardwright {

namespace {

namespace fs = std::filesystem;

constexpr std::array remote_schemes{"s3",    "s3a",   "gs",     "gcs", "hf",     "http",   "https", "file",
                                    "ftp",   "sftp",  "ssh",    "az",  "abfs",   "adl",    "abfss", "wasb",
                                    "wasbs", "dbfs",  "hdfs",   "oss", "viewfs", "cos",    "obs",   "tos",
                                    "r2",    "swift", "memory", "git", "azure",  "webhdfs"};

bool is_letter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }
bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-' || c == '.';
}

/// "s3" of s3://bucket, and of s3:/bucket where it is known; empty for a path of this machine.
std::string scheme_of(const std::string& text) {
  const std::size_t colon = text.find(':');
  if (colon == std::string::npos || colon < 2 || !is_letter(text.front())) return {};
  std::string scheme = text.substr(0, colon);
  if (!std::all_of(scheme.begin(), scheme.end(), [](char c) { return is_word(c) || c == '+'; })) return {};
  std::transform(scheme.begin(), scheme.end(), scheme.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (text.compare(colon, 3, "://") == 0) return scheme;
  const bool is_known =
      std::find(remote_schemes.begin(), remote_schemes.end(), scheme) != remote_schemes.end();
  return is_known && text.compare(colon, 2, ":/") == 0 ? scheme : std::string();
}

bool looks_like_hub_id(const fs::path& path) {
  const std::string& text = path.native();
  const std::size_t slash = text.find('/');
  if (slash == std::string::npos || slash == 0 || slash + 1 == text.size()) return false;
  if (text.find('/', slash + 1) != std::string::npos || text.front() == '.') return false;
  const bool is_plain = std::all_of(text.begin(), text.end(), [](char c) { return is_word(c) || c == '/'; });
  std::error_code code;
  return is_plain && !fs::exists(path.parent_path(), code);
}

bool is_there(const fs::path& path) {
  if (is_remote(path)) return entry_at(path).has_value();
  std::error_code code;
  return fs::exists(path, code);
}

/// The number of step-00000123; nothing for other names.
std::optional<std::string> step_of(const std::string& name) {
  if (name.rfind("step-", 0) != 0 || name.size() == 5) return std::nullopt;
  const std::string digits = name.substr(5);
  if (!std::all_of(digits.begin(), digits.end(), [](unsigned char c) { return std::isdigit(c) != 0; })) {
    return std::nullopt;
  }
  const std::size_t first = std::min(digits.find_first_not_of('0'), digits.size() - 1);
  return digits.substr(first);
}

std::vector<fs::path> entries_of(const fs::path& directory) {
  std::vector<fs::path> found;
  try {
    for (const std::string& name : names_in(directory)) found.push_back(directory / name);
  } catch (const Error&) {  // what cannot be listed gives no advice
  }
  return found;
}

bool holds_checkpoint(const fs::path& directory) {
  std::error_code code;
  if (is_remote(directory)) return false;  // not worth a request for each
  if (!fs::is_directory(directory, code) || directory.filename().native().front() == '.') return false;
  const std::vector<fs::path> entries = entries_of(directory);
  return std::any_of(entries.begin(), entries.end(), [](const fs::path& entry) {
    return entry.extension() == ".safetensors" || entry.filename() == torch_metadata_name ||
           entry.filename() == manifest_name;
  });
}

std::vector<std::string> names_of(const std::vector<fs::path>& paths) {
  std::vector<std::string> names;
  names.reserve(paths.size());
  for (const fs::path& path : paths) names.push_back(path.filename().string());
  return names;
}

bool holds_other_weights(const fs::path& file) {
  static constexpr std::array endings{".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz", ".h5", ".msgpack"};
  return std::find(endings.begin(), endings.end(), file.extension().native()) != endings.end();
}

}  // namespace

void expect_local_path(const fs::path& path) {
  const std::string& text = path.native();
  if (text.empty()) throw Error(ErrorKind::argument, "expected a path, found an empty text");
  if (text == "~" || text.starts_with("~/")) {
    throw Error(ErrorKind::argument,
                printable(text) +
                    ": expected a path, found one that a shell would have completed; pass "
                    "os.path.expanduser(path), or ./~ if it is meant");
  }
  const std::string scheme = scheme_of(text);
  if (scheme.empty()) return;
  const std::string shown = printable(text);
  if (scheme == "file") {
    throw Error(ErrorKind::argument, shown + ": expected a path, found an address; leave out file://");
  }
  const std::string advice =
      scheme == "hf" ? "download it first: hf download REPOSITORY --local-dir DIRECTORY"
                     : "download it first, or save to a directory of this machine and upload that";
  throw Error(ErrorKind::argument, shown + ": expected a path on this machine, found an address (" + scheme +
                                       "://); addresses are not taken here: " + advice);
}

void expect_location(const fs::path& path) {
  if (is_remote(path)) {
    remote_calls(path);
  } else {
    expect_local_path(path);
  }
}

fs::path resolved_path(const fs::path& path) {
  if (is_remote(path)) return path;
  std::error_code code;
  fs::path whole;
  do {
    whole = fs::absolute(path, code);  // which fails where the working directory has been removed
    if (!code) whole = fs::weakly_canonical(whole, code);
  } while (code == std::errc::interrupted);
  if (code) {
    throw Error(ErrorKind::io, printable(path.native()) + ": cannot resolve this path: " + code.message(),
                code.value());
  }
  if (!whole.has_filename() && whole.has_relative_path()) whole = whole.parent_path();  // it ended in a slash
  return whole;
}

std::string advice_for_absent(const fs::path& directory) {
  if (!looks_like_hub_id(directory)) return "give the directory of a checkpoint";
  const std::string id = printable(directory.native());
  const std::string name = printable(directory.filename().native());
  return "it looks like the id of a Hugging Face hub repository; download it first, hf download " + id +
         " --local-dir " + name + ", and give that directory";
}

bool is_unfinished_save(const fs::path& directory) {
  return is_there(directory / unfinished_save_name) && !is_there(directory / manifest_name);
}

std::string found_in_place_of_safetensors(const fs::path& directory) {
  const std::vector<fs::path> entries = entries_of(directory);
  if (entries.empty()) return "none; this directory is empty: give the directory of a checkpoint";
  if (is_there(directory / manifest_name)) {
    return "none but the manifest of a sharded checkpoint of training; load it with shardwright.load";
  }
  if (is_there(directory / torch_metadata_name)) {
    return "none; this is a checkpoint of torch's FileSystemWriter (.metadata): load it with "
           "shardwright.load, "
           "check it with shardwright verify";
  }
  std::vector<fs::path> steps;
  std::vector<fs::path> checkpoints;
  std::vector<fs::path> others;
  for (const fs::path& entry : entries) {
    if (step_of(entry.filename().string()) && is_there(entry / manifest_name)) steps.push_back(entry);
    if (holds_checkpoint(entry)) checkpoints.push_back(entry);
    if (holds_other_weights(entry)) others.push_back(entry);
  }
  if (!steps.empty()) {
    const auto newest = std::max_element(steps.begin(), steps.end(), [](const auto& a, const auto& b) {
      const std::string x = *step_of(a.filename().string());
      const std::string y = *step_of(b.filename().string());
      return x.size() != y.size() ? x.size() < y.size() : x < y;
    });
    return "the checkpoints of " + std::to_string(steps.size()) +
           " steps; give one of them, such as the latest, shardwright.latest(...): " +
           printable(newest->native());
  }
  if (is_unfinished_save(directory)) {
    return "none, but an unfinished save (" + std::string(unfinished_save_name) +
           "), which still runs or was interrupted: give a checkpoint whose save has ended";
  }
  if (!checkpoints.empty()) {
    return "none here, but in folders of it: " + listed(names_of(checkpoints)) + "; give one of them";
  }
  if (!others.empty()) {
    return "none, but weights of other formats: " + listed(names_of(others)) +
           "; convert them to safetensors, or download those";
  }
  return "none; give the directory of a Hugging Face checkpoint";
}

void expect_no_git_lfs_pointer(std::string_view text, const std::string& file) {
  if (!text.starts_with("version https://git-lfs.github.com/spec/")) return;
  throw Error(ErrorKind::malformed,
              file +
                  ": this is a Git LFS pointer, which stands for the file; get the file itself: run git lfs "
                  "pull in the repository, or hf download");
}

}  // namespace shardwright
