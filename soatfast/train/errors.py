"""The errors of :mod:`soatfast.errors`, where training code looks for them."""

from soatfast.errors import MissingDataError, ModelError, RunFolderError, UserError

__all__ = ["MissingDataError", "ModelError", "RunFolderError", "UserError"]
