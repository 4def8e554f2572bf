// What an instruction set has to bring: the loops that take the time. All are pure functions on rows; none allocates.
//
// Codes are what integer products multiply. Their form is the instruction set's own: bytes or 16-bit numbers, less a
// `shift`, so that no product can overflow or saturate, whatever the weights are.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace matexport {

// Weights (K, N) int8 of a product, in panels of columns; see `pack_product`.
struct PackedProduct {
  int64_t inner = 0, columns = 0;  // K, N
  int64_t inner_padded = 0;        // K, as the instruction set takes it
  int64_t panels = 0;
  int8_t* codes = nullptr;    // (panels, inner_padded, panel)
  int32_t* start = nullptr;   // (panels * panel): what sums begin with, for codes that are shifted
  float* scales = nullptr;    // (panels * panel): column scale / levels
  float* bias = nullptr;      // (panels * panel)
  int zero = 0, shift = 0;
  bool wide_pairs = false;    // 255 (|w0| + |w1|) of rows 2k and 2k + 1 may be more than 16 bits hold
};

// Weights (K, N) float32 of a product, in panels of columns.
struct PackedDense {
  int64_t inner = 0, columns = 0, panels = 0;
  float* values = nullptr;  // (panels, K, panel)
  float* bias = nullptr;
};

struct LookupTable {
  const void* rows = nullptr;     // (V, K) int8 or float32
  const float* scales = nullptr;  // (V) for int8
};

enum class Function : int32_t { gelu, gelu_tanh, silu, relu, tanh, sigmoid };

struct AttentionShape {
  int64_t tokens = 0;                              // of the text
  int64_t queries = 0;                             // the first so many of them
  int64_t query_stride = 0, key_stride = 0, value_stride = 0, out_stride = 0;
  int64_t width = 0;                               // of a head
  float scale = 1;
  int64_t window = -1;                             // none
  bool causal = false;
  const float* bias = nullptr;                     // of this head: 2 reach + 1 numbers
  int64_t reach = 0;
};

struct Quantizer {
  const float* smoothing = nullptr;  // or none
  float levels = 0, least = 0;
  int zero = 0, shift = 0;
  bool bounded = false;
};

struct Kernels {
  const char* name;
  int64_t code_bytes;   // of a code
  int64_t panel;        // columns of a panel of integers
  int64_t dense_panel;  // and of floats
  int64_t inner_step;   // K is padded to a multiple of it
  int (*shift_of)(int zero);

  // Rows [first, last) of codes (rows, inner_padded) with peaks (rows) -> columns of one panel of out.
  void (*product)(const PackedProduct&, int64_t panel, const void* codes, int64_t code_stride, const float* peaks,
                  int64_t rows, float* out, int64_t out_stride);
  void (*dense)(const PackedDense&, int64_t panel, const float* source, int64_t source_stride, int64_t rows, float* out,
                int64_t out_stride);
  // Each on one row of `width` numbers; `out` may be `source`.
  void (*embed)(const LookupTable* tables, const int64_t* places, int64_t count, int64_t width, float* out);
  void (*norm)(const float* source, const float* weight, const float* bias, float epsilon, bool centred, int64_t width,
               float* out);
  void (*add)(const float* left, const float* right, int64_t width, float* out);
  void (*multiply)(const float* left, const float* right, int64_t width, float* out);
  void (*affine)(const float* source, const float* weight, const float* bias, int64_t width, float* out);
  void (*activate)(Function, const float* source, int64_t width, float* out);
  // Codes of a row, and its peak. `scratch` has room for `width` numbers.
  void (*quantize)(const Quantizer&, const float* source, int64_t width, int64_t padded, float* scratch, void* codes,
                   float* peak);
  // The same of a function of the row: one pass less over memory.
  void (*activate_quantize)(Function, const Quantizer&, const float* source, int64_t width, int64_t padded,
                            float* scratch, void* codes, float* peak);
  // One head of one text. `scratch` has `attention_scratch` floats.
  void (*attend)(const AttentionShape&, const float* query, const float* key, const float* value, float* scratch,
                 float* out);
  int64_t (*attention_scratch)(int64_t tokens, int64_t width);
};

// Those that this processor can run are not null.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512vnni_kernels();
const Kernels* neon_kernels();

}  // namespace matexport
