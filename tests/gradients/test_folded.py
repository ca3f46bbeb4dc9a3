"""Engine "folded": eager's gradients, the model as it was, and eager itself where nothing can be folded."""

import copy
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from soatfast.attacks import PGD, FrankWolfe
from soatfast.evaluate import suite
from soatfast.gradients import InputGradient, count_passes, folding, tune
from soatfast.gradients.folded import Fold, foldable
from soatfast.train.models import FastVGG, ResNet18, WideResNet


def ready(model, shape, dtype=torch.float64, batch=4, seed=0):
    """The model in eval mode with statistics and weights of batch norm that are not the first ones; a batch."""
    torch.manual_seed(seed)
    model = model.to(dtype)
    x, y = torch.rand(batch, *shape, dtype=dtype), torch.arange(batch) % 2
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
        for _ in range(3):
            model.train()(x)
    return model.eval(), x, y


def gradient(model, x, y, engine, **options):
    with InputGradient(model, engine=engine, **options) as oracle:
        return oracle.gradient(x, y)


def assert_folds(model, x, y, folded, total):
    found = foldable(model)
    assert (found.folded, found.total) == (folded, total), found.kept
    g = gradient(model, x, y, "eager")
    assert g.abs().max() > 0
    assert (gradient(model, x, y, "folded") - g).abs().max() <= 1e-12 * g.abs().max()


def tail(channels, pool=nn.AdaptiveAvgPool2d):
    return nn.Sequential(nn.Softplus(), pool(1), nn.Flatten(), nn.Linear(channels, 3))


@pytest.mark.parametrize(
    ("make", "folded", "total"),
    [
        (lambda: ResNet18(width=4), 20, 20),
        (lambda: FastVGG(width=4, size=16), 3, 6),  # a pool lies between the others
        (lambda: WideResNet(depth=10, widen=1), 3, 7),  # the others follow an addition
    ],
)
def test_the_projects_networks(make, folded, total):
    assert_folds(*ready(make(), (3, 16, 16)), folded, total)


@pytest.mark.parametrize(
    ("name", "folded", "total"),
    [
        ("resnet10t", 14, 14),
        ("mobilenetv3_small_050", 34, 34),
        ("efficientnet_b0", 49, 49),
        ("densenet121", 59, 121),
        ("regnetx_002", 44, 44),
        ("convnext_atto", 0, 0),
        ("resnetv2_50", 32, 49),
        ("inception_v3", 94, 94),
    ],
)
def test_timms_networks(name, folded, total):
    timm = pytest.importorskip("timm")
    assert_folds(*ready(timm.create_model(name, num_classes=4), (3, 96, 96), batch=2), folded, total)


LAYERS = {
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (4, 8, 8)),
    "dilated": (nn.Conv2d(2, 6, 3, dilation=2, padding=2, bias=False), nn.BatchNorm2d(6), (2, 8, 8)),
    "strided, reflecting": (nn.Conv2d(2, 6, 3, 2, 1, padding_mode="reflect"), nn.BatchNorm2d(6), (2, 8, 8)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), (4, 5, 5)),
    "transposed, grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), (4, 5, 5)),
    "without weights": (nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6, affine=False), (2, 8, 8)),
    "synchronised": (nn.Conv2d(2, 6, 3), nn.SyncBatchNorm(6), (2, 8, 8)),
    "many weights": (nn.Conv2d(64, 70, 5), nn.BatchNorm2d(70), (64, 6, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layers_of_images(kind, layout):
    layer, norm, shape = copy.deepcopy(LAYERS[kind])
    if kind == "synchronised":  # which trains on GPUs only
        model, x, y = ready(nn.Sequential(layer, nn.BatchNorm2d(6), tail(6)), shape)
        norm.load_state_dict(model[1].state_dict())
        model[1] = norm.double().eval()
    else:
        model, x, y = ready(nn.Sequential(layer, norm, tail(norm.num_features)), shape)
    assert_folds(model.to(memory_format=layout), x, y, 1, 1)


@pytest.mark.parametrize(
    ("layer", "norm", "shape", "pool"),
    [
        (nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), (2, 9), nn.AdaptiveAvgPool1d),
        (nn.ConvTranspose1d(2, 6, 3), nn.BatchNorm1d(6), (2, 9), nn.AdaptiveAvgPool1d),
        (nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), (2, 5, 5, 5), nn.AdaptiveAvgPool3d),
        (nn.ConvTranspose3d(2, 6, 3), nn.BatchNorm3d(6), (2, 3, 3, 3), nn.AdaptiveAvgPool3d),
    ],
)
def test_layers_of_other_dimensions(layer, norm, shape, pool):
    assert_folds(*ready(nn.Sequential(layer, norm, tail(6, pool)), shape), 1, 1)


