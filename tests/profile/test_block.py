"""What profile_passes counts, in scripts as they are written, and that it leaves them alone."""

import copy
import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import soatfast as sf
from tests.nets import conv_net

X, Y = torch.rand(6, 3, 8, 8), torch.arange(6) % 5


class Script:
    """A training script in small: a network with batch norm, its optimizer, and an attack written by hand."""

    def __init__(self, model=None):
        self.model = conv_net() if model is None else model
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def attack(self, steps=2, to_weights=True, clear=None):
        x = (X + torch.empty_like(X).uniform_(-0.1, 0.1)).clamp(0, 1)
        for _ in range(steps):
            x = x.detach().requires_grad_()
            loss = F.cross_entropy(self.model(x), Y)
            if to_weights:
                loss.backward()
                g = x.grad
            else:
                (g,) = torch.autograd.grad(loss, x)
            if clear is not None:
                self.optimizer.zero_grad(set_to_none=clear)
            x = (x + 0.05 * g.sign()).clamp(0, 1)
        return x.detach()

    def train(self, x, clear=True):
        self.optimizer.zero_grad(set_to_none=clear)
        F.cross_entropy(self.model(x), Y).backward()
        self.optimizer.step()


def profiled(run, steps=2):
    with sf.profile_passes() as report:
        for _ in range(steps):
            run()
    assert len(report.steps) == steps and report.rest.empty
    assert not report.doubts
    return report.steps[-1]


@pytest.mark.parametrize("clear", [True, False, None])
def test_parameter_gradients_that_are_thrown_away(clear):
    script = Script()
    step = profiled(lambda: script.train(script.attack(3, clear=clear), clear=clear is not False))
    assert (step.forward, step.backward_input, step.backward_parameters) == (4, 0, 4)
    assert step.unused_gradients == step.attack_passes == 3 and step.statistics == 4


def test_gradients_by_the_input_alone_waste_nothing():
    script = Script()
    step = profiled(lambda: script.train(script.attack(3, to_weights=False)))
    assert (step.forward, step.backward_input, step.backward_parameters) == (4, 3, 1)
    assert step.unused_gradients == 0 and step.attack_passes == 3


def test_seconds_add_up():
    script = Script()
    step = profiled(lambda: script.train(script.attack()))
    assert min(step.forward_seconds, step.backward_parameters_seconds, step.between_seconds) > 0
    assert step.attack_seconds < step.forward_seconds + step.backward_parameters_seconds
    assert 0 < step.attack_between < step.between_seconds < step.seconds


def test_gradients_that_an_optimizer_sees_are_used():
    """Accumulation over two batches, clipping, and the training on the noised batch whose input needs a gradient."""
    script = Script()

    def run():
        script.optimizer.zero_grad()
        for _ in range(2):
            F.cross_entropy(script.model(X.clone().requires_grad_()), Y).backward()
        nn.utils.clip_grad_norm_(script.model.parameters(), 0.01)
        script.optimizer.step()

    step = profiled(run)
    assert step.backward_parameters == 2 and step.unused_gradients == step.attack_passes == 0


def test_an_optimizer_with_a_closure():
    script = Script()
    script.optimizer = torch.optim.LBFGS(script.model.parameters(), max_iter=2)

    def closure():
        script.optimizer.zero_grad()
        loss = F.cross_entropy(script.model(X), Y)
        loss.backward()
        return loss

    step = profiled(lambda: script.optimizer.step(closure))
    assert step.backward_parameters >= 2 and step.unused_gradients == 0


def test_forwards_repeated_on_the_same_input():
    script = Script(conv_net().eval())

    def run():
        for _ in range(3):
            script.model(X)
            script.model(X.clone())  # the same numbers
        script.train(X)

    assert profiled(run).repeated == 6


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.data.add_(0.01),
        lambda x: x.data.copy_(x.flip(3)),
        lambda x: x[0, 0, 0, 0].add_(0.01),
        lambda x: x.data.copy_(x.roll(1, 0)),
    ],
)
def test_another_input_is_no_repetition(change):
    script, x = Script(conv_net().eval()), X.clone()

    def run():
        script.model(x)
        change(x)
        script.model(x)
        script.train(x.flip(2))

    assert profiled(run).repeated == 0


def test_dropout_and_another_mode_are_no_repetition():
    script = Script()

    def run():
        script.model(X)  # draws its dropout
        script.model.eval()(X)
        script.model.train()
        script.train(X)

    assert profiled(run).repeated == 0


