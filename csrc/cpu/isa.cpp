// Which instruction set serves this process. SOATFAST_ISA=baseline|avx2|avx512 asks for a lower one, for tests.
#include <cstdlib>
#include <cstring>

#include "rows.h"

namespace soatfast::cpu {
namespace {

const Kernels& choose() {
#ifdef SOATFAST_X86
  const char* wanted = std::getenv("SOATFAST_ISA");
  const auto allowed = [=](const char* name) {
    return wanted == nullptr || *wanted == '\0' || std::strcmp(wanted, name) == 0;
  };
  __builtin_cpu_init();
  if (allowed("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")) {
    return kAvx512Kernels;
  }
  if (allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2Kernels;
#endif
  return kBaselineKernels;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace soatfast::cpu

// For soatfast.ops.config, which reads it through ctypes: the library has no Python in it.
extern "C" __attribute__((visibility("default"))) const char* soatfast_cpu_isa() {
  return soatfast::cpu::kernels().isa;
}

// libstdc++ asks it whether shared_ptr may count without atomics, where glibc has it (2.32). The library's own answer
// is no, so that it also loads where glibc has none.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
