#pragma once
// AVX-512 F, BW, DQ, VL, VNNI, BF16 and AMX carried out with AVX2: what a build with
// XSR_EMULATE_ISA puts in front of the files of these ISAs (-include), so that tests can run them
// on any CPU.
//
// The names are declared in xsr::kernels, where they hide the compiler's; an intrinsic that is
// missing here does not compile. What AVX2 has is done by it, half by half; the rest are loops
// written from Intel's documentation. Kinder than a CPU nowhere: an aligned access that is not, or
// a wrong tile configuration, aborts.
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

// Macros with some compilers.
#undef _mm512_cmp_ps_mask
#undef _mm512_cmpeq_epi32_mask
#undef _mm512_cmpge_epu32_mask
#undef _mm512_extractf32x8_ps
#undef _mm512_extractf64x4_pd
#undef _mm512_insertf32x8
#undef _mm512_roundscale_ps
#undef _mm512_setr_epi32
#undef _mm512_shuffle_f32x4
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#undef _tile_dpbusd
#undef _tile_loadd
#undef _tile_stored
#undef _tile_stream_loadd
#undef _tile_zero

// What the files of AVX512_BF16 ask for; set on the command line it would change the headers above.
#if defined(XSR_EMULATE_AVX512_BF16)
#define __AVX512BF16__ 1
#endif

// Loops stay functions: inlined into the kernels' unrolled tiles they take minutes to compile.
#define XSR_EMULATED static inline __attribute__((always_inline))
#define XSR_EMULATED_LOOP static __attribute__((noinline, unused))

namespace xsr::kernels {

struct alignas(64) __m512 {
  __m256 half[2];
};
struct alignas(64) __m512d {
  __m256d half[2];
};
struct alignas(64) __m512i {
  __m256i half[2];
};
/// Made by casts, as the compilers' types are.
struct alignas(64) __m512bh {
  __m512bh() = default;
  explicit __m512bh(const __m512i& x) : half{x.half[0], x.half[1]} {}
  explicit __m512bh(const __m512& x)
      : half{_mm256_castps_si256(x.half[0]), _mm256_castps_si256(x.half[1])} {}
  explicit operator __m512i() const { return {{half[0], half[1]}}; }
  __m256i half[2];
};
struct __m256bh {
  explicit operator __m256i() const { return bits; }
  __m256i bits;
};

namespace emulated {

[[noreturn]] static inline void fail(const char* what) {
  fprintf(stderr, "emulated instruction: %s\n", what);
  abort();
}
XSR_EMULATED void check_alignment(const void* p) {
  if (((uintptr_t)p & 63) != 0) fail("an aligned access to what is not on a 64-byte boundary");
}

template <typename T>
struct Lanes {
  T at[64 / sizeof(T)];
};
template <typename T, typename V>
XSR_EMULATED Lanes<T> lanes(const V& vector) {
  static_assert(sizeof(V) <= sizeof(Lanes<T>));
  Lanes<T> result = {};
  __builtin_memcpy(&result, &vector, sizeof vector);
  return result;
}
template <typename V, typename T>
XSR_EMULATED V vector(const Lanes<T>& lanes) {
  V result;
  __builtin_memcpy(&result, &lanes, sizeof result);
  return result;
}

/// Lanes outside the mask keep what they hold, and memory is not read there.
template <typename T>
XSR_EMULATED void load(Lanes<T>& into, uint64_t mask, const void* from, int count) {
  for (int i = 0; i < count; ++i) {
    if (mask >> i & 1) __builtin_memcpy(&into.at[i], (const char*)from + i * sizeof(T), sizeof(T));
  }
}
template <typename T>
XSR_EMULATED void store(const Lanes<T>& from, uint64_t mask, void* to, int count) {
  for (int i = 0; i < count; ++i) {
    if (mask >> i & 1) __builtin_memcpy((char*)to + i * sizeof(T), &from.at[i], sizeof(T));
  }
}

/// All ones in the 32-bit lanes of bits 0 to 7.
XSR_EMULATED __m256i spread(int mask) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(mask), bits), bits);
}

/// The 32 predicates of VCMPPS but for their exceptions, in which the last 16 differ from the
/// first.
XSR_EMULATED bool compare(float a, float b, int predicate) {
  const bool unordered = a != a || b != b;
  switch (predicate & 15) {
    case _CMP_EQ_OQ:
      return !unordered && a == b;
    case _CMP_LT_OS:
      return !unordered && a < b;
    case _CMP_LE_OS:
      return !unordered && a <= b;
    case _CMP_UNORD_Q:
      return unordered;
    case _CMP_NEQ_UQ:
      return unordered || a != b;
    case _CMP_NLT_US:
      return unordered || a >= b;
    case _CMP_NLE_US:
      return unordered || a > b;
    case _CMP_ORD_Q:
      return !unordered;
    case _CMP_EQ_UQ:
      return unordered || a == b;
    case _CMP_NGE_US:
      return unordered || a < b;
    case _CMP_NGT_US:
      return unordered || a <= b;
    case _CMP_FALSE_OQ:
      return false;
    case _CMP_NEQ_OQ:
      return !unordered && a != b;
    case _CMP_GE_OS:
      return !unordered && a >= b;
    case _CMP_GT_OS:
      return !unordered && a > b;
  }
  return true;
}

