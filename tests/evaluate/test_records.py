"""The file of an evaluation: damaged in every way, never unpickled, whole or not there."""

import json
import os
import shutil

import numpy as np
import pytest

from soatfast.attacks import FGSM, PGD
from soatfast.evaluate import load_suite, suite
from soatfast.evaluate import records as module
from soatfast.runs.errors import RunFolderError
from tests.nets import batch, relu_net

ATTACKS = {"fgsm": FGSM(eps=0.1), "pgd": PGD(eps=0.1, steps=2)}


@pytest.fixture
def net():
    return relu_net()


@pytest.fixture
def loader():
    x, y = batch(n=12)
    return list(zip(x.split(5), y.split(5), strict=True))


@pytest.fixture
def file(net, loader, tmp_path):
    suite(net, loader, ATTACKS, folder=tmp_path)
    return tmp_path / "evaluation.npz"


def test_it_is_plain_numpy(file):
    with np.load(file, allow_pickle=False) as content:
        assert content["label"].shape == (12,) and content["sizes"].tolist() == [5, 5, 2]
        assert content["2.margin"].dtype == np.float32
        meta = json.loads(str(content["meta"]))
    assert meta["finished"] and list(meta["options"]["attacks"]) == ["clean", "fgsm", "pgd"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_truncated(net, loader, file, share):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    for act in (lambda: load_suite(file.parent), lambda: suite(net, loader, ATTACKS, folder=file.parent)):
        with pytest.raises(RunFolderError, match=r"evaluation.npz is damaged, truncated or no file of an evaluation"):
            act()
    assert suite(net, loader, ATTACKS, folder=file.parent, resume=False).worst_case >= 0


def test_a_flipped_byte_is_noticed_or_of_no_account(file):
    whole, expected = file.read_bytes(), load_suite(file.parent)
    noticed = 0
    for place in range(0, len(whole), 13):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = load_suite(file.parent)
        except RunFolderError as error:
            assert "evaluation.npz" in str(error)
            noticed += 1
        else:
            for name, result in expected.results.items():
                assert str(found[name]) == str(result) and np.array_equal(found[name].margin, result.margin)
                assert np.array_equal(found[name].norm, result.norm) and np.array_equal(found.label, expected.label)
    assert noticed > 0.5 * len(whole) / 13


def test_nothing_is_unpickled(file):
    bait = file.parent / "ran"

    class Bait:
        def __reduce__(self):
            return (os.mkdir, (str(bait),))

    with np.load(file) as content:
        arrays = {name: content[name] for name in content.files}
    for name in ("label", "meta"):
        np.savez(file, **{**arrays, name: np.array([Bait()], dtype=object)})
        with pytest.raises(RunFolderError, match=r"evaluation.npz is damaged"):
            load_suite(file.parent)
    file.write_bytes(b"\x80\x04pickle")
    with pytest.raises(RunFolderError, match=r"evaluation.npz is damaged"):
        load_suite(file.parent)
    assert not bait.exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"label": np.zeros(11, np.int64)}, "damaged: the arrays label do not"),
        ({"1.margin": np.zeros(3, np.float32)}, r"damaged: the arrays 1\.margin do not"),
        ({"2.costs": None}, "damaged: '2.costs'"),
        ({"meta": np.array("{}")}, "damaged, truncated or no file"),
        (
            {"meta": np.array('{"version": 99}')},
            r"is of version 99; this soatfast reads version 3; .*--fresh\) evaluates anew",
        ),
        ({"meta": np.array('{"version": 1}')}, "is of version 1; this soatfast reads version 3"),
        ({"meta": np.array('{"version": 3}')}, "damaged: 'options'"),
        ({"1.psnr": None}, "damaged: '1.psnr'"),
    ],
)
def test_other_contents(file, change, text):
    with np.load(file) as content:
        arrays = {name: content[name] for name in content.files} | change
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(RunFolderError, match=text):
        load_suite(file.parent)


def test_a_write_that_is_cut_off_leaves_the_last_whole_file(net, loader, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    real, count = os.replace, [0]

    def cut(source, target):
        count[0] += 1
        if count[0] > 2:
            source.write_bytes(source.read_bytes()[:100])
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        suite(net, loader, ATTACKS, folder=tmp_path)
    monkeypatch.setattr(os, "replace", real)
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.npz"}
    with pytest.raises(RunFolderError, match="unfinished evaluation"):
        load_suite(tmp_path)
    found, expected = suite(net, loader, ATTACKS, folder=tmp_path), suite(net, loader, ATTACKS)
    assert np.array_equal(found["pgd"].margin, expected["pgd"].margin)
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.npz", "evaluation.md"}


def test_reading_writes_nothing(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    shutil.copy(file, folder / file.name)
    before = (folder / file.name).stat().st_mtime_ns
    load_suite(folder)
    assert [path.name for path in folder.iterdir()] == [file.name]
    assert (folder / file.name).stat().st_mtime_ns == before
