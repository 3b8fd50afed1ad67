// Every CUDA kernel against its double-precision reference: odd and real shapes, NaN in padding,
// guard words, and the promise that a row's bits depend on that row alone. The same source is
// linked twice: with the emulated device (cuda_kernels_emulated_test), where threads also run in
// random orders, and with nvcc's kernels (cuda_kernels_test), which is skipped without a device.
#include <cstring>

#include "kernels/gemm/gemm.h"
#include "kernels/layernorm/layernorm_cuda.h"
#include "kernels/layernorm/layernorm_ref.h"
#include "runtime/device/cuda/device.h"
#include "tests/support/device_buffer.h"
#include "tests/support/kernel_harness.h"

namespace xsr::cuda {
namespace {

using test::DeviceBuffer;
using test::ErrorBudget;
using test::Random;

using CudaKernels = test::DeviceTest;

const std::vector<int32_t>& widths() {
  static const std::vector<int32_t> result = {1,  2,  7,   20,  31,  32,  33,  60,   63,  64,
                                              65, 96, 128, 192, 257, 512, 768, 1000, 1024};
  return result;
}

std::string shape(std::initializer_list<std::pair<const char*, int64_t>> values) {
  std::string text;
  for (const auto& [name, value] : values)
    text += std::string("  ") + name + "=" + std::to_string(value);
  return text;
}

TEST_F(CudaKernels, LayerNorm) {
  Random random(101);
  ErrorBudget budget, narrow_budget;
  int variant = 0;
  for (const int32_t C : widths()) {
    const int32_t N = 1 + variant % 6;
    const int64_t stride = C + variant++ % 3;
    DeviceBuffer<float> x(N * stride), gamma(C), beta(C), out(N * stride);
    DeviceBuffer<uint16_t> narrow(N * stride);
    for (int32_t i = 0; i < N; ++i) {
      for (int32_t c = 0; c < C; ++c) x[i * stride + c] = random.normal(2) + 3;
    }
    for (int32_t c = 0; c < C; ++c) gamma[c] = random.normal(), beta[c] = random.normal();
    const float eps = 1e-12f;
    std::vector<float> plain(N * stride);
    std::vector<double> wide(x.begin(), x.end()), exact(N * stride);
    kernels::layernorm_forward_ref<float, float>(x.host(), stride, 0, N, C, gamma.host(),
                                                 beta.host(), eps, plain.data(), stride);
    kernels::layernorm_forward_ref<double, float>(wide.data(), stride, 0, N, C, gamma.host(),
                                                  beta.host(), eps, exact.data(), stride);
    upload({&x, &gamma, &beta, &out, &narrow});
    run([&] {
      return layernorm_forward_cuda(x.device(), stride, N, C, gamma.device(), beta.device(), eps,
                                    out.device(), stride, narrow.device(), stride, stream());
    });
    download({&out, &narrow});
    for (int32_t i = 0; i < N; ++i) {
      for (int32_t c = 0; c < stride; ++c) {
        const int64_t at = i * stride + c;
        if (c >= C) {
          ASSERT_TRUE(out.untouched(at) && narrow.untouched(at)) << shape({{"C", C}, {"row", i}});
          continue;
        }
        budget.add(out[at], plain[at], exact[at], i, c);
        ASSERT_EQ(narrow[at], kernels::bf16_from_f32(out[at]));
      }
    }
    EXPECT_TRUE(budget.check("layernorm_forward_cuda" + shape({{"N", N}, {"C", C}}), filter()));
    // A row alone, in place, gives the same bits.
    const int32_t last = N - 1;
    run([&] {
      return layernorm_forward_cuda(x.device() + last * stride, stride, 1, C, gamma.device(),
                                    beta.device(), eps, x.device() + last * stride, stride, nullptr,
                                    0, stream());
    });
    download({&x});
    ASSERT_EQ(0, std::memcmp(&x[last * stride], &out[last * stride], 4 * C));
  }
}

}  // namespace
}  // namespace xsr::cuda
