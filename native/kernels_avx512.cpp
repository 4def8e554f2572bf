// The kernels for AVX-512 without the dot product of bytes.
#include "target.hpp"
#if defined(__x86_64__)
#include <immintrin.h>
MATEXPORT_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
#define MATEXPORT_SIMD_AVX512
#include "kernels_of.hpp"
MATEXPORT_END_TARGET
namespace matexport {
const Kernels* avx512_kernels() { return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") ? &kernels : nullptr; }
}  // namespace matexport
#else
#include "kernels.hpp"
namespace matexport {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace matexport
#endif
