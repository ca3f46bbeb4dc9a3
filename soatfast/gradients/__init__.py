"""How a model is asked: per-sample input gradients, engines that run the passes, and a counter of passes."""

from soatfast.gradients.allocator import keep_memory
from soatfast.gradients.counting import PassCounter, count_passes
from soatfast.gradients.graphs import release_graphs
from soatfast.gradients.objectives import Objective
from soatfast.gradients.oracle import InputGradient, Mode
from soatfast.gradients.passes import Passes
from soatfast.gradients.timing import Timing, tune

__all__ = [
    "InputGradient",
    "Mode",
    "Objective",
    "PassCounter",
    "Passes",
    "Timing",
    "count_passes",
    "keep_memory",
    "release_graphs",
    "tune",
]
