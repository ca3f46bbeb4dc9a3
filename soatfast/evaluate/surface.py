"""The loss around a sample: how far it is from its tangent, and how it runs along lines and planes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from soatfast.gradients.objectives import Named, Objective
from soatfast.gradients.oracle import InputGradient
from soatfast.losses.llr import LLR
from soatfast.ops.arguments import Bounds, check_steps

_PARALLEL = 1 - 1e-6  # |cosine| of two directions that span no plane


def local_linearity(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float | Tensor,
    p: float = math.inf,
    *,
    steps: int = 20,
    restarts: int = 1,
    bounds: Bounds = (0.0, 1.0),
    step_size: float | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""gamma(eps, x) (B,) = max over ||v||_p <= eps of |l(x + v) - l(x) - <v, g(x)>| (Qin et al. 2019, equation 5).

    How far the cross-entropy is from its tangent in the ball: small gamma means that first-order attacks see what there
    is. v is sought by signed steps, as in :class:`~soatfast.losses.LLR`, so the value is a lower bound of gamma.

    Args:
        model: in eval mode for this call.
        x, y: (B, ...) batch and labels.
        eps, p: the ball; p is 1, 2 or math.inf.
        steps, step_size: of the search; None: eps / 4.
        restarts: random starts; the largest value counts.
        bounds: the box of x + v; (-math.inf, math.inf) for none.
        generator: random starts; on x's device.

    Passes: 2 forwards and 1 backward, and for each restart steps forwards and backwards and 1 forward.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> local_linearity(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]), eps=0.1).shape
    torch.Size([3])
    """
    check_steps(restarts, "restarts")
    search = LLR(eps=eps, p=p, steps=steps, bounds=bounds, step_size=step_size, generator=generator)
    with InputGradient(model) as oracle:
        loss, g = oracle(x, y)
        gamma = torch.zeros_like(loss)
        for _ in range(restarts):
            moved = search.furthest(oracle, x, y, loss, g)
            tangent = loss + ((moved - x) * g).flatten(1).sum(1)
            gamma = torch.fmax(gamma, (oracle.loss(moved, y) - tangent).abs())
    return gamma


def loss_along(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    direction: Tensor,
    distances: Tensor,
    *,
    objective: Named | Objective = "ce",
) -> Tensor:
    r"""(B, T) the loss at x + t d for each t of distances (T,): a line through each sample.

    Args:
        model: in eval mode for this call.
        x, y: (B, ...) batch and labels.
        direction: d, of x's shape and any length: the perturbation of an attack, or noise. Nothing is clamped.
        distances: (T,) multiples of d.
        objective: as of :class:`~soatfast.gradients.InputGradient`.

    Passes: T forwards.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> x, y = torch.rand(3, 2), torch.tensor([0, 1, 0])
    >>> loss_along(model, x, y, torch.ones(3, 2), torch.linspace(0, 1, 5)).shape
    torch.Size([3, 5])
    """
    _check_direction(direction, "direction", x)
    with InputGradient(model, objective) as oracle:
        return torch.stack([oracle.loss(x + float(t) * direction, y) for t in distances], 1)


def loss_surface(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    one: Tensor,
    other: Tensor,
    distances: Tensor,
    *,
    objective: Named | Objective = "ce",
) -> Tensor:
    r"""(B, T, T) the loss at x + s one + t other, s along the rows: a plane through each sample.

    Arguments as of :func:`loss_along`. Passes: T^2 forwards.

    Raises:
        ValueError: a direction is zero, or the two are parallel: they span no plane.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> x, y, axes = torch.rand(3, 2), torch.tensor([0, 1, 0]), torch.eye(2)
    >>> loss_surface(model, x, y, axes[0].expand(3, 2), axes[1].expand(3, 2), torch.linspace(-1, 1, 4)).shape
    torch.Size([3, 4, 4])
    """
    for direction, name in ((one, "one"), (other, "other")):
        _check_direction(direction, name, x)
    cosine = torch.nn.functional.cosine_similarity(one.flatten(1).double(), other.flatten(1).double(), dim=1, eps=0)
    parallel = ((cosine.abs() > _PARALLEL) | cosine.isnan()).nonzero().flatten().tolist()
    if parallel:
        raise ValueError(
            f"one and other must span a plane; they are parallel or zero for sample {parallel[0]} "
            f"(and {len(parallel) - 1} more)"
        )
    rows = [loss_along(model, x + float(s) * one, y, other, distances, objective=objective) for s in distances]
    return torch.stack(rows, 1)


def _check_direction(direction: Tensor, name: str, x: Tensor) -> None:
    if direction.shape != x.shape:
        raise ValueError(f"{name} must have x's shape {tuple(x.shape)}, got {tuple(direction.shape)}")


def over_loader(
    loader: Iterable[tuple[Tensor, Tensor]],
    measure: Callable[[Tensor, Tensor], Tensor],
    *,
    samples: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """measure(x, y), (B, ...), of every batch of a loader, joined on the CPU: one batch is in memory at a time.

    Args:
        loader: batches (x, y).
        measure: any function of a batch with one row a sample.
        samples: stop after so many; None: all.
        device: where x and y are moved before; None leaves them.

    >>> import torch
    >>> batches = [(torch.rand(4, 2), torch.zeros(4)), (torch.rand(3, 2), torch.zeros(3))]
    >>> over_loader(batches, lambda x, y: x.sum(1), samples=6).shape
    torch.Size([6])
    """
    if samples is not None:
        check_steps(samples, "samples")
    found, left = [], math.inf if samples is None else samples
    for x, y in loader:
        if left <= 0:
            break
        count = int(min(len(x), left))
        x, y = x[:count], y[:count]
        rows = measure(x, y) if device is None else measure(x.to(device), y.to(device))
        if not isinstance(rows, Tensor) or rows.dim() == 0 or len(rows) != count:
            came = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(f"measure must return a tensor of {count} rows, one a sample, got {came}")
        found.append(rows.detach().cpu())
        left -= count
    if not found:
        raise ValueError("the loader has no batches")
    return torch.cat(found)
