// The kernels, written once in the names of `Simd`. Included by one translation unit per instruction set.
//
// A row's numbers are computed in the same order whatever rows are beside it: blocks of rows share loads, never sums.
#pragma once
#include "simd.hpp"

namespace {

using namespace matexport;
using S = Simd;
using F = S::F;
using I = S::I;
constexpr int L = S::lanes;

MX int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Calls use(column, count) for all whole vectors of a row, and for what is left over.
template <class Use>
MX void each_vector(int64_t width, Use use) {
  int64_t i = 0;
  for (; i + L <= width; i += L) use(i, L);
  if (i < width) use(i, (int)(width - i));
}

MX F load(const float* p, int n) { return n == L ? S::load(p) : S::load(p, n); }
MX void store(float* p, F v, int n) { n == L ? S::store(p, v) : S::store(p, v, n); }

// e^x for x <= 88: 2^n times a polynomial for 2^f on [-0.5, 0.5], relative error 2e-7; what is below e^-87 counts as it.
MX F exponential(F x) {
  F y = S::mul(S::max(x, S::set(-87.0f)), S::set(1.44269504f));
  F n = S::round(y), f = S::sub(y, n);
  F p = S::set(1.32764666e-3f);
  p = S::fma(p, f, S::set(9.67554096e-3f));
  p = S::fma(p, f, S::set(5.55071346e-2f));
  p = S::fma(p, f, S::set(2.40221202e-1f));
  p = S::fma(p, f, S::set(6.93146944e-1f));
  p = S::fma(p, f, S::set(1.0f));
  return S::mul(p, S::power_of_two(S::to_int(n)));
}

MX F sigmoid(F x) {
  F e = exponential(S::min(S::sub(S::zero(), x), S::set(87.0f)));
  return S::div(S::set(1.0f), S::add(e, S::set(1.0f)));
}

// x Phi(x). On [-5.5, 5.5] Phi - 1/2 is x times a polynomial in x^2, fitted to x Phi within 1e-7; with the rounding of
// float32 it is within 9e-7.
MX F gelu(F x) {
  const F edge = S::set(5.5f), low = S::set(-5.5f);
  F c = S::min(S::max(x, low), edge), u = S::fma(S::mul(c, c), S::set(0.0661157025f), S::set(-1.0f));
  F r = S::set(0.000428920757f);
  r = S::fma(r, u, S::set(-0.00127545104f));
  r = S::fma(r, u, S::set(0.00134139869f));
  r = S::fma(r, u, S::set(-0.00149252603f));
  r = S::fma(r, u, S::set(0.00388070662f));
  r = S::fma(r, u, S::set(-0.00739273336f));
  r = S::fma(r, u, S::set(0.0106612127f));
  r = S::fma(r, u, S::set(-0.014814442f));
  r = S::fma(r, u, S::set(0.020236183f));
  r = S::fma(r, u, S::set(-0.0260777324f));
  r = S::fma(r, u, S::set(0.032088086f));
  r = S::fma(r, u, S::set(-0.0387908109f));
  r = S::fma(r, u, S::set(0.0477367155f));
  r = S::fma(r, u, S::set(-0.0641723722f));
  r = S::fma(r, u, S::set(0.128551945f));
  return S::mul(S::max(x, low), S::fma(c, r, S::set(0.5f)));
}

template <Function function>
MX F apply(F x) {
  if constexpr (function == Function::gelu) return gelu(x);
  if constexpr (function == Function::silu) return S::mul(x, sigmoid(x));
  if constexpr (function == Function::relu) return S::max(x, S::zero());
  if constexpr (function == Function::sigmoid) return sigmoid(x);
  if constexpr (function == Function::tanh) {
    return S::sub(S::mul(S::set(2.0f), sigmoid(S::mul(S::set(2.0f), x))), S::set(1.0f));
  }
  // x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), and (1 + tanh t) / 2 is the sigmoid of 2 t
  F t = S::mul(x, S::fma(S::mul(x, x), S::set(0.0713548163f), S::set(1.59576912f)));
  return S::mul(x, sigmoid(t));
}

// Calls use with the function as a type, so that the choice is made once for a row.
template <Function function>
struct Tag {};
template <class Use>
MX void choose(Function function, Use use) {
  switch (function) {
    case Function::gelu: return use(Tag<Function::gelu>());
    case Function::gelu_tanh: return use(Tag<Function::gelu_tanh>());
    case Function::silu: return use(Tag<Function::silu>());
    case Function::relu: return use(Tag<Function::relu>());
    case Function::tanh: return use(Tag<Function::tanh>());
    case Function::sigmoid: return use(Tag<Function::sigmoid>());
  }
}
template <Function function>
MX F apply(Tag<function>, F x) {
  return apply<function>(x);
}

void embed(const LookupTable* tables, const int64_t* places, int64_t count, int64_t width, float* out) {
  for (int64_t t = 0; t < count; t++) {
    if (tables[t].scales) {
      const int8_t* row = (const int8_t*)tables[t].rows + places[t] * width;
      float scale = tables[t].scales[places[t]];
      int64_t i = 0;
      for (; i + L <= width; i += L) {
        F x = S::mul(S::load_int8(row + i), S::set(scale));
        S::store(out + i, t ? S::add(S::load(out + i), x) : x);
      }
      for (; i < width; i++) out[i] = (t ? out[i] : 0) + (float)row[i] * scale;
    } else {
      const float* row = (const float*)tables[t].rows + places[t] * width;
      each_vector(width, [&](int64_t i, int n) {
        F x = load(row + i, n);
        store(out + i, t ? S::add(load(out + i, n), x) : x, n);
      });
    }
  }
}

void norm(const float* source, const float* weight, const float* bias, float epsilon, bool centred, int64_t width,
          float* out) {
  F sum = S::zero();
  if (centred) each_vector(width, [&](int64_t i, int n) { sum = S::add(sum, load(source + i, n)); });
  const float mean = centred ? S::sum(sum) / (float)width : 0.0f;
  F squares = S::zero();
  int64_t i = 0;
  for (; i + L <= width; i += L) {
    F x = S::sub(S::load(source + i), S::set(mean));
    squares = S::fma(x, x, squares);
  }
  float total = S::sum(squares);
  for (; i < width; i++) total += (source[i] - mean) * (source[i] - mean);
  const F factor = S::set(1.0f / sqrtf(total / (float)width + epsilon));
  each_vector(width, [&](int64_t i, int n) {
    F x = S::mul(S::mul(S::sub(load(source + i, n), S::set(mean)), factor), load(weight + i, n));
    store(out + i, bias ? S::add(x, load(bias + i, n)) : x, n);
  });
}

void add(const float* left, const float* right, int64_t width, float* out) {
  each_vector(width, [&](int64_t i, int n) { store(out + i, S::add(load(left + i, n), load(right + i, n)), n); });
}

void multiply(const float* left, const float* right, int64_t width, float* out) {
  each_vector(width, [&](int64_t i, int n) { store(out + i, S::mul(load(left + i, n), load(right + i, n)), n); });
}

void affine(const float* source, const float* weight, const float* bias, int64_t width, float* out) {
  each_vector(width, [&](int64_t i, int n) {
    F x = load(source + i, n);
    if (weight) x = S::mul(x, load(weight + i, n));
    if (bias) x = S::add(x, load(bias + i, n));
    store(out + i, x, n);
  });
}

void activate(Function function, const float* source, int64_t width, float* out) {
  choose(function, [&](auto tag) {
    each_vector(width, [&](int64_t i, int n) { store(out + i, apply(tag, load(source + i, n)), n); });
  });
}

// Codes of a row that is ready in `row`, divided by its peak.
MX void write_codes(const Quantizer& q, const float* row, int64_t width, int64_t padded, float found, void* codes,
                    float* peak) {
  S::Code* out = (S::Code*)codes;
  const float held = found > q.least ? found : q.least;
  *peak = held;
  const F inverse = S::set(held > 1e-35f ? q.levels / held : 0.0f), zero = S::set((float)(q.zero - q.shift));
  const F low = S::set((float)-q.shift), high = S::set((float)(255 - q.shift));
  int64_t i = 0;
  for (; i + L <= width; i += L) {
    F x = S::fma(S::load(row + i), inverse, zero);
    S::store_codes(out + i, S::min(S::max(x, low), high));
  }
  if (i < width) {  // through a buffer: a whole vector may not fit behind the row
    S::Code buffer[L];
    F x = S::fma(S::load(row + i, (int)(width - i)), inverse, zero);
    S::store_codes(buffer, S::min(S::max(x, low), high));
    memcpy(out + i, buffer, (size_t)(width - i) * sizeof(S::Code));
  }
  for (int64_t k = width; k < padded; k++) out[k] = 0;  // its weight is 0
}

template <class Read>
MX float find_peak(const Quantizer& q, int64_t width, float* scratch, Read read) {
  F best = S::set(q.bounded ? -3.4e38f : 0.0f);
  float tail = q.bounded ? -3.4e38f : 0.0f;
  each_vector(width, [&](int64_t i, int n) {
    F x = read(i, n);
    if (q.smoothing) x = S::mul(x, load(q.smoothing + i, n));
    store(scratch + i, x, n);
    if (n == L) {
      best = S::max(best, q.bounded ? x : S::abs(x));
    } else {
      for (int64_t k = i; k < width; k++) {
        float size = q.bounded ? scratch[k] : fabsf(scratch[k]);
        tail = size > tail ? size : tail;
      }
    }
  });
  float found = S::largest(best);
  return found > tail ? found : tail;
}

void quantize(const Quantizer& q, const float* source, int64_t width, int64_t padded, float* scratch, void* codes,
              float* peak) {
  float found = find_peak(q, width, scratch, [&](int64_t i, int n) { return load(source + i, n); });
  write_codes(q, scratch, width, padded, found, codes, peak);
}

void activate_quantize(Function function, const Quantizer& q, const float* source, int64_t width, int64_t padded,
                       float* scratch, void* codes, float* peak) {
  float found = 0;
  choose(function, [&](auto tag) {
    found = find_peak(q, width, scratch, [&](int64_t i, int n) { return apply(tag, load(source + i, n)); });
  });
  write_codes(q, scratch, width, padded, found, codes, peak);
}

constexpr int panel_columns = S::vectors * L;

// How far ahead of its use a weight is asked for: the first rows to read a panel wait for memory otherwise.
constexpr int64_t ahead = 2048;

// Where `dot` adds two products in 16 bits, weights whose pairs may not fit are multiplied in two halves of one each.
template <int rows, bool first, bool halves>
MX void product_block(const PackedProduct& w, const int8_t* weights, int64_t column, const S::Code* codes,
                      int64_t stride, const float* peaks, float* out, int64_t out_stride) {
  I sums[rows][S::vectors];
#pragma GCC unroll 8
  for (int m = 0; m < rows; m++)
#pragma GCC unroll 8
    for (int n = 0; n < S::vectors; n++) sums[m][n] = S::load_int(w.start + column + n * L);
  for (int64_t k = 0; k < w.inner_padded; k += S::step) {
    decltype(S::load_weights(weights)) b[S::vectors];
#pragma GCC unroll 8
    for (int n = 0; n < S::vectors; n++) b[n] = S::load_weights(weights + k * panel_columns + n * L * S::step);
    if constexpr (first) {
      for (int64_t i = 0; i < panel_columns * S::step; i += 64) __builtin_prefetch(weights + k * panel_columns + ahead + i);
    }
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++) {
      auto a = S::broadcast(codes + m * stride + k);
#pragma GCC unroll 8
      for (int n = 0; n < S::vectors; n++) {
        if constexpr (halves) {
          sums[m][n] = S::dot(S::dot(sums[m][n], a, S::even(b[n])), a, S::odd(b[n]));
        } else {
          sums[m][n] = S::dot(sums[m][n], a, b[n]);
        }
      }
    }
  }
  const int64_t left = w.columns - column;
#pragma GCC unroll 8
  for (int m = 0; m < rows; m++) {
    const F peak = S::set(peaks[m]);
#pragma GCC unroll 8
    for (int n = 0; n < S::vectors; n++) {
      F scale = S::mul(peak, S::load(w.scales + column + n * L));
      F y = S::fma(S::to_float(sums[m][n]), scale, S::load(w.bias + column + n * L));
      float* here = out + m * out_stride + column + n * L;
      const int64_t room = left - n * L;
      if (room >= L) {
        S::store(here, y);
      } else if (room > 0) {
        S::store(here, y, (int)room);
      }
    }
  }
}

