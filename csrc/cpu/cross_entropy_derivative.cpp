#include "../common.h"
#include "rows.h"

namespace soatfast {
namespace {

// Every label is looked at before a row runs: one outside the logits would be another sample's, or nobody's.
const int64_t* check_labels(const Tensor& y, const Tensor& logits) {
  STD_TORCH_CHECK(
      y.scalar_type() == ScalarType::Long && y.dim() == 1 && y.size(0) == logits.size(0),
      "y: expected int64 of shape (", logits.size(0), ",)");
  STD_TORCH_CHECK(y.is_cpu(), "y: expected a tensor on the CPU");
  const auto* labels = static_cast<const int64_t*>(y.const_data_ptr());
  const int64_t classes = logits.size(1);
  for (int64_t i = 0; i < y.size(0); ++i) {
    STD_TORCH_CHECK(
        labels[i] >= 0 && labels[i] < classes, "y[", i, "] is ", labels[i], ", expected a label in 0..", classes - 1);
  }
  return labels;
}

// logits [B, K], y [B] -> derivative [B, K]
Tensor cross_entropy_derivative(const Tensor& logits_in, const Tensor& y_in, double sign) {
  const Tensor logits = dense_rows(logits_in, "logits");
  const Tensor y = dense(y_in);
  const int64_t* labels = check_labels(y, logits);
  Tensor derivative = torch::stable::empty_like(logits);
  const cpu::CrossEntropyDerivative args{
      dtype_of(logits), logits.size(1), logits.const_data_ptr(), labels, sign, derivative.mutable_data_ptr()};
  for_rows(logits.size(0), logits.size(1), cpu::kernels().cross_entropy_derivative, args);
  return derivative;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soatfast, CPU, m) {
  m.impl("cross_entropy_derivative", TORCH_BOX(&cross_entropy_derivative));
}

}  // namespace soatfast
