"""`torchrun -m soatfast train` and `accelerate launch ...`: one folder, a killed process, exact resume."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
DATA = ["--data", "digits8", "--train-samples", "200", "--test-samples", "20"]
TRAIN = ["-m", "soatfast", "train", *DATA, "--epochs", "3", "--batch-size", "20", "pgd", "--steps", "1"]

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def start(words, folder, **more):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **more}
    command = [sys.executable, *words[: words.index("train") + 1], "--run-dir", str(folder)]
    command += words[words.index("train") + 1 :]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def ended(*processes):
    try:
        texts = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], "\n".join(texts)


def children(pid):
    found = [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]
    return [child for child in found if b"soatfast" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the ranks are found in /proc")
def test_both_launchers_and_a_killed_rank(tmp_path):
    words = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    words = ["-m", "accelerate.commands.launch", *words, "--dynamo_backend", "no", "--main_process_port", port()]
    codes, text = ended(start([*words, *TRAIN], tmp_path / "whole"))
    assert codes == [0] and text.count("epoch 3/3") == 1 and text.count("written to") == 1, text
    assert not list(tmp_path.glob("whole/.lock"))

    agent = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    process = start([*agent, "--master-port", port(), *TRAIN], tmp_path / "killed")
    while not list(tmp_path.glob("killed/checkpoint-0001")) and process.poll() is None:
        time.sleep(0.01)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    codes, text = ended(process)
    assert codes == [1], text
    assert not (tmp_path / "killed" / "result.json").exists()

    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port()}
    ranks = [start(TRAIN, tmp_path / "killed", **common, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
    codes, text = ended(*ranks)
    assert codes == [0, 0] and "resumed after epoch" in text, text
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys() and all(torch.equal(whole[name], killed[name]) for name in whole)