/// a · 2^⌊b⌋, rounded once.
XSR_EMULATED float scalef(float a, float b) {
  const float infinity = __builtin_inff(), nan = __builtin_nanf("");
  if (a != a) return b == infinity ? infinity : b == -infinity ? 0.0f : a;
  if (b != b) return b;
  const bool a_infinite = a == infinity || a == -infinity;
  if (b == infinity) return a == 0 ? nan : __builtin_copysignf(infinity, a);
  if (b == -infinity) return a_infinite ? nan : __builtin_copysignf(0.0f, a);
  // Beyond ±300 every float has long left the range; in double nothing up to there is rounded.
  const double limited = b > 300 ? 300 : b < -300 ? -300 : __builtin_floor((double)b);
  const int64_t exponent = (1023 + (int64_t)limited) << 52;
  double power;
  __builtin_memcpy(&power, &exponent, 8);
  return (float)(a * power);
}

/// Denormals → zeros of the same sign.
XSR_EMULATED __m256 flush(__m256 x) {
  const __m256 exponent = _mm256_castsi256_ps(_mm256_set1_epi32(0x7f800000));
  const __m256i is_small =
      _mm256_cmpeq_epi32(_mm256_castps_si256(_mm256_and_ps(x, exponent)), _mm256_setzero_si256());
  return _mm256_blendv_ps(x, _mm256_and_ps(x, _mm256_set1_ps(-0.0f)),
                          _mm256_castsi256_ps(is_small));
}
/// An FMA with denormals taken and given as zeros.
XSR_EMULATED __m256 flushing_fmadd(__m256 a, __m256 b, __m256 sum) {
  return flush(_mm256_fmadd_ps(flush(a), flush(b), flush(sum)));
}
/// The bf16 in the odd and even halves of 32-bit lanes.
XSR_EMULATED __m256 odd(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000u)));
}
XSR_EMULATED __m256 even(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
}

XSR_EMULATED uint16_t bf16(uint32_t bits) {
  const uint32_t exponent = bits & 0x7f800000u, mantissa = bits & 0x7fffffu;
  if (exponent == 0) return (uint16_t)(bits >> 16 & 0x8000u);
  if (exponent == 0x7f800000u) return (uint16_t)(bits >> 16 | (mantissa != 0 ? 0x40u : 0u));
  return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/// acc + Σ of four products, modulo 2^32.
template <typename A>
XSR_EMULATED int32_t dot_bytes(int32_t acc, const A* a, const int8_t* b) {
  int32_t sum = 0;
  for (int i = 0; i < 4; ++i) sum += (int32_t)a[i] * b[i];
  return (int32_t)((uint32_t)acc + (uint32_t)sum);
}

}  // namespace emulated

