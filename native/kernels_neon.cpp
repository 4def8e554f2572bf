// The kernels for AArch64 with the dot product of bytes (ARMv8.2 and later).
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#include "target.hpp"
#if defined(__clang__)
MATEXPORT_TARGET("dotprod")
#else
MATEXPORT_TARGET("arch=armv8.2-a+dotprod")
#endif
#define MATEXPORT_SIMD_NEON
#include "kernels_of.hpp"
MATEXPORT_END_TARGET
namespace matexport {
const Kernels* neon_kernels() {
  constexpr unsigned long dot_product = 1UL << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & dot_product ? &kernels : nullptr;
}
}  // namespace matexport
#else
#include "kernels.hpp"
namespace matexport {
const Kernels* neon_kernels() { return nullptr; }
}  // namespace matexport
#endif
