"""The training loop: any loss of soatfast.losses on Hugging Face Accelerate, with exact resume."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import TensorDataset, default_collate

from soatfast.gradients.counting import count_passes
from soatfast.gradients.state import ModelState
from soatfast.losses import FreeState, Loss, SORAState
from soatfast.memory.store import PerturbationMemory
from soatfast.runs import files
from soatfast.runs.errors import UserError
from soatfast.runs.folder import check_options, write_options
from soatfast.runs.progress import Progress
from soatfast.train import checkpoint
from soatfast.train.averaging import AveragedModel, averaged
from soatfast.train.config import TrainConfig, TrainResult
from soatfast.train.curriculum import eps_of, scaled
from soatfast.train.data.batches import Batch, Batches
from soatfast.train.data.indexed import check_unchanging
from soatfast.train.data.sets import Data
from soatfast.train.guard import OverfittingGuard


@dataclass
class _State:
    """What a checkpoint holds besides weights, optimiser and random states."""

    epoch: int = 0
    seconds: float = 0.0
    passes: dict[str, int] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    generators: list[torch.Generator] = field(default_factory=list)
    guard: OverfittingGuard | None = None
    loss: SORAState | FreeState | None = None
    average: AveragedModel | None = None

    def state_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in ("epoch", "seconds", "passes", "history")}
        guard = None if self.guard is None else self.guard.state_dict()
        loss = None if self.loss is None else self.loss.state_dict()
        average = None if self.average is None else self.average.state_dict()
        generators = [g.get_state() for g in self.generators]
        return {**values, "generators": generators, "guard": guard, "loss": loss, "average": average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("epoch", "seconds", "passes", "history"):
            setattr(self, name, state[name])
        if self.guard is not None:
            self.guard.load_state_dict(state["guard"])
        if self.loss is not None:
            self.loss.load_state_dict(state["loss"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.set_state(saved)


def train(
    model: nn.Module,
    loss: Loss,
    data: Data,
    config: TrainConfig | None = None,
    run_dir: str | Path = "runs/train",
    resume: bool = True,
    progress: Progress | None = None,
    check: bool = True,
    about: dict[str, Any] | None = None,
) -> TrainResult:
    """Train `model` in place by `loss(model, x, y).backward()`; it ends on the device it was trained on.

    Device, precision and processes are Accelerate's (`accelerate launch` gives DistributedDataParallel).
    After every epoch the whole state goes to `run_dir`; the same call after an interruption at any moment
    redoes the epoch it was in and ends, where the device's kernels are deterministic (CPU ones are), with
    bit-identical weights. `model` has the last weights then; averaged ones (TrainConfig.average) are in
    `run_dir`/averaged.safetensors. A finished run is loaded, not repeated; a folder with a run of other options is
    refused with RunFolderError. resume=False starts anew. Seconds and passes: see TrainResult; the counting
    step runs on a copy of the model before the clock starts.

    `run_dir`/options.json names options, seed, versions and counted passes. about: more options in JSON's terms that
    make the run what it is, as where the first weights came from; a run with others is refused.

    A loss with `replays` (Free) is given each batch so many times in a row.

    A loss with a PerturbationMemory (its attribute `memory`) is called as `loss(model, x, y, index, moves)`: the
    samples' numbers, and the moves of an augmented batch or None. The memory is saved and resumed with the rest; a new
    run starts from an empty one, and a finished run whose last checkpoint was deleted leaves it alone. With several
    processes give each its shard (rank, world): each sample then stays on its rank. With a whole memory on each the
    samples are spread anew every epoch, and the memories are brought together after it. A few samples are read twice,
    and a data set that changes them is refused with ValueError; check=False, for changes that do not move pixels
    (noise, colour), leaves that out.
    """
    config = config or TrainConfig()
    folder = Path(run_dir)
    files.make_writable(folder)
    accelerator = Accelerator(mixed_precision=config.precision)
    main = accelerator.is_main_process
    progress = progress if progress is not None and main else Progress()
    memory = _memory(loss, data, config, accelerator, check)
    options = _options(model, loss, data, config, accelerator.num_processes) | ({"about": about} if about else {})
    if not resume and main:
        checkpoint.remove_run(folder)
    accelerator.wait_for_everyone()
    checkpoint.check_owner(folder)
    known = check_options(folder, options)
    saved = checkpoint.usable(folder, progress.note)
    accelerator.wait_for_everyone()
    written = [checkpoint.RESULT, checkpoint.WEIGHTS, *([checkpoint.AVERAGED] if config.average else [])]
    if known and all((folder / name).is_file() for name in written):
        checkpoint.load_weights(model.to(accelerator.device), folder / checkpoint.WEIGHTS)
        if memory is not None and saved is not None and checkpoint.epoch_of(saved) == config.epochs:
            checkpoint.load_memory(saved, memory)
        progress.note("trained already")
        return TrainResult(**files.read_json(folder / checkpoint.RESULT))
    if main:
        write_options(folder, options)

    set_seed(config.seed, device_specific=True)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.to(accelerator.device).train()
    rank, world = accelerator.process_index, accelerator.num_processes
    shards = memory is not None and memory.world > 1
    batches = Batches(
        data.train, config.batch_size, config.seed, accelerator.device, rank, world, config.augment, shards
    )
    guard = _guard(loss, data, config, accelerator)
    average = averaged(model, config.average) if config.average else None
    own = getattr(loss, "state", None)
    state = _State(generators=list(files.generators(loss)), guard=guard, loss=own, average=average)
    if not saved:
        if memory is not None:
            memory.reset()
        if state.loss is not None:
            state.loss.reset()
        state.passes = _count(
            model, scaled(loss, config.eps_fraction(0), config.h_fraction(0)), batches, config, accelerator
        )
    wrapped, optimizer = accelerator.prepare(model, _optimizer(model, config))
    if isinstance(wrapped, nn.parallel.DistributedDataParallel):
        wrapped.broadcast_buffers = False  # a forward must not overwrite what an earlier one saved for its backward
    try:
        if saved:
            found = checkpoint.load_checkpoint(accelerator, saved, model)
            optimizer.load_state_dict(found["optimizer"])
            state.load_state_dict(found["run"])
            if memory is not None:
                checkpoint.load_memory(saved, memory)
            progress.note(f"resumed after epoch {state.epoch} of {config.epochs}")
        if main:
            write_options(folder, options, state.passes)
        steps = len(batches) * getattr(loss, "replays", 1)  # of an epoch
        progress.begin(config.epochs, steps, state.epoch)
        for epoch in range(state.epoch, config.epochs):
            row = _epoch(accelerator, wrapped, optimizer, loss, batches, config, epoch, progress, guard, average)
            state.epoch = epoch + 1
            state.seconds += row["seconds"]
            state.history.append(row)
            if not math.isfinite(row["loss"]):
                raise UserError(f"the loss became {row['loss']} in epoch {epoch + 1}; a smaller lr may help")
            whole = {"optimizer": optimizer.state_dict(), "run": state.state_dict()}
            checkpoint.save_checkpoint(accelerator, folder, state.epoch, model, whole, memory)
            progress.epoch(row)
    finally:
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
        accelerator.free_memory()
    result = TrainResult(state.seconds, config.epochs * steps, state.passes, state.history)
    if main:
        if average is not None:
            checkpoint.save_weights(average.module, folder / checkpoint.AVERAGED)
        checkpoint.save_weights(model, folder / checkpoint.WEIGHTS)
        files.write_json(folder / checkpoint.RESULT, dataclasses.asdict(result))
    accelerator.wait_for_everyone()
    return result


def _epoch(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    loss: Loss,
    batches: Batches,
    config: TrainConfig,
    epoch: int,
    progress: Progress,
    guard: OverfittingGuard | None,
    average: AveragedModel | None,
) -> dict[str, Any]:
    loss = scaled(loss, config.eps_fraction(epoch), config.h_fraction(epoch))
    attack: Any = getattr(loss, "attack", None)
    if guard is not None and guard.alarmed and attack.steps < config.guard_steps:
        loss = loss.with_steps(config.guard_steps)
    total = torch.zeros((), device=accelerator.device)
    replays = getattr(loss, "replays", 1)
    steps, plain = len(batches) * replays, accelerator.unwrap_model(model)
    _synchronize(accelerator.device)
    start, cpu = time.perf_counter(), time.process_time()
    for step, batch in enumerate(_layout(batches.epoch(epoch), config, replays)):
        lr = config.lr_at((epoch * steps + step) / (config.epochs * steps))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        value = _value(loss, model, batch)
        accelerator.backward(value)
        optimizer.step()
        if average is not None:
            average.update_parameters(plain)
        total += value.detach()
        progress.step(value)
    memory = getattr(loss, "memory", None)
    if memory is not None and memory.world == 1:
        memory.synchronize()
    reading = None if guard is None else guard.check(model, epoch + 1, eps_of(loss))
    _synchronize(accelerator.device)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    mean = float(accelerator.reduce(total, "mean")) / steps
    row = {
        "epoch": epoch + 1,
        "loss": mean,
        "eps": files.describe(eps_of(loss)),
        "lr": lr,
        "seconds": seconds,
        "cpu_seconds": cpu,
    }
    if config.h_ramp and getattr(loss, "h", None) is not None:
        row["h"] = loss.h  # type: ignore[attr-defined]
    return row if reading is None else {**row, "guard": dataclasses.asdict(reading)}


def _value(loss: Loss, model: nn.Module, batch: Batch) -> Tensor:
    """The loss of a batch; only one with a memory is told the samples' numbers and moves."""
    known: tuple[Any, ...] = (batch.x, batch.y) if getattr(loss, "memory", None) is None else batch
    value = loss(model, *known)
    return value[0] if loss.return_output else value


