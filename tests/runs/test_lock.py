"""The lock of a run folder: who holds it is said, a killed process's is taken over, also where there are no locks."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from soatfast.runs import files, lock
from soatfast.runs.errors import RunFolderError
from soatfast.runs.lock import LOCK, locked

ROOT = Path(__file__).parents[2]
HOLD = (
    "import sys, time, pathlib\nfrom soatfast.runs.lock import locked\n"
    "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
)


@pytest.fixture
def holder(tmp_path):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_another_process_is_named_and_the_lock_of_a_killed_one_is_taken_over(tmp_path, holder):
    said = []
    with pytest.raises(RunFolderError) as error, locked(tmp_path, said.append):
        pass
    text = str(error.value)
    assert f"process {holder.pid} on {os.uname().nodename}" in text and "\n" not in text and not said
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    (tmp_path / "results.json.0123abcd.partial").write_text("{")
    (tmp_path / "mine.partial").write_text("not ours")
    assert (tmp_path / LOCK).is_file(), "nobody was left to remove it"
    with locked(tmp_path, said.append):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert f"was left by process {holder.pid}" in said[0]
    assert [p.name for p in tmp_path.iterdir()] == ["mine.partial"]


def test_a_thread_holds_it_once_and_other_threads_wait_for_it(tmp_path):
    found = []

    def other():
        try:
            with locked(tmp_path):
                found.append("both")
        except RunFolderError as error:
            found.append(str(error))

    with locked(tmp_path), locked(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in found[0]
    other()
    assert found[1] == "both" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("record", "refused"),
    [
        ({"process": os.getpid(), "host": os.uname().nodename}, True),
        ({"process": 2**22 + 1, "host": os.uname().nodename}, False),  # above Linux's largest number
        ({"process": 1, "host": "elsewhere"}, True),
        ("damaged", True),
    ],
)
def test_without_locks_of_the_file_system_the_names_decide(tmp_path, monkeypatch, record, refused):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    (tmp_path / LOCK).write_text(json.dumps(record))
    if refused:
        with pytest.raises(RunFolderError, match="if that is not running any more, delete"), locked(tmp_path):
            pass
        return
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_a_folder_or_link_of_that_name_is_one_line(tmp_path):
    (tmp_path / LOCK).mkdir()
    with pytest.raises(RunFolderError, match="cannot be written"), locked(tmp_path):
        pass


def test_two_writers_of_one_file_leave_one_of_the_two(tmp_path):
    path = tmp_path / "results.json"
    names = set()

    def write(number):
        for _ in range(200):
            with files.replacing(path) as partial:
                names.add(partial)
                partial.write_text(str(number) * 1000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 400 and path.read_text() in ("0" * 1000, "1" * 1000)
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
