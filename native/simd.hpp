// One vector type per instruction set, behind one set of names. A translation unit defines MATEXPORT_SIMD_* before it
// includes this file, and compiles everything below for that instruction set.
//
// Everything here lies in an unnamed namespace, and nothing of C++'s standard library is used: a function that two
// translation units share would be taken from either, also by processors that lack its instructions.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels.hpp"

#if defined(MATEXPORT_SIMD_AVX2) || defined(MATEXPORT_SIMD_AVX512) || defined(MATEXPORT_SIMD_AVX512VNNI)
#include <immintrin.h>
#elif defined(MATEXPORT_SIMD_NEON)
#include <arm_neon.h>
#endif

#define MX static inline __attribute__((always_inline))

namespace {

#if defined(MATEXPORT_SIMD_AVX512) || defined(MATEXPORT_SIMD_AVX512VNNI)

struct Simd {
  using F = __m512;
  using I = __m512i;
  static constexpr int lanes = 16;
  static constexpr int dense_rows = 6, dense_vectors = 4;  // a block of sums that fits into the registers

  MX F zero() { return _mm512_setzero_ps(); }
  MX F set(float x) { return _mm512_set1_ps(x); }
  MX F load(const float* p) { return _mm512_loadu_ps(p); }
  MX F load(const float* p, int n) { return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
  MX void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  MX void store(float* p, F v, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v); }
  MX F add(F a, F b) { return _mm512_add_ps(a, b); }
  MX F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  MX F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  MX F div(F a, F b) { return _mm512_div_ps(a, b); }
  MX F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  MX F max(F a, F b) { return _mm512_max_ps(a, b); }
  MX F min(F a, F b) { return _mm512_min_ps(a, b); }
  MX F abs(F a) { return _mm512_abs_ps(a); }
  MX F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  MX I to_int(F a) { return _mm512_cvtps_epi32(a); }
  MX F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  MX I load_int(const int32_t* p) { return _mm512_loadu_si512(p); }
  MX F load_int8(const int8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))); }
  MX F power_of_two(I n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
  }
  MX float sum(F a) { return _mm512_reduce_add_ps(a); }
  MX float largest(F a) { return _mm512_reduce_max_ps(a); }

  // Rows become columns.
  MX void transpose(F (&r)[16]) {
    F t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
      r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
      r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
      t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
      t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
      r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
      r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
      r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
  }

  static constexpr int rows = 6, vectors = 4;
#if defined(MATEXPORT_SIMD_AVX512VNNI)
  static constexpr const char* name = "avx512-vnni";
  static constexpr bool saturates = false;
  MX I even(I b) { return b; }
  MX I odd(I b) { return b; }
  // By hand: compilers take the intrinsic's accumulator for a new register in a block as large as ours.
  MX I dot(I sum, I a, I b) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
#else
  static constexpr const char* name = "avx512";
  static constexpr bool saturates = true;
  MX I dot(I sum, I a, I b) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1)));
  }
  MX I even(I b) { return _mm512_and_si512(b, _mm512_set1_epi16(0x00ff)); }
  MX I odd(I b) { return _mm512_andnot_si512(_mm512_set1_epi16(0x00ff), b); }
#endif
  using Code = uint8_t;
  static constexpr int step = 4;
  MX int shift(int) { return 0; }
  MX I load_weights(const int8_t* p) { return _mm512_loadu_si512(p); }
  MX void store_codes(Code* p, F v) {
    _mm_storeu_si128((__m128i*)p, _mm512_cvtusepi32_epi8(_mm512_max_epi32(to_int(v), _mm512_setzero_si512())));
  }
  MX I broadcast(const Code* p) {
    int32_t x;
    memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
  }
};

#elif defined(MATEXPORT_SIMD_AVX2)

struct Simd {
  using F = __m256;
  using I = __m256i;
  static constexpr int lanes = 8;
  static constexpr int dense_rows = 6, dense_vectors = 2;

