"""Numbers of the command line: 0.03, 8/255, 1e-3, inf."""

from __future__ import annotations

from typing import Any


def number(text: str) -> float:
    """A number or a fraction of two, as radii are written.

    Raises:
        ValueError: anything else, also a division by 0.

    >>> number("8/255") == 8 / 255, number("0.3"), number("inf")
    (True, 0.3, inf)
    """
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"expected a number, such as 0.03 or 8/255, got {text!r}") from error


def registry() -> Any:
    """For ``tyro.cli(..., registry=registry())``: every option of type float takes fractions too."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    made = ConstructorRegistry()

    @made.primitive_rule
    def floats(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[float] | None:
        if info.type is not float:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="FLOAT",
            instance_from_str=lambda words: number(words[0]),
            is_instance=lambda value: isinstance(value, (int, float)),
            str_from_instance=lambda value: [str(value)],
        )

    return made
