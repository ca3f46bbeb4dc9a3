"""What a page is made of, and the sections that a run folder's files give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from soatfast.commands import papers
from soatfast.commands.methods import METHODS
from soatfast.commands.report import figures
from soatfast.evaluate import records
from soatfast.evaluate.suites import TABLE
from soatfast.runs import files
from soatfast.runs.errors import UserError
from soatfast.runs.folder import OPTIONS
from soatfast.runs.table import Column, Table
from soatfast.train import checkpoint

RESULTS = "results.json"
T = TypeVar("T")
_PARTS = ("config", "attacks", "device", "installation", "methods", "table")


@dataclass(frozen=True)
class Picture:
    """A PNG with the words that stand for it where it cannot be seen."""

    name: str
    png: bytes
    alt: str


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph, tables and pictures."""

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


class FileReader:
    """Reads files one by one: one that is damaged, or of another shape, is a problem in words and costs no other."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def read(self, path: Path, make: Callable[[], T]) -> T | None:
        """make()'s value, of the file `path`; None where it cannot be had."""
        try:
            return make()
        except (UserError, OSError) as error:
            self.problems.append(str(error))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            self.problems.append(f"{path} is not what its command writes ({type(error).__name__}: {error})")
        return None


def sections(folder: Path, reader: FileReader) -> Iterator[Section]:
    """The sections of a run folder, of the files that are there and can be read."""
    results, path = comparison(folder, reader), folder / RESULTS
    made: list[Section | None] = []
    if results:
        made.append(reader.read(path, lambda: _comparison(folder, results)))
        if made[0] is not None:
            made.append(reader.read(path, lambda: _attacks(results)))
        if results["config"].get("preset") == "tables" and (folder / papers.RECORD).is_file():
            made.append(reader.read(folder / papers.RECORD, lambda: _papers(folder)))
    runs = dict(trainings(folder, reader))
    if runs:
        made.append(reader.read(folder / checkpoint.RESULT, lambda: _training(runs)))
    if (folder / "curvature.json").is_file():
        made.append(reader.read(folder / "curvature.json", lambda: _curvature(folder)))
    if _evaluated(folder):
        made.append(reader.read(folder / "evaluation.json", lambda: _evaluation(folder)))
    yield from (section for section in made if section is not None)
    yield from _galleries(folder)


