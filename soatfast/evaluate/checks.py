"""What makes an evaluation mean less than it seems, or nothing: asked before any attack is run."""

from __future__ import annotations

import contextlib
import itertools
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from soatfast.attacks.autoattack import AutoAttack
from soatfast.gradients.checks import check_batch, check_labels
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.outputs import logits_of
from soatfast.ops.arguments import Bounds

_SAMPLES = 64  # of the first batch: enough to tell
_DRAWS = 5  # these and the next two are those of AutoAttack's checks
_APART = 1e-4
_SQUARE = 0.002


class EvaluationWarning(UserWarning):
    """The figures of this evaluation may say more about the model's form than about its robustness."""


class SoftmaxWarning(EvaluationWarning):
    """The model returns probabilities."""


class RandomisedWarning(EvaluationWarning):
    """The model gives one input several outputs."""


class ZeroGradientWarning(EvaluationWarning):
    """The model's loss has no gradient by some inputs, or by none."""


_WARNINGS: dict[str, type[EvaluationWarning]] = {
    "probabilities": SoftmaxWarning,
    "randomised": RandomisedWarning,
    "zero gradients": ZeroGradientWarning,
}


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


@dataclass(frozen=True)
class Check:
    """One of the checks of an evaluation: whether it found something, and in words what."""

    name: str
    found: bool
    text: str = ""

    def warn(self, stacklevel: int = 3) -> None:
        if self.found:
            warnings.warn(self.text, _WARNINGS.get(self.name, EvaluationWarning), stacklevel=stacklevel + 1)


def check_model(model: nn.Module, x: Tensor, y: Tensor, attacks: Mapping[str, Any] | None = None) -> list[Check]:
    """AutoAttack's checks (Croce and Hein 2020) of a few samples, before any attack: what each found, a warning too.

    "finite": logits that are not. "probabilities": softmax outputs. "randomised": outputs that differ over five
    draws. "autograd inside": gradients that the forward takes itself. "zero gradients": samples whose cross-entropy
    has a gradient of zero in every entry. "classes": AutoAttack on fewer than four.

    Six forwards and one backward to the input, of at most 64 samples. The model is taken in the mode it is in; random
    numbers that it draws are given back.

    Raises:
        ValueError: the model returns something else than (B, K) with K >= 2, a label lies outside 0..K-1, or an attack
            is told another number of classes.
    """
    x, y = x[:_SAMPLES], y[:_SAMPLES]
    with torch.random.fork_rng():
        with torch.no_grad(), _calls_of_autograd() as calls:
            draws = [logits_of(model(x), len(x))]
        classes = draws[0].shape[1]
        check_labels(y, classes)
        check_told_classes(attacks or {}, classes)
        if not bool(draws[0].isfinite().all()):
            found = [Check("finite", True, "the model's logits are not finite on clean input: no other check was made")]
        else:
            with torch.no_grad():
                draws += [logits_of(model(x), len(x)) for _ in range(_DRAWS - 1)]
            found = [
                Check("finite", False),
                _probabilities(draws[0]),
                _randomised(draws, y),
                _autograd_inside(calls),
                _zero_gradients(model, x, y),
                _few_classes(classes, attacks or {}),
            ]
    for check in found:
        check.warn()
    return found


def check_told_classes(attacks: Mapping[str, Any], classes: int) -> None:
    """Raise ValueError where an attack is told another number of classes than the model has."""
    for name, attack in attacks.items():
        told = getattr(attack, "classes", None)
        if told is not None and told != classes:
            raise ValueError(
                f"{name}: the attack is told classes={told}, and the model tells {classes} apart: leave classes out"
            )


def square_check(accuracies: Mapping[str, float], square: Sequence[str]) -> Check | None:
    """Whether one of these attacks by Square left fewer samples than all other attacks; None: there is no pair.

    >>> square_check({"pgd": 0.5, "square": 0.4}, ["square"]).found, square_check({"pgd": 0.5}, [])
    (True, None)
    """
    others = [value for name, value in accuracies.items() if name not in square]
    if not square or not others:
        return None
    drop = min(others) - min(accuracies[name] for name in square)
    if drop <= _SQUARE:
        return Check("square", False)
    return Check(
        "square",
        True,
        f"Square, which asks for no gradient, leaves {100 * drop:.1f} percentage points fewer than every other attack: "
        "gradients may be masked; run Square for longer, or an attack made for this model",
    )


