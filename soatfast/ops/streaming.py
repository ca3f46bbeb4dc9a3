"""Ops on (B, D) rows: linear oracles, norms, projections, and the steps of attacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from soatfast.ops.arguments import (
    Bounds,
    Layout,
    boxed_order,
    check_between,
    check_number,
    clamped,
    finite_number,
    kernel_box,
    labelled,
    norm_order,
    per_sample,
)
from soatfast.ops.constants import INIT_LMO, INIT_RAW, INIT_SCALED
from soatfast.ops.dispatch import kernel

Init = Literal["scaled", "lmo", "raw"]
_INIT = {"scaled": INIT_SCALED, "lmo": INIT_LMO, "raw": INIT_RAW}


def lmo(g: Tensor, p: float, eps: float | Tensor, *, x: Tensor | None = None, bounds: Bounds = (0.0, 1.0)) -> Tensor:
    r"""Linear maximisation oracle of the L^p ball, and with x of the ball and the box, per sample.

        s = argmax of <g, s> over ||s||_p <= eps
        s_i = eps sgn(g_i) |g_i|^(q-1) / (sum_j |g_j|^q)^(1/p),   1/p + 1/q = 1

    The optimal value is eps ||g||_q. p = inf gives eps sgn(g); p = 1 puts all of eps on the first entry of largest
    |g| (in memory order).
    The exponent is q - 1 = q/p; SCORPIO (Tsiligkaridis and Roberts 2020) prints p/q in
    equation (8), which is right only for p = 2.

    With ``x``, x + s also stays in ``bounds``. Where the plain s leaves the box, clamping it loses that part of eps;
    this s spends it on other entries. With room_i the distance from x_i to the box along sgn(g_i):

        p = inf:   s_i = sgn(g_i) min(eps, room_i)
        p = 2:     s_i = sgn(g_i) min(t |g_i|, room_i),  the one t for which ||s||_2 = eps
        p = 1:     the largest |g_i| are filled up to room_i, one after another, until eps is spent

    Where all room is less than eps, s takes all of it. Of entries with equal |g| the first is filled first.

    Args:
        g: (B, ...) gradient, float32, float64, bfloat16 or float16.
        p: order of the norm, 1 <= p <= inf; with x one of 1, 2, inf.
        eps: radius in input units; a number or a tensor of shape () or (B,).
        x: (B, ...) points inside the box; None: the ball alone.
        bounds: the box of valid inputs, two numbers; used with x only.

    Returns:
        s of g's shape, dtype and layout. A zero gradient gives zero, NaN entries count as 0, sign(0) = 0.

    Raises:
        TypeError, ValueError: g is no floating batch (B, ...), p < 1, eps < 0, or eps of another shape or device;
            with x also for another p, x unlike g, or bounds that are tensors.

    >>> import math, torch
    >>> lmo(torch.tensor([[3.0, -4.0, 0.0]]), p=math.inf, eps=0.5)
    tensor([[ 0.5000, -0.5000,  0.0000]])
    >>> lmo(torch.tensor([[3.0, -4.0, 0.0]]), p=1, eps=0.5)
    tensor([[ 0.0000, -0.5000,  0.0000]])
    >>> lmo(torch.tensor([[3.0, -4.0, 0.0]]), p=1, eps=0.5, x=torch.tensor([[0.5, 0.25, 0.5]]))
    tensor([[ 0.2500, -0.2500,  0.0000]])
    """
    layout = Layout(g)
    number, tensor = per_sample(eps, "eps", g)
    rows = layout.rows(g, "g")
    if x is None:
        return layout.restore(kernel("lmo")(rows, norm_order(p), number, tensor))
    order = boxed_order(p, True, "an lmo at x")
    return layout.restore(
        kernel("lmo")(rows, order, number, tensor, layout.rows(x, "x"), *kernel_box(bounds, inside=True))
    )


def lp_norm(g: Tensor, p: float) -> Tensor:
    r"""The norm ||g||_p of each sample, scaled by max|g| so that tiny and huge entries are exact, too.

    Args:
        g: (B, ...) batch, floating.
        p: order, 1 <= p <= inf.

    Returns:
        (B,) float32 (float64 for float64 input).

    >>> import torch
    >>> lp_norm(torch.tensor([[3.0, -4.0], [3e-30, 4e-30]]), p=2)
    tensor([5.0000e+00, 5.0000e-30])
    """
    return kernel("lp_norm")(Layout(g).rows(g, "g"), norm_order(p))


def frank_wolfe_init(
    g0: Tensor,
    x: Tensor,
    p: float,
    eps: float | Tensor,
    *,
    init: Init = "scaled",
    h: float = 1.0,
    central: bool = False,
    bounds: Bounds = (0.0, 1.0),
    in_box: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""The start v_0 of the quadratic Frank-Wolfe attack and the first probe x + h v_0.

    ``scaled``: v_0 = eps g0 / ||g0||_p (SCORPIO's text). ``lmo``: the maximiser of <g0, v>. ``raw``: v_0 = g0, as
    printed in SCORPIO's Algorithm 1 (not feasible in general). With ``central``, the probe is the stacked
    (2B, ...) batch [x + h v_0; x - h v_0]. ``in_box`` (p = 1, 2, inf) keeps x + v_0 in ``bounds``: ``lmo`` is then the
    maximiser over ball and box (:func:`lmo` at x), the others are clipped.

    Returns:
        (v_0, probe) of x's layout and dtype.

    >>> import math, torch
    >>> x = torch.full((1, 2), 0.5)
    >>> frank_wolfe_init(torch.tensor([[2.0, -1.0]]), x, p=math.inf, eps=0.1)
    (tensor([[ 0.1000, -0.0500]]), tensor([[0.6000, 0.4500]]))
    """
    if init not in _INIT:
        raise ValueError(f"init must be one of {', '.join(_INIT)}, got {init!r}")
    layout = Layout(x)
    number, tensor = per_sample(eps, "eps", x)
    order = boxed_order(p, in_box)
    lower, upper = kernel_box(bounds, in_box) if in_box else (-math.inf, math.inf)
    rows = layout.rows(g0, "g0"), layout.rows(x, "x")
    start, h = _INIT[init], check_number(h, "h")
    v, probe = kernel("frank_wolfe_init")(*rows, order, number, tensor, start, h, central, lower, upper)
    return layout.restore(v), layout.restore(probe)