// What AVX2 does with each half.
#define XSR_HALVES_1(name, Result, From, instruction)                            \
  XSR_EMULATED Result _mm512_##name(From a) {                                    \
    return {{_mm256_##instruction(a.half[0]), _mm256_##instruction(a.half[1])}}; \
  }
#define XSR_HALVES_2(name, V, instruction)                                                         \
  XSR_EMULATED V _mm512_##name(V a, V b) {                                                         \
    return {                                                                                       \
        {_mm256_##instruction(a.half[0], b.half[0]), _mm256_##instruction(a.half[1], b.half[1])}}; \
  }
#define XSR_HALVES_3(name, V)                                  \
  XSR_EMULATED V _mm512_##name(V a, V b, V c) {                \
    return {{_mm256_##name(a.half[0], b.half[0], c.half[0]),   \
             _mm256_##name(a.half[1], b.half[1], c.half[1])}}; \
  }
#define XSR_HALVES_SHIFT(name)                                                             \
  XSR_EMULATED __m512i _mm512_##name(__m512i a, unsigned count) {                          \
    return {{_mm256_##name(a.half[0], (int)count), _mm256_##name(a.half[1], (int)count)}}; \
  }
XSR_HALVES_1(castpd_ps, __m512, __m512d, castpd_ps)
XSR_HALVES_1(castps_pd, __m512d, __m512, castps_pd)
XSR_HALVES_1(castps_si512, __m512i, __m512, castps_si256)
XSR_HALVES_1(castsi512_ps, __m512, __m512i, castsi256_ps)
XSR_HALVES_1(cvtepi32_ps, __m512, __m512i, cvtepi32_ps)
XSR_HALVES_1(cvtps_epi32, __m512i, __m512, cvtps_epi32)
XSR_HALVES_1(sqrt_ps, __m512, __m512, sqrt_ps)
XSR_HALVES_2(add_epi32, __m512i, add_epi32)
XSR_HALVES_2(add_pd, __m512d, add_pd)
XSR_HALVES_2(add_ps, __m512, add_ps)
XSR_HALVES_2(adds_epi16, __m512i, adds_epi16)
XSR_HALVES_2(and_ps, __m512, and_ps)
XSR_HALVES_2(and_si512, __m512i, and_si256)
XSR_HALVES_2(div_ps, __m512, div_ps)
XSR_HALVES_2(max_epi32, __m512i, max_epi32)
XSR_HALVES_2(max_ps, __m512, max_ps)
XSR_HALVES_2(min_ps, __m512, min_ps)
XSR_HALVES_2(mul_epu32, __m512i, mul_epu32)
XSR_HALVES_2(mul_pd, __m512d, mul_pd)
XSR_HALVES_2(mul_ps, __m512, mul_ps)
XSR_HALVES_2(mullo_epi32, __m512i, mullo_epi32)
XSR_HALVES_2(or_ps, __m512, or_ps)
XSR_HALVES_2(or_si512, __m512i, or_si256)
XSR_HALVES_2(packs_epi32, __m512i, packs_epi32)
XSR_HALVES_2(packus_epi16, __m512i, packus_epi16)
XSR_HALVES_2(sub_epi32, __m512i, sub_epi32)
XSR_HALVES_2(sub_ps, __m512, sub_ps)
XSR_HALVES_2(unpackhi_epi32, __m512i, unpackhi_epi32)
XSR_HALVES_2(unpackhi_epi64, __m512i, unpackhi_epi64)
XSR_HALVES_2(unpackhi_pd, __m512d, unpackhi_pd)
XSR_HALVES_2(unpackhi_ps, __m512, unpackhi_ps)
XSR_HALVES_2(unpacklo_epi32, __m512i, unpacklo_epi32)
XSR_HALVES_2(unpacklo_epi64, __m512i, unpacklo_epi64)
XSR_HALVES_2(unpacklo_pd, __m512d, unpacklo_pd)
XSR_HALVES_2(unpacklo_ps, __m512, unpacklo_ps)
XSR_HALVES_2(xor_ps, __m512, xor_ps)
XSR_HALVES_2(xor_si512, __m512i, xor_si256)
XSR_HALVES_3(fmadd_pd, __m512d)
XSR_HALVES_3(fmadd_ps, __m512)
XSR_HALVES_3(fmsub_ps, __m512)
XSR_HALVES_3(fnmadd_pd, __m512d)
XSR_HALVES_3(fnmadd_ps, __m512)
XSR_HALVES_SHIFT(slli_epi32)
XSR_HALVES_SHIFT(slli_epi64)
XSR_HALVES_SHIFT(srli_epi32)
XSR_HALVES_SHIFT(srli_epi64)
#undef XSR_HALVES_1
#undef XSR_HALVES_2
#undef XSR_HALVES_3
#undef XSR_HALVES_SHIFT

XSR_EMULATED __m512 _mm512_set1_ps(float x) { return {{_mm256_set1_ps(x), _mm256_set1_ps(x)}}; }
XSR_EMULATED __m512d _mm512_set1_pd(double x) { return {{_mm256_set1_pd(x), _mm256_set1_pd(x)}}; }
XSR_EMULATED __m512i _mm512_set1_epi32(int x) {
  return {{_mm256_set1_epi32(x), _mm256_set1_epi32(x)}};
}
XSR_EMULATED __m512i _mm512_set1_epi16(short x) {
  return {{_mm256_set1_epi16(x), _mm256_set1_epi16(x)}};
}
XSR_EMULATED __m512i _mm512_setr_epi32(int a, int b, int c, int d, int e, int f, int g, int h,
                                       int i, int j, int k, int l, int m, int n, int o, int p) {
  return {{_mm256_setr_epi32(a, b, c, d, e, f, g, h), _mm256_setr_epi32(i, j, k, l, m, n, o, p)}};
}
XSR_EMULATED __m512 _mm512_setzero_ps() { return _mm512_set1_ps(0.0f); }
XSR_EMULATED __m512d _mm512_setzero_pd() { return _mm512_set1_pd(0.0); }
XSR_EMULATED __m512i _mm512_setzero_si512() { return _mm512_set1_epi32(0); }
XSR_EMULATED __m512 _mm512_abs_ps(__m512 a) {
  return _mm512_and_ps(a, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff)));
}

// Whole loads and stores.
XSR_EMULATED __m512 _mm512_loadu_ps(const void* p) {
  return {{_mm256_loadu_ps((const float*)p), _mm256_loadu_ps((const float*)p + 8)}};
}
XSR_EMULATED __m512 _mm512_load_ps(const void* p) {
  emulated::check_alignment(p);
  return _mm512_loadu_ps(p);
}
XSR_EMULATED __m512i _mm512_load_si512(const void* p) {
  emulated::check_alignment(p);
  return _mm512_castps_si512(_mm512_loadu_ps(p));
}
XSR_EMULATED void _mm512_storeu_ps(void* p, __m512 a) {
  _mm256_storeu_ps((float*)p, a.half[0]);
  _mm256_storeu_ps((float*)p + 8, a.half[1]);
}
XSR_EMULATED void _mm512_storeu_si512(void* p, __m512i a) {
  _mm512_storeu_ps(p, _mm512_castsi512_ps(a));
}
XSR_EMULATED void _mm512_store_ps(void* p, __m512 a) {
  emulated::check_alignment(p);
  _mm512_storeu_ps(p, a);
}
XSR_EMULATED void _mm512_store_si512(void* p, __m512i a) {
  emulated::check_alignment(p);
  _mm512_storeu_ps(p, _mm512_castsi512_ps(a));
}

// Masked loads and stores: nothing outside the mask is touched.
XSR_EMULATED_LOOP __m512 _mm512_mask_loadu_ps(__m512 source, __mmask16 mask, const void* p) {
  if (mask == 0xffff) return _mm512_loadu_ps(p);
  auto lanes = emulated::lanes<float>(source);
  emulated::load(lanes, mask, p, 16);
  return emulated::vector<__m512>(lanes);
}
XSR_EMULATED __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* p) {
  return _mm512_mask_loadu_ps(_mm512_setzero_ps(), mask, p);
}
XSR_EMULATED __m512i _mm512_maskz_loadu_epi32(__mmask16 mask, const void* p) {
  return _mm512_castps_si512(_mm512_maskz_loadu_ps(mask, p));
}
XSR_EMULATED_LOOP __m512i _mm512_maskz_loadu_epi16(__mmask32 mask, const void* p) {
  if (mask == 0xffffffffu) return _mm512_castps_si512(_mm512_loadu_ps(p));
  emulated::Lanes<uint16_t> lanes = {};
  emulated::load(lanes, mask, p, 32);
  return emulated::vector<__m512i>(lanes);
}
XSR_EMULATED_LOOP void _mm512_mask_storeu_ps(void* p, __mmask16 mask, __m512 a) {
  if (mask == 0xffff) return _mm512_storeu_ps(p, a);
  emulated::store(emulated::lanes<float>(a), mask, p, 16);
}
XSR_EMULATED void _mm512_mask_storeu_epi32(void* p, __mmask16 mask, __m512i a) {
  _mm512_mask_storeu_ps(p, mask, _mm512_castsi512_ps(a));
}
XSR_EMULATED_LOOP __m256 _mm256_maskz_loadu_ps(__mmask8 mask, const void* p) {
  emulated::Lanes<float> lanes = {};
  emulated::load(lanes, mask, p, 8);
  return emulated::vector<__m512>(lanes).half[0];
}
XSR_EMULATED_LOOP void _mm256_mask_storeu_ps(void* p, __mmask8 mask, __m256 a) {
  emulated::store(emulated::lanes<float>(__m512{{a, a}}), mask, p, 8);
}
XSR_EMULATED_LOOP __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void* p) {
  emulated::Lanes<uint16_t> lanes = {};
  emulated::load(lanes, mask, p, 16);
  return emulated::vector<__m512i>(lanes).half[0];
}
XSR_EMULATED_LOOP void _mm256_mask_storeu_epi16(void* p, __mmask16 mask, __m256i a) {
  emulated::store(emulated::lanes<uint16_t>(__m512i{{a, a}}), mask, p, 16);
}
XSR_EMULATED_LOOP __m128i _mm_maskz_loadu_epi8(__mmask16 mask, const void* p) {
  emulated::Lanes<uint8_t> lanes = {};
  emulated::load(lanes, mask, p, 16);
  return _mm256_castsi256_si128(emulated::vector<__m512i>(lanes).half[0]);
}
XSR_EMULATED_LOOP void _mm_mask_storeu_epi8(void* p, __mmask16 mask, __m128i a) {
  const __m256i both = _mm256_broadcastsi128_si256(a);
  emulated::store(emulated::lanes<uint8_t>(__m512i{{both, both}}), mask, p, 16);
}

