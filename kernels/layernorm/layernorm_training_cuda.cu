#include "kernels/layernorm/layernorm_training_cuda.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/training.h"
#include "kernels/dropout/dropout_cuda.h"
#include "kernels/gemm/column_sum_cuda.h"

namespace xsr::cuda {

using kernels::Dropout;

namespace {

constexpr int32_t kBlockRows = 64;  // rows of one partial sum of dgamma and dbeta

/// Mean and 1 / sqrt(var + eps) of a row that this warp has written, from its sum over the lanes.
__device__ inline void row_statistics(const float* row, int32_t C, float sum, float eps,
                                      float* mean, float* rstd) {
  *mean = warp_sum(sum) / (float)C;
  float squares = 0;
  for_quads(C, [&](int32_t first) {
    const Quad x4 = load_quad(row + first);
    XSR_UNROLL
    for (int32_t e = 0; e < 4; ++e) {
      const float x = x4.value[e] - *mean;
      squares += x * x;
    }
  });
  *rstd = 1 / sqrtf(warp_sum(squares) / (float)C + eps);
}

/// The quads of this lane of a row in registers, of up to 128 · kQuads columns, or where kExact of
/// just so many.
template <int32_t kOfLane, bool kExact>
struct Quads {
  static constexpr int32_t kQuads = kOfLane;
  /// body(q, first) for those that exist: columns [first, first + 4).
  template <typename Body>
  static __device__ __forceinline__ void each(int32_t C, Body&& body) {
    XSR_UNROLL
    for (int32_t q = 0; q < kQuads; ++q) {
      const int32_t first = 4 * (q * kWarp + lane_id());
      if (kExact || first < C) body(q, first);
    }
  }
};

/// body(Quads()); of rows beyond kMostRegisterColumns none are in registers, kQuads 0.
template <typename Body>
Status with_quads(int32_t C, Body&& body) {
  switch (C) {
    case 128:
      return body(Quads<1, true>());
    case 256:
      return body(Quads<2, true>());
    case 384:
      return body(Quads<3, true>());
    case 512:
      return body(Quads<4, true>());
    case 768:
      return body(Quads<6, true>());
    case 1024:
      return body(Quads<8, true>());
    default:
      return C <= 256                    ? body(Quads<2, false>())
             : C <= kMostRegisterColumns ? body(Quads<8, false>())
                                         : body(Quads<0, false>());
  }
}

/// The mean and 1 / sqrt(var + eps) of a row in registers.
template <typename OfRow>
__device__ __forceinline__ void row_statistics(const Quad* x, int32_t C, float sum, float eps,
                                               float* mean, float* rstd) {
  *mean = warp_sum(sum) / (float)C;
  float squares = 0;
  OfRow::each(C, [&](int32_t q, int32_t) {
    XSR_UNROLL
    for (int32_t e = 0; e < 4; ++e) {
      const float deviation = x[q].value[e] - *mean;
      squares += deviation * deviation;
    }
  });
  *rstd = 1 / sqrtf(warp_sum(squares) / (float)C + eps);
}

/// (x − mean) · rstd · gamma + beta, of four columns.
__device__ inline Quad normalize(const Quad& x, float mean, float rstd, const Quad& gamma,
                                 const Quad& beta) {
  Quad out;
  XSR_UNROLL
  for (int32_t e = 0; e < 4; ++e)
    out.value[e] = (x.value[e] - mean) * rstd * gamma.value[e] + beta.value[e];
  return out;
}

/// kQuads 0: any C; sum is read again. Blocks as below.
template <typename OfRow>
__global__ void __launch_bounds__(kRowWarps* kWarp, OfRow::kQuads <= 4 ? 3 : 2)
    embedding_layernorm_dropout_forward_kernel(const int32_t* token_ids, const int32_t* positions,
                                               int32_t N, int32_t C, const float* token,
                                               const float* position, const float* gamma,
                                               const float* beta, float eps, const Dropout* dropout,
                                               uint32_t place, float* sum, float* out,
                                               uint16_t* narrow, float* statistics) {
  constexpr int32_t kQuads = OfRow::kQuads;
  const int32_t i = warp_row();
  if (i >= N) return;
  const bool dropping = drops(dropout);
  const Dropout masks = dropping ? *dropout : Dropout();
  const float* token_row = token + (int64_t)token_ids[i] * C;
  const float* position_row = position + (int64_t)positions[i] * C;
  float* row = sum + (int64_t)i * C;
  float total = 0, mean, rstd;
  const auto add = [&](int32_t first, Quad four, const Quad& other) {
    XSR_UNROLL
    for (int32_t e = 0; e < 4; ++e) {
      four.value[e] += other.value[e];
      total += four.value[e];
    }
    store_quad(row + first, four);
    return four;
  };
  const auto normalized = [&](int32_t first, const Quad& x) {
    return normalize(x, mean, rstd, load_quad(gamma + first), load_quad(beta + first));
  };
  const auto put = [&](int32_t first, const Quad& four) {
    store_quad(out + (int64_t)i * C + first, four);
    if (narrow != nullptr) store_quad(narrow + (int64_t)i * C + first, four);
  };
  if constexpr (kQuads == 0) {
    for_quads(C, [&](int32_t first) {
      add(first, load_quad(token_row + first), load_quad(position_row + first));
    });
    row_statistics(row, C, total, eps, &mean, &rstd);
    for_quads(C, [&](int32_t first) {
      Quad four = normalized(first, load_quad(row + first));
      if (dropping) drop(masks, place, i, first, four);
      put(first, four);
    });
  } else {
    Quad x[kQuads] = {}, other[kQuads] = {};
    OfRow::each(C, [&](int32_t q, int32_t first) {
      x[q] = load_quad(token_row + first), other[q] = load_quad(position_row + first);
    });
    OfRow::each(C, [&](int32_t q, int32_t first) { x[q] = add(first, x[q], other[q]); });
    row_statistics<OfRow>(x, C, total, eps, &mean, &rstd);
    OfRow::each(C, [&](int32_t q, int32_t first) { x[q] = normalized(first, x[q]); });
    if (dropping) {
      OfRow::each(C, [&](int32_t q, int32_t first) { drop(masks, place, i, first, x[q]); });
    }
    OfRow::each(C, [&](int32_t q, int32_t first) { put(first, x[q]); });
  }
  if (lane_id() == 0) {
    statistics[2 * (int64_t)i] = mean;
    statistics[2 * (int64_t)i + 1] = rstd;
  }
}

__global__ void dropout_add_layernorm_forward_kernel(float* sum, const float* residual, int32_t N,
                                                     int32_t C, const float* gamma,
                                                     const float* beta, float eps,
                                                     const Dropout* dropout, uint32_t place,
                                                     float* out, uint16_t* narrow,
                                                     float* statistics) {
  const int32_t i = warp_row();
  if (i >= N) return;
  float* row = sum + (int64_t)i * C;
  float total = 0, mean, rstd;
  for_quads(C, [&](int32_t first) {
    Quad four = load_quad(row + first);
    if (drops(dropout)) drop(*dropout, place, i, first, four);
    if (residual != nullptr) {
      const Quad other = load_quad(residual + (int64_t)i * C + first);
      XSR_UNROLL
      for (int32_t e = 0; e < 4; ++e) four.value[e] += other.value[e];
    }
    if (dropout != nullptr || residual != nullptr) store_quad(row + first, four);
    XSR_UNROLL
    for (int32_t e = 0; e < 4; ++e) total += four.value[e];
  });
  row_statistics(row, C, total, eps, &mean, &rstd);
  for_quads(C, [&](int32_t first) {
    const Quad four = normalize(load_quad(row + first), mean, rstd, load_quad(gamma + first),
                                load_quad(beta + first));
    store_quad(out + (int64_t)i * C + first, four);
    if (narrow != nullptr) store_quad(narrow + (int64_t)i * C + first, four);
  });
  if (lane_id() == 0) {
    statistics[2 * (int64_t)i] = mean;
    statistics[2 * (int64_t)i + 1] = rstd;
  }
}

/// Four columns of a row of NormRows, of those of its x.
template <bool kNormalized>
__device__ __forceinline__ Quad of_rows(const NormRows& rows, int32_t i, int32_t first,
                                        const Quad& x) {
  if constexpr (!kNormalized) return x;
  return normalize(x, rows.statistics[2 * (int64_t)i], rows.statistics[2 * (int64_t)i + 1],
                   load_quad(rows.gamma + first), load_quad(rows.beta + first));
}

/// kQuads 0: any C; sum is read again. Without the 4 or 2 blocks ptxas aims at more, and spills.
template <typename OfRow, bool kNormalized>
__global__ void __launch_bounds__(kRowWarps* kWarp, OfRow::kQuads <= 4 ? 4 : 2)
    dropout_add_layernorm_forward_bf16_kernel(const uint16_t* branch, const float* bias,
                                              NormRows residual, int32_t N, int32_t C,
                                              const float* gamma, const float* beta, float eps,
                                              const Dropout* dropout, uint32_t place, float* sum,
                                              float* out, uint16_t* narrow, float* statistics) {
  constexpr int32_t kQuads = OfRow::kQuads;
  const int32_t i = warp_row();
  if (i >= N) return;
  const Dropout masks = *dropout;  // once, and not behind every store
  float* const row = sum + (int64_t)i * C;
  float total = 0, mean, rstd;
  // What is to be dropped, then the rest: all of a row's masks are made in one place.
  const auto load_branch = [&](int32_t first) {
    Quad four = load_storage_quad<kernels::Storage::kBF16>(branch, (int64_t)i * C + first);
    const Quad shift = load_quad(bias + first);
    XSR_UNROLL
    for (int32_t e = 0; e < 4; ++e) four.value[e] += shift.value[e];
    return four;
  };
  const auto load_other = [&](int32_t first) {
    return load_quad(residual.x + (int64_t)i * C + first);
  };
  const auto add = [&](int32_t first, Quad four, const Quad& of_other) {
    const Quad other = of_rows<kNormalized>(residual, i, first, of_other);
    XSR_UNROLL
    for (int32_t e = 0; e < 4; ++e) {
      four.value[e] += other.value[e];
      total += four.value[e];
    }
    store_quad(row + first, four);
    return four;
  };
  const auto put = [&](int32_t first, const Quad& x) {
    const Quad four = normalize(x, mean, rstd, load_quad(gamma + first), load_quad(beta + first));
    if (out != nullptr) store_quad(out + (int64_t)i * C + first, four);
    if (narrow != nullptr) store_quad(narrow + (int64_t)i * C + first, four);
  };
  if constexpr (kQuads == 0) {
    for_quads(C, [&](int32_t first) {
      Quad four = load_branch(first);
      if (drops(&masks)) drop(masks, place, i, first, four);
      add(first, four, load_other(first));
    });
    row_statistics(row, C, total, eps, &mean, &rstd);
    for_quads(C, [&](int32_t first) { put(first, load_quad(row + first)); });
  } else {
    Quad x[kQuads] = {}, other[kQuads] = {};
    OfRow::each(C, [&](int32_t q, int32_t first) {
      x[q] = load_branch(first), other[q] = load_other(first);
    });
    if (drops(&masks)) {
      OfRow::each(C, [&](int32_t q, int32_t first) { drop(masks, place, i, first, x[q]); });
    }
    OfRow::each(C, [&](int32_t q, int32_t first) { x[q] = add(first, x[q], other[q]); });
    row_statistics<OfRow>(x, C, total, eps, &mean, &rstd);
    OfRow::each(C, [&](int32_t q, int32_t first) { put(first, x[q]); });
  }
  if (lane_id() == 0) {
    statistics[2 * (int64_t)i] = mean;
    statistics[2 * (int64_t)i + 1] = rstd;
  }
}

/// What the gradient of a LayerNorm's output is read from.
enum class Source { kRows, kRowsAndMore, kPooled };

/// In one pass: a warp has a row in registers, and the sums over its rows of its lanes' columns.
/// parts [blocks, 3, C]: dgamma, dbeta and dbias of a block's rows.
template <typename OfRow, Source kSource>
__global__ void __launch_bounds__(kRowWarps* kWarp,
                                  OfRow::kQuads <= 4 ? 2 : 1)  // kMostNormBlocks at once
    layernorm_backward_kernel(const float* sum, const float* statistics, NormGradient of_out,
                              int32_t N, int32_t C, const float* gamma, const Dropout* dropout,
                              uint32_t place, bool behind, float* dbranch, uint16_t* narrow,
                              float* parts) {
  constexpr int32_t kQuads = OfRow::kQuads;
  float dgamma[kQuads][4] = {}, dbeta[kQuads][4] = {}, dbias[kQuads][4] = {};
  float* const of_warps = shared_memory<float>();  // [kRowWarps, C]
  // In front of the loop, and not for every quad behind a store that might have changed them; not
  // in registers, which are short.
  Dropout* const masks = reinterpret_cast<Dropout*>(of_warps + kRowWarps * C);
  if (threadIdx.x == 0) *masks = dropout == nullptr ? Dropout() : *dropout;
  __syncthreads();
  for (int32_t i = warp_row(); i < N; i += (int32_t)gridDim.x * kRowWarps) {
    const float* row = sum + (int64_t)i * C;
    float* gradient = of_out.dx + (int64_t)i * C;
    const float mean = statistics[2 * (int64_t)i], rstd = statistics[2 * (int64_t)i + 1];
    const float* from = gradient;
    float share = 1;
    if constexpr (kSource == Source::kPooled) {
      const int32_t b = of_out.sentence_of[i];
      const int32_t begin = b < 0 ? 0 : of_out.cu_seqlens[b];
      const bool has = b >= 0 && (of_out.mean || i == begin);
      from = has ? of_out.dy + (int64_t)b * C : nullptr;
      if (has && of_out.mean) share = 1 / (float)(of_out.cu_seqlens[b + 1] - begin);
    }
    Quad x[kQuads] = {}, g[kQuads] = {};
    OfRow::each(C, [&](int32_t q, int32_t first) {
      x[q] = load_quad(row + first);
      if (kSource != Source::kPooled || from != nullptr) g[q] = load_quad(from + first);
      if constexpr (kSource == Source::kRows) return;
      Quad more = {};
      if constexpr (kSource == Source::kRowsAndMore)
        more = load_storage_quad<kernels::Storage::kBF16>(of_out.more, (int64_t)i * C + first);
      XSR_UNROLL
      for (int32_t e = 0; e < 4; ++e) {
        if constexpr (kSource == Source::kPooled) {
          g[q].value[e] *= share;
        } else {
          g[q].value[e] += more.value[e];
        }
      }
    });
    if (behind && drops(masks)) {
      const Dropout of_row = *masks;
      OfRow::each(C, [&](int32_t q, int32_t first) { drop(of_row, place, i, first, g[q]); });
    }
    float total = 0, total_normalized = 0;  // of g, which is dy · gamma, and of g · x̂
    OfRow::each(C, [&](int32_t q, int32_t first) {
      const Quad scale = load_quad(gamma + first);
      XSR_UNROLL
      for (int32_t e = 0; e < 4; ++e) {
        const float dy = g[q].value[e], normalized = (x[q].value[e] - mean) * rstd;
        dgamma[q][e] += dy * normalized;
        dbeta[q][e] += dy;
        x[q].value[e] = normalized;
        g[q].value[e] = dy * scale.value[e];
        total += g[q].value[e];
        total_normalized += g[q].value[e] * normalized;
      }
    });
    const float mean_g = warp_sum(total) / (float)C;
    const float mean_normalized = warp_sum(total_normalized) / (float)C;
    OfRow::each(C, [&](int32_t q, int32_t first) {
      XSR_UNROLL
      for (int32_t e = 0; e < 4; ++e) {
        g[q].value[e] = rstd * (g[q].value[e] - mean_g - x[q].value[e] * mean_normalized);
      }
      store_quad(gradient + first, g[q]);
    });
    if (!behind && drops(masks)) {
      const Dropout of_row = *masks;
      OfRow::each(C, [&](int32_t q, int32_t first) { drop(of_row, place, i, first, g[q]); });
    }
    OfRow::each(C, [&](int32_t q, int32_t first) {
      XSR_UNROLL
      for (int32_t e = 0; e < 4; ++e) dbias[q][e] += g[q].value[e];
      if (dbranch != nullptr) store_quad(dbranch + (int64_t)i * C + first, g[q]);
      if (narrow != nullptr) store_quad(narrow + (int64_t)i * C + first, g[q]);
    });
  }
  const auto put = [&](const float(&mine)[kQuads][4], int32_t which) {
    __syncthreads();
    OfRow::each(C, [&](int32_t q, int32_t first) {
      store_quad(of_warps + (int32_t)threadIdx.x / kWarp * C + first,
                 {{mine[q][0], mine[q][1], mine[q][2], mine[q][3]}});
    });
    __syncthreads();
    for (int32_t c = (int32_t)threadIdx.x; c < C; c += kRowWarps * kWarp) {
      float of_block = 0;
      XSR_UNROLL
      for (int32_t w = 0; w < kRowWarps; ++w) of_block += of_warps[w * C + c];
      parts[((int64_t)blockIdx.x * 3 + which) * C + c] = of_block;
    }
  };
  put(dgamma, 0);
  put(dbeta, 1);
  put(dbias, 2);
}

// ---- C beyond that, by three kernels

/// parts [blocks, 3, C]: dgamma and dbeta of 64 rows each.
__global__ void layernorm_backward_columns_kernel(const float* sum, const float* statistics,
                                                  const float* dy, int32_t N, int32_t C,
                                                  float* parts) {
  const int32_t c = (int32_t)(blockIdx.x * kColumns + threadIdx.x);
  const int32_t first = (int32_t)blockIdx.y * kBlockRows;
  const int32_t last = first + kBlockRows < N ? first + kBlockRows : N;
  float dgamma = 0, dbeta = 0;
  for (int32_t i = first + (int32_t)threadIdx.y; i < last && c < C; i += kLanes) {
    const float gradient = dy[(int64_t)i * C + c];
    const float normalized =
        (sum[(int64_t)i * C + c] - statistics[2 * (int64_t)i]) * statistics[2 * (int64_t)i + 1];
    dgamma += gradient * normalized;
    dbeta += gradient;
  }
  dgamma = sum_of_lanes(dgamma);
  dbeta = sum_of_lanes(dbeta);
  if (threadIdx.y == 0 && c < C) {
    parts[(int64_t)blockIdx.y * 3 * C + c] = dgamma;
    parts[((int64_t)blockIdx.y * 3 + 1) * C + c] = dbeta;
  }
}

/// dx ← dx + more
__global__ void add_bf16_kernel(float* dx, const uint16_t* more, int64_t n) {
  const int64_t i = quad_of_thread();
  if (i >= n) return;
  Quad four = load_quad(dx + i);
  const Quad other = load_storage_quad<kernels::Storage::kBF16>(more, i);
  XSR_UNROLL
  for (int32_t e = 0; e < 4; ++e) four.value[e] += other.value[e];
  store_quad(dx + i, four);
}

__global__ void layernorm_backward_rows_kernel(const float* sum, const float* statistics, float* dx,
                                               int32_t N, int32_t C, const float* gamma,
                                               const Dropout* dropout, uint32_t place,
                                               float* dbranch, uint16_t* narrow) {
  const int32_t i = warp_row();
  if (i >= N) return;
  const float* row = sum + (int64_t)i * C;
  float* gradient = dx + (int64_t)i * C;
  const float mean = statistics[2 * (int64_t)i], rstd = statistics[2 * (int64_t)i + 1];
  float total = 0, total_normalized = 0;  // of g and of g · x̂
  for_quads(C, [&](int32_t first) {
    const Quad x = load_quad(row + first), dy = load_quad(gradient + first),
               scale = load_quad(gamma + first);
    XSR_UNROLL
    for (int32_t e = 0; e < 4; ++e) {
      const float g = dy.value[e] * scale.value[e];
      total += g;
      total_normalized += g * ((x.value[e] - mean) * rstd);
    }
  });
  const float mean_g = warp_sum(total) / (float)C;
  const float mean_normalized = warp_sum(total_normalized) / (float)C;
  for_quads(C, [&](int32_t first) {
    const Quad x = load_quad(row + first), scale = load_quad(gamma + first);
    Quad four = load_quad(gradient + first);
    XSR_UNROLL
    for (int32_t e = 0; e < 4; ++e) {
      const float normalized = (x.value[e] - mean) * rstd;
      four.value[e] =
          rstd * (four.value[e] * scale.value[e] - mean_g - normalized * mean_normalized);
    }
    store_quad(gradient + first, four);
    if (dbranch == nullptr && narrow == nullptr) return;
    if (drops(dropout)) drop(*dropout, place, i, first, four);
    if (dbranch != nullptr) store_quad(dbranch + (int64_t)i * C + first, four);
    if (narrow != nullptr) store_quad(narrow + (int64_t)i * C + first, four);
  });
}

}  // namespace

Status embedding_layernorm_dropout_forward_cuda(
    const int32_t* token_ids, const int32_t* positions, int32_t N, int32_t C, const float* token,
    const float* position, const float* gamma, const float* beta, float eps, const Dropout* dropout,
    uint32_t place, float* sum, float* out, uint16_t* narrow, float* statistics, Stream stream) {
  return with_quads(C, [&](auto quads) {
    return launch(embedding_layernorm_dropout_forward_kernel<decltype(quads)>,
                  blocks_of(N, kRowWarps), kRowWarps * kWarp, 0, stream, token_ids, positions, N, C,
                  token, position, gamma, beta, eps, dropout, place, sum, out, narrow, statistics);
  });
}

Status dropout_add_layernorm_forward_cuda(float* sum, const float* residual, int32_t N, int32_t C,
                                          const float* gamma, const float* beta, float eps,
                                          const Dropout* dropout, uint32_t place, float* out,
                                          uint16_t* narrow, float* statistics, Stream stream) {
  return launch(dropout_add_layernorm_forward_kernel, blocks_of(N, kRowWarps), kRowWarps * kWarp, 0,
                stream, sum, residual, N, C, gamma, beta, eps, dropout, place, out, narrow,
                statistics);
}

Status dropout_add_layernorm_forward_bf16_cuda(const uint16_t* branch, const float* bias,
                                               const NormRows& residual, int32_t N, int32_t C,
                                               const float* gamma, const float* beta, float eps,
                                               const Dropout* dropout, uint32_t place, float* sum,
                                               float* out, uint16_t* narrow, float* statistics,
                                               Stream stream) {
  return with_quads(C, [&](auto quads) {
    using OfRow = decltype(quads);
    const auto kernel = residual.statistics != nullptr
                            ? dropout_add_layernorm_forward_bf16_kernel<OfRow, true>
                            : dropout_add_layernorm_forward_bf16_kernel<OfRow, false>;
    return launch(kernel, blocks_of(N, kRowWarps), kRowWarps * kWarp, 0, stream, branch, bias,
                  residual, N, C, gamma, beta, eps, dropout, place, sum, out, narrow, statistics);
  });
}

Status layernorm_backward_cuda(const float* sum, const float* statistics,
                               const NormGradient& of_out, int32_t N, int32_t C, const float* gamma,
                               const Dropout* dropout, uint32_t place, bool behind, float* dbranch,
                               uint16_t* narrow, float* dgamma, float* dbeta, float* dbias,
                               float* parts, PartSums* later, Stream stream) {
  // The sums of the parts [blocks, 3, C].
  const auto add_up = [&](int32_t blocks, bool with_bias, PartSums* last) {
    PartSums now;
    PartSums* const sums = last != nullptr ? last : &now;
    float* const to[] = {dgamma, dbeta, dbias};
    Status status = 0;
    for (int32_t k = 0; k < (with_bias ? 3 : 2) && status == 0; ++k) {
      status = add_parts_later_cuda(sums, parts + (int64_t)k * C, 3 * (int64_t)C, blocks, C, to[k],
                                    stream);
    }
    return status != 0 || last != nullptr ? status : add_parts_cuda(sums, stream);
  };
  if (C <= kMostRegisterColumns) {
    const int32_t rows = blocks_of(N, kRowWarps);
    const int32_t blocks = rows < kMostNormBlocks ? rows : kMostNormBlocks;
    const Status status = with_quads(C, [&](auto quads) -> Status {
      using OfRow = decltype(quads);
      if constexpr (OfRow::kQuads == 0) {
        return 1;
      } else {
        const auto kernel =
            of_out.sentence_of != nullptr ? layernorm_backward_kernel<OfRow, Source::kPooled>
            : of_out.more != nullptr      ? layernorm_backward_kernel<OfRow, Source::kRowsAndMore>
                                          : layernorm_backward_kernel<OfRow, Source::kRows>;
        const size_t bytes = sizeof(float) * (size_t)(kRowWarps * C) + sizeof(Dropout);
        return launch(kernel, blocks, kRowWarps * kWarp, bytes, stream, sum, statistics, of_out, N,
                      C, gamma, dropout, place, behind, dbranch, narrow, parts);
      }
    });
    return status != 0 ? status : add_up(blocks, dbias != nullptr, later);
  }
  if (of_out.sentence_of != nullptr) return 1;
  float* const dx = of_out.dx;
  const int32_t blocks = blocks_of(N, kBlockRows);
  Status status = 0;
  if (of_out.more != nullptr) {
    status = launch(add_bf16_kernel, quad_blocks((int64_t)N * C), kQuadThreads, 0, stream, dx,
                    of_out.more, (int64_t)N * C);
  }
  if (status == 0 && behind && dropout != nullptr)
    status = dropout_forward_f32_cuda(dx, N, C, dropout, place, stream);
  if (status == 0) {
    status = launch(layernorm_backward_columns_kernel, dim3(blocks_of(C, kColumns), blocks),
                    dim3(kColumns, kLanes), 0, stream, sum, statistics, dx, N, C, parts);
  }
  if (status == 0) status = add_up(blocks, false, nullptr);
  if (status == 0) {
    status = launch(layernorm_backward_rows_kernel, blocks_of(N, kRowWarps), kRowWarps * kWarp, 0,
                    stream, sum, statistics, dx, N, C, gamma, behind ? nullptr : dropout, place,
                    dbranch, narrow);
  }
  if (status != 0 || dbias == nullptr) return status;
  return narrow != nullptr ? column_sum_bf16_cuda(narrow, C, N, C, dbias, parts, nullptr, stream)
                           : column_sum_cuda(dbranch, C, N, C, dbias, parts, nullptr, stream);
}

}  // namespace xsr::cuda
