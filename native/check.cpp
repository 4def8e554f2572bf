// The kernels that run here against plain loops in double and int64, for processors that have no Python to test with:
// codes and products, LayerNorm, Gelu and attention. `tests/runtime/native/test_program.py` has the rest, where there is.
// Prints what it checked and returns 0, or names the first kernel that is wrong and returns 1.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <random>
#include <vector>

#include "kernels.hpp"

using namespace matexport;

namespace {

std::mt19937 generator(7);
float draw() { return std::normal_distribution<float>()(generator); }
std::vector<float> draw_floats(int64_t count) {
  std::vector<float> made((size_t)count);
  for (float& x : made) x = draw();
  return made;
}

int failures = 0;
void expect(const char* kernels, const char* what, int64_t size, double found, double wanted, double limit) {
  if (fabs(found - wanted) <= limit * std::max(1.0, fabs(wanted))) return;
  if (failures++ < 5) printf("%s: %s of %lld: %.9g instead of %.9g\n", kernels, what, (long long)size, found, wanted);
}

// Codes, products of integers and their scales, with weights whose pairs pass 16 bits where `most` is 127.
void check_products(const Kernels& k, int64_t inner, int64_t columns, int64_t rows, int most, bool bounded) {
  Quantizer q;
  q.zero = bounded ? 32 : 128;
  q.levels = bounded ? 223 : 127;
  q.bounded = bounded;
  q.shift = k.shift_of(q.zero);
  PackedProduct w;
  w.inner = inner;
  w.columns = columns;
  w.inner_padded = (inner + k.inner_step - 1) / k.inner_step * k.inner_step;
  w.panels = (columns + k.panel - 1) / k.panel;
  w.zero = q.zero;
  w.shift = q.shift;
  w.wide_pairs = most > 64;
  const int64_t width = w.panels * k.panel;
  std::vector<int8_t> weight((size_t)(inner * columns)), packed((size_t)(width * w.inner_padded) + 4096, 0);
  for (int8_t& x : weight) x = (int8_t)(std::uniform_int_distribution<int>(-most, most)(generator));
  std::vector<int32_t> start((size_t)width, 0);
  std::vector<float> scales((size_t)width, 0), bias((size_t)width, 0);
  for (int64_t n = 0; n < columns; n++) {
    scales[(size_t)n] = fabsf(draw()) / q.levels;
    bias[(size_t)n] = draw();
    for (int64_t i = 0; i < inner; i++) {
      const int8_t x = weight[(size_t)(i * columns + n)];
      start[(size_t)n] += x * (q.shift - q.zero);
      const int64_t panel = n / k.panel, block = i / k.inner_step * k.inner_step;
      packed[(size_t)(panel * w.inner_padded * k.panel + block * k.panel + n % k.panel * k.inner_step + i % k.inner_step)] = x;
    }
  }
  w.codes = packed.data();
  w.start = start.data();
  w.scales = scales.data();
  w.bias = bias.data();

  const int64_t stride = w.inner_padded + 5;
  std::vector<uint8_t> codes((size_t)(rows * stride * k.code_bytes));
  std::vector<float> source = draw_floats(rows * inner), scratch((size_t)inner), peaks((size_t)rows);
  if (bounded) {
    for (float& x : source) x = fabsf(x);
  }
  for (int64_t r = 0; r < rows; r++) {
    k.quantize(q, source.data() + r * inner, inner, w.inner_padded, scratch.data(), codes.data() + r * stride * k.code_bytes,
               &peaks[(size_t)r]);
  }
  std::vector<float> out((size_t)(rows * columns), NAN);
  for (int64_t p = 0; p < w.panels; p++) {
    k.product(w, p, codes.data(), stride, peaks.data(), rows, out.data(), columns);
  }
  for (int64_t r = 0; r < rows; r++) {
    float peak = 0;
    for (int64_t i = 0; i < inner; i++) peak = std::max(peak, fabsf(source[(size_t)(r * inner + i)]));
    expect(k.name, "the peak", inner, peaks[(size_t)r], peak, 0);
    for (int64_t n = 0; n < columns; n++) {
      int64_t sum = 0;
      for (int64_t i = 0; i < inner; i++) {
        const float share = source[(size_t)(r * inner + i)] * (q.levels / peak) + (float)q.zero;
        const int64_t code = std::clamp((int64_t)lrintf(share), (int64_t)0, (int64_t)255);
        sum += (code - q.zero) * weight[(size_t)(i * columns + n)];
      }
      // A number that is half way between two codes may go to either.
      const double one = 2.0 * most * peak * scales[(size_t)n];
      const double wanted = (double)sum * peak * scales[(size_t)n] + bias[(size_t)n];
      const double found = out[(size_t)(r * columns + n)];
      if (fabs(found - wanted) > one) expect(k.name, "a product of integers", inner, found, wanted, 1e-5);
    }
  }
}

void check_rows(const Kernels& k, int64_t width) {
  std::vector<float> x = draw_floats(width), g = draw_floats(width), b = draw_floats(width), out((size_t)width);
  k.norm(x.data(), g.data(), b.data(), 1e-6f, true, width, out.data());
  double mean = 0, square = 0;
  for (float v : x) mean += v / (double)width;
  for (float v : x) square += (v - mean) * (v - mean) / (double)width;
  for (int64_t i = 0; i < width; i++) {
    const size_t n = (size_t)i;
    expect(k.name, "a norm", width, out[n], (x[n] - mean) / sqrt(square + 1e-6) * g[n] + b[n], 3e-5);
  }
  k.activate(Function::gelu, x.data(), width, out.data());
  for (int64_t i = 0; i < width; i++) {
    const double v = x[(size_t)i];
    expect(k.name, "gelu", width, out[(size_t)i], v * erfc(-v / sqrt(2.0)) / 2, 2e-6);
  }
}

void check_attention(const Kernels& k, int64_t tokens, int64_t width) {
  std::vector<float> q = draw_floats(tokens * width), key = draw_floats(tokens * width), v = draw_floats(tokens * width);
  std::vector<float> out((size_t)(tokens * width)), scratch((size_t)k.attention_scratch(tokens, width));
  AttentionShape shape;
  shape.tokens = shape.queries = tokens;
  shape.query_stride = shape.key_stride = shape.value_stride = shape.out_stride = shape.width = width;
  shape.scale = 1 / sqrtf((float)width);
  k.attend(shape, q.data(), key.data(), v.data(), scratch.data(), out.data());
  for (int64_t i = 0; i < tokens; i++) {
    std::vector<double> weights((size_t)tokens);
    double total = 0;
    for (int64_t j = 0; j < tokens; j++) {
      double score = 0;
      for (int64_t d = 0; d < width; d++) score += (double)q[(size_t)(i * width + d)] * key[(size_t)(j * width + d)];
      total += weights[(size_t)j] = exp(score * shape.scale);
    }
    for (int64_t d = 0; d < width; d++) {
      double wanted = 0;
      for (int64_t j = 0; j < tokens; j++) wanted += weights[(size_t)j] / total * v[(size_t)(j * width + d)];
      expect(k.name, "attention", tokens, out[(size_t)(i * width + d)], wanted, 1e-5);
    }
  }
}

}  // namespace

int main() {
  const Kernels* all[] = {portable_kernels(), avx2_kernels(), avx512_kernels(), avx512vnni_kernels(), neon_kernels()};
  for (const Kernels* k : all) {
    if (k == nullptr) continue;
    for (int64_t size = 1; size <= 70; size++) {
      check_rows(*k, size);
      check_attention(*k, size, size % 34 + 1);
      for (int most : {64, 127})
        for (bool bounded : {false, true}) check_products(*k, size, 71 - size, size % 13 + 1, most, bounded);
    }
    printf("%s: checked\n", k->name);
  }
  return failures ? 1 : 0;
}
