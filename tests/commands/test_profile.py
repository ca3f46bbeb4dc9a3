"""`soatfast profile` runs scripts as Python does, ends with them, and says what was counted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import soatfast
from soatfast.commands import main as cli
from soatfast.commands.profile import ProfileConfig

SCRIPT = """
import os, signal, sys, time
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import beside

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(),
                            torch.nn.Dropout(0.1), torch.nn.Linear(144, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
data = TensorDataset(torch.rand(60, 1, 8, 8), torch.randint(3, (60,)))
done = 0


def end():
    HOW


for epoch in range(2):
    for x, y in DataLoader(data, 10, shuffle=True, num_workers=WORKERS):
        x_adv = x + torch.empty_like(x).uniform_(-0.1, 0.1)
        for _ in range(3):
            x_adv = x_adv.detach().requires_grad_()
            F.cross_entropy(model(x_adv), y).backward()
            x_adv = x_adv + 0.05 * x_adv.grad.sign()
        optimizer.zero_grad()
        F.cross_entropy(model(x_adv.detach()), y).backward()
        try:
            optimizer.step()
        finally:
            torch.save([model.state_dict(), optimizer.state_dict(), torch.get_rng_state()], f"{sys.argv[1]}-{done}.pt")
        done += 1
        if done == 4:
            end()
print("main:", __name__ == "__main__", beside.NAME, sys.argv[1:], done)
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Writes the script, with what it does after four steps, into a folder of its own."""
    monkeypatch.delenv("SOATFAST_DEBUG", raising=False)
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "beside.py").write_text("NAME = 'a module of the script'\n")
    monkeypatch.chdir(tmp_path)

    def write(how="pass", workers=0, text=SCRIPT):
        path = folder / "train.py"
        path.write_text(text.replace("HOW", how).replace("WORKERS", str(workers)))
        return str(path)

    return write


def profile(path, *words, steps=6):
    argv, main = sys.argv, sys.modules["__main__"]
    status = cli.main(["profile", "--steps", str(steps), "--run-dir", "report", path, *words])
    assert sys.argv is argv and sys.modules["__main__"] is main
    return status


def started(*words):
    """The command in a process of its own."""
    path = os.pathsep.join([str(Path(soatfast.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "soatfast", "profile", "--run-dir", "report", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def report():
    with open("report/profile.json") as file:
        return json.load(file)


def test_a_script_is_ended_after_its_steps(script, capsys):
    assert profile(script(), "out", "--debug", "--steps", "1") == 0
    found, out = report(), capsys.readouterr().out
    assert found["script"][1:] == ["out", "--debug", "--steps", "1"] and len(found["steps"]) == 6
    assert all(step["forward"] == 4 and step["unused_gradients"] == 3 for step in found["steps"])
    assert found["typical"]["statistics"] == 4 and found["places"][0].endswith("train.py:26")
    assert found["estimate"]["after"] > 0 and "memory that stays" in out
    assert "ended after 6 optimizer steps" in out and "x_adv = attack(model, x, y)" in out
    assert out == out.replace("main:", "") and os.path.getsize("report/profile.png") > 1000
    assert "by soatfast, same results" in Path("report/profile.md").read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_files_weights_and_random_numbers_are_those_without_it(script, workers):
    path = script(workers=workers)
    assert profile(path, "watched") == 0
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, path, "plain"], check=True, env=environment, capture_output=True)
    for step in range(6):
        plain, watched = (torch.load(f"{name}-{step}.pt") for name in ("plain", "watched"))
        assert torch.equal(plain[2], watched[2])
        for a, b in zip(plain[0].values(), watched[0].values(), strict=True):
            assert torch.equal(a, b)
        for a, b in zip(plain[1]["state"].values(), watched[1]["state"].values(), strict=True):
            assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    assert not os.path.exists("watched-6.pt")


def test_a_script_that_ends_by_itself(script, capsys):
    assert profile(script(), "out", steps=50) == 0
    assert len(report()["steps"]) == 12
    out = capsys.readouterr().out
    assert "main: True a module of the script ['out'] 12" in out and "ended by itself" in out


@pytest.mark.parametrize(("how", "status"), [("sys.exit(3)", 3), ("sys.exit()", 0), ("sys.exit('no more')", 1)])
def test_a_script_that_exits(script, capsys, how, status):
    assert profile(script(how), "out") == status
    assert len(report()["steps"]) == 4 and report()["ended"].startswith("by sys.exit(")
    assert capsys.readouterr().err == ("no more\n" if status == 1 else "")


def test_a_script_that_fails_shows_its_own_traceback(script, capsys):
    path = script("raise ValueError('of the script')")
    assert profile(path, "out") == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback") and error.endswith("ValueError: of the script\n")
    files = {line.split('"')[1] for line in error.splitlines() if line.startswith("  File ")}
    assert files == {path} and len(report()["steps"]) == 4
    assert report()["ended"] == "by ValueError: of the script"


@pytest.fixture
def interruptible():
    """Python's own handler: tests that are started in the background begin with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c(script, capsys, interruptible):
    assert profile(script("os.kill(os.getpid(), signal.SIGINT); time.sleep(5)"), "out") == 130
    assert len(report()["steps"]) == 4 and "ended by Ctrl-C" in capsys.readouterr().out


def test_ctrl_c_from_outside(script, tmp_path):
    path = script("print('now', flush=True); time.sleep(60)", workers=1)
    with started(path, "out") as run:
        assert run.stdout.readline() == "now\n"
        time.sleep(0.2)
        run.send_signal(signal.SIGINT)
        out, error = run.communicate(timeout=120)
    assert run.returncode == 130 and error == "" and "ended by Ctrl-C" in out


def test_a_process_that_the_script_forks_writes_no_report(script):
    path = script("global child; child = os.fork(); child or os._exit(7); os.waitpid(child, 0)")
    assert profile(path, "out", steps=5) == 0
    how = "global child; child = os.fork(); sys.stdout.write('end\\n'); sys.stdout.flush()"
    path = script(how + "\n    if child: os.waitpid(child, 0)")  # the child goes on to the script's end
    with started("--steps", "50", path, "out") as run:
        out, error = run.communicate(timeout=120)
    assert run.returncode == 0 and error == "" and out.count("written to") == 1, error
    assert out.count("end\n") == out.count("main: ") == 2


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("", "by itself"),
        ("import sys; sys.exit(0)", "by sys.exit(0)"),
        ("1 / 0", "by ZeroDivisionError"),
        ("x x", "by SyntaxError"),
    ],
)
def test_a_script_without_a_module(script, capsys, text, how):
    assert profile(script(text=text), "out") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and f"ended {how}" in last and "before it called a module" in last
    assert not os.path.exists("report")


def test_a_script_that_is_not_there(capsys, tmp_path):
    assert cli.main(["profile", str(tmp_path / "none.py")]) == 1
    assert "there is no script" in capsys.readouterr().err
    assert cli.main(["profile", str(tmp_path)]) == 1


@pytest.mark.parametrize(
    "words", [[], ["--steps", "0", "train.py"], ["--stops", "2", "train.py"], ["--steps", "x", "a.py"]]
)
def test_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["profile", *words])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("words", "at"),
    [
        (["profile", "a.py", "--debug"], 1),
        (["--debug", "profile", "--steps", "3", "a.py", "--steps", "4"], 4),
        (["profile", "--steps=3", "--debug", "a.py"], 3),
        (["profile", "--steps"], 2),
        (["profile", "--help"], 2),
        (["train", "profile", "a.py"], 3),
        ([], 0),
    ],
)
def test_where_the_script_begins(words, at):
    assert cli._script(words) == at


def test_a_configuration_needs_a_script():
    with pytest.raises(ValueError, match="a script is needed"):
        ProfileConfig()