// Splits rows into blocks as even as can be: `rows` of them share the loads of a panel.
template <int most, class Use>
MX void each_block(int64_t rows, Use use) {
  int64_t blocks = (rows + most - 1) / most;
  for (int64_t b = 0; b < blocks; b++) use(rows * b / blocks, rows * (b + 1) / blocks - rows * b / blocks);
}

template <bool first, bool halves>
MX void run_block(const PackedProduct& w, const int8_t* weights, int64_t column, int64_t count, const S::Code* a,
                  int64_t stride, const float* p, float* c, int64_t out_stride) {
  switch (count) {
    case 1: return product_block<1, first, halves>(w, weights, column, a, stride, p, c, out_stride);
    case 2: return product_block<2, first, halves>(w, weights, column, a, stride, p, c, out_stride);
#if !defined(MATEXPORT_PORTABLE)
    case 3: return product_block<3, first, halves>(w, weights, column, a, stride, p, c, out_stride);
    case 4: return product_block<4, first, halves>(w, weights, column, a, stride, p, c, out_stride);
    case 5: return product_block<5, first, halves>(w, weights, column, a, stride, p, c, out_stride);
    case 6: return product_block<6, first, halves>(w, weights, column, a, stride, p, c, out_stride);
#endif
  }
}

void product(const PackedProduct& w, int64_t panel, const void* codes, int64_t code_stride, const float* peaks,
             int64_t rows, float* out, int64_t out_stride) {
  const int8_t* weights = w.codes + panel * w.inner_padded * panel_columns;
  const int64_t column = panel * panel_columns;
  each_block<S::rows>(rows, [&](int64_t m, int64_t count) {
    const S::Code* a = (const S::Code*)codes + m * code_stride;
    const float* p = peaks + m;
    float* c = out + m * out_stride;
    if constexpr (S::saturates) {
      if (w.wide_pairs) return run_block<false, true>(w, weights, column, count, a, code_stride, p, c, out_stride);
    }
    if (m == 0) {
      run_block<true, false>(w, weights, column, count, a, code_stride, p, c, out_stride);
    } else {
      run_block<false, false>(w, weights, column, count, a, code_stride, p, c, out_stride);
    }
  });
}

