"""The built libraries: no Python in the ops, only symbols of torch 2.11, and a package that lives without them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch

from soatfast.ops import load
from soatfast.ops.contract import SCHEMAS

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("ops_cpu", "ops_cuda")

# Shim functions of torch 2.11 that the libraries use; a new name belongs here once it is known to be in 2.11.
SHIM_2_11 = {
    "aoti_torch_abi_version",
    "aoti_torch_create_device_guard",
    "aoti_torch_delete_device_guard",
    "aoti_torch_delete_library_object",
    "aoti_torch_delete_tensor_object",
    "aoti_torch_get_current_cuda_stream",
    "aoti_torch_get_device_index",
    "aoti_torch_get_device_type",
    "aoti_torch_get_dim",
    "aoti_torch_get_dtype",
    "aoti_torch_get_numel",
    "aoti_torch_get_size",
    "aoti_torch_is_contiguous",
    "aoti_torch_library_init_impl",
    "aoti_torch_new_tensor_handle",
    "torch_c10_cuda_check_msg",
    "torch_c10_cuda_free_error_msg",
    "torch_call_dispatcher",
    "torch_delete_list",
    "torch_dtype_float4_e2m1fn_x2",
    "torch_dtype_float8_e8m0fnu",
    "torch_get_const_data_ptr",
    "torch_get_mutable_data_ptr",
    "torch_library_impl",
    "torch_list_push_back",
    "torch_new_list_reserve_size",
    "torch_parallel_for",
}
CONSTANTS = re.compile(r"aoti_torch_(dtype|device_type|layout|memory_format)_\w+")


def built(name: str) -> Path:
    path = load.library_path(name)
    if not path.is_file():
        pytest.skip(f"{path.name} is not built: {load.build_info().get(name, {}).get('reason', 'never tried')}")
    return path


def undefined_symbols(path: Path) -> set[str]:
    if shutil.which("nm") is None:
        pytest.skip("no nm (binutils)")
    text = subprocess.run(["nm", "-D", "--undefined-only", path], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].partition("@")[0] for line in text.splitlines()}


@pytest.mark.parametrize("name", LIBRARIES)
def test_no_python_and_no_torch_cpp_symbol(name: str) -> None:
    symbols = undefined_symbols(built(name))
    assert not [s for s in symbols if s.startswith(("Py", "_Py"))]
    assert not [s for s in symbols if re.match(r"_ZN?K?(2at|3c10|5torch)", s)], "only the C shim is stable"


@pytest.mark.parametrize("name", LIBRARIES)
def test_only_shim_functions_of_torch_2_11(name: str) -> None:
    used = {s for s in undefined_symbols(built(name)) if s.startswith(("aoti_torch", "torch_"))}
    used -= {s for s in used if CONSTANTS.fullmatch(s)}
    assert used <= SHIM_2_11, f"not known to be in torch 2.11: {sorted(used - SHIM_2_11)}"


@pytest.mark.native
def test_exports_are_few() -> None:
    command = ["nm", "-D", "--defined-only", built("ops_cpu")]
    names = {line.split()[-1] for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()}
    assert "soatfast_cpu_isa" in names
    assert not [name for name in names if "soatfast" in name and name != "soatfast_cpu_isa"]


@pytest.mark.native
def test_every_op_is_served_by_cpp() -> None:
    assert {op for op, key in load.served_by if key == "CPU"} == set(SCHEMAS)


@pytest.mark.native
def test_kernels_leave_the_floating_point_unit_alone() -> None:
    """GCC 12 once moved words through MMX in the SSE2 kernels; fmod (x87) gave NaN afterwards."""
    program = """
import torch
from soatfast.testing import OPS, dtypes, op_cases
for op in OPS:
    for case in op_cases(op, [(3, 33)]):
        for dtype in {torch.float32, torch.float64, torch.float16}.intersection(dtypes(op)):
            args = case.args(dtype)
            getattr(torch.ops.soatfast, op)(*args)
            assert (torch.arange(3.0) % 4).tolist() == [0, 1, 2], case.id
"""
    for isa in ("baseline", "avx2", "avx512"):
        environment = {**os.environ, "SOATFAST_ISA": isa}
        subprocess.run([sys.executable, "-c", program], env=environment, check=True)


PURE = """
import json, sys, torch
import soatfast
from soatfast import ops
from soatfast.ops.config import describe
facts = describe()
assert {by["CPU"] for by in facts["kernels"].values()} == {"reference"}, facts["kernels"]
assert facts["cpu"]["isa"] is None
assert ops.lmo(torch.tensor([[3.0, -4.0]]), 2, 1.0).tolist() == [[0.6000000238418579, -0.800000011920929]]
compiled = torch.compile(lambda g: ops.lmo(g, 2, 1.0), fullgraph=True, backend="aot_eager")
assert torch.equal(compiled(torch.ones(2, 4)), torch.full((2, 4), 0.5))
print(soatfast.show_config())
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, cwd=ROOT
    )


