#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

namespace shardwright {

/// Writes one value as Python's pickle, protocol 2, which all of torch's readers take. Each call puts a value
/// on the unpickler's stack or changes those on top of it, as the opcodes do that Python's pickletools.py
/// describes.
class Pickle {
 public:
  Pickle() : bytes_("\x80\x02") {}

  void none() { bytes_ += 'N'; }
  void truth(bool value) { bytes_ += value ? '\x88' : '\x89'; }
  void integer(std::int64_t value);
  void text(std::string_view value);  ///< UTF-8

  /// A text that comes again and again: written once, then fetched from the memo.
  void shared_text(const std::string& value);

  /// A class or function. Throws Error(argument) for names that are not identifiers, joined by dots.
  void global(std::string_view module, std::string_view name);
  /// The same by the memo.
  void shared_global(std::string_view module, std::string_view name);

  void mark() { bytes_ += '('; }
  void tuple() { bytes_ += 't'; }  ///< of all down to the mark
  void empty_tuple() { bytes_ += ')'; }
  void empty_list() { bytes_ += ']'; }
  void append() { bytes_ += 'a'; }   ///< a value to the list below it
  void appends() { bytes_ += 'e'; }  ///< all down to the mark
  void empty_dict() { bytes_ += '}'; }
  void set_items() { bytes_ += 'u'; }  ///< keys and values down to the mark, in the dict below it

  void reduce() { bytes_ += 'R'; }         ///< calls what lies below a tuple with it
  void new_object() { bytes_ += '\x81'; }  ///< of the class below a tuple of arguments
  void build() { bytes_ += 'b'; }          ///< gives the object below it a state
  void persistent() { bytes_ += 'Q'; }     ///< the reader's own object for an id

  /// The pickle. Call it once, when one value is on the stack.
  std::string finish() && { return std::move(bytes_) + '.'; }

 private:
  template <typename Write>
  void from_memo(std::string key, const Write& write);

  std::string bytes_;
  std::unordered_map<std::string, std::uint32_t> memo_;
};

}  // namespace shardwright