  MX F zero() { return _mm256_setzero_ps(); }
  MX F set(float x) { return _mm256_set1_ps(x); }
  MX F load(const float* p) { return _mm256_loadu_ps(p); }
  MX I mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  MX F load(const float* p, int n) { return _mm256_maskload_ps(p, mask(n)); }
  MX void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  MX void store(float* p, F v, int n) { _mm256_maskstore_ps(p, mask(n), v); }
  MX F add(F a, F b) { return _mm256_add_ps(a, b); }
  MX F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  MX F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  MX F div(F a, F b) { return _mm256_div_ps(a, b); }
  MX F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  MX F max(F a, F b) { return _mm256_max_ps(a, b); }
  MX F min(F a, F b) { return _mm256_min_ps(a, b); }
  MX F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  MX F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  MX I to_int(F a) { return _mm256_cvtps_epi32(a); }
  MX F to_float(I a) { return _mm256_cvtepi32_ps(a); }
  MX I load_int(const int32_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
  MX F load_int8(const int8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))); }
  MX F power_of_two(I n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
  MX float sum(F a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
  }
  MX float largest(F a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
  }

  // Rows become columns.
  MX void transpose(F (&r)[8]) {
    F t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
      t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) r[i] = t[i];
  }

  using Code = uint8_t;
  static constexpr int step = 4, rows = 5, vectors = 2;
  static constexpr const char* name = "avx2";
  static constexpr bool saturates = true;
  MX int shift(int) { return 0; }
  MX I dot(I sum, I a, I b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
  }
  MX I even(I b) { return _mm256_and_si256(b, _mm256_set1_epi16(0x00ff)); }
  MX I odd(I b) { return _mm256_andnot_si256(_mm256_set1_epi16(0x00ff), b); }
  MX I load_weights(const int8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
  MX I broadcast(const Code* p) {
    int32_t x;
    memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
  }
  MX void store_codes(Code* p, F v) {
    I n = to_int(v);
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
    _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(words, words));
  }
};

#elif defined(MATEXPORT_SIMD_NEON)

struct Simd {
  using F = float32x4_t;
  using I = int32x4_t;
  static constexpr int lanes = 4;
  static constexpr int dense_rows = 6, dense_vectors = 4;

  MX F zero() { return vdupq_n_f32(0); }
  MX F set(float x) { return vdupq_n_f32(x); }
  MX F load(const float* p) { return vld1q_f32(p); }
  MX F load(const float* p, int n) {
    float buffer[4] = {0, 0, 0, 0};
    memcpy(buffer, p, (size_t)n * 4);
    return vld1q_f32(buffer);
  }
  MX void store(float* p, F v) { vst1q_f32(p, v); }
  MX void store(float* p, F v, int n) {
    float buffer[4];
    vst1q_f32(buffer, v);
    memcpy(p, buffer, (size_t)n * 4);
  }
  MX F add(F a, F b) { return vaddq_f32(a, b); }
  MX F sub(F a, F b) { return vsubq_f32(a, b); }
  MX F mul(F a, F b) { return vmulq_f32(a, b); }
  MX F div(F a, F b) { return vdivq_f32(a, b); }
  MX F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  MX F max(F a, F b) { return vmaxq_f32(a, b); }
  MX F min(F a, F b) { return vminq_f32(a, b); }
  MX F abs(F a) { return vabsq_f32(a); }
  MX F round(F a) { return vrndnq_f32(a); }
  MX I to_int(F a) { return vcvtnq_s32_f32(a); }
  MX F to_float(I a) { return vcvtq_f32_s32(a); }
  MX I load_int(const int32_t* p) { return vld1q_s32(p); }
  MX F load_int8(const int8_t* p) {
    int32_t raw;
    memcpy(&raw, p, 4);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(raw))))));
  }
  MX F power_of_two(I n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23)); }
  MX float sum(F a) { return vaddvq_f32(a); }
  MX float largest(F a) { return vmaxvq_f32(a); }

  // Rows become columns.
  MX void transpose(F (&r)[4]) {
    float32x4x2_t low = vtrnq_f32(r[0], r[1]), high = vtrnq_f32(r[2], r[3]);
    r[0] = vcombine_f32(vget_low_f32(low.val[0]), vget_low_f32(high.val[0]));
    r[1] = vcombine_f32(vget_low_f32(low.val[1]), vget_low_f32(high.val[1]));
    r[2] = vcombine_f32(vget_high_f32(low.val[0]), vget_high_f32(high.val[0]));
    r[3] = vcombine_f32(vget_high_f32(low.val[1]), vget_high_f32(high.val[1]));
  }

  // The dot product of signed bytes: codes less 128, which fit whatever their zero point is.
  using Code = int8_t;
  static constexpr int step = 4, rows = 6, vectors = 4;
  static constexpr const char* name = "neon-dotprod";
  static constexpr bool saturates = false;
  MX I even(I b) { return b; }
  MX I odd(I b) { return b; }
  MX int shift(int) { return 128; }
  MX I dot(I sum, I a, I b) { return vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)); }
  MX I load_weights(const int8_t* p) { return vreinterpretq_s32_s8(vld1q_s8(p)); }
  MX I broadcast(const Code* p) {
    int32_t x;
    memcpy(&x, p, 4);
    return vdupq_n_s32(x);
  }
  MX void store_codes(Code* p, F v) {
    int8x8_t narrow = vqmovn_s16(vcombine_s16(vqmovn_s32(to_int(v)), vdup_n_s16(0)));
    int32_t raw = vget_lane_s32(vreinterpret_s32_s8(narrow), 0);
    memcpy(p, &raw, 4);
  }
};

