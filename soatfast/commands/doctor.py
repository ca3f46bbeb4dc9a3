"""`soatfast doctor`: what is installed, and which kernels run here."""

from __future__ import annotations

from dataclasses import dataclass

import soatfast
from soatfast.runs.progress import Progress


@dataclass(frozen=True)
class DoctorConfig:
    """Show versions, devices, and which kernel serves each operation and why another does not."""


def run(config: DoctorConfig, progress: Progress | None = None) -> str:
    """The text of :func:`soatfast.show_config`."""
    return soatfast.show_config()
