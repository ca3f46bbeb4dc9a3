"""NPZ files and image folders that the tests write: whole, damaged, and of every kind that is told apart."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from soatfast.runs.errors import MissingDataError
from soatfast.train import Batches, load_data
from soatfast.train.data import own
from soatfast.train.data import sets as data

RNG = np.random.default_rng(0)


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def as_bytes(x):
    return (x * 255).round().to(torch.uint8).numpy()


def test_npz_of_two_sets(tmp_path):
    x, t = pixels(6, 1, 4, 5), pixels(3, 1, 4, 5)
    spec = save(tmp_path / "a.npz", x_train=x, y_train=np.arange(6) % 3, x_test=t, y_test=np.array([[2], [0], [4]]))
    found = load_data(spec)
    assert (found.shape, found.classes, found.name) == ((1, 4, 5), 5, spec)
    assert np.array_equal(as_bytes(found.train.tensors[0]), x)
    assert np.array_equal(as_bytes(found.test.tensors[0]), t)
    assert found.train.tensors[0].dtype == torch.float32 and found.train.tensors[1].dtype == torch.int64
    assert found.test.tensors[1].tolist() == [2, 0, 4]


def test_npz_of_one_set_is_split_by_class_and_always_alike(tmp_path):
    x, y = pixels(50, 4, 4), np.repeat(np.arange(5), 10)
    found, again = (load_data(save(tmp_path / "a.npz", x=x, y=y)) for _ in range(2))
    assert found.train.tensors[1].bincount().tolist() == [8] * 5
    assert found.test.tensors[1].bincount().tolist() == [2] * 5
    assert torch.equal(found.test.tensors[0], again.test.tensors[0])
    rows = np.concatenate([as_bytes(part.tensors[0]) for part in (found.train, found.test)])
    assert sorted(map(bytes, rows)) == sorted(map(bytes, x)), "each sample is in one of the two"


def test_tests_alone_leave_nothing_to_train_on(tmp_path):
    for x, y in (("x_test", "y_test"), ("x_adv", "y")):
        found = load_data(save(tmp_path / "a.npz", **{x: pixels(3, 4, 4), y: np.arange(3)}, classes=10, junk="?"))
        assert (len(found.train), len(found.test), found.classes) == (0, 3, 10)
        with pytest.raises(ValueError, match="the training set is empty"):
            Batches(found.train, 2)


@settings(max_examples=60, deadline=None)
@given(
    channels=st.sampled_from([1, 3]),
    size=st.tuples(st.sampled_from([2, 4, 7, 32]), st.sampled_from([2, 5, 28])),
    last=st.booleans(),
    dtype=st.sampled_from([np.uint8, np.float16, np.float32, np.float64]),
    named=st.booleans(),
)
def test_channels_are_found_and_values_kept(tmp_path_factory, channels, size, last, dtype, named):
    x = pixels(4, channels, *size)
    stored = x if dtype == np.uint8 else (x / 255).astype(dtype)
    stored = stored.transpose(0, 2, 3, 1) if last else stored
    extra = {"layout": "NHWC" if last else "NCHW"} if named else {}
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    found = load_data(save(path, x_test=stored, y_test=np.arange(4), **extra))
    assert found.shape == (channels, *size)
    tolerance = 1e-3 if dtype == np.float16 else 1e-6
    assert np.abs(found.test.tensors[0].numpy() - x / 255.0).max() <= tolerance


@given(shape=st.tuples(*[st.integers(1, 6)] * 4))
def test_channels_are_never_guessed(shape):
    could = [shape[axis] in (1, 3) for axis in (1, 3)]
    if could[0] == could[1]:
        with pytest.raises(MissingDataError, match="an array layout, NCHW or NHWC, says it"):
            own.channels_axis(shape)
    else:
        assert own.channels_axis(shape) == ("NCHW" if could[0] else "NHWC")


GOOD = {"x": pixels(4, 4, 4), "y": np.arange(4)}


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"y": None}, r"expected arrays x_train.*got x$"),
        ({"x": None, "y": None, "x_test": GOOD["x"], "y_test": GOOD["y"], "x_train": GOOD["x"]}, "expected arrays"),
        ({"x": pixels(4, 16)}, r"a\.npz, x: expected images .* got \(4, 16\)"),
        ({"x": pixels(4, 2, 4, 4)}, "neither axis 1 nor axis 3"),
        ({"x": pixels(4, 3, 4, 3)}, "both axis 1 and axis 3"),
        ({"x": pixels(4, 3, 4, 3), "layout": "CHW"}, "layout: expected NCHW or NHWC, got CHW"),
        ({"x": pixels(4, 0, 4)}, "at least one pixel"),
        ({"x": pixels(4, 4, 4).astype(np.int32)}, "expected uint8 0..255 or floats in .*got int32"),
        ({"x": pixels(4, 4, 4).astype(np.float32)}, "divide by 255"),
        ({"x": np.linspace(-2, 2, 64, dtype=np.float32).reshape(4, 4, 4)}, "undo the normalisation, which belongs"),
        ({"x": np.full((4, 4, 4), np.nan)}, "got values from nan"),
        ({"x": np.full((4, 4, 4), -1.0)}, "got values from -1 to -1"),
        ({"y": np.arange(3)}, "expected as many y as x, got 3 and 4"),
        ({"x": pixels(0, 4, 4), "y": np.arange(0)}, "got 0 and 0"),
        ({"y": np.arange(4.0)}, "expected whole numbers"),
        ({"y": np.arange(4) - 1}, "expected labels from 0, .*got -1 to 2"),
        ({"y": np.arange(4) * 10**9}, "below 1000000, got 0 to 3000000000"),
        ({"y": np.zeros(4, int)}, "all labels are 0"),
        ({"classes": 3}, "classes: expected one number above the largest label 3"),
        ({"classes": "many"}, "classes: expected one number"),
        ({"x": np.array([{}] * 4, object)}, "x: damaged, truncated or no plain array"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, wrong, text):
    arrays = {name: value for name, value in {**GOOD, **wrong}.items() if value is not None}
    with pytest.raises(MissingDataError, match=text) as caught:
        load_data(save(tmp_path / "a.npz", **arrays))
    assert "a.npz" in str(caught.value)


def test_sets_of_two_shapes(tmp_path):
    spec = save(tmp_path / "a.npz", x_train=pixels(4, 4, 4), y_train=range(4), x_test=pixels(4, 4, 5), y_test=range(4))
    with pytest.raises(MissingDataError, match=r"one shape, got \(1, 4, 4\) and \(1, 4, 5\)"):
        load_data(spec)


class Evil:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_data_file_is_never_unpickled(tmp_path):
    trace = tmp_path / "ran"
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Evil(trace)))
    save(tmp_path / "inside.npz", x=np.array([Evil(trace)] * 2, object), y=np.arange(2))
    for name in ("plain", "inside"):
        with pytest.raises(MissingDataError, match=rf"{name}\.npz.*; pickled objects are not read$"):
            load_data(f"npz:{tmp_path / name}.npz")
        assert not trace.exists()
    pickle.loads(pickle.dumps(Evil(trace)))
    assert trace.exists(), "the file is not as evil as it says"


def test_damaged_and_foreign_npz(tmp_path):
    with pytest.raises(MissingDataError, match="there is no data file"):
        load_data(f"npz:{tmp_path / 'none.npz'}")
    save(tmp_path / "whole.npz", x=pixels(20, 9, 9), y=np.arange(20))
    whole = (tmp_path / "whole.npz").read_bytes()
    damaged = bytearray(whole)
    damaged[300] ^= 255  # in the pixels: only the check sum shows it
    cuts = {str(n): whole[:n] for n in (0, 3, 100, len(whole) // 2, len(whole) - 5)}
    for name, content in {**cuts, "text": b"hello", "flipped": bytes(damaged)}.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(MissingDataError, match=rf"{name}\.npz.*(damaged|expected)"):
            load_data(f"npz:{path}")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(MissingDataError, match="holds one array without a name"):
        load_data(f"npz:{tmp_path / 'one.npy'}")


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


def folder(root, names=("b", "a"), count=5, shape=(6, 4, 3)):
    return {(name, i): write(root / name / f"{i}.png", pixels(*shape)) for name in names for i in range(count)}


def test_image_folder_with_splits(tmp_path):
    written = folder(tmp_path / "train")
    folder(tmp_path / "val", names=("b",), count=2)
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".hidden").mkdir()
    found = load_data(f"imagefolder:{tmp_path}")
    assert (found.shape, found.classes, found.class_names) == ((3, 6, 4), 2, ("a", "b"))
    x, y = found.train.tensors
    assert y.tolist() == [0] * 5 + [1] * 5
    assert np.array_equal(as_bytes(x[6]), written["b", 1].transpose(2, 0, 1))
    assert found.test.tensors[1].tolist() == [1, 1]
    folder(tmp_path / "test", count=1)
    assert len(load_data(f"imagefolder:{tmp_path}").test) == 2, "test comes before val"


def test_image_folder_without_splits_in_memory_and_file_by_file(tmp_path, monkeypatch):
    folder(tmp_path)
    found = load_data(f"imagefolder:{tmp_path}")
    monkeypatch.setattr(data, "_IN_MEMORY", 0)
    lazy = load_data(f"imagefolder:{tmp_path}")
    assert isinstance(lazy.train, own.ImageFiles)
    assert (len(found.train), len(found.test)) == (len(lazy.train), len(lazy.test)) == (8, 2)
    for one, other in ((found.train, lazy.train), (found.test, lazy.test)):
        assert all(torch.equal(a, b) for i in range(len(one)) for a, b in zip(one[i], other[i], strict=True))
    for a, b in zip(*(Batches(part, 3).epoch(1) for part in (found.train, lazy.train)), strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
    some = lazy.first(3, 1)
    assert (len(some.train), len(some.test), len(lazy.first().train)) == (3, 1, 8)
    path = lazy.train.paths[0]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(MissingDataError, match=rf"{path.name} is damaged"):
        lazy.train[0]
    write(path, pixels(2, 2, 3))
    with pytest.raises(MissingDataError, match="changed"):
        lazy.train[0]


def test_grey_images_and_jpeg(tmp_path):
    folder(tmp_path, shape=(6, 4))
    assert load_data(f"imagefolder:{tmp_path}").shape == (1, 6, 4)
    write(tmp_path / "a" / "last.JPEG", pixels(6, 4, 3))
    assert load_data(f"imagefolder:{tmp_path}").shape == (3, 6, 4), "one colour image makes all of three channels"


def test_image_folder_mistakes_are_named(tmp_path):
    def refused(text):
        with pytest.raises(MissingDataError, match=text):
            load_data(f"imagefolder:{tmp_path}")

    with pytest.raises(MissingDataError, match="there is no folder"):
        load_data(f"imagefolder:{tmp_path / 'none'}")
    refused("expected a folder for each class, got none")
    folder(tmp_path, names=("a",))
    refused("at least two classes, got a")
    (tmp_path / "b").mkdir()
    refused(r"b: expected \.png, \.jpg or \.jpeg files, got none")
    odd = tmp_path / "b" / "odd.png"
    write(odd, pixels(6, 5, 3))
    refused(r"odd\.png: expected 4 x 6 pixels as .*0\.png has, got 5 x 6")
    write(odd, np.zeros((6, 4), np.uint16))
    refused(r"odd\.png: expected 8 bits a channel, got an image of mode I")
    Image.fromarray(pixels(6, 4, 3)).save(odd, format="GIF")
    refused(r"odd\.png is damaged or no PNG or JPEG image")
    Image.fromarray(pixels(6, 4, 3)).save(odd, format="PNG")
    odd.write_bytes(odd.read_bytes()[:-30])
    refused(r"odd\.png is damaged or truncated")
    (tmp_path / "train").mkdir()
    refused("expected a folder test or val beside it")
    folder(tmp_path / "train")
    folder(tmp_path / "test", names=("a", "z"))
    refused("expected the classes of .*train, got z")
