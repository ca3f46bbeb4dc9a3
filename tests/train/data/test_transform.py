"""CropFlipTransform: a transform of the data set that says what it did, against CropFlip and PIL."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from soatfast.attacks import FrankWolfe
from soatfast.losses import AdversarialTraining
from soatfast.memory import CropFlip, PerturbationMemory
from soatfast.train import CropFlipTransform, IndexedDataset
from tests.nets import relu_net


class Image(Tensor):
    """What tv_tensors.Image is to a transform: a tensor of a class of this name."""


class BoundingBoxes(Tensor):
    pass


class Compose(nn.Module):
    """As torchvision.transforms.v2.Compose calls its parts."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, *inputs):
        several = len(inputs) > 1
        for part in self.parts:
            outputs = part(*inputs)
            inputs = outputs if several else (outputs,)
        return outputs


class Scaled(nn.Module):
    def forward(self, x):
        return x.float() / 255


class Shifted(nn.Module):
    def forward(self, x):
        return x.roll(int(torch.randint(4, ())), 2)


class Pictures(Dataset):
    """Bytes, as a data set of torchvision has them, which it transforms itself."""

    def __init__(self, transform, n=12):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (n, 3, 6, 5), generator=generator, dtype=torch.uint8)
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(self.images[i]), i % 3


def image(dtype=torch.uint8):
    return (torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(1)) * 255).to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_it_does_what_it_says(dtype):
    transform, x = CropFlipTransform(padding=2), image(dtype)
    seen = set()
    for call in range(60):
        out = transform(x)
        assert torch.equal(out, CropFlip(padding=2).apply(x[None], transform.moves[None])[0])
        assert out.dtype == dtype and transform.calls == call + 1
        seen.add(tuple(transform.moves.tolist()))
    assert len(seen) > 20 and {flip for _, _, flip in seen} == {0, 1}


def test_the_numbers_are_those_of_cropflip():
    transform = CropFlipTransform(padding=3)
    torch.manual_seed(5)
    transform(image())
    torch.manual_seed(5)
    assert torch.equal(transform.moves, CropFlip(padding=3).draw(1)[0])
    assert repr(transform) == "CropFlipTransform(padding=3, flip=True)" and transform.crops == CropFlip(padding=3)


def test_a_pil_image_moves_alike():
    pil = pytest.importorskip("PIL.Image")
    x, transform = image(), CropFlipTransform(padding=2)
    for _ in range(20):
        out = transform(pil.fromarray(x.permute(1, 2, 0).numpy()))
        expected = CropFlip(padding=2).apply(x[None], transform.moves[None])[0]
        assert out.tobytes() == expected.permute(1, 2, 0).contiguous().numpy().tobytes()


def test_structures_keep_their_shape_and_only_images_move():
    transform, x = CropFlipTransform(padding=2, flip=False), image()
    out = transform({"img": x.as_subclass(Image), "aux": [x, 3], "label": "cat"})
    assert type(out["img"]) is Image and out["aux"][0] is x and out["aux"][1:] == [3] and out["label"] == "cat"
    assert torch.equal(out["img"].as_subclass(Tensor), transform.crops.apply(x[None], transform.moves[None])[0])
    first, second = transform(x, x)  # without an Image the first plain tensor is it
    assert second is x and first.shape == x.shape
    video = torch.stack([x, x, x]).as_subclass(type("Video", (Tensor,), {}))
    moved = transform(video).as_subclass(Tensor)
    assert torch.equal(moved[0], moved[2]) and moved.shape == (3, 3, 6, 5)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_carries_what_the_data_set_did(workers):
    augment = CropFlipTransform(padding=2)
    data = IndexedDataset(Pictures(Compose(augment, Scaled())), augment)
    epochs = []
    for _ in range(2):
        for x, y, index, moves in DataLoader(data, 12, shuffle=True, num_workers=workers):
            images = data.dataset.images[index].float() / 255
            assert torch.equal(x, augment.crops.apply(images, moves)) and torch.equal(y, index % 3)
            epochs.append(moves[index.argsort()])
    assert (epochs[0] != epochs[1]).any(1).sum() >= 6


def test_a_perturbation_follows_it_as_it_follows_cropflip():
    rows = []
    for own in (True, False):
        augment = CropFlipTransform(padding=2)
        inside = Pictures(Compose(augment, Scaled()) if own else Scaled())
        data = IndexedDataset(inside, augment if own else augment.crops)
        memory = PerturbationMemory(12, (3, 6, 5), augment=augment.crops)
        loss = AdversarialTraining(FrankWolfe(eps=0.1, steps=1), memory=memory)
        model = relu_net(torch.float32, (3, 6, 5))
        torch.manual_seed(1)
        for _ in range(2):
            for x, y, index, moves in DataLoader(data, 6):
                loss(model, x, y, index, moves).backward()
        rows.append(memory.values)
    assert torch.equal(*rows) and rows[0].any()


def test_another_random_move_beside_it_is_found():
    augment = CropFlipTransform(padding=1)
    for parts in ((augment, Shifted()), (Shifted(), augment)):
        with pytest.raises(ValueError, match="Pictures changes its samples from read to read"):
            IndexedDataset(Pictures(Compose(*parts)), augment)


@pytest.mark.parametrize(("parts", "calls"), [(0, 0), (2, 2)])
def test_it_has_to_be_applied_once(parts, calls):
    augment = CropFlipTransform(padding=1)
    with pytest.raises(ValueError, match=f"called its CropFlipTransform {calls} times for item 0"):
        IndexedDataset(Pictures(Compose(*[augment] * parts, Scaled())), augment)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CropFlipTransform(padding=-1), ValueError, "padding must be at least 0, got -1"),
        (lambda: CropFlipTransform(padding=1.0), TypeError, "padding must be a whole number, got 1.0"),
        (lambda: CropFlipTransform(flip="yes"), TypeError, "flip must be True or False, got 'yes'"),
        (lambda: CropFlipTransform()("cat"), TypeError, "needs an image: .*, got str"),
        (lambda: CropFlipTransform()(torch.ones(3)), TypeError, "needs an image: .*, got Tensor"),
        (
            lambda: CropFlipTransform()(image(), torch.ones(2, 4).as_subclass(BoundingBoxes)),
            TypeError,
            "cannot move BoundingBoxes",
        ),
        (lambda: PerturbationMemory(3, (1, 2, 2), augment=CropFlipTransform()), TypeError, "CropFlip or None"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
