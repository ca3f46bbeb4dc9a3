"""soatfast: second-order adversarial training made cheap. See README.md."""

from . import attacks, gradients, hvp, losses, objectives, ops, passes
from .allocator import keep_memory
from .config import show_config
from .crops import CropFlip
from .memory import PerturbationMemory

__version__ = "0.1.0"

__all__ = [
    "CropFlip",
    "PerturbationMemory",
    "__version__",
    "attacks",
    "gradients",
    "hvp",
    "keep_memory",
    "losses",
    "objectives",
    "ops",
    "passes",
    "show_config",
]