def frank_wolfe_step(
    g0: Tensor,
    g1: Tensor,
    v: Tensor,
    x: Tensor,
    p: float,
    eps: float | Tensor,
    *,
    gamma: float,
    h: float = 1.0,
    central: bool = False,
    last: bool = False,
    bounds: Bounds = (0.0, 1.0),
    in_box: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""One Frank-Wolfe step on the quadratic model of the loss, and the next probe, in one launch.

    With G = g0 + (g1 - g0)/h (forward Euler, g1 the gradient at x + h v), or
    G = g0 + (g1+ - g1-)/(2h) (``central``: g1 stacks the gradients at x + h v and x - h v, shape (2B, ...)):

        s = lmo_p(G; eps),  gap = <G, s - v>,  v' = v + gamma (s - v),
        probe = x + h v'  (central: [x + h v'; x - h v'])

    and, on the ``last`` step, probe = clamp(x + v', bounds), the adversarial example itself. Probes are not clamped:
    that would change the direction that is differenced. gap >= 0 bounds how much the linearised objective can still
    grow; it is 0 only at a stationary point. (SCORPIO, Algorithm 1; Frank-Wolfe with gamma_k = 2/(k+2).)

    Args:
        g0: (B, ...) gradient at x, kept from the first pass.
        g1: (B, ...) or, central, (2B, ...) gradients at the probes.
        v: (B, ...) current perturbation.
        x: (B, ...) clean batch.
        p: order of the norm, 1 <= p <= inf.
        eps: radius; a number or a tensor of shape () or (B,).
        gamma: step size in [0, 1].
        h: finite-difference step, in units of v; > 0.
        central: central differences.
        last: write the clamped adversarial example in place of the probe.
        bounds: the box of valid inputs.
        in_box: maximise over ball and box, s = lmo_p(G; eps) at x (:func:`lmo`); p = 1, 2 or inf.

    Returns:
        (v', probe, gap): v' (B, ...), probe (B, ...) or (2B, ...), gap (B,) in float32 (float64 for float64).

    >>> import math, torch
    >>> x, g = torch.full((1, 2), 0.5), torch.tensor([[2.0, -1.0]])
    >>> v, x_adv, gap = frank_wolfe_step(g, g, torch.zeros(1, 2), x, math.inf, 0.1, gamma=1.0, last=True)
    >>> x_adv, gap
    (tensor([[0.6000, 0.4000]]), tensor([0.3000]))
    """
    gamma = check_between(gamma, "gamma", 0, 1)
    layout = Layout(x)
    number, tensor = per_sample(eps, "eps", x)
    inner = kernel_box(bounds, in_box)
    v_new, probe, gap = kernel("frank_wolfe_step")(
        layout.rows(g0, "g0"),
        layout.rows(g1, "g1", blocks=2 if central else 1),
        layout.rows(v, "v"),
        layout.rows(x, "x"),
        boxed_order(p, in_box),
        number,
        tensor,
        float(gamma),
        check_number(h, "h"),
        central,
        last,
        *inner,
        in_box,
    )
    probe = layout.restore(probe)
    return layout.restore(v_new), clamped(probe, bounds) if last else probe, gap


def project(
    x_adv: Tensor,
    x: Tensor,
    p: float,
    eps: float | Tensor,
    *,
    bounds: Bounds = (0.0, 1.0),
    exact: bool = False,
) -> Tensor:
    r"""x_adv brought into the L^p ball of radius eps around x and into the box, per sample; p is 1, 2 or inf.

    ``exact=False`` projects on the ball and then clamps, as PGD does everywhere: feasible, and for p = inf the
    Euclidean projection; for p = 1 and 2 a little inside it. ``exact=True`` is the Euclidean projection on the
    intersection of ball and box (p = 2: delta_i = clip(t v_i), p = 1: a soft threshold clipped to the box, with the one
    number t or tau found so that the norm is eps).

    Args:
        x_adv: (B, ...) points to project.
        x: (B, ...) centres, inside the box.
        p: 1, 2 or math.inf.
        eps: radius; a number or a tensor of shape () or (B,).
        bounds: the box of valid inputs.
        exact: project on the intersection.

    >>> import torch
    >>> project(torch.tensor([[0.9, 1.3]]), torch.tensor([[0.5, 1.0]]), p=2, eps=0.25)
    tensor([[0.7000, 1.0000]])
    >>> project(torch.tensor([[0.9, 1.3]]), torch.tensor([[0.5, 1.0]]), p=2, eps=0.25, exact=True)
    tensor([[0.7500, 1.0000]])
    """
    layout = Layout(x)
    number, tensor = per_sample(eps, "eps", x)
    rows = kernel("project")(
        layout.rows(x_adv, "x_adv"),
        layout.rows(x, "x"),
        norm_order(p, general=False),
        number,
        tensor,
        *kernel_box(bounds, exact),
        exact,
    )
    return clamped(layout.restore(rows), bounds)


def pgd_step(
    x_adv: Tensor,
    g: Tensor,
    x: Tensor,
    p: float,
    eps: float | Tensor,
    alpha: float | Tensor,
    *,
    bounds: Bounds = (0.0, 1.0),
    exact: bool = False,
    k: int | None = None,
) -> Tensor:
    r"""One projected-gradient ascent step, in one launch.

        x_adv' = project(x_adv + alpha step_p(g), x),   step_inf(g) = sgn(g),   step_2(g) = g/||g||_2

    step_1(g) = sgn(g)/k' on the entries with the k largest |g| (SLIDE,
    Tramer and Boneh 2019): ties with the k-th are included and k' counts the entries chosen, so that the step's L1
    norm is alpha. With ``exact``, entries that g would push out of the box count as 0: else the step goes to the same
    few entries again and again, which are at the box's edge already.

    Args:
        x_adv: (B, ...) current iterate.
        g: (B, ...) gradient at x_adv.
        x: (B, ...) clean batch, inside the box.
        p: 1, 2 or math.inf.
        eps: radius; a number or a tensor of shape () or (B,).
        alpha: step size in input units, >= 0; a number or a tensor of shape () or (B,).
        bounds: the box of valid inputs.
        exact: project on the intersection of ball and box (see :func:`project`).
        k: entries moved at a time for p = 1; default ceil(D/100), the 99 % sparsity of the paper.

    >>> import math, torch
    >>> x = torch.tensor([[0.5, 1.0]])
    >>> pgd_step(x, torch.tensor([[-2.0, 1.0]]), x, p=math.inf, eps=0.1, alpha=0.25)
    tensor([[0.4000, 1.0000]])
    """
    return pgd_stepper(x, p, eps, alpha, bounds=bounds, exact=exact, k=k)(x_adv, g)


def pgd_stepper(
    x: Tensor,
    p: float,
    eps: float | Tensor,
    alpha: float | Tensor,
    *,
    bounds: Bounds = (0.0, 1.0),
    exact: bool = False,
    k: int | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """:func:`pgd_step` with all but (x_adv, g) given and checked: what an attack's loop has to call each time.

    >>> import math, torch
    >>> x = torch.tensor([[0.5, 1.0]])
    >>> step = pgd_stepper(x, math.inf, 0.1, 0.25)
    >>> step(x, torch.tensor([[-2.0, 1.0]]))
    tensor([[0.4000, 1.0000]])
    """
    layout = Layout(x)
    k = math.ceil(layout.size / 100) if k is None else k
    if not 1 <= k <= layout.size:
        raise ValueError(f"k must be between 1 and the {layout.size} entries of a sample, got {k!r}")
    eps_number, eps_tensor = per_sample(eps, "eps", x)
    alpha_number, alpha_tensor = per_sample(alpha, "alpha", x)
    order, (lower, upper), x_rows = norm_order(p, general=False), kernel_box(bounds, exact), layout.rows(x, "x")
    fixed = (x_rows, order, eps_number, eps_tensor, alpha_number, alpha_tensor, lower, upper, exact, k)

    def step(x_adv: Tensor, g: Tensor) -> Tensor:
        return layout.restore(kernel("pgd_step")(layout.rows(x_adv, "x_adv"), layout.rows(g, "g"), *fixed))

    if any(isinstance(b, Tensor) for b in bounds):
        return lambda x_adv, g: clamped(step(x_adv, g), bounds)

    def inward_step(x_adv: Tensor, g: Tensor) -> Tensor:
        for t, name in ((x_adv, "x_adv"), (g, "g")):
            layout.rows(t, name)  # checked before they are used here
        return step(x_adv, _inward(g.detach(), x_adv, lower, upper))

    return inward_step if order == 1 and exact else step


def _inward(g: Tensor, x: Tensor, lower: float, upper: float) -> Tensor:
    """g with 0 where x lies at the box's edge and g points out of it."""
    return g.masked_fill(((x >= upper) & (g > 0)) | ((x <= lower) & (g < 0)), 0.0)


def power_step(g0: Tensor, g1: Tensor, u: Tensor, x: Tensor, h: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""One step of power iteration on the Hessian, by a finite difference of gradients, and the next probe.

        H u = (g1 - g0) / h,  rayleigh = <u, H u>,  norm = ||H u||_2,  u' = H u / norm,  probe = x + h u'

    (HAAT's inner loop.) A sample with H u = 0 keeps u. Entries of H u that are NaN count as 0.

    Args:
        g0: (B, ...) gradient at x.
        g1: (B, ...) gradient at x + h u.
        u: (B, ...) unit vectors.
        x: (B, ...) points.
        h: finite-difference step, > 0, in input units.

    Returns:
        (u', probe, rayleigh, norm): two batches like x, and two (B,) in float32 (float64 for float64).

    >>> import torch
    >>> x, u = torch.zeros(1, 2), torch.tensor([[0.6, 0.8]])
    >>> power_step(torch.zeros(1, 2), 0.5 * u * torch.tensor([2.0, 0.0]), u, x, h=0.5)
    (tensor([[1., 0.]]), tensor([[0.5000, 0.0000]]), tensor([0.7200]), tensor([1.2000]))
    """
    layout = Layout(x)
    rows = (layout.rows(g0, "g0"), layout.rows(g1, "g1"), layout.rows(u, "u"), layout.rows(x, "x"))
    fresh, probe, rayleigh, norm = kernel("power_step")(*rows, check_number(h, "h"))
    return layout.restore(fresh), layout.restore(probe), rayleigh, norm


def cross_entropy_derivative(logits: Tensor, y: Tensor, sign: float = 1.0) -> Tensor:
    r"""sign times the derivative of each sample's cross-entropy by its logits z: what a backward pass starts from.

        d_j = sign softmax(z)_j for j != y,   d_y = -sign sum_{j != y} softmax(z)_j

    d_y is never 1 - p_y, which rounds to 0 for a confident sample: a row sums to 0 within rounding. Computed in float32
    (float64 for float64) and rounded once. A logit of -inf has probability 0; a NaN or +inf makes its row NaN, as in
    softmax, and no other.

    Args:
        logits: (B, K), K >= 2, float32, float64, bfloat16 or float16.
        y: (B,) labels in 0..K-1, of any integer dtype.
        sign: 1 to raise the loss of y, -1 to lower it (targeted); any finite number.

    Returns:
        (B, K) in the logits' dtype.

    Raises:
        RuntimeError: a label lies outside 0..K-1. On CUDA its row is NaN instead.

    >>> import torch
    >>> cross_entropy_derivative(torch.tensor([[0.0, 0.0], [40.0, 0.0]]), torch.tensor([1, 0]))
    tensor([[ 5.0000e-01, -5.0000e-01],
            [-4.2484e-18,  4.2484e-18]])
    """
    return kernel("cross_entropy_derivative")(*labelled(logits, y), finite_number(sign, "sign"))
