#pragma once
// A row of up to 1024 columns in the registers of one warp: lane l holds columns 4 l to 4 l + 3,
// then those 128 further on, and so on.
#include "kernels/cuda/device.h"

namespace xsr::cuda {

constexpr int32_t kMostRowColumns = 1024;

/// How a row's C columns lie in the lanes: all lanes have all their columns, and C is a multiple of
/// 128; C is one of 4; or neither. In the first two cases columns are moved four at a time.
enum class Fit { kExact, kQuads, kAny };

/// Whether pointers and strides let a row be moved four elements at a time, where 4 divides C.
static inline bool starts_whole(const float* p, int64_t stride) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % 4 == 0;
}
static inline bool starts_whole(const uint16_t* p, int64_t stride) {
  return reinterpret_cast<uintptr_t>(p) % 8 == 0 && stride % 4 == 0;
}

/// Blocks for one warp a row, four warps a block.
constexpr int32_t kRowThreads = 128;
static inline dim3 row_blocks(int32_t rows) {
  return dim3((unsigned)((rows + kRowThreads / kWarp - 1) / (kRowThreads / kWarp)));
}

template <int32_t kColumns, Fit kFit>
struct Row {
  static constexpr bool kWhole = kFit != Fit::kAny;
  float value[kColumns];

  /// Element i's column.
  static __device__ __forceinline__ int32_t column(int32_t i) {
    return 4 * (i / 4 * kWarp + lane_id()) + i % 4;
  }
  static __device__ __forceinline__ bool exists(int32_t i, int32_t C) {
    return kFit == Fit::kExact || column(i) < C;
  }
  /// get(c) for the columns c < C, 0 beyond. kWhole: get(c) gives a Quad of the columns from c on.
  template <typename Get>
  __device__ __forceinline__ void fill(int32_t C, Get&& get) {
    if constexpr (kWhole) {
      XSR_UNROLL
      for (int32_t i = 0; i < kColumns; i += 4) {
        const Quad four = exists(i, C) ? get(column(i)) : Quad{};
        XSR_UNROLL
        for (int32_t e = 0; e < 4; ++e) value[i + e] = four.value[e];
      }
    } else {
      XSR_UNROLL
      for (int32_t i = 0; i < kColumns; ++i) value[i] = exists(i, C) ? get(column(i)) : 0.0f;
    }
  }
  /// use(c, value) for the columns c < C; kWhole: use(c, Quad).
  template <typename Use>
  __device__ __forceinline__ void each(int32_t C, Use&& use) const {
    if constexpr (kWhole) {
      XSR_UNROLL
      for (int32_t i = 0; i < kColumns; i += 4) {
        if (exists(i, C))
          use(column(i), Quad{{value[i], value[i + 1], value[i + 2], value[i + 3]}});
      }
    } else {
      XSR_UNROLL
      for (int32_t i = 0; i < kColumns; ++i) {
        if (exists(i, C)) use(column(i), value[i]);
      }
    }
  }

  /// out, narrow ← (value − mean) · rstd · gamma + beta; out and narrow may be null, and so may
  /// gamma, with beta, for 1 and 0.
  __device__ __forceinline__ void put(int32_t C, float mean, float rstd, const float* gamma,
                                      const float* beta, float* out, uint16_t* narrow) const {
    if constexpr (kWhole) {
      each(C, [&](int32_t c, Quad four) {
        if (gamma != nullptr) {
          const Quad scale = load_quad(gamma + c), shift = load_quad(beta + c);
          XSR_UNROLL
          for (int32_t e = 0; e < 4; ++e)
            four.value[e] = (four.value[e] - mean) * rstd * scale.value[e] + shift.value[e];
        }
        if (out != nullptr) store_quad(out + c, four);
        if (narrow != nullptr) store_quad(narrow + c, four);
      });
    } else {
      each(C, [&](int32_t c, float x) {
        const float y = gamma == nullptr ? x : (x - mean) * rstd * gamma[c] + beta[c];
        if (out != nullptr) out[c] = y;
        if (narrow != nullptr) narrow[c] = f32_to_bf16(y);
      });
    }
  }

  /// Sets *mean and returns 1 / sqrt(var + eps), in two passes.
  __device__ __forceinline__ float statistics(int32_t C, float eps, float* mean) const {
    float sum = 0;
    XSR_UNROLL
    for (int32_t i = 0; i < kColumns; ++i) sum += value[i];
    *mean = warp_sum(sum) / (float)C;
    float squares = 0;
    constexpr int32_t kStep = kWhole ? 4 : 1;
    XSR_UNROLL
    for (int32_t i = 0; i < kColumns; i += kStep) {
      if (!exists(i, C)) continue;
      XSR_UNROLL
      for (int32_t e = 0; e < kStep; ++e) {  // fmaf: the same bits however columns are moved
        const float deviation = value[i + e] - *mean;
        squares = fmaf(deviation, deviation, squares);
      }
    }
    return 1.0f / sqrtf(warp_sum(squares) / (float)C + eps);
  }
};

/// Calls body(Row()) with a row that takes C columns; body returns a Status. quads: whether 4
/// divides C and all places where rows start (starts_whole). Rows beyond kMostRowColumns: 1
/// (cudaErrorInvalidValue).
template <typename Body>
static inline Status with_row(int32_t C, bool quads, Body&& body) {
  if (quads) {
    switch (C) {
      case 128:
        return body(Row<4, Fit::kExact>());
      case 256:
        return body(Row<8, Fit::kExact>());
      case 384:
        return body(Row<12, Fit::kExact>());
      case 512:
        return body(Row<16, Fit::kExact>());
      case 768:
        return body(Row<24, Fit::kExact>());
      case 1024:
        return body(Row<32, Fit::kExact>());
      default:
        break;
    }
  }
  const auto holds = [&](auto columns) {
    constexpr int32_t kColumns = decltype(columns)::value;
    return quads ? body(Row<kColumns, Fit::kQuads>()) : body(Row<kColumns, Fit::kAny>());
  };
  if (C <= 128) return holds(Constant<4>());
  if (C <= 256) return holds(Constant<8>());
  if (C <= 512) return holds(Constant<16>());
  if (C <= kMostRowColumns) return holds(Constant<32>());
  return 1;
}

}  // namespace xsr::cuda
