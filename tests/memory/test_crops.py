"""CropFlip against padding, slicing and flipping one image at a time, and against a map of where each pixel went."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import default_collate

from soatfast.memory.crops import CropFlip

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8)


@st.composite
def cases(draw):
    """A CropFlip, moves of it (B, 3), and an image shape; the padding is often larger than the image."""
    batch, channels = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    augment = CropFlip(padding=draw(st.integers(0, 9)), flip=True)
    shift, flipped = st.integers(-augment.padding, augment.padding), st.integers(0, 1)
    moves = draw(st.lists(st.tuples(shift, shift, flipped), min_size=batch, max_size=batch))
    return augment, torch.tensor(moves, dtype=torch.int64).view(batch, 3), (batch, channels, height, width)


def random_bits(shape, dtype, seed=0):
    """Any bit patterns: NaN, infinities and -0 too."""
    size = torch.empty(0, dtype=dtype).element_size()
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-128, 128, (*shape[:-1], shape[-1] * size), dtype=torch.int8, generator=generator)
    return bits.view(dtype)


def bits(x):
    return x.contiguous().view(torch.int8)


def one_by_one(augment, images, moves):
    out = torch.zeros_like(images)
    for k, (dy, dx, flipped) in enumerate(moves.tolist()):
        _, height, width = images[k].shape
        top, left = dy + augment.padding, dx + augment.padding
        crop = F.pad(images[k], (augment.padding,) * 4)[:, top : top + height, left : left + width]
        out[k] = crop.flip(2) if flipped else crop
    return out


def pixel_numbers(shape):
    """(B, 1, H, W): 1..HW in every image, so that a moved image says where each pixel went, and 0 says padding."""
    batch, _, height, width = shape
    return torch.arange(1, height * width + 1, dtype=torch.float64).view(1, 1, height, width).repeat(batch, 1, 1, 1)


def taken_back(moved, came_from):
    """The oracle of undo: put each moved pixel where it came from, one by one."""
    v, seen = torch.zeros_like(moved), torch.zeros(len(moved), 1, *moved.shape[2:], dtype=torch.bool)
    height, width = moved.shape[2:]
    for k in range(len(moved)):
        for i in range(height):
            for j in range(width):
                number = int(came_from[k, 0, i, j]) - 1
                if number >= 0:
                    v[k, :, number // width, number % width] = moved[k, :, i, j]
                    seen[k, 0, number // width, number % width] = True
    return v, seen


@given(cases(), st.booleans())
def test_apply_is_pad_slice_and_flip(case, channels_last):
    augment, moves, shape = case
    images = torch.rand(shape, dtype=torch.float64)
    expected = one_by_one(augment, images, moves)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment.apply(images, moves), expected)


@given(cases())
def test_undo_puts_every_pixel_back(case):
    augment, moves, shape = case
    came_from = one_by_one(augment, pixel_numbers(shape), moves)
    perturbation = torch.rand(shape) - 0.5  # found in the moved frame, so no image of apply
    v, seen = augment.undo(perturbation, moves)
    expected, expected_seen = taken_back(perturbation, came_from)
    assert torch.equal(seen, expected_seen)
    assert torch.equal(v, expected)


@given(cases(), st.sampled_from(DTYPES))
def test_there_and_back_is_bit_exact_where_seen(case, dtype):
    augment, moves, shape = case
    v = random_bits(shape, dtype)
    moved = augment.apply(v, moves)
    back, seen = augment.undo(moved, moves)
    assert moved.dtype == back.dtype == dtype
    assert seen.shape == (shape[0], 1, *shape[2:])
    wide = seen.expand(shape).repeat_interleave(v.element_size(), 3)  # a bool for every byte
    assert torch.equal(bits(back), torch.where(wide, bits(v), 0))


@given(cases())
def test_undo_is_the_adjoint_of_apply(case):
    augment, moves, shape = case
    v = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    w = torch.rand(shape, dtype=torch.float64)
    (grad,) = torch.autograd.grad((augment.apply(v, moves) * w).sum(), v)
    assert torch.equal(grad, augment.undo(w, moves)[0])


def test_empty_batch():
    augment, images = CropFlip(), torch.rand(0, 3, 8, 6, dtype=torch.float64)
    v, seen = augment.undo(images, augment.draw(0))
    for out, shape, dtype in (
        (augment.apply(images, augment.draw(0)), (0, 3, 8, 6), torch.float64),
        (v, (0, 3, 8, 6), torch.float64),
        (seen, (0, 1, 8, 6), torch.bool),
    ):
        assert (out.shape, out.dtype) == (shape, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_memory_format_is_kept(dtype, channels):
    augment, images = CropFlip(padding=2), random_bits((4, channels, 5, 6), dtype)
    moves = augment.draw(4)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = images.contiguous(memory_format=memory_format)
        for out in (augment.apply(x, moves), augment.undo(x, moves)[0]):
            assert out.is_contiguous(memory_format=memory_format)
            if channels > 1:
                assert out.stride() == x.stride()


def test_images_are_left_alone():
    augment, images = CropFlip(padding=0), torch.rand(6, 1, 3, 3)
    before, moves = images.clone(), torch.tensor([[0, 0, 0]] * 3 + [[0, 0, 1]] * 3)
    for out in (augment.apply(images, moves), augment.undo(images, moves)[0]):
        out.zero_()  # also where nothing moved, the result is memory of its own
    assert torch.equal(images, before)


def test_draw_is_uniform_over_all_moves():
    moves = CropFlip(padding=1).draw(18_000, torch.Generator().manual_seed(0))
    assert moves.shape == (18_000, 3)
    assert moves.dtype == torch.int64
    codes = (moves + torch.tensor([1, 1, 0])) @ torch.tensor([6, 2, 1])
    counts = codes.bincount(minlength=18).double()
    assert len(counts) == 18
    # chi-square with 17 degrees of freedom; 40.8 is its 0.999 quantile. The columns are independent too.
    assert ((counts - 1000) ** 2 / 1000).sum() < 40.8


def test_draw_without_crop_or_flip():
    flips, crops = CropFlip(padding=0).draw(100), CropFlip(padding=3, flip=False).draw(500)
    assert flips[:, :2].unique().tolist() == [0]
    assert flips[:, 2].unique().tolist() == [0, 1]
    assert crops[:, 2].unique().tolist() == [0]
    assert crops[:, 0].unique().tolist() == crops[:, 1].unique().tolist() == list(range(-3, 4))


def test_draw_follows_its_generator():
    augment = CropFlip()
    torch.manual_seed(5)
    first, second = augment.draw(50), augment.draw(50)
    torch.manual_seed(5)
    assert torch.equal(augment.draw(50), first)
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    assert torch.equal(augment.draw(50, torch.Generator().manual_seed(5)), first)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used beside the given one"


def test_the_images_of_a_seed():
    """A generator's numbers are the corners of the windows in the padded image."""
    images = torch.rand(7, 2, 5, 6)
    moves = CropFlip(padding=3).draw(7, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    corners = torch.randint(7, (7, 2), generator=generator)
    flips = torch.randint(2, (7,), generator=generator)
    expected = torch.zeros_like(images)
    for k, ((top, left), flipped) in enumerate(zip(corners.tolist(), flips.tolist(), strict=True)):
        crop = F.pad(images[k], (3,) * 4)[:, top : top + 5, left : left + 6]
        expected[k] = crop.flip(2) if flipped else crop
    assert torch.equal(CropFlip(padding=3).apply(images, moves), expected)


@given(cases(), st.integers(0, 5))
def test_a_move_means_the_same_for_every_padding(case, more):
    augment, moves, shape = case
    other, images = CropFlip(padding=augment.padding + more), torch.rand(shape)
    assert torch.equal(other.apply(images, moves), augment.apply(images, moves))
    for a, b in zip(other.undo(images, moves), augment.undo(images, moves), strict=True):
        assert torch.equal(a, b)


def test_moves_of_single_samples_collate():
    augment = CropFlip()
    rows = [augment.draw(1)[0] for _ in range(4)]
    assert torch.equal(default_collate(rows), torch.stack(rows))
    assert default_collate(rows).shape == (4, 3)


def test_is_a_value():
    assert CropFlip() == CropFlip(padding=4, flip=True) == pickle.loads(pickle.dumps(CropFlip()))
    assert len({CropFlip(), CropFlip(padding=4), CropFlip(padding=2)}) == 2
    assert repr(CropFlip(padding=2)) == "CropFlip(padding=2, flip=True)"
    with pytest.raises(AttributeError):
        CropFlip().padding = 3


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ({"padding": 0, "flip": False}, ValueError, "nothing to do"),
        ({"padding": 1.0}, TypeError, "padding must be a whole number, got 1.0"),
        ({"padding": True}, TypeError, "padding must be a whole number, got True"),
        ({"flip": 1}, TypeError, "flip must be True or False, got 1"),
    ],
)
def test_bad_fields(fields, error, message):
    with pytest.raises(error, match=message):
        CropFlip(**fields)


