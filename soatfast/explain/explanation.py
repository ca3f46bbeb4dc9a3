"""What an explanation found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from soatfast.gradients.passes import Passes

Role = Literal["negative", "positive"]


@dataclass(frozen=True)
class Explanation:
    """Pertinent negatives or positives of a batch of B samples, on the batch's device.

    role: "negative" (a change that gives another prediction) or "positive" (one that keeps it).
    labels: (B,) the class that is explained.
    delta: (B, ...) what was found. image: (B, ...) what the model was shown with it, inside the box.
    predictions, confidence: (B,) the model's class for ``image``, and its softmax probability.
    success: (B,) bool: the prediction is as the role wants it. Where it is not, see the explanation's class for delta.
    passes: the network passes of the batch.
    """

    role: Role
    labels: Tensor = field(repr=False)
    delta: Tensor = field(repr=False)
    image: Tensor = field(repr=False)
    predictions: Tensor = field(repr=False)
    confidence: Tensor = field(repr=False)
    success: Tensor
    passes: Passes

    @property
    def l1(self) -> Tensor:
        """(B,) sum of |delta|."""
        return self.delta.flatten(1).abs().float().sum(1)

    @property
    def l2(self) -> Tensor:
        """(B,) Euclidean norm of delta."""
        return self.delta.flatten(1).float().norm(dim=1)

    @property
    def changed(self) -> Tensor:
        """(B,) number of entries of delta that are not 0."""
        return (self.delta != 0).flatten(1).sum(1)