def lines_of(checks: Sequence[Check]) -> str:
    """What the checks found, for a table's note."""
    if not checks:
        return ""
    texts = [check.text for check in checks if check.found]
    if not texts:
        return f"Checks of the model: {', '.join(check.name for check in checks)}; nothing was found."
    return "Checks of the model found: " + "; ".join(texts) + "."


def _probabilities(logits: Tensor) -> Check:
    return Check(
        "probabilities",
        looks_like_softmax(logits),
        "the model returns probabilities, not logits: cross-entropy of them has vanishing gradients, and attacks "
        "look weaker than they are; take the softmax out of the model",
    )


def _randomised(draws: Sequence[Tensor], y: Tensor) -> Check:
    """The directions of the logits of two draws are further apart than 1e-4, or other numbers of samples are right."""
    unit = [z.double() / (z.double().norm(dim=1, keepdim=True) + 1e-10) for z in draws]
    apart = max(float((a - b).norm(dim=1).max()) for a, b in itertools.combinations(unit, 2))
    right = {int((z.argmax(1) == y).sum()) for z in draws}
    return Check(
        "randomised",
        apart > _APART or len(right) > 1,
        f"the model gives one input different outputs in {len(draws)} draws: it is randomised, and attacks that do not "
        "average over its randomness overstate its robustness",
    )


def _autograd_inside(calls: Sequence[str]) -> Check:
    return Check(
        "autograd inside",
        bool(calls),
        f"the model's forward calls {calls[0] if calls else 'autograd'}: a defence that changes with its input, which "
        "attacks by plain gradients may not follow",
    )


def _zero_gradients(model: nn.Module, x: Tensor, y: Tensor) -> Check:
    name, missing = "zero gradients", "no attack by gradients can work; SimBA needs none"
    try:
        with InputGradient(model) as oracle:
            g = oracle.gradient(x, y)
    except torch.OutOfMemoryError:
        raise
    except ValueError:  # the output has no graph to the input
        return Check(name, True, f"the model's output has no gradient by its input: {missing}")
    except RuntimeError as error:
        return Check(name, True, f"the gradient by the input cannot be taken ({str(error).splitlines()[0]}): {missing}")
    zero = int((g.flatten(1) == 0).all(1).sum())
    return Check(
        name,
        zero > 0,
        f"{zero} of {len(x)} samples have a gradient of zero in every entry, and attacks by gradients stand still "
        "there: rounding, steps or saturated outputs in the model? An accuracy under them may mean nothing",
    )


def _few_classes(classes: int, attacks: Mapping[str, Any]) -> Check:
    asks = any(isinstance(attack, AutoAttack) for attack in attacks.values())
    left = "no DLR loss" if classes == 2 else "the DLR loss without targets"
    return Check(
        "classes",
        asks and classes < 4,
        f"with {classes} classes AutoAttack has {left}: it is weaker than on four or more",
    )


@contextlib.contextmanager
def _calls_of_autograd() -> Iterator[list[str]]:
    """The calls of torch.autograd.grad and backward that this thread makes in the block, by name."""
    codes = {torch.autograd.grad.__code__: "torch.autograd.grad", torch.autograd.backward.__code__: "backward"}
    seen: list[str] = []
    before = sys.getprofile()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code in codes:
            seen.append(codes[frame.f_code])

    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(before)


def looks_like_softmax(logits: Tensor) -> bool:
    """Whether every row is a probability distribution.

    >>> import torch
    >>> looks_like_softmax(torch.tensor([[0.5, 0.5], [0.9, 0.1]])), looks_like_softmax(torch.tensor([[1.5, -0.5]]))
    (True, False)
    """
    wide = logits.double()
    rounding = max(1e-5, torch.finfo(logits.dtype).eps * logits.shape[1])
    return bool(((wide > -1e-5).all() & ((wide.sum(1) - 1).abs() < rounding).all()).item())
