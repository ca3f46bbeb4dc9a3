"""Attacks and losses by class name, each with its own fields as options of the command line.

eps and p belong to the command. What a command line cannot say is left out: generators, tensors, memories, functions;
and ``bounds`` and ``targeted``, as images are in [0, 1] and the labels are the true ones.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import docstring_parser
import tyro

from soatfast.attacks import FGSM, HAAT, PGD, SOAE, FrankWolfe
from soatfast.losses import MART, SCORPIO, SORA, TRADES, AdversarialTraining, CrossEntropy, Loss

ATTACK_CLASSES: dict[str, type] = {"fgsm": FGSM, "pgd": PGD, "frank-wolfe": FrankWolfe, "soae": SOAE, "haat": HAAT}
LOSS_CLASSES: dict[str, type] = {
    "cross-entropy": CrossEntropy,
    "scorpio": SCORPIO,
    "trades": TRADES,
    "mart": MART,
    "sora": SORA,
}
_LEFT_OUT = ("eps", "p", "bounds", "targeted")
_SAYABLE = (bool, int, float, str, types.NoneType)


@dataclass(frozen=True)
class Choice:
    """Options of one class, which `make` completes."""

    of: ClassVar[type]

    def make(self, eps: float, p: float) -> Any:
        """The attack or loss. Raises what its class raises for wrong fields."""
        known = {f.name for f in dataclasses.fields(self.of)}
        task = {name: value for name, value in (("eps", eps), ("p", p)) if name in known}
        return self.of(**task, **dataclasses.asdict(self))


def as_loss(made: Any) -> Loss:
    """A loss as it is, an attack as adversarial training by it."""
    return made if isinstance(made, Loss) else AdversarialTraining(made)


def choice(cls: type) -> type[Choice]:
    """The dataclass of those fields of an attack or loss that the command line can say, with their help.

    >>> [f.name for f in dataclasses.fields(choice(PGD))]
    ['objective', 'mode', 'engine', 'steps', 'step_size', 'random_start', 'restarts', 'best']
    >>> choice(PGD)(steps=7).make(eps=0.3, p=2).eps
    0.3
    """
    hints, about = typing.get_type_hints(cls), _help(cls)
    fields: list[Any] = []
    for f in dataclasses.fields(cls):
        kind = _sayable(f.name, hints[f.name])
        if f.name not in _LEFT_OUT and kind is not None:
            described = Annotated[kind, tyro.conf.arg(help=about.get(f.name))]  # type: ignore[valid-type]
            fields.append((f.name, described, dataclasses.field(default=f.default)))
    summary = docstring_parser.parse(cls.__doc__ or "").short_description or ""
    summary = re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"\1", summary).replace("``", "")  # Sphinx's marks
    namespace = {"of": cls, "__doc__": summary}
    return dataclasses.make_dataclass(cls.__name__, fields, bases=(Choice,), frozen=True, namespace=namespace)


def subcommands(classes: Mapping[str, type], unnamed: str) -> Any:
    """The union for tyro: None, shown as the subcommand "named" with this description, or one of the classes."""
    kinds: list[Any] = [Annotated[None, tyro.conf.subcommand("named", description=unnamed)]]
    for name, cls in classes.items():
        made = choice(cls)
        kinds.append(Annotated[made, tyro.conf.subcommand(name, description=made.__doc__)])
    return functools.reduce(operator.or_, kinds)


def _sayable(name: str, hint: Any) -> Any:
    """The part of a field's type that words can say, or None."""
    if name == "objective":
        return Literal["ce", "margin"]
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kept = [part for part in parts if part in _SAYABLE or typing.get_origin(part) is Literal]
    if kept in ([], [types.NoneType]):
        return None
    return functools.reduce(operator.or_, kept)


def _help(cls: type) -> dict[str, str]:
    """The "Args:" of the class and of those it extends; an entry may be about several fields."""
    found = {}
    for parent in reversed(cls.__mro__):
        for entry in docstring_parser.parse(vars(parent).get("__doc__") or "").params:
            for name in entry.arg_name.split(","):
                found[name.strip()] = " ".join((entry.description or "").split())
    return found
