#include "storage/format/adapter_config.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <map>

#include "planner/error.h"
#include "planner/lora/adapter_fit.h"
#include "storage/files/entries.h"
#include "storage/files/printable.h"
#include "storage/format/adapter_file.h"
#include "storage/format/json_events.h"
#include "storage/format/text_file.h"

namespace shardwright {
namespace {

/// The names of all modules of the largest models, which a config may list, are 3 MB.
constexpr std::uint64_t most_config_bytes = 32'000'000;

constexpr char automodel_note_name[] = "automodel_peft_config.json";

/// A setting that makes an adapter more, or something other, than scaling · B A beside each weight, and the
/// value that leaves it one, as JSON. So do null, an empty list and an empty object.
struct PlainSetting {
  const char* name;
  const char* value;
};

constexpr PlainSetting plain_settings[] = {
    {"use_dora", "false"},
    {"bias", R"("none")"},
    {"lora_bias", "false"},
    {"fan_in_fan_out", "false"},
    {"use_qalora", "false"},
    {"use_bdlora", "false"},
    {"modules_to_save", "null"},
    {"trainable_token_indices", "null"},
    {"layer_replication", "null"},
    {"megatron_config", "null"},
    {"alora_invocation_tokens", "null"},
    {"velora_config", "null"},
    {"kasa_config", "null"},
    {"monteclora_config", "null"},
    {"arrow_config", "null"},
};

/// Initialisations that change the weights beside the adapter: it fits those only, not the released ones.
constexpr std::string_view initialisations_of_weights[] = {"pissa", "olora", "corda", "loftq", "lora_ga"};

/// Entries of a member that a message shows.
constexpr std::size_t most_shown = 8;

struct Value {
  enum class Kind : std::uint8_t { null, flag, number, text, list, object };

  Kind kind = Kind::null;
  std::string text = "null";  ///< of a text itself, of all others as JSON; of a list or an object none
  double number = 0;          ///< of a number
};

/// A member of the file, as deep as anything asks for it.
struct Member {
  Value value;
  std::vector<std::pair<std::string, Value>> entries;  ///< of a list, without names, or an object

  bool is_of_entries() const { return value.kind == Value::Kind::list || value.kind == Value::Kind::object; }
  bool says_nothing() const {
    return value.kind == Value::Kind::null || (is_of_entries() && entries.empty());
  }
};

const Member absent;

/// Takes the members of the file, and the first level of their lists and objects, out of the events.
class MemberReader : public JsonEvents {
 public:
  const Member& at(std::string_view name) const {
    const auto found = members_.find(name);
    return found == members_.end() ? absent : found->second;
  }
  bool has(std::string_view name) const { return members_.contains(name); }

  bool null() override { return take({}); }
  bool boolean(bool truth) override { return take({Value::Kind::flag, truth ? "true" : "false"}); }
  bool number_integer(std::int64_t number) override {
    return take({Value::Kind::number, std::to_string(number), static_cast<double>(number)});
  }
  bool number_unsigned(std::uint64_t number) override {
    return take({Value::Kind::number, std::to_string(number), static_cast<double>(number)});
  }
  bool number_float(double number, const std::string& text) override {
    return take({Value::Kind::number, text, number});
  }
  bool string(std::string& text) override { return take({Value::Kind::text, std::move(text)}); }
  bool start_object(std::size_t) override { return enter(Value::Kind::object); }
  bool start_array(std::size_t) override { return enter(Value::Kind::list); }
  bool end_object() override { return leave(); }
  bool end_array() override { return leave(); }

  bool key(std::string& name) override {
    if (depth_ == 1) {
      member_ = &members_[name];
      *member_ = {};  // of two members of a name the last counts, as for peft
      is_kept_whole_ = name == "alpha_pattern" || name == "target_parameters";
    } else if (depth_ == 2) {
      name_ = name;
    }
    return true;
  }