// out (rows, vectors * L) = a (rows, K) b (K, ...), all of them rows of floats.
template <int rows, int vectors>
MX void dense_block(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t inner, F (&sums)[rows][vectors]) {
  for (int64_t k = 0; k < inner; k++) {
    F y[vectors];
#pragma GCC unroll 8
    for (int n = 0; n < vectors; n++) y[n] = S::load(b + k * b_stride + n * L);
#pragma GCC unroll 16
    for (int m = 0; m < rows; m++) {
      F x = S::set(a[m * a_stride + k]);
#pragma GCC unroll 8
      for (int n = 0; n < vectors; n++) sums[m][n] = S::fma(x, y[n], sums[m][n]);
    }
  }
}

template <int rows, int vectors>
MX void dense_rows_of(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t inner, float* out,
                      int64_t out_stride) {
  F sums[rows][vectors];
#pragma GCC unroll 16
  for (int m = 0; m < rows; m++)
#pragma GCC unroll 8
    for (int n = 0; n < vectors; n++) sums[m][n] = S::zero();
  dense_block<rows, vectors>(a, a_stride, b, b_stride, inner, sums);
#pragma GCC unroll 16
  for (int m = 0; m < rows; m++)
#pragma GCC unroll 8
    for (int n = 0; n < vectors; n++) S::store(out + m * out_stride + n * L, sums[m][n]);
}

