"""The toolbox against curvlinops, with the input as the only parameter. Where it is not installed, nothing is run."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import nn

from soatfast.gradients import InputGradient
from soatfast.solvers import frobenius_norm, hessian_trace, top_eigenpairs
from tests.nets import batch, smooth_net


class AtInput(nn.Module):
    """The network as a function of its one parameter, the input of one sample."""

    def __init__(self, model: nn.Module, x: torch.Tensor):
        super().__init__()
        self.model, self.x = [model], nn.Parameter(x.clone())  # a list: the model's own weights are none

    def forward(self, ignored: torch.Tensor) -> torch.Tensor:
        return self.model[0](self.x)  # type: ignore[no-any-return]


def test_eigenvalues_trace_and_norm_are_theirs() -> None:
    curvlinops = pytest.importorskip("curvlinops")
    model, (x, y) = smooth_net(shape=(1, 8, 8)), batch(3, (1, 8, 8))
    with InputGradient(model) as oracle:
        mine = top_eigenpairs(oracle, x, y, 3, max_dim=40)
        trace = hessian_trace(oracle, x, y, method="hutch++", products=192)
        norm = frobenius_norm(oracle, x, y, products=600, generator=torch.Generator().manual_seed(0))
    for i in range(3):
        at = AtInput(model, x[i : i + 1])
        theirs = curvlinops.HessianLinearOperator(
            at, nn.CrossEntropyLoss(reduction="sum"), list(at.parameters()), [(x[i : i + 1], y[i : i + 1])]
        )
        operator = theirs.to_scipy(dtype=np.float64)
        values = np.sort(scipy.sparse.linalg.eigsh(operator, k=3, which="LA", return_eigenvectors=False))[::-1]
        np.testing.assert_allclose(mine.values[i].numpy(), values, rtol=1e-8)
        dense = operator @ np.eye(64)
        np.testing.assert_allclose(trace.value[i], np.trace(dense), rtol=1e-8)
        assert abs(norm.value[i] - np.linalg.norm(dense)) < 4 * norm.error[i]