def _count(
    model: nn.Module, loss: Loss, batches: Batches, config: TrainConfig, accelerator: Accelerator
) -> dict[str, int]:
    """Passes of one step, counted on a copy: weights, gradients, buffers and random states stay untouched."""
    batch = next(_layout(batches.epoch(0), config))
    with ExitStack() as stack:
        try:
            counted = copy.deepcopy(model)
        except Exception:  # it refuses: pruned, weight-normed or locked; count on the model, and put back what changes
            counted = model
            stack.enter_context(ModelState(model, "keep", freeze=False))
            for p in model.parameters():
                stack.callback(setattr, p, "grad", p.grad)
                p.grad = None
        stack.enter_context(_states_kept(loss, batch))
        stack.enter_context(accelerator.autocast())
        passes = stack.enter_context(count_passes(counted))
        _value(loss, counted, batch).backward()  # type: ignore[no-untyped-call]
    return dataclasses.asdict(passes.total())


@contextmanager
def _states_kept(loss: Loss, batch: Batch) -> Iterator[None]:
    """Random states, the loss's own state and its memory of the batch are as before afterwards."""
    own = [(generator, generator.get_state()) for generator in files.generators(loss)]
    memory, state = getattr(loss, "memory", None), getattr(loss, "state", None)
    figures = None if state is None else state.state_dict()
    with torch.random.fork_rng(), nullcontext() if memory is None else memory.kept(batch.index):
        yield
    for generator, saved in own:
        generator.set_state(saved)
    if state is not None:
        state.load_state_dict(figures)