template <int most, int vectors>
MX void dense_columns(int64_t rows, const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t inner,
                      float* out, int64_t out_stride) {
  int64_t m = 0;
  for (; m + most <= rows; m += most) {
    dense_rows_of<most, vectors>(a + m * a_stride, a_stride, b, b_stride, inner, out + m * out_stride, out_stride);
  }
  if constexpr (most > 4) {
    for (; m + 2 <= rows; m += 2) {
      dense_rows_of<2, vectors>(a + m * a_stride, a_stride, b, b_stride, inner, out + m * out_stride, out_stride);
    }
  }
  for (; m < rows; m++) {
    dense_rows_of<1, vectors>(a + m * a_stride, a_stride, b, b_stride, inner, out + m * out_stride, out_stride);
  }
}

// Columns are a multiple of L.
MX void multiply_floats(int64_t rows, int64_t columns, int64_t inner, const float* a, int64_t a_stride, const float* b,
                        int64_t b_stride, float* out, int64_t out_stride) {
  constexpr int wide = S::dense_vectors, sums = S::dense_rows * S::dense_vectors;
  int64_t n = 0;
  for (; n + wide * L <= columns; n += wide * L) {
    dense_columns<S::dense_rows, wide>(rows, a, a_stride, b + n, b_stride, inner, out + n, out_stride);
  }
  if constexpr (wide > 2) {
    for (; n + 2 * L <= columns; n += 2 * L) {
      dense_columns<sums / 2, 2>(rows, a, a_stride, b + n, b_stride, inner, out + n, out_stride);
    }
  }
  for (; n + L <= columns; n += L) {
    dense_columns<(sums < 12 ? sums : 12), 1>(rows, a, a_stride, b + n, b_stride, inner, out + n, out_stride);
  }
}

constexpr int dense_panel_columns = S::dense_vectors * L;

