"""PI-FGSM++ (Gao et al. 2020b)."""

from __future__ import annotations

from torch import Tensor, nn

from soatfast import attacks
from soatfast.compat.torchattacks.attack import Attack


class PIFGSMPP(Attack):
    """:class:`soatfast.attacks.PIFGSM` along a blurred gradient, Linf. ``momentum`` and ``prob`` are of no use.

    The blur is torchattacks': Gaussian down the columns, even along the rows; the paper's is Gaussian both ways. In a
    targeted mode it goes towards the target; torchattacks goes towards the label, whatever the mode.
    """

    def __init__(
        self,
        model: nn.Module,
        max_epsilon: float = 16 / 255,
        num_iter_set: int = 10,
        momentum: float = 1.0,
        amplification: float = 10.0,
        prob: float = 0.7,
        project_factor: float = 0.8,
    ):
        super().__init__("PIFGSMPP", model)
        self.max_epsilon = max_epsilon
        self.num_iter_set = num_iter_set
        self.momentum = momentum
        self.amplification = amplification
        self.prob = prob
        self.project_factor = project_factor
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        images, labels = self._inputs(images, labels)
        down = attacks.gaussian_kernel(3, 3.0)  # (3, 3)
        kernel = down.T.unsqueeze(2).expand(3, 3, 3)  # (C, h, w): column C of the Gaussian, again and again
        attack = attacks.PIFGSM(
            eps=self.max_epsilon,
            steps=self.num_iter_set,
            amplification=self.amplification,
            project_factor=self.project_factor,
            carried=False,
            kernel=kernel if images.shape[1] == 3 else kernel[1],
            targeted=self.targeted,
            mode="keep",
        )
        return self._run(attack, images, labels)
