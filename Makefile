# Every target works on a fresh clone: the first one makes .venv with pinned packages, later ones reuse it.
# PYTHON=/path/to/python chooses the interpreter the environment is made from.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
TABULAR := .venv-tabular
TRAIN := .venv-train
EXACT := .venv-exact
PROGRAMS := .venv-programs
BIN := $(VENV)/bin
INSTALL := bin/python -m pip --disable-pip-version-check --no-input install --quiet --constraint constraints.txt
PIP := $(VENV)/$(INSTALL)
# With SLOW_MINUTES=N, `make test` goes on with slow tests, in turn (tests/_rotation.py), and begins none after N minutes.
SLOW := $(if $(SLOW_MINUTES),-m "slow or not slow" --slow-minutes $(SLOW_MINUTES))
# What `make test-runtimes` installs in place of the pinned ONNX Runtime: the least that pyproject.toml allows, and the
# newest of all, releases to come included.
OLDEST := onnxruntime==1.24.1
NEWEST := onnxruntime
RUNTIME_TESTS := -n 2 --dist worksteal --timeout 600 tests/session/test_dropin_*.py tests/session/test_one_import.py \
	tests/session/test_patch.py tests/session/test_given_options.py tests/session/test_every_call.py \
	tests/session/test_swapping.py tests/session/test_true_plans.py tests/session/test_memory_budget.py \
	tests/bundle/test_round_trip.py tests/bundle/test_devices.py tests/programs tests/conformance/test_onnx_suite.py \
	tests/conformance/test_zoo_equality.py
# Two workers pay from two cores on; more of them would fight over cores with the lanes under test.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: help demo test test-all test-runtimes programs mutants bench bench-all tabular train-test exact check format \
	clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(VENV)/.demo ## find speech in a recording with a real model, then where Parallax gains, and where it does not
	$(BIN)/python examples/voice_activity.py
	$(BIN)/python examples/gains.py
	@echo "3. A convolutional model that stays whole: there is nothing to gain in speed, and bench says so"
	@# Exit status 3 is no failure: other programs used the cores, so that bench came to no conclusion.
	$(BIN)/parallax bench zoo:mobilenetv2 --max-time 30 || test $$? -eq 3

test: check $(VENV)/.backends ## lint, formatting, strict types, layers, tests
	$(PYTEST) $(SLOW)

test-all: check $(VENV)/.backends ## the same, and the slow suites
	$(PYTEST) -m "slow or not slow" --timeout 1800

test-runtimes: .venv-oldest/.made .venv-newest/.made ## what depends on ONNX Runtime, with the oldest that is allowed and with the newest
	.venv-oldest/bin/python -m pytest $(RUNTIME_TESTS)
	.venv-newest/bin/python -m pytest $(RUNTIME_TESTS)

programs: $(PROGRAMS)/.made ## programs and libraries of others (RapidOCR, silero-vad): with one line changed, patched and unchanged
	$(PROGRAMS)/bin/python -m pytest -m "slow or not slow" --timeout 1800 tests/programs

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/readme_figures.py --check

mutants: $(VENV)/.mutation ## list changes to the code that no test notices (MODULES="memory/_budget ..." MUTANTS_MINUTES=20)
	$(BIN)/python tools/mutants.py $(MODULES) --minutes $(or $(MUTANTS_MINUTES),20)

bench: $(VENV)/.core ## measure the reference models against plain ONNX Runtime
	mkdir -p benchmarks/results
	$(BIN)/python benchmarks/latency.py --models paper --output benchmarks/results/latency.md

bench-all: $(VENV)/.backends ## every benchmark in turn, then the README's figures from their results; up to three hours and a half
	$(BIN)/python benchmarks/all.py
	$(BIN)/python tools/readme_figures.py

tabular: $(TABULAR)/.made ## models converted from scikit-learn, LightGBM and XGBoost: their answers, and what is added to their time
	$(TABULAR)/bin/python -m pytest -m slow --timeout 1800 tests/conformance/test_tabular.py
	$(TABULAR)/bin/python benchmarks/slowness.py

train-test: $(TRAIN)/.made ## small trainings of networks that place: five minutes, in an environment of its own with torch
	$(TRAIN)/bin/python -m pytest tests/training

exact: $(EXACT)/.made ## a solver in an environment of its own, for policy="exact" and benchmarks/optimum.py

format: $(VENV)/.dev ## put sources in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment, caches and build products
	rm -rf $(VENV) $(TABULAR) $(TRAIN) $(EXACT) $(PROGRAMS) .venv-oldest .venv-newest build dist .hypothesis \
		.import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests tools benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The environment, in steps, each with a stamp, so that an interrupted one is done again: the bare
# environment, what the package needs, the demo's model (the tests use it too), the development tools.
$(VENV)/.made:
	@python=$$(sh scripts/find-python.sh) && echo "Making $(VENV) with $$python" && "$$python" -m venv --clear $(VENV)
	@touch $@

