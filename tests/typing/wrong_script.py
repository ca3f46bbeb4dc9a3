"""What a strict type checker has to refuse: one mistake a line, and a word that the error has in it."""

import torch

import soatfast as sf


def mistakes() -> None:
    from soatfast.compat.torchattacks import APGDX as APGDX  # error: APGDX

    model, x, y = torch.nn.Linear(4, 3), torch.rand(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    sf.PDG(eps=0.1)  # error: PDG
    sf.PGD(engine=3)  # error: engine
    sf.PGD(epsilon=0.1)  # error: epsilon
    sf.PGD(engine="bf16+chanels_last")  # error: engine
    sf.SimBA(objective="margn")  # error: objective
    sf.MART(objective="cross-entropy")  # error: objective
    sf.TRADES(steps="10")  # error: steps
    sf.AdversarialTraining(attack="pgd")  # error: Attack
    sf.PerturbationMemory("100", (4,))  # error: int
    sf.InputGradient(model, mode="evil")  # error: mode
    sf.gmres(torch.relu, x, max_dim=2)  # error: rtol
    sf.evaluate.suit(model, [(x, y)])  # error: suit
    sf.evaluate.suite(model, [(x, y)], {"pgd": 3})  # error: int
    sf.ops.lmo(x, 2)  # error: eps
    length: str = sf.ops.lp_norm(x, 2)  # error: Tensor
    print(length)
