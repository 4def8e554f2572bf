// The kernels in plain C++, for any processor.
#define MATEXPORT_PORTABLE
#include "kernels_of.hpp"
namespace matexport {
const Kernels* portable_kernels() { return &kernels; }
}  // namespace matexport
