"""Presets set defaults; options that are given count over them."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch

from soatfast.commands import main as cli
from soatfast.commands.compare import CompareConfig
from soatfast.commands.presets import TABLES_ATTACKS, TABLES_METHODS, defaults, fast_recipe, tables
from soatfast.commands.train import TrainingConfig


def parsed(*words: str) -> CompareConfig:
    with mock.patch("soatfast.commands.compare.run", return_value=None) as called:
        assert cli.main(["compare", *words]) == 0
    return called.call_args.args[0]


@pytest.mark.parametrize(
    "words", [("--preset", "tables"), ("--preset=tables",), ("--epochs", "15", "--preset", "tables")]
)
def test_tables(words):
    config = parsed(*words)
    assert config == tables()
    assert (config.preset, config.seeds, config.run_dir) == ("tables", 3, Path("runs/tables"))
    assert (config.methods, config.attacks) == (TABLES_METHODS, TABLES_ATTACKS)


def test_given_options_count_over_the_preset():
    config = parsed("--seeds", "1", "--preset", "tables", "--methods", "pgd10", "haat", "--epochs", "3", "--eps", "0.1")
    assert (config.seeds, config.methods, config.train.epochs, config.eps) == (1, ("pgd10", "haat"), 3, 0.1)
    assert config.attacks == TABLES_ATTACKS


def test_without_a_preset_nothing_changes():
    assert parsed() == CompareConfig() == parsed("--preset", "demo") == defaults([])


@pytest.mark.parametrize(("gpu", "model"), [(True, "resnet18"), (False, "small-cnn")])
def test_a_gpu_trains_a_resnet(gpu, model):
    with mock.patch.object(torch.cuda, "is_available", lambda: gpu):
        assert tables().model == model


@pytest.mark.parametrize(
    "words", [("--preset", "magic"), ("--preset",), ("--preset", "tables", "--p", "2", "--eps", "2")]
)
def test_conflicts_and_unknown_presets_are_usage_errors(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", *words])
    assert stop.value.code == 2
    if "--p" in words:
        assert "haat needs p = inf" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_the_fast_preset_of_train_and_options_over_it():
    with mock.patch("soatfast.commands.train.run", return_value=None) as called:
        assert cli.main(["train", "--preset", "fast", "--epochs", "2", "--data", "digits8"]) == 0
    config = called.call_args.args[0]
    assert (config.method, config.eps, config.run_dir) == ("replay-wide", 8 / 255, Path("runs/fast"))
    assert (config.subject.model, config.subject.data) == ("fast", "digits8")
    assert (config.train.epochs, config.train.average, config.train.schedule) == (2, 0.995, "triangle")
    with mock.patch("soatfast.commands.train.run", return_value=None) as called:
        assert cli.main(["train"]) == 0
    assert called.call_args.args[0] == TrainingConfig()


@pytest.mark.parametrize(("quick", "precision"), [(True, "bf16"), (False, "no")])
def test_the_fast_recipe_takes_bfloat16_where_the_hardware_has_it(quick, precision):
    with (
        mock.patch.object(torch.cuda, "is_available", lambda: False),
        mock.patch.object(torch.cpu, "_is_avx512_bf16_supported", lambda: quick),
    ):
        assert fast_recipe().precision == precision
