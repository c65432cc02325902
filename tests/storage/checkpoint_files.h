#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <string>
#include <string_view>

#include "planner/error.h"

namespace shardwright {

/// A new, empty directory, removed with all it holds when the test ends.
struct TemporaryDirectory {
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "shardwright_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make " + name);
    path = name;
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path); }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  std::filesystem::path operator/(std::string_view name) const { return path / name; }

  std::filesystem::path path;
};

inline void write_file(const std::filesystem::path& path, std::string_view bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline std::string little_endian(std::uint64_t value) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(value >> (8 * i));
  return bytes;
}

/// The bytes of a safetensors file with this header, true or false, and `data_bytes` zeros behind it.
inline std::string safetensors_bytes(std::string_view json, std::size_t data_bytes) {
  return little_endian(json.size()) + std::string(json) + std::string(data_bytes, '\0');
}

/// Header of one BF16 tensor of shape [count].
inline std::string one_tensor(const std::string& name, int count) {
  return "{\"" + name + "\":{\"dtype\":\"BF16\",\"shape\":[" + std::to_string(count) +
         "],\"data_offsets\":[0," + std::to_string(2 * count) + "]}}";
}

inline std::string one_tensor_file(const std::string& name, int count = 4) {
  return safetensors_bytes(one_tensor(name, count), 2 * static_cast<std::size_t>(count));
}

/// What `action` throws; an Error that says "no error" where it throws none.
template <typename Action>
Error error_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  return {ErrorKind::argument, "no error"};
}

/// `action` must throw an Error of this kind whose message holds all of these texts.
inline void expect_error(ErrorKind kind, std::initializer_list<std::string_view> texts,
                         const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.kind), static_cast<int>(kind)) << error.what();
    for (const std::string_view text : texts) {
      EXPECT_NE(std::string_view(error.what()).find(text), std::string_view::npos)
          << "expected: " << text << "\nfound: " << error.what();
    }
    return;
  }
  FAIL() << "expected an Error";
}

}  // namespace shardwright