// Masked arithmetic: lanes outside the mask are the source's, or zero.
XSR_EMULATED __m512 _mm512_mask_mov_ps(__m512 source, __mmask16 mask, __m512 a) {
  const __m256i low = emulated::spread(mask & 0xff), high = emulated::spread(mask >> 8);
  return {{_mm256_blendv_ps(source.half[0], a.half[0], _mm256_castsi256_ps(low)),
           _mm256_blendv_ps(source.half[1], a.half[1], _mm256_castsi256_ps(high))}};
}
XSR_EMULATED_LOOP __m512i _mm512_maskz_mov_epi16(uint32_t mask, __m512i a) {
  emulated::Lanes<uint16_t> lanes = emulated::lanes<uint16_t>(a);
  for (int i = 0; i < 32; ++i) lanes.at[i] = mask >> i & 1 ? lanes.at[i] : (uint16_t)0;
  return emulated::vector<__m512i>(lanes);
}
XSR_EMULATED __m512 _mm512_maskz_mov_ps(__mmask16 mask, __m512 a) {
  return _mm512_mask_mov_ps(_mm512_setzero_ps(), mask, a);
}
XSR_EMULATED __m512i _mm512_mask_mov_epi32(__m512i source, __mmask16 mask, __m512i a) {
  return _mm512_castps_si512(
      _mm512_mask_mov_ps(_mm512_castsi512_ps(source), mask, _mm512_castsi512_ps(a)));
}
XSR_EMULATED __m512 _mm512_mask_max_ps(__m512 source, __mmask16 mask, __m512 a, __m512 b) {
  return _mm512_mask_mov_ps(source, mask, _mm512_max_ps(a, b));
}
XSR_EMULATED __m512 _mm512_mask_min_ps(__m512 source, __mmask16 mask, __m512 a, __m512 b) {
  return _mm512_mask_mov_ps(source, mask, _mm512_min_ps(a, b));
}
XSR_EMULATED __m512 _mm512_mask_or_ps(__m512 source, __mmask16 mask, __m512 a, __m512 b) {
  return _mm512_mask_mov_ps(source, mask, _mm512_or_ps(a, b));
}
XSR_EMULATED __m512i _mm512_mask_or_epi32(__m512i source, __mmask16 mask, __m512i a, __m512i b) {
  return _mm512_mask_mov_epi32(source, mask, _mm512_or_si512(a, b));
}
XSR_EMULATED __m512i _mm512_maskz_max_epi32(__mmask16 mask, __m512i a, __m512i b) {
  return _mm512_mask_mov_epi32(_mm512_setzero_si512(), mask, _mm512_max_epi32(a, b));
}
XSR_EMULATED __m512 _mm512_maskz_mul_ps(__mmask16 mask, __m512 a, __m512 b) {
  return _mm512_maskz_mov_ps(mask, _mm512_mul_ps(a, b));
}
XSR_EMULATED __m512 _mm512_movehdup_ps(__m512 a) {
  return {{_mm256_movehdup_ps(a.half[0]), _mm256_movehdup_ps(a.half[1])}};
}
XSR_EMULATED __m512 _mm512_mask_movehdup_ps(__m512 source, __mmask16 mask, __m512 a) {
  return _mm512_mask_mov_ps(source, mask, _mm512_movehdup_ps(a));
}
XSR_EMULATED __m512 _mm512_mask_moveldup_ps(__m512 source, __mmask16 mask, __m512 a) {
  return _mm512_mask_mov_ps(source, mask,
                            {{_mm256_moveldup_ps(a.half[0]), _mm256_moveldup_ps(a.half[1])}});
}
XSR_EMULATED __m512 _mm512_maskz_sub_ps(__mmask16 mask, __m512 a, __m512 b) {
  return _mm512_maskz_mov_ps(mask, _mm512_sub_ps(a, b));
}