def test_an_attack_with_an_optimizer_of_its_own_makes_no_step():
    script = Script()

    def run():
        delta = torch.zeros_like(X, requires_grad=True)
        inner = torch.optim.Adam([delta], lr=0.01)
        for _ in range(3):
            inner.zero_grad()
            (-F.cross_entropy(script.model(X + delta), Y)).backward()
            inner.step()
        script.train((X + delta).detach())

    step = profiled(run)
    assert step.attack_passes == step.unused_gradients == 3


def test_host_reads_outside_the_passes():
    script = Script()

    def run():
        x = script.attack(1)
        assert x.max() <= 1  # one
        script.train(x)
        x.mean().item()  # two
        torch.tensor([1, 2]).tolist()  # three

    assert profiled(run, 3).host_reads == 3


def test_without_an_optimizer_everything_is_the_rest():
    script = Script()
    with sf.profile_passes() as report:
        script.attack(4)
    assert not report.steps and report.rest.attack_passes == report.rest.unused_gradients == 4
    assert "No optimizer step" in report.table().note


# ---------------------------------------------------------------------------------------------- outermost modules


class Behind(nn.Module):
    """Without parameters, and the network as a plain attribute."""

    def __init__(self, inner):
        super().__init__()
        self.held = [inner]

    def forward(self, x):
        return self.held[0](x)


class Recomputed(nn.Module):
    def __init__(self, inner, reentrant):
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_is_no_pass_of_its_own(reentrant):
    script = Script(Recomputed(conv_net(), reentrant))
    step = profiled(lambda: script.train(script.attack(1)) if not reentrant else script.train(X.requires_grad_()))
    assert step.forward == (1 if reentrant else 2)


def test_a_loss_module_and_a_wrapper_without_parameters_are_looked_through():
    inner = conv_net()
    script = Script(inner)
    script.model = Behind(inner)
    criterion = nn.CrossEntropyLoss()
    with sf.profile_passes() as report:
        criterion(script.model(script.attack(1)), Y).backward()
        script.optimizer.step()
    assert report.steps[0].forward == 2 and len(report.models) == 1 and "Sequential" in report.models[0]


def test_two_models():
    script, teacher = Script(), conv_net(seed=1)

    def run():
        with torch.no_grad():
            teacher(X)
        script.train(X)

    assert profiled(run).forward == 2


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model(backend):
    script = Script(conv_net())
    script.model = torch.compile(script.model, backend=backend)
    with sf.profile_passes() as report:
        for _ in range(2):
            script.train(script.attack(2))
    assert [step.forward for step in report.steps] == [3, 3]
    assert [step.backward_parameters for step in report.steps] == [3, 3] and "compiled" in report.models[0]
    torch._dynamo.reset()


def test_a_scripted_model_is_said_not_to_be_counted():
    scripted = torch.jit.script(nn.Linear(4, 2))
    with sf.profile_passes() as report:
        scripted(torch.rand(2, 4))
    assert "it is scripted" in report.doubts[0]


def test_a_forward_that_raises():
    script = Script()

    def run():
        for wrong in (torch.rand(1), X[:, :2]):
            with pytest.raises(RuntimeError):
                script.model(wrong)
        script.train(X)

    assert profiled(run).forward == 1


# ---------------------------------------------------------------------------------------------- left alone


def test_weights_gradients_and_random_numbers_are_those_without_it():
    def run(block):
        torch.manual_seed(3)
        script = Script()
        with block:
            for _ in range(3):
                script.train(script.attack())
        state = script.model.state_dict()
        return [*state.values(), *(p.grad for p in script.model.parameters()), torch.get_rng_state()]

    plain, watched = run(torch.enable_grad()), run(sf.profile_passes())
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_nothing_is_left_behind():
    before = {name: getattr(torch.Tensor, name) for name in ("item", "tolist", "__bool__", "cpu", "numpy")}
    script, filters = Script(), list(warnings.filters)
    with sf.profile_passes() as report:
        script.train(script.attack())
    assert all(getattr(torch.Tensor, name) is value for name, value in before.items())
    hooks = torch.nn.modules.module
    assert not hooks._global_forward_pre_hooks and not hooks._global_forward_hooks and warnings.filters == filters
    assert not any(p._backward_hooks for p in script.model.parameters()) and not script.model._forward_hooks
    script.train(X)
    assert len(report.steps) == 1


