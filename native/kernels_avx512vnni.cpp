// The kernels for AVX-512 with VNNI.
#include "target.hpp"
#if defined(__x86_64__)
#include <immintrin.h>
MATEXPORT_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#define MATEXPORT_SIMD_AVX512VNNI
#include "kernels_of.hpp"
MATEXPORT_END_TARGET
namespace matexport {
const Kernels* avx512vnni_kernels() { return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") ? &kernels : nullptr; }
}  // namespace matexport
#else
#include "kernels.hpp"
namespace matexport {
const Kernels* avx512vnni_kernels() { return nullptr; }
}  // namespace matexport
#endif