// Comparisons.
XSR_EMULATED_LOOP __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int predicate) {
  const auto x = emulated::lanes<float>(a), y = emulated::lanes<float>(b);
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i)
    mask |= (uint32_t)emulated::compare(x.at[i], y.at[i], predicate) << i;
  return (__mmask16)mask;
}
XSR_EMULATED_LOOP __mmask16 _mm512_cmpeq_epi32_mask(__m512i a, __m512i b) {
  const auto x = emulated::lanes<int32_t>(a), y = emulated::lanes<int32_t>(b);
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= (uint32_t)(x.at[i] == y.at[i]) << i;
  return (__mmask16)mask;
}
XSR_EMULATED_LOOP __mmask16 _mm512_cmpge_epu32_mask(__m512i a, __m512i b) {
  const auto x = emulated::lanes<uint32_t>(a), y = emulated::lanes<uint32_t>(b);
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= (uint32_t)(x.at[i] >= y.at[i]) << i;
  return (__mmask16)mask;
}

// Parts and their order.
XSR_EMULATED __m256 _mm512_castps512_ps256(__m512 a) { return a.half[0]; }
XSR_EMULATED __m256d _mm512_castpd512_pd256(__m512d a) { return a.half[0]; }
/// The upper half is undefined: NaN here, which shows where it is used.
XSR_EMULATED __m512 _mm512_castps256_ps512(__m256 a) {
  return {{a, _mm256_set1_ps(__builtin_nanf(""))}};
}
XSR_EMULATED __m256 _mm512_extractf32x8_ps(__m512 a, int part) { return a.half[part]; }
XSR_EMULATED __m256d _mm512_extractf64x4_pd(__m512d a, int part) { return a.half[part]; }
XSR_EMULATED __m512 _mm512_insertf32x8(__m512 a, __m256 b, int part) {
  a.half[part] = b;
  return a;
}
XSR_EMULATED_LOOP __m512i _mm512_permutexvar_epi32(__m512i choice, __m512i a) {
  const auto from = emulated::lanes<uint32_t>(a), at = emulated::lanes<uint32_t>(choice);
  emulated::Lanes<uint32_t> result;
  for (int i = 0; i < 16; ++i) result.at[i] = from.at[at.at[i] & 15];
  return emulated::vector<__m512i>(result);
}
XSR_EMULATED_LOOP __m512 _mm512_permutexvar_ps(__m512i choice, __m512 a) {
  return _mm512_castsi512_ps(_mm512_permutexvar_epi32(choice, _mm512_castps_si512(a)));
}
XSR_EMULATED_LOOP __m512i _mm512_permutex2var_epi16(__m512i a, __m512i choice, __m512i b) {
  const auto x = emulated::lanes<uint16_t>(a), y = emulated::lanes<uint16_t>(b),
             at = emulated::lanes<uint16_t>(choice);
  emulated::Lanes<uint16_t> result;
  for (int i = 0; i < 32; ++i) result.at[i] = ((at.at[i] & 32) != 0 ? y : x).at[at.at[i] & 31];
  return emulated::vector<__m512i>(result);
}
XSR_EMULATED_LOOP __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int choice) {
  const auto x = emulated::lanes<float>(a), y = emulated::lanes<float>(b);
  emulated::Lanes<float> result;
  for (int quarter = 0; quarter < 4; ++quarter) {
    const int from = choice >> 2 * quarter & 3;
    for (int i = 0; i < 4; ++i) result.at[4 * quarter + i] = (quarter < 2 ? x : y).at[4 * from + i];
  }
  return emulated::vector<__m512>(result);
}

