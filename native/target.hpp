// Compiles what follows for an instruction set, by compilers that are told nothing of it on their command lines.
#pragma once
#define MATEXPORT_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define MATEXPORT_TARGET(features) \
  MATEXPORT_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define MATEXPORT_END_TARGET _Pragma("clang attribute pop")
#else
#define MATEXPORT_TARGET(features) _Pragma("GCC push_options") MATEXPORT_PRAGMA(GCC target(features))
#define MATEXPORT_END_TARGET _Pragma("GCC pop_options")
#endif
