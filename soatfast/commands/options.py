"""What a command works with: a row of a catalogue by its name, or a class at the end of the line with its options.

Every public attack and loss class can stand there. AdversarialTraining is said by its attack. eps and p belong to the
command. What a command line cannot say is left out: generators, tensors, memories, functions; and ``bounds`` and
``targeted``, as images are in [0, 1] and the labels are the true ones; and ``return_output``, which is for scripts.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import operator
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import docstring_parser
import tyro

from soatfast import attacks, losses
from soatfast.attacks import Attack
from soatfast.attacks.autoattack import require_torchattacks
from soatfast.attacks.catalogue import AttackRow, Row
from soatfast.attacks.task import Task, check_ball
from soatfast.gradients.objectives import Named
from soatfast.losses import AdversarialTraining, Loss
from soatfast.runs.errors import UserError

_SMALL = Task(0.1, 1, (1, 2, 2))
_LEFT_OUT = ("eps", "p", "bounds", "targeted", "return_output")
_SAYABLE = (bool, int, float, str, types.NoneType)


def listed(about: str, rows: Mapping[str, Row]) -> str:
    """The help text of an option that takes names of these rows."""
    names = (name if name == row.label else f"{name} ({row.label})" for name, row in rows.items())
    return f"{about}: {', '.join(names)}."


def nearest(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for the first of the names that is not known, with those that are nearest to it.

    >>> nearest("attack", ["pgd41"], ["fgsm", "pgd20", "pgd40", "haat", "simba"])
    Traceback (most recent call last):
    ValueError: there is no attack 'pgd41'; the nearest are pgd40, pgd20, fgsm
    """
    known = list(known)
    for name in names:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, 3, 0.0))
            raise ValueError(f"there is no {what} {name!r}; the nearest are {near}")


@dataclass(frozen=True)
class Choice:
    """Options of one class, which `make` completes."""

    of: ClassVar[type]

    def make(self, eps: float, p: float) -> Any:
        """The attack or loss. Raises what its class raises for wrong fields."""
        known = {f.name for f in dataclasses.fields(self.of)}
        field, value = getattr(self.of, "eps_with", (None, None))  # a class that has a radius with this value only
        if field is not None and getattr(self, field) != value:
            known -= {"eps"}
        task = {name: value for name, value in (("eps", eps), ("p", p)) if name in known}
        return self.of(**task, **dataclasses.asdict(self))


@dataclass(frozen=True)
class Chosen:
    """The row of this name, or in its place the class at the end of the command line; `what` it is: attack, method."""

    what: str
    rows: Mapping[str, Row]
    name: str
    default: str
    at_end: Choice | None

    def check(self, eps: float, p: float) -> None:
        """Raise ValueError for an unknown name, for two choices at once, and for a ball that the choice has not."""
        nearest(self.what, [self.name], self.rows)
        if self.at_end is None:
            check_ball(eps, p)
            check_norm(self.rows[self.name], p)
        elif self.name != self.default:
            raise ValueError(f"either --{self.what} {self.name} or {self.at_end.of.__name__} at the end, got both")
        else:
            self.at_end.make(eps, p)

    @property
    def label(self) -> str:
        return self.rows[self.name].label if self.at_end is None else self.at_end.of.__name__

    def make(self, task: Task) -> Any:
        return self.rows[self.name].make(task) if self.at_end is None else self.at_end.make(task.eps, task.p)


def check_norm(row: Row, p: float) -> None:
    """Raise ValueError unless the row is for this norm."""
    if p not in row.norms:
        raise ValueError(f"{row.name} needs p = {' or '.join(f'{q:g}' for q in row.norms)}, got p = {p:g}")


def check_torchattacks() -> None:
    """Raise UserError where AutoAttack's package is missing: asked before the work, not where it is first used."""
    try:
        require_torchattacks()
    except ImportError as error:
        raise UserError(str(error)) from error


def as_loss(made: Any) -> Loss:
    """A loss as it is, an attack as adversarial training by it."""
    return made if isinstance(made, Loss) else AdversarialTraining(made)


def class_name(cls: type) -> str:
    """The class as a word of the command line.

    >>> [class_name(cls) for cls in (attacks.FrankWolfe, attacks.NearPGD, attacks.SimBA, attacks.MIFGSM)]
    ['frank-wolfe', 'near-pgd', 'simba', 'mifgsm']
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z](?:[a-z]|[A-Z]{2}))", "-", cls.__name__).lower()


def attack_classes(rows: Iterable[AttackRow]) -> dict[str, type]:
    """Word -> class, of the public attacks and of those that the rows make."""
    public = [getattr(attacks, name) for name in attacks.__all__]
    return _words([*public, *(type(row.make(_SMALL)) for row in rows)], Attack, ())


def loss_classes(rows: Iterable[Row]) -> dict[str, type]:
    """Word -> class, of the public losses and of those that the rows make."""
    public = [getattr(losses, name) for name in losses.__all__]
    return _words([*public, *(type(row.make(_SMALL)) for row in rows)], Loss, (AdversarialTraining,))


def _words(found: list[Any], base: type, without: tuple[type, ...]) -> dict[str, type]:
    classes = [cls for cls in found if isinstance(cls, type) and issubclass(cls, base) and cls not in (base, *without)]
    return {class_name(cls): cls for cls in classes if not _needs(cls)}


def _needs(cls: type) -> bool:
    """Whether the class has a field without a default, as a memory: no command line can say it."""
    none = dataclasses.MISSING
    return any(f.default is none and f.default_factory is none for f in dataclasses.fields(cls))


def choice(cls: type) -> type[Choice]:
    """The dataclass of those fields of an attack or loss that the command line can say, with their help.

    >>> [f.name for f in dataclasses.fields(choice(attacks.FGSM))]
    ['objective', 'mode', 'engine', 'output', 'random_start', 'step_size']
    >>> choice(attacks.PGD)(steps=7).make(eps=0.3, p=2).eps
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
        return Named
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