void dense(const PackedDense& w, int64_t panel, const float* source, int64_t source_stride, int64_t rows, float* out,
           int64_t out_stride) {
  const int64_t column = panel * dense_panel_columns, left = w.columns - column;
  const float* values = w.values + panel * w.inner * dense_panel_columns;
  for (int64_t m = 0; m < rows; m++) {
    F sums[1][S::dense_vectors];
    for (int n = 0; n < S::dense_vectors; n++) sums[0][n] = S::load(w.bias + column + n * L);
    dense_block<1, S::dense_vectors>(source + m * source_stride, source_stride, values, dense_panel_columns, w.inner, sums);
    for (int n = 0; n < S::dense_vectors; n++) {
      const int64_t room = left - n * L;
      float* here = out + m * out_stride + column + n * L;
      if (room >= L) {
        S::store(here, sums[0][n]);
      } else if (room > 0) {
        S::store(here, sums[0][n], (int)room);
      }
    }
  }
}

constexpr int64_t query_rows = 48;  // of which scores are held at once

int64_t attention_scratch(int64_t tokens, int64_t width) {
  const int64_t columns = round_up(tokens, L), wide = round_up(width, L);
  return width * columns + tokens * wide + query_rows * (columns + wide) + query_rows;
}

void attend(const AttentionShape& shape, const float* query, const float* key, const float* value, float* scratch,
            float* out) {
  const int64_t tokens = shape.tokens, width = shape.width;
  const int64_t columns = round_up(tokens, L), wide = round_up(width, L);
  float *keys = scratch, *values = keys + width * columns, *scores = values + tokens * wide;
  float *mixed = scores + query_rows * columns, *inverse = mixed + query_rows * wide;
  for (int64_t j = 0; j < columns; j += L) {  // keys, scaled, with a column for each
    for (int64_t d = 0; d < width; d += L) {
      F block[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; i++) {
        const float* row = key + (j + i) * shape.key_stride + d;
        block[i] = j + i >= tokens ? S::zero() : d + L <= width ? S::load(row) : S::load(row, (int)(width - d));
        block[i] = S::mul(block[i], S::set(shape.scale));
      }
      S::transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < L; i++)
        if (d + i < width) S::store(keys + (d + i) * columns + j, block[i]);
    }
  }
  for (int64_t j = 0; j < tokens; j++) {
    memcpy(values + j * wide, value + j * shape.value_stride, (size_t)width * 4);
    for (int64_t d = width; d < wide; d++) values[j * wide + d] = 0;
  }
  for (int64_t first = 0; first < shape.queries; first += query_rows) {
    const int64_t rows = shape.queries - first < query_rows ? shape.queries - first : query_rows;
    multiply_floats(rows, columns, width, query + first * shape.query_stride, shape.query_stride, keys, columns, scores,
                    columns);
    for (int64_t r = 0; r < rows; r++) {
      float* row = scores + r * columns;
      const int64_t i = first + r;
      int64_t from = 0, to = tokens;  // the keys that it sees
      if (shape.causal) to = i + 1;
      if (shape.window >= 0) {
        from = i > shape.window ? i - shape.window : 0;
        to = i + shape.window + 1 < to ? i + shape.window + 1 : to;
      }
      if (shape.bias) {
        for (int64_t j = from; j < to; j++) {
          int64_t d = j - i;
          d = d < -shape.reach ? -shape.reach : d > shape.reach ? shape.reach : d;
          row[j] += shape.bias[d + shape.reach];
        }
      }
      for (int64_t j = 0; j < from; j++) row[j] = -3.4e38f;
      for (int64_t j = to; j < columns; j++) row[j] = -3.4e38f;
      F best = S::set(-3.4e38f);
      for (int64_t j = 0; j < columns; j += L) best = S::max(best, S::load(row + j));
      const F most = S::set(S::largest(best));
      F sum = S::zero();
      for (int64_t j = 0; j < columns; j += L) {
        F e = exponential(S::sub(S::load(row + j), most));
        S::store(row + j, e);
        sum = S::add(sum, e);
      }
      for (int64_t j = 0; j < from; j++) row[j] = 0;
      inverse[r] = 1.0f / S::sum(sum);
    }
    multiply_floats(rows, wide, tokens, scores, columns, values, wide, mixed, wide);
    for (int64_t r = 0; r < rows; r++) {
      const F factor = S::set(inverse[r]);
      each_vector(width, [&](int64_t d, int n) {
        store(out + (first + r) * shape.out_stride + d, S::mul(load(mixed + r * wide + d, n), factor), n);
      });
    }
  }
}

int shift_of(int zero) { return S::shift(zero); }

const Kernels kernels = {
    S::name,   sizeof(S::Code), panel_columns, dense_panel_columns, S::step,  shift_of, product,
    dense,     embed,           norm,          add,                 multiply, affine,   activate,
    quantize,  activate_quantize, attend,      attention_scratch,
};

}  // namespace
