"""What every attack has in common: fields, validation of the batch, and the way into the model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..engine import images_channels_last
from ..gradients import InputGradient, Mode, check, check_range
from ..memory import PerturbationMemory
from ..objectives import Objective, resolve
from ..passes import Passes, passes_of
from ..visits import Visit

Model = nn.Module | Callable[[Tensor], Tensor]
# Rounding that normalising an image and undoing it leaves; anything further outside the box is an error.
_BOX_TOLERANCE = 1e-6
AttackType = TypeVar("AttackType", bound="Attack")


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Common fields of all attacks; each attack adds its own.

    Args:
        eps: radius of the ball in input units (images in [0, 1]: 8/255, 0.3); a number or a tensor of shape () or (B,).
        p: order of the norm.
        bounds: the box of valid inputs; the result always lies in it and in the ball.
        objective: "ce" (cross-entropy), "margin" (max_{j != y} z_j - z_y) or a callable (logits, y) -> (B,); raised.
        targeted: y is the class to reach; the objective is lowered.
        mode: state of the model during the attack: "eval", "train" or "keep" (as the caller left it).
        engine: how the passes are run: "eager", or some of "bf16", "fp16", "channels_last", "compile" and "graph"
            joined by "+" (:mod:`soatfast.engine`). `soatfast tune` measures which is fastest. The result keeps x's
            dtype and stays inside the ball.
    """

    eps: float | Tensor = 8 / 255
    p: float = math.inf
    bounds: tuple[float, float] = (0.0, 1.0)
    objective: str | Objective = "ce"
    targeted: bool = False
    mode: Mode = "eval"
    engine: str = "eager"

    def __post_init__(self) -> None:
        check_radius(self.eps)
        if isinstance(self.p, bool) or not isinstance(self.p, (int, float)) or not self.p >= 1:
            raise ValueError(f"p must be a number >= 1 or math.inf, got {self.p!r}")
        if len(self.bounds) != 2 or not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds must be (lower, upper) with lower < upper, got {self.bounds!r}")
        resolve(self.objective)
        self._oracle(nn.Identity())  # mode and engine have one place where they are checked

    def _oracle(self, model: Model) -> InputGradient:
        return InputGradient(model, self.objective, self.mode, self.engine, self.targeted)

    def __call__(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        """Adversarial examples for x (B, ...) with labels y (B,): x's shape, dtype, device and layout, no gradient.

        A float16 or bfloat16 batch is attacked in float32, the model is fed x's dtype, and the result is rounded
        towards x, so that it stays inside the ball.

        Raises:
            TypeError: x is no floating tensor, y no integer tensor.
            ValueError: lengths or devices differ, x has NaN or lies outside the bounds, labels are out of range,
                the model returns something else than (B, K). On CUDA the checks of values are device assertions.
        """
        check_batch(x, y, self.bounds)
        if len(x) == 0:
            return x.detach().clone()
        with self._oracle(model) as oracle:
            return self.run(oracle, x, y)

    def replay(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        memory: PerturbationMemory,
        index: Tensor | None,
        moves: Tensor | None = None,
    ) -> Tensor:
        """As a call, but each sample goes on from its perturbation in the memory, and leaves the new one there.

        index (B,) int64: the samples' numbers in the data set. moves (B, 3): how an augmenting data set moved them.
        Samples never seen start at v = 0. Passes: :meth:`replay_passes`.

        Raises:
            TypeError: this attack cannot go on from a point. Else as a call and as ``memory.visit``.
        """
        self.check_replay()
        check_batch(x, y, self.bounds)
        if index is None:
            raise ValueError("with a memory the index of each sample is needed: loss(model, x, y, index)")
        if len(x) == 0:
            return x.detach().clone()
        with self._oracle(model) as oracle, memory.visit(index, x, moves) as visit:
            return self.run(oracle, x, y, visit=visit)

    def check_replay(self) -> None:
        """Raise unless the attack can go on from a remembered perturbation."""
        raise TypeError(f"{type(self).__name__} cannot go on from a memory; FrankWolfe and PGD can")

    def run(
        self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None = None, visit: Visit | None = None
    ) -> Tensor:
        """The attack on a checked batch in an entered oracle.

        g0 is the gradient at x, where it is known already; visit the remembered perturbations, to go on from them.
        """
        with widened(oracle, x) as wide:
            if visit is None and g0 is None and oracle.engine.graph and self._recordable:
                x_adv = self._recorded(oracle, wide, y)
            elif visit is None:
                x_adv = self._perturb(oracle, wide, y, None if g0 is None else g0.to(wide.dtype))
            else:
                x_adv = self._replay(oracle, wide, y, visit)
        if is_half(x):
            return round_towards(x_adv, x.detach())
        return x_adv.contiguous() if x.is_contiguous() else x_adv

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        raise NotImplementedError

    _recordable: ClassVar[bool] = False
    """Whether all of _perturb runs on the device, so that it can be one CUDA graph."""

    def _recorded(self, oracle: InputGradient, x: Tensor, y: Tensor) -> Tensor:
        """_perturb as one CUDA graph. Fields that are tensors (eps, step_size) are inputs of it."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        generator = values.pop("generator", None)
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        fixed = [(name, value) for name, value in values.items() if name not in tensors]

        def run(x: Tensor, y: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
            changed: dict[str, Any] = dict(zip(tensors, given, strict=True))
            x_adv = dataclasses.replace(self, **changed)._perturb(oracle, x, y, None)
            assert oracle.logits is not None
            return x_adv, oracle.logits

        return oracle.replay((type(self), *fixed, *tensors), run, (x, y, *tensors.values()), generator)[0]

    def _replay(self, oracle: InputGradient, x: Tensor, y: Tensor, visit: Visit) -> Tensor:
        raise NotImplementedError

    def replay_passes(self, batch: int = 1) -> Passes:
        """Passes of one :meth:`replay`: a forward and a backward to the input for each step."""
        steps: int = self.steps  # type: ignore[attr-defined]  # which every attack with _replay has
        return passes_of(batch, forward=steps, backward_input=steps)

    def passes(self, batch: int = 1) -> Passes:
        """Passes of one call on a batch of this size, as :func:`~soatfast.gradients.count_passes` counts them."""
        raise NotImplementedError

    def bind(self, model: Model) -> Callable[[Tensor, Tensor], Tensor]:
        """A callable (x, y) -> x_adv, for scripts written for attacks that hold their model."""
        return functools.partial(self, model)

    def with_eps(self: AttackType, eps: float | Tensor) -> AttackType:
        """The same attack with another radius."""
        return dataclasses.replace(self, eps=eps)

    def with_steps(self: AttackType, steps: int) -> AttackType:
        """The same attack with another number of steps."""
        if not hasattr(self, "steps"):
            raise TypeError(f"{type(self).__name__} has no steps")
        return dataclasses.replace(self, steps=steps)  # type: ignore[call-arg]

    def _broadcast(self, per_sample: float | Tensor, x: Tensor, name: str = "eps") -> float | Tensor:
        """A scalar or per-sample tensor shaped to multiply x."""
        if not isinstance(per_sample, Tensor) or per_sample.dim() == 0:
            return per_sample if not isinstance(per_sample, Tensor) else per_sample.to(x.dtype)
        if len(per_sample) not in (1, len(x)):
            raise ValueError(f"{name} must be a number or have shape () or ({len(x)},), got {tuple(per_sample.shape)}")
        return per_sample.to(x.dtype).view(-1, *(1,) * (x.dim() - 1))


def is_half(t: Tensor) -> bool:
    return t.dtype in (torch.float16, torch.bfloat16)


@contextlib.contextmanager
def widened(oracle: InputGradient, x: Tensor) -> Iterator[Tensor]:
    """x as an attack computes on it: in the engine's memory format, and a half-precision batch in float32, while the
    model is fed x's dtype.
    """
    if is_half(x):
        oracle.input_dtype = x.dtype
    wide = x.detach().float() if is_half(x) else x.detach()
    try:
        yield images_channels_last(wide) if oracle.engine.channels_last else wide
    finally:
        oracle.input_dtype = None


def check_radius(eps: Any, name: str = "eps") -> None:
    if isinstance(eps, Tensor):
        if eps.dim() > 1 or not eps.is_floating_point():
            raise ValueError(
                f"{name} must be a number or a floating tensor of shape () or (B,), got {eps.dtype} of "
                f"shape {tuple(eps.shape)}"
            )
        if eps.numel():
            check((eps >= 0).all() & eps.isfinite().all(), lambda: f"{name} must be finite and >= 0, got {eps}")
        return
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"{name} must be a number or a tensor, got {type(eps).__name__}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"{name} must be finite and >= 0, got {eps!r}")


def check_number(value: object, name: str, above: bool = True) -> None:
    """Raise unless value is a finite number > 0, or, with above=False, >= 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value < math.inf or (above and value == 0):
        raise ValueError(f"{name} must be finite and {'>' if above else '>='} 0, got {value!r}")


def check_steps(steps: Any, name: str = "steps") -> None:
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"{name} must be a whole number, got {steps!r}")
    if steps < 1:
        raise ValueError(f"{name} must be at least 1, got {steps!r}")


