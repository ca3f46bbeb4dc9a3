"""What a model returns, and the tensor that losses and attacks take of it: one home for every form of output.

Without ``output=`` a tensor is taken as it is; of a dictionary or an object the entry ``logits`` (transformers, the
auxiliary heads of Inception and GoogLeNet) or ``out`` (segmentation models), or the one tensor that there is; of a
tuple the first tensor (B, K). Anything else, and tuples whose tensors (B, K) differ in shape, need ``output=``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Output = str | int | Callable[[Any], Tensor] | None
Forward = Callable[[Any, Tensor], Any]

_NAMES = ("logits", "out")
_HELP = "say which with output= (a name, an index or a callable)"


def check(output: object, forward: object) -> None:
    """Raise TypeError unless output= and forward= are what they may be."""
    if isinstance(output, bool) or not (output is None or isinstance(output, (str, int)) or callable(output)):
        raise TypeError(f"output must be a name, an index, a callable or None, got {output!r}")
    if not (forward is None or callable(forward)):
        raise TypeError(f"forward must be a callable (model, x) -> output or None, got {type(forward).__name__}")


def read(returned: Any, samples: int, output: Output = None) -> Tensor:
    """The tensor (samples, ...) of what a model returned.

    >>> import torch
    >>> read({"loss": torch.tensor(1.0), "logits": torch.zeros(2, 3)}, 2).shape
    torch.Size([2, 3])
    >>> read((torch.zeros(2, 3), torch.ones(2, 3)), 2, output=1)[0]
    tensor([1., 1., 1.])
    """
    found = _recognised(returned, samples) if output is None else _chosen(returned, output)
    if not isinstance(found, Tensor) or not found.is_floating_point() or not found.dim() or len(found) != samples:
        where = "" if output is None else f" at output={output!r}"
        hint = f": {_HELP}" if output is None and not isinstance(returned, Tensor) else ""
        raise ValueError(f"model must return logits of shape ({samples}, K){where}, got {described(found)}{hint}")
    return found


def logits_of(returned: Any, samples: int, output: Output = None) -> Tensor:
    """Logits (samples, K), K >= 2, of what a model returned; of one sigmoid unit those of the classes 0 and 1."""
    if output is None and isinstance(returned, Tensor) and returned.dim() == 2:  # what nearly every model returns
        rows, classes = returned.shape
        if rows == samples and classes > 1 and returned.is_floating_point():
            return returned
    found = read(returned, samples, output)
    logits = as_classes(found)
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"model must return logits of shape ({samples}, K), got {tuple(found.shape)}: other outputs than these, or "
            f"({samples},) of one sigmoid unit, need objective= a callable (logits, y) -> ({samples},)"
        )
    return logits


def predict(model: Any, x: Tensor, output: Output = None, forward: Forward | None = None) -> Tensor:
    """Logits (B, K) of the model for x: one forward, called by ``forward=`` and read by ``output=``.

    >>> import torch
    >>> predict(lambda *, pixels: {"scores": pixels}, torch.eye(2), "scores", lambda model, x: model(pixels=x))
    tensor([[1., 0.],
            [0., 1.]])
    """
    return logits_of(model(x) if forward is None else forward(model, x), len(x), output)


def as_classes(logits: Tensor) -> Tensor:
    r"""(B,) or (B, 1) of one sigmoid unit z as logits (0, z) of the classes 0 and 1; anything else as it is.

    softmax(0, z)_1 = sigmoid(z), so that the cross-entropy is the binary one, and the margin is z or -z.

    >>> import torch
    >>> as_classes(torch.tensor([[2.0], [-1.0]]))
    tensor([[ 0.,  2.],
            [ 0., -1.]])
    """
    if logits.dim() == 1 or (logits.dim() == 2 and logits.shape[1] == 1):
        z = logits.reshape(-1)
        return torch.stack([torch.zeros_like(z), z], 1)
    return logits


def described(returned: Any) -> str:
    """What came, in a few words: shapes, names."""
    if isinstance(returned, Tensor):
        kind = "" if returned.is_floating_point() else f" of {returned.dtype}"
        return f"{tuple(returned.shape)}{kind}"
    name = type(returned).__name__
    if isinstance(returned, Mapping):
        return f"{name} with {', '.join(f'{k} {described(v)}' for k, v in list(returned.items())[:8]) or 'nothing'}"
    if isinstance(returned, (tuple, list)):
        return f"{name} of {', '.join(described(v) for v in returned[:8]) or 'nothing'}"
    return name


def _chosen(returned: Any, output: str | int | Callable[[Any], Tensor]) -> Any:
    if callable(output):
        return output(returned)
    if isinstance(output, str):
        found = returned.get(output) if isinstance(returned, Mapping) else getattr(returned, output, None)
        if found is None:
            raise ValueError(f"output={output!r} is not in what the model returned: {described(returned)}")
        return found
    values = list(returned.values()) if isinstance(returned, Mapping) else returned
    if not isinstance(values, (tuple, list)) or not -len(values) <= output < len(values):
        raise ValueError(f"output={output} is not in what the model returned: {described(returned)}")
    return values[output]


def changes_input(forward: Forward | None) -> bool:
    """Whether a forward shows the model something else than x, as ResizePad and Smoothed do: it has one inside."""
    return hasattr(forward, "forward")


def within(forward: Forward | None) -> Forward | None:
    """How the model is called by a forward that changes its input, else the forward itself."""
    return forward.forward if changes_input(forward) else forward  # type: ignore[union-attr]


def _recognised(returned: Any, samples: int) -> Any:
    if isinstance(returned, Tensor):
        return returned
    for name in _NAMES:
        found = returned.get(name) if isinstance(returned, Mapping) else getattr(returned, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(returned, Mapping):
        tensors = [v for v in returned.values() if isinstance(v, Tensor)]
        return tensors[0] if len(tensors) == 1 else returned
    if isinstance(returned, (tuple, list)):
        fit = [v for v in returned if isinstance(v, Tensor) and v.dim() and len(v) == samples]
        flat = [v for v in fit if v.dim() == 2]
        some = flat or fit
        if some and all(v.shape == some[0].shape for v in some):
            return some[0]
    return returned