// Conversions.
XSR_EMULATED __m512 _mm512_cvtph_ps(__m256i a) {
  return {{_mm256_cvtph_ps(_mm256_castsi256_si128(a)),
           _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1))}};
}
XSR_EMULATED __m512i _mm512_cvtepu16_epi32(__m256i a) {
  return {{_mm256_cvtepu16_epi32(_mm256_castsi256_si128(a)),
           _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1))}};
}
XSR_EMULATED __m512i _mm512_cvtepi8_epi32(__m128i a) {
  return {{_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(a, a))}};
}
XSR_EMULATED __m512d _mm512_cvtps_pd(__m256 a) {
  return {
      {_mm256_cvtps_pd(_mm256_castps256_ps128(a)), _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1))}};
}
XSR_EMULATED __m256 _mm512_cvtpd_ps(__m512d a) {
  return _mm256_set_m128(_mm256_cvtpd_ps(a.half[1]), _mm256_cvtpd_ps(a.half[0]));
}
/// The lower 16 bits.
XSR_EMULATED_LOOP __m256i _mm512_cvtepi32_epi16(__m512i a) {
  const auto x = emulated::lanes<uint32_t>(a);
  emulated::Lanes<uint16_t> result = {};
  for (int i = 0; i < 16; ++i) result.at[i] = (uint16_t)x.at[i];
  return emulated::vector<__m512i>(result).half[0];
}
/// Lanes are unsigned, too.
XSR_EMULATED_LOOP __m128i _mm512_cvtusepi32_epi8(__m512i a) {
  const auto x = emulated::lanes<uint32_t>(a);
  emulated::Lanes<uint8_t> result = {};
  for (int i = 0; i < 16; ++i) result.at[i] = (uint8_t)(x.at[i] < 255 ? x.at[i] : 255);
  return _mm256_castsi256_si128(emulated::vector<__m512i>(result).half[0]);
}

