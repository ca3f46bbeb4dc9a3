"""papers.md and papers.json: the claims with their verdicts, and the papers' tables beside what was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from soatfast.commands.papers.claims import CLAIMS, UNTESTED
from soatfast.commands.papers.measured import Measured, measured
from soatfast.commands.papers.tables import FLAGS, TABLES, PaperTable
from soatfast.commands.papers.verdicts import FAILS, HOLDS, MISSING, OPEN
from soatfast.runs import files
from soatfast.runs.table import Cell, Column, Table

PAGE, RECORD = "papers.md", "papers.json"
HEADINGS = {HOLDS: "Holds", FAILS: "Does not hold", OPEN: "Not separable with these seeds", MISSING: "Not measured"}


def write(folder: Path) -> None:
    """Write papers.md and papers.json beside the results.json of `folder`."""
    found = measured(files.read_json(folder / "results.json"))
    files.write_json(folder / RECORD, record(found))
    files.write_text(folder / PAGE, page(found))


def record(found: Measured) -> dict[str, Any]:
    """All of the page in JSON's terms, and every printed figure with its source and flags."""
    return {
        "summary": summary(found),
        "method": how(found),
        "claims": [claim.to_json(found) for claim in CLAIMS],
        "claims_table": claims_table(found).to_json(),
        "tables": [beside(table, found).to_json() for table in TABLES],
        "figures": [dataclasses.asdict(figure) for table in TABLES for figure in table.figures()],
        "flags": {str(number): text for number, text in FLAGS.items()},
        "untested": list(UNTESTED),
    }


def summary(found: Measured) -> str:
    """How many claims have which verdict."""
    verdicts = [claim.verdict(found) for claim in CLAIMS]
    counts = [f"{verdict}: {verdicts.count(verdict)}" for verdict in HEADINGS if verdict in verdicts]
    return f"Of {len(CLAIMS)} claims of the papers: {'; '.join(counts)}."


def how(found: Measured) -> str:
    """What was measured, and how a verdict is made."""
    seeds = f"{found.seeds} seeds" if found.seeds > 1 else "one seed"
    one = "" if found.seeds > 1 else " One seed has no spread: only pass counts can be told apart. Take --seeds 3."
    return (
        f"Measured here: {found.setting}, {seeds}. The papers trained larger networks on other data, for longer and "
        "with their own settings, so that their numbers are no targets; only the order of methods is put to the test. "
        "A claim holds, or does not, where the 95 % interval of the difference of means over the seeds (Student's t; "
        "of pairs for two attacks on the same models, else Welch's; the held-out samples are the same) leaves no doubt "
        "for any of its parts; one part that fails is enough against it. (no) and (not separable) mark such parts. At "
        f"95 % a claim, one verdict in twenty may be chance.{one}"
    )


def page(found: Measured) -> str:
    lines = ["# The papers' claims, on small data", "", f"**{summary(found)}**", "", how(found), ""]
    for verdict, heading in HEADINGS.items():
        claims = [claim for claim in CLAIMS if claim.verdict(found) == verdict]
        if claims:
            lines += [f"## {heading}", "", *(f"- {claim.sentence(found)}" for claim in claims), ""]
    lines += ["## Not tested", "", *(f"- {text}" for text in UNTESTED), ""]
    lines += ["## The papers' tables", ""]
    for table in TABLES:
        lines += ["##" + beside(table, found).to_markdown()]
    lines += ["## Flags", "", "They are this project's, and say which printed numbers to doubt.", ""]
    lines += [f"- [{number}] {text}" for number, text in FLAGS.items()]
    return "\n".join(lines) + "\n"


def claims_table(found: Measured) -> Table:
    columns = [
        Column("verdict", "verdict"),
        Column("claim", "claim"),
        Column("here", "here, accuracy %"),
        Column("passes", "passes, forward + backward"),
    ]
    rows = []
    for verdict in HEADINGS:
        for claim in CLAIMS:
            if claim.verdict(found) == verdict:
                row = {
                    "verdict": verdict,
                    "claim": claim.said,
                    "here": claim.here(found),
                    "passes": claim.passes(found),
                }
                rows.append(row)
    return Table("Claims", columns, rows, how(found))


def beside(table: PaperTable, found: Measured) -> Table:
    """Each row of the paper's table, and below it the same method here."""
    columns = [Column("row", "training"), Column("who", "figures")]
    columns += [Column(key, _header(key, found)) for key in table.columns]
    columns += [Column("flags", "flags")] if table.flags else []
    rows: list[dict[str, Cell]] = []
    for row in table.rows:
        flags = sorted({flag for key in table.columns for flag in table.flags_of(row.label, key)})
        printed: dict[str, Cell] = dict(zip(table.columns, row.values, strict=True))
        rows.append({"row": row.label, "who": "paper", **printed, "flags": " ".join(f"[{flag}]" for flag in flags)})
        here = found.accuracy.get(row.method)
        if here is not None:
            values: dict[str, Cell] = {key: here.get(key) for key in table.columns}
            rows.append({"row": found.labels[row.method], "who": "here", **values, "flags": ""})
    return Table(table.name, columns, rows, f"Paper: {table.setting}; {table.source}. Here: {found.setting}.")


def _header(key: str, found: Measured) -> str:
    from soatfast.commands.methods import COLUMNS

    return f"{found.headers[key] if key in found.headers else COLUMNS[key].label} %"
