"""Result tables: one list of columns and rows, written as Markdown, as rich table and as JSON values."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import rich.table

Cell = str | float | Sequence[float] | None


@dataclass(frozen=True)
class Column:
    """A column: the row's key, the header, and the decimals of its numbers (`suffix` follows each)."""

    key: str
    header: str
    digits: int = 1
    suffix: str = ""


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); no spread from a single value."""
    if not values:
        raise ValueError("expected at least one value, got none")
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Table:
    """A cell is a text, None, a number, or one per repetition (mean ± sample standard deviation)."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Cell]]
    note: str = ""

    def text(self, row: Mapping[str, Cell], column: Column) -> str:
        """One cell as it is shown; "–" for None."""
        value = row.get(column.key)
        if value is None:
            return "–"
        if isinstance(value, str):
            return value
        mean, spread = mean_and_spread([value] if isinstance(value, (int, float)) else value)
        shown = f"{mean:.{column.digits}f}"
        return (shown if spread is None else f"{shown} ± {spread:.{column.digits}f}") + column.suffix

    def is_numeric(self, column: Column) -> bool:
        return not any(isinstance(row.get(column.key), str) for row in self.rows)

    def to_markdown(self) -> str:
        """A GitHub table, its cells padded so that the source reads well too; numbers to the right."""
        cells = [[c.header for c in self.columns]] + [[self.text(r, c) for c in self.columns] for r in self.rows]
        cells = [[cell.replace("|", "\\|") for cell in line] for line in cells]
        widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(self.columns))]
        right = [self.is_numeric(column) for column in self.columns]

        def line(parts: Sequence[str]) -> str:
            padded = (p.rjust(w) if r else p.ljust(w) for p, w, r in zip(parts, widths, right, strict=True))
            return "| " + " | ".join(padded) + " |"

        rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
        lines = [f"# {self.title}", "", line(cells[0]), line(rule), *map(line, cells[1:])]
        if self.note:
            lines += ["", self.note]
        return "\n".join(lines) + "\n"

    def to_rich(self) -> rich.table.Table:
        """For a terminal."""
        import rich.box
        import rich.table

        table = rich.table.Table(title=self.title, caption=self.note or None, box=rich.box.SIMPLE_HEAD)
        for column in self.columns:
            table.add_column(column.header, justify="right" if self.is_numeric(column) else "left")
        for row in self.rows:
            table.add_row(*(self.text(row, column) for column in self.columns))
        return table

    def to_json(self) -> dict[str, Any]:
        """In JSON's terms; of the rows' cells numbers are {"mean", "spread", "values"}, texts and None as they are."""
        return {
            "title": self.title,
            "note": self.note,
            "columns": [dataclasses.asdict(c) for c in self.columns],
            "rows": [{c.key: _json_cell(row.get(c.key)) for c in self.columns} for row in self.rows],
        }

    @classmethod
    def from_json(cls, value: Any) -> Table:
        """The table that :meth:`to_json` described.

        Raises ValueError for anything else.
        """
        try:
            columns = [Column(**column) for column in value["columns"]]
            rows = [
                {key: cell["values"] if isinstance(cell, dict) else cell for key, cell in row.items()}
                for row in value["rows"]
            ]
            return cls(value["title"], columns, rows, value["note"])
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"no table of this version of soatfast ({type(error).__name__}: {error})") from error


def _json_cell(value: Cell) -> Any:
    if value is None or isinstance(value, str):
        return value
    values = [value] if isinstance(value, (int, float)) else list(value)
    mean, spread = mean_and_spread(values)
    return {"mean": mean, "spread": spread, "values": values}
