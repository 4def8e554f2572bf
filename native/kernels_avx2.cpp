// The kernels for AVX2 and FMA.
#include "target.hpp"
#if defined(__x86_64__)
#include <immintrin.h>
MATEXPORT_TARGET("avx2,fma")
#define MATEXPORT_SIMD_AVX2
#include "kernels_of.hpp"
MATEXPORT_END_TARGET
namespace matexport {
const Kernels* avx2_kernels() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kernels : nullptr; }
}  // namespace matexport
#else
#include "kernels.hpp"
namespace matexport {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace matexport
#endif