def test_works_without_any_library() -> None:
    done = run(PURE, SOATFAST_NATIVE_DISABLE="1", SOATFAST_REQUIRE_NATIVE="0")
    assert done.returncode == 0, done.stderr
    assert "switched off by SOATFAST_NATIVE_DISABLE=1" in done.stdout


def test_a_required_library_that_is_missing_is_an_error() -> None:
    done = run("import soatfast.ops", SOATFAST_NATIVE_DISABLE="1", SOATFAST_REQUIRE_NATIVE="1")
    assert done.returncode == 1
    assert "SOATFAST_REQUIRE_NATIVE=1, but ops_cpu is not loaded: switched off" in done.stderr


def test_a_broken_library_is_reported_not_hidden(tmp_path: Path) -> None:
    copy = tmp_path / "soatfast"
    shutil.copytree(ROOT / "soatfast", copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (copy / "_ops_cpu.so").write_bytes(b"not a library")
    program = "import soatfast; print(soatfast.__file__); print(soatfast.show_config())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "SOATFAST_REQUIRE_NATIVE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert str(tmp_path) in done.stdout, done.stderr
    assert "BROKEN: ops_cpu: _ops_cpu.so does not load" in done.stdout
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "SOATFAST_REQUIRE_NATIVE": "1"}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1 and "does not load" in done.stderr


def test_reference_backend_by_environment() -> None:
    program = "from soatfast import ops; assert ops.dispatch.kernel('lmo') is ops.reference.lmo"
    assert run(program, SOATFAST_BACKEND="reference").returncode == 0
    done = run("import soatfast.ops", SOATFAST_BACKEND="fast")
    assert done.returncode == 1 and 'backend must be "auto" or "reference", got \'fast\'' in done.stderr


def test_instruction_set_is_checked() -> None:
    done = run("import soatfast.ops", SOATFAST_ISA="sse9")
    assert done.returncode == 1 and "SOATFAST_ISA must be one of baseline, avx2, avx512, got 'sse9'" in done.stderr


@pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="not a source tree")
def test_build_without_a_compiler_gives_a_pure_package_with_the_reason(tmp_path: Path) -> None:
    build = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "lib")]
    environment = {**os.environ, "SOATFAST_NATIVE": "0", "SOATFAST_CUDA": "0"}
    before = {path.name: path.stat().st_mtime for path in (ROOT / "soatfast").glob("*.so")}
    copy = tmp_path / "source"
    for name in ("csrc", "soatfast"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy)
    done = subprocess.run(build, env=environment, capture_output=True, text=True, cwd=copy)
    assert done.returncode == 0, done.stderr
    info = json.loads((tmp_path / "lib/soatfast/_build_info.json").read_text())
    assert info["ops_cpu"] == {"built": False, "reason": "switched off by SOATFAST_NATIVE=0"}
    environment |= {"SOATFAST_NATIVE": "auto", "PATH": str(Path(sys.executable).parent), "CXX": "no-such-compiler"}
    done = subprocess.run(build, env=environment, capture_output=True, text=True, cwd=copy)
    assert done.returncode == 0, done.stderr
    info = json.loads((tmp_path / "lib/soatfast/_build_info.json").read_text())
    assert info["ops_cpu"]["reason"].startswith("no C++ compiler was found")
    done = subprocess.run(build, env={**environment, "SOATFAST_NATIVE": "1"}, capture_output=True, text=True, cwd=copy)
    assert done.returncode == 1 and "SOATFAST_NATIVE=1, but _ops_cpu.so was not built" in done.stderr
    assert before == {path.name: path.stat().st_mtime for path in (ROOT / "soatfast").glob("*.so")}


def test_arch_list_is_read_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "csrc"))
    from nvcc import architectures

    assert architectures("8.0 9.0a+PTX")[1::2] == [
        "arch=compute_80,code=sm_80", "arch=compute_90a,code=sm_90a", "arch=compute_90a,code=compute_90a",
    ]  # fmt: skip
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert "arch=compute_100,code=sm_100" in architectures()
    with pytest.raises(ValueError, match="TORCH_CUDA_ARCH_LIST"):
        architectures("Hopper")
    older = {"80", "90"}  # nvcc 12.4
    assert architectures(known=older)[1::2] == [
        "arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90",
    ]  # fmt: skip
    assert architectures("9.0a", older) == architectures("9.0a")
    with pytest.raises(ValueError, match=r"does not compile for 10\.0\+PTX, but for 8\.0, 9\.0"):
        architectures("10.0+PTX", older)


