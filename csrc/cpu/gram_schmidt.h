// Gram-Schmidt and linear combinations over the basis of one sample, a chunk of entries at a time: the chunk of the
// vector stays in the first cache while the vectors of the basis stream past it.
#pragma once

#include "../math/krylov.h"
#include "../math/team.h"

namespace soatfast {
inline namespace SOATFAST_ISA {

constexpr int64_t kPiece = 512;  // entries; sums within one are in T, over them in double

// h[k] += <v_k, r> for k < count; v_k = basis + k stride, all of n <= kPiece entries.
template <typename T>
SOATFAST_HD void add_dots(int64_t n, int64_t count, const T* basis, int64_t stride, const T* r, double* h) {
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    const T *v0 = basis + k * stride, *v1 = v0 + stride, *v2 = v1 + stride, *v3 = v2 + stride;
    T a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
    for (int64_t i = 0; i < n; ++i) {
      const T t = r[i];
      a += v0[i] * t;
      b += v1[i] * t;
      c += v2[i] * t;
      d += v3[i] * t;
    }
    h[k] += a, h[k + 1] += b, h[k + 2] += c, h[k + 3] += d;
  }
  for (; k < count; ++k) {
    const T* v = basis + k * stride;
    T a = 0;
#pragma omp simd reduction(+ : a)
    for (int64_t i = 0; i < n; ++i) a += v[i] * r[i];
    h[k] += a;
  }
}

// r += sign sum_k c_k v_k; c_k = c[k c_stride].
template <typename T, typename C>
SOATFAST_HD void add_combination(
    int64_t n, int64_t count, const T* basis, int64_t stride, const C* c, int64_t c_stride, T sign, T* r) {
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    const T *v0 = basis + k * stride, *v1 = v0 + stride, *v2 = v1 + stride, *v3 = v2 + stride;
    const C* four = c + k * c_stride;
    const T c0 = sign * static_cast<T>(four[0]), c1 = sign * static_cast<T>(four[c_stride]);
    const T c2 = sign * static_cast<T>(four[2 * c_stride]), c3 = sign * static_cast<T>(four[3 * c_stride]);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) r[i] += (c0 * v0[i] + c1 * v1[i]) + (c2 * v2[i] + c3 * v3[i]);
  }
  for (; k < count; ++k) {
    const T* v = basis + k * stride;
    const T factor = sign * static_cast<T>(c[k * c_stride]);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) r[i] += factor * v[i];
  }
}

template <typename T>
SOATFAST_HD double square_of(int64_t n, const T* r) {
  T a = 0;
#pragma omp simd reduction(+ : a)
  for (int64_t i = 0; i < n; ++i) a += r[i] * r[i];
  return a;
}

// The vector w(i), i < n, against the first `known` vectors of basis (m + 1, n); the next vector of the basis, h_k =
// h[k h_stride], ||w||. The basis is read three times: the second pass subtracts and takes the second products at once.
// scratch: 2 known.
template <typename T, typename W>
SOATFAST_HD T arnoldi_row(
    int64_t n, int64_t blocks, int64_t known, T* basis, W w, T* h, int64_t h_stride, double* scratch) {
  const SimdTeam team;
  T* r = basis + known * n;
  const T m = team.max(n, [=](int64_t i) SOATFAST_BODY { return magnitude(w(i)); });
  const T scale = is_finite(m) ? near_one_scale(m) : T(0);
  double *h1 = scratch, *h2 = scratch + known;
  for (int64_t k = 0; k < 2 * known; ++k) scratch[k] = 0;
  double squares = 0, left_squares = 0;
  for (int64_t start = 0; scale > T(0) && start < n; start += kPiece) {
    const int64_t size = n - start < kPiece ? n - start : kPiece;
    T* piece = r + start;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) piece[i] = w(start + i) * scale;
    squares += square_of(size, piece);
    add_dots(size, known, basis + start, n, piece, h1);
  }
  const T norm = static_cast<T>(sqrt(squares));
  if (!(scale > T(0)) || !is_finite(norm / scale)) {
    const T nan = bit_cast<T>(static_cast<Bits<T>>(Real<T>::kInfinity | 1));
    team.each(n, [=](int64_t i) SOATFAST_BODY { r[i] = T(0); });
    for (int64_t k = 0; k < blocks; ++k) h[k * h_stride] = k <= known ? nan : T(0);
    return nan;
  }
  for (int64_t start = 0; start < n; start += kPiece) {
    const int64_t size = n - start < kPiece ? n - start : kPiece;
    add_combination(size, known, basis + start, n, h1, 1, T(-1), r + start);
    add_dots(size, known, basis + start, n, r + start, h2);
  }
  for (int64_t start = 0; start < n; start += kPiece) {
    const int64_t size = n - start < kPiece ? n - start : kPiece;
    add_combination(size, known, basis + start, n, h2, 1, T(-1), r + start);
    left_squares += square_of(size, r + start);
  }
  const T left = static_cast<T>(sqrt(left_squares));
  const bool stop = exhausted(left, norm);
  const T inverse = stop ? T(0) : T(1) / left;
  team.each(n, [=](int64_t i) SOATFAST_BODY { r[i] *= inverse; });
  for (int64_t k = 0; k < blocks; ++k) {
    h[k * h_stride] = k < known ? static_cast<T>((h1[k] + h2[k]) / scale) : k == known ? left / scale : T(0);
  }
  return norm / scale;
}

// x (n,) = x0 + sum_k y_k v_k, y_k = y[k y_stride]; x0 may be null.
template <typename T>
SOATFAST_HD void combine_row(
    int64_t n, int64_t m, const T* basis, const T* y, int64_t y_stride, const T* x0, T* x) {
  while (m > 0 && y[(m - 1) * y_stride] == T(0)) --m;  // no column behind a sample's end is read
  for (int64_t start = 0; start < n; start += kPiece) {
    const int64_t size = n - start < kPiece ? n - start : kPiece;
    T* piece = x + start;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) piece[i] = x0 == nullptr ? T(0) : x0[start + i];
    add_combination(size, m, basis + start, n, y, y_stride, T(1), piece);
  }
}

}  // namespace SOATFAST_ISA
}  // namespace soatfast
