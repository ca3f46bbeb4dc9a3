"""A model, its weights and its data as the command line names them.

A model is one of MODELS or ``package.module:factory``, a callable that returns an nn.Module: naming it runs that code.
A weights file never runs any: safetensors, or a .pt / .pth file read with weights_only.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from soatfast.gradients.device import device_of
from soatfast.gradients.state import ModelState
from soatfast.runs.errors import ModelError
from soatfast.train.data.sets import Data, load_data
from soatfast.train.models import MODELS, build_model, model_options

_WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name
_NESTS = ("state_dict", "model_state_dict", "model")  # where training scripts put the weights beside other things


@dataclass(frozen=True)
class Subject:
    """The model that a command is about, and its data."""

    data: str = "mnist5k"
    """mnist5k (4 000 digits to train on, 1 000 held out), digits8 (8x8 digits), mnist, cifar10, svhn, npz:PATH (arrays
    x_train, y_train, x_test, y_test, or x, y) or imagefolder:PATH (train/CLASS/*.png and test/CLASS, or CLASS/*)."""
    data_root: Path | None = None
    """Folder of the published files of mnist, cifar10 and svhn."""
    download: bool = False
    """Fetch missing files of mnist or svhn first (needs torchvision)."""
    model: str = "small-cnn"
    """small-cnn (small images), fast (a small VGG), resnet18, wrn-34-10, or package.module:factory, a function or class
    of yours that returns the model; it is given in_channels, classes (or num_classes), size and width where it takes
    them."""
    width: int | None = None
    """Channels of small-cnn (16), fast (32) or resnet18 (64), of the first layer or block."""
    weights: Path | None = None
    """Weights of the model: a .safetensors file, or a .pt or .pth file with nothing but tensors."""

    def __post_init__(self) -> None:
        check_width(self.model, self.width)

    def load_data(self) -> Data:
        return load_data(self.data, self.data_root, self.download)

    def make_model(self, data: Data) -> nn.Module:
        """The model for this data, with the weights if some are named; fresh ones come from torch's generator."""
        model = make_model(self.model, data.shape, data.classes, self.width)
        if self.weights is not None:
            load_weights(model, self.weights)
        return model


def check_width(spec: str, width: int | None) -> None:
    """Raise ValueError for a width that this model cannot have."""
    if width is not None and (width < 1 or spec == "wrn-34-10"):
        raise ValueError(f"width must be at least 1, for small-cnn, fast or resnet18, got {width} for {spec}")


def make_model(spec: str, shape: Sequence[int], classes: int, width: int | None = None) -> nn.Module:
    """The model that `spec` names, for images of this shape, tried on one batch.

    spec: a name in MODELS, or ``package.module:factory``. A factory is called with those of in_channels, classes,
    num_classes, size (the images' width) and width that its signature names, so often with nothing. The current folder
    is searched first.

    Raises:
        ValueError: no such name, or wrong numbers.
        ModelError: module or attribute is missing, the factory fails or returns something else, or what it returns
            does not give (B, K) logits with K >= classes for such images.

    >>> type(make_model("soatfast.train.models:SmallCNN", (3, 28, 28), 7)).__name__
    'SmallCNN'
    >>> make_model("collections:OrderedDict", (1, 28, 28), 10)
    Traceback (most recent call last):
    soatfast.runs.errors.ModelError: model collections:OrderedDict returned a OrderedDict, not an nn.Module
    """
    check_width(spec, width)
    if ":" in spec:
        with _current_folder_importable():
            model = _call(spec, _find(spec), shape, classes, width)
    elif spec in MODELS:
        if len(shape) != 3:
            raise ModelError(f"model {spec} takes images (C, H, W), got samples of shape {tuple(shape)}")
        model = build_model(spec, shape[0], classes, **model_options(spec, width, shape[-1]))
    else:
        raise ValueError(f"model must be one of {', '.join(MODELS)} or package.module:factory, got {spec!r}")
    _try(spec, model, shape, classes)
    return model


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """First while the model is made; afterwards last, so that nothing imported later is taken from there instead."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
        if here not in sys.path and "" not in sys.path:
            sys.path.append(here)


def _find(spec: str) -> Callable[..., Any]:
    name, _, attribute = spec.partition(":")
    if not name or not attribute:
        raise ModelError(f"model {spec}: expected package.module:factory")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ModelError(
                f"model {spec}: there is no module {error.name} in the current folder or among the installed packages"
            ) from error
        raise ModelError(f"model {spec}: importing {name} failed: {error}") from error
    except Exception as error:
        raise ModelError(f"model {spec}: importing {name} failed: {type(error).__name__}: {error}") from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            named = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            own = [key for key in named if getattr(vars(module)[key], "__module__", None) == module.__name__]
            raise ModelError(f"model {spec}: {name} has no {attribute}; it has {_some(own or named) or 'no callables'}")
        found = getattr(found, part)
    if isinstance(found, nn.Module) or not callable(found):
        raise ModelError(
            f"model {spec}: expected a function or class that makes the model, got a {type(found).__name__}"
        )
    return found  # type: ignore[no-any-return]


def _call(spec: str, factory: Callable[..., Any], shape: Sequence[int], classes: int, width: int | None) -> nn.Module:
    known: dict[str, Any] = {"classes": classes, "num_classes": classes, "in_channels": shape[0], "size": shape[-1]}
    if width is not None:
        known["width"] = width
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some callables written in C have none
        parameters = {}  # type: ignore[assignment]
    named = {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if width is not None and "width" not in named:
        raise ModelError(f"model {spec} takes no width, got width {width}")
    missing = [name for name, p in named.items() if p.default is p.empty and name not in known]
    if missing:
        raise ModelError(
            f"model {spec} needs {_some(missing)}: write a function without arguments that calls it (given are "
            f"in_channels, classes, num_classes, size and, where it is set, width)"
        )
    try:
        model = factory(**{name: value for name, value in known.items() if name in named})
    except Exception as error:
        raise ModelError(f"model {spec} failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"model {spec} returned a {type(model).__name__}, not an nn.Module")
    return model


def _try(spec: str, model: nn.Module, shape: Sequence[int], classes: int) -> None:
    """One batch in eval mode; what it changes, modes and random numbers, is put back."""
    try:
        with ModelState(model, "eval", freeze=False), torch.random.fork_rng(devices=[]), torch.no_grad():
            device = device_of(model)
            logits = model(torch.full((2, *shape), 0.5, device=device))
    except Exception as error:
        raise ModelError(f"model {spec} fails on images of shape {tuple(shape)}: {error}") from error
    if next(model.parameters(), None) is None:
        raise ModelError(f"model {spec} has no parameters")
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2 or logits.shape[1] < classes:
        shown = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ModelError(f"model {spec} must return logits (B, {classes}) for {classes} classes, got {shown} at B = 2")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a weights file into `model`. Names may begin with what DataParallel or torch.compile puts before them.

    Raises ModelError, one line: there is no such file, it is damaged, holds something else than tensors, or names and
    shapes are not the model's.
    """
    path = Path(path)
    given = _unwrapped(_read(path), model)
    own = model.state_dict()
    places = {_place(own[name]) for name in given if name in own}
    missing = [name for name in own if name not in given and _place(own[name]) not in places]
    unexpected = [name for name in given if name not in own]
    shapes = [
        f"{name} is {tuple(given[name].shape)}, the model's {tuple(own[name].shape)}"
        for name in given
        if name in own and given[name].shape != own[name].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("other shapes", shapes))
    wrong = "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds if names)
    if wrong:
        raise ModelError(f"{path} does not fit {type(model).__name__}: {wrong}")
    model.load_state_dict(given, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        inside = path / "model.safetensors"
        hint = f"; it has {inside}" if inside.is_file() else ""
        raise ModelError(f"weights must be a .safetensors, .pt or .pth file, {path} is a folder{hint}")
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{path} is damaged, truncated or no safetensors file: {error}") from error
    if path.suffix not in (".pt", ".pth"):
        raise ModelError(f"weights must be a .safetensors, .pt or .pth file, got {path}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of a pickle in another protocol, which is refused or read
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is not read: it is damaged, or holds more than tensors, and unpickling that could run its code; "
            f"where you trust it, save torch.save(model.state_dict(), ...) from it"
        ) from error
    except Exception as error:
        raise ModelError(f"{path} is damaged, truncated or no file of torch.save: {error}") from error
    for nest in _NESTS:
        if isinstance(found, dict) and isinstance(found.get(nest), dict):
            found = found[nest]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in found.items()):
        what = f"entries such as {next(iter(found))!r}" if isinstance(found, dict) and found else type(found).__name__
        raise ModelError(f"{path}: expected a state dict of tensors, got {what}")
    return found


def _unwrapped(given: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    own = model.state_dict()
    for _ in _WRAPPERS:
        for prefix in _WRAPPERS:
            wrapped = all(name.startswith(prefix) for name in given)
            if given and wrapped and not any(name.startswith(prefix) for name in own):
                given = {name.removeprefix(prefix): value for name, value in given.items()}
    return given


def _place(tensor: Tensor) -> Any:
    """Equal for tensors that are one, of which safetensors keeps the first only."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else id(tensor)


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