/// To 2^-m, m in the control's upper four bits.
XSR_EMULATED_LOOP __m512 _mm512_roundscale_ps(__m512 a, int control) {
  auto x = emulated::lanes<float>(a);
  const float scale = (float)(1 << (control >> 4 & 15));
  for (float& value : x.at) {
    const float scaled = value * scale;
    const float rounded = (control & 7) == _MM_FROUND_TO_NEG_INF   ? __builtin_floorf(scaled)
                          : (control & 7) == _MM_FROUND_TO_POS_INF ? __builtin_ceilf(scaled)
                          : (control & 7) == _MM_FROUND_TO_ZERO    ? __builtin_truncf(scaled)
                                                                   : __builtin_rintf(scaled);
    if (scaled - scaled == 0) value = rounded / scale;  // too large to have a fraction otherwise
  }
  return emulated::vector<__m512>(x);
}
XSR_EMULATED_LOOP __m512 _mm512_scalef_ps(__m512 a, __m512 b) {
  auto x = emulated::lanes<float>(a);
  const auto y = emulated::lanes<float>(b);
  for (int i = 0; i < 16; ++i) x.at[i] = emulated::scalef(x.at[i], y.at[i]);
  return emulated::vector<__m512>(x);
}

// Reductions, by halves as in the compilers' headers: upper, lower.
#define XSR_REDUCE(name, op)                                                                      \
  XSR_EMULATED float _mm512_reduce_##name(__m512 a) {                                             \
    const __m256 eight = _mm256_##op(a.half[1], a.half[0]);                                       \
    const __m128 four = _mm_##op(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight)); \
    const __m128 two = _mm_##op(four, _mm_movehl_ps(four, four));                                 \
    return _mm_cvtss_f32(_mm_##op(two, _mm_movehdup_ps(two)));                                    \
  }
XSR_REDUCE(add_ps, add_ps)
XSR_REDUCE(max_ps, max_ps)
XSR_REDUCE(min_ps, min_ps)
#undef XSR_REDUCE
XSR_EMULATED double _mm512_reduce_add_pd(__m512d a) {
  const __m256d four = _mm256_add_pd(a.half[1], a.half[0]);
  const __m128d two = _mm_add_pd(_mm256_extractf128_pd(four, 1), _mm256_castpd256_pd128(four));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

// VNNI and BF16.
XSR_EMULATED_LOOP __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
  auto total = emulated::lanes<int32_t>(sum);
  const auto x = emulated::lanes<uint8_t>(a);
  const auto y = emulated::lanes<int8_t>(b);
  for (int i = 0; i < 16; ++i)
    total.at[i] = emulated::dot_bytes(total.at[i], &x.at[4 * i], &y.at[4 * i]);
  return emulated::vector<__m512i>(total);
}
/// The odd product first, both by FMA.
XSR_EMULATED_LOOP __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  using namespace emulated;
  for (int i = 0; i < 2; ++i) {
    sum.half[i] = flushing_fmadd(odd(a.half[i]), odd(b.half[i]), sum.half[i]);
    sum.half[i] = flushing_fmadd(even(a.half[i]), even(b.half[i]), sum.half[i]);
  }
  return sum;
}
XSR_EMULATED_LOOP __m256bh _mm512_cvtneps_pbh(__m512 a) {
  const auto x = emulated::lanes<uint32_t>(a);
  emulated::Lanes<uint16_t> result = {};
  for (int i = 0; i < 16; ++i) result.at[i] = emulated::bf16(x.at[i]);
  return {emulated::vector<__m512i>(result).half[0]};
}

// AMX: eight tiles a thread, in every object file its own; a kernel is one file. The tiles' numbers
// may be variables.
namespace emulated {

struct Tile {
  int rows, row_bytes;
  alignas(64) uint8_t at[16][64];
};
struct Tiles {
  bool configured;
  Tile tile[8];
};
static inline Tiles& tiles() {
  static thread_local Tiles state = {};
  return state;
}
static inline Tile& tile(int number) {
  if (number < 0 || number > 7) fail("there are tiles 0 to 7");
  if (!tiles().configured) fail("tiles are used without a configuration");
  Tile& tile = tiles().tile[number];
  if (tile.rows == 0) fail("a tile is used that the configuration leaves out");
  return tile;
}
/// The operands of a product: rows and bytes must fit.
static inline void check_product(int sum, int a, int b) {
  if (sum == a || sum == b || a == b) fail("a tile product needs three tiles");
  const Tile &s = tile(sum), &x = tile(a), &y = tile(b);
  if (s.row_bytes % 4 != 0 || x.row_bytes % 4 != 0 || y.row_bytes % 4 != 0)
    fail("rows of a tile product are not whole lanes of 32 bits");
  if (s.rows != x.rows || s.row_bytes != y.row_bytes || x.row_bytes / 4 != y.rows)
    fail("the tiles of a product do not fit each other");
}
template <typename A, typename B>
static inline void multiply_bytes(int sum, int a, int b) {
  check_product(sum, a, b);
  Tile& s = tile(sum);
  for (int m = 0; m < s.rows; ++m) {
    for (int k = 0; k < tile(b).rows; ++k) {
      for (int n = 0; n < s.row_bytes / 4; ++n) {
        A x[4];
        B y[4];
        uint32_t total;
        __builtin_memcpy(x, tile(a).at[m] + 4 * k, 4);
        __builtin_memcpy(y, tile(b).at[k] + 4 * n, 4);
        __builtin_memcpy(&total, s.at[m] + 4 * n, 4);
        total = (uint32_t)dot_bytes((int32_t)total, x, y);
        __builtin_memcpy(s.at[m] + 4 * n, &total, 4);
      }
    }
  }
}

}  // namespace emulated

