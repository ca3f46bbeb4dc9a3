"""Labels for targeted attacks to reach: the choices the field uses, from one forward pass."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from soatfast.attacks.base import Model
from soatfast.gradients.checks import check_batch, check_labels
from soatfast.gradients.oracle import InputGradient, Mode
from soatfast.gradients.outputs import Forward, Output
from soatfast.ops.arguments import check_steps

Rule = Literal["least-likely", "second-likely", "random"]
RULES: tuple[str, ...] = get_args(Rule)


def choose(
    model: Model,
    x: Tensor,
    y: Tensor,
    rule: Rule = "random",
    *,
    k: int = 1,
    classes: int | None = None,
    mode: Mode = "eval",
    generator: torch.Generator | None = None,
    output: Output = None,
    forward: Forward | None = None,
) -> Tensor:
    """A class other than y for each sample, as the label of a targeted attack.

    Args:
        model: maps (B, ...) to logits (B, K); its state is restored.
        x: (B, ...) batch, in any range.
        y: (B,) labels, which are not chosen.
        rule: "least-likely" the class with the smallest logit (Kurakin et al. 2017); "second-likely" the one with the
            largest, which is the second most likely where y is predicted; "random" uniform over the others.
        k: with "least-likely" the k-th smallest logit, 1 to K - 1.
        classes: K, where it is known: "random" then needs no pass.
        mode: state of the model during the pass.
        generator: random numbers of "random"; on y's device.
        output, forward: as of :class:`~soatfast.attacks.Attack`.

    Returns:
        (B,) int64. One forward, or none.

    Raises:
        TypeError, ValueError: x, y or the logits as for any attack; an unknown rule; k or classes out of range.

    >>> import torch
    >>> logits, y = torch.tensor([[3.0, -1.0, 0.5, 0.0]]), torch.tensor([1])
    >>> choose(torch.nn.Identity(), logits, y, "least-likely"), choose(torch.nn.Identity(), logits, y, "second-likely")
    (tensor([3]), tensor([0]))
    """
    check_rule(rule)
    check_batch(x, y, (-math.inf, math.inf))
    y = y.long()
    if len(x) == 0:
        return y
    if rule == "random" and classes is not None:
        return random_other(y, classes, generator=generator)
    with InputGradient(model, "margin", mode, output=output, forward=forward) as oracle:
        oracle.loss(x.detach(), y)
        logits = oracle.logits
    assert logits is not None
    return from_logits(logits, y, rule, k=k, generator=generator)


def from_logits(
    logits: Tensor, y: Tensor, rule: Rule = "random", *, k: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """As :func:`choose`, for logits (B, K) that are there already. Ties: the lowest class."""
    check_rule(rule)
    check_steps(k, "k")
    classes = logits.shape[1]
    if rule == "random":
        return random_other(y, classes, generator=generator)
    label = y.long().unsqueeze(1)
    if rule == "second-likely":
        return logits.scatter(1, label, -math.inf).argmax(1)
    if k >= classes:
        raise ValueError(f"k must be at most {classes - 1}, the number of other classes, got {k}")
    return logits.scatter(1, label, math.inf).argsort(dim=1, stable=True)[:, k - 1]


def random_other(y: Tensor, classes: int, *, generator: torch.Generator | None = None) -> Tensor:
    """A class drawn uniformly from the others: (y + 1 + randint(0, K - 1)) mod K. No pass.

    >>> import torch
    >>> y = torch.tensor([0, 1, 2, 2])
    >>> bool((random_other(y, 3) != y).all())
    True
    """
    check_classes(classes)
    if len(y):
        check_labels(y, classes)
    shift = torch.randint(0, classes - 1, y.shape, device=y.device, generator=generator)
    return (y.long() + 1 + shift) % classes


def check_classes(classes: int) -> None:
    check_steps(classes, "classes", least=2)


def check_rule(rule: str) -> None:
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
