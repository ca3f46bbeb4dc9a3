"""Builds the native parts; pyproject.toml has the rest. All are optional: without them the package is pure PyTorch.

* ``soatfast/_ops_cpu.so`` and ``_ops_cuda.so``: the ops, plain shared libraries on the LibTorch stable ABI (2.11 and
  later) with no Python in them, so one file serves every Python and every such torch. Loaded by soatfast.ops.load.
* ``soatfast._host``: a pybind11 module, the csrc/math cores on NumPy arrays, for the tests: in an editable install.

SOATFAST_NATIVE and SOATFAST_CUDA are ``auto`` (build what can be built, note why the rest was not), ``0`` or ``1`` (a
failure is an error). Without a compiler ``auto`` gives the PyTorch twins of the ops; without ninja, which pip brings,
it ends in one line. MAX_JOBS is the number of compilers at a time. Needs torch in the building environment:
``pip install --no-build-isolation .`` A wheel is of every Python 3 (py3-none-PLATFORM), or of every platform where
nothing native is in it (py3-none-any).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))

from nvcc import architectures, find_nvcc, known_architectures  # noqa: E402

X86 = platform.machine().lower() in ("x86_64", "amd64")
INSTRUCTION_SETS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512"],
}
if not X86:
    del INSTRUCTION_SETS["avx2"], INSTRUCTION_SETS["avx512"]
OPS = sorted(path.stem for path in (ROOT / "csrc/cpu").glob("*.cpp") if not path.stem.startswith("rows_"))  # and isa
CUDA_OPS = sorted(path.stem for path in (ROOT / "csrc/cuda").glob("*.cu"))

COMMON = ["-std=c++20", "-fPIC", "-fvisibility=hidden"]
# No fast-math: sign(0), NaN and denormals are part of the contract, and no contraction, so that a sign falls as in the
# reference. What is switched off is only errno and floating-point traps, which nothing here reads.
NUMERICS = [
    "-O3",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
]
STABLE = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]


class CannotBuild(Exception):
    """Something that a native part needs is not there."""


class MissingTool(CannotBuild):
    """A package of the building environment is not there, which pip brings."""


def switch(name: str) -> str:
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"{name} must be auto, 0 or 1, got {value!r}")
    return value


def compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name.split()[0]):
            return name
    raise CannotBuild("no C++ compiler was found (set CXX or install g++)")


def torch_home() -> tuple[Path, str]:
    try:
        import torch
    except ImportError as error:
        raise MissingTool("torch") from error
    return Path(torch.__file__).parent, torch.__version__


def has_cuda() -> bool:
    import torch

    return torch.version.cuda is not None


def pybind_include() -> str:
    try:
        import pybind11
    except ImportError as error:
        raise MissingTool("pybind11") from error
    return str(pybind11.get_include())


def ninja() -> str:
    if found := shutil.which("ninja"):
        return found
    try:
        from ninja import BIN_DIR
    except ImportError as error:
        raise MissingTool("ninja") from error
    return str(Path(BIN_DIR) / "ninja")


def jobs() -> list[str]:
    """Ninja's option for MAX_JOBS compilers at a time."""
    value = os.environ.get("MAX_JOBS", "")
    if value and not (value.isdigit() and int(value) > 0):
        raise SystemExit(f"MAX_JOBS must be a number of jobs, got {value!r}")
    return ["-j", value] if value else []


def check_tools(names: list[str]) -> None:
    """End in one line where a package is missing that the native parts `names` need; no compiler is no error."""
    if all(switch(LIBRARIES[name][1]) == "0" for name in names) or switch("SOATFAST_NATIVE") == "0":
        return
    missing = []
    for tool in (torch_home, ninja, *([pybind_include] if "soatfast._host" in names else [])):
        try:
            tool()
        except MissingTool as error:
            missing.append(str(error))
    if missing:
        raise SystemExit(
            f"soatfast: the native parts need {' and '.join(missing)} in this environment: pip install "
            f"{' '.join(missing)}, or set SOATFAST_NATIVE=0 to install without them"
        )


