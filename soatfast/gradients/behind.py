"""The modules that a model consists of, also behind a function, a bound method, a partial or an object."""

from __future__ import annotations

import functools
import itertools
import types
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

_DEPTH = 5  # references from the callable to a module
_VISITED = 1000  # objects that are looked at


def roots(model: Any) -> list[nn.Module]:
    """The module itself, or the modules behind a callable.

    They are sought in what a function closes over, in its defaults and in the globals it names; in the object of a
    bound method; in the parts of a partial; in an object's attributes; and in lists, tuples and dicts of these. A
    module without parameters is looked behind as well: it may hold the real one in a list, or call a function.
    """
    return found(model)[0]


def found(model: Any) -> tuple[list[nn.Module], list[nn.Module]]:
    """(:func:`roots` of the model, all modules of their trees)."""
    if isinstance(model, nn.Module):
        starts, tree = [model], modules([model])
        if _has_parameters(tree):
            return starts, tree
        starts += _sought([value for module in tree for value in _attributes(module)], {id(module) for module in tree})
    else:
        starts = _sought([model], set())
    return starts, modules(starts)


def _has_parameters(tree: list[nn.Module]) -> bool:
    for module in tree:
        for p in module._parameters.values():
            if p is not None:
                return True
    return False


def warn_without_modules(model: Any, mode: str) -> None:
    """Say that the mode has no effect, as no module was found behind a callable."""
    name = getattr(model, "__qualname__", type(model).__name__)
    warnings.warn(
        f'mode="{mode}" has no effect: no module was found behind {name}. Pass the module itself, or set its '
        'train/eval mode yourself and pass mode="keep"',
        stacklevel=4,
    )


def modules(starts: Iterable[nn.Module]) -> list[nn.Module]:
    """All modules of these trees, each once. (``model.modules()`` makes names too, and takes three times as long.)"""
    left = list(starts)
    found = dict.fromkeys(left)
    while left:
        for module in left.pop()._modules.values():
            if module is not None and module not in found:
                found[module] = None
                left.append(module)
    return list(found)


def _sought(starts: list[Any], seen: set[int]) -> list[nn.Module]:
    found: list[nn.Module] = []
    layer = starts
    for _ in range(_DEPTH):
        following: list[Any] = []
        for value in layer:
            if id(value) in seen or len(seen) > _VISITED:
                continue
            seen.add(id(value))
            if isinstance(value, nn.Module):
                found.append(value)
            else:
                following.extend(_references(value))
        layer = following
    return found


def _references(value: Any) -> Iterator[Any]:
    """What a callable, a container or an object refers to."""
    if isinstance(value, (types.ModuleType, type, str, bytes, int, float, complex, Tensor, type(None))):
        return
    if isinstance(value, dict):
        yield from itertools.islice(value.values(), _VISITED)
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from itertools.islice(value, _VISITED)
    elif isinstance(value, functools.partial):
        yield value.func
        yield from value.args
        yield from value.keywords.values()
    elif isinstance(value, types.MethodType):
        yield value.__self__
        yield value.__func__
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    else:
        yield from _attributes(value)
        call = vars(type(value)).get("__call__")
        if isinstance(call, types.FunctionType):
            yield call


def _of_function(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that is not assigned yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    if "__wrapped__" in vars(function):
        yield vars(function)["__wrapped__"]
    names = _global_names(function.__code__)
    yield from (function.__globals__[name] for name in names if name in function.__globals__)


def _global_names(code: types.CodeType) -> set[str]:
    """Names that a function and those inside it look up."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_global_names, inner))


def _attributes(value: Any) -> list[Any]:
    own = getattr(value, "__dict__", {})
    skipped = ("_modules", "_parameters", "_buffers") if isinstance(value, nn.Module) else ()
    slots = [getattr(value, name, None) for name in getattr(type(value), "__slots__", ()) if name != "__dict__"]
    return [held for name, held in own.items() if name not in skipped] + slots