MAX_REGISTERS = 64  # four blocks of 256 threads on a multiprocessor of 64 K registers


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("lp_norm", 16),  # four orders by four dtypes
        ("arnoldi_step", 2),
        ("krylov", 6),  # Givens step, triangular solve and combination, by two dtypes
    ],
)
def test_cuda_kernels_keep_their_register_budget(
    name: str, kernels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "csrc"))
    from nvcc import find_nvcc

    toolkit = find_nvcc()
    if toolkit is None:
        pytest.skip("no nvcc found: CUDA_HOME, PATH, or the package nvidia-cuda-nvcc (make nvcc)")
    include = [str(Path(torch.__file__).parent / "include"), *toolkit.include]
    command = [
        toolkit.nvcc,
        "-std=c++20",
        "-O3",
        "-fmad=false",
        "-DUSE_CUDA",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
    ]
    command += [word for path in include for word in ("-isystem", path)]
    command += ["-gencode", "arch=compute_90,code=sm_90", "-Xptxas=-v", "-cubin", "-o", str(tmp_path / f"{name}.cubin")]
    done = subprocess.run([*command, str(ROOT / f"csrc/cuda/{name}.cu")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", done.stderr)]
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", done.stderr)]
    assert len(registers) == kernels
    assert max(registers) <= MAX_REGISTERS
    assert spills and not any(spills)


@pytest.fixture(scope="module")
def setup() -> ModuleType:
    """setup.py, with nothing set up."""
    spec = importlib.util.spec_from_file_location("soatfast_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch("setuptools.setup"), mock.patch.object(sys, "path", [*sys.path]):
        spec.loader.exec_module(module)
    return module


def test_a_missing_package_ends_the_build_in_one_line(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SOATFAST_NATIVE", "SOATFAST_CUDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "ninja", None)  # an import fails
    monkeypatch.setitem(sys.modules, "pybind11", None)
    with pytest.raises(SystemExit, match="need ninja in this environment: pip install ninja, or set SOATFAST_NATIVE=0"):
        setup.check_tools(["soatfast._ops_cpu"])
    with pytest.raises(SystemExit, match="pip install ninja pybind11") as error:
        setup.check_tools(["soatfast._ops_cpu", "soatfast._host"])
    assert "\n" not in str(error.value)
    monkeypatch.setenv("SOATFAST_NATIVE", "0")
    setup.check_tools(["soatfast._ops_cpu", "soatfast._host"])


def test_no_compiler_is_a_reason_and_no_error(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(setup.CannotBuild, match="no C\\+\\+ compiler was found") as error:
        setup.compiler()
    assert not isinstance(error.value, setup.MissingTool)


def test_max_jobs_counts(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAX_JOBS", raising=False)
    assert setup.jobs() == []
    monkeypatch.setenv("MAX_JOBS", "3")
    assert setup.jobs() == ["-j", "3"]
    monkeypatch.setenv("MAX_JOBS", "many")
    with pytest.raises(SystemExit, match="MAX_JOBS must be a number of jobs, got 'many'"):
        setup.jobs()


def test_no_cuda_library_for_a_torch_without_cuda(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(setup, "find_nvcc", lambda: None)
    monkeypatch.setenv("SOATFAST_CUDA", "auto")
    with pytest.raises(setup.CannotBuild, match="this torch is built without CUDA"):
        setup.build_cuda(tmp_path, tmp_path / "x.so")
    monkeypatch.setenv("SOATFAST_CUDA", "1")
    with pytest.raises(setup.CannotBuild, match="no nvcc was found"):
        setup.build_cuda(tmp_path, tmp_path / "x.so")


def test_a_wheel_is_of_every_python(setup: ModuleType) -> None:
    assert setup.tags({"ops_cpu": {"built": True}}, "linux_x86_64") == ("py3", "none", "linux_x86_64")
    assert setup.tags({"ops_cpu": {"built": False}}, "linux_x86_64") == ("py3", "none", "any")


def test_the_first_use_of_a_twin_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from soatfast import ops
    from soatfast.ops import dispatch

    g = torch.ones(1, 2)
    monkeypatch.setattr(dispatch, "_twins_unsaid", "not built: no C++ compiler was found")
    with pytest.warns(load.NativeWarning, match="the PyTorch twins serve .* no C\\+\\+ compiler was found") as said:
        ops.lmo(g, 2, 1.0)
        ops.lmo(g, 2, 1.0)
    assert len(said) == 1 and said[0].filename == __file__
    for reason, expected in (("switched off by SOATFAST_NATIVE=0", ""), ("does not load: x", "does not load: x")):
        monkeypatch.setitem(load.parts, "ops_cpu", load.Part(False, reason))
        assert load.without_library() == expected