def quoted(words: list[str]) -> str:
    return " ".join(words).replace("$", "$$")


class Recipe:
    """A ninja file for one shared library: objects with a command each, and the link."""

    def __init__(self, folder: Path, output: Path):
        self.folder, self.output = folder, output
        self.lines: list[str] = []
        self.objects: list[str] = []

    def compile(self, source: str, command: list[str], depfile: list[str]) -> None:
        target = f"{Path(source).stem}.o"
        rule = f"compile_{len(self.objects)}"
        line = quoted([*command, *depfile, "-c", str(ROOT / source), "-o", target])
        self.lines += [f"rule {rule}", f"  command = {line}", f"  depfile = {target}.d", "  deps = gcc"]
        self.lines += [f"build {target}: {rule} {ROOT / source}"]
        self.objects.append(target)

    def link(self, command: list[str], tail: list[str]) -> None:
        line = quoted([*command, "-shared", *self.objects, "-o", str(self.output), *tail])
        self.lines += ["rule link", f"  command = {line}", f"build {self.output}: link {' '.join(self.objects)}"]

    def run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        (self.folder / "build.ninja").write_text("\n".join(self.lines) + "\n")
        command = [ninja(), "-C", str(self.folder), *jobs()]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        (self.folder / "build.log").write_text(done.stdout)
        if done.returncode:
            words = ("error", "cannot find", "undefined reference")
            failed = [line for line in done.stdout.splitlines() if any(word in line for word in words)][:3]
            raise CannotBuild("; ".join(failed) or done.stdout[-400:])


def build_cpu(folder: Path, output: Path) -> dict:
    home, version = torch_home()
    cxx = compiler()
    # GCC 12 moves words through an MMX register in the SSE2 kernels and leaves the x87 unit unusable: fmod gives NaN.
    machine = ["-DSOATFAST_X86", "-mno-mmx", "-include", str(ROOT / "csrc/cpu/glibc.h")] if X86 else []
    recipe = Recipe(folder, output)
    for name, flags in INSTRUCTION_SETS.items():
        source = f"csrc/cpu/rows_{name}.cpp"
        recipe.compile(source, [cxx, *COMMON, *NUMERICS, *machine, *flags], ["-MD", "-MF", f"rows_{name}.o.d"])
    for name in OPS:
        command = [cxx, *COMMON, "-O2", *machine, *STABLE, "-isystem", str(home / "include")]
        recipe.compile(f"csrc/cpu/{name}.cpp", command, ["-MD", "-MF", f"{name}.o.d"])
    recipe.link([cxx], [f"-L{home / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-ltorch"])
    recipe.run()
    flags = " ".join(NUMERICS)
    return {"compiler": describe(cxx), "flags": flags, "isa": list(INSTRUCTION_SETS), "torch": version}


def build_cuda(folder: Path, output: Path) -> dict:
    home, version = torch_home()
    if switch("SOATFAST_CUDA") == "auto" and not has_cuda():
        raise CannotBuild("this torch is built without CUDA (SOATFAST_CUDA=1 builds it all the same)")
    toolkit = find_nvcc()
    if toolkit is None:
        raise CannotBuild("no nvcc was found (CUDA_HOME, PATH, or the package nvidia-cuda-nvcc)")
    cxx = compiler()
    arch = architectures(known=known_architectures(toolkit.nvcc))
    recipe = Recipe(folder, output)
    command = [
        toolkit.nvcc,
        "-std=c++20",
        "-O3",
        "-Xcompiler",
        "-fPIC,-fvisibility=hidden",
        "-DUSE_CUDA",
        "-fmad=false",  # no contraction, as on a CPU
        *STABLE,
        *arch,
    ]
    command += ["-ccbin", cxx, "--threads", "2", "-isystem", str(home / "include")]
    command += [word for path in toolkit.include for word in ("-isystem", path)]
    for name in CUDA_OPS:
        recipe.compile(f"csrc/cuda/{name}.cu", command, ["-MD", "-MF", f"{name}.o.d"])
    # libtorch last and always: it brings the CUDA shims, which torch_cpu does not have.
    tail = [f"-L{path}" for path in (*toolkit.library, home / "lib")]
    tail += ["-lcudart_static", "-ldl", "-lrt", "-lpthread", "-Wl,--no-as-needed", "-ltorch_cpu", "-ltorch"]
    recipe.link([cxx], tail)
    recipe.run()
    return {"compiler": f"nvcc {toolkit.version}", "architectures": arch[1::2], "torch": version}


