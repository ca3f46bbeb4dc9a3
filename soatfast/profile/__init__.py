"""What the adversarial part of a training costs, counted and timed in a script that knows nothing of soatfast."""

from soatfast.profile.block import profile_passes
from soatfast.profile.estimate import Estimate, Saving
from soatfast.profile.report import PassReport
from soatfast.profile.steps import Step

__all__ = ["Estimate", "PassReport", "Saving", "Step", "profile_passes"]
