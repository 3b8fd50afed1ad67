#include "kernels/gemm/gemm_ref.h"

namespace xsr::kernels {

uint16_t bf16_from_f32(float value) {
  const uint32_t bits = f32_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u);  // a quiet NaN
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

void split_bf16(float x, uint16_t* hi, uint16_t* lo) {
  *hi = bf16_from_f32(x);
  const float rest = x - f32_from_bf16(*hi);
  *lo = (f32_to_bits(rest) & 0x7f800000u) == 0x7f800000u ? (uint16_t)0 : bf16_from_f32(rest);
}

uint16_t f16_from_f32(float value) {
  const uint32_t bits = f32_to_bits(value);
  const uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);  // ≥ 65520 rounds to infinity
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 puts the unit 2^-24 at the last mantissa bit, so that the addition
    // rounds to nearest even.
    const float shifted = f32_from_bits(magnitude) + 0.5f;
    return (uint16_t)(sign | (f32_to_bits(shifted) - 0x3f000000u));
  }
  return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}

namespace {

uint16_t as_it_is(uint16_t value) { return value; }

/// Two inputs of one output, the first in the low half.
template <auto kNarrow, typename Element>
inline uint32_t narrow_pair(Element low, Element high) {
  return kNarrow(low) | (uint32_t)kNarrow(high) << 16;
}

constexpr int32_t kBlock = 16;  // groups of 32 rows that are turned at a time: 2 KiB

/// lane(from, group) gives the 32 bits that the row `from` of an output has in `group`; there are
/// `rows` ≤ 32 outputs and `groups` groups of kInputs inputs. Turned block by block, so that
/// neither side leaves L1; a row's next block is asked for, as so few lines of it at a time set no
/// processor's own prefetching going.
template <int32_t kInputs, typename Element, typename Lane>
inline void turn_panel(const Element* w, int64_t w_stride, int32_t rows, int32_t groups,
                       uint32_t* panel, const Lane& lane) {
  for (int32_t begin = 0; begin < groups; begin += kBlock) {
    const int32_t end = groups - begin < kBlock ? groups : begin + kBlock;
    for (int32_t row = 0; row < rows; ++row) {
      const Element* from = w + row * w_stride;
      if (end < groups) {
        for (int32_t input = 0; input < kInputs * kBlock; input += 64 / (int32_t)sizeof(Element))
          __builtin_prefetch(from + kInputs * end + input);
      }
      for (int32_t group = begin; group < end; ++group)
        panel[group * kPanelColumns + row] = lane(from, group);
    }
    for (int32_t row = rows; row < kPanelColumns; ++row) {
      for (int32_t group = begin; group < end; ++group) panel[group * kPanelColumns + row] = 0;
    }
  }
}

template <auto kNarrow, typename Element>
inline void pack_narrow_panel(const Element* w, int64_t w_stride, int32_t rows, int32_t K,
                              uint32_t* panel) {
  turn_panel<2>(w, w_stride, rows, (K + 1) / 2, panel, [=](const Element* from, int32_t group) {
    const int32_t k = 2 * group;
    return narrow_pair<kNarrow>(from[k], k + 1 < K ? from[k + 1] : Element(0));
  });
}

template <auto kNarrow, typename Element>
inline void pack_narrow_transposed_panel(const Element* w, int64_t w_stride, int32_t N,
                                         int32_t columns, uint32_t* panel) {
  for (int32_t n = 0; n < N; n += 2, panel += kPanelColumns) {
    const Element *low = w + n * w_stride, *high = low + w_stride;
    if (n + 1 < N) {
      for (int32_t c = 0; c < columns; ++c) panel[c] = narrow_pair<kNarrow>(low[c], high[c]);
    } else {
      for (int32_t c = 0; c < columns; ++c) panel[c] = kNarrow(low[c]);
    }
    for (int32_t c = columns; c < kPanelColumns; ++c) panel[c] = 0;
  }
}

/// 32-bit words from one panel to the next.
inline int64_t panel_words(int32_t K, Storage storage) {
  const int32_t kp = panel_group(storage);
  return (int64_t)kPanelColumns * ((K + kp - 1) / kp);
}

/// The larger of `largest` and |w|; a NaN is passed over.
inline float larger(float largest, float w) {
  const float magnitude = w < 0 ? -w : w;
  return magnitude > largest ? magnitude : largest;
}

inline float scale_of(float largest) {
  const float scale = largest / 127;
  return scale < kLeastScaleI8 ? 0 : scale;
}

float scale_i8(const float* w, int64_t count) {
  uint32_t largest = 0;  // as integers, magnitudes have the order they have as numbers
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = f32_to_bits(w[i]) & 0x7fffffffu;
    largest = (int32_t)magnitude > (int32_t)largest ? magnitude : largest;
  }
  return scale_of(f32_from_bits(largest));
}