def test_the_estimate_leaves_the_model_alone():
    script = Script()
    with sf.profile_passes() as report:
        for _ in range(3):
            script.train(script.attack())
    before = copy.deepcopy(script.model.state_dict())
    grads = [p.grad.clone() for p in script.model.parameters()]
    random, modes = torch.get_rng_state(), [m.training for m in script.model.modules()]
    estimate = report.estimate()
    assert estimate.reason == "" and estimate.after > 0
    assert {s.name for s in estimate.savings if s.exact} == {
        "no unused parameter gradients",
        "fused steps between the attack passes",
    }
    assert all(torch.equal(a, b) for a, b in zip(before.values(), script.model.state_dict().values(), strict=True))
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, script.model.parameters(), strict=True))
    assert torch.equal(random, torch.get_rng_state()) and modes == [m.training for m in script.model.modules()]
    exact = sum(s.seconds for s in estimate.savings if s.exact)
    assert estimate.after == pytest.approx(estimate.seconds - exact)


# ---------------------------------------------------------------------------------------------- ends


def test_the_block_ends_after_its_steps():
    script, after = Script(), []
    with sf.profile_passes(steps=2) as report:
        for _ in range(5):
            script.train(X)
            after.append(1)
    assert len(report.steps) == 2 and len(after) == 1


def test_a_script_that_catches_everything_still_ends():
    script, caught = Script(), []
    with sf.profile_passes(steps=1) as report:
        for _ in range(3):
            try:
                script.train(X)
            except:  # noqa: E722
                caught.append(1)
                if len(caught) == 2:
                    raise
    assert len(report.steps) == 1 and len(caught) == 2


def test_an_exception_of_the_block_is_its_own():
    script = Script()
    with pytest.raises(KeyError), sf.profile_passes() as report:
        script.train(X)
        script.model(X)
        raise KeyError
    assert len(report.steps) == 1 and report.rest.forward == 1


@pytest.mark.parametrize(("steps", "error"), [(0, ValueError), (1.5, TypeError), ("2", TypeError), (True, TypeError)])
def test_bad_steps(steps, error):
    with pytest.raises(error, match="steps must be"), sf.profile_passes(steps):
        pass


# ---------------------------------------------------------------------------------------------- estimate and report


class Keywords(nn.Module):
    """What it takes comes by keyword, and what it returns is a dictionary."""

    def __init__(self):
        super().__init__()
        self.inner = conv_net()

    def forward(self, scale, *, pixels):
        return {"logits": self.inner(scale * pixels)}


def test_an_estimate_of_a_model_with_keywords_and_a_dictionary():
    model = Keywords()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sf.profile_passes() as report:
        for _ in range(2):
            x = X.clone().requires_grad_()
            F.cross_entropy(model(torch.tensor(1.0), pixels=x)["logits"], Y).backward()
            optimizer.zero_grad()
            F.cross_entropy(model(torch.tensor(1.0), pixels=x.detach())["logits"], Y).backward()
            optimizer.step()
    assert report.estimate().reason == "" and report.estimate().after > 0


def test_an_estimate_of_a_regression():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Unflatten(1, (2, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sf.profile_passes() as report:
        x = X.clone().requires_grad_()
        torch.autograd.grad(model(x).square().mean(), x)
        model(X).square().mean().backward()
        optimizer.step()
    estimate = report.estimate()
    assert estimate.reason == "" and estimate.savings[0].name == "frozen weights in the attack passes"


def test_no_attack_no_estimate():
    script = Script()
    with sf.profile_passes() as report:
        script.train(X)
    estimate = report.estimate()
    assert "No pass of an attack" in estimate.reason and estimate.after == estimate.seconds and estimate.speed == 1
    assert report.lines() == []


def test_a_model_that_cannot_be_timed_says_why():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = conv_net()

        def forward(self, x):
            return {"a": [self.inner(x)]}

    model = Nested()
    with sf.profile_passes() as report:
        x = X.clone().requires_grad_()
        torch.autograd.grad(model(x)["a"][0].sum(), x)
    assert report.estimate().reason.startswith("No estimate: ValueError: model must return")


def test_report_json_table_and_picture(tmp_path):
    script = Script()
    with sf.profile_passes() as report:
        for _ in range(3):
            script.train(script.attack())
    report.estimate()
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert len(found["steps"]) == 3 and found["typical"]["attack_passes"] == 2
    assert found["estimate"]["savings"][0]["name"] == "no unused parameter gradients"
    assert "test_block.py" in found["places"][0]
    assert "| parameter gradients computed and thrown away |      2 |" in str(report)
    assert "by soatfast, same results" in report.estimate().table().to_markdown()
    assert any("steps=2" in line for line in report.lines())
    report.picture(tmp_path / "steps.png")
    assert (tmp_path / "steps.png").read_bytes()[:4] == b"\x89PNG"
