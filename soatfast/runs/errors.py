"""Errors that a user can cause and mend. The command line prints them as one line, without a traceback."""

from __future__ import annotations


class UserError(RuntimeError):
    """Something outside the program is missing or in the way; the message says what and how to mend it."""


class ElsewhereError(UserError):
    """Another process of the same training has an error that a user can mend, and says it: this one ends too."""


class Terminated(SystemExit):
    """SIGTERM came, and the work under way is kept: the process ends with status 143."""

    def __init__(self) -> None:
        super().__init__(143)


_EXTRAS = {"train": ("accelerate", "rich"), "cli": ("docstring_parser", "jinja2", "matplotlib", "scipy", "tyro")}


def extra_of(error: ImportError) -> str:
    """What installs the package that an import lacks, in words; empty where it belongs to no extra."""
    name = (error.name or "").partition(".")[0]
    found = next((extra for extra, names in _EXTRAS.items() if name in names), None)
    return f"the package {name} is missing: pip install 'soatfast[{found}]'" if found else ""


class MissingDataError(UserError):
    """A data set is not there, its package is not installed, or one of its files is damaged."""


class RunFolderError(UserError):
    """A run folder cannot be written, or belongs to a run with other options."""


class DiskError(RunFolderError):
    """The disk is full, or may not be written."""


class OtherRunError(RunFolderError):
    """The folder holds a run with other options."""


class ModelError(UserError):
    """A model cannot be imported or made, or a weights file is missing, damaged or not the model's."""
