"""PGD of other libraries, as calls (x, y) -> x_adv on one model: same eps, step and start, Linf, float32.

A library that is not installed is left out. foolbox and adversarial-robustness-toolbox come with `pip install
soatfast[peers]`; torchattacks wants an old requests, and is installed without its dependencies (Makefile).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Attack = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Peer:
    """One rival.

    package: what has to be importable.
    make: (model, steps, eps, alpha) -> the attack.
    exact: makes PGD's iterates, so that its result can be compared with ours.
    """

    package: str
    make: Callable[[nn.Module, int, float, float], Attack]
    exact: bool = True


def _torchattacks(model: nn.Module, steps: int, eps: float, alpha: float) -> Attack:
    import torchattacks

    return torchattacks.PGD(model, eps=eps, alpha=alpha, steps=steps, random_start=False)


def _apgd(model: nn.Module, steps: int, eps: float, alpha: float) -> Attack:
    """AutoAttack's APGD has its own start and step sizes. Its first gradient is none of its steps, and it asks for
    the predictions before: `steps` backwards, `steps` + 1 forwards.
    """
    import torchattacks

    return torchattacks.APGD(model, norm="Linf", eps=eps, steps=steps - 1)


def _foolbox(model: nn.Module, steps: int, eps: float, alpha: float) -> Attack:
    """By `run`: the usual call makes a forward more, to say who is fooled."""
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=alpha, steps=steps, random_start=False)
    return lambda x, y: attack.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=eps)


def _art(model: nn.Module, steps: int, eps: float, alpha: float) -> Attack:
    """`generate` asks for the predictions of x and x_adv at its end, for its log: two forwards more."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    def attack(x: Tensor, y: Tensor) -> Tensor:
        method.set_params(batch_size=len(x))
        return torch.from_numpy(method.generate(x.numpy(), y.numpy()))

    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), input_shape=(), nb_classes=10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    method = ProjectedGradientDescentPyTorch(classifier, eps=eps, eps_step=alpha, max_iter=steps, verbose=False)
    return attack


PEERS = {
    "torchattacks": Peer("torchattacks", _torchattacks),
    "foolbox": Peer("foolbox", _foolbox),
    "ART": Peer("art", _art),
    "APGD": Peer("torchattacks", _apgd, exact=False),
}


def installed() -> dict[str, Peer]:
    """Those of PEERS whose package is there."""
    return {name: peer for name, peer in PEERS.items() if importlib.util.find_spec(peer.package) is not None}
