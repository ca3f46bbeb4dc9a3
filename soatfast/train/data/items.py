"""The items of a data set: which part of one is the image, and how the index comes beside it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

NAMES = ("pixel_values", "image", "images", "img", "x", "input", "inputs")
"""Keys under which a data set of dictionaries has its image, in the order in which they are looked for."""

Key = str | int | None


def check_key(key: Key) -> None:
    """Raise TypeError unless key is a name, a place or None."""
    if isinstance(key, bool) or not (key is None or isinstance(key, (str, int))):
        raise TypeError(f"image must be a key, a place in a tuple or None, got {key!r}")


def found_image(item: Any, key: Key) -> tuple[Tensor | None, Any]:
    """(The image or None, where it is) in an item: a dictionary, or a tuple or list of at least two."""
    if isinstance(item, Mapping):
        names = NAMES if key is None else (key,)
        place: Any = next((name for name in names if isinstance(item.get(name), Tensor)), None)
        return (None, None) if place is None else (item[place], place)
    place = 0 if key is None else key
    fits = isinstance(item, (tuple, list)) and len(item) >= 2 and isinstance(place, int)
    if not fits or not -len(item) <= place < len(item) or not isinstance(item[place], Tensor):
        return None, None
    return item[place], place


def with_index(item: Any, place: Any, x: Tensor, index: int, moves: Tensor | None) -> Any:
    """The item with x in its place, and index and moves at its end, or under these names."""
    if isinstance(item, Mapping):
        added = {"index": index} if moves is None else {"index": index, "moves": moves}
        taken = sorted(added.keys() & item.keys())
        if taken:
            raise ValueError(f"the data set's items have {taken[0]!r} already, which the index needs: rename it")
        return {**item, place: x, **added}
    parts = list(item)
    parts[place] = x
    return (*parts, index) if moves is None else (*parts, index, moves)


def described(item: Any) -> str:
    if isinstance(item, Tensor):
        return f"a tensor {tuple(item.shape)}"
    if isinstance(item, (tuple, list)):
        return "(" + ", ".join(map(described, item)) + ")"
    if isinstance(item, Mapping):
        return "{" + ", ".join(f"{name!r}: {described(value)}" for name, value in item.items()) + "}"
    return type(item).__name__


_CONCATENATED = ConcatDataset.__getitem__.__code__
_SUBSET = Subset.__getitem__.__code__


def check_not_concatenated(kind: type) -> None:
    """Raise ValueError where the caller's caller is a ConcatDataset of several data sets of this kind.

    Each numbers its own samples from 0, and a ConcatDataset hands none of them its place: the frame that asks for the
    item is the only one that knows both.
    """
    frame = sys._getframe(2)
    while frame is not None and frame.f_code is _SUBSET:
        frame = frame.f_back  # type: ignore[assignment]
    if frame is not None and frame.f_code is _CONCATENATED:
        inside = {id(part): part for part in _inside(frame.f_locals["self"], kind)}
        if len(inside) > 1:
            names = [type(part.dataset).__name__ for part in inside.values()]
            raise ValueError(
                f"a ConcatDataset of {len(inside)} indexed data sets ({', '.join(names)}) has every index several "
                "times: give IndexedDataset the concatenation, IndexedDataset(ConcatDataset([a, b]))"
            )


def _inside(dataset: Any, kind: type) -> list[Any]:
    """The data sets of this kind that a ConcatDataset or Subset reads."""
    if isinstance(dataset, kind):
        return [dataset]
    if isinstance(dataset, ConcatDataset):
        return [found for part in dataset.datasets for found in _inside(part, kind)]
    return _inside(dataset.dataset, kind) if isinstance(dataset, Subset) else []


def check_plain(dataset: Dataset[Any], kind: type) -> None:
    """Raise TypeError where the data set has indexed ones inside."""
    if _inside(dataset, kind):
        raise TypeError(
            "the data set is indexed already: give IndexedDataset the plain ones, "
            "IndexedDataset(ConcatDataset([a, b])) or IndexedDataset(Subset(a, chosen))"
        )