def check_batch(x: Tensor, y: Tensor, bounds: tuple[float, float]) -> None:
    """Everything that can be wrong with a batch, once per call; values asynchronously on CUDA."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a floating tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"y must be a tensor of integer labels, got {getattr(y, 'dtype', type(y).__name__)}")
    if x.dim() < 2:
        raise ValueError(f"x must be a batch of shape (B, ...), got shape {tuple(x.shape)}")
    if y.dim() != 1 or len(y) != len(x):
        raise ValueError(f"y must have shape ({len(x)},) to go with x {tuple(x.shape)}, got {tuple(y.shape)}")
    if x.device != y.device:
        raise ValueError(f"x and y must be on one device, got {x.device} and {y.device}")
    if x.numel() == 0:
        return
    lower, upper = bounds
    slack = _BOX_TOLERANCE * (upper - lower if math.isfinite(upper - lower) else 1.0)
    check_range(
        x,
        lower - slack,
        upper + slack,
        lambda low, high: f"x must lie in bounds [{lower}, {upper}] without NaN, got values from {low} to {high}",
    )


def round_towards(x_adv: Tensor, x: Tensor) -> Tensor:
    """x_adv (float32) in x's half dtype, no entry further from x than it was."""
    rounded = x_adv.to(x.dtype)
    beyond = (rounded.float() - x.float()).abs() > (x_adv - x.float()).abs()
    bits = rounded.view(torch.int16).int()
    order = torch.where(bits >= 0, bits, -32768 - bits)  # float order as integer order
    order = order + torch.sign(x.float() - rounded.float()).int()
    inward = torch.where(order >= 0, order, -32768 - order).to(torch.int16).view(x.dtype)
    return torch.where(beyond, inward, rounded)
