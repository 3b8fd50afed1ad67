#include <immintrin.h>

#include "kernels/gemm/gemm.h"

namespace xsr::kernels {
namespace {

constexpr int32_t kHalf = kPanelColumns / 2;

/// A group of four inputs of 8 outputs, kept from saturating.
struct Group {
  __m256i weights;
  __m256i flips;  // 255 where a weight stands with its sign changed
  __m256i rest;   // the second -128 of pairs of them, 0 elsewhere
};

inline Group keep_apart(__m256i w) {
  const __m256i second = _mm256_set1_epi16((int16_t)0xff00);
  const __m256i sum = _mm256_maddubs_epi16(_mm256_set1_epi8(1), w);
  // Weights of different signs never sum up to this.
  const __m256i beyond = _mm256_cmpgt_epi16(_mm256_abs_epi16(sum), _mm256_set1_epi16(128));
  const __m256i fixed = _mm256_cmpeq_epi8(w, _mm256_set1_epi8(-128));
  const __m256i wanted =
      _mm256_or_si256(_mm256_and_si256(beyond, second),  // the second, where it can be flipped
                      _mm256_and_si256(beyond, _mm256_srli_epi16(fixed, 8)));
  const __m256i flips = _mm256_andnot_si256(fixed, wanted);
  const __m256i both = _mm256_cmpeq_epi16(fixed, _mm256_set1_epi16(-1));
  const __m256i rest = _mm256_and_si256(w, _mm256_and_si256(both, second));
  const __m256i main = _mm256_xor_si256(w, rest);
  return {_mm256_sub_epi8(_mm256_xor_si256(main, flips), flips), flips, rest};
}

/// A group of the half panel at `from`.
struct HalfGroup {
  explicit HalfGroup(const int8_t* from)
      : part{keep_apart(_mm256_load_si256((const __m256i*)from)),
             keep_apart(_mm256_load_si256((const __m256i*)from + 1))} {}
  bool has_flips() const { return !is_zero(part[0].flips, part[1].flips); }
  bool has_rest() const { return !is_zero(part[0].rest, part[1].rest); }

  Group part[2];

 private:
  static bool is_zero(__m256i a, __m256i b) {
    const __m256i any = _mm256_or_si256(a, b);
    return _mm256_testz_si256(any, any) != 0;
  }
};

inline char* store_pair(char* to, __m256i a, __m256i b) {
  _mm256_store_si256((__m256i*)to, a);
  _mm256_store_si256((__m256i*)to + 1, b);
  return to + 64;
}

/// Writes the half panel behind its header, whose numbers of steps are known.
void pack_half(const int8_t* from, int32_t groups, StepsI8* half) {
  uint16_t* plain_group = (uint16_t*)(half + 1);
  uint16_t* flipped_group = plain_group + half->plain;
  char* plain = (char*)plain_group + step_groups_bytes(half->plain + half->flipped);
  char* flipped = plain + 64 * (int64_t)half->plain;
  __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (int32_t g = 0; g < groups; ++g, from += 4 * kPanelColumns) {
    const HalfGroup group(from);
    const Group &low = group.part[0], &high = group.part[1];
    if (group.has_flips()) {
      *flipped_group++ = (uint16_t)g;
      flipped = store_pair(flipped, low.weights, high.weights);
      flipped = store_pair(flipped, low.flips, high.flips);
      for (int32_t j = 0; j < 2; ++j) {
        const __m256i w = _mm256_load_si256((const __m256i*)from + j);
        const __m256i pairs =
            _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_and_si256(w, group.part[j].flips));
        sums[j] = _mm256_add_epi32(sums[j], _mm256_madd_epi16(pairs, _mm256_set1_epi16(255)));
      }
    } else {
      *plain_group++ = (uint16_t)g;
      plain = store_pair(plain, low.weights, high.weights);
    }
    if (group.has_rest()) {
      *plain_group++ = (uint16_t)g;
      plain = store_pair(plain, low.rest, high.rest);
    }
  }
  for (int32_t j = 0; j < 2; ++j) _mm256_store_si256((__m256i*)half->offsets + j, sums[j]);
}

}  // namespace

int64_t gemm_pack_steps_i8_avx2(const PackedMatrix& w, void* steps) {
  const int32_t groups = (w.K + 3) / 4, halves = 2 * panel_count(w.N);
  int64_t bytes = (sizeof(int64_t) * (int64_t)halves + 63) / 64 * 64;
  for (int32_t half = 0; half < halves; ++half) {
    const int8_t* from = (const int8_t*)w.data + (int64_t)(half / 2) * groups * 4 * kPanelColumns +
                         half % 2 * 4 * kHalf;
    StepsI8 header = {};
    for (int32_t g = 0; g < groups; ++g) {
      const HalfGroup group(from + (int64_t)g * 4 * kPanelColumns);
      const int32_t flips = group.has_flips() ? 1 : 0;
      header.flipped += flips;
      header.plain += 1 - flips + (group.has_rest() ? 1 : 0);
    }
    if (steps != nullptr) {
      ((int64_t*)steps)[half] = bytes;
      StepsI8* to = (StepsI8*)((char*)steps + bytes);
      *to = header;
      pack_half(from, groups, to);
    }
    bytes += (int64_t)sizeof header + step_groups_bytes(header.plain + header.flipped) +
             64 * (int64_t)header.plain + 128 * (int64_t)header.flipped;
  }
  return bytes;
}

}  // namespace xsr::kernels
