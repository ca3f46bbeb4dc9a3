"""No space left: each command says so in one line, leaves nothing empty or half written, and goes on when there is."""

import numpy as np
import pytest

from soatfast.commands import main as cli
from tests.disk import full_disk, leftovers

SMALL = 600  # bytes: room for a lock, for nothing that a command leaves


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, and a training of it."""
    folder = tmp_path_factory.mktemp("disk")
    rng = np.random.default_rng(0)
    np.savez(folder / "own.npz", x=rng.random((40, 8, 8)).astype(np.float32), y=np.arange(40) % 2)
    assert cli.main(training(folder, folder / "trained")) == 0
    return folder


def training(folder, run_dir):
    words = ["train", "--run-dir", str(run_dir), "--data", f"npz:{folder / 'own.npz'}"]
    return [*words, "--epochs", "1", "--batch-size", "8", "--method", "standard"]


def command(name, folder):
    subject = ["--data", f"npz:{folder / 'own.npz'}", "--weights", str(folder / "trained" / "model.safetensors")]
    one = {"attack": ["--attack", "fgsm"], "evaluate": ["--steps", "1"]}
    if name == "train":
        return training(folder, folder / "train"), folder / "train"
    if name == "report":
        return ["report", "--run-dir", str(folder / "trained")], folder / "trained"
    return [name, "--run-dir", str(folder / name), *subject, *one[name]], folder / name


@pytest.mark.parametrize("name", ["train", "attack", "evaluate", "report"])
@pytest.mark.parametrize("size", [SMALL, 3000])
def test_one_line_and_nothing_left(place, name, size, capsys):
    words, folder = command(name, place)
    capsys.readouterr()
    with full_disk(size):
        assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cannot be written: " in error and "MB are free there" in error
    assert not leftovers(folder), folder
    if size > SMALL:
        assert cli.main(words) == 0 and not leftovers(folder)
