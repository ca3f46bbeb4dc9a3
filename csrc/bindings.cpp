// soatfast._host: the csrc/math cores on NumPy arrays, for white-box tests that need neither torch nor an op.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <vector>

#include "math/cross_entropy.h"
#include "math/krylov.h"
#include "math/lmo.h"
#include "math/pgd.h"

namespace py = pybind11;
using namespace soatfast;

namespace {

template <typename T>
using Row = py::array_t<T, py::array::c_style>;

template <typename F>
auto by_order(double p, F f) {
  switch (order_of(p)) {
    case Order::kOne: return f(std::integral_constant<Order, Order::kOne>{});
    case Order::kTwo: return f(std::integral_constant<Order, Order::kTwo>{});
    case Order::kInf: return f(std::integral_constant<Order, Order::kInf>{});
    default: return f(std::integral_constant<Order, Order::kGeneral>{});
  }
}

template <typename T>
Row<T> lmo(const Row<T>& g, double p, T eps) {
  Row<T> s(g.size());
  std::vector<T> scratch(g.size());
  by_order(p, [&](auto order) {
    lmo_row<order.value, T>(SimdTeam{}, g.size(), g.data(), p, eps, s.mutable_data(), scratch.data());
  });
  return s;
}

template <typename T>
T lp_norm(const Row<T>& g, double p) {
  return by_order(p, [&](auto order) { return lp_norm_row<order.value, T>(SimdTeam{}, g.size(), g.data(), p); });
}

template <typename T>
Row<T> project(const Row<T>& x_adv_row, const Row<T>& x_row, double p, T eps, T lower, T upper, bool exact) {
  if (x_adv_row.size() != x_row.size()) throw std::invalid_argument("x_adv and x must have the same length");
  if (p != 1 && p != 2 && p != HUGE_VAL) throw std::invalid_argument("p must be 1, 2 or inf");
  const int64_t n = x_row.size();
  Row<T> out(n);
  std::vector<T> scratch(n);
  const T *x_adv = x_adv_row.data(), *x = x_row.data();
  const auto origin = [=](int64_t i) { return x[i]; };
  const auto delta = [=](int64_t i) { return x_adv[i] - x[i]; };
  by_order(p, [&](auto order) {
    const Box<T> box{lower, upper};
    if (exact) {
      project_row<order.value, true, T>(SimdTeam{}, n, delta, origin, eps, box, out.mutable_data(), scratch.data());
    } else {
      project_row<order.value, false, T>(SimdTeam{}, n, delta, origin, eps, box, out.mutable_data(), scratch.data());
    }
  });
  return out;
}

template <typename T>
Row<T> cross_entropy_derivative(const Row<T>& logits, int64_t label, T sign) {
  if (label < 0 || label >= logits.size()) throw std::invalid_argument("label must be an index of logits");
  Row<T> out(logits.size());
  std::vector<T> scratch(logits.size());
  cross_entropy_derivative_row<T>(
      SimdTeam{}, logits.size(), logits.data(), label, sign, out.mutable_data(), scratch.data());
  return out;
}

// One column of the factorisation; the arrays are updated, (residual, iterations, status) returned.
template <typename T>
py::tuple givens(
    Row<T>& triangle, Row<T>& rotations, Row<T>& rhs, int32_t iterations, int32_t status, const Row<T>& h, T norm,
    T target, int64_t column, T rcond) {
  const int64_t m = rhs.size() - 1;
  const bool fits = triangle.size() == m * m && rotations.size() == 2 * m && h.size() == m + 1;
  if (!fits || column < 0 || column >= m || iterations < 0 || iterations > m) {
    throw std::invalid_argument("expected triangle (m, m), rotations (m, 2), rhs (m + 1), h (m + 1), column < m");
  }
  const KrylovState<T> state{
      triangle.mutable_data(), rotations.mutable_data(), rhs.mutable_data(), &iterations, &status, 1};
  T residual = 0;
  givens_lanes<T, 1>(m, column, state, h.data(), &norm, &target, rcond, &residual);
  return py::make_tuple(residual, iterations, status);
}

template <typename T>
Row<T> back_substitution(const Row<T>& triangle, const Row<T>& rhs, int32_t k) {
  const int64_t m = rhs.size() - 1;
  if (triangle.size() != m * m || k < 0 || k > m) {
    throw std::invalid_argument("expected triangle (m, m), rhs (m + 1) and 0 <= k <= m");
  }
  Row<T> y(m);
  back_substitution_lanes<T, 1>(m, KrylovTriangle<T>{triangle.data(), rhs.data(), &k, 1}, y.mutable_data());
  return y;
}

template <typename T>
void bind(py::module_& m) {
  m.def(
      "givens", &givens<T>, py::arg("triangle").noconvert(), py::arg("rotations").noconvert(),
      py::arg("rhs").noconvert(), py::arg("iterations"), py::arg("status"), py::arg("h").noconvert(), py::arg("norm"),
      py::arg("target"), py::arg("column"), py::arg("rcond"),
      "column of the QR factorisation of one Hessenberg matrix, in place -> (residual, iterations, status)");
  m.def(
      "back_substitution", &back_substitution<T>, py::arg("triangle").noconvert(), py::arg("rhs").noconvert(),
      py::arg("k"), "y (m,) with triangle[:k, :k] y[:k] = rhs[:k]");
  m.def("lmo", &lmo<T>, py::arg("g").noconvert(), py::arg("p"), py::arg("eps"), "lmo of one row g (D,)");
  m.def("lp_norm", &lp_norm<T>, py::arg("g").noconvert(), py::arg("p"), "norm of one row g (D,)");
  m.def(
      "project", &project<T>, py::arg("x_adv").noconvert(), py::arg("x").noconvert(), py::arg("p"), py::arg("eps"),
      py::arg("lower") = T(0), py::arg("upper") = T(1), py::arg("exact") = false,
      "projection of one row x_adv (D,) on the ball around x (D,) and the box");
  m.def(
      "cross_entropy_derivative", &cross_entropy_derivative<T>, py::arg("logits").noconvert(), py::arg("label"),
      py::arg("sign") = T(1), "derivative of the cross-entropy of one row of logits (K,)");
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "The per-sample cores of csrc/math on NumPy rows of float32 or float64.";
  bind<float>(m);
  bind<double>(m);
  m.def("hypotenuse", &hypotenuse<double>, py::arg("a"), py::arg("b"), "sqrt(a^2 + b^2)");
}