def test_linear_layers_and_batch_norm_of_another_axis():
    assert_folds(*ready(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Softplus(), nn.Linear(6, 3)), (5,)), 1, 1)
    rows = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Softplus(), nn.Flatten(), nn.Linear(36, 3))
    model, x, y = ready(rows, (6, 5))  # normalised along the second axis, which is not the layer's
    assert torch.equal(gradient(model, x, y, "folded"), gradient(model, x, y, "eager"))


class Wired(nn.Module):
    """A convolution, a batch norm, and a way to connect them."""

    def __init__(self, wire):
        super().__init__()
        self.wire = wire
        self.conv, self.conv2 = nn.Conv2d(2, 6, 3), nn.Conv2d(2, 6, 3)
        self.norm, self.norm2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.tail = tail(6)
        self.kept = []

    def forward(self, x):
        return self.tail(self.wire(self, x))


def twice_read(m, x):
    z = m.conv(x)
    return m.norm(z) + z


def changed_in_place(m, x):
    z = m.conv(x)
    z.mul_(2)
    return m.norm(z)


def kept_elsewhere(m, x):
    m.kept[:] = [m.conv(x)]
    return m.norm(m.kept[0]) + m.kept[0]


def two_norms(m, x):
    return m.norm(m.conv(x)) + m.norm2(m.conv(x))


@pytest.mark.filterwarnings('ignore:engine "folded" runs')
@pytest.mark.parametrize(
    ("wire", "folded"),
    [
        (lambda m, x: m.norm(m.conv(x)), 1),
        (lambda m, x: m.norm(m.conv(x)) + m.norm2(m.conv2(x)), 2),
        (lambda m, x: m.norm(m.conv(x)) + m.norm(m.conv2(x)), 1),  # one norm of two layers
        (lambda m, x: m.norm(m.conv(x)) + m.norm(m.conv(x * 2)), 1),  # both of them twice
        (two_norms, 0),
        (twice_read, 0),
        (changed_in_place, 0),
        (kept_elsewhere, 0),
        (lambda m, x: m.norm(torch.relu(m.conv(x))), 0),
    ],
)
def test_ways_to_connect_them(wire, folded):
    model, x, y = ready(Wired(wire), (2, 8, 8))
    with torch.no_grad():
        model.norm2.running_mean.normal_()
    found, g = foldable(model), gradient(model, x, y, "eager")
    assert found.folded == folded
    assert (gradient(model, x, y, "folded") - g).abs().max() <= 1e-12 * g.abs().max()


def test_two_layers_that_share_their_weights():
    model, x, y = ready(Wired(lambda m, x: m.norm(m.conv(x)) + m.norm2(m.conv2(x)) + m.conv2(x)), (2, 8, 8))
    model.conv2.weight = model.conv.weight
    found, g = foldable(model), gradient(model, x, y, "eager")
    assert found.folded == 1
    assert (gradient(model, x, y, "folded") - g).abs().max() <= 1e-12 * g.abs().max()


def usual(**kinds):
    return ready(nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6, **kinds), tail(6)), (2, 8, 8))


def scripted():
    model, x, y = usual()
    return torch.jit.script(model), x, y


def compiled():
    model, x, y = usual()
    return torch.compile(model, backend="eager"), x, y


def hooked():
    model, x, y = usual()
    model[0].register_forward_hook(lambda module, args, out: out * 2)
    return model, x, y


def replicated():
    model, x, y = usual()
    return nn.DataParallel(model), x, y


def parametrised():
    model, x, y = usual()
    parametrizations.weight_norm(model[0])
    return model, x, y


