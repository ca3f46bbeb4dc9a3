"""Evaluation of a model by many attacks: streaming, resumable, with a record of every sample."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soatfast.attacks import Attack
from soatfast.evaluate import checks, records
from soatfast.evaluate.batch import Runnable, attack_batch, clean_batch
from soatfast.evaluate.quality import require_torchmetrics
from soatfast.evaluate.reading import as_read, check_attack, takes_whole_batches
from soatfast.evaluate.results import CLEAN, SuiteResult, result_of
from soatfast.evaluate.standard import cheapest_first, standard_attacks
from soatfast.evaluate.watch import can_watch
from soatfast.gradients.device import device_of
from soatfast.gradients.outputs import Forward, Output
from soatfast.gradients.state import ModelState
from soatfast.runs.errors import RunFolderError
from soatfast.runs.files import describe, digest, fingerprint, write_text
from soatfast.runs.lock import locked
from soatfast.runs.progress import Report

Loader = Iterable[Any]
TABLE = "evaluation.md"


def suite(
    model: nn.Module,
    loader: Loader,
    attacks: Mapping[str, Runnable] | None = None,
    *,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: Report | None = None,
    compact: bool = True,
    worst_case: bool = False,
    quality: bool | None = None,
    resume: bool = True,
    output: Output = None,
    forward: Forward | None = None,
) -> SuiteResult:
    """Run every attack on every batch (x, y) of the loader, and record each sample.

    A sample counts as fooled by an attack when the model errs on it clean, on the attack's final example, or, for the
    attacks that are ``watchable``, on any point on the way that lies in ball and box: the
    same with and without compaction, and never above what :func:`~soatfast.evaluate.accuracies` gives for the same
    random numbers.

    Args:
        attacks: name -> attack; None: :func:`~soatfast.evaluate.standard.standard_attacks`. "clean" comes first and
            by itself.
        folder: where ``evaluation.npz`` is written after each batch (at most once a second), and ``evaluation.md`` at
            the end. A second call with the same options and loader goes on from there, with the same records to the
            bit as a run that was never interrupted.
        seed: of the random numbers; each attack's on each batch depend on (seed, name, batch) alone.
        progress: called with (name, samples done, samples in all or None) after each attack of a batch; see
            :func:`progress_bar`.
        compact: samples that are fooled leave the passes at once. It changes no figure (up to rounding: a smaller
            batch may be summed in another order); False runs every attack on every sample to its end. Attacks that
            are not watched are run on the samples that are still right, so their random numbers fall differently.
        worst_case: each attack is run on the survivors of those before it only, cheapest first; its accuracy is then
            that of all attacks so far. The figure ``worst_case`` is there either way.
        quality: measure PSNR and SSIM of every example; None: where torchmetrics is installed.
        resume: False begins anew in a folder that holds records.
        output, forward: how the model is called and read, as of :class:`~soatfast.attacks.Attack`; for its own
            predictions and for all attacks, which see a model from x to logits. An attack may have an output= of its
            own to follow; a forward= of its own must be this one. forward= must take any number of rows.

    The model predicts, and is attacked, in eval mode; its modes and the caller's random state are as before
    afterwards. An interruption (Ctrl-C) loses the batch in hand. A model of ``torch.export`` with one batch size is
    given batches of that size, filled up where need be, and every attack runs on all samples to its end. What is
    fooled leaves with every engine but "bf16" and "fp16", whose attacks are judged by their final examples; "graph"
    runs eagerly here.

    Before any attack the model is checked (:func:`~soatfast.evaluate.checks.check_model`); what is found is a warning,
    and stands in the records and under the table. These passes are not in the figures.

    Raises:
        TypeError: the model is no module, attacks no mapping; x or y are not what an attack takes.
        ValueError: an unknown kind of loader or attack, images out of bounds, logits that are not (B, K), an attack
            with another forward= or another number of classes, a mask for each sample and several batches.
        ImportError: quality=True without torchmetrics.
        RunFolderError: the folder cannot be written, its file is damaged, or is of another evaluation.

    >>> import torch
    >>> from soatfast.attacks import FGSM, PGD
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> x = torch.rand(8, 1, 2, 2)
    >>> y = model(x).argmax(1)
    >>> result = suite(model, [(x[:5], y[:5]), (x[5:], y[5:])], {"fgsm": FGSM(eps=0.1), "pgd": PGD(eps=0.1, steps=3)})
    >>> [name for name in result.results], result["clean"].accuracy, result["pgd"].correct.shape
    (['clean', 'fgsm', 'pgd'], 1.0, (8,))
    >>> result["pgd"].accuracy >= result.worst_case
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"suite needs a module, got {type(model).__name__}")
    read = as_read(model, output, forward)
    compact = compact and not takes_whole_batches(read)
    if attacks is not None and not isinstance(attacks, Mapping):
        raise TypeError(f"attacks must be a mapping of names to attacks, got {type(attacks).__name__}")
    chosen = dict(standard_attacks() if attacks is None else attacks)
    _check_attacks(chosen, forward)
    if worst_case:
        chosen = cheapest_first(chosen)
    options = {
        "attacks": {CLEAN: None, **{name: describe(attack) for name, attack in chosen.items()}},
        "seed": seed,
        "compact": compact,
        "worst_case": worst_case,
        "quality": _measures(quality),
        "weights": fingerprint(model),
        "output": describe(output),
        "forward": describe(forward),
    }
    if folder is None:
        return _stored(read, model, loader, chosen, records.Store(options), progress)
    with locked(Path(folder)):
        store = records.Store(options, Path(folder), resume)
        (Path(folder) / TABLE).unlink(missing_ok=True)  # no report beside an unfinished run
        result = _stored(read, model, loader, chosen, store, progress)
        write_text(Path(folder) / TABLE, result.table().to_markdown())
    return result


