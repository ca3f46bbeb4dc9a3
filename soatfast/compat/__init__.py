"""Drop-in names for scripts written for other code: one changed import."""

from soatfast.compat.trades import trades_loss

__all__ = ["trades_loss"]
