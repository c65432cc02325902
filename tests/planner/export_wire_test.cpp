#include "planner/save/export_wire.h"

#include <gtest/gtest.h>

#include "tests/planner/random_layouts.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

Holdings random_holdings(Random& random) {
  Holdings holdings;
  for (std::int64_t t = random.between(0, 4); t > 0; --t) {
    const DType dtype = random.one_of<DType>({DType::BF16, DType::F32, DType::I64, DType::F8_E4M3});
    HeldBoxes held{{"t" + std::to_string(t), dtype, random_shape(random, random.between(0, 3), 0, 9)}, {}};
    for (std::int64_t b = random.between(0, 3); b > 0; --b)
      held.boxes.push_back(random_box(random, held.tensor.shape, 0));
    holdings.push_back(std::move(held));
  }
  return holdings;
}

std::vector<BlockColumn> random_columns(Random& random) {
  std::vector<BlockColumn> columns;
  for (std::int64_t c = random.between(0, 4); c > 0; --c) {
    columns.push_back({"w" + std::to_string(c), random.between(0, 1 << 20), random.between(0, 1 << 20), {}});
    for (std::int64_t r = random.between(0, 9); r > 0; --r)
      columns.back().scales.push_back(static_cast<std::uint8_t>(random.between(0, 255)));
  }
  return columns;
}

ExportShare random_share(Random& random) {
  ExportShare share{{}, random_holdings(random), random_columns(random), {}};
  for (const HeldBoxes& held : random_holdings(random)) share.tensors.push_back(held.tensor);
  for (std::int64_t f = random.between(0, 3); f > 0; --f)
    share.headers.push_back(static_cast<std::uint32_t>(random.between(0, 1 << 30)));
  return share;
}

TEST(export_wire, what_was_encoded_is_decoded) {
  Random random(1);
  for (int round = 0; round < 200; ++round) {
    const ExportHoldings holdings{random_holdings(random), random_columns(random)};
    ASSERT_EQ(decode_holdings(encode_holdings(holdings)), holdings);
    const ExportShare share = random_share(random);
    ASSERT_EQ(decode_share(encode_share(share)), share);
  }
}

TEST(export_wire, damaged_bytes_are_errors_or_another_message_and_nothing_worse) {
  Random random(2);
  int refused = 0;
  const auto survive = [&](const auto& decode) {
    try {
      decode();
    } catch (const Error& error) {
      ASSERT_EQ(static_cast<int>(error.kind), static_cast<int>(ErrorKind::malformed)) << error.what();
      ++refused;
    }
  };
  for (int round = 0; round < 300; ++round) {
    std::string bytes = encode_share(random_share(random));
    std::string holdings = encode_holdings({random_holdings(random), random_columns(random)});
    for (std::string* one : {&bytes, &holdings}) {
      if (random.once_in(2)) one->resize(static_cast<std::size_t>(random.between(0, std::ssize(*one))));
      for (std::int64_t i = random.between(0, 3); i > 0 && !one->empty(); --i)
        (*one)[static_cast<std::size_t>(random.between(0, std::ssize(*one) - 1))] =
            static_cast<char>(random.between(0, 255));
    }
    survive([&] { decode_share(bytes); });
    survive([&] { decode_holdings(holdings); });
  }
  EXPECT_GT(refused, 100);
}

TEST(export_wire, what_no_rank_of_this_version_says_is_an_error) {
  const auto refused = [](const std::string& bytes, std::initializer_list<std::string_view> texts) {
    expect_error(ErrorKind::malformed, texts, [&] { decode_holdings(bytes); });
    expect_error(ErrorKind::malformed, {"the same version of shardwright"}, [&] { decode_holdings(bytes); });
  };
  const auto with_part = [](const Box& box) {
    return encode_holdings({{{{"w", DType::BF16, {4}}, {box}}}, {}});
  };
  EXPECT_EQ(decode_holdings(with_part({{3}, {1}})).held.size(), 1u);
  refused(with_part({{3}, {2}}), {"w has a part outside of it"});
  refused(with_part({{-1}, {2}}), {"outside of it"});
  refused(with_part({{0}, {-1}}), {"outside of it"});
  refused(with_part({{0, 0}, {1, 1}}), {"outside of it"});
  refused(with_part({{0}, {1, 1}}), {"outside of it"});
  refused(encode_holdings({{}, {{"v", -1, 0, {}}}}), {"v has a negative block"});
  refused(encode_holdings({{}, {{"v", 0, -1, {}}}}), {"v has a negative block"});
  std::string bytes = with_part({{3}, {1}});
  bytes.replace(bytes.find("BF16"), 4, "BF17");
  refused(bytes, {"w has dtype BF17"});
  bytes = with_part({{3}, {1}});
  ASSERT_EQ(bytes[1], 1);  // the version, the first field
  bytes[1] = 2;
  refused(bytes, {"of version 1, found version 2"});
  refused("no message", {});
}

}  // namespace
}  // namespace shardwright