int8_t code_i8(float w, float scale) { return scale > 0 ? (int8_t)round_even(w / scale) : 0; }

/// out[c] = input k of panel p's 32 outputs, scales included; 0 beyond N.
inline void widen_input(const PackedMatrix& w, int32_t p, int32_t k, float* out) {
  const int32_t first = p * kPanelColumns;
  const int32_t columns = w.N - first < kPanelColumns ? w.N - first : kPanelColumns;
  const int32_t kp = panel_group(w.storage);
  const uint32_t* lanes =
      (const uint32_t*)w.data + p * panel_words(w.K, w.storage) + (int64_t)(k / kp) * kPanelColumns;
  const int32_t shift = 32 / kp * (k % kp);
  for (int32_t c = columns; c < kPanelColumns; ++c) out[c] = 0;
  if (w.storage == Storage::kF32) {
    for (int32_t c = 0; c < columns; ++c) out[c] = f32_from_bits(lanes[c]);
  } else if (w.storage == Storage::kBF16) {
    for (int32_t c = 0; c < columns; ++c) out[c] = f32_from_bf16((uint16_t)(lanes[c] >> shift));
  } else if (w.storage == Storage::kF16) {
    for (int32_t c = 0; c < columns; ++c) out[c] = f32_from_f16((uint16_t)(lanes[c] >> shift));
  } else {
    const float* scales = w.scales + first;
    for (int32_t c = 0; c < columns; ++c) out[c] = scales[c] * (float)(int8_t)(lanes[c] >> shift);
  }
}

}  // namespace

void gemm_pack_panels(const float* w, int64_t w_stride, int32_t N, int32_t K, Storage storage,
                      int32_t first_panel, int32_t last_panel, void* packed) {
  for (int32_t p = first_panel; p < last_panel; ++p) {
    const int32_t n = p * kPanelColumns, rows = N - n < kPanelColumns ? N - n : kPanelColumns;
    const float* from = w + n * w_stride;
    uint32_t* panel = (uint32_t*)packed + p * panel_words(K, storage);
    if (storage == Storage::kF32) {
      turn_panel<1>(from, w_stride, rows, K, panel,
                    [](const float* row, int32_t group) { return f32_to_bits(row[group]); });
    } else if (storage == Storage::kBF16) {
      pack_narrow_panel<bf16_from_f32>(from, w_stride, rows, K, panel);
    } else {
      pack_narrow_panel<f16_from_f32>(from, w_stride, rows, K, panel);
    }
  }
}

