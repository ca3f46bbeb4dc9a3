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

from soatfast.attacks.region import Region, check_bounds, check_entries, check_region, has_entries, is_needed
from soatfast.gradients.checks import check_batch
from soatfast.gradients.engine import Name
from soatfast.gradients.objectives import Named, Objective, resolve
from soatfast.gradients.oracle import InputGradient, Mode
from soatfast.gradients.outputs import Forward, Output
from soatfast.gradients.passes import Passes, passes_of
from soatfast.gradients.precision import is_half, round_towards, widened
from soatfast.gradients.state import usable
from soatfast.memory.store import PerturbationMemory
from soatfast.memory.visit import Visit
from soatfast.ops.arguments import Bounds, check_fields, check_number, check_radius, norm_order
from soatfast.ops.fields import ByValue

Model = nn.Module | Callable[[Tensor], Tensor]
AttackType = TypeVar("AttackType", bound="Attack")
_NO_MODEL = nn.Identity()


@dataclass(frozen=True, kw_only=True, eq=False)
class Attack(ByValue):
    """Common fields of all attacks; each attack adds its own.

    Args:
        eps: radius of the ball in input units (images in [0, 1]: 8/255, 0.3); a number or a tensor of shape () or (B,);
            for p = inf also one of a number for each channel, (C, 1, 1): see :class:`~soatfast.attacks.Normalized`.
        p: order of the norm.
        bounds: the box of valid inputs, (lower, upper); for p = inf also tensors (C, 1, 1). The result always lies in
            it and in the ball.
        objective: "ce" (cross-entropy), "margin" (max_{j != y} z_j - z_y), "dlr" (the margin over z_(1) - z_(3), for
            K >= 3) or a callable (logits, y) -> (B,); raised. A callable gets the model's output as it is, of any
            shape, and y of any dtype and shape (B, ...): soft labels, many labels, a segmentation, a regression. Where
            y are not labels (B,) of logits (B, K), no sample counts as fooled: the objective alone says what is
            strongest.
        targeted: y is the class to reach; the objective is lowered.
        mode: state of the model during the attack: "eval", "train" or "keep" (as the caller left it).
        engine: how the passes are run: "eager", or some of "bf16", "fp16", "channels_last", "compile" and "graph"
            joined by "+" (:mod:`soatfast.gradients.engine`). `soatfast tune` measures which is fastest. The result
            keeps x's dtype and stays inside the ball.
        output: which part of what the model returns: a name, an index or a callable; None: recognised
            (:mod:`soatfast.gradients.outputs`). (B,) and (B, 1) are one sigmoid unit, with labels 0 and 1.
        forward: (model, x) -> output, for a model that takes more than x, or takes it by keyword; None: model(x).
        mask: bool, True where x may change, of a sample's shape or the batch's; elsewhere the result is x exactly.
    """

    eps: float | Tensor = 8 / 255
    p: float = math.inf
    bounds: Bounds = (0.0, 1.0)
    objective: Named | Objective = "ce"
    targeted: bool = False
    mode: Mode = "eval"
    engine: Name = "eager"
    output: Output = None
    forward: Forward | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.eps, Tensor) and has_entries(self.eps):
            check_entries(self.eps, "eps")
        else:
            check_radius(self.eps)
        norm_order(self.p)
        object.__setattr__(self, "bounds", check_bounds(self.bounds))
        resolve(self.objective)
        self.oracle(_NO_MODEL)  # mode, engine, output and forward have one place where they are checked
        check_region(self)

    def oracle(self, model: Model) -> InputGradient:
        return InputGradient(
            model, self.objective, self.mode, self.engine, self.targeted, output=self.output, forward=self.forward
        )

    @property
    def _labels(self) -> bool:
        """Whether y must be labels."""
        return isinstance(self.objective, str)

    def __call__(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        """Adversarial examples for x (B, ...) with labels y (B,): x's shape, dtype, device and layout, no gradient.

        A float16 or bfloat16 batch is attacked in float32, the model is fed x's dtype, and the result is rounded
        towards x, so that it stays inside the ball.

        Raises:
            TypeError: x is no floating tensor, y no integer tensor.
            ValueError: lengths or devices differ, x has NaN or lies outside the bounds, labels are out of range,
                the model's output is not recognised. On CUDA the checks of values are device assertions.
        """
        check_batch(x, y, self.bounds, self._labels)
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
        check_batch(x, y, self.bounds, self._labels)
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
            if is_needed(self):
                x_adv = self._run_in_region(oracle, wide, y, g0, visit)
            elif visit is None and g0 is None and oracle.engine.graph and self._recordable:
                x_adv = self._run_recorded(oracle, wide, y)
            elif visit is None:
                x_adv = self._perturb(oracle, wide, y, None if g0 is None else g0.to(wide.dtype))
            else:
                x_adv = self._replay(oracle, wide, y, visit)
        if is_half(x):
            return round_towards(x_adv, x.detach())
        return x_adv.contiguous() if x.is_contiguous() else x_adv

    def _run_in_region(
        self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None, visit: Visit | None
    ) -> Tensor:
        with self._placed(oracle, x) as region:
            start, g = region.inward(x), None if g0 is None else region.gradient(g0.to(x.dtype))
            if visit is None:
                return region.outward(region.attack._perturb(oracle, start, y, g))
            return region.outward(region.attack._replay(oracle, start, y, visit))

    @contextlib.contextmanager
    def _placed(self, oracle: InputGradient, x: Tensor) -> Iterator[Region]:
        """The region of a radius, bounds or a mask for each entry, which the oracle is told."""
        region = Region(self, x)
        oracle.chart = region.chart
        try:
            yield region
        finally:
            oracle.chart = None

    def _free(self, t: Tensor, rows: Tensor | None = None) -> Tensor:
        """t (of these rows of the batch) with zeros where x may not change."""
        if self.mask is None:
            return t
        return t * (self.mask if rows is None or len(self.mask) == 1 else self.mask[rows])

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        raise NotImplementedError

    watchable: ClassVar[bool] = False
    """Whether it asks the model about the whole batch each time, sample i in row i (or in the rows i, B + i, ... of a
    stacked batch), each sample by itself: an evaluation can then note, and leave out, what is fooled on the way."""

    _recordable: ClassVar[bool] = False
    """Whether all of _perturb runs on the device, so that it can be one CUDA graph."""

    def _run_recorded(self, oracle: InputGradient, x: Tensor, y: Tensor) -> Tensor:
        """_perturb as one CUDA graph. Fields that are or may be tensors (eps, step_size) are inputs of it.

        So a schedule of eps, by numbers too, needs one recording. A number becomes a float64 tensor: no digit is lost.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for f in dataclasses.fields(self):
            if "Tensor" in str(f.type) and isinstance(values[f.name], int | float):
                values[f.name] = torch.full((), values[f.name], dtype=torch.float64, device=x.device)
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


def check_step_size(attack: Attack) -> None:
    """Raise unless step_size is None, one number a sample, or, with such an eps, a number for each entry."""
    step = attack.step_size  # type: ignore[attr-defined]
    if isinstance(step, Tensor) and has_entries(step):
        if not has_entries(attack.eps):
            raise ValueError(f"step_size a channel needs eps a channel, got step_size of shape {tuple(step.shape)}")
        check_entries(step, "step_size")
    elif step is not None:
        check_radius(step, "step_size")


def check_noise(value: float | Tensor, name: str) -> None:
    """Raise unless a standard deviation is a number >= 0, or a tensor of such numbers for each entry."""
    if isinstance(value, Tensor) and has_entries(value):
        check_entries(value, name)
    else:
        check_number(value, name, above=False)
