"""What `soatfast curvature` measures beside the largest eigenvalue: figures of each sample, columns and pictures."""

from soatfast.commands.measures.measured import MEASURES, Ball, Measure, measured
from soatfast.commands.measures.pictures import PICTURES

__all__ = ["MEASURES", "PICTURES", "Ball", "Measure", "measured"]