def trainings(folder: Path, reader: FileReader) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, result.json) of each finished training: the folder's own, or a comparison's METHOD/seed-N."""
    for path in [folder / checkpoint.RESULT, *sorted(folder.glob(f"*/seed-*/{checkpoint.RESULT}"))]:
        found = reader.read(path, lambda path=path: _trained(path)) if path.is_file() else None  # type: ignore[misc]
        name, seed = path.parent.parent.name, path.parent.name.removeprefix("seed-")
        label = f"{METHODS[name].label if name in METHODS else name}, seed {seed}"
        if found is not None:
            yield folder.resolve().name if path.parent == folder else label, found


def _trained(path: Path) -> dict[str, Any]:
    found = files.read_json(path)
    history = found.get("history") if isinstance(found, dict) else None
    if not isinstance(history, list) or not all(map(_is_epoch, history)):
        raise UserError(f"{path}: no epochs of a training; the command that trained writes them again with --fresh")
    return found  # type: ignore[no-any-return]


def _is_epoch(row: Any) -> bool:
    return isinstance(row, dict) and all(isinstance(row.get(name), (int, float)) for name in ("epoch", "loss"))


def comparison(folder: Path, reader: FileReader) -> dict[str, Any]:
    """What results.json holds; nothing where there is none, or it cannot be read."""
    path = folder / RESULTS
    return (reader.read(path, lambda: _compared(path)) if path.exists() else None) or {}


def _compared(path: Path) -> dict[str, Any]:
    found = files.read_json(path)
    missing = [part for part in _PARTS if not isinstance(found, dict) or not isinstance(found.get(part), dict | list)]
    if missing:
        raise UserError(f"{path}: no comparison, as it has no {', '.join(missing)}; soatfast compare writes it again")
    return found  # type: ignore[no-any-return]


def unfinished(folder: Path) -> list[str]:
    """Trainings that were begun and have no result yet, and an evaluation without its table."""
    begun = [folder, *sorted(folder.glob("*/seed-*"))]
    found = [
        str(path.relative_to(folder)) if path != folder else folder.resolve().name
        for path in begun
        if (path / OPTIONS).is_file() and not (path / checkpoint.RESULT).is_file()
    ]
    if (folder / records.FILE).is_file() and not _evaluated(folder):
        found.append("the evaluation")
    return found


def _evaluated(folder: Path) -> bool:
    """Whether there are figures, and of the records beside them: these have a table only once they are whole."""
    return (folder / "evaluation.json").is_file() and (folder / TABLE).is_file()


def evaluation(folder: Path, reader: FileReader) -> dict[str, Any]:
    """What `soatfast evaluate` wrote into the folder, {} where it has not, or is not done."""
    path = folder / "evaluation.json"
    written = reader.read(path, lambda: files.read_json(path)) if _evaluated(folder) else {}
    return written if isinstance(written, dict) else {}


def _comparison(folder: Path, results: dict[str, Any]) -> Section:
    table = _table(folder / RESULTS, results)
    shown = _file(folder / "comparison.png", "accuracy under PGD-40 against training seconds, and attacked samples")
    return Section("Comparison", tables=(table,), pictures=shown)


def _attacks(results: dict[str, Any]) -> Section:
    """Accuracy under each attack, a line for each method."""
    rows, keys = results["table"]["rows"], list(results["attacks"])
    headers = {column["key"]: column["header"] for column in results["table"]["columns"]}
    names = list(results["methods"])
    series = [
        (row["method"], figures.colour(name), [row[key]["values"] for key in keys])
        for name, row in zip(names, rows, strict=True)
    ]
    labels = [headers[key].removesuffix(" %") for key in keys]
    png = figures.accuracies(labels, series)
    text = "Share of held-out samples that are predicted right on clean input and after the attack."
    return Section("Accuracy by attack", text, pictures=(Picture("accuracy", png, "accuracy under each attack"),))


def _papers(folder: Path) -> Section:
    """The claims with their verdicts, then the papers' tables beside this run's figures."""
    path = folder / papers.RECORD
    written = files.read_json(path)
    try:
        tables = [Table.from_json(value) for value in (written["claims_table"], *written["tables"])]
        flags = [{"flag": f"[{number}]", "text": text} for number, text in written["flags"].items()]
        summary = written["summary"]
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: {error}; soatfast compare --preset tables writes it again") from error
    tables.append(Table("Flags", [Column("flag", "flag"), Column("text", "why a printed number is doubtful")], flags))
    return Section("The papers' claims", summary, tuple(tables))


def _training(runs: dict[str, dict[str, Any]]) -> Section:
    shades = {method.label: figures.colour(name) for name, method in METHODS.items()}
    series = [
        (label, shades.get(label.partition(", seed ")[0], "#333333"), run["history"]) for label, run in runs.items()
    ]
    png = figures.losses(series)
    text = "Mean loss of each epoch, of the loss that the method trains: values of different losses do not compare."
    return Section("Training", text, pictures=(Picture("training", png, "training loss by epoch"),))


def _curvature(folder: Path) -> Section:
    table = _table(folder / "curvature.json", files.read_json(folder / "curvature.json"))
    shown = _file(folder / "curvature.png", "share of samples by largest eigenvalue of the input Hessian")
    return Section("Curvature", tables=(table,), pictures=shown)


def _evaluation(folder: Path) -> Section:
    path = folder / "evaluation.json"
    written = files.read_json(path)
    parts = written.get("tables") if isinstance(written, dict) else None
    tables = tuple(_table(path, {"table": part}) for part in (parts or [None]))
    words = {
        "curves": "accuracy against eps",
        "plateau": "accuracy against the steps of PGD",
        "masking": "margins after PGD-100 and after SimBA, a dot for each sample",
    }
    pictures = tuple(picture for name, alt in words.items() for picture in _file(folder / f"{name}.png", alt))
    return Section("Evaluation", tables=tables, pictures=pictures)


def _table(path: Path, written: Any) -> Table:
    try:
        return Table.from_json(written["table"] if isinstance(written, dict) and "table" in written else None)
    except ValueError as error:
        raise UserError(f"{path}: {error}; the command that wrote it writes it again") from error


def _galleries(folder: Path) -> Iterator[Section]:
    paths = sorted((folder / "explain").glob("*.png"))
    if paths:
        shown = tuple(picture for path in paths for picture in _file(path, path.stem.replace("-", " ")))
        yield Section("Explanations", pictures=shown)


def _file(path: Path, alt: str) -> tuple[Picture, ...]:
    return (Picture(path.stem, path.read_bytes(), alt),) if path.is_file() else ()
