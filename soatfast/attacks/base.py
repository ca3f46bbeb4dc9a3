"""What every attack has in common: fields, validation of the batch, and the way into the model."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from soatfast.gradients.checks import check_batch
from soatfast.gradients.objectives import Objective, resolve
from soatfast.gradients.oracle import InputGradient, Mode
from soatfast.gradients.passes import Passes, passes_of
from soatfast.gradients.precision import is_half, round_towards, widened
from soatfast.gradients.state import usable
from soatfast.memory.store import PerturbationMemory
from soatfast.memory.visit import Visit
from soatfast.ops.arguments import check_fields, check_radius, norm_order

Model = nn.Module | Callable[[Tensor], Tensor]
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
            joined by "+" (:mod:`soatfast.gradients.engine`). `soatfast tune` measures which is fastest. The result
            keeps x's dtype and stays inside the ball.
    """

    eps: float | Tensor = 8 / 255
    p: float = math.inf
    bounds: tuple[float, float] = (0.0, 1.0)
    objective: str | Objective = "ce"
    targeted: bool = False
    mode: Mode = "eval"
    engine: str = "eager"

    def __post_init__(self) -> None:
        check_fields(self)
        check_radius(self.eps)
        norm_order(self.p)
        if len(self.bounds) != 2 or not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds must be (lower, upper) with lower < upper, got {self.bounds!r}")
        resolve(self.objective)
        self.oracle(nn.Identity())  # mode and engine have one place where they are checked

    def oracle(self, model: Model) -> InputGradient:
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
        with self.oracle(model) as oracle:
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
        with self.oracle(model) as oracle, memory.visit(index, x, moves) as visit:
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
        x, y = usable(x), usable(y)
        with widened(oracle, x) as wide:
            if visit is None and g0 is None and oracle.engine.graph and self._recordable:
                x_adv = self._run_recorded(oracle, wide, y)
            elif visit is None:
                x_adv = self._perturb(oracle, wide, y, None if g0 is None else g0.to(wide.dtype))
            else:
                x_adv = self._replay(oracle, wide, y, visit)
        if is_half(x):
            return round_towards(x_adv, x.detach())
        return x_adv.contiguous() if x.is_contiguous() else x_adv

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        raise NotImplementedError

    watchable: ClassVar[bool] = False
    """Whether it asks the model about the whole batch each time, sample i in row i (or in the rows i, B + i, ... of a
    stacked batch), each sample by itself: an evaluation can then note, and leave out, what is fooled on the way."""

    _recordable: ClassVar[bool] = False
    """Whether all of _perturb runs on the device, so that it can be one CUDA graph."""

    def _run_recorded(self, oracle: InputGradient, x: Tensor, y: Tensor) -> Tensor:
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

        return oracle.run_recorded((type(self), *fixed, *tensors), run, (x, y, *tensors.values()), generator)[0]

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
