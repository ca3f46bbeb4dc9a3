"""What long commands share: run folders, files, resuming, progress, tables and figures. No mathematics."""

from soatfast.runs.errors import MissingDataError, ModelError, RunFolderError, UserError
from soatfast.runs.progress import Progress, make_progress, progress_bar
from soatfast.runs.table import Column, Table, mean_and_spread

__all__ = [
    "Column",
    "MissingDataError",
    "ModelError",
    "Progress",
    "RunFolderError",
    "Table",
    "UserError",
    "make_progress",
    "mean_and_spread",
    "progress_bar",
]