def grown():
    """A batch norm that is more than one."""

    class Residual(nn.BatchNorm2d):
        def forward(self, x):
            return x + nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)

    return ready(nn.Sequential(nn.Conv2d(2, 6, 3), Residual(6), tail(6)), (2, 8, 8))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: usual(track_running_stats=False), "statistics of the batch"),
        (scripted, "it is scripted"),
        (compiled, "inside OptimizedModule"),
        (hooked, "hooks"),
        (replicated, "inside DataParallel"),
        (parametrised, "follows Parametrized"),
        (grown, "Residual does more than a batch norm"),
    ],
)
def test_what_cannot_be_folded_is_eager_and_said_once(make, reason):
    model, x, y = make()
    for _ in range(3):  # a scripted model is made faster in its first calls
        expected = gradient(model, x, y, "eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert torch.equal(gradient(model, x, y, "folded"), expected)
    said = [str(w.message) for w in caught if "folded" in str(w.message)]
    assert len(said) == 1 and reason in said[0]


@pytest.mark.parametrize("mode", ["train", "keep"])
def test_a_model_in_train_mode_is_eager(mode):
    model, x, y = usual()
    model.train()
    expected = gradient(model, x, y, "eager", mode=mode)
    with pytest.warns(UserWarning, match='runs Sequential as "eager": 0 of 1 .* statistics of the batch'):
        assert torch.equal(gradient(model, x, y, "folded", mode=mode), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient(model, x, y, "folded", mode=mode)


def test_quantised_models_have_no_gradient_with_either_engine():
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).eval()
    low = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    for engine in ("eager", "folded"):
        with pytest.raises(ValueError, match="no gradient by its input"):
            gradient(low, torch.rand(2, 8), torch.tensor([0, 1]), engine)


class Choosy(nn.Module):
    """Its forward asks what no trace can answer; its children can be traced."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Softplus())
        self.conv, self.norm = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)
        self.tail = tail(6)
        self.calls = 0
        self.seen = []

    def forward(self, x):
        self.calls += 1
        x = self.first(x)
        self.seen.append(x)
        if x.sum() > 1e9:
            return x
        return self.tail(self.norm(self.conv(x)))


def test_a_model_that_cannot_be_traced_is_traced_child_by_child_and_left_as_it_was():
    model, x, y = ready(Choosy(), (2, 8, 8))
    model.calls, model.seen = 0, []
    state = torch.random.get_rng_state()
    assert_folds(model, x, y, 1, 2)
    assert foldable(model).kept == {"norm": foldable(model).kept["norm"]}
    assert "Choosy cannot be traced: symbolically traced variables" in foldable(model).kept["norm"]
    assert model.calls == 2 and len(model.seen) == 2 and all(isinstance(z, torch.Tensor) for z in model.seen)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("change", ["in place", "data", "statistics", "load_state_dict"])
def test_weights_that_change_between_two_attacks_count(change):
    model, x, y = usual()
    gradient(model, x, y, "folded")
    if change == "in place":
        with torch.no_grad():
            model[0].weight.mul_(1.5)
    elif change == "data":
        model[0].weight.data = model[0].weight.data * 1.5
        model[1].bias.data.add_(1)
    elif change == "statistics":
        model.train()(x)
        model.eval()
    else:
        model.load_state_dict({k: v * 2 if v.is_floating_point() else v for k, v in model.state_dict().items()})
    assert_folds(model, x, y, 1, 1)


def test_weights_that_change_in_place_inside_the_block_count():
    model, x, y = usual()
    with InputGradient(model, engine="folded") as oracle:
        first = oracle.gradient(x, y)
        with torch.no_grad():
            model[1].weight.mul_(3)
        second = oracle.gradient(x, y)
    g = gradient(model, x, y, "eager")
    assert (second - g).abs().max() <= 1e-12 * g.abs().max() < (first - second).abs().max()


def test_hooks_that_come_later_and_attributes_that_change_are_seen():
    model, x, y = ready(Switched(), (2, 8, 8))
    assert_folds(model, x, y, 1, 1)
    model.both = True
    with pytest.warns(UserWarning, match="other readers too"):
        assert torch.equal(gradient(model, x, y, "folded"), gradient(model, x, y, "eager"))
    model.both = False
    seen = []
    handle = model.conv.register_forward_hook(lambda module, args, out: seen.append(out))
    with pytest.warns(UserWarning, match="hooks"):
        gradient(model, x, y, "folded")
    with torch.no_grad():
        assert torch.equal(seen[0], model.conv(x))
    handle.remove()
    assert_folds(model, x, y, 1, 1)


class Switched(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.tail, self.both = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), tail(6), False

    def forward(self, x):
        z = self.conv(x)
        return self.tail(self.norm(z) + z if self.both else self.norm(z))


def test_a_block_with_a_hook_shows_it_what_eager_does():
    model, x, y = ready(nn.Sequential(nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)), tail(6)), (2, 8, 8))
    seen = []
    model[0].register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    assert_folds(model, x, y, 1, 1)
    assert len(seen) == 2 and (seen[0] - seen[1]).abs().max() < 1e-12 and seen[0].requires_grad is False


def test_an_output_that_goes_another_way_is_noticed_and_the_pass_is_eagers():
    """forward= uses the modules in a way that the model's own forward does not."""
    model, x, y = usual()
    odd = {"forward": lambda m, x: m[2](m[0](x))}
    expected = gradient(model, x, y, "eager", **odd)
    with pytest.warns(UserWarning, match="its output did not go to its batch norm alone"):
        assert torch.equal(gradient(model, x, y, "folded", **odd), expected)
    with pytest.warns(UserWarning, match="gone elsewhere"):  # and is not tried again
        assert torch.equal(gradient(model, x, y, "folded", **odd), expected)


def test_checkpointed_blocks():
    class Saves(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Softplus())
            self.tail = tail(6)

        def forward(self, x):
            if not isinstance(x, torch.Tensor):
                raise TypeError("no tensor")
            return self.tail(checkpoint(self.block, x, use_reentrant=False))

    assert_folds(*ready(Saves(), (2, 8, 8)), 1, 1)


def test_the_model_is_the_callers_between_two_passes_and_after_an_exception():
    model, x, y = usual()
    before = [dict(vars(m)) for m in model.modules()]
    ids = [id(p) for p in (*model.parameters(), *model.buffers())]
    expected = model(x)
    with InputGradient(model, engine="folded") as oracle:
        oracle.gradient(x, y)
        assert torch.equal(model(x), expected)
        model[2].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            oracle.gradient(x, y)
        model[2]._forward_hooks.clear()
        assert torch.equal(model(x), expected)
    assert [vars(m).keys() for m in model.modules()] == [b.keys() for b in before]
    assert [id(p) for p in (*model.parameters(), *model.buffers())] == ids


@pytest.mark.parametrize("attack", [PGD, FrankWolfe])
def test_passes_are_counted_as_declared(attack):
    model, x, y = ready(ResNet18(width=4), (3, 8, 8), torch.float32)
    attack = attack(eps=0.1, engine="folded")
    for _ in range(2):
        with count_passes(model) as passes:
            x_adv = attack(model, x, y)
        assert passes.total() == attack.passes(len(x))
    assert (x_adv - x).abs().max() <= 0.1 + 1e-7


def test_parameters_that_need_gradients_keep_them():
    model, x, y = usual()
    with (
        pytest.warns(UserWarning, match="parameters need gradients"),
        InputGradient(model, engine="folded", freeze=False) as oracle,
    ):
        oracle.gradient(x, y)


def test_the_jacobian_is_eagers():
    model, x, y = usual()
    found = []
    for engine in ("eager", "folded"):
        with InputGradient(model, engine=engine) as oracle:
            found.append(oracle.jacobian(x, y)[1])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_another_threads_model_runs_while_one_is_traced():
    model, x, _ = ready(ResNet18(width=4), (3, 8, 8))
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).double().eval()
    wanted, stop, wrong = other(x), threading.Event(), []

    def work():
        while not stop.is_set():
            try:
                if not torch.equal(other(x), wanted):
                    wrong.append("numbers")
            except Exception as error:
                wrong.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(5):
            folding._traces.clear()
            assert foldable(model).folded == 20
    finally:
        stop.set()
        thread.join()
    assert not wrong


