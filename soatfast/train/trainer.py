"""The training loop: any loss of soatfast.losses on Hugging Face Accelerate, with exact resume."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import TensorDataset, default_collate

from soatfast.gradients.counting import count_passes
from soatfast.gradients.state import ModelState
from soatfast.losses import Loss
from soatfast.memory.store import PerturbationMemory
from soatfast.runs import files
from soatfast.runs.errors import RunFolderError, Terminated, UserError
from soatfast.runs.folder import check_options, write_options
from soatfast.runs.lock import locked
from soatfast.runs.progress import Progress
from soatfast.train import checkpoint
from soatfast.train.averaging import averaged
from soatfast.train.config import TrainConfig, TrainResult
from soatfast.train.curriculum import eps_of, scaled
from soatfast.train.data.batches import Batch, Batches
from soatfast.train.data.indexed import check_unchanging
from soatfast.train.data.sets import Data
from soatfast.train.guard import OverfittingGuard
from soatfast.train.processes import Stop, accelerator_of, agreed, asked_to_stop
from soatfast.train.run_state import RunState


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
    bit-identical weights. At SIGTERM the batch in hand is finished, the state within the epoch is saved, and SystemExit
    with status 143 is raised: nothing is redone. `model` has the last weights at the end; averaged ones
    (TrainConfig.average) are in `run_dir`/averaged.safetensors. A finished run is loaded, not repeated; a folder that
    another process writes, or with a run of other options, is refused with RunFolderError. resume=False starts anew.
    Seconds and passes: see TrainResult; the counting step runs on a copy of the model before the clock starts.

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
    accelerator = accelerator_of(config.precision)
    main = accelerator.is_main_process
    progress = progress if progress is not None and main else Progress()
    with ExitStack() as stack:
        memory = _memory(loss, data, config, accelerator, check)
        take = (lambda: stack.enter_context(locked(folder, progress.note))) if main else lambda: None
        agreed(accelerator, take)
        stop = Stop(accelerator, stack.enter_context(asked_to_stop()))
        options = _options(model, loss, data, config, accelerator.num_processes) | ({"about": about} if about else {})
        return _train(accelerator, model, loss, data, config, folder, resume, progress, memory, options, stop)


def _train(
    accelerator: Accelerator,
    model: nn.Module,
    loss: Loss,
    data: Data,
    config: TrainConfig,
    folder: Path,
    resume: bool,
    progress: Progress,
    memory: PerturbationMemory | None,
    options: dict[str, Any],
    stop: Stop,
) -> TrainResult:
    main = accelerator.is_main_process
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
        if memory is not None and saved is not None and checkpoint.place_of(saved) == (config.epochs, 0):
            checkpoint.load_memory(accelerator, saved, memory)
        progress.note("trained already")
        return _finished(folder / checkpoint.RESULT)
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
    state = RunState(guard=guard, average=average, generators=list(files.generators(loss)), loss=own)
    state.model = model if world > 1 else None
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

    def save() -> None:
        whole = {"optimizer": optimizer.state_dict(), "run": state.state_dict()}
        place = (state.epoch, state.batches)
        checkpoint.save_checkpoint(accelerator, folder, place, model, whole, state.own_dict(), memory)

    try:
        if saved:
            _restore(accelerator, saved, model, optimizer, state, memory)
            within = f" and batch {state.batches} of the next" if state.batches else ""
            progress.note(f"resumed after epoch {state.epoch} of {config.epochs}{within}")
        if main:
            write_options(folder, options, state.passes)
        steps = len(batches) * getattr(loss, "replays", 1)  # of an epoch
        progress.begin(config.epochs, steps, state.epoch)
        while state.epoch < config.epochs:
            row = _epoch(accelerator, wrapped, optimizer, loss, batches, config, progress, state, stop)
            if row is None:
                if state.batches:
                    save()
                progress.note(f"stopped in epoch {state.epoch + 1}, after batch {state.batches} of {len(batches)}")
                raise Terminated
            state.epoch, state.batches, state.total, state.spent = state.epoch + 1, 0, None, (0.0, 0.0)
            state.seconds += row["seconds"]
            state.history.append(row)
            if not math.isfinite(row["loss"]):
                raise UserError(f"the loss became {row['loss']} in epoch {state.epoch}; a smaller lr may help")
            for buffer in state.buffers.values():  # all processes end an epoch with the statistics that are saved
                torch.distributed.broadcast(buffer, 0)
            save()
            progress.epoch(row)
    finally:
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
        accelerator.free_memory()
    result = TrainResult(state.seconds, config.epochs * steps, state.passes, state.history)

    def write() -> None:
        if average is not None:
            checkpoint.save_weights(average.module, folder / checkpoint.AVERAGED)
        checkpoint.save_weights(model, folder / checkpoint.WEIGHTS)
        files.write_json(folder / checkpoint.RESULT, dataclasses.asdict(result))

    agreed(accelerator, write if main else lambda: None)
    return result


def _restore(
    accelerator: Accelerator,
    saved: Path,
    model: nn.Module,
    optimizer: Any,
    state: RunState,
    memory: PerturbationMemory | None,
) -> None:
    found, own = checkpoint.load_checkpoint(accelerator, saved, model)
    try:
        optimizer.load_state_dict(found["optimizer"])
        state.load(found["run"], own)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunFolderError(f"{saved} is of another training ({error}); use --fresh or another folder") from error
    if memory is not None:
        checkpoint.load_memory(accelerator, saved, memory)


def _finished(path: Path) -> TrainResult:
    """What a finished training wrote; RunFolderError where the file is something else."""
    found = files.read_json(path)
    kinds: dict[str, Any] = {"seconds": (int, float), "steps": int, "passes": dict, "history": list}
    whole = isinstance(found, dict) and found.keys() == kinds.keys()
    if not whole or not all(isinstance(found[name], kind) for name, kind in kinds.items()):
        raise RunFolderError(f"{path} is not what a training writes; use another folder or --fresh")
    return TrainResult(**found)


def _epoch(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    loss: Loss,
    batches: Batches,
    config: TrainConfig,
    progress: Progress,
    state: RunState,
    stop: Stop,
) -> dict[str, Any] | None:
    """The row of one epoch, from the batch on that the state names; None where it was stopped, as the state tells."""
    epoch, guard = state.epoch, state.guard
    loss = scaled(loss, config.eps_fraction(epoch), config.h_fraction(epoch))
    attack: Any = getattr(loss, "attack", None)
    if guard is not None and guard.alarmed and attack.steps < config.guard_steps:
        loss = loss.with_steps(config.guard_steps)
    total = torch.zeros((), device=accelerator.device) if state.total is None else state.total.to(accelerator.device)
    replays = getattr(loss, "replays", 1)
    steps, plain = len(batches) * replays, accelerator.unwrap_model(model)
    _synchronize(accelerator.device)
    start, cpu = time.perf_counter() - state.spent[0], time.process_time() - state.spent[1]
    rest = _layout(batches.epoch(epoch, state.batches), config, replays)
    for step in range(state.batches * replays, steps):
        if step % replays == 0 and stop():
            _synchronize(accelerator.device)
            state.batches, state.total = step // replays, total
            state.spent = (time.perf_counter() - start, time.process_time() - cpu)
            return None
        batch = next(rest)
        lr = config.lr_at((epoch * steps + step) / (config.epochs * steps))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        value = _value(loss, model, batch)
        accelerator.backward(value)
        optimizer.step()
        if state.average is not None:
            state.average.update_parameters(plain)
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
