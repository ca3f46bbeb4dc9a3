"""Random crops and flips whose moves are known, so that a perturbation can follow its image and come back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from soatfast.ops.arguments import check_fields, check_steps


@dataclass(frozen=True, kw_only=True)
class CropFlip:
    """Zero padding by `padding`, a random crop of the old size, then a mirror image with probability 1/2.

    apply: out[b, c, i, j] = image[b, c, i + dy, j' + dx], 0 outside it, j' = W - 1 - j where flipped, else j. The move
    (dy, dx, flipped) says so by itself, without the padding it was drawn with. `padding` may be larger than the image.
    The distribution is that of torchvision's RandomCrop(size, padding=padding) and RandomHorizontalFlip().

    Args:
        padding: pixels of zeros on each side, so the image moves by up to as many each way; 0: no crop.
        flip: mirror half of the images left to right.

    Raises:
        TypeError: padding is no whole number, flip no bool.
        ValueError: padding is negative, or there is nothing to do (padding 0 without flip).

    >>> augment = CropFlip(padding=1, flip=False)
    >>> v = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> moves = torch.tensor([[1, 0, 0]])  # one pixel up: the first row is cropped away
    >>> augment.apply(v, moves)[0, 0].tolist()
    [[3.0, 4.0], [0.0, 0.0]]
    >>> back, seen = augment.undo(augment.apply(v, moves), moves)
    >>> back[0, 0].tolist(), seen[0, 0].tolist()
    ([[0.0, 0.0], [3.0, 4.0]], [[False, False], [True, True]])
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_steps(self.padding, "padding", least=0)
        if self.padding == 0 and not self.flip:
            raise ValueError("nothing to do with padding 0 and without flip; leave the augmentation out")

    def draw(self, batch: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
        """Moves (batch, 3) int64 on `device`: [dy, dx, flipped], dy and dx in -padding..padding, flipped 0 or 1.

        Drawn where the generator is, on the CPU without one: the same moves for every `device`.
        """
        source = torch.device("cpu") if generator is None else generator.device
        moves = torch.zeros(batch, 3, dtype=torch.int64, device=source)
        if self.padding:
            corners = torch.randint(2 * self.padding + 1, (batch, 2), generator=generator, device=source)
            moves[:, :2] = corners - self.padding
        if self.flip:
            moves[:, 2] = torch.randint(2, (batch,), generator=generator, device=source)
        return moves.to(device)

    def apply(self, images: Tensor, moves: Tensor) -> Tensor:
        """The moved images (B, C, H, W), in the images' dtype and memory format, 0 where nothing was.

        Raises:
            ValueError: images are not (B, C, H, W), moves not (B, 3) int64 on their device, or a move is further than
                the padding or a flip where there is none. On CUDA the check of values is a device assertion.
        """
        self._check(images, moves)
        moved = _mirrored(self._cropped(_bits(images), moves[:, :2]), moves)
        return _from_bits(moved, images.dtype)

    def undo(self, images: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
        """What lies in the moved frame, brought back: (v (B, C, H, W), seen (B, 1, H, W) bool).

        seen is False where the crop cut the image's pixel away, and v is 0 there; undo(apply(v)) is v, bit for bit,
        where seen is True. Raises as :meth:`apply`.
        """
        self._check(images, moves)
        back = -moves[:, :2]
        rows, columns = (_in_reach(length, back[:, axis : axis + 1]) for axis, length in enumerate(images.shape[2:]))
        v = self._cropped(_mirrored(_bits(images), moves), back)
        return _from_bits(v, images.dtype), (rows[:, :, None] & columns[:, None, :])[:, None]

    def _cropped(self, images: Tensor, shifts: Tensor) -> Tensor:
        """The windows of the zero-padded images that are shifted by (dy, dx), (B, 2)."""
        _, _, height, width = images.shape
        windows = F.pad(images, (self.padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        corners = shifts + self.padding
        return windows[torch.arange(len(images), device=images.device), :, corners[:, 0], corners[:, 1]]

    def _check(self, images: Tensor, moves: Tensor) -> None:
        if images.dim() != 4:
            raise ValueError(f"images must have shape (B, C, H, W), got {tuple(images.shape)}")
        if moves.dtype != torch.int64 or moves.shape != (len(images), 3):
            raise ValueError(
                f"moves must be int64 of shape ({len(images)}, 3), got {moves.dtype} of shape {tuple(moves.shape)}"
            )
        if moves.device != images.device:
            raise ValueError(f"images and moves must be on one device, got {images.device} and {moves.device}")
        shifts, flips = moves[:, :2], moves[:, 2]
        inside = (shifts.abs() <= self.padding).all() & ((flips >= 0) & (flips <= int(self.flip))).all()
        if moves.device.type == "cuda":
            torch._assert_async(inside, "soatfast: moves out of range (run on the CPU for the full message)")
        elif not inside:
            raise ValueError(
                f"moves must lie in -{self.padding}..{self.padding} (dy, dx) and 0..{int(self.flip)} (flipped) for "
                f"{self}, got {moves.amin(0).tolist()} to {moves.amax(0).tolist()}"
            )


def _bits(images: Tensor) -> Tensor:
    """Bytes as int8: flips know no float8, and 0 is the same in all."""
    return images.view(torch.int8) if images.element_size() == 1 else images


def _from_bits(bits: Tensor, dtype: torch.dtype) -> Tensor:
    return bits if bits.dtype == dtype else bits.view(dtype)  # a view, even as the same dtype, has no gradient


def _mirrored(images: Tensor, moves: Tensor) -> Tensor:
    return torch.where(moves[:, 2].bool()[:, None, None, None], images.flip(3), images)


def _in_reach(length: int, shift: Tensor) -> Tensor:
    """(B, length) bool: whether position i + shift (B, 1) of an axis lies inside it."""
    position = torch.arange(length, device=shift.device) + shift
    return (position >= 0) & (position < length)