def test_tune_times_it():
    model, x, y = ready(ResNet18(width=4), (3, 8, 8), torch.float32)
    found = {t.engine: t for t in tune(model, x, y, ["folded"], steps=1, rounds=1)}
    assert found["folded"].cosine > 0.9999


def test_weights_beyond_the_range_of_float16_are_not_folded_for_it():
    model, x, y = usual()
    model, x = model.float(), x.float()
    with torch.no_grad():
        model[1].running_var.fill_(1e-12)
        model[1].weight.fill_(1e6)
    with pytest.warns(UserWarning, match="leave the range of their dtype"):
        gradient(model, x, y, "fp16+folded")
    assert foldable(model).folded == 1


def test_wrapped_and_sharded_models(tmp_path):
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        model, x, y = usual()
        expected = gradient(model, x, y, "eager")
        wrapped = nn.parallel.DistributedDataParallel(model)
        for each in (wrapped, nn.Sequential(wrapped)):
            found = gradient(each, x, y, "folded")
            assert not torch.equal(found, expected) and (found - expected).abs().max() <= 1e-12 * expected.abs().max()
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        sharded = torch.distributed.fsdp.fully_shard(usual()[0], mesh=mesh)
        with pytest.warns(UserWarning, match="the model is sharded"):
            found = gradient(sharded, x, y, "folded")
        assert torch.equal(found, gradient(sharded, x, y, "eager"))
    finally:
        torch.distributed.destroy_process_group()


def test_evaluations_run_it_too(monkeypatch):
    model, x, y = ready(ResNet18(width=4), (3, 8, 8))
    calls, usual_forward = [], Fold._layer_forward
    monkeypatch.setattr(Fold, "_layer_forward", lambda *args: calls.append(1) or usual_forward(*args))
    y, found = model(x).argmax(1), []
    for engine in ("eager", "folded"):
        attack = PGD(eps=0.01, steps=3, random_start=False, engine=engine)
        found.append(suite(model, [(x, y)], {"pgd": attack})["pgd"].accuracy)
    assert found[0] == found[1] and len(calls) >= 20
