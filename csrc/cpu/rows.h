// What a CPU op hands to its row kernels, and the table of row kernels of one instruction set.
//
// The kernels in rows.inc are compiled once per instruction set, each copy in a translation unit with its own compiler
// flags and its own namespace; isa.cpp picks a table when the library is first used. Those units include no header
// with shared inline functions: the linker could take the AVX-512 copy of one for everybody.
#pragma once

#include <cstdint>

#include "../types.h"

namespace soatfast::cpu {

struct Lmo {
  DType dtype;
  int64_t size;   // D
  const void* g;  // [B, D]
  double p;
  PerSample eps;
  const void* x;  // [B, D], null for the ball alone
  double lower, upper;
  void* s;  // [B, D]
};

struct LpNorm {
  DType dtype;
  int64_t size;
  const void* g;  // [B, D]
  double p;
  void* norm;  // [B], accumulation dtype
};

struct FrankWolfeInit {
  DType dtype;
  int64_t size, rows;
  const void *g0, *x;  // [B, D]
  double p;
  PerSample eps;
  int64_t init;
  double h;
  bool central;
  double lower, upper;
  void* v;      // [B, D]
  void* probe;  // [B, D] or [2B, D]
};

struct FrankWolfeStep {
  DType dtype;
  int64_t size, rows;
  const void* g0;  // [B, D]
  const void* g1;  // [B, D] or [2B, D]
  const void *v, *x;  // [B, D]
  double p;
  PerSample eps;
  double gamma, h;
  bool central, last;
  double lower, upper;
  bool in_box;
  void* v_new;  // [B, D]
  void* probe;  // [B, D] or [2B, D]
  void* gap;    // [B], accumulation dtype
};

struct Project {
  DType dtype;
  int64_t size;
  const void *x_adv, *x;  // [B, D]
  double p;
  PerSample eps;
  double lower, upper;
  bool exact;
  void* out;  // [B, D]
};

struct PgdStep {
  DType dtype;
  int64_t size;
  const void *x_adv, *g, *x;  // [B, D]
  double p;
  PerSample eps, alpha;
  double lower, upper;
  bool exact;
  int64_t k;
  void* out;  // [B, D]
};

// How a replay memory keeps a number.
enum class Kept { kFloat, kBFloat16, kInt8 };

// The rows of a memory [N, D] that belong to a batch.
struct Remembered {
  Kept kept;
  const int64_t* index;  // [B], each in [0, N)
};

struct ReplayStart {
  DType dtype;  // kFloat or kDouble
  int64_t size;
  Remembered rows;
  const void* memory;  // [N, D]
  const float* scale;  // [N], null unless int8
  const void* x;       // [B, D]
  PerSample eps;
  double lower, upper;
  void* x_adv;  // [B, D]
};

struct ReplayStep {
  DType dtype;  // kFloat or kDouble
  int64_t size;
  Remembered rows;
  void* memory;      // [N, D]
  float* scale;      // [N], null unless int8
  const void *g, *x;  // [B, D]
  double p;
  PerSample eps;
  double gamma, lower, upper;
  bool in_box;
  void* x_adv;  // [B, D]
};

struct PowerStep {
  DType dtype;
  int64_t size;
  const void *g0, *g1, *u, *x;  // [B, D]
  double h;
  void *fresh, *probe;    // [B, D]
  void *rayleigh, *norm;  // [B], accumulation dtype
};

struct CrossEntropyDerivative {
  DType dtype;
  int64_t size;         // K
  const void* logits;   // [B, K]
  const int64_t* y;     // [B], each in [0, K)
  double sign;
  void* derivative;     // [B, K]
};

struct ArnoldiStep {
  DType dtype;            // kFloat or kDouble
  int64_t size, blocks;   // D, m + 1
  int64_t rows, column;   // block column + 1 of the basis is written; -1 at the start
  void* basis;            // [B, m + 1, D]
  const void* w;          // [B, D]
  const int32_t* status;  // [B], null at the start
  void *h, *norm;         // [m + 1, B] and [B] of this column; h null at the start
  double step;            // finite differences: w stands for (w - base) / step, probe becomes x + step v
  const void* base;       // [B, D] or null
  const void* x;          // [B, D] or null
  void* probe;            // [B, D] where there is an x
};

struct GivensStep {
  DType dtype;                             // kFloat or kDouble
  int64_t rows, m, column, count;          // columns [column, column + count)
  double rcond;
  void *triangle, *rotations, *rhs;        // [m, m, B], [m, 2, B], [m + 1, B]
  int32_t *iterations, *status;            // [B]
  const void *hessenberg, *norms, *target;  // [m, m + 1, B], [m, B], [B]
  void* residual;                          // [count, B]
};

struct TriangularSolve {
  DType dtype;  // kFloat or kDouble
  int64_t rows, m;
  const void *triangle, *rhs;  // [m, m, B], [m + 1, B]
  const int32_t* iterations;   // [B]
  void* y;                     // [m, B]
};

struct KrylovCombine {
  DType dtype;             // kFloat or kDouble
  int64_t size, blocks;    // D, m + 1
  int64_t rows;
  const void *basis, *y;   // [B, m + 1, D], [m, B]
  const void* x0;          // [B, D] or null
  void* x;                 // [B, D]
};

// Each runs rows [begin, end). scratch holds 2D numbers of the accumulation dtype (arnoldi_step: 2 (m + 1) doubles) and
// belongs to the calling thread.
struct Kernels {
  const char* isa;
  void (*lmo)(const Lmo&, int64_t begin, int64_t end, void* scratch);
  void (*lp_norm)(const LpNorm&, int64_t begin, int64_t end, void* scratch);
  void (*frank_wolfe_init)(const FrankWolfeInit&, int64_t begin, int64_t end, void* scratch);
  void (*frank_wolfe_step)(const FrankWolfeStep&, int64_t begin, int64_t end, void* scratch);
  void (*project)(const Project&, int64_t begin, int64_t end, void* scratch);
  void (*pgd_step)(const PgdStep&, int64_t begin, int64_t end, void* scratch);
  void (*replay_start)(const ReplayStart&, int64_t begin, int64_t end, void* scratch);
  void (*replay_step)(const ReplayStep&, int64_t begin, int64_t end, void* scratch);
  void (*power_step)(const PowerStep&, int64_t begin, int64_t end, void* scratch);
  void (*cross_entropy_derivative)(const CrossEntropyDerivative&, int64_t begin, int64_t end, void* scratch);
  void (*arnoldi_step)(const ArnoldiStep&, int64_t begin, int64_t end, void* scratch);
  void (*givens_step)(const GivensStep&, int64_t begin, int64_t end, void* scratch);
  void (*triangular_solve)(const TriangularSolve&, int64_t begin, int64_t end, void* scratch);
  void (*krylov_combine)(const KrylovCombine&, int64_t begin, int64_t end, void* scratch);
};

extern const Kernels kBaselineKernels, kAvx2Kernels, kAvx512Kernels;

// The best table that this processor runs, or the one that SOATFAST_ISA names.
const Kernels& kernels();

}  // namespace soatfast::cpu
