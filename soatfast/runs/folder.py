"""A run folder's options.json: what made the run, checked before anything in the folder is used or removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from soatfast.runs.errors import OtherRunError, RunFolderError
from soatfast.runs.files import read_json, write_json

OPTIONS = "options.json"
_FACTS = ("versions", "passes")  # in options.json for the reader: a run is the same run with others


def remove_command(folder: Path, command: str, work: str, *names: str) -> None:
    """Delete those files and folders of `folder` and its options, where this command wrote them: its `work`."""
    path = folder / OPTIONS
    if not path.is_file():
        return
    if f'"command": "{command}"' not in path.read_text(encoding="utf-8", errors="replace"):
        raise RunFolderError(f"{folder} does not hold {work}; use another folder")
    for name in (*names, OPTIONS):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def _flat(options: Any, name: str = "") -> dict[str, Any]:
    if isinstance(options, dict):
        parts = [_flat(value, f"{name}.{key}" if name else key) for key, value in options.items()]
        return {key: value for part in parts for key, value in part.items()}
    return {name: options}


def check_options(folder: Path, options: dict[str, Any]) -> bool:
    """Whether `folder` holds a run; RunFolderError if it was made with other `options`."""
    if not (folder / OPTIONS).is_file():
        return False
    stored = read_json(folder / OPTIONS)
    if not isinstance(stored, dict):
        raise RunFolderError(f"{folder / OPTIONS} is damaged (no options in it); use another folder or --fresh")
    then = _flat({key: value for key, value in stored.items() if key not in _FACTS})
    now = _flat(json.loads(json.dumps(options)))
    missing = "not set"
    changes = [
        f"{key} was {then.get(key, missing)}, now {now.get(key, missing)}"
        for key in [*now, *(key for key in then if key not in now)]
        if then.get(key, missing) != now.get(key, missing)
    ]
    if changes:
        shown = "; ".join(changes[:4]) + (f"; and {len(changes) - 4} more" if len(changes) > 4 else "")
        raise OtherRunError(f"{folder} holds a run with other options ({shown}); use another folder or --fresh")
    return True


def write_options(folder: Path, options: dict[str, Any], passes: dict[str, int] | None = None) -> None:
    """Write options.json: the options, the versions of what runs them, and the counted passes once they are known."""
    from soatfast.ops.config import describe as installation

    versions = installation()["versions"]
    write_json(folder / OPTIONS, {**options, "versions": versions, "passes": passes})
