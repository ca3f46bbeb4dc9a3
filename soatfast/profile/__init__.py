"""What the adversarial part of a training costs, counted and timed in a script that knows nothing of soatfast."""

from soatfast.profile.block import profile_passes
from soatfast.profile.report import PassReport

__all__ = ["PassReport", "profile_passes"]