 private:
  bool take(Value value) {
    if (depth_ == 1) {
      member_->value = std::move(value);
    } else if (depth_ == 2 && (is_kept_whole_ || member_->entries.size() <= most_shown)) {
      member_->entries.emplace_back(name_, std::move(value));
    }
    return true;
  }

  bool enter(Value::Kind kind) {
    take({kind, ""});
    ++depth_;
    name_.clear();
    return true;
  }

  bool leave() {
    --depth_;
    return true;
  }

  std::map<std::string, Member, std::less<>> members_;
  Member* member_ = nullptr;  ///< the one whose value comes
  bool is_kept_whole_ = false;
  std::string name_;  ///< of its entry that comes
  int depth_ = 0;
};

std::string shown(const Value& value) {
  switch (value.kind) {
    case Value::Kind::text:
      return in_quotes(value.text);
    case Value::Kind::list:  // what is in it was not kept
      return "a list";
    case Value::Kind::object:
      return "an object";
    default:
      return printable(value.text, 100);
  }
}

std::string shown(const Member& member) {
  if (!member.is_of_entries()) return shown(member.value);
  const bool is_object = member.value.kind == Value::Kind::object;
  std::string text;
  for (std::size_t i = 0; i < std::min(member.entries.size(), most_shown); ++i) {
    const auto& [name, value] = member.entries[i];
    text += (i == 0 ? "" : ", ") + (is_object ? in_quotes(name) + ": " : "") + shown(value);
  }
  if (member.entries.size() > most_shown) text += ", ...";
  return is_object ? "{" + text + "}" : "[" + text + "]";
}

/// What a member should be and is not, in words; caught by parse_adapter_config(), which names the file.
struct Unexpected {
  std::string what;
};

double finite_number(const std::string& name, const Value& value) {
  if (value.kind != Value::Kind::number || !std::isfinite(value.number))
    throw Unexpected{name + ": expected a finite number, found " + shown(value)};
  return value.number;
}

std::int64_t whole_rank(const Value& value) {
  constexpr double most = 1LL << 53;
  const double number = value.number;
  if (number < 1 || number > most || std::trunc(number) != number)
    throw Unexpected{"r: expected a whole number above 0, found " + shown(value)};
  return static_cast<std::int64_t>(number);
}

AdapterConfig settings_of(const MemberReader& members) {
  for (const char* name : {"r", "lora_alpha"}) {
    if (!members.has(name)) throw Unexpected{std::string(name) + ": expected a number, found none"};
  }
  AdapterConfig config;
  config.r = whole_rank(members.at("r").value);
  config.lora_alpha = finite_number("lora_alpha", members.at("lora_alpha").value);
  if (const Member& flag = members.at("use_rslora"); !flag.says_nothing()) {
    if (flag.value.kind != Value::Kind::flag)
      throw Unexpected{"use_rslora: expected true or false, found " + shown(flag)};
    config.use_rslora = flag.value.text == "true";
  }
  if (const Member& alphas = members.at("alpha_pattern"); !alphas.says_nothing()) {
    if (alphas.value.kind != Value::Kind::object)
      throw Unexpected{"alpha_pattern: expected an object of patterns and numbers, found " + shown(alphas)};
    for (const auto& [pattern, alpha] : alphas.entries)
      config.alpha_pattern.emplace_back(pattern, finite_number("alpha_pattern " + pattern, alpha));
  }
  if (const Member& parameters = members.at("target_parameters"); !parameters.says_nothing()) {
    const bool are_texts =
        std::all_of(parameters.entries.begin(), parameters.entries.end(),
                    [](const auto& entry) { return entry.second.kind == Value::Kind::text; });
    if (parameters.value.kind != Value::Kind::list || !are_texts)
      throw Unexpected{"target_parameters: expected a list of names, found " + shown(parameters)};
    for (const auto& [none, name] : parameters.entries) config.target_parameters.push_back(name.text);
  }
  return config;
}

/// The sense that a version of peft writes, by its first three numbers.
std::optional<WrapperSense> sense_of_version(std::string_view version) {
  std::array<unsigned, 3> numbers{};
  std::size_t found = 0;
  const char* at = version.data();
  const char* end = at + version.size();
  while (found < numbers.size()) {
    const auto [rest, problem] = std::from_chars(at, end, numbers[found]);
    if (problem != std::errc()) break;
    ++found;
    if (rest == end || *rest != '.') break;
    at = rest + 1;
  }
  if (found < 2) return std::nullopt;
  const bool is_modern = numbers >= std::array<unsigned, 3>{0, 19, 1};
  return is_modern ? WrapperSense::modern : WrapperSense::legacy;
}

/// The sense by nemo-automodel's note; nothing where there is none, or another.
std::optional<WrapperSense> noted_sense(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / automodel_note_name;
  if (!entry_at(path)) return std::nullopt;
  MemberReader note;
  try {
    if (parse_json_object(read_text(path, most_config_bytes), note)) return std::nullopt;
  } catch (const Error& error) {  // not every one: the note says how tensors lie
    if (error.kind == ErrorKind::malformed) return std::nullopt;
    throw;
  }
  const std::string& layout = note.at("paramwrapper_layout").value.text;
  if (layout == "peft-0.19.1") return WrapperSense::modern;
  if (layout == "peft-0.18") return WrapperSense::legacy;
  return std::nullopt;
}

/// Throws Error(mismatch) for other than plain LoRA on released weights.
void expect_plain(const MemberReader& members, const std::string& file) {
  const auto refuse = [&](const std::string& name, const char* expected) {
    throw Error(ErrorKind::mismatch,
                file + ": \"" + name + "\" is " + shown(members.at(name)) + "; expected " + expected +
                    ", a plain LoRA adapter, as other kinds of adapters are not converted; "
                    "merge it into the weights with peft, or train without it");
  };
  if (members.has("peft_type") && shown(members.at("peft_type")) != R"("LORA")")
    refuse("peft_type", R"("LORA")");
  for (const auto& [name, plain] : plain_settings) {
    const Member& found = members.at(name);
    if (!found.says_nothing() && shown(found) != plain) refuse(name, plain);
  }
  const Value& initial = members.at("init_lora_weights").value;
  std::string way = initial.text;
  std::transform(way.begin(), way.end(), way.begin(),
                 [](char letter) { return letter >= 'A' && letter <= 'Z' ? char(letter + 32) : letter; });
  for (const std::string_view one : initialisations_of_weights) {
    if (!way.starts_with(one)) continue;
    throw Error(ErrorKind::mismatch,
                file + ": \"init_lora_weights\" is " + shown(initial) +
                    ", which changes the weights that the adapter is added to; expected an adapter for the "
                    "released weights: save it with peft's path_initial_model_for_weight_conversion");
  }
}

}  // namespace

AdapterConfig parse_adapter_config(std::string_view text, const std::string& file) {
  const auto malformed = [&](const std::string& what) {
    return Error(ErrorKind::malformed,
                 file + ": " + what + "; copy the adapter again, or save it again with peft");
  };
  MemberReader members;
  if (const auto fault = parse_json_object(text, members))
    throw malformed("expected the JSON of an adapter's configuration, but " + *fault);
  expect_plain(members, file);
  try {
    AdapterConfig config = settings_of(members);
    config.written = sense_of_version(members.at("peft_version").value.text);
    return config;
  } catch (const Unexpected& unexpected) {
    throw malformed(printable(unexpected.what));
  }
}

AdapterConfig read_adapter_config(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / adapter_config_name;
  const std::string file = printable(path.native());
  if (!entry_at(path)) {
    throw Error(ErrorKind::not_found,
                file + ": no such file; expected the directory that peft saved an adapter in", ENOENT);
  }
  AdapterConfig config = parse_adapter_config(read_text(path, most_config_bytes), file);
  if (const auto noted = noted_sense(directory)) config.written = noted;
  return config;
}

}  // namespace shardwright