def _stored(
    read: nn.Module,
    model: nn.Module,
    loader: Loader,
    attacks: dict[str, Runnable],
    store: records.Store,
    progress: Report | None,
) -> SuiteResult:
    with evaluating(model), contextlib.ExitStack() as stack:
        stack.callback(store.flush)
        _run(read, loader, attacks, store, progress)
    store.finish()
    result = result_of(store)
    for check in result.checks[len(store.checks) :]:  # that of the figures; those of the model were said before
        check.warn(3)
    return result


def _run(
    model: nn.Module, loader: Loader, attacks: dict[str, Runnable], store: records.Store, progress: Report | None
) -> None:
    device = device_of(model)
    seed, compact, worst_case, quality = (store.options[key] for key in ("seed", "compact", "worst_case", "quality"))
    total = _samples(loader)
    boxes = {attack.bounds for attack in attacks.values() if isinstance(attack, Attack)} or {(0.0, 1.0)}
    stored, done = len(store), 0
    for check in store.checks:
        check.warn()
    index = -1
    for index, batch in enumerate(loader):
        x, y = _pair(batch, index)
        for bounds in boxes:
            checks.check_data(x, y, bounds, f"batch {index}")
        mark = digest(x, y)
        if index < stored:
            store.check_same(index, mark)
            done += len(y)
            continue
        if store.finished:
            raise RunFolderError(f"{store.path} is finished after {stored} batches; the loader has more")
        labels = y.numpy(force=True)
        x, y = x.to(device), y.to(device)
        if not index:
            _check_masks(attacks, x, total, compact)
        if not store.checks:
            store.checks = checks.check_model(model, x, y, attacks)
        clean, cell = clean_batch(model, x, y)
        cells, standing = {CLEAN: cell}, clean
        if progress is not None:
            progress(CLEAN, done, total)
        for name, attack in attacks.items():
            before = standing if worst_case else clean
            mine = cell_seed(seed, name, index)
            standing, cells[name] = attack_batch(model, attack, x, y, before, mine, compact, quality)
            if progress is not None:
                progress(name, done, total)
        done += len(y)
        store.add(mark, labels, cells)
        if progress is not None:
            progress("", done, total)
    if index < 0:
        raise ValueError("there are no samples to evaluate")
    if index + 1 < stored:
        raise RunFolderError(f"{store.path} holds {stored} batches, the loader only {index + 1}")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    with ModelState(model, "eval", freeze=False), torch.inference_mode(False):
        yield


def _measures(quality: bool | None) -> bool:
    if quality is False:
        return False
    try:
        require_torchmetrics()
    except ImportError:
        if quality:
            raise
        return False
    return True


def _check_attacks(attacks: dict[str, Runnable], forward: Forward | None) -> None:
    for name, attack in attacks.items():
        check_attack(name, attack, forward)
        if name == CLEAN or not isinstance(name, str):
            raise ValueError(f'attacks have names other than "{CLEAN}", got {name!r}')
        if not callable(attack):
            raise TypeError(f"{name}: an attack is called as attack(model, x, y), got {type(attack).__name__}")
        if isinstance(attack, Attack):
            if attack.targeted:
                raise ValueError(f"{name}: suite needs untargeted attacks, it gives them the true labels")
            if isinstance(attack.eps, Tensor) and attack.eps.dim() == 1:
                raise ValueError(
                    f"{name}: eps must be one number, or one a channel or entry, got shape {tuple(attack.eps.shape)}"
                )


def _check_masks(attacks: dict[str, Runnable], x: Tensor, total: int | None, compact: bool) -> None:
    """Raise ValueError where a mask for each sample of the batch x would be taken for other samples as well."""
    for name, attack in attacks.items():
        mask = attack.mask if isinstance(attack, Attack) else None
        if mask is None or mask.dim() < x.dim() or len(mask) == 1:
            continue
        if total != len(x):
            raise ValueError(
                f"{name}: a mask for each sample is of one batch: give a list of one batch, or a mask of one sample's "
                f"shape, got mask {tuple(mask.shape)}"
            )
        if compact and not can_watch(attack, x):
            raise ValueError(f"{name}: with a mask for each sample this attack needs suite(compact=False)")


def _pair(batch: Any, index: int) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
        raise ValueError(f"batch {index}: a loader yields pairs of tensors (x, y), got {type(batch).__name__}")
    return batch[0], batch[1]


def _samples(loader: Loader) -> int | None:
    """How many there are, where the loader says so."""
    if isinstance(loader, torch.utils.data.DataLoader):
        return len(loader.sampler) if isinstance(loader.sampler, Sized) else None
    return sum(len(_pair(batch, i)[1]) for i, batch in enumerate(loader)) if isinstance(loader, list) else None


def cell_seed(seed: int, name: str, batch: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}/{batch}".encode()).digest()[:8], "big") >> 1
