"""What ops and attacks cost against batch size, sample size, steps, Krylov dimension and threads, with exponents.

    python -m benchmarks.scaling [--rounds 7] [--only pgd_step]

The exponent is the slope of log t against log n by least squares, over the sizes at which the operands exceed four
times the last cache (ops) or fixed costs no longer show (attacks); the table says from where. The sizes of a line take
turns and their medians count. Freed memory stays (`soatfast.keep_memory`), or page faults would be timed.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import scipy.stats
import torch
import tyro
from torch import Tensor

from benchmarks.plots import scaling_picture
from soatfast import keep_memory, testing
from soatfast.attacks import PGD, SOAE, Attack, FrankWolfe
from soatfast.gradients import count_passes
from soatfast.runs.table import Column, Table
from soatfast.solvers.krylov import gmres
from soatfast.train.models import SmallCNN

Call = Callable[[], object]
EPS = 0.1
FITTED = 3  # points at least
BEYOND = 4  # caches
BATCHES = (1, 4, 16, 64, 128, 256, 384, 512, 768, 1024)
SIDES = (8, 16, 32, 64, 128, 192, 256, 320, 384, 448, 512)


@dataclass(frozen=True)
class Options:
    """How much to measure, and where the table and the picture go."""

    rounds: int = 7
    """Turns of every size; the median counts."""
    cache: int = field(default_factory=lambda: last_cache())
    """Bytes of the last cache; by default what the system says."""
    largest: int = 1024
    """No batch is larger (of an attack: than 8 times it), no side of an image longer than half of it (gmres: twice)."""
    only: tuple[str, ...] = ()
    """Which lines, by their names; none: all."""
    run_dir: Path = Path("runs")
    """scaling.md and scaling.png go there."""


@dataclass(frozen=True)
class Line:
    """One curve.

    name: the op or attack, and what is held fixed.
    variable: what `values` are.
    make: value -> the call to time, checked.
    nbytes: value -> bytes that a call touches; the fit begins where they exceed four times the cache.
    start: value from which on is fitted where nbytes is not given.
    expected: the exponent that it should have, None where no promise is made.
    """

    name: str
    variable: str
    values: Sequence[int]
    make: Callable[[int], Call]
    nbytes: Callable[[int], int] | None = None
    start: int = 1
    expected: float | None = 1.0

    def fitted(self, cache: int) -> list[int]:
        if self.nbytes is None:
            return [value for value in self.values if value >= self.start]
        return [value for value in self.values if self.nbytes(value) >= BEYOND * cache]


@dataclass(frozen=True)
class Fit:
    """t = c n^exponent; error is the exponent's standard error."""

    exponent: float
    error: float
    factor: float = field(repr=False)

    def at(self, value: float) -> float:
        return self.factor * value**self.exponent


def fit(values: Sequence[float], seconds: Sequence[float]) -> Fit:
    """Least squares in log-log. ValueError below three points."""
    if len(values) < FITTED or len(values) != len(seconds):
        raise ValueError(f"expected at least {FITTED} points, got {len(values)} values and {len(seconds)} times")
    found = scipy.stats.linregress([math.log(v) for v in values], [math.log(t) for t in seconds])
    return Fit(float(found.slope), float(found.stderr), math.exp(found.intercept))


def last_cache() -> int:
    """Bytes of the third-level cache, 32 MB where the system does not say."""
    known = os.sysconf("SC_LEVEL3_CACHE_SIZE") if "SC_LEVEL3_CACHE_SIZE" in os.sysconf_names else 0
    return known if known > 0 else 32 * 2**20


def measure(calls: dict[int, Call], rounds: int) -> dict[int, float]:
    """Median seconds of each, in turns; a call of less than a millisecond is timed twenty at a time."""
    inner, times = {}, {value: [] for value in calls}
    for value, call in calls.items():
        call()
        inner[value] = 20 if _seconds(call, 1) < 1e-3 else 1
    for _ in range(rounds):
        for value, call in calls.items():
            times[value].append(_seconds(call, inner[value]))
    return {value: statistics.median(record) for value, record in times.items()}


def _seconds(call: Call, inner: int) -> float:
    start = time.perf_counter()
    for _ in range(inner):
        call()
    return (time.perf_counter() - start) / inner


# ------------------------------------------------------------------------------------------------ what is timed


def _rows(count: int, *shape: int) -> list[Tensor]:
    """Gradients g0 and g1, perturbation v, images x, iterates x_adv: (B, D) each, or of another shape."""
    generator = torch.Generator().manual_seed(0)
    g0, g1, v, x, noise = (torch.rand(count, *shape, generator=generator) for _ in range(5))
    return [g0 - 0.5, g1 - 0.5, EPS * (2 * v - 1), x, (x + EPS * (2 * noise - 1)).clamp_(0, 1)]


