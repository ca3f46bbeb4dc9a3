"""torchattacks' classes, arguments and defaults (3.5.1), served by the attacks of this package.

    import soatfast.compat.torchattacks as torchattacks   # was: import torchattacks

The same seed gives the same random starts and targets, and the same images but where the sign of a gradient hangs on
its rounding. What differs, on purpose:

- Each module's own train or eval state comes back, also after an error; torchattacks puts the whole model in train
  mode, or leaves it in the attack's. Statistics of batch norm stay as they were, also with ``batchnorm_training=True``.
- Images outside [0, 1] and labels out of range are errors. An outer ``torch.no_grad()`` or ``inference_mode`` is none.
- A zero gradient is no NaN in the attacks with momentum, and where the model is sure of a sample its gradient is not
  rounded to zero.
- PIFGSMPP goes towards the target in every targeted mode; torchattacks goes towards the label of the call.
- ``load`` reads tensors only (``torch.load(weights_only=True)``), in torchattacks' own file format, which ``save``
  writes: a file from another hand cannot run code.

Classes that are missing here (:data:`~soatfast.compat.torchattacks.elsewhere.ELSEWHERE`) raise with a line that names
torchattacks; an attack of torchattacks can go into the MultiAttack here, which tells it normalisation, device and mode.
No cost is added: an attack makes the passes of the attack of this package that serves it, and one forward for random or
least-likely targets.

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

from soatfast.compat.torchattacks.attack import Attack as Attack
from soatfast.compat.torchattacks.attacks.bim import BIM
from soatfast.compat.torchattacks.attacks.difgsm import DIFGSM
from soatfast.compat.torchattacks.attacks.eotpgd import EOTPGD
from soatfast.compat.torchattacks.attacks.ffgsm import FFGSM
from soatfast.compat.torchattacks.attacks.fgsm import FGSM
from soatfast.compat.torchattacks.attacks.gn import GN
from soatfast.compat.torchattacks.attacks.jitter import Jitter
from soatfast.compat.torchattacks.attacks.mifgsm import MIFGSM
from soatfast.compat.torchattacks.attacks.nifgsm import NIFGSM
from soatfast.compat.torchattacks.attacks.pgd import PGD
from soatfast.compat.torchattacks.attacks.pgdl2 import PGDL2
from soatfast.compat.torchattacks.attacks.pgdrs import PGDRS
from soatfast.compat.torchattacks.attacks.pgdrsl2 import PGDRSL2
from soatfast.compat.torchattacks.attacks.pifgsm import PIFGSM
from soatfast.compat.torchattacks.attacks.pifgsmpp import PIFGSMPP
from soatfast.compat.torchattacks.attacks.rfgsm import RFGSM
from soatfast.compat.torchattacks.attacks.sinifgsm import SINIFGSM
from soatfast.compat.torchattacks.attacks.tifgsm import TIFGSM
from soatfast.compat.torchattacks.attacks.tpgd import TPGD
from soatfast.compat.torchattacks.attacks.upgd import UPGD
from soatfast.compat.torchattacks.attacks.vanila import VANILA
from soatfast.compat.torchattacks.attacks.vmifgsm import VMIFGSM
from soatfast.compat.torchattacks.attacks.vnifgsm import VNIFGSM
from soatfast.compat.torchattacks.elsewhere import Finder, missing
from soatfast.compat.torchattacks.wrappers.multiattack import MultiAttack

__version__ = "3.5.1"
"""The version of torchattacks whose interface this is."""

__all__ = [
    "BIM",
    "DIFGSM",
    "EOTPGD",
    "FFGSM",
    "FGSM",
    "GN",
    "MIFGSM",
    "NIFGSM",
    "PGD",
    "PGDL2",
    "PGDRS",
    "PGDRSL2",
    "PIFGSM",
    "PIFGSMPP",
    "RFGSM",
    "SINIFGSM",
    "TIFGSM",
    "TPGD",
    "UPGD",
    "VANILA",
    "VMIFGSM",
    "VNIFGSM",
    "Jitter",
    "MultiAttack",
]
__wrapper__ = ["MultiAttack"]
"""Those that are made of attacks."""


if not TYPE_CHECKING:  # a checker that sees this takes every misspelt name

    def __getattr__(name: str) -> object:
        raise AttributeError(missing(name, __all__))


Finder.install()
