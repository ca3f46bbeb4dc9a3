"""One self-contained page of what a run folder holds: tables, curves, galleries, options and versions."""

from soatfast.commands.report.command import ReportConfig, run

__all__ = ["ReportConfig", "run"]
