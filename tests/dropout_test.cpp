// The generator's known answers, the words that every ISA draws, and the statistics of the masks.
#include <array>

#include "kernels/dispatch.h"
#include "kernels/dropout/dropout_ref.h"
#include "tests/support/kernel_harness.h"

namespace xsr::kernels {
namespace {

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  std::array<uint32_t, 4> words;
  philox4x32(counter.data(), key.data(), words.data());
  return words;
}

// The known answers of Salmon et al.'s Random123 for philox4x32 with ten rounds.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ((std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}),
            philox({0, 0, 0, 0}, {0, 0}));
  EXPECT_EQ((std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}),
            philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}));
  EXPECT_EQ((std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}),
            philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}));
}

struct Kernel {
  const char* name;
  Isa isa;
  dropout_forward_f32_t* function;
};
const Kernel kKernels[] = {{"ref", Isa::kRef, dropout_forward_f32_ref},
                           {"avx2", Isa::kAvx2, dropout_forward_f32_avx2},
                           {"avx512", Isa::kAvx512, dropout_forward_f32_avx512}};

// A threshold equal to an element's word keeps it, one more drops it: so the mask tells the word,
// all 32 bits of it.
TEST(Dropout, EveryIsaDrawsTheWordsOfTheContract) {
  test::Random random(1);
  const int32_t C = 150;
  const std::vector<float> x(C, 1.0f);
  for (const Kernel& kernel : kKernels) {
    if (!isa_supported(kernel.isa)) continue;
    for (int trial = 0; trial < 300; ++trial) {
      const int32_t row = random.range(0, 1 << 30), column = random.range(0, C - 1);
      Dropout dropout;
      for (uint32_t& key : dropout.key) key = static_cast<uint32_t>(random.bits());
      dropout.step = static_cast<uint32_t>(random.bits());
      dropout.stream = static_cast<uint32_t>(random.bits());
      const uint32_t word = philox({static_cast<uint32_t>(column / 4), static_cast<uint32_t>(row),
                                    dropout.stream, dropout.step},
                                   {dropout.key[0], dropout.key[1]})[column % 4];
      std::vector<float> out(C);
      for (uint32_t more : {0u, 1u}) {
        dropout.threshold = word + more;
        // Row `row` alone is touched: with a stride of 0 every row stands at the start.
        kernel.function(x.data(), 0, row, row + 1, C, dropout, nullptr, 0, out.data(), 0);
        EXPECT_EQ(more == 0 ? 1.0f : 0.0f, out[column])
            << kernel.name << " row " << row << " column " << column;
      }
    }
  }
}

/// The mask of p over [rows, columns], 1 = kept.
std::vector<uint8_t> mask_of(double p, int32_t rows, int32_t columns, uint32_t key, uint32_t step,
                             uint32_t stream) {
  Dropout dropout;
  dropout.threshold = static_cast<uint32_t>(std::ldexp(p, 32));
  dropout.scale = static_cast<float>(1 / (1 - p));
  dropout.key[0] = key;
  dropout.step = step;
  dropout.stream = stream;
  const std::vector<float> ones(static_cast<size_t>(rows) * columns, 1.0f);
  std::vector<float> out(ones.size());
  resolve_kernels(Isa::kAvx512)
      .dropout_forward_f32(ones.data(), columns, 0, rows, columns, dropout, nullptr, 0, out.data(),
                           columns);
  std::vector<uint8_t> mask(out.size());
  for (size_t i = 0; i < out.size(); ++i) {
    EXPECT_TRUE(out[i] == 0 || out[i] == dropout.scale);
    mask[i] = out[i] != 0;
  }
  return mask;
}

/// Five standard deviations of a share of n draws with probability p: a chance of 6e-7.
double five_deviations(double p, double n) { return 5 * std::sqrt(p * (1 - p) / n); }

TEST(Dropout, DropsTheShareItIsTold) {
  const int32_t rows = 1000, columns = 512;
  for (double p : {0.0, 0.1, 0.3, 0.5, 0.9}) {
    const std::vector<uint8_t> mask = mask_of(p, rows, columns, 7, 3, 1);
    double kept = 0;
    for (uint8_t bit : mask) kept += bit;
    EXPECT_NEAR(1 - p, kept / mask.size(), five_deviations(p, mask.size())) << "p " << p;
    for (int32_t lane = 0; lane < 4; ++lane) {  // each word of a counter on its own
      double kept_lane = 0;
      for (size_t i = lane; i < mask.size(); i += 4) kept_lane += mask[i];
      EXPECT_NEAR(1 - p, kept_lane / (mask.size() / 4), five_deviations(p, mask.size() / 4))
          << "p " << p << " word " << lane;
    }
  }
}

TEST(Dropout, MasksOfOtherPlacesAreIndependent) {
  const int32_t rows = 1000, columns = 512;
  const double p = 0.1;
  const std::vector<uint8_t> mask = mask_of(p, rows, columns, 7, 3, 1);
  const double agree = p * p + (1 - p) * (1 - p);
  const auto expect_independent = [&](const std::vector<uint8_t>& other, size_t shift,
                                      const char* what) {
    double same = 0;
    for (size_t i = shift; i < mask.size(); ++i) same += mask[i] == other[i - shift];
    const double n = static_cast<double>(mask.size() - shift);
    EXPECT_NEAR(agree, same / n, five_deviations(agree, n)) << what;
  };
  expect_independent(mask_of(p, rows, columns, 8, 3, 1), 0, "another key");
  expect_independent(mask_of(p, rows, columns, 7, 4, 1), 0, "another step");
  expect_independent(mask_of(p, rows, columns, 7, 3, 2), 0, "another stream");
  expect_independent(mask_of(p, rows, columns, 7, 1, 3), 0, "step and stream exchanged");
  expect_independent(mask, 1, "the next column");
  expect_independent(mask, 4, "the next counter");
  expect_independent(mask, columns, "the next row");
  EXPECT_EQ(mask, mask_of(p, rows, columns, 7, 3, 1)) << "the same place draws the same mask";
}

}  // namespace
}  // namespace xsr::kernels
