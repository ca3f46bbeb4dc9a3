"""torchattacks' classes, arguments and defaults (3.5.1), served by the attacks of this package.

    import soatfast.compat.torchattacks as torchattacks   # was: import torchattacks

The same seed gives the same random starts and targets, and the same images but where the sign of a gradient hangs on
its rounding. What differs, on purpose:

- Each module's own train or eval state comes back, also after an error; torchattacks puts the whole model in train
  mode, or leaves it in the attack's. Statistics of batch norm stay as they were, also with ``batchnorm_training=True``.
- Images outside [0, 1] and labels out of range are errors. An outer ``torch.no_grad()`` or ``inference_mode`` is none.
- A zero gradient is no NaN in MIFGSM, and the gradient of a sample that the model is sure of is not rounded to zero.
- ``load`` reads tensors only (``torch.load(weights_only=True)``), in torchattacks' own file format, which ``save``
  writes: a file from another hand cannot run code.

Classes that are missing here raise AttributeError with the list of what there is. No cost is added: an attack makes
the passes of the attack of this package that serves it, and one forward for random or least-likely targets.

>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
>>> attack = PGD(model, eps=8 / 255, alpha=2 / 255, steps=10)
>>> images, labels = torch.rand(2, 3, 2, 2), torch.tensor([0, 1])
>>> bool((attack(images, labels) - images).abs().max() <= 8 / 255 + 1e-6)
True
>>> attack.set_mode_targeted_least_likely()
Attack mode is changed to 'targeted(least-likely)'.
"""

from typing import TYPE_CHECKING

from soatfast.compat.torchattacks.attack import Attack
from soatfast.compat.torchattacks.attacks import BIM, EOTPGD, FFGSM, FGSM, GN, MIFGSM, PGD, PGDL2, RFGSM, TPGD, VANILA
from soatfast.compat.torchattacks.multiattack import MultiAttack

__version__ = "3.5.1"
"""The version of torchattacks whose interface this is."""

__all__ = [
    "BIM",
    "EOTPGD",
    "FFGSM",
    "FGSM",
    "GN",
    "MIFGSM",
    "PGD",
    "PGDL2",
    "RFGSM",
    "TPGD",
    "VANILA",
    "Attack",
    "MultiAttack",
]


if not TYPE_CHECKING:  # a checker that sees this takes every misspelt name

    def __getattr__(name: str) -> object:
        raise AttributeError(
            f"soatfast.compat.torchattacks has no {name}; it has {', '.join(__all__)}. "
            f"Take {name} from torchattacks itself"
        )
