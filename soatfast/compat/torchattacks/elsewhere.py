"""torchattacks' classes that are not here, and the line that says so, however they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

PACKAGE = __name__.rpartition(".")[0]
ELSEWHERE = {
    **{
        name: f"attacks.{name.lower()}"
        for name in (
            *("APGD", "APGDT", "AutoAttack", "CW", "DeepFool", "EADEN", "EADL1", "FAB", "JSMA", "OnePixel"),
            *("Pixle", "SPSA", "SparseFool", "Square"),
        )
    },
    "LGV": "wrappers.lgv",
}
"""Name -> module, below torchattacks."""


def missing(name: str, present: Iterable[str] = ()) -> str:
    """The line for a name that is not here."""
    line = f"{PACKAGE} has no {name}" + (f"; it has {', '.join(present)}" if present else "")
    if name in ELSEWHERE:
        line += f". Take {name} from torchattacks itself: from torchattacks import {name}"
    return line


class Finder:
    """Python's last question for a module: those of torchattacks that are not here get the line above.

    ``from package import CW`` would else say that it cannot import the name, and no more.
    """

    @staticmethod
    def find_spec(fullname: str, path: Any = None, target: Any = None) -> None:
        parent, _, below = fullname.partition(PACKAGE + ".")
        for name, module in ELSEWHERE.items():
            if not parent and below in (name, module):
                raise ImportError(missing(name), name=fullname)

    @classmethod
    def install(cls) -> None:
        """At the end of the list: whatever is there is found first."""
        if not any(type(finder).__qualname__ == cls.__qualname__ for finder in sys.meta_path):
            sys.meta_path.append(cls())
