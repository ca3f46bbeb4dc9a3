// soatfast._host: the csrc/math cores on NumPy arrays, for white-box tests that need neither torch nor an op.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <vector>

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
void bind(py::module_& m) {
  m.def("lmo", &lmo<T>, py::arg("g").noconvert(), py::arg("p"), py::arg("eps"), "lmo of one row g (D,)");
  m.def("lp_norm", &lp_norm<T>, py::arg("g").noconvert(), py::arg("p"), "norm of one row g (D,)");
  m.def(
      "project", &project<T>, py::arg("x_adv").noconvert(), py::arg("x").noconvert(), py::arg("p"), py::arg("eps"),
      py::arg("lower") = T(0), py::arg("upper") = T(1), py::arg("exact") = false,
      "projection of one row x_adv (D,) on the ball around x (D,) and the box");
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "The per-sample cores of csrc/math on NumPy rows of float32 or float64.";
  bind<float>(m);
  bind<double>(m);
}
