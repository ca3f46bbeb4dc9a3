"""Per-sample input gradients, safely and cheaply: the one way in which attacks and losses call a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from soatfast import ops
from soatfast.gradients import engine as engines
from soatfast.gradients import full_precision, graphs, objectives, outputs
from soatfast.gradients.cast_weights import CastWeights, casts_once
from soatfast.gradients.checks import check_labels
from soatfast.gradients.folded import Fold
from soatfast.gradients.kernels import has_recurrent, twice_differentiable, without_cudnn
from soatfast.gradients.passes import unwrap
from soatfast.gradients.recycled import Recycled
from soatfast.gradients.state import Mode, ModelState, check_second_derivative
from soatfast.ops.arguments import as_column


class InputGradient:
    r"""Oracle for g_i = d l_i / d x_i of a batch, and for the loss l_i, as a context manager.

    The gradient is of the SUM of the per-sample losses, so that each row is its sample's own gradient. Parameter
    gradients are never computed. While the block lasts the model is in the attack mode and its parameters need no
    gradient; on leaving, also by an exception, every module's train/eval flag, every ``requires_grad`` and every buffer
    (batch-norm statistics) is as it was. A DistributedDataParallel wrapper is bypassed, so that ranks may take
    different numbers of passes without hanging.

    Args:
        model: maps (B, ...) to logits (B, K), K >= 2, or to one sigmoid unit (B,) or (B, 1).
        objective: "ce", "margin" (max_{j != y} z_j - z_y), "dlr", or a callable (logits, y) -> (B,), which gets the
            output as it is, of any shape (B, ...), and y of any dtype and shape.
        mode: "eval" (default), "train", or "keep" (leave every module's flag alone). In train mode batch norm mixes
            the samples of a batch, and its gradients are not per-sample ones.
        engine: how the passes are run: "eager" (default, as the caller has it), or some of "bf16", "fp16",
            "channels_last", "folded", "compile" and "graph" joined by "+" (:mod:`soatfast.gradients.engine`). x and the
            gradient keep x's dtype. Tiny differences need full precision. `soatfast tune` measures which is fastest.
        targeted: y are labels to reach: the objective's sign is turned, it is still to be maximised.
        freeze: False leaves the parameters' ``requires_grad`` alone, for a regulariser whose graph reaches them.
        output: which part of what the model returns: a name, an index or a callable; None: recognised
            (:mod:`soatfast.gradients.outputs`).
        forward: (model, x) -> output, for models that take more than x or take it by keyword; None: model(x).
        classes: True: a callable objective, too, is of logits (B, K) and labels, which are checked as for a name.

    Calling the oracle, or its :meth:`gradient`, costs one forward and one backward to the input.

    Raises:
        ValueError: the output is not recognised or has another shape, or labels lie outside 0..K-1.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> _ = torch.nn.init.eye_(model.weight)
    >>> with InputGradient(model) as oracle:
    ...     loss, grad = oracle(torch.zeros(1, 2), torch.tensor([0]))
    >>> loss, grad
    (tensor([0.6931]), tensor([[-0.5000,  0.5000]]))
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Tensor],
        objective: objectives.Named | objectives.Objective = "ce",
        mode: Mode = "eval",
        engine: str = "eager",
        targeted: bool = False,
        freeze: bool = True,
        output: outputs.Output = None,
        forward: outputs.Forward | None = None,
        classes: bool | None = None,
    ):
        if mode not in ("eval", "train", "keep"):
            raise ValueError(f'mode must be "eval", "train" or "keep", got {mode!r}')
        if not callable(model):
            raise TypeError(f"model must be a module or a callable, got {type(model).__name__}")
        self.engine = engines.parse(engine)
        if self.engine.is_structural and not isinstance(model, nn.Module):
            raise TypeError(f"engine {engine!r} needs an nn.Module, got {type(model).__name__}")
        self.model = unwrap(model) if isinstance(model, nn.Module) else model
        self.objective, self._derivative = objectives.resolve(objective)
        if self.engine.graph and not isinstance(objective, str):
            raise ValueError(
                f'engine {engine!r} takes the objectives "ce", "margin" and "dlr", got a callable: what it holds '
                "would be recorded"
            )
        outputs.check(output, forward)
        if self.engine.graph and (forward is not None or callable(output)):
            raise ValueError(
                f"engine {engine!r} takes no forward= and no callable output=: what they hold would be recorded"
            )
        self.output, self.forward = output, forward
        self._names_classes = isinstance(objective, str) if classes is None else classes
        self.chart: Callable[[Tensor], Tensor] | None = None  # from an attack's coordinates to the model's input
        self.mode = mode
        self.sign = -1.0 if targeted else 1.0
        self.input_dtype: torch.dtype | None = None  # what the model is fed, where it differs from x's dtype
        self.logits: Tensor | None = None  # of the last pass, detached
        self.state = ModelState(self.model, mode, freeze)
        self._layouts: list[tuple[nn.Parameter, Tensor]] = []
        self._cast: CastWeights | None = None
        self._fold: Fold | None = None
        self._recurrent = False
        self._plainly = False  # whether a pass is model(x) and no more
        self._labels_checked = False
        self._full_precision: str | None = None  # who takes differences of the passes
        self._half: torch.dtype | None = None  # in which part of a pass ran, whoever lowered it
        self._half_known = False

    # ------------------------------------------------------------------------------------------ model state

    def __enter__(self) -> InputGradient:
        self.state.__enter__()
        try:
            self._recurrent = has_recurrent(self.state.modules)
            self._plainly = self.forward is None and self.engine.is_eager and not self._recurrent
            if self.engine.channels_last and isinstance(self.model, nn.Module):
                engines.weights_channels_last(self.model, self._layouts, copy=not self.engine.graph)
            if self.engine.folded and isinstance(self.model, nn.Module):
                self._fold = Fold(self.model, self.state, self.forward is None, self.engine.precision)
            if self.engine.precision and casts_once(self.engine, self.state.modules):
                folded = self._fold.layers if self._fold else ()
                self._cast = CastWeights([m for m in self.state.modules if m not in folded], self.engine.precision)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        engines.put_back(self._layouts)
        self._layouts, self._cast, self._fold = [], None, None
        self.logits = None
        self._labels_checked = self._half_known = False
        self._full_precision = self._half = None
        self.state.__exit__()

    # ------------------------------------------------------------------------------------------ passes

    @contextlib.contextmanager
    def _grad_enabled(self, x: Tensor, precision: torch.dtype | None = None) -> Iterator[Tensor]:
        """x as a leaf that records gradients, also under an outer no_grad or inference_mode."""
        autocast = torch.autocast(x.device.type, dtype=precision) if precision else contextlib.nullcontext()
        with torch.inference_mode(False), torch.enable_grad(), autocast:
            yield self._leaf(x)

    def _leaf(self, x: Tensor) -> Tensor:
        leaf = x.clone() if x.is_inference() else x.detach()
        if self.engine.channels_last:
            leaf = engines.images_channels_last(leaf)
        return leaf.requires_grad_()

    def _forward(self, x: Tensor, y: Tensor, own: bool = True) -> Tensor:
        """Logits by the engine; own=False: by the model as the caller has it."""
        if self.chart is not None:
            x = self.chart(x)
        if self.input_dtype is not None:
            x = x.to(self.input_dtype)
        try:
            returned = self._call(x, own)
        except RuntimeError as error:
            # A forward that differentiates by its own parameters needs them as they are outside the block.
            if "require grad" not in str(error) or not self.state.thaw():
                raise
            returned = self._call(x, own)
        if not self._names_classes:
            logits = outputs.read(returned, len(x), self.output)
        else:
            logits = outputs.logits_of(returned, len(x), self.output)
            if not self._labels_checked:
                check_labels(y, logits.shape[1])
                self._labels_checked = True
        if not self._half_known and logits.requires_grad:
            self._half, self._half_known = full_precision.half_in(logits), True
            if self._full_precision is not None:
                full_precision.check_pass(self._full_precision, self._half, logits)
        self.logits = logits.detach()
        return logits

    def expect_full_precision(self, name: str) -> None:
        """Raise TypeError in the next pass if part of it runs in half precision: ``name`` takes differences of it."""
        self._full_precision, self._half_known = name, False

    def _call(self, x: Tensor, own: bool) -> Any:
        if self._plainly:
            return self.model(x)
        if not own:
            return self._ask(x)
        with self._folding(), self._cast.in_use() if self._cast else contextlib.nullcontext():
            returned = self._run(x)
            return self._run(x) if self._fold and self._fold.strayed() else returned

    def _folding(self) -> contextlib.AbstractContextManager[None]:
        """A backward may run parts of the forward again, and must find the weights that the forward had."""
        return self._fold.in_use() if self._fold else contextlib.nullcontext()

    def _run(self, x: Tensor) -> Any:
        model = self.model
        if self.engine.compile and isinstance(model, nn.Module) and not engines.is_compiled(model):
            with engines.compiled_forward(model):
                return self._ask(x)
        return self._ask(x)

    def _ask(self, x: Tensor) -> Any:
        """What the model returns for x."""
        if self._recurrent:
            with without_cudnn():
                return self.model(x) if self.forward is None else self.forward(self.model, x)
        return self.model(x) if self.forward is None else self.forward(self.model, x)

    @contextlib.contextmanager
    def _head(self, logits: Tensor) -> Iterator[Tensor]:
        """The logits for the objective: detached, in float32 or wider, out of autocast."""
        wide = logits.detach()
        wide = wide if wide.dtype == torch.float64 else wide.float()
        if torch.is_autocast_enabled(wide.device.type):
            with torch.no_grad(), torch.autocast(wide.device.type, enabled=False):
                yield wide
        else:
            with torch.no_grad():
                yield wide

    def _derivative_of(self, logits: Tensor, y: Tensor) -> Tensor:
        """The objective's derivative (B, K) by the (detached) logits, in their dtype."""
        if self.objective is objectives.cross_entropy:
            return ops.cross_entropy_derivative(logits, y, self.sign)
        with self._head(logits) as wide:
            derivative = self._derivative(wide, y)
        return (derivative if self.sign > 0 else -derivative).to(logits.dtype)

    def _loss_of(self, logits: Tensor, y: Tensor) -> Tensor:
        with self._head(logits) as wide:
            loss = self.objective(wide, y)
        if not self._names_classes:
            objectives.check_values(loss, len(wide))
        return loss if self.sign > 0 else -loss

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """The gradient alone, of x's shape. One forward, one backward to the input."""
        return self._pass(x, y)[0]

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(loss (B,), gradient of x's shape). One forward, one backward to the input."""
        grad, logits = self._pass(x, y)
        return self._loss_of(logits, y), grad

    def _pass(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.engine.graph and not graphs.recording():
            g, logits = self.run_recorded(("gradient",), self._pass, (x, y))
            return g, logits
        plain = self.engine.precision is None and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if plain:  # entering and leaving contexts would be a tenth of a small network's pass
            return self._differentiate(self._leaf(x), y)
        with self._grad_enabled(x, self.engine.precision) as leaf:
            return self._differentiate(leaf, y)

    def _differentiate(self, leaf: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(gradient, logits) of one pass at the leaf."""
        with self._folding():
            logits = self._forward(leaf, y)
            assert self.logits is not None
            return self._slope(logits, leaf, y), self.logits

    def _slope(self, logits: Tensor, leaf: Tensor, y: Tensor, keep_graph: bool = False) -> Tensor:
        """The gradient by the leaf, of the logits of the last pass."""
        seen = self.logits
        assert seen is not None
        if torch.float16 not in (self.engine.precision, seen.dtype, self._half):
            return by_input(logits, leaf, self._derivative_of(seen, y), keep_graph)
        # Small derivatives underflow in float16: send each sample back at unit scale, or all at one scale where batch
        # norm in train mode makes a sample's gradient of the others' derivatives too.
        derivative = self._derivative_of(seen if seen.dtype == torch.float64 else seen.float(), y)
        scale = derivative.abs().reshape(len(seen), -1).amax(1)
        if any(getattr(module, "training", False) for module in self.state.modules):
            shared = torch.where(scale.isfinite(), scale, 0.0).amax()  # of those whose logits did not overflow
            scale = torch.where(scale.isfinite(), shared, scale)
        power = torch.ldexp(torch.ones_like(scale), torch.frexp(scale).exponent)  # which rounds nothing
        scale = torch.where(scale.isfinite(), power, scale)
        divisor = as_column(torch.where(scale > 0, scale, 1.0), derivative)
        grad = by_input(logits, leaf, (derivative / divisor).to(logits.dtype), keep_graph)
        return grad * as_column(scale, grad).to(grad.dtype)

    def run_recorded(
        self,
        key: tuple[object, ...],
        run: Callable[..., tuple[Tensor, ...]],
        inputs: tuple[Tensor, ...],
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, ...]:
        """run(*inputs), the inputs beginning with x and y and the outputs ending with logits, as a CUDA graph."""
        assert isinstance(self.model, nn.Module)
        name = next(name for name, function in objectives.OBJECTIVES.items() if function is self.objective)
        key = (*key, name, self.sign, self.engine, self.input_dtype, self.output)
        outputs = graphs.run_recorded(self.model, self.state.modules, key, run, inputs, generator)
        self.logits = outputs[-1]
        check_labels(inputs[1], self.logits.shape[1])  # of this batch: the recording has checked its own
        return outputs

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Loss (B,) alone: one forward."""
        with torch.no_grad(), contextlib.ExitStack() as stack:
            if self.engine.precision:
                stack.enter_context(torch.autocast(x.device.type, dtype=self.engine.precision))
            return self._loss_of(self._forward(x, y), y)

    def fooled(self, y: Tensor) -> Tensor:
        """(B,) bool: the last pass predicted another class than y (targeted: the class y).

        Where y are not the labels of logits (B, K), nothing counts as fooled: the objective alone decides.
        """
        assert self.logits is not None, "no pass was made yet"
        if self.logits.dim() != 2 or self.logits.shape[1] < 2 or y.dim() != 1 or y.is_floating_point():
            return torch.zeros(len(y), dtype=torch.bool, device=y.device)
        reached = self.logits.argmax(1) == y
        return reached if self.sign < 0 else ~reached

    def differentiable(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """(loss, gradient, hvp): hvp(v) is the exact Hessian-vector product at x, one double backward each.

        One forward and one backward here; the graph is kept as long as hvp is. Needs twice-differentiable operations.
        What torch.compile makes is not: an engine with "compile" runs these passes uncompiled, and a model that the
        caller has compiled cannot be used, nor one with FSDP.
        """
        if self.state.sharded:
            check_second_derivative("an exact Hessian", self.model)
        with self._grad_enabled(x, self.engine.precision) as leaf:
            with twice_differentiable():
                logits = self._forward(leaf, y, own=False)
            wide = logits if logits.dtype == torch.float64 else logits.float()
            loss = self.sign * self.objective(wide, y)
            (grad,) = torch.autograd.grad(loss.sum(), leaf, create_graph=True)

        def hvp(v: Tensor) -> Tensor:
            if not grad.requires_grad:  # a loss that is linear in x
                return torch.zeros_like(x)
            with torch.inference_mode(False):
                (product,) = torch.autograd.grad(grad, leaf, v, retain_graph=True, allow_unused=True)
            return torch.zeros_like(x) if product is None else product.detach()

        return loss.detach(), grad.detach(), hvp

    def jacobian(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(logits (B, K), J (B, K - 1, ...)): J_k is the gradient of z_k - z_{K-1} by the input, k from 0.

        One forward and K - 1 backwards to the input. The objective has no part in it; float16 passes may underflow.
        """
        with self._grad_enabled(x, self.engine.precision) as leaf, self._folding():
            logits = self._forward(leaf, y)
            if logits.dim() != 2 or logits.shape[1] < 2:
                raise ValueError(f"the jacobian needs logits (B, K), got {tuple(logits.shape)}")
            classes = logits.shape[1]
            rows = []
            for k in range(classes - 1):
                direction = torch.zeros_like(logits)
                direction[:, k], direction[:, -1] = 1, -1
                (row,) = torch.autograd.grad(logits, leaf, direction, retain_graph=k < classes - 2)
                rows.append(row.detach())
        return logits.detach(), torch.stack(rows, 1)

    def shared(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(scalar sum of the losses, gradient of x's shape) of one pass that also serves the training step.

        The scalar is differentiable in the parameters: their gradient is computed here, in the same backward as the
        input's, and handed out when the caller's backward arrives. One forward and one backward to the parameters, in
        the model's state of before the block; the statistics that it updates stay updated. As the training uses it,
        it runs in the caller's precision and not in the engine's.

        Where part of the pass runs in float16 the parameters' gradients would underflow before a GradScaler's scale:
        the scalar then keeps its graph, and the caller's backward goes through it (1 backward to the input here).
        """
        with self.state.thawed() as parameters, self._grad_enabled(x) as leaf:
            logits = self._forward(leaf, y, own=False)
            if self._half == torch.float16:
                loss = self.sign * self.objective(logits.float(), y)
                grad = self._slope(logits, leaf, y, keep_graph=True)
                self.state.save_buffers()
                return loss.sum(), grad.detach()
            loss, derivative = self._loss_of(logits, y), self._derivative_of(logits.detach(), y)
            grad, *slopes = torch.autograd.grad(logits, [leaf, *parameters], derivative, allow_unused=True)
        self.state.save_buffers()
        used = [(p, slope) for p, slope in zip(parameters, slopes, strict=True) if slope is not None]
        with self.state.thawed():  # the node must be built while the parameters need gradients
            total = Recycled.deferred(loss.sum(), used)
        return total, grad.detach()


def by_input(logits: Tensor, leaf: Tensor, derivative: Tensor, keep_graph: bool = False) -> Tensor:
    """The gradient of <derivative, logits> by the leaf."""
    grad = None
    if logits.requires_grad:
        (grad,) = torch.autograd.grad(logits, leaf, derivative, retain_graph=keep_graph, allow_unused=True)
    if grad is None:
        raise ValueError(
            "the model's output has no gradient by its input (int8 weights, a detach() or no_grad() inside?): "
            "attack the float model it was made from, or use SimBA, which needs none"
        )
    return grad
