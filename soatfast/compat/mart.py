"""`mart_loss` with the signature of the MART authors' `mart.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soatfast.compat.trades import _OfficialPGD
from soatfast.losses.base import mean, training_logits
from soatfast.losses.mart import MART


def mart_loss(
    model: nn.Module,
    x_natural: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    step_size: float = 0.007,
    epsilon: float = 0.031,
    perturb_steps: int = 10,
    beta: float = 6.0,
    distance: str = "l_inf",
) -> Tensor:
    r"""The MART loss (Wang et al., ICLR 2020) as the authors' code computes it: the scalar to call ``.backward()`` on.

        mean_i [ -log q_y - log(1.0001 - max_{k != y} q_k + 1e-12) + beta (1.0000001 - p_y) KL(p || q) ]

    p = softmax(f(x)), q = softmax(f(x')), and KL has log(q + 1e-12). A script that has ``from mart import mart_loss``
    needs ``from soatfast.compat.mart import mart_loss`` instead, and gets what it had, up to rounding: the value and
    the parameters' gradients under the same seed, the random numbers consumed, batch norm's running statistics, the
    model in train mode, the optimiser's gradients cleared. :class:`~soatfast.losses.MART` is the loss for new scripts:
    its logarithms need no constants.

    x' starts at x + 0.001 N(0, I), whose random numbers come from the CPU generator on every device, and takes
    ``perturb_steps`` steps of ``step_size`` in eval mode, in the ball of radius ``epsilon`` and in [0, 1].

    Different are the errors: x outside [0, 1] or with NaN and labels out of range raise. So does a ``distance`` other
    than "l_inf": the original then makes no attack, and trains on x with noise.

    Args:
        model: maps (B, ...) to logits (B, K).
        x_natural: images (B, ...) in [0, 1].
        y: labels (B,).
        optimizer: whose ``zero_grad()`` is called before the training forwards.
        step_size, epsilon: in input units.
        perturb_steps: at least 1.
        beta: weight of the divergence, the paper's lambda.
        distance: "l_inf".

    Defaults: the original's.

    Raises:
        TypeError, ValueError: an argument is wrong, as the message says; the model's mode is as before then.

    Passes, K steps: K + 2 forwards, K backwards to the input, 1 to the parameters, as the original.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> loss = mart_loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]), optimizer)
    >>> loss.backward()
    >>> optimizer.step()
    """
    if distance != "l_inf":
        raise ValueError(f'distance must be "l_inf", as the original attacks for no other, got {distance!r}')
    MART(eps=epsilon, steps=perturb_steps, step_size=step_size, beta=beta)  # has the checks of these
    x_adv = _OfficialPGD(eps=epsilon, steps=perturb_steps, step_size=step_size)(model, x_natural, y)
    model.train()
    optimizer.zero_grad()
    clean = training_logits(model, x_natural, y)
    adversarial = training_logits(model, x_adv, y)
    label = y.long().unsqueeze(1)
    p, q = clean.softmax(1), adversarial.softmax(1)
    rival = q.scatter(1, label, -1.0).argmax(1, keepdim=True)
    boosted = F.cross_entropy(adversarial, y.long(), reduction="none")
    boosted = boosted - (1.0001 - q.gather(1, rival) + 1e-12).log().squeeze(1)
    divergence = F.kl_div((q + 1e-12).log(), p, reduction="none").sum(1)
    return mean(boosted + float(beta) * divergence * (1.0000001 - p.gather(1, label).squeeze(1)))