#else

// Plain C++, for processors that have nothing of the above. Compilers find what vectors there are.
struct Simd {
  static constexpr int lanes = 4;
  struct F {
    float v[4];
  };
  struct I {
    int32_t v[4];
  };
  static constexpr int dense_rows = 2, dense_vectors = 2;

#define EACH for (int i = 0; i < 4; i++)
  MX F zero() { return set(0); }
  MX F set(float x) { return F{{x, x, x, x}}; }
  MX F load(const float* p) { return load(p, 4); }
  MX F load(const float* p, int n) {
    F r = zero();
    memcpy(r.v, p, (size_t)n * 4);
    return r;
  }
  MX void store(float* p, F v) { memcpy(p, v.v, 16); }
  MX void store(float* p, F v, int n) { memcpy(p, v.v, (size_t)n * 4); }
  MX F add(F a, F b) { EACH a.v[i] += b.v[i]; return a; }
  MX F sub(F a, F b) { EACH a.v[i] -= b.v[i]; return a; }
  MX F mul(F a, F b) { EACH a.v[i] *= b.v[i]; return a; }
  MX F div(F a, F b) { EACH a.v[i] /= b.v[i]; return a; }
  MX F fma(F a, F b, F c) { EACH c.v[i] += a.v[i] * b.v[i]; return c; }
  MX F max(F a, F b) { EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
  MX F min(F a, F b) { EACH a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
  MX F abs(F a) { EACH a.v[i] = fabsf(a.v[i]); return a; }
  MX F round(F a) { EACH a.v[i] = rintf(a.v[i]); return a; }
  MX I to_int(F a) { I r; EACH r.v[i] = (int32_t)rintf(a.v[i]); return r; }
  MX F to_float(I a) { F r; EACH r.v[i] = (float)a.v[i]; return r; }
  MX I load_int(const int32_t* p) { I r; memcpy(r.v, p, 16); return r; }
  MX F load_int8(const int8_t* p) { F r; EACH r.v[i] = (float)p[i]; return r; }
  MX F power_of_two(I n) {
    F r;
    EACH {
      int32_t bits = (int32_t)((uint32_t)(n.v[i] + 127) << 23);
      memcpy(&r.v[i], &bits, 4);
    }
    return r;
  }
  MX float sum(F a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
  MX float largest(F a) {
    float left = a.v[0] > a.v[1] ? a.v[0] : a.v[1], right = a.v[2] > a.v[3] ? a.v[2] : a.v[3];
    return left > right ? left : right;
  }

  // Rows become columns.
  MX void transpose(F (&r)[4]) {
    for (int i = 0; i < 4; i++)
      for (int k = 0; k < i; k++) {
        float x = r[i].v[k];
        r[i].v[k] = r[k].v[i];
        r[k].v[i] = x;
      }
  }

  using Code = int16_t;
  static constexpr int step = 2, rows = 2, vectors = 2;
  static constexpr const char* name = "portable";
  static constexpr bool saturates = false;
  MX int shift(int zero) { return zero; }
  struct W {
    int16_t v[8];
  };
  MX W even(W b) { return b; }
  MX W odd(W b) { return b; }
  MX I dot(I sum, W a, W b) { EACH sum.v[i] += a.v[2 * i] * b.v[2 * i] + a.v[2 * i + 1] * b.v[2 * i + 1]; return sum; }
  MX W load_weights(const int8_t* p) { W r; for (int i = 0; i < 8; i++) r.v[i] = p[i]; return r; }
  MX W broadcast(const Code* p) { W r; for (int i = 0; i < 8; i++) r.v[i] = p[i & 1]; return r; }
  MX void store_codes(Code* p, F v) { EACH p[i] = (Code)rintf(v.v[i]); }
#undef EACH
};

#endif

}  // namespace
