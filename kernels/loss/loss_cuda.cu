#include "kernels/loss/loss_cuda.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/training.h"
#include "kernels/loss/loss_ref.h"

namespace xsr::cuda {

using kernels::zero_if_finite;

namespace {

constexpr int32_t kThreads = 256;

// A block a sentence: many threads and four words at once, since batches have few sentences.
constexpr int32_t kWordThreads = 512;
constexpr int32_t kGradientThreads = 256, kGradientWords = 4 * kGradientThreads;

/// body(logits, n) for four words of this thread at a time, of which the first n are there, 4 being
/// all: with several loads under way, and without questions where they are whole.
template <typename Body>
__device__ __forceinline__ void for_words(const float* row, const float* bias, int32_t R,
                                          Body&& body) {
  constexpr int32_t kAtOnce = 4, kStep = 4 * kWordThreads;
  const auto with_bias = [&](Quad& logits, const Quad& shift, int32_t n) {
    XSR_UNROLL
    for (int32_t e = 0; e < 4; ++e) logits.value[e] += shift.value[e];
    body(logits, n);
  };
  int32_t v = 4 * (int32_t)threadIdx.x;
  for (; v + (kAtOnce - 1) * kStep + 4 <= R; v += kAtOnce * kStep) {
    Quad logits[kAtOnce], shift[kAtOnce];
    XSR_UNROLL
    for (int32_t k = 0; k < kAtOnce; ++k) {
      logits[k] = load_quad(row + v + k * kStep);
      shift[k] = load_quad(bias + v + k * kStep);
    }
    XSR_UNROLL
    for (int32_t k = 0; k < kAtOnce; ++k) with_bias(logits[k], shift[k], 4);
  }
  for (; v < R; v += kStep) {
    Quad logits = load_quad(row, v, R);
    with_bias(logits, load_quad(bias, v, R), R - v);
  }
}

__global__ void __launch_bounds__(kWordThreads)
    vocabulary_tile_forward_kernel(const float* z, int64_t z_stride, int32_t first, int32_t R,
                                   const float* bias, VocabularyWords words, float* max,
                                   float* sum) {
  __shared__ float scratch[kWarp];
  const int32_t b = (int32_t)blockIdx.x, t = (int32_t)threadIdx.x;
  const float* row = z + b * z_stride;
  // In one pass, since a row of a small batch is more than L1 holds: a thread's sum is of its own
  // largest logit, and turned into one of the row's at the end.
  float own = -INFINITY, total = 0;
  for_words(row, bias + first, R, [&](const Quad& logits, int32_t n) {
    float largest = own;
    XSR_UNROLL
    for (int32_t e = 0; e < 4; ++e) {
      if (e < n && logits.value[e] > largest) largest = logits.value[e];
    }
    if (largest > own) total *= expf(own - largest);
    own = largest;
    XSR_UNROLL
    for (int32_t e = 0; e < 4; ++e) {
      if (e < n) total += expf(logits.value[e] - own) + zero_if_finite(logits.value[e]);
    }
  });
  const float peak = block_max(own, scratch);
  total = block_sum(own < peak ? total * expf(own - peak) : total, scratch);
  for (int32_t w = words.offsets[b] + t; w < words.offsets[b + 1]; w += kWordThreads) {
    const int32_t v = words.token_ids[w] - first;
    if (v >= 0 && v < R) words.logits[w] = row[v] + bias[first + v];
  }
  if (t == 0) {
    max[b] = peak;
    sum[b] = total;
  }
}

/// A warp a sentence, lane = tile and then word.
__global__ void vocabulary_finish_kernel(const float* max, const float* sum, int32_t tiles,
                                         int32_t S, int32_t num_pairs, VocabularyWords words,
                                         double* lse, double* parts) {
  const int32_t b = warp_row();
  if (b >= S) return;
  float peak = -INFINITY;
  double total = 0;
  for (int32_t k = lane_id(); k < tiles; k += kWarp) {
    const float largest = max[(int64_t)k * S + b];
    if (largest > peak) peak = largest;
  }
  peak = warp_max(peak);
  for (int32_t k = lane_id(); k < tiles; k += kWarp)
    total += sum[(int64_t)k * S + b] * exp((double)max[(int64_t)k * S + b] - (double)peak);
  const double of_all = (double)peak + log(warp_sum(total));
  if (lane_id() == 0) lse[b] = of_all;
  for (int32_t k = 0; k < words.num_targets; ++k) {
    double loss = 0;
    for (int32_t w = words.offsets[b] + lane_id(); w < words.offsets[b + 1]; w += kWarp) {
      const double mass = words.masses[k * words.mass_stride + w];
      if (mass > 0) loss += mass * (log(mass) + of_all - words.logits[w]) / num_pairs;
    }
    loss = warp_sum(loss) + (of_all - of_all);  // 0 or NaN
    if (lane_id() == 0) parts[(int64_t)k * S + b] = loss;
  }
}

/// A block has 1,024 words of some sentences, a thread four of them, so that it adds up what it
/// writes; a few sentences at a time, whose logits are under way together.
__global__ void __launch_bounds__(kGradientThreads)
    vocabulary_tile_backward_kernel(float* z, int64_t z_stride, int32_t S, int32_t rows,
                                    int32_t first, int32_t R, const float* bias,
                                    VocabularyWords words, const float* max, const double* lse,
                                    uint16_t* narrow, int64_t narrow_stride, float* parts) {
  constexpr int32_t kRows = 4, kThreadsOfRow = kGradientThreads / kRows;
  __shared__ float4 coefficients[kRows][kGradientThreads];  // 0 where no target has the word
  __shared__ float peaks[kRows], factors[kRows];
  const int32_t t = (int32_t)threadIdx.x, begin = (int32_t)blockIdx.x * kGradientWords;
  const int32_t v = begin + 4 * t, mine = t / kThreadsOfRow;
  const int32_t last = ((int32_t)blockIdx.y + 1) * rows < S ? ((int32_t)blockIdx.y + 1) * rows : S;
  const Quad shift = load_quad(bias + first, v, R);
  const float4 none = make_float4(0, 0, 0, 0);
  XSR_UNROLL
  for (int32_t k = 0; k < kRows; ++k) coefficients[k][t] = none;
  Quad sums = {};
  for (int32_t i = (int32_t)blockIdx.y * rows; i < last; i += kRows) {
    Quad dz[kRows];
    XSR_UNROLL
    for (int32_t k = 0; k < kRows; ++k)
      dz[k] = load_quad(z + (i + k < last ? i + k : last - 1) * z_stride, v, R);
    __syncthreads();  // the sentences before are through
    if (i + mine < last) {
      const int32_t b = i + mine;
      float* const row = reinterpret_cast<float*>(coefficients[mine]);
      for (int32_t w = words.offsets[b] + t % kThreadsOfRow; w < words.offsets[b + 1];
           w += kThreadsOfRow) {
        const int32_t word = words.token_ids[w] - first - begin;
        if (word >= 0 && word < kGradientWords) row[word] = words.coefficients[w];
      }
      if (t % kThreadsOfRow == 0) {
        peaks[mine] = max[b];
        factors[mine] = (float)(words.coefficient_sums[b] * exp((double)max[b] - lse[b]));
      }
    }
    __syncthreads();
    XSR_UNROLL
    for (int32_t k = 0; k < kRows; ++k) {
      if (i + k >= last) break;
      const float4 c = coefficients[k][t];
      coefficients[k][t] = none;
      const float taken[4] = {c.x, c.y, c.z, c.w};
      XSR_UNROLL
      for (int32_t e = 0; e < 4; ++e) {
        const float logit = dz[k].value[e] + shift.value[e];
        // Rounded on its own, as where there is nothing to take off.
        dz[k].value[e] = __fmul_rn(expf(logit - peaks[k]), factors[k]) - taken[e];
        sums.value[e] += dz[k].value[e];
      }
      if (narrow == nullptr) {
        store_quad(z + (i + k) * z_stride, v, R, dz[k]);
      } else {
        store_quad(narrow + (i + k) * narrow_stride, v, R, dz[k]);
      }
    }
  }
  XSR_UNROLL
  for (int32_t e = 0; e < 4; ++e) {
    if (v + e < R) parts[(int64_t)blockIdx.y * R + v + e] = sums.value[e];
  }
}

/// Block i: S of row i in place, and its largest and the sum of its exponentials.
__global__ void contrastive_rows_kernel(float* s, int32_t B, float inverse_temperature,
                                        float margin, float* row_max, float* row_sum) {
  __shared__ float scratch[kWarp];
  const int32_t i = (int32_t)blockIdx.x, t = (int32_t)threadIdx.x;
  float* row = s + (int64_t)i * B;
  float peak = -INFINITY, total = 0;
  for (int32_t j = t; j < B; j += kThreads) {
    row[j] = (row[j] - (i == j ? margin : 0.0f)) * inverse_temperature;
    if (row[j] > peak) peak = row[j];
  }
  peak = block_max(peak, scratch);
  for (int32_t j = t; j < B; j += kThreads) total += expf(row[j] - peak) + zero_if_finite(row[j]);
  total = block_sum(total, scratch);
  if (t == 0) {
    row_max[i] = peak;
    row_sum[i] = total;
  }
}

__global__ void contrastive_columns_kernel(const float* s, int32_t B, float* column_max,
                                           float* column_sum) {
  __shared__ float peaks[kLanes][kColumns];
  const int32_t j = (int32_t)(blockIdx.x * kColumns + threadIdx.x);
  float peak = -INFINITY, total = 0;
  for (int32_t i = (int32_t)threadIdx.y; i < B && j < B; i += kLanes) {
    const float x = s[(int64_t)i * B + j];
    if (x > peak) peak = x;
  }
  peaks[threadIdx.y][threadIdx.x] = peak;
  __syncthreads();
  for (int32_t y = 0; y < kLanes; ++y) peak = fmaxf(peak, peaks[y][threadIdx.x]);
  for (int32_t i = (int32_t)threadIdx.y; i < B && j < B; i += kLanes) {
    const float x = s[(int64_t)i * B + j];
    total += expf(x - peak) + zero_if_finite(x);
  }
  total = sum_of_lanes(total);
  if (threadIdx.y == 0 && j < B) {
    column_max[j] = peak;
    column_sum[j] = total;
  }
}

/// Block i: the loss of pair i, then the gradient over row i.
__global__ void contrastive_gradient_kernel(float* s, int32_t B, double share, float gain,
                                            const float* row_max, const float* row_sum,
                                            const float* column_max, const float* column_sum,
                                            double* parts) {
  const int32_t i = (int32_t)blockIdx.x, t = (int32_t)threadIdx.x;
  float* row = s + (int64_t)i * B;
  if (t == 0) {
    const double positive = row[i];
    parts[i] = share * (log((double)row_sum[i]) + (row_max[i] - positive) +
                        log((double)column_sum[i]) + (column_max[i] - positive));
  }
  __syncthreads();
  const float peak = row_max[i], scale = gain / row_sum[i];
  for (int32_t j = t; j < B; j += kThreads) {
    const float x = row[j];
    float value = expf(x - peak) * scale + expf(x - column_max[j]) * (gain / column_sum[j]);
    if (i == j) value -= 2 * gain;
    row[j] = value;
  }
}

__global__ void softmax_rows_kernel(float* s, int32_t B) {
  __shared__ float scratch[kWarp];
  const int32_t t = (int32_t)threadIdx.x;
  float* row = s + (int64_t)blockIdx.x * B;
  float peak = -INFINITY, total = 0;
  for (int32_t j = t; j < B; j += kThreads) peak = row[j] > peak ? row[j] : peak;
  peak = block_max(peak, scratch);
  for (int32_t j = t; j < B; j += kThreads) {
    const float x = row[j];
    row[j] = expf(x - peak);
    total += row[j] + zero_if_finite(x);
  }
  total = block_sum(total, scratch);
  for (int32_t j = t; j < B; j += kThreads) row[j] *= 1 / total;
}

__global__ void sim_forward_backward_kernel(float* p1, float* p2, int32_t B, double argument,
                                            double min_cosine, double gain, double* parts) {
  __shared__ double scratch[kWarp];
  const int32_t i = (int32_t)blockIdx.x, t = (int32_t)threadIdx.x;
  float *row1 = p1 + (int64_t)i * B, *row2 = p2 + (int64_t)i * B;
  double total = 0, dot1 = 0, dot2 = 0, value;
  for (int32_t j = t; j < B; j += kThreads) {
    const double g = kernels::sim_cell(row1[j], row2[j], argument, min_cosine, gain, &value);
    total += value;
    dot1 += row1[j] * g;
    dot2 += row2[j] * g;
  }
  total = block_sum(total, scratch);
  dot1 = block_sum(dot1, scratch);
  dot2 = block_sum(dot2, scratch);
  for (int32_t j = t; j < B; j += kThreads) {
    const double a = row1[j], b = row2[j];
    const double g = kernels::sim_cell(a, b, argument, min_cosine, gain, &value);
    row1[j] = (float)(a * (g - dot1));
    row2[j] = (float)(b * (dot2 - g));
  }
  if (t == 0) parts[i] = total;
}

__global__ void sum_losses_kernel(const double* parts, int32_t count, double factor,
                                  double* losses) {
  __shared__ double scratch[kWarp];
  double sum = 0;
  for (int32_t i = (int32_t)threadIdx.x; i < count; i += kThreads)
    sum += parts[(int64_t)blockIdx.x * count + i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) losses[blockIdx.x] = factor * sum;
}

}  // namespace

Status vocabulary_tile_forward_f32_cuda(const float* z, int64_t z_stride, int32_t S, int32_t first,
                                        int32_t R, const float* bias, const VocabularyWords& words,
                                        float* max, float* sum, Stream stream) {
  return launch(vocabulary_tile_forward_kernel, S, kWordThreads, 0, stream, z, z_stride, first, R,
                bias, words, max, sum);
}

Status vocabulary_finish_cuda(const float* max, const float* sum, int32_t tiles, int32_t S,
                              int32_t num_pairs, const VocabularyWords& words, double* lse,
                              double* parts, Stream stream) {
  return launch(vocabulary_finish_kernel, blocks_of(S, kRowWarps), kRowWarps * kWarp, 0, stream,
                max, sum, tiles, S, num_pairs, words, lse, parts);
}

Status vocabulary_tile_backward_f32_cuda(float* z, int64_t z_stride, int32_t S, int32_t first,
                                         int32_t R, const float* bias, const VocabularyWords& words,
                                         const float* max, const double* lse, uint16_t* narrow,
                                         int64_t narrow_stride, float* dbias, float* parts,
                                         PartSums* later, Stream stream) {
  const int32_t rows = vocabulary_block_rows(S), blocks = blocks_of(S, rows);
  const Status status =
      launch(vocabulary_tile_backward_kernel, dim3(blocks_of(R, kGradientWords), blocks),
             kGradientThreads, 0, stream, z, z_stride, S, rows, first, R, bias, words, max, lse,
             narrow, narrow_stride, parts);
  return status != 0 ? status : add_blocks_cuda(parts, blocks, R, dbias + first, later, stream);
}

Status contrastive_forward_backward_f32_cuda(float* s, int32_t B, float inverse_temperature,
                                             float margin, double share, float gain,
                                             float* statistics, double* parts, Stream stream) {
  float *row_max = statistics, *row_sum = row_max + B, *column_max = row_sum + B,
        *column_sum = column_max + B;
  Status status = launch(contrastive_rows_kernel, B, kThreads, 0, stream, s, B, inverse_temperature,
                         margin, row_max, row_sum);
  if (status == 0) {
    status = launch(contrastive_columns_kernel, blocks_of(B, kColumns), dim3(kColumns, kLanes), 0,
                    stream, s, B, column_max, column_sum);
  }
  if (status != 0) return status;
  return launch(contrastive_gradient_kernel, B, kThreads, 0, stream, s, B, share, gain, row_max,
                row_sum, column_max, column_sum, parts);
}

Status sim_forward_backward_f32_cuda(float* s1, float* s2, int32_t B, double argument,
                                     double min_cosine, double gain, double* parts, Stream stream) {
  for (float* s : {s1, s2}) {
    const Status status = launch(softmax_rows_kernel, B, kThreads, 0, stream, s, B);
    if (status != 0) return status;
  }
  return launch(sim_forward_backward_kernel, B, kThreads, 0, stream, s1, s2, B, argument,
                min_cosine, gain, parts);
}

Status sum_losses_cuda(const double* parts, int32_t count, int32_t num_losses, double factor,
                       double* losses, Stream stream) {
  return launch(sum_losses_kernel, num_losses, kThreads, 0, stream, parts, count, factor, losses);
}

}  // namespace xsr::cuda
