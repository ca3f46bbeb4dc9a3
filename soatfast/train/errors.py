"""The errors of :mod:`soatfast.errors`, where training code looks for them."""

from soatfast.errors import MissingDataError, RunFolderError, UserError

__all__ = ["MissingDataError", "RunFolderError", "UserError"]