# The build backend is pinned and installed first, so that the build needs no environment (and no network) of its own.
$(VENV)/.core: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing parallax-runtime and what it needs"
	@$(PIP) hatchling editables
	@$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "Installing the development tools"
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

# What some platforms have no wheels or no driver for: there, the tests of that backend are skipped, and say why; in
# continuous integration they fail (tests/_skips.py).
$(VENV)/.backends: $(VENV)/.dev tools/install_swiftshader.py
	@echo "Installing the optional backends, and a software GPU to test them with"
	@$(PIP) --no-build-isolation --editable '.[dev,openvino]' || echo "No OpenVINO here: its tests will be skipped"
	@$(PIP) --no-build-isolation --editable '.[dev,webgpu]' || echo "No WebGPU plugin here: its tests will be skipped"
	@$(BIN)/python tools/install_swiftshader.py || echo "No SwiftShader here: the tests of WebGPU will be skipped"
	@touch $@

$(VENV)/.mutation: $(VENV)/.dev
	@echo "Installing mutmut"
	@$(PIP) mutmut
	@touch $@

# The wheel asks for torch, which its ONNX files do not need: hence --no-deps.
$(VENV)/.demo: $(VENV)/.core examples/requirements-demo.txt
	@echo "Installing the demo's model"
	@$(PIP) --no-deps --requirement examples/requirements-demo.txt
	@touch $@

# The libraries that models are converted from want versions of their own, so they have an environment of their own.
$(TABULAR)/.made: pyproject.toml constraints.txt benchmarks/requirements-tabular.txt
	@python=$$(sh scripts/find-python.sh) && echo "Making $(TABULAR) with $$python" && "$$python" -m venv --clear $(TABULAR)
	@$(TABULAR)/$(INSTALL) hatchling editables
	@$(TABULAR)/$(INSTALL) --no-build-isolation --editable . pytest pytest-timeout pytest-xdist hypothesis
	@$(TABULAR)/$(INSTALL) --requirement benchmarks/requirements-tabular.txt
	@touch $@

# torch is larger than everything else together, so that it has an environment of its own. Where its own index can be
# reached, pip prefers the build for the processor there, which is a tenth of the size of the one for GPUs.
$(TRAIN)/.made: pyproject.toml constraints.txt
	@python=$$(sh scripts/find-python.sh) && echo "Making $(TRAIN) with $$python" && "$$python" -m venv --clear $(TRAIN)
	@$(TRAIN)/$(INSTALL) hatchling editables
	@$(TRAIN)/$(INSTALL) --extra-index-url https://download.pytorch.org/whl/cpu --no-build-isolation --editable '.[train]' \
		pytest pytest-timeout pytest-xdist hypothesis
	@touch $@

# The solver wants an older protobuf than the rest. It is asked by a process of this environment's Python.
$(EXACT)/.made: constraints-exact.txt
	@python=$$(sh scripts/find-python.sh) && echo "Making $(EXACT) with $$python" && "$$python" -m venv --clear $(EXACT)
	@$(EXACT)/bin/python -m pip --disable-pip-version-check --no-input install --quiet --constraint constraints-exact.txt ortools
	@touch $@

# Likewise the libraries that open sessions of ONNX Runtime themselves. Their models come with their wheels; silero-vad
# wants torch.
$(PROGRAMS)/.made: pyproject.toml constraints.txt tests/programs/requirements.txt
	@python=$$(sh scripts/find-python.sh) && echo "Making $(PROGRAMS) with $$python" && "$$python" -m venv --clear $(PROGRAMS)
	@$(PROGRAMS)/$(INSTALL) hatchling editables
	@$(PROGRAMS)/$(INSTALL) --no-build-isolation --editable . pytest pytest-timeout pytest-xdist hypothesis
	@$(PROGRAMS)/$(INSTALL) --extra-index-url https://download.pytorch.org/whl/cpu --requirement tests/programs/requirements.txt
	@touch $@

# Everything pinned but ONNX Runtime.
.venv-%/.made: pyproject.toml constraints.txt
	@python=$$(sh scripts/find-python.sh) && echo "Making .venv-$* with $$python" && "$$python" -m venv --clear .venv-$*
	@grep -v '^onnxruntime==' constraints.txt > .venv-$*/constraints.txt
	@.venv-$*/$(subst constraints.txt,.venv-$*/constraints.txt,$(INSTALL)) hatchling editables
	@.venv-$*/$(subst constraints.txt,.venv-$*/constraints.txt,$(INSTALL)) --no-build-isolation --editable . \
		$(if $(filter oldest,$*),$(OLDEST),--upgrade $(NEWEST)) pytest pytest-timeout pytest-xdist hypothesis
	@.venv-$*/bin/python -c "import onnxruntime; print('ONNX Runtime', onnxruntime.__version__)"
	@touch $@
