"""N-FGSM (de Jorge et al., NeurIPS 2022) for a script that keeps its own loss: the perturbation alone."""

from __future__ import annotations

from torch import Tensor, nn

from soatfast.losses.n_fgsm import NFGSM
from soatfast.ops.arguments import Bounds, check_number


def n_fgsm_delta(
    model: nn.Module,
    X: Tensor,
    y: Tensor,
    epsilon: float,
    alpha: float | None = None,
    unif: float = 2.0,
    *,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    r"""The perturbation (B, ...) of N-FGSM: ``output = model(X + n_fgsm_delta(model, X, y, epsilon))``, then any loss.

        eta uniform in (-unif epsilon, unif epsilon);   delta = eta + alpha sgn(g(X + eta)), X + delta in the box

    delta is not clipped to the ball: that is the method. :class:`~soatfast.losses.NFGSM` is the whole training loss.
    The pass is in the mode that the caller left the model in, and moves no running statistics.

    Args:
        model: maps (B, ...) to logits (B, K).
        X: images (B, ...) within ``bounds``.
        y: labels (B,).
        epsilon: radius that the model is trained for, in input units.
        alpha: length of the step; None: epsilon.
        unif: half width of the noise in units of epsilon, >= 0.
        bounds: the box of valid inputs.

    Defaults: the authors'.

    Raises:
        TypeError, ValueError: an argument is wrong, as the message says.

    Passes: 1 forward and 1 backward to the input.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> X = torch.full((3, 1, 2, 2), 0.5)
    >>> delta = n_fgsm_delta(model, X, torch.tensor([0, 1, 0]), 0.1)
    >>> bool(delta.abs().max() <= 0.3 + 1e-6)
    True
    """
    check_number(epsilon, "epsilon")
    check_number(unif, "unif", above=False)
    step = 1.0 if alpha is None else check_number(alpha, "alpha") / epsilon
    x_adv = NFGSM(eps=epsilon, noise=unif, step=step, bounds=bounds).perturb(model, X, y)
    return x_adv - X.detach()