def _op(name: str, *args: object) -> Call:
    kernel = getattr(torch.ops.soatfast, name).default
    testing.check(name, kernel, args)
    return partial(kernel, *args)


def frank_wolfe_step(batch: int, size: int) -> Call:
    g0, g1, v, x, _ = _rows(batch, size)
    args = (g0, g1, v, x, math.inf, EPS, None, 0.5, 1.05, False, False, 0.0, 1.0, False)
    return _op("frank_wolfe_step", *args)


def pgd_step(batch: int, size: int) -> Call:
    g, _, _, x, x_adv = _rows(batch, size)
    return _op("pgd_step", x_adv, g, x, math.inf, EPS, None, EPS / 4, None, 0.0, 1.0, False, 31)


def solve(batch: int, size: int, dimension: int) -> Call:
    """gmres of all its steps; the products are kept from a first solve and handed out again."""
    diagonal, b, *_ = _rows(batch, size)
    diagonal += 1.0
    products: list[Tensor] = []

    def product(v: Tensor) -> Tensor:
        products.append(v * diagonal)
        return products[-1]

    def again() -> Tensor:
        left = iter(products)
        return gmres(lambda v: next(left), b, max_dim=dimension, rtol=0.0, rcond=0.0).x

    first = gmres(product, b, max_dim=dimension, rtol=0.0, rcond=0.0)
    residual = (b - first.x * diagonal).norm(dim=1)
    torch.testing.assert_close(residual, first.residual, rtol=0.05, atol=1e-4 * float(b.norm(dim=1).max()))
    torch.testing.assert_close(again(), first.x)
    return again


def attack(made: Attack, batch: int, side: int) -> Call:
    torch.manual_seed(0)
    model = SmallCNN(size=side).eval()
    x, y = torch.rand(batch, 1, side, side), torch.randint(0, 10, (batch,))
    with count_passes(model) as counted:
        found = made(model, x, y)
    assert counted.total() == made.passes(batch), f"{made}: counted {counted}, declared {made.passes(batch)}"
    assert (found - x).abs().max() <= EPS + 1e-6 and found.min() >= 0 and found.max() <= 1, f"{made} left the ball"
    return lambda: made(model, x, y)


def _soae(dimension: int) -> SOAE:
    return SOAE(eps=EPS, steps=1, max_dim=dimension, rtol=0.0, rcond=0.0)


