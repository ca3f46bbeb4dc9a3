"""Drop-in names for scripts written for other code: one changed import."""

from soatfast.compat.fast_adversarial import attack_pgd
from soatfast.compat.free import FreePerturbation
from soatfast.compat.mart import mart_loss
from soatfast.compat.n_fgsm import n_fgsm_delta
from soatfast.compat.trades import trades_loss

__all__ = ["FreePerturbation", "attack_pgd", "mart_loss", "n_fgsm_delta", "trades_loss"]
