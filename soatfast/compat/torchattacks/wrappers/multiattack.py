"""MultiAttack: several attacks, each on the images that the ones before it did not change the prediction of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from soatfast.compat.torchattacks.attack import Attack


class MultiAttack(Attack):
    """Each image as the first attack leaves it that fools the model, else as it was.

    Args:
        attacks: two or more, of one model; of this package, of torchattacks, or others that are called alike.
        verbose: print the share of images fooled after each attack.
    """

    def __init__(self, attacks: Sequence[Any], verbose: bool = False):
        if len(attacks) < 2:
            raise ValueError("More than two attacks should be given.")
        if len({id(attack.model) for attack in attacks}) != 1:
            raise ValueError("At least one of attacks is referencing a different model.")
        super().__init__("MultiAttack", attacks[0].model)
        self.attacks = list(attacks)
        self.verbose = verbose
        self._accumulate = False
        self._records = [0.0]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        images, labels = self._inputs(images, labels)
        images = images.clone()
        standing = torch.arange(len(images), device=images.device)
        records = [len(images)]
        for attack in self.attacks:
            adv_images = attack(images[standing], labels[standing])
            with torch.no_grad():
                right = self.get_logits(adv_images).argmax(1) == labels[standing]
            images[standing[~right]] = adv_images[~right].to(images.dtype)
            standing = standing[right]
            records.append(len(standing))
            if len(standing) == 0:
                break
        if self.verbose:
            print(self._successes(records))
        if self._accumulate:
            for i, count in enumerate(records):
                self._records[i] += count
        return images

    @staticmethod
    def _rates(records: Sequence[float]) -> list[float]:
        return [(1 - count / records[0]) * 100 if records[0] else 0.0 for count in records[1:]]

    def _successes(self, records: Sequence[float]) -> str:
        return "Attack success rate: " + " | ".join(f"{rate:2.2f} %" for rate in self._rates(records))

    def save(self, data_loader: Any, *args: Any, **kwargs: Any) -> Any:
        """As every attack's; return_verbose: (robust accuracy, success rates of the attacks, L2 distance, seconds)."""
        verbose, self.verbose, self._accumulate = self.verbose, False, True
        self._records = [0.0] * (len(self.attacks) + 1)
        try:
            figures = super().save(data_loader, *args, **kwargs)
            rates = self._rates(self._records)
        finally:
            self.verbose, self._accumulate = verbose, False
        return None if figures is None else (figures[0], rates, *figures[1:])

    def _save_print(self, progress: float, rob_acc: float, l2: float, elapsed_time: float, end: str) -> None:  # type: ignore[override]
        figures = f"Robust accuracy: {rob_acc:2.2f} % / {self._successes(self._records)}"
        print(f"- Save progress: {progress:2.2f} % / {figures} / L2: {l2:1.5f} ({elapsed_time:2.3f} it/s) \t", end=end)
