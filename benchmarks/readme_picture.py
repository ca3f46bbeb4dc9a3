"""The picture of the README: `python -m benchmarks.readme_picture` draws the first table of docs/measurements.md.

Robustness against the time it costs to train. Made for the width of a phone, so few words and large ones.
"""

from __future__ import annotations

from pathlib import Path

from soatfast.runs.figures import clear_axes, figure

DOCS = Path(__file__).resolve().parents[1] / "docs"
_COLOURS = {"memory": "#0072b2", "SCORPIO": "#009e73"}
_BELOW = ("PGD-4",)  # whose label would lie on another point


def rows(text: str) -> list[tuple[str, float, float, float]]:
    """(training, time over PGD-10's, AutoAttack accuracy %, its spread) of the README's table.

    >>> rows("| training | attack passes | time | clean % | AutoAttack % |\\n|---|---:|---:|---:|---:|\\n"
    ...      "| PGD-4 | 4 | 0.47 | 95.7 ± 0.6 | 71.5 ± 2.4 |\\n")
    [('PGD-4', 0.47, 71.5, 2.4)]
    """
    found = []
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if "attack passes" in line and line.startswith("|"))
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, _, time, _, robust = (cell.strip() for cell in line.split("|")[1:-1])
        mean, spread = (float(part) for part in robust.split("±"))
        found.append((name, float(time), mean, spread))
    return found


def draw(path: Path, table: list[tuple[str, float, float, float]]) -> None:
    drawing = figure((6.4, 4.6))
    axes = drawing.add_subplot()
    for name, time, mean, spread in table:
        colour = next((colour for word, colour in _COLOURS.items() if word in name), "#555555")
        axes.errorbar(time, mean, spread, fmt="o", color=colour, markersize=11, capsize=4, linewidth=1.5)
        below, right = name in _BELOW, time > 0.7
        axes.annotate(
            name,
            (time, mean),
            (-12 if right else 12, -22 if below else 6),
            textcoords="offset points",
            fontsize=15,
            color=colour,
            ha="right" if right else "left",
        )
    axes.set_xlim(0, 1.08)
    axes.set_ylim(min(mean - spread for *_, mean, spread in table) - 3, 92)
    axes.set_xlabel("training time, PGD-10 = 1", fontsize=15)
    axes.set_ylabel("accuracy under AutoAttack, %", fontsize=15)
    axes.tick_params(labelsize=14)
    clear_axes(axes)
    drawing.savefig(path, format="png", dpi=200)


if __name__ == "__main__":
    target = DOCS / "images" / "robustness.png"
    draw(target, rows((DOCS / "measurements.md").read_text(encoding="utf-8")))
    print(f"written to {target}")
