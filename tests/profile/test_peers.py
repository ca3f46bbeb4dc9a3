"""The attacks of other libraries, and trainings that other libraries run, are seen as well."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import soatfast as sf
from tests.nets import relu_net

X, Y = torch.rand(8, 1, 4, 4), torch.arange(8) % 4


def by_torchattacks(model):
    attacks = pytest.importorskip("torchattacks")
    return lambda: attacks.PGD(model, eps=0.1, alpha=0.05, steps=3)(X, Y)


def by_foolbox(model):
    foolbox = pytest.importorskip("foolbox")
    wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1))
    return lambda: foolbox.attacks.LinfPGD(steps=3)(wrapped, X, Y, epsilons=0.1)[1]


def by_art(model):
    pytest.importorskip("art")
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    wrapped = PyTorchClassifier(model, torch.nn.CrossEntropyLoss(), (1, 4, 4), 4, clip_values=(0, 1))
    attack = ProjectedGradientDescentPyTorch(wrapped, eps=0.1, eps_step=0.05, max_iter=3, verbose=False)
    return lambda: torch.from_numpy(attack.generate(X.numpy(), Y.numpy()))


@pytest.mark.parametrize("attack_by", [by_torchattacks, by_foolbox, by_art])
def test_an_attack_of_another_library(attack_by):
    model = relu_net(torch.float32)
    attack = attack_by(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sf.profile_passes(steps=2) as report:
        while True:
            x_adv = attack()
            optimizer.zero_grad()
            F.cross_entropy(model(x_adv), Y).backward()
            optimizer.step()
    assert [step.attack_passes for step in report.steps] == [3, 3]
    library = attack_by.__name__.removeprefix("by_")
    assert report.places[0].endswith(f", through {library}") and "test_peers.py" in report.places[0]
    assert report.estimate().reason == ""


def attacked(model, x, y):
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    return (x + 0.1 * g.sign()).clamp(0, 1)


def test_a_training_by_accelerate():
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
    model = relu_net(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(TensorDataset(X, Y), 4))
    with sf.profile_passes() as report:
        for x, y in loader:
            x_adv = attacked(model, x, y)
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(model(x_adv), y))
            optimizer.step()
    assert [(step.forward, step.attack_passes) for step in report.steps] == [(2, 1), (2, 1)]


def test_a_training_by_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = relu_net(torch.float32)

        def training_step(self, batch, index):
            x, y = batch
            return F.cross_entropy(self.net(attacked(self.net, x, y)), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=5, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    with sf.profile_passes(steps=3) as report:
        trainer.fit(Module(), DataLoader(TensorDataset(X, Y), 4))
    assert [(step.forward, step.attack_passes) for step in report.steps[1:]] == [(2, 1), (2, 1)]