void gemm_pack_transposed_panels(const float* w, int64_t w_stride, int32_t N, int32_t K,
                                 Storage storage, int32_t first_panel, int32_t last_panel,
                                 void* packed) {
  for (int32_t p = first_panel; p < last_panel; ++p) {
    const int32_t k = p * kPanelColumns, columns = K - k < kPanelColumns ? K - k : kPanelColumns;
    const float* from = w + k;
    uint32_t* panel = (uint32_t*)packed + p * panel_words(N, storage);
    if (storage == Storage::kF32) {
      for (int32_t n = 0; n < N; ++n, from += w_stride, panel += kPanelColumns) {
        for (int32_t c = 0; c < columns; ++c) panel[c] = f32_to_bits(from[c]);
        for (int32_t c = columns; c < kPanelColumns; ++c) panel[c] = 0;
      }
    } else if (storage == Storage::kBF16) {
      pack_narrow_transposed_panel<bf16_from_f32>(from, w_stride, N, columns, panel);
    } else {
      pack_narrow_transposed_panel<f16_from_f32>(from, w_stride, N, columns, panel);
    }
  }
}

void gemm_pack_panels(const uint16_t* w, int64_t w_stride, int32_t N, int32_t K,
                      int32_t first_panel, int32_t last_panel, void* packed) {
  for (int32_t p = first_panel; p < last_panel; ++p) {
    const int32_t n = p * kPanelColumns, rows = N - n < kPanelColumns ? N - n : kPanelColumns;
    pack_narrow_panel<as_it_is>(w + n * w_stride, w_stride, rows, K,
                                (uint32_t*)packed + p * panel_words(K, Storage::kBF16));
  }
}

void gemm_pack_transposed_panels(const uint16_t* w, int64_t w_stride, int32_t N, int32_t K,
                                 int32_t first_panel, int32_t last_panel, void* packed) {
  for (int32_t p = first_panel; p < last_panel; ++p) {
    const int32_t k = p * kPanelColumns, columns = K - k < kPanelColumns ? K - k : kPanelColumns;
    pack_narrow_transposed_panel<as_it_is>(w + k, w_stride, N, columns,
                                           (uint32_t*)packed + p * panel_words(N, Storage::kBF16));
  }
}

float quantize_row_i8(const float* w, int64_t count, int8_t* out) {
  const float scale = scale_i8(w, count);
  for (int64_t i = 0; i < count; ++i) out[i] = code_i8(w[i], scale);
  return scale;
}

void gemm_quantize_panels(const float* w, int64_t w_stride, int32_t N, int32_t K,
                          int32_t first_panel, int32_t last_panel, int8_t* packed, float* scales,
                          int32_t* sums) {
  const int32_t groups = (K + 3) / 4;
  for (int32_t p = first_panel; p < last_panel; ++p) {
    const int32_t n = p * kPanelColumns, rows = N - n < kPanelColumns ? N - n : kPanelColumns;
    uint32_t* panel = (uint32_t*)packed + p * panel_words(K, Storage::kI8);
    for (int32_t row = 0; row < kPanelColumns; ++row) {
      if (row >= rows) {
        for (int32_t group = 0; group < groups; ++group) panel[group * kPanelColumns + row] = 0;
        continue;
      }
      const float* from = w + (n + row) * w_stride;
      const float scale = scale_i8(from, K);
      const bool filled = scale > 0 && scale < __builtin_inff();  // else all becomes 0
      int32_t sum = 0;
      for (int32_t k = 0; k < K; k += 4 * kBlock) {
        const int32_t count = K - k < 4 * kBlock ? K - k : 4 * kBlock, there = filled ? count : 0;
        int32_t codes[4 * kBlock];
        for (int32_t i = 0; i < there; ++i) codes[i] = (int32_t)round_even(from[k + i] / scale);
        for (int32_t i = there; i < 4 * kBlock; ++i) codes[i] = 0;
        for (int32_t i = 0; i < 4 * kBlock; ++i) sum += codes[i];
        int8_t bytes[4 * kBlock];
        for (int32_t i = 0; i < 4 * kBlock; ++i) bytes[i] = (int8_t)codes[i];
        for (int32_t i = 0; i < count; i += 4)
          memcpy(panel + (k + i) / 4 * kPanelColumns + row, bytes + i, 4);
      }
      scales[n + row] = scale;
      if (sums != nullptr) sums[n + row] = sum;
    }
  }
}

