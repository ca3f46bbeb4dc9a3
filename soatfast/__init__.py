"""soatfast: second-order adversarial training made cheap. ``import soatfast as sf``; see README.md.

Every public name of attacks, losses, memory, gradients and solvers is also a name of this package: ``sf.PGD``,
``sf.TRADES``, ``sf.gmres``. The sub-packages are there without an import of their own: ``sf.evaluate.suite``. Both are
loaded at their first use, so that ``import soatfast`` costs nothing.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soatfast import attacks as attacks
    from soatfast import compat as compat
    from soatfast import evaluate as evaluate
    from soatfast import explain as explain
    from soatfast import gradients as gradients
    from soatfast import losses as losses
    from soatfast import memory as memory
    from soatfast import ops as ops
    from soatfast import profile as profile
    from soatfast import runs as runs
    from soatfast import solvers as solvers
    from soatfast import testing as testing
    from soatfast import train as train
    from soatfast.attacks import *  # noqa: F403
    from soatfast.gradients import *  # noqa: F403
    from soatfast.losses import *  # noqa: F403
    from soatfast.memory import *  # noqa: F403
    from soatfast.ops.config import show_config as show_config
    from soatfast.profile import *  # noqa: F403
    from soatfast.solvers import *  # noqa: F403

    __version__: str
    __all__: list[str]

_FLAT = ("gradients", "memory", "solvers", "attacks", "losses", "profile")
"""Sub-packages whose ``__all__`` is public here as well."""
_FOLDERS = (*_FLAT, "ops", "testing", "runs", "evaluate", "explain", "train", "commands", "compat")


if not TYPE_CHECKING:  # a checker that sees this takes every misspelt name

    def __getattr__(name: str) -> Any:
        value: Any
        if name in _FOLDERS:
            return importlib.import_module(f"{__name__}.{name}")
        if name == "__all__":
            return _names()
        if name in ("__version__", "show_config"):
            config = importlib.import_module(f"{__name__}.ops.config")
            value = config.version() if name == "__version__" else config.show_config
        elif name.startswith("_"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        else:
            value = _public(name)
        globals()[name] = value
        return value


def _public(name: str) -> Any:
    for folder in _FLAT:
        module = importlib.import_module(f"{__name__}.{folder}")
        if name in module.__all__:
            return getattr(module, name)
    near = difflib.get_close_matches(name, _names(), 1) or [n for n in _names() if n.lower() == name.lower()]
    hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(_names())}"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def _names() -> list[str]:
    flat = {name for folder in _FLAT for name in importlib.import_module(f"{__name__}.{folder}").__all__}
    return sorted(flat | set(_FOLDERS) | {"__version__", "show_config"})


def __dir__() -> list[str]:
    return _names()