def build_host(folder: Path, output: Path) -> dict:
    cxx = compiler()
    include = [pybind_include(), sysconfig.get_path("include")]
    flags = [word for path in include for word in ("-isystem", path)]
    recipe = Recipe(folder, output)
    recipe.compile("csrc/bindings.cpp", [cxx, *COMMON, *NUMERICS, "-O2", *flags], ["-MD", "-MF", "bindings.o.d"])
    recipe.link([cxx], [])
    recipe.run()
    return {"compiler": describe(cxx)}


def describe(cxx: str) -> str:
    return subprocess.run([*cxx.split(), "--version"], capture_output=True, text=True).stdout.splitlines()[0]


LIBRARIES = {
    "soatfast._ops_cpu": (build_cpu, "SOATFAST_NATIVE"),
    "soatfast._ops_cuda": (build_cuda, "SOATFAST_CUDA"),
    "soatfast._host": (build_host, "SOATFAST_NATIVE"),
}


class BuildNative(build_ext):
    """Runs the recipes above in place of setuptools' compiler, and notes what came of each in _build_info.json."""

    def get_ext_filename(self, fullname: str) -> str:
        if "_ops_" in fullname:  # no Python in it, so no Python in its name
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def run(self) -> None:
        in_place = self.inplace or getattr(self, "editable_mode", False)
        if not in_place:
            self.extensions = [extension for extension in self.extensions if extension.name != "soatfast._host"]
        check_tools([extension.name for extension in self.extensions])
        self.info: dict[str, dict] = {}
        super().run()
        text = json.dumps(self.info, indent=1) + "\n"
        folders = {Path(self.build_lib) / "soatfast"} | ({ROOT / "soatfast"} if in_place else set())
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "_build_info.json").write_text(text)

    def build_extensions(self) -> None:
        for extension in list(self.extensions):
            name = extension.name.rpartition(".")[2].removeprefix("_")
            build, variable = LIBRARIES[extension.name]
            output = Path(self.get_ext_fullpath(extension.name)).resolve()
            try:
                if "0" in (switch(variable), switch("SOATFAST_NATIVE")):
                    raise CannotBuild(f"switched off by {variable if switch(variable) == '0' else 'SOATFAST_NATIVE'}=0")
                facts = build(ROOT / "build/native" / name, output)
                self.info[name] = {"built": True, **facts}
            except CannotBuild as error:
                if switch(variable) == "1" and switch("SOATFAST_NATIVE") != "0":
                    raise SystemExit(f"{variable}=1, but {output.name} was not built: {error}") from None
                print(f"soatfast: {output.name} was not built: {error}", file=sys.stderr)
                for stale in (output, ROOT / "soatfast" / output.name):  # of an earlier build
                    stale.unlink(missing_ok=True)
                self.info[name] = {"built": False, "reason": str(error)}
                self.extensions.remove(extension)


def tags(info: dict[str, dict], machine: str) -> tuple[str, str, str]:
    """Of a wheel: its libraries have no Python in them, so one serves every Python 3; without any, every machine."""
    return ("py3", "none", machine if any(facts["built"] for facts in info.values()) else "any")


class Wheel(bdist_wheel):
    """Named by what is in it."""

    def get_tag(self) -> tuple[str, str, str]:
        own = super().get_tag()
        info = getattr(self.get_finalized_command("build_ext"), "info", None)
        return own if info is None else tags(info, own[2])  # an editable install asks before it builds


setup(
    ext_modules=[Extension(name, sources=[], optional=True) for name in LIBRARIES],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