void gemm_quantize_panels(const PackedMatrix& w, int8_t* packed, float* scales) {
  uint32_t* out = (uint32_t*)packed;  // four inputs of one output each
  float values[kPanelColumns], divisors[kPanelColumns];
  for (int32_t p = 0; p < panel_count(w.N); ++p) {
    float largest[kPanelColumns] = {}, poison[kPanelColumns] = {};
    for (int32_t k = 0; k < w.K; ++k) {
      widen_input(w, p, k, values);
      for (int32_t c = 0; c < kPanelColumns; ++c) {
        largest[c] = larger(largest[c], values[c]);
        poison[c] += values[c] - values[c];  // 0, but NaN for a NaN or an infinity
      }
    }
    bool finite = true;
    for (int32_t c = 0; c < kPanelColumns; ++c) {
      const bool poisoned = poison[c] != 0;
      const float scale = poisoned ? poison[c] : scale_of(largest[c]);
      divisors[c] = scale > 0 ? scale : __builtin_inff();  // what has no scale becomes 0
      finite = finite && !poisoned;
      const int32_t n = p * kPanelColumns + c;
      if (n < w.N) scales[n] = scale;
    }
    for (int32_t k = 0; k < w.K; k += 4, out += kPanelColumns) {
      uint32_t codes[kPanelColumns] = {};
      for (int32_t j = 0; j < 4 && k + j < w.K; ++j) {
        widen_input(w, p, k + j, values);
        for (int32_t c = 0; !finite && c < kPanelColumns; ++c) {
          if (poison[c] != 0) values[c] = 0;
        }
        for (int32_t c = 0; c < kPanelColumns; ++c) {
          const int32_t code = (int32_t)round_even(values[c] / divisors[c]);
          codes[c] |= ((uint32_t)code & 0xffu) << 8 * j;
        }
      }
      memcpy(out, codes, sizeof codes);
    }
  }
}

void gemm_widen_panels(const PackedMatrix& w, float* packed) {
  for (int32_t p = 0; p < panel_count(w.N); ++p) {
    for (int32_t k = 0; k < w.K; ++k, packed += kPanelColumns) widen_input(w, p, k, packed);
  }
}

void gemm_sum_panels(const PackedMatrix& w, int32_t* sums) {
  for (int32_t n = 0; n < w.N; ++n) sums[n] = 0;
  const int32_t groups = (w.K + 3) / 4;
  const int8_t* data = (const int8_t*)w.data;
  for (int32_t panel = 0; panel < panel_count(w.N); ++panel) {
    const int32_t first = panel * kPanelColumns;
    const int32_t columns = w.N - first < kPanelColumns ? w.N - first : kPanelColumns;
    for (int32_t group = 0; group < groups; ++group, data += 4 * kPanelColumns) {
      for (int32_t column = 0; column < columns; ++column) {
        const int8_t* four = data + 4 * column;
        sums[first + column] += four[0] + four[1] + four[2] + four[3];
      }
    }
  }
}

void gemm_split_panels(const PackedMatrix& w, uint16_t* split) {
  const int32_t S = split_columns(w.K);
  float values[kPanelColumns];
  for (int32_t p = 0; p < panel_count(w.N); ++p) {
    for (int32_t k = 0; k < S; k += 2, split += 4 * kPanelColumns) {
      uint32_t pairs[2][kPanelColumns] = {};  // the hi of inputs k and k + 1, and the lo
      for (int32_t j = 0; j < 2 && k + j < w.K; ++j) {
        widen_input(w, p, k + j, values);
        for (int32_t c = 0; c < kPanelColumns; ++c) {
          uint16_t hi, lo;
          split_bf16(values[c], &hi, &lo);
          pairs[0][c] |= (uint32_t)hi << 16 * j;
          pairs[1][c] |= (uint32_t)lo << 16 * j;
        }
      }
      memcpy(split, pairs, sizeof pairs);
    }
  }
}

}  // namespace xsr::kernels