@pytest.mark.parametrize("method", ["apply", "undo"])
@pytest.mark.parametrize(
    ("shape", "moves", "message"),
    [
        ((3, 4, 4), torch.zeros(3, 3, dtype=torch.int64), r"images must have shape \(B, C, H, W\), got \(3, 4, 4\)"),
        ((2, 1, 4, 4), torch.zeros(3, 3, dtype=torch.int64), r"shape \(2, 3\), got torch.int64 of shape \(3, 3\)"),
        ((2, 1, 4, 4), torch.zeros(3, dtype=torch.int64), r"shape \(2, 3\), got torch.int64 of shape \(3,\)"),
        ((2, 1, 4, 4), torch.zeros(2, 3), r"moves must be int64 .* got torch.float32"),
        ((2, 1, 4, 4), torch.tensor([[0, 3, 0], [0, 0, 0]]), r"-2\.\.2 \(dy, dx\) .* to \[0, 3, 0\]"),
        ((2, 1, 4, 4), torch.tensor([[3, 0, 0], [0, 0, 0]]), r"-2\.\.2 \(dy, dx\) .* to \[3, 0, 0\]"),
        ((2, 1, 4, 4), torch.tensor([[0, 0, 0], [-3, 0, 0]]), r"got \[-3, 0, 0\] to"),
        ((2, 1, 4, 4), torch.tensor([[0, 0, 2], [0, 0, 0]]), r"0\.\.1 \(flipped\)"),
        ((2, 1, 4, 4), torch.tensor([[0, 0, -1], [0, 0, 0]]), r"0\.\.1 \(flipped\)"),
        ((2, 1, 4, 4), torch.zeros(2, 3, dtype=torch.int64, device="meta"), "on one device, got cpu and meta"),
    ],
)
def test_bad_batches(method, shape, moves, message):
    with pytest.raises(ValueError, match=message):
        getattr(CropFlip(padding=2), method)(torch.zeros(shape), moves)


def test_flips_are_not_for_a_crop_without_flip():
    with pytest.raises(ValueError, match=r"0\.\.0 \(flipped\) for CropFlip\(padding=2, flip=False\)"):
        CropFlip(padding=2, flip=False).apply(torch.zeros(1, 1, 4, 4), torch.tensor([[0, 0, 1]]))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_moves_as_the_cpu(dtype):
    augment, images = CropFlip(padding=3), random_bits((9, 3, 8, 6), dtype)
    moves = augment.draw(9, torch.Generator().manual_seed(0))
    assert torch.equal(moves.cuda(), augment.draw(9, torch.Generator().manual_seed(0), "cuda"))
    assert torch.equal(bits(augment.apply(images.cuda(), moves.cuda()).cpu()), bits(augment.apply(images, moves)))
    v, seen = augment.undo(images.cuda(), moves.cuda())
    assert torch.equal(bits(v.cpu()), bits(augment.undo(images, moves)[0]))
    assert torch.equal(seen.cpu(), augment.undo(images, moves)[1])
