# soatfast: `make demo` and `make test` work on a fresh clone; both set up .venv first.
PYTHON ?= python3
VENV   ?= .venv
# What the project is developed against; the package takes torch >= 2.11 (in a fresh VENV: make TORCH=torch==2.11.0).
TORCH  ?= torch==2.13.0
RUN     = $(VENV)/bin/python -m
PYTEST  = OMP_NUM_THREADS=1 $(RUN) pytest -q
NVCC_PACKAGES = nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
                nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85

.PHONY: help setup nvcc demo compare study study-cifar test lint docs bench peers gpu-check doctor sdist wheel clean
help:
	@echo "make demo       train five models on real digits, write runs/demo"
	@echo "make test       run the tests"
	@echo "make lint       ruff, mypy, and a user's script under strict mypy and pyright"
	@echo "make docs       build the documentation site, build/docs/index.html"
	@echo "make bench      time the ops and attacks against their baselines, print the ratios"
	@echo "make peers      install foolbox and ART, which make bench then compares with as well"
	@echo "make compare    docs/measurements.md: the demo with three seeds, and the SCORPIO of the paper"
	@echo "make study      training with a memory against PGD training: docs/memory.md, about two hours"
	@echo "make study-cifar  the same and its rivals on natural images: docs/natural-images.md, about nine hours"
	@echo "make gpu-check  build, test and measure on a GPU, where one is at hand"
	@echo "make wheel      the source archive and a wheel in dist, checked"
	@echo "make doctor     versions, devices, and which kernel serves each op"

SOURCES := $(shell find csrc -type f 2>/dev/null) setup.py pyproject.toml

setup: $(VENV)/.soatfast

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "soatfast needs Python 3.11 to 3.13: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3 -m venv failed: install python3-venv" >&2; exit 1; }

# torch comes first and alone, so that nothing else chooses its version.
$(VENV)/.soatfast: $(VENV)/bin/python $(SOURCES)
	$(RUN) pip install -q $(TORCH) "setuptools>=77" wheel ninja pybind11 "numpy>=1.26"
	$(RUN) pip install -q --no-build-isolation -e ".[dev]"
	$(RUN) pip install -q --no-deps torchattacks==3.5.1
	@touch $@

nvcc: $(VENV)/bin/python
	@command -v nvcc >/dev/null || test -n "$$CUDA_HOME" || $(RUN) pip install -q $(NVCC_PACKAGES)

demo: setup
	$(VENV)/bin/soatfast compare

compare: setup
	$(VENV)/bin/soatfast compare --seeds 3 --run-dir runs/compare \
	  --methods standard pgd10 scorpio pgd4 scorpio-ball

# The seconds of its trainings compare only on a machine that does nothing else.
study-cifar: setup
	$(RUN) benchmarks.study_cifar

study: setup
	$(RUN) benchmarks.replay_study
	$(RUN) benchmarks.memory_rate

test: setup
	$(PYTEST) -n 2 tests/ops/triton/test_aot.py
	TRITON_INTERPRET=1 $(PYTEST) -n 2 tests/ops/triton
	$(PYTEST) --benchmark-disable benchmarks
	$(PYTEST) -n 2 --ignore=tests/ops/triton

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYTEST) tests/typing

$(VENV)/.docs: $(VENV)/.soatfast
	$(RUN) pip install -q -e ".[docs]" --no-build-isolation
	@touch $@

# Offline, and every warning is an error.
docs: $(VENV)/.docs
	$(PYTEST) --doctest-modules docs/_ext
	OMP_NUM_THREADS=1 $(RUN) sphinx -q -W --keep-going -d build/doctrees docs build/docs

# `make peers` first, and PGD is timed against foolbox and ART as well.
bench: setup
	@mkdir -p runs
	$(RUN) pytest -q benchmarks --benchmark-json=runs/bench.json --benchmark-columns=median
	$(RUN) benchmarks.report runs/bench.json
	$(RUN) benchmarks.scaling
	$(RUN) benchmarks.peak_memory
	$(RUN) benchmarks.kept_memory

peers: setup
	$(RUN) pip install -q -e ".[peers]" --no-build-isolation

# On a GPU machine the environment that holds its torch: .venv where there is one, else PYTHON.
gpu-check:
	$(if $(wildcard $(VENV)/bin/python),$(VENV)/bin/python,$(PYTHON)) benchmarks/gpu_check.py

doctor: setup
	$(VENV)/bin/soatfast doctor

# The source archive, and a wheel for this machine made from it; both are checked as a package index would.
sdist: setup
	rm -rf dist
	$(RUN) build --no-isolation --sdist
	$(RUN) twine check --strict dist/*

wheel: sdist
	rm -rf build/wheel && mkdir -p build/wheel
	tar -xzf dist/soatfast-*.tar.gz -C build/wheel --strip-components 1
	$(RUN) build --no-isolation --wheel --outdir dist build/wheel
	$(RUN) twine check --strict dist/*

clean:
	rm -rf dist build *.egg-info soatfast/*.so runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
