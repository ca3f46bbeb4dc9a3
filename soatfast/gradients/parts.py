"""Whether a model can be asked about some samples of a batch alone."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from soatfast.gradients import engine as engines
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.state import is_exported


def mixes_samples(modules: Iterable[nn.Module]) -> bool:
    """Whether a sample's output may hang on the others of its batch: batch statistics are in use.

    A module that is not torch's, is in train mode and has buffers may keep statistics: it counts as one that does.

    >>> mixes_samples([nn.BatchNorm2d(3).eval(), nn.Dropout(), nn.Linear(2, 2)]), mixes_samples([nn.BatchNorm2d(3)])
    (False, True)
    """
    for module in modules:
        if isinstance(module, _BatchNorm):
            if module.training or module.running_mean is None:
                return True
        elif getattr(module, "training", False) and module._buffers and not _is_torchs(module):
            return True
    return False


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def takes_parts(oracle: InputGradient) -> bool:
    """Whether an entered oracle gives rows of a batch the gradients that they have in the whole batch, at their cost.

    Not with batch statistics or mode "train"; under FSDP, whose ranks must make the same passes; for a model that is
    compiled or exported for batches of one size.
    """
    model = oracle.model
    if oracle.mode == "train" or oracle.state.sharded or oracle.engine.compile or oracle.engine.graph:
        return False
    if isinstance(model, nn.Module) and (engines.is_compiled(model) or is_exported(model)):
        return False
    return not mixes_samples(oracle.state.modules)
