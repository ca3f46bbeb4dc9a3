"""A finished comparison's folder, opened again: its options, its data and its models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from soatfast.commands.methods import METHODS
from soatfast.commands.options import nearest
from soatfast.gradients.device import default_device
from soatfast.runs import files
from soatfast.runs.errors import UserError
from soatfast.runs.folder import OPTIONS
from soatfast.train import checkpoint
from soatfast.train.data.sets import Data, load_data
from soatfast.train.models import MODELS
from soatfast.train.subject import make_model


@dataclass(frozen=True)
class Finished:
    """config: the options of the comparison, in JSON's terms. data: what it trained on and held out."""

    folder: Path
    config: dict[str, Any] = field(repr=False)
    data: Data = field(repr=False)

    @property
    def p(self) -> float:
        """The norm of the ball; a folder of an older version says none, and had Linf."""
        return float(self.config.get("p", math.inf))

    def methods(self, wanted: Sequence[str]) -> list[str]:
        """The wanted methods, each once, by default all; UserError for one that it or this version has not."""
        has = self.config["methods"]
        try:
            nearest("method", wanted, METHODS)
        except ValueError as error:
            raise UserError(str(error)) from None
        missing = [name for name in wanted if name not in has]
        if missing:
            raise UserError(f"{self.folder} has {', '.join(has)}, not {', '.join(missing)}")
        unknown = [name for name in wanted or has if name not in METHODS]
        if unknown:
            raise UserError(f"{self.folder}: this version of soatfast has no method {', '.join(unknown)}")
        return list(dict.fromkeys(wanted or has))

    def model(self, name: str, seed: int) -> nn.Module:
        """The trained model on the device at hand, in eval mode; UserError where its weights are not there."""
        weights = self.folder / name / f"seed-{seed}" / checkpoint.WEIGHTS
        if not weights.is_file():
            raise UserError(f"{weights} is not there: {name} was not trained with seed {seed}")
        width = self.config.get("width")  # a folder of an older version has none
        with torch.random.fork_rng(devices=[]):  # the fresh weights, which are not kept, are drawn
            model = make_model(self.config["model"], self.data.shape, self.data.classes, width)
        checkpoint.load_weights(model, weights)
        return model.eval().to(default_device())


def open_comparison(folder: Path, trust: bool = False) -> Finished:
    """What `soatfast compare` wrote into the folder; UserError where it did not, or did not finish.

    A model of ``package.module:factory`` is made by running code that the folder names, which it takes trust=True for.
    """
    path = folder / "results.json"
    if not path.is_file():
        if any(folder.glob(f"*/seed-*/{OPTIONS}")):
            raise UserError(f"{folder} holds an unfinished comparison: the same soatfast compare command resumes it")
        raise UserError(f"{path} is not there: run soatfast compare --run-dir {folder} first")
    results = files.read_json(path)
    config = results.get("config") if isinstance(results, dict) else None
    if not isinstance(config, dict) or not {"methods", "model", "data", "eps"} <= config.keys():
        raise UserError(f"{path} is not what soatfast compare writes: run soatfast compare --run-dir {folder} again")
    if str(config["model"]) not in MODELS and not trust:
        raise UserError(f"{path} names the model {config['model']}, whose code would run; --trust allows it")
    return Finished(folder, config, load_data(config["data"], config.get("data_root"), False))
