// A sample's small numbers in a Krylov solve: the Givens rotation of a new Hessenberg column and the back-substitution,
// for one sample or for L side by side; soatfast/ops/krylov.py says what the arrays are.
#pragma once

#include "real.h"

// Before a loop over the lanes of a vector.
#ifdef __CUDACC__
#define SOATFAST_LANES
#else
#define SOATFAST_LANES _Pragma("omp simd")
#endif

namespace soatfast {
inline namespace SOATFAST_ISA {

enum Status : int32_t {  // soatfast/ops/constants.py has the same numbers
  kActive = 0,
  kConverged = 1,
  kBreakdown = 2,
  kSingular = 3,
  kMaxDim = 4,
  kNonfinite = 5,
};

template <typename T>
SOATFAST_HD bool is_finite(T t) {
  return magnitude(t) < static_cast<T>(HUGE_VAL);  // false for NaN
}

// Nothing but rounding is left of a vector of this norm.
template <typename T>
SOATFAST_HD bool exhausted(T left, T norm) {
  return left <= T(10) * Real<T>::kEpsilon * norm;
}

// sqrt(a^2 + b^2), neither overflowing nor underflowing on the way.
template <typename T>
SOATFAST_HD T hypotenuse(T a, T b) {
  a = magnitude(a), b = magnitude(b);
  const T large = a > b ? a : b, small = a > b ? b : a;
  const T ratio = large > T(0) ? small / large : T(0);
  return large * sqrt(T(1) + ratio * ratio);
}

// Pointers to the numbers of one sample; the same number of the next one lies behind it, and the next number of the
// same one `stride` entries on. So samples turn side by side: lanes of a vector on the CPU, threads on CUDA.
template <typename T>
struct KrylovState {
  T* triangle;   // (m, m, B)
  T* rotations;  // (m, 2, B) cosine and sine
  T* rhs;        // (m + 1, B)
  int32_t *iterations, *status;  // (B,)
  int64_t stride;                // B
};

// h (m + 1, B) is column j of the Hessenberg matrices of L samples, norm that of the vectors they came from; residual
// (B,) becomes |rhs[iterations]|. Every sum and product is the same for every L, and a lane never looks at another.
template <typename T, int L>
SOATFAST_HD void givens_lanes(
    int64_t m, int64_t j, const KrylovState<T>& s, const T* h, const T* norm, const T* target, T rcond, T* residual) {
  using Flag = Bits<T>;  // as wide as T, so that a choice is a vector's
  const int64_t n = s.stride;
  T running[L], largest[L];
  Flag use[L];
  SOATFAST_LANES
  for (int l = 0; l < L; ++l) {
    use[l] = is_finite(norm[l]) ? Flag(1) : Flag(0);
    running[l] = h[l];
    largest[l] = T(0);
  }
  for (int64_t i = 0; i <= j + 1; ++i) {
    SOATFAST_LANES
    for (int l = 0; l < L; ++l) use[l] = is_finite(h[i * n + l]) ? use[l] : Flag(0);
  }
  bool any = false;
  for (int l = 0; l < L; ++l) {
    if (s.status[l] != kActive) {
      use[l] = Flag(0);
    } else if (!use[l]) {
      s.status[l] = kNonfinite;
    }
    any = any || use[l];
    residual[l] = magnitude(s.rhs[s.iterations[l] * n + l]);
  }
  if (!any) return;
  for (int64_t i = 0; i < j; ++i) {
    const T *cosine = s.rotations + 2 * i * n, *sine = cosine + n, *below = h + (i + 1) * n;
    const T* diagonal = s.triangle + (i * m + i) * n;
    T* entry = s.triangle + (i * m + j) * n;
    SOATFAST_LANES
    for (int l = 0; l < L; ++l) {
      const T pivot = magnitude(diagonal[l]);
      largest[l] = pivot > largest[l] ? pivot : largest[l];
      entry[l] = use[l] ? cosine[l] * running[l] + sine[l] * below[l] : entry[l];
      running[l] = cosine[l] * below[l] - sine[l] * running[l];
    }
  }
  T* const rhs = s.rhs + j * n;
  T* const turn = s.rotations + 2 * j * n;
  T* const corner = s.triangle + (j * m + j) * n;
  T rho[L];
  Flag accept[L];
  SOATFAST_LANES
  for (int l = 0; l < L; ++l) {
    rho[l] = hypotenuse(running[l], h[(j + 1) * n + l]);
    const T bound = rcond * (rho[l] > largest[l] ? rho[l] : largest[l]);
    accept[l] = rho[l] > bound ? use[l] : Flag(0);
  }
  SOATFAST_LANES
  for (int l = 0; l < L; ++l) {
    const T safe = accept[l] ? rho[l] : T(1), old = rhs[l];
    const T c = running[l] / safe, t = h[(j + 1) * n + l] / safe;
    corner[l] = accept[l] ? rho[l] : corner[l];
    turn[l] = accept[l] ? c : turn[l];
    turn[n + l] = accept[l] ? t : turn[n + l];
    rhs[l] = accept[l] ? c * old : old;
    rhs[n + l] = accept[l] ? -t * old : rhs[n + l];
  }
  for (int l = 0; l < L; ++l) {
    if (accept[l]) {
      s.iterations[l] = static_cast<int32_t>(j + 1);
      const T now = magnitude(rhs[n + l]);
      residual[l] = now;
      s.status[l] = now <= target[l] ? kConverged : exhausted(h[(j + 1) * n + l], norm[l]) ? kBreakdown : kActive;
    } else if (use[l]) {
      s.status[l] = kSingular;
    }
  }
}

template <typename T>
struct KrylovTriangle {
  const T *triangle, *rhs;
  const int32_t* iterations;
  int64_t stride;
};

// y (m, B) with R y = rhs on the first `iterations` columns of L samples, 0 behind them.
template <typename T, int L>
SOATFAST_HD void back_substitution_lanes(int64_t m, const KrylovTriangle<T>& s, T* y) {
  const int64_t n = s.stride;
  for (int64_t i = m - 1; i >= 0; --i) {
    T left[L];
    SOATFAST_LANES
    for (int l = 0; l < L; ++l) left[l] = s.rhs[i * n + l];
    for (int64_t k = i + 1; k < m; ++k) {
      const T *entry = s.triangle + (i * m + k) * n, *known = y + k * n;
      SOATFAST_LANES
      for (int l = 0; l < L; ++l) left[l] = known[l] == T(0) ? left[l] : left[l] - entry[l] * known[l];
    }
    const T* pivot = s.triangle + (i * m + i) * n;
    for (int l = 0; l < L; ++l) {
      const bool used = i < s.iterations[l];
      y[i * n + l] = used ? left[l] / (used ? pivot[l] : T(1)) : T(0);
    }
  }
}

#undef SOATFAST_LANES

}  // namespace SOATFAST_ISA
}  // namespace soatfast
