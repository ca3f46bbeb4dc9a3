#include "../krylov_checks.h"
#include "../math/krylov.h"

namespace soatfast {
namespace {

template <typename T>
void run(const Tensor& triangle, const Tensor& rhs, const Tensor& iterations, const Tensor& y) {
  const int64_t m = triangle.size(1);
  const auto* triangles = static_cast<const T*>(triangle.const_data_ptr());
  const auto* sides = static_cast<const T*>(rhs.const_data_ptr());
  const auto* counts = static_cast<const int32_t*>(iterations.const_data_ptr());
  auto* out = static_cast<T*>(y.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, 16384 / (m * m));
  torch::stable::parallel_for(0, triangle.size(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      back_substitution_row<T>(m, counts[r], triangles + r * m * m, sides + r * (m + 1), out + r * m);
    }
  });
}

// triangle [B, m, m], rhs [B, m + 1], iterations [B] -> y [B, m]
Tensor triangular_solve(const Tensor& triangle_in, const Tensor& rhs_in, const Tensor& iterations_in) {
  const Tensor triangle = dense(triangle_in), iterations = dense(iterations_in);
  check_square(triangle);
  const int64_t rows = triangle.size(0), m = triangle.size(1);
  const Tensor rhs = dense_like(rhs_in, triangle, rows * (m + 1), "rhs");
  check_numbers(iterations, triangle, rows, "iterations");
  const auto* counts = static_cast<const int32_t*>(iterations.const_data_ptr());
  for (int64_t r = 0; r < rows; ++r) {
    STD_TORCH_CHECK(counts[r] >= 0 && counts[r] <= m, "iterations must lie in 0..", m, ", got ", counts[r]);
  }
  Tensor y = torch::stable::new_empty(triangle, {rows, m});
  if (rows == 0 || m == 0) return y;
  (triangle.scalar_type() == ScalarType::Double ? run<double> : run<float>)(triangle, rhs, iterations, y);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) { m.impl("triangular_solve", TORCH_BOX(&triangular_solve)); }

}  // namespace soatfast
