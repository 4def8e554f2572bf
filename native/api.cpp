// The border to Python: C functions, none of which throws. A message is written where one fails.
#include <stdio.h>
#include <string.h>

#include <exception>
#include <stdexcept>

#include "program.hpp"

using namespace matexport;

namespace {

const Kernels* const* list_kernels() {
  static const Kernels* found[] = {avx512vnni_kernels(), avx512_kernels(), avx2_kernels(), neon_kernels(),
                                   portable_kernels()};
  return found;
}
constexpr int kernel_count = 5;

void say(char* message, int64_t size, const char* what) { snprintf(message, (size_t)size, "%s", what); }

}  // namespace

#define MATEXPORT_API extern "C" __attribute__((visibility("default")))

// Changed whenever a record changes.
MATEXPORT_API int32_t matexport_version() { return 1; }

// The name of the n-th of the instruction sets that run here, from the fastest on; null past the last.
MATEXPORT_API const char* matexport_kernels(int32_t n) {
  for (int i = 0; i < kernel_count; i++) {
    if (list_kernels()[i] && n-- == 0) return list_kernels()[i]->name;
  }
  return nullptr;
}

MATEXPORT_API void* matexport_open(const char* kernels, const StepRecord* steps, int64_t step_count,
                                   const TableRecord* tables, int64_t table_count, const int32_t* outputs,
                                   int64_t output_count, char* message, int64_t message_size) {
  try {
    for (int i = 0; i < kernel_count; i++) {
      const Kernels* found = list_kernels()[i];
      if (found && strcmp(found->name, kernels) == 0) {
        return new Program(*found, steps, step_count, tables, table_count, outputs, output_count);
      }
    }
    say(message, message_size, "this processor has no such instruction set");
  } catch (const std::exception& error) {
    say(message, message_size, error.what());
  }
  return nullptr;
}

MATEXPORT_API void matexport_close(void* program) { delete (Program*)program; }

MATEXPORT_API int32_t matexport_run(const void* program, const int32_t* ids, const int32_t* types,
                                    const int32_t* columns, const int64_t* starts, int64_t count, int32_t threads,
                                    float* const* outputs, char* message, int64_t message_size) {
  try {
    ((const Program*)program)->run(Texts{ids, types, columns, starts, count}, threads, outputs);
    return 0;
  } catch (const std::out_of_range& error) {  // of what was given
    say(message, message_size, error.what());
    return 1;
  } catch (const std::exception& error) {
    say(message, message_size, error.what());
    return 2;
  }
}
