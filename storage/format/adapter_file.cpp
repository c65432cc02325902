#include "storage/format/adapter_file.h"

#include <algorithm>
#include <cerrno>
#include <tuple>
#include <utility>

#include "planner/error.h"
#include "storage/files/entries.h"
#include "storage/files/printable.h"
#include "storage/format/checkpoint_place.h"
#include "storage/format/safetensors.h"

namespace shardwright {
namespace {

constexpr char pickled_weights_name[] = "adapter_model.bin";

void expect_weights(const std::filesystem::path& directory) {
  const std::filesystem::path file = directory / adapter_weights_name;
  if (entry_at(file)) return;
  const bool is_pickled = entry_at(directory / pickled_weights_name).has_value();
  throw Error(ErrorKind::not_found,
              printable(file.native()) + ": no such file" +
                  (is_pickled ? std::string("; ") + pickled_weights_name +
                                    " is a pickle, which is not read: save with safe_serialization=True"
                              : ""),
              ENOENT);
}

}  // namespace

StoredAdapter read_adapter(const std::filesystem::path& directory) {
  if (!target_at(directory)) {
    throw Error(ErrorKind::not_found,
                printable(directory.native()) + ": no such directory; " + advice_for_absent(directory),
                ENOENT);
  }
  StoredAdapter adapter{read_adapter_config(directory), {}};
  expect_weights(directory);
  Catalog& catalog = adapter.catalog;
  catalog.directory = directory;
  catalog.files = {{adapter_weights_name, 0}};
  catalog.tensors =
      read_safetensors_header(directory / adapter_weights_name, catalog.files.front().size).tensors;
  std::sort(catalog.tensors.begin(), catalog.tensors.end(), [](const SourceTensor& a, const SourceTensor& b) {
    return std::tie(a.name, a.offset) < std::tie(b.name, b.offset);
  });
  return adapter;
}

}  // namespace shardwright