def _layout(batches: Iterator[Batch], config: TrainConfig, replays: int = 1) -> Iterator[Batch]:
    """The batches in the memory layout of the training, each `replays` times in a row."""
    for batch in batches:
        if config.channels_last:
            batch = batch._replace(x=batch.x.contiguous(memory_format=torch.channels_last))
        yield from itertools.repeat(batch, replays)


def _memory(
    loss: Loss, data: Data, config: TrainConfig, accelerator: Accelerator, check: bool
) -> PerturbationMemory | None:
    """The loss's memory, if it has one and it fits data, augmentation and processes."""
    memory: PerturbationMemory | None = getattr(loss, "memory", None)
    if memory is None:
        return None
    samples, rank, world = len(data.train), accelerator.process_index, accelerator.num_processes  # type: ignore[arg-type]
    if (memory.samples, memory.shape) != (samples, tuple(data.shape)):
        raise ValueError(f"the data has {samples} samples of shape {tuple(data.shape)}, the memory is {memory}")
    if memory.augment != config.augment:
        raise ValueError(f"the data is augmented by {config.augment}, the memory follows {memory.augment}")
    if (memory.rank, memory.world) not in ((0, 1), (rank, world)):
        raise ValueError(f"this is process {rank} of {world}, the memory is {memory}")
    if check and not isinstance(data.train, TensorDataset):
        check_unchanging(data.train, config.augment, "as TrainConfig(crop_padding=..., flip=...)")
    return memory


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        how = {"momentum": config.momentum, "weight_decay": config.weight_decay, "nesterov": config.nesterov}
        return torch.optim.SGD(model.parameters(), config.lr, **how)  # type: ignore[arg-type]
    return torch.optim.Adam(model.parameters(), config.lr, weight_decay=config.weight_decay)


def _options(model: nn.Module, loss: Loss, data: Data, config: TrainConfig, processes: int) -> dict[str, Any]:
    """What makes a run the same run; compared before one is resumed."""
    samples = len(data.train)  # type: ignore[arg-type]
    return {
        "config": files.describe(config),
        "loss": files.describe(loss),
        "model": {"type": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())},
        "data": {"name": data.name, "samples": samples, "shape": list(data.shape)},
        "processes": processes,
    }


def _guard(loss: Loss, data: Data, config: TrainConfig, accelerator: Accelerator) -> OverfittingGuard | None:
    """The guard on the first training samples, as stored; None where it is not wanted."""
    if not config.guard:
        return None
    attack = getattr(loss, "attack", None)
    if attack is None or not hasattr(attack, "steps"):
        raise ValueError(f"guard needs a loss whose attack has steps, got {loss}")
    samples = min(config.guard, len(data.train))  # type: ignore[arg-type]
    x, y = default_collate([data.train[i] for i in range(samples)])
    device = accelerator.device
    return OverfittingGuard(x.to(device), y.to(device), attack, warn=accelerator.is_main_process)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
