"""`trades_loss` with the signature of the TRADES authors' `trades.py`: the same loss from 13 forwards, not 23."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from soatfast import ops
from soatfast.attacks import NearPGD
from soatfast.gradients.objectives import Named, Objective, cross_entropy, kl_divergence
from soatfast.losses.base import mean, training_logits
from soatfast.losses.trades import TRADES

_NORMS = {"l_inf": math.inf, "l_2": 2}


def trades_loss(
    model: nn.Module,
    x_natural: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    step_size: float = 0.003,
    epsilon: float = 0.031,
    perturb_steps: int = 10,
    beta: float = 1.0,
    distance: str = "l_inf",
) -> Tensor:
    r"""CE(f(x), y) + beta KL( p(x) || p(x') ), both means over the batch: the scalar to call ``.backward()`` on.

    A script that has ``from trades import trades_loss`` needs ``from soatfast.compat.trades import trades_loss``
    instead, and gets what it had, up to rounding: the value and the parameters' gradients under the same seed, the
    random numbers consumed, the running statistics of batch norm, the model in train mode, the optimiser's gradients
    cleared. (In float32 rounding turns signs of tiny gradients, and a training goes its own way after some steps, as it
    does with another number of threads.) :class:`~soatfast.losses.TRADES` is the same loss for new scripts.

    x' starts at x + 0.001 N(0, I), whose random numbers come from the CPU generator on every device, and takes
    ``perturb_steps`` steps in eval mode. "l_inf": of ``step_size``, in the ball of radius ``epsilon``. "l_2": of
    2 epsilon / perturb_steps along the unit gradient (``step_size`` has no part in it), or a random step for a sample
    without a gradient, clamped to [0, 1] and then drawn back into the ball; the question whether there is such a sample
    waits for the device, as in the original.

    Different are the errors: x outside [0, 1] or with NaN, labels out of range and an unknown ``distance`` raise.

    Args:
        model: maps (B, ...) to logits (B, K).
        x_natural: images (B, ...) in [0, 1].
        y: labels (B,).
        optimizer: whose ``zero_grad()`` is called before the training forwards.
        step_size, epsilon: in input units.
        perturb_steps: at least 1.
        beta: weight of the divergence, 1/lambda of the paper.
        distance: "l_inf" or "l_2".

    Defaults: the original's.

    Raises:
        TypeError, ValueError: an argument is wrong, as the message says; the model's mode is as before then.

    Passes, K steps: K + 3 forwards (the original: 2K + 3), K backwards to the input, 1 to the parameters. A model that
    draws random numbers in train mode (dropout), has a batch norm with momentum None, or changes buffers of other
    layers (spectral norm), gets its second clean forward of the original, K + 4, as the first one cannot stand for it.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> loss = trades_loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]), optimizer, beta=6.0)
    >>> loss.backward()
    >>> optimizer.step()
    """
    if distance not in _NORMS:
        raise ValueError(f'distance must be "l_inf" or "l_2", got {distance!r}')
    p = _NORMS[distance]
    size = step_size if p == math.inf else None
    attack = _Official(eps=epsilon, p=p, steps=perturb_steps, step_size=size, beta=beta)
    x_adv = attack.perturb(model, x_natural, y)
    model.train()
    optimizer.zero_grad()
    norms = _running_norms(model)
    before, state = _statistics(norms), _state(model, norms, x_natural)
    clean = training_logits(model, x_natural, y)
    after = _statistics(norms)
    changed = any(not torch.equal(a, b) for a, b in zip(state, _state(model, norms, x_natural), strict=True))
    adversarial = training_logits(model, x_adv, y)
    if changed or any(norm.momentum is None for norm in norms):
        target = training_logits(model, x_natural, y)
    else:
        target = clean
        _update_again(norms, before, after)
    return mean(cross_entropy(clean, y) + beta * kl_divergence(target, adversarial))


class _Official(TRADES):
    """TRADES with the start and the L2 step of the authors' code."""

    def _attack(self, objective: Named | Objective) -> NearPGD:
        fields: dict[str, Any] = {name: getattr(self, name) for name in ("eps", "p", "steps", "step_size")}
        return _OfficialPGD(objective=objective, **fields)


@dataclass(frozen=True, kw_only=True)
class _OfficialPGD(NearPGD):
    """NearPGD with the start and the L2 step of the authors' code."""

    def _start(self, x: Tensor) -> Tensor:
        noise = torch.randn(x.shape)
        if self.p == 2:  # the original draws the start of Linf first, and another for L2
            noise = torch.randn(x.shape)
        return x + (self.noise * noise).to(x.device)

    def _stepper(self, x: Tensor, alpha: float | Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        if self.p == math.inf:
            return super()._stepper(x, alpha)

        def step(x_adv: Tensor, g: Tensor) -> Tensor:
            move = ops.lmo(g, 2, alpha)
            blank = ops.lp_norm(g, 2) == 0
            if blank.any():
                move[blank] = -alpha * torch.randn_like(move[blank])
            moved = (x_adv + move).clamp(*self.bounds)  # type: ignore[arg-type]
            return ops.project(moved, x, 2, self.eps, bounds=self.bounds)

        return step


def _state(model: nn.Module, norms: list[_BatchNorm], x: Tensor) -> list[Tensor]:
    """Copies of what a forward may change: the random generators, and the buffers of all modules but the norms."""
    generators = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(x.device)] if x.is_cuda else [])
    others = [m for m in model.modules() if m not in norms]
    return generators + [buffer.clone() for m in others for buffer in m.buffers(recurse=False)]


def _running_norms(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _buffers(norm: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert mean is not None and variance is not None and batches is not None
    return mean, variance, batches


def _statistics(norms: list[_BatchNorm]) -> list[list[Tensor]]:
    """Running mean, variance and number of batches of each, copied."""
    return [[buffer.clone() for buffer in _buffers(norm)] for norm in norms]


@torch.no_grad()
def _update_again(norms: list[_BatchNorm], before: list[list[Tensor]], after: list[list[Tensor]]) -> None:
    """The update that took `before` to `after`, once more: r <- (1 - momentum)^n r + c, for the same c."""
    for norm, (*old, first), (*new, second) in zip(norms, before, after, strict=True):
        assert norm.momentum is not None  # None has its own branch
        mean, variance, batches = _buffers(norm)
        keep = (1 - norm.momentum) ** (second - first).to(mean.dtype)
        # .data: the graphs of the two forwards have saved this version of the buffers
        mean.data.copy_(new[0] + keep * (mean - old[0]))
        variance.data.copy_(new[1] + keep * (variance - old[1]))
        batches.add_(second - first)