def lines(largest: int) -> list[Line]:
    """All curves; `largest` bounds batches and, halved, the sides of images."""
    batches = [value for value in BATCHES if value <= largest]
    sizes = [3 * side**2 for side in SIDES if side <= largest // 2]
    sides = [side for side in (28, 56, 84, 112, 168, 224) if side <= largest // 2]
    # Samples take turns on a core, and a sample's basis is read twice: it has to be beyond the caches by itself.
    wide = sizes + [3 * side**2 for side in (640, 768, 1024, 1280, 1536, 1792) if side <= 2 * largest]
    crowds = batches + [value for value in (3072, 4096, 6144, 8192) if value <= 8 * largest]
    large, few, dimension = 24576, 32, 10
    pgd, wolfe = PGD(eps=EPS), FrankWolfe(eps=EPS)

    def kept(n: int) -> int:  # by a pass of the small CNN: 18 times its input
        return 18 * 4 * 28**2 * n

    krylov = 4 * 2 * (dimension + 1)  # basis and products
    return [
        Line(
            "frank_wolfe_step, D = 24576", "B", batches, lambda n: frank_wolfe_step(n, large), lambda n: 24 * n * large
        ),
        Line("pgd_step, D = 24576", "B", batches, lambda n: pgd_step(n, large), lambda n: 16 * n * large),
        Line("gmres, D = 3072, m = 10", "B", batches, lambda n: solve(n, 3072, dimension), lambda n: krylov * n * 3072),
        Line("PGD-10, SmallCNN", "B", crowds, lambda n: attack(pgd, n, 28), kept),
        Line("FrankWolfe FE(3), SmallCNN", "B", crowds, lambda n: attack(wolfe, n, 28), kept),
        Line("SOAE, m = 10, SmallCNN", "B", crowds, lambda n: attack(_soae(dimension), n, 28), kept),
        Line("frank_wolfe_step, B = 32", "D", sizes, lambda n: frank_wolfe_step(few, n), lambda n: 24 * n * few),
        Line("pgd_step, B = 32", "D", sizes, lambda n: pgd_step(few, n), lambda n: 16 * n * few),
        Line("gmres, B = 2, m = 10", "D", wide, lambda n: solve(2, n, dimension), lambda n: krylov // 2 * n),
        Line(
            "PGD-10, SmallCNN, B = 32",
            "D",
            [side**2 for side in sides],
            lambda n: attack(pgd, few, math.isqrt(n)),
            start=84**2,
        ),
        Line(
            "FrankWolfe FE(N), SmallCNN, B = 64",
            "passes N + 1",
            (2, 3, 4, 6, 11, 21, 41),
            lambda n: attack(FrankWolfe(eps=EPS, steps=n - 1), 64, 28),
        ),
        Line(
            "SOAE, SmallCNN, B = 64",
            "passes m + 1",
            (2, 3, 5, 9, 17, 33),
            lambda n: attack(_soae(n - 1), 64, 28),
            expected=None,
        ),
        Line(
            "gmres, B = 128, D = 3072",
            "Krylov dimension m",
            (1, 2, 4, 8, 16, 24, 32, 48),
            lambda n: solve(128, 3072, n),
            start=16,
            expected=None,
        ),
    ]


def with_threads(count: int, call: Call) -> Call:
    def run() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        call()
        torch.set_num_threads(before)

    return run


def thread_calls(batch: int) -> dict[str, Call]:
    """What is timed with one thread and with more."""
    return {
        f"frank_wolfe_step, B = {batch}, D = 3072": frank_wolfe_step(batch, 3072),
        f"pgd_step, B = {batch}, D = 3072": pgd_step(batch, 3072),
        f"gmres, B = {batch}, D = 3072, m = 10": solve(batch, 3072, 10),
        f"PGD-10, SmallCNN, B = {batch}": attack(PGD(eps=EPS), batch, 28),
        "PGD-10, SmallCNN, B = 1": attack(PGD(eps=EPS), 1, 28),
    }


# ------------------------------------------------------------------------------------------------ tables


def curves(options: Options) -> tuple[Table, dict[str, dict[str, list[tuple[float, float]]]], dict[str, list]]:
    """(table of the exponents, variable -> name -> (value, ms), name -> the ends of its fitted line)."""
    rows, plots, ends = [], {}, {}
    for line in lines(options.largest):
        if options.only and not any(line.name.startswith(name) for name in options.only):
            continue
        seconds = measure({value: line.make(value) for value in line.values}, options.rounds)
        plots.setdefault(line.variable, {})[line.name] = [(value, 1e3 * t) for value, t in seconds.items()]
        row = {"name": line.name, "variable": line.variable, "range": f"{line.values[0]} to {line.values[-1]}"}
        row["ms"] = f"{1e3 * seconds[line.values[0]]:.3g} to {1e3 * seconds[line.values[-1]]:.3g}"
        chosen = line.fitted(options.cache)
        if len(chosen) >= FITTED:
            found = fit(chosen, [seconds[value] for value in chosen])
            row |= {"from": str(chosen[0]), "exponent": f"{found.exponent:.3f} ± {found.error:.3f}"}
            if line.expected is not None:
                row["held"] = "yes" if abs(found.exponent - line.expected) <= 0.1 else "no"
            ends[line.name] = [(value, 1e3 * found.at(value)) for value in (chosen[0], chosen[-1])]
        rows.append(row)
        print(" ".join(f"{key}: {value};" for key, value in row.items()), flush=True)
    columns = [
        Column("name", "what"),
        Column("variable", "against"),
        Column("range", "values"),
        Column("ms", "ms"),
        Column("from", "fitted from"),
        Column("exponent", "exponent"),
        Column("held", "1.0 ± 0.1"),
    ]
    note = (
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, float32, medians of {options.rounds}; "
        f"fits of ops begin beyond {BEYOND} times a cache of {options.cache / 2**20:.0f} MB; ± is the standard error."
    )
    return Table("Scaling", columns, rows, note), plots, ends


def threads(options: Options) -> Table:
    """Time with one thread over that with as many as there are cores, and powers of two between."""
    cores = os.cpu_count() or 1
    counts = [1, *(2**k for k in range(1, cores.bit_length()) if 2**k <= cores)]
    rows = []
    for name, call in thread_calls(min(128, options.largest)).items():
        seconds = measure({count: with_threads(count, call) for count in counts}, options.rounds)
        ratios = {str(count): f"{seconds[1] / seconds[count]:.2f}" for count in counts[1:]}
        rows.append({"name": name, "one": 1e3 * seconds[1], **ratios})
    columns = [Column("name", "what"), Column("one", "one thread, ms", 2)]
    columns += [Column(str(count), f"{count} threads, times as fast") for count in counts[1:]]
    return Table("Threads", columns, rows)


def main(options: Options) -> None:
    keep_memory()
    table, plots, ends = curves(options)
    parts = [table.to_markdown()] if options.only else [table.to_markdown(), threads(options).to_markdown()]
    text = "\n".join(parts)
    print(text)
    options.run_dir.mkdir(parents=True, exist_ok=True)
    (options.run_dir / "scaling.md").write_text(text)
    if plots:
        scaling_picture(options.run_dir / "scaling.png", plots, ends)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
