import json

import pytest

from soatfast.commands import main as cli
from soatfast.commands import tune
from soatfast.commands.tune import TuneConfig, run
from soatfast.gradients.timing import Timing
from soatfast.runs.progress import Progress
from soatfast.train.subject import Subject


def test_writes_a_table_that_names_the_fastest(tmp_path):
    stages = []

    class Bar(Progress):
        def stage(self, *stage):
            stages.append(stage)

    config = TuneConfig(
        run_dir=tmp_path / "run",
        subject=Subject(data="digits8", width=4),
        batch_size=400,  # more than are held out
        engines=("bf16", "eager"),
        steps=1,
        rounds=2,
    )
    table = run(config, Bar())
    first = table.rows[0]["engine"]
    assert f'The fastest is "{first}"' in table.note and "batch 400" in table.note
    assert (tmp_path / "run" / "tune.md").read_text() == table.to_markdown()
    written = json.loads((tmp_path / "run" / "tune.json").read_text())
    assert written["config"]["engines"] == ["bf16", "eager"] and written["device"] == "cpu"
    assert json.loads((tmp_path / "run" / "options.json").read_text())["command"] == "tune"
    assert len(stages) == 2 + 2 * 2


@pytest.mark.parametrize(("gradients", "engine"), [(5999, "eager"), (6001, "compile")])
def test_a_compiled_engine_is_taken_where_the_job_earns_its_compiling_back(gradients, engine, monkeypatch, tmp_path):
    found = [Timing("compile", 5, 2, 1, 1, 30.0), Timing("eager", 10, 1, 1, 1, 0.0)]
    monkeypatch.setattr(tune, "tune", lambda *_, **__: found)
    config = TuneConfig(run_dir=tmp_path, subject=Subject(data="digits8", width=4), gradients=gradients)
    note = run(config).note
    assert 'The fastest is "compile", 2.00 times' in note and f'Take attack or loss with engine="{engine}"' in note
    assert ("earned back after 6000 gradients" in note) == (engine == "eager")


def test_it_says_how_many_batch_norms_are_folded(tmp_path):
    subject = Subject(data="digits8", model="resnet18", width=4)
    config = TuneConfig(run_dir=tmp_path, subject=subject, batch_size=2, engines=("folded",), steps=1, rounds=1)
    assert "20 of 20 batch norms are folded" in run(config).note


@pytest.mark.parametrize(
    ("change", "message"),
    [({"batch_size": 0}, "batch_size must be at least 1"), ({"engines": ("bf8",)}, "engine must be")],
)
def test_bad_options(change, message):
    with pytest.raises(ValueError, match=message):
        TuneConfig(**change)


def test_on_the_command_line(tmp_path, capsys):
    words = ["tune", "--data", "digits8", "--engines", "channels_last", "--rounds", "1", "--steps", "1"]
    assert cli.main([*words, "--batch-size", "8", "--run-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| channels_last" in out and "The fastest is" in out
    assert cli.main([*words, "--run-dir", str(tmp_path), "--weights", str(tmp_path / "none.safetensors")]) == 1
    assert "none.safetensors" in capsys.readouterr().err
