"""A user's script as a strict type checker sees it: the public names, their arguments and what they return."""

from collections.abc import Callable
from typing import assert_type

import torch
from torch import Tensor, nn

import soatfast as sf

model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
x, y = torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])

attack = sf.PGD(eps=8 / 255, steps=10, engine="eager")
assert_type(attack(model, x, y), Tensor)
assert_type(attack.with_eps(0.1), sf.PGD)
assert_type(attack.with_steps(3), sf.PGD)
assert_type(attack.passes(6), sf.Passes)
bound: Callable[[Tensor, Tensor], Tensor] = attack.bind(model)

trades = sf.TRADES(eps=8 / 255, steps=3, beta=6.0)
assert_type(trades(model, x, y), Tensor)
assert_type(trades.with_eps(0.1), sf.TRADES)
trades(model, x, y).backward()  # type: ignore[no-untyped-call]  # torch's own
value, output = sf.TRADES(return_output=True)(model, x, y)
correct = (output.argmax(1) == y).sum()

memory = sf.PerturbationMemory(100, (1, 2, 2), torch.int8, augment=sf.CropFlip(padding=1))
memory = sf.PerturbationMemory(100, (1, 2, 2))
criterion = sf.AdversarialTraining(sf.FrankWolfe(eps=0.1, steps=1), memory=memory)
loss = criterion(model, x, y, torch.arange(6))
torch.autograd.backward(loss)

with sf.InputGradient(model) as oracle:
    assert_type(oracle, sf.InputGradient)
    value, gradient = oracle(x, y)
    assert_type(value, Tensor)
    pair = sf.top_eigenpair(oracle, x, y, max_dim=2)
    assert_type(pair.value, Tensor)

    def product(v: Tensor) -> Tensor:
        return sf.hvp(oracle, x, y, v) + v

    solved = sf.gmres(product, gradient, max_dim=2, rtol=1e-3)
    assert_type(solved, sf.GMRESResult)
    assert_type(solved.converged, Tensor)

with sf.count_passes(model) as counted:
    attack(model, x, y)
assert_type(counted.forward, int)
assert_type(counted.total(), sf.Passes)

result = sf.evaluate.suite(model, [(x, y)], {"pgd": attack}, folder=None, quality=False)
assert_type(result["pgd"].accuracy, float)
assert_type(result.table().to_markdown(), str)
assert_type(sf.evaluate.accuracy(model, [(x, y)], attack).accuracy, float)
assert_type(sf.ops.lmo(x, 2, 0.1), Tensor)
assert_type(sf.show_config(), str)
assert_type(sf.__version__, str)
