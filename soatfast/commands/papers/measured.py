"""What a comparison measured, read from its results.json: accuracies of every seed, and counted passes."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from soatfast.ops.arguments import norm_name
from soatfast.runs.table import mean_and_spread


@dataclass(frozen=True)
class Cost:
    """Network passes a sample; a stacked batch of 2B counts twice, backwards are those to input and parameters."""

    forward: float
    backward: float

    def __str__(self) -> str:
        return f"{self.forward:.3g} + {self.backward:.3g}"


@dataclass(frozen=True)
class Measured:
    """accuracy: method -> attack -> percent, a value a seed. training: of one step. attacks: of one attacked sample."""

    setting: str
    seeds: int
    labels: dict[str, str]
    headers: dict[str, str]
    accuracy: dict[str, dict[str, list[float]]]
    training: dict[str, Cost]
    attacks: dict[str, Cost]

    def label(self, method: str) -> str:
        """The first word or two of a method's label: `SCORPIO FE(3)` of "SCORPIO FE(3), the paper's"."""
        return self.labels[method].partition(",")[0]

    def shown(self, method: str, attack: str) -> str:
        """Mean ± sample standard deviation, in percent."""
        mean, spread = mean_and_spread(self.accuracy[method][attack])
        return f"{mean:.1f}" if spread is None else f"{mean:.1f} ± {spread:.1f}"


def measured(results: dict[str, Any]) -> Measured:
    """The figures of a results.json."""
    config, methods = results["config"], results["methods"]
    norm = norm_name(float(config["p"]))
    headers = {column["key"]: column["header"].removesuffix(" %") for column in results["table"]["columns"]}
    accuracy = {
        name: {key: [100 * run["evaluation"][key]["accuracy"] for run in method["runs"]] for key in results["attacks"]}
        for name, method in methods.items()
    }
    batch = min(config["train"]["batch_size"], config["train_samples"] or math.inf)
    training = {name: _training(method["runs"][0]["training"]["passes"], batch) for name, method in methods.items()}
    every = [run["evaluation"] for method in methods.values() for run in method["runs"]]
    attacks = {key: cost for key in results["attacks"] if (cost := _attack(every, key)) is not None}
    return Measured(
        setting=f"{config['model']} on {config['data']}, {norm} {config['eps']:g}, {config['train']['epochs']} epochs",
        seeds=config["seeds"],
        labels={name: method["label"] for name, method in methods.items()},
        headers={key: headers[key] for key in results["attacks"]},
        accuracy=accuracy,
        training=training,
        attacks=attacks,
    )


def _training(passes: dict[str, int], batch: float) -> Cost:
    backward = passes["backward_input_samples"] + passes["backward_parameters_samples"]
    return Cost(passes["forward_samples"] / batch, backward / batch)


def _attack(evaluations: list[dict[str, Any]], key: str) -> Cost | None:
    """Mean over the models of what the attack alone took: without the predictions before it and after it."""
    costs = []
    for evaluation in evaluations:
        one, samples = evaluation[key], evaluation["clean"]["passes"]["forward_samples"]
        if one["attacked"]:
            forward = one["passes"]["forward_samples"] - samples - one["attacked"]
            costs.append((forward / one["attacked"], one["passes"]["backward_input_samples"] / one["attacked"]))
    if not costs:
        return None
    forward, backward = zip(*costs, strict=True)
    return Cost(statistics.fmean(forward), statistics.fmean(backward))
