"""The papers' own accuracies, in percent, and what makes some of them doubtful.

SCORPIO is arXiv 2009.04923, SOAE (and its training, SOAT) arXiv 2207.01396. The HAAT report prints no accuracies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

FLAGS: dict[int, str] = {
    1: "Adversarial training on MNIST normally keeps more than 95 % clean accuracy; 80 to 89 % looks like another data "
    "set. SOAR's 87.95 and 56.06 (clean, PGD) and 67.15 (FGSM) are in the CIFAR-10 table as well. No target.",
    2: "SOAT's AutoAttack figure, 39.10, is below PGD training's 49.10; the text says that it leads under AutoAttack.",
    3: "The paper says that no extra storage is needed; its Krylov basis has m + 1 vectors the size of the image.",
    4: "The PSNR values are not the usual ones at any radius used: the whole of 8/255 is 30.07 dB.",
    5: "AutoAttack is below SOAE for standard training and SOAT too (45.98 < 49.27), so that SOAE leads only on PGD, "
    "TRADES, STN and SCORPIO.",
    6: "AutoAttack, an ensemble in the same ball, is 2 to 10 points weaker than one run of SOAE: unequal budgets, it "
    "seems. The radius and norm of SOAE are not legible.",
    7: "SOAR loses more to FGSM (55.70) than to PGD (56.06): gradient masking, or figures taken from the SOAR paper.",
    8: "The scatter of margins (12 against 29 points) compares two attacks with different balls.",
    9: "Table 1 attacks by UM, and its adversarial training is PGD-3; tables 2 and 7 train by PGD-10. They do not "
    "compare across tables.",
}
"""Plausibility flags: number -> what is doubtful. They are this project's, not the papers'."""


@dataclass(frozen=True)
class Figure:
    """One printed number: `value` percent in (table, row, column) of `source`, with the numbers of its flags."""

    table: str
    row: str
    column: str
    value: float
    flags: tuple[int, ...]
    source: str


@dataclass(frozen=True)
class Row:
    """A training method as the paper names it, its key in METHODS, and a value a column."""

    label: str
    method: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class PaperTable:
    """columns are keys of ATTACKS. flags: (number, row, column) it is about, "" for all of them."""

    name: str
    setting: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    flags: tuple[tuple[int, str, str], ...] = ()

    def flags_of(self, row: str, column: str) -> tuple[int, ...]:
        """The flags of one number."""
        found = {number for number, rows, columns in self.flags if rows in ("", row) and columns in ("", column)}
        return tuple(sorted(found))

    def figures(self) -> Iterator[Figure]:
        """Every number of the table."""
        for row in self.rows:
            for column, value in zip(self.columns, row.values, strict=True):
                yield Figure(self.name, row.label, column, value, self.flags_of(row.label, column), self.source)


_SCORPIO, _SOAE = "arXiv 2009.04923", "arXiv 2207.01396"


def _table(
    name: str, setting: str, source: str, columns: str, body: str, flags: tuple[tuple[int, str, str], ...] = ()
) -> PaperTable:
    """Rows are written `label | method | values`, one a line."""
    rows = []
    for line in body.strip().splitlines():
        label, method, values = (part.strip() for part in line.split("|"))
        rows.append(Row(label, method, tuple(float(value) for value in values.split())))
    return PaperTable(name, setting, source, tuple(columns.split()), tuple(rows), flags)


TABLES: tuple[PaperTable, ...] = (
    _table(
        "SCORPIO, table 1",
        "CIFAR-10, L2 0.5, fine-tuned from standard training",
        _SCORPIO,
        "clean um um20 um40 um100",
        """
        SCORPIO FE N=1 | scorpio-fe1 | 89.42 66.35 66.06 65.98 65.97
        SCORPIO CD N=1 | scorpio-cd1 | 88.16 66.03 65.83 65.74 65.72
        AT PGD-3       | pgd3        | 87.62 63.19 62.89 62.81 62.81
        """,
        ((9, "", ""),),
    ),
    _table(
        "SCORPIO, table 2a",
        "CIFAR-10, L2 0.5",
        _SCORPIO,
        "clean ul tl um tm",
        """
        Standard       | standard         | 94.5  6.9 27.3  6.6 29.4
        Gradient Reg   | gradient-penalty | 89.2 32.3 70.2 32.2 66.9
        CURE           | cure             | 88.3 54.6 81.5 53.7 79.5
        SCORPIO FE N=3 | scorpio-ball     | 88.7 66.9 85.3 66.8 83.8
        SCORPIO CD N=3 | scorpio-cd       | 89.9 66.4 85.4 66.2 83.8
        AT PGD-10      | pgd10            | 89.0 68.8 85.4 68.8 84.6
        """,
    ),
    _table(
        "SCORPIO, table 2b",
        "CIFAR-10, Linf 8/255",
        _SCORPIO,
        "clean ul tl um tm",
        """
        Standard       | standard         | 94.5  0.2 13.2  0.3 14.4
        Gradient Reg   | gradient-penalty | 82.5  6.5 40.0  7.1 34.8
        CURE           | cure             | 81.1 23.0 60.7 22.4 54.3
        SCORPIO FE N=3 | scorpio-ball     | 82.7 50.5 75.2 48.7 73.0
        SCORPIO CD N=3 | scorpio-cd       | 83.3 49.2 74.6 47.2 71.9
        AT PGD-10      | pgd10            | 81.7 51.5 75.1 49.9 72.7
        """,
    ),
    _table(
        "SCORPIO, table 7a",
        "SVHN, L2 0.5",
        _SCORPIO,
        "clean ul tl um tm",
        """
        Standard       | standard         | 97.0 21.2 45.6 20.7 45.8
        Gradient Reg   | gradient-penalty | 95.0 49.1 76.0 48.2 74.3
        CURE           | cure             | 94.7 65.5 85.6 63.9 84.3
        SCORPIO FE N=3 | scorpio-ball     | 94.0 73.7 89.1 71.3 87.7
        AT PGD-10      | pgd10            | 95.3 72.9 89.0 71.7 88.2
        """,
    ),
    _table(
        "SCORPIO, table 7b",
        "SVHN, Linf 8/255",
        _SCORPIO,
        "clean ul tl um tm",
        """
        Standard       | standard         | 97.0  2.4 18.8  2.4 20.5
        Gradient Reg   | gradient-penalty | 91.4  7.8 30.7  8.1 28.8
        CURE           | cure             | 91.6 33.5 59.9 30.9 56.1
        SCORPIO FE N=3 | scorpio-ball     | 92.2 56.9 77.4 52.2 73.7
        AT PGD-10      | pgd10            | 92.8 56.4 77.0 52.5 74.2
        """,
    ),
    _table(
        "SOAE, table I, ResNet18",
        "MNIST, Linf (radius not legible)",
        _SOAE,
        "clean fgsm pgd20 autoattack asod soae",
        """
        STD     | standard     | 97.78  0.07  0.06  0.01  0.01  0.01
        PGD     | pgd7         | 86.34 63.40 55.89 49.10 20.20 30.85
        TRADES  | trades       | 85.98 65.05 53.87 40.27 39.76 38.32
        SOAR    | soar         | 87.95 67.15 56.06 18.25 29.12 20.14
        STN     | stn          | 86.26 66.77 54.90 29.81 48.74 25.25
        SCORPIO | scorpio-ball | 87.92 68.18 58.44 41.01 47.62 39.03
        SOAT    | soat-newton  | 87.62 70.89 60.13 39.10 49.45 47.53
        """,
        ((1, "", ""), (2, "SOAT", "autoattack"), (2, "PGD", "autoattack")),
    ),
    _table(
        "SOAE, table I, WideResNet",
        "MNIST, Linf (radius not legible)",
        _SOAE,
        "clean fgsm pgd20 autoattack asod soae",
        """
        STD     | standard     | 99.90  0.08  0.05  0.01  0.02  0.01
        PGD     | pgd7         | 84.55 66.50 57.12 44.51 21.76 29.84
        TRADES  | trades       | 80.56 68.32 56.49 42.79 41.37 32.15
        SOAR    | soar         | 86.99 68.64 57.80 19.13 33.90 27.60
        STN     | stn          | 87.42 66.81 53.21 33.91 46.25 30.45
        SCORPIO | scorpio-ball | 89.01 67.43 55.02 39.88 43.69 38.24
        SOAT    | soat-newton  | 85.23 69.98 57.73 45.22 45.96 43.47
        """,
        ((1, "", ""),),
    ),
    _table(
        "SOAE, table II, ResNet18",
        "CIFAR-10, Linf (radius not legible)",
        _SOAE,
        "clean fgsm pgd20 autoattack asod soae",
        """
        STD     | standard     | 92.54 30.59  0.14  0.05  0.12  0.08
        PGD     | pgd7         | 80.64 50.96 42.86 40.59 40.32 38.19
        TRADES  | trades       | 85.61 53.06 45.38 41.34 43.49 40.26
        SOAR    | soar         | 87.95 55.70 56.06 19.66 45.08 35.45
        STN     | stn          | 83.03 54.83 52.34 38.00 48.15 37.98
        SCORPIO | scorpio-ball | 86.58 55.07 49.56 39.27 46.82 38.75
        SOAT    | soat-newton  | 85.47 56.24 54.72 45.98 47.73 49.27
        """,
        (
            *((1, "SOAR", "clean"), (1, "SOAR", "pgd20"), (7, "SOAR", "fgsm"), (7, "SOAR", "pgd20")),
            *((5, "STD", "soae"), (5, "SOAT", "soae"), (6, "", "autoattack")),
        ),
    ),
    _table(
        "SOAE, table II, WideResNet",
        "CIFAR-10, Linf (radius not legible)",
        _SOAE,
        "clean fgsm pgd20 autoattack asod soae",
        """
        STD     | standard     | 93.79 44.77  0.03  0.01  0.13  0.09
        PGD     | pgd7         | 81.83 51.15 43.66 42.62 41.86 39.14
        TRADES  | trades       | 86.54 54.66 45.70 43.70 44.22 41.21
        SOAR    | soar         | 88.02 67.15 57.92 20.41 47.31 39.35
        STN     | stn          | 84.11 58.59 53.16 38.95 49.27 38.02
        SCORPIO | scorpio-ball | 86.99 61.37 50.50 41.28 47.33 40.11
        SOAT    | soat-newton  | 86.38 62.33 57.67 47.53 50.50 51.46
        """,
        ((1, "SOAR", "fgsm"), (5, "STD", "soae"), (5, "SOAT", "soae"), (6, "", "autoattack")),
    ),
    _table(
        "SOAE, table III",
        "ImageNet-100, Linf (radius not legible)",
        _SOAE,
        "clean pgd20 autoattack soae",
        """
        STD    | standard    | 91.33  0.02  0.00  0.00
        PGD    | pgd7        | 78.26 55.37 48.66 40.31
        TRADES | trades      | 82.91 56.09 47.25 40.05
        SOAR   | soar        | 80.80 61.68 45.12 42.35
        SOAT   | soat-newton | 84.50 62.84 52.99 47.90
        """,
        ((6, "", "autoattack"),),
    ),
)
