"""`soatfast evaluate --analysis`: curves, scatters of margins and signs of masking; numbers, pictures and a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from soatfast import evaluate as ev
from soatfast.attacks import PGD, SimBA
from soatfast.attacks.named import UL
from soatfast.evaluate.masking import scatter_json
from soatfast.runs import files
from soatfast.runs.errors import UserError
from soatfast.runs.table import Table

_SHARES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of eps, where the curve is measured
_STEP = 0.2  # SimBA's in the SCORPIO paper, whatever the ball


def analyse(
    folder: Path,
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    ball: str,
    title: str,
    fields: dict[str, Any],
    options: dict[str, Any],
    others: Sequence[tuple[str, dict[str, Any]]] = (),
) -> tuple[dict[str, Any], Table]:
    """(every number in JSON's terms, the table of signs); curves.png, plateau.png and masking.png in the folder.

    fields: eps, p and engine of the attacks. options: batch_size, seed and progress. others: (name, analysis) of other
    evaluations, whose curves are drawn on the same pictures.
    """
    eps, p = fields["eps"], fields["p"]
    attack = PGD(**fields, steps=20)
    largest = 1.0 if p == math.inf else math.inf
    radii = sorted({min(share * eps, largest) for share in _SHARES})
    curve = ev.accuracy_against_eps(model, data, attack, radii, label="PGD-20", **options)
    plateau = ev.steps_plateau(model, data, attack=PGD(**fields, step_size=eps / 4), **options)
    for name, mine, words in (("curves", curve, title), ("plateau", plateau, f"{title}, {ball}")):
        shown = [mine, *(_curve_of(other, analysis, name) for other, analysis in others)]
        if others:
            shown[0] = dataclasses.replace(mine, label=f"{mine.label}, {folder.name}")
        ev.curves_picture(folder / f"{name}.png", shown, words, steps=name == "plateau")
    scatters, written = [], {}
    plain = {"batch_size": options["batch_size"], "seed": options["seed"]}
    white = ev.final_margins(model, data, UL(**fields, steps=100), **plain)
    matched = SimBA(eps=eps, p=p, step_size=eps, early_stop=False)
    steps = min(200, data[0][0].numel())
    paper = SimBA(eps=_STEP if p == math.inf else _STEP * math.sqrt(steps), p=p, step_size=_STEP, early_stop=False)
    for name, simba, heading in (("matched", matched, ball), ("paper", paper, f"SimBA: {steps} steps of {_STEP:g}")):
        black = ev.final_margins(model, data, simba, **plain)
        scatter = ev.compare_margins(white.margin, black.margin)
        scatters.append((heading, scatter))
        written[name] = {"black_box": files.describe(simba), **scatter_json(scatter, white.passes, black.passes)}
    ev.scatter_picture(folder / "masking.png", scatters, "PGD-100", "SimBA", title)
    signs = ev.masking_signs(model, data, attack, black_box=matched, **plain)
    numbers = {
        "curves": curve.to_json(),
        "plateau": plateau.to_json(),
        "scatters": written,
        "signs": [dataclasses.asdict(sign) for sign in signs],
    }
    return files.describe(numbers), ev.signs_table(signs)


def _curve_of(other: str, analysis: dict[str, Any], name: str) -> ev.Curve:
    try:
        found = ev.Curve.from_json(analysis[name])
    except (KeyError, ValueError) as error:
        raise UserError(f"{other}: {error}; soatfast evaluate --analysis writes its curves again") from error
    return dataclasses.replace(found, label=f"{found.label}, {other}")
