"""Attacks and losses on a GPU: as on the CPU, without waiting for the device, with the model left as it was."""

import pytest
import torch

from soatfast.attacks import FrankWolfe
from soatfast.compat.trades import trades_loss
from soatfast.gradients import count_passes
from soatfast.losses import MART, SCORPIO, SORA, TRADES
from soatfast.memory.store import PerturbationMemory
from tests.attacks.test_attacks import ATTACKS, DETERMINISTIC, name
from tests.nets import batch, conv_net, relu_net

pytestmark = pytest.mark.cuda
# Of u in [-1, 1]: values that differ in their last bit may be kept one step of the format apart.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.int8: 1.01 / 127}


@pytest.fixture
def no_synchronisation():
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("attack", DETERMINISTIC, ids=name)
def test_equals_the_cpu(attack):
    model, (x, y) = relu_net(), batch()
    expected = attack(model, x, y)
    x_adv = attack(model.cuda(), x.cuda(), y.cuda())
    torch.testing.assert_close(x_adv.cpu(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("attack", ATTACKS, ids=name)
def test_never_waits_for_the_device(attack, no_synchronisation):
    model, (x, y) = relu_net(torch.float32).cuda(), batch(dtype=torch.float32)
    x, y = x.cuda(), y.cuda()
    attack(model, x, y)  # loads and compiles what it needs
    no_synchronisation()
    with count_passes(model) as passes:
        x_adv = attack(model, x, y)
    torch.cuda.set_sync_debug_mode("default")
    assert passes.total() == attack.passes(len(x))
    assert x_adv.min() >= 0 and x_adv.max() <= 1


@pytest.mark.parametrize("mode", ["eval", "train", "keep"])
def test_training_step_leaves_the_model_in_its_mode(mode):
    model, (x, y) = conv_net().train().cuda(), batch(n=8, shape=(3, 8, 8), dtype=torch.float32)
    SCORPIO(eps=0.1, mode=mode)(model, x.cuda(), y.cuda()).backward()
    assert all(m.training for m in model.modules())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("loss", [TRADES(eps=0.1), TRADES(eps=0.1, mode="keep"), MART(eps=0.1), SORA(eps=0.1)], ids=str)
def test_a_training_step_never_waits_for_the_device(loss, no_synchronisation):
    model, (x, y) = conv_net().train().cuda(), batch(n=8, shape=(3, 8, 8), dtype=torch.float32)
    x, y = x.cuda(), y.cuda()
    loss(model, x, y).backward()  # loads and compiles what it needs
    no_synchronisation()
    value = loss(model, x, y)
    value.backward()
    torch.cuda.set_sync_debug_mode("default")
    assert value.isfinite() and all(m.training for m in model.modules())
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("distance", ["l_inf", "l_2"])
def test_trades_loss_is_that_of_the_cpu(distance):
    """The start comes from the CPU generator, as the authors' does."""
    x, y = batch()
    values = []
    for device in ("cpu", "cuda"):
        model = relu_net().to(device)
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        values.append(trades_loss(model, x.to(device), y.to(device), optimizer, distance=distance).cpu())
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_replay_equals_the_cpu_and_never_waits(dtype, no_synchronisation):
    model, (x, y) = relu_net(torch.float32), batch(dtype=torch.float32)
    index = torch.arange(len(x)).flip(0)
    memories = [PerturbationMemory(len(x), x.shape[1:], dtype, device) for device in ("cpu", "cuda")]
    attack = FrankWolfe(eps=0.1, steps=2)
    for _ in range(3):
        expected = attack.replay(model.cpu(), x, y, memories[0], index)
        on_gpu = model.cuda(), x.cuda(), y.cuda(), memories[1], index.cuda()
        attack.replay(*on_gpu[:3], PerturbationMemory(len(x), x.shape[1:], dtype, "cuda"), on_gpu[4])  # compiles
        no_synchronisation()
        x_adv = attack.replay(*on_gpu)
        torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(x_adv.cpu(), expected, rtol=0, atol=1e-5)
    u = [memory.read(index).cpu() for memory in memories]
    torch.testing.assert_close(*u, rtol=0, atol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("p", [2, float("inf")])
def test_a_memory_on_the_cpu_serves_a_gpu_batch(dtype, p):
    model, (x, y) = relu_net(torch.float32).cuda(), batch(dtype=torch.float32)
    memories = [PerturbationMemory(len(x), x.shape[1:], dtype, device) for device in ("cpu", "cuda")]
    index = torch.arange(len(x), device="cuda")
    for _ in range(2):
        a, b = (FrankWolfe(eps=0.1, p=p, steps=1).replay(model, x.cuda(), y.cuda(), m, index) for m in memories)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    u = [memory.read(index).cpu() for memory in memories]
    torch.testing.assert_close(*u, rtol=0, atol=1e-6)  # the same launch on the same bits
