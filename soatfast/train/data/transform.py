"""Random crops and flips inside a torchvision pipeline, which say what they did to the last image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from soatfast.memory.crops import CropFlip

_MOVED = ("Image", "Video", "Mask")  # torchvision's tv_tensors that lie on the image's grid
_NOT_MOVED = ("BoundingBoxes", "KeyPoints")


class CropFlipTransform(nn.Module):
    """:class:`~soatfast.memory.CropFlip` as a transform of torchvision.transforms.v2, without torchvision.

    For a data set that transforms its images itself: put it into the pipeline in the place of RandomCrop and
    RandomHorizontalFlip, and give it to IndexedDataset as well, which reads ``moves`` after each item.

        augment = CropFlipTransform(padding=4)
        pipeline = v2.Compose([v2.ToImage(), augment, v2.ToDtype(torch.float32, scale=True)])
        data = IndexedDataset(CIFAR10(root, transform=pipeline), augment)
        memory = PerturbationMemory(len(data), (3, 32, 32), torch.int8, augment=augment.crops)

    Called, as a v2 transform is, with one or several inputs or structures of them. PIL images, tensors (..., H, W) and
    tv_tensors (Image, Video, Mask) are moved alike; beside them plain tensors and everything else pass through, and
    where there is none the first plain tensor is the image. Nothing behind it in the pipeline may move pixels.

    Args:
        padding, flip: as of CropFlip.

    ``crops`` is that CropFlip. ``moves`` (3,) is the last call's [dy, dx, flipped], None before the first; ``calls``
    counts them. Random numbers come from torch's global generator, in a worker process from the worker's.

    Raises:
        TypeError, ValueError: as CropFlip; an input has no image, or boxes and points, which it does not move.

    >>> transform = CropFlipTransform(padding=1, flip=False)
    >>> image, label = transform(torch.ones(3, 4, 4), 7)
    >>> image.shape, label, transform.moves.shape, transform.calls
    (torch.Size([3, 4, 4]), 7, torch.Size([3]), 1)
    """

    def __init__(self, padding: int = 4, flip: bool = True):
        super().__init__()
        self.crops = CropFlip(padding=padding, flip=flip)
        self.moves: Tensor | None = None
        self.calls = 0

    def extra_repr(self) -> str:
        return f"padding={self.crops.padding}, flip={self.crops.flip}"

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The move of one call."""
        return {"moves": self.crops.draw(1)[0]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """One image, moved."""
        moves: Tensor = params["moves"]
        if not isinstance(inpt, Tensor):
            return _pil_moved(inpt, *moves.tolist())
        plain = inpt.as_subclass(Tensor)
        moved = self.crops.apply(plain.reshape(1, -1, *plain.shape[-2:]), moves[None].to(plain.device))
        return moved.view(plain.shape).as_subclass(type(inpt))

    def forward(self, *inputs: Any) -> Any:
        flat, structure = tree_flatten(inputs if len(inputs) != 1 else inputs[0])
        images = _images(flat)
        params = self.make_params(flat)
        moved = [self.transform(value, params) if k in images else value for k, value in enumerate(flat)]
        self.moves, self.calls = params["moves"], self.calls + 1
        return tree_unflatten(moved, structure)


def _images(flat: list[Any]) -> set[int]:
    """Which inputs are moved."""
    names = [type(value).__name__ for value in flat]
    for name in names:
        if name in _NOT_MOVED:
            raise TypeError(f"CropFlipTransform moves images and masks, and cannot move {name}")
    found = {k for k, value in enumerate(flat) if (isinstance(value, Tensor) and names[k] in _MOVED) or _is_pil(value)}
    if not found:
        plain = (k for k, value in enumerate(flat) if isinstance(value, Tensor) and value.dim() >= 2)
        found = {k for k in [next(plain, None)] if k is not None}
    if not found:
        raise TypeError(
            f"CropFlipTransform needs an image: a tensor (..., H, W) or a PIL image, got {', '.join(names)}"
        )
    return found


def _is_pil(value: Any) -> bool:
    return not isinstance(value, Tensor) and all(hasattr(value, name) for name in ("crop", "transpose", "getbands"))


def _pil_moved(image: Any, dy: int, dx: int, flipped: int) -> Any:
    """PIL fills what lies outside the image with 0; its transpose 0 is left to right."""
    width, height = image.size
    moved = image.crop((dx, dy, dx + width, dy + height))
    return moved.transpose(0) if flipped else moved


def agree(crops: CropFlip, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    """Whether two readings (image (C, H, W), moves) of one item show the same picture where both show it."""
    back = [crops.undo(x[None], moves[None]) for x, moves in (first, second)]
    both = back[0][1] & back[1][1]
    a, b = (torch.where(both, x.nan_to_num(), 0) for x, _ in back)
    return a.shape == b.shape and torch.equal(a, b)