static inline void _tile_release() { emulated::tiles() = {}; }
/// The 64 bytes of palette 1: palette, first row of an interrupted load, 14 reserved, then bytes a
/// row and rows of 16 tiles, of which there are 8.
static inline void _tile_loadconfig(const void* config) {
  uint8_t bytes[64];
  __builtin_memcpy(bytes, config, 64);
  if (bytes[0] == 0) return _tile_release();
  if (bytes[0] != 1) emulated::fail("the tile palette is neither 0 nor 1");
  for (int i = 2; i < 16; ++i) {
    if (bytes[i] != 0) emulated::fail("reserved bytes of the tile configuration are not 0");
  }
  if (bytes[1] != 0) emulated::fail("the tile configuration begins within a load");
  emulated::Tiles& tiles = emulated::tiles();
  tiles = {};
  tiles.configured = true;
  for (int i = 0; i < 16; ++i) {
    const int row_bytes = bytes[16 + 2 * i] | bytes[17 + 2 * i] << 8, rows = bytes[48 + i];
    if (i >= 8 && (row_bytes != 0 || rows != 0))
      emulated::fail("the configuration names more than 8 tiles");
    if (row_bytes > 64 || rows > 16) emulated::fail("a tile has at most 16 rows of 64 bytes");
    if ((row_bytes == 0) != (rows == 0))
      emulated::fail("a tile has rows without bytes, or bytes without rows");
    if (i < 8) tiles.tile[i].rows = rows, tiles.tile[i].row_bytes = row_bytes;
  }
}
static inline void _tile_zero(int number) {
  __builtin_memset(emulated::tile(number).at, 0, sizeof(emulated::Tile::at));
}
static inline void _tile_loadd(int number, const void* base, int64_t stride) {
  _tile_zero(number);
  emulated::Tile& tile = emulated::tile(number);
  for (int i = 0; i < tile.rows; ++i)
    __builtin_memcpy(tile.at[i], (const char*)base + i * stride, (size_t)tile.row_bytes);
}
static inline void _tile_stream_loadd(int number, const void* base, int64_t stride) {
  _tile_loadd(number, base, stride);
}
static inline void _tile_stored(int number, void* base, int64_t stride) {
  const emulated::Tile& tile = emulated::tile(number);
  for (int i = 0; i < tile.rows; ++i)
    __builtin_memcpy((char*)base + i * stride, tile.at[i], (size_t)tile.row_bytes);
}
static inline void _tile_dpbssd(int sum, int a, int b) {
  emulated::multiply_bytes<int8_t, int8_t>(sum, a, b);
}
static inline void _tile_dpbusd(int sum, int a, int b) {
  emulated::multiply_bytes<uint8_t, int8_t>(sum, a, b);
}
/// The even products of a row and the odd ones are summed apart, each by FMAs with denormals taken
/// and given as zeros, then added to each other, then to the tile.
static inline void _tile_dpbf16ps(int sum, int a, int b) {
  using namespace emulated;
  check_product(sum, a, b);
  Tile& s = tile(sum);
  for (int m = 0; m < s.rows; ++m) {
    __m512 evens = _mm512_setzero_ps(), odds = _mm512_setzero_ps();
    for (int k = 0; k < tile(b).rows; ++k) {
      int32_t pair;
      __builtin_memcpy(&pair, tile(a).at[m] + 4 * k, 4);
      const __m256i x = _mm256_set1_epi32(pair);
      const __m512i y = _mm512_load_si512(tile(b).at[k]);
      for (int i = 0; i < 2; ++i) {
        evens.half[i] = flushing_fmadd(even(x), even(y.half[i]), evens.half[i]);
        odds.half[i] = flushing_fmadd(odd(x), odd(y.half[i]), odds.half[i]);
      }
    }
    __m512 total = _mm512_load_ps(s.at[m]);
    for (int i = 0; i < 2; ++i) {
      const __m256 both = flush(_mm256_add_ps(evens.half[i], odds.half[i]));
      total.half[i] = flush(_mm256_add_ps(flush(total.half[i]), both));
    }
    // Lanes beyond the tile's row stay 0: those of b are.
    _mm512_store_ps(s.at[m], total);
  }
}

}  // namespace xsr::kernels

#undef XSR_EMULATED
#undef XSR_EMULATED_LOOP
