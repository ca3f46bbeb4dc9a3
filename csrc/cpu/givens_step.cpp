#include "../krylov_checks.h"
#include "../math/krylov.h"

namespace soatfast {
namespace {

template <typename T>
void run(
    const Tensor& triangle, const Tensor& rotations, const Tensor& rhs, const Tensor& iterations, const Tensor& status,
    const Tensor& h, const Tensor& norm, const Tensor& target, int64_t column, double rcond, const Tensor& residual) {
  const int64_t m = triangle.size(1);
  const auto data = [](const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); };
  const auto whole = [](const Tensor& t) { return static_cast<int32_t*>(t.mutable_data_ptr()); };
  T *triangles = data(triangle), *turns = data(rotations), *sides = data(rhs), *out = data(residual);
  const T *columns = data(h), *norms = data(norm), *targets = data(target);
  int32_t *counts = whole(iterations), *states = whole(status);
  const int64_t grain = std::max<int64_t>(1, 16384 / (8 * m));
  torch::stable::parallel_for(0, triangle.size(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const KrylovRow<T> row{triangles + r * m * m, turns + r * 2 * m, sides + r * (m + 1), counts + r, states + r};
      out[r] = givens_row<T>(m, column, row, columns + r * (m + 1), norms[r], targets[r], static_cast<T>(rcond));
    }
  });
}

// triangle [B, m, m], rotations [B, m, 2], rhs [B, m + 1], iterations, status [B], all updated; h [B, m + 1],
// norm, target [B] -> residual [B]
Tensor givens_step(
    const Tensor& triangle, const Tensor& rotations, const Tensor& rhs, const Tensor& iterations, const Tensor& status,
    const Tensor& h_in, const Tensor& norm_in, const Tensor& target_in, int64_t column, double rcond) {
  const auto [h, norm, target] = check_givens(
      triangle, rotations, rhs, iterations, status, h_in, norm_in, target_in, column);
  const int64_t rows = triangle.size(0);
  Tensor residual = torch::stable::new_empty(triangle, {rows});
  if (rows == 0) return residual;
  const auto launch = triangle.scalar_type() == ScalarType::Double ? run<double> : run<float>;
  launch(triangle, rotations, rhs, iterations, status, h, norm, target, column, rcond, residual);
  return residual;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) { m.impl("givens_step", TORCH_BOX(&givens_step)); }

}  // namespace soatfast
