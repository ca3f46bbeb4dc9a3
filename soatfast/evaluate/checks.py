"""What makes an evaluation mean less than it seems, or nothing: asked before any attack is run."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from soatfast.gradients.checks import check_batch, check_labels
from soatfast.gradients.outputs import logits_of
from soatfast.ops.arguments import Bounds

_SAMPLES = 64  # of the first batch: enough to tell


class EvaluationWarning(UserWarning):
    """The figures of this evaluation may say more about the model's form than about its robustness."""


class SoftmaxWarning(EvaluationWarning):
    """The model returns probabilities."""


class RandomisedWarning(EvaluationWarning):
    """The model gives one input several outputs."""


def check_data(x: Tensor, y: Tensor, bounds: Bounds, where: str) -> None:
    """Raise as an attack would, with the place: x floating and within bounds, y (B,) integer labels.

    >>> import torch
    >>> check_data(torch.full((1, 3), 255.0), torch.tensor([0]), (0.0, 1.0), "batch 0")
    Traceback (most recent call last):
    ValueError: batch 0: x must lie in bounds [0.0, 1.0] without NaN, got values from 255.0 to 255.0
    """
    try:
        check_batch(x, y, bounds)
        if len(x) == 0:
            raise ValueError("there are no samples in it")
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error


def check_model(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Two forwards of a few samples: raise unless they are logits (B, K), warn of what AutoAttack's checks warn of.

    The model is taken in the mode it is in; random numbers that it draws are given back.

    Raises:
        ValueError: the model returns something else than (B, K) with K >= 2, or a label lies outside 0..K-1.
    """
    x, y = x[:_SAMPLES], y[:_SAMPLES]
    with torch.no_grad(), torch.random.fork_rng():
        first, second = (logits_of(model(x), len(x)) for _ in range(2))
    check_labels(y, first.shape[1])
    if not bool(first.isfinite().all()):
        warnings.warn("the model's logits are not finite on clean input", EvaluationWarning, stacklevel=3)
        return
    if looks_like_softmax(first):
        warnings.warn(
            "the model returns probabilities, not logits: cross-entropy of them has vanishing gradients, and attacks "
            "look weaker than they are; take the softmax out of the model",
            SoftmaxWarning,
            stacklevel=3,
        )
    if not bool(((first - second).abs().amax() <= 1e-5 * first.abs().amax().clamp_min(1e-5)).item()):
        warnings.warn(
            "the model gives one input two different outputs: it is randomised, and attacks that do not average over "
            "its randomness overstate its robustness",
            RandomisedWarning,
            stacklevel=3,
        )


def looks_like_softmax(logits: Tensor) -> bool:
    """Whether every row is a probability distribution.

    >>> import torch
    >>> looks_like_softmax(torch.tensor([[0.5, 0.5], [0.9, 0.1]])), looks_like_softmax(torch.tensor([[1.5, -0.5]]))
    (True, False)
    """
    wide = logits.double()
    rounding = max(1e-3, torch.finfo(logits.dtype).eps * logits.shape[1])
    return bool(((wide >= 0).all() & ((wide.sum(1) - 1).abs() < rounding).all()).item())
