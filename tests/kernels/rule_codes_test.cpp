// Each instruction set's kernels of encode_by_rule.cpp against the definition of kernels/rule_codes.h, bit
// for bit; and that definition, with the scales, against the rules written again in slow_rules.h.

#include "kernels/rule_codes.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels/encode.h"
#include "kernels/instruction_sets.h"
#include "slow_rules.h"
#include "tiles.h"

namespace shardwright {
namespace {

constexpr DType value_dtypes[] = {DType::BF16, DType::F16, DType::F32};

float float_of(DType dtype, std::uint32_t bits) {
  if (dtype == DType::BF16) return float_of_bits(float_bits<bfloat16>(bits));
  if (dtype == DType::F16) return float_of_bits(float_bits<float16>(bits));
  return float_of_bits(bits);
}

std::string set_and_dtype(const InstructionSet& set, DType dtype) {
  return std::string(set.name) + " of " + std::string(name_of(dtype));
}

/// Values as they lie in memory.
struct Numbers {
  DType dtype;
  std::vector<std::uint8_t> memory;

  std::int64_t count() const { return static_cast<std::int64_t>(memory.size()) / bytes_of(dtype); }
  float at(std::int64_t i) const {
    return float_of(dtype, static_cast<std::uint32_t>(slow::load(memory.data(), i, dtype)));
  }
  void add(std::uint32_t bits) {
    const std::size_t size = memory.size();
    memory.resize(size + static_cast<std::size_t>(bytes_of(dtype)));
    slow::store(memory.data(), static_cast<std::int64_t>(size) / bytes_of(dtype), dtype, bits);
  }
};

/// All numbers of 16 bits; of F32 as many: any bits, those of each kind, and those beside a power of two.
Numbers numbers_of(Random& random, DType dtype) {
  Numbers run{dtype, {}};
  for (std::uint32_t i = 0; i < 0x10000; ++i) {
    if (dtype != DType::F32) {
      run.add(i);
    } else if (i < 0x4000) {
      run.add(static_cast<std::uint32_t>(random.number(0, 0xFFFFFFFF)));
    } else if (i < 0x4800) {
      run.add(static_cast<std::uint32_t>(random.number(0, 0x7FFFFF)) | (i & 1) << 31);
    } else if (i < 0x4810) {
      run.add(i % 2 == 0 ? 0x7F800001 + i : 0xFFFFFFFF);
    } else if (i < 0x4820) {
      run.add(i % 2 == 0 ? 0x7F800000 : 0xFF800000);
    } else {
      run.add((i << 16) + static_cast<std::uint32_t>(random.number(-2, 2)));
    }
  }
  return run;
}

/// Scales of all magnitudes, whole powers of two among them, and those that no rule has.
std::vector<float> factors(Random& random) {
  std::vector<float> found = {1.0F,
                              0x1p-127F,
                              0x1p-149F,
                              0x1p127F,
                              0.0F,
                              448.0F,
                              0.37F,
                              std::numeric_limits<float>::max(),
                              std::numeric_limits<float>::infinity()};
  for (int i = 0; i < 12; ++i) found.push_back(std::ldexp(1.0F, static_cast<int>(random.number(-126, 126))));
  for (int i = 0; i < 20; ++i)
    found.push_back(float_of_bits(static_cast<std::uint32_t>(random.number(1, 0x7F7FFFFF))));
  return found;
}

EncodeRun kernel_of(const EncodeRuns& runs, DType dtype) {
  return dtype == DType::BF16 ? runs.from_bf16 : dtype == DType::F16 ? runs.from_f16 : runs.from_f32;
}

template <CodeRule rule>
void expect_kernels_equal_the_definition() {
  Random random(7);
  for (const DType dtype : value_dtypes) {
    const Numbers run = numbers_of(random, dtype);
    const std::int64_t count = run.count();
    for (const float factor : factors(random)) {
      std::vector<std::uint8_t> expected(static_cast<std::size_t>(count * bits_of(rule.element) / 8));
      for (std::int64_t i = 0; i < count; ++i) {
        slow::store(expected.data(), i, rule.element, code_of<rule>(run.at(i), factor));
      }
      const std::vector<float> spread(static_cast<std::size_t>(count), factor);
      for (const InstructionSet* set : simd_instruction_sets()) {
        std::vector<std::uint8_t> found(expected.size());
        kernel_of(set->encode_by_rule[index_of(rule)], dtype)(run.memory.data(), spread.data(), count,
                                                              found.data());
        for (std::size_t byte = 0; byte < found.size(); ++byte) {
          ASSERT_EQ(found[byte], expected[byte])
              << set_and_dtype(*set, dtype) << " as " << name_of(rule.element) << ", factor " << factor
              << ", byte " << byte;
        }
      }
    }
  }
}

TEST(RuleCodes, OfEachInstructionSetAreThoseOfTheDefinitionForAllValuesOf16BitsAndAnyFactor) {
  [&]<std::size_t... index>(std::index_sequence<index...>) {
    (expect_kernels_equal_the_definition<code_rules[index]>(), ...);
  }
  (std::make_index_sequence<code_rules.size()>());
}

TEST(RuleCodes, OfRunsOfAnyLengthTouchNothingElse) {
  Random random(8);
  for (const DType dtype : value_dtypes) {
    const Numbers run = numbers_of(random, dtype);
    for (const CodeRule& rule : code_rules) {
      for (const InstructionSet* set : simd_instruction_sets()) {
        const EncodeRun kernel = kernel_of(set->encode_by_rule[index_of(rule)], dtype);
        const std::int64_t step = is_packed(rule.element) ? 2 : 1;
        const std::vector<float> ones(500, 0.01F);
        std::vector<std::uint8_t> whole(500);
        const std::int64_t first = random.number(0, 0xF000);
        const std::uint8_t* values = run.memory.data() + first * bytes_of(dtype);
        kernel(values, ones.data(), 500, whole.data());
        for (std::int64_t count = set->shortest_run; count < 500; count += step) {
          std::vector<std::uint8_t> part(500, 0xA5);
          kernel(values, ones.data(), count, part.data());
          const auto bytes = static_cast<std::ptrdiff_t>(count / step);
          ASSERT_TRUE(std::equal(part.begin(), part.begin() + bytes, whole.begin())) << set->name;
          ASSERT_TRUE(std::all_of(part.begin() + bytes, part.end(), [](int b) { return b == 0xA5; }));
        }
      }
    }
  }
}

/// `count` is even and large enough for each.
TEST(RuleCodes, MagnitudesOfEachInstructionSetAreTheLargestOfEachPiece) {
  Random random(9);
  for (const DType dtype : value_dtypes) {
    const Numbers run = numbers_of(random, dtype);
    for (int round = 0; round < 3000; ++round) {
      const std::int64_t length = random.one_of<std::int64_t>({1, 7, 16, 17, 32, 128, 1000});
      const std::int64_t first_length = random.number(1, length);
      const std::int64_t total = random.number(1, 300);
      const std::int64_t begin = random.number(0, run.count() - total);
      const bool leaves_out_nan = random.chance(2);
      std::vector<float> expected;
      for (std::int64_t i = 0, left = 0; i < total; ++i, --left) {
        if (left == 0) {
          left = i == 0 ? first_length : length;
          expected.push_back(0.0F);
        }
        const float value = std::fabs(run.at(begin + i));
        if (std::isnan(value)) {
          if (!leaves_out_nan) expected.back() = value;
        } else if (!(value <= expected.back()) && !std::isnan(expected.back())) {
          expected.back() = value;
        }
      }
      for (const InstructionSet* set : simd_instruction_sets()) {
        const MagnitudeRuns& runs = leaves_out_nan ? set->magnitudes_without_nan : set->magnitudes;
        const FindMagnitudes find = dtype == DType::BF16  ? runs.of_bf16
                                    : dtype == DType::F16 ? runs.of_f16
                                                          : runs.of_f32;
        std::vector<float> found(expected.size() + 1, 0.0F);
        find(run.memory.data() + begin * bytes_of(dtype), first_length, length, total, found.data());
        EXPECT_EQ(found.back(), 0.0F);
        for (std::size_t i = 0; i < expected.size(); ++i) {
          if (std::isnan(expected[i])) {
            ASSERT_EQ(bits_of_float(found[i]), 0x7FC00000U) << set_and_dtype(*set, dtype);
          } else {
            ASSERT_EQ(found[i], expected[i]) << set_and_dtype(*set, dtype) << ", piece " << i;
          }
        }
      }
    }
  }
}

/// Scales, and the codes of the block's largest value and of some beside it.
TEST(RuleScales, OfAllMagnitudesOf16BitsAndRandomOnesOf32AreThoseOfTheRuleWrittenInAnotherWay) {
  Random random(10);
  for (std::size_t number = 0; number <= static_cast<std::size_t>(EncodingRule::int4_compressed_tensors);
       ++number) {
    const auto rule = static_cast<EncodingRule>(number);
    const EncodedFormat& format = format_of(rule);
    for (const DType dtype : value_dtypes) {
      const std::uint32_t infinity = dtype == DType::BF16 ? 0x7F80 : dtype == DType::F16 ? 0x7C00 : 0x7F80;
      for (std::uint32_t bits = 0; bits < infinity; bits += 3) {
        std::uint32_t of_dtype = bits;
        if (dtype == DType::F32) of_dtype = bits << 16 | static_cast<std::uint32_t>(random.number(0, 0xFFFF));
        const float largest = float_of(dtype, of_dtype);
        const float of_tensor =
            std::max(largest, float_of(dtype, infinity / 2 << (dtype == DType::F32 ? 16 : 0)));
        const float global = global_scale(rule, dtype, of_tensor);
        ASSERT_EQ(static_cast<long double>(global), slow::global_of(rule, dtype, of_tensor));
        std::uint32_t stored = 0;
        float factor = 0;
        scales_of_magnitudes(rule, dtype, &largest, 1, global, &stored, &factor);
        const slow::EncodedBlock expected = slow::encoded_block(rule, dtype, {}, largest, global);
        if (!std::isfinite(factor)) continue;  // too small a block, which exports refuse
        ASSERT_EQ(stored, expected.scale)
            << format.name << ", largest " << largest << ", global " << global << " of " << name_of(dtype);
      }
    }
  }
}

}  // namespace
}  // namespace shardwright
