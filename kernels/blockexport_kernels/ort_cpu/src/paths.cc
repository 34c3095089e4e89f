// Which path runs on this processor.
#include "paths.h"

#include <cstdlib>
#include <cstring>

namespace blockexport {
namespace {

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}
#endif

const Path* choose() {
  const char* wanted = std::getenv("BLOCKEXPORT_CPU_PATH");
  const auto allows = [wanted](const Path& path) { return wanted == nullptr || std::strcmp(wanted, path.name) == 0; };
#if defined(__x86_64__)
  if (allows(kAvx512) && has_avx512()) return &kAvx512;
  if (allows(kAvx2) && has_avx2()) return &kAvx2;
#endif
  return allows(kScalar) ? &kScalar : nullptr;
}

const Path* const chosen = choose();

}  // namespace

const Path& path() { return chosen ? *chosen : kScalar; }

const char* path_problem() {
  return chosen ? nullptr
                : "BLOCKEXPORT_CPU_PATH must be scalar, avx2 or avx512, and the processor must have it: unset it to "
                  "have the fastest path chosen";
}

}  // namespace blockexport
