# `make` lists the targets. `make PYTHON=python3.12 venv` chooses the interpreter; it is kept until
# another is chosen.

PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)

TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

VERSION := $(shell "$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV_PYTHON := .venv/bin/python
VENV_CREATED := .venv/bin/python$(or $(VERSION),-not-found)
# The locks hold every package with its hash, so pip has nothing left to resolve: --no-deps.
INSTALL := $(VENV_PYTHON) -m pip install -qq --disable-pip-version-check --no-deps --require-hashes
COMPILE := $(VENV_PYTHON) -m uv pip compile -q --universal --python-version 3.10 \
	--generate-hashes --no-emit-index-url

# A file's tests stay on one worker, which makes a module's fixtures and compiles its attacks once.
PYTEST := $(VENV_PYTHON) -m pytest -q -n 2 --dist=loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv dev gpu demo test test-slow bench-attacks bench-defences bench-train bench-gray-box ray serve bench-serving lint format lock bazel clean

help: ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 24

venv: .venv/runtime.stamp ## Make .venv with the pinned packages.

dev: .venv/dev.stamp ## Add the pinned tools for tests and style to .venv.

gpu: .venv/gpu.stamp ## Add the CUDA libraries for an NVIDIA GPU on Linux to .venv (several GB).

demo: venv ## Run every stage on scikit-learn's digits: a defended model in minutes.
	$(VENV_PYTHON) -m pipelines.run --experiment=digits --workdir=runs/digits

test: dev lint ## Check the style and run all tests but the slow ones.
	$(PYTEST) -m "not slow"

test-slow: dev ## Run the slow tests: killed trainings, several processes, many seeds.
	$(PYTEST) -m slow

bench-attacks: .venv-bench/bench.stamp ## Time the attacks beside those of other libraries.
	.venv-bench/bin/python -m benchmarks.attacks $(FLAGS)

bench-defences: venv ## Time the defences beside those of ART and OpenCV.
	$(VENV_PYTHON) -m benchmarks.defences $(FLAGS)

bench-train: venv ## Time training and defending beside the bare classifier.
	$(VENV_PYTHON) -m benchmarks.training $(FLAGS)

bench-gray-box: venv ## Exchange T behind a trained masker: accuracies, and the gradients they rest on.
	$(VENV_PYTHON) -m benchmarks.gray_box --workdir=$(or $(WORKDIR),runs/digits) $(FLAGS)

ray: .venv/ray.stamp ## Add Ray Serve to .venv.

serve: ray ## Serve what WORKDIR exported, by default runs/digits, on 127.0.0.1.
	$(VENV_PYTHON) -m pipelines.serve --workdir=$(or $(WORKDIR),runs/digits)

bench-serving: ray ## Load and abuse that server (about 30 minutes).
	$(VENV_PYTHON) -m benchmarks.serving --workdir=$(or $(WORKDIR),runs/digits) $(FLAGS)

lint: dev ## Check the style and the layers.
	$(VENV_PYTHON) -m ruff format --check
	$(VENV_PYTHON) -m ruff check
	.venv/bin/lint-imports --no-logo

format: dev ## Rewrite the style.
	$(VENV_PYTHON) -m ruff format
	$(VENV_PYTHON) -m ruff check --fix

lock: dev ## Pin every package again, with hashes, from requirements*.txt.
	$(VENV_PYTHON) -m pip install -qq --disable-pip-version-check uv==0.13.9
	$(COMPILE) requirements-dev.txt -o requirements-dev.lock
	$(COMPILE) requirements.txt -c requirements-dev.lock -o requirements.lock
	$(COMPILE) requirements-gpu.txt -c requirements.lock -o requirements-gpu.lock
	$(COMPILE) requirements-ray.txt -c requirements.lock -o requirements-ray.lock

# A test that is collected has imported all that it names, which proves the targets' deps; what it then
# says is the same as under `make test`, so only a sample runs again.
bazel: dev ## Build every target with Bazel 4, collect every test and run a sample.
	PATH="$$PWD/.venv/bin:$$PATH" bazel build //...
	PATH="$$PWD/.venv/bin:$$PATH" bazel test //tests/... --test_arg=--collect-only
	PATH="$$PWD/.venv/bin:$$PATH" bazel test //tests:sample

clean: ## Remove .venv and caches; runs/ is kept.
	rm -rf .venv .venv-bench .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/runtime.stamp: requirements.lock $(VENV_CREATED)
	@echo "Installing the pinned packages into .venv (about 1-3 minutes) ..."
	@$(INSTALL) -r requirements.lock
	@touch $@

# The development lock holds all run-time packages too.
.venv/dev.stamp: requirements-dev.lock requirements.lock $(VENV_CREATED)
	@echo "Installing the pinned packages and tools into .venv (about 1-3 minutes) ..."
	@$(INSTALL) -r requirements-dev.lock
	@touch .venv/runtime.stamp $@

.venv/ray.stamp: requirements-ray.lock .venv/runtime.stamp
	@echo "Installing Ray Serve into .venv ..."
	@$(INSTALL) -r requirements-ray.lock
	@touch $@

# The rivals have an environment of their own: torch is large, and nothing else needs it.
.venv-bench/bench.stamp: requirements.lock requirements-bench.txt
	@echo "Installing the rivals into .venv-bench (torch without CUDA; some minutes) ..."
	@"$(PYTHON)" -m venv --clear .venv-bench
	@.venv-bench/bin/python -m pip install -qq --disable-pip-version-check --no-deps \
		--require-hashes -r requirements.lock
	@.venv-bench/bin/python -m pip install -qq --disable-pip-version-check --no-deps \
		--extra-index-url $(TORCH_INDEX) -r requirements-bench.txt
	@touch $@

.venv/gpu.stamp: requirements-gpu.lock $(VENV_CREATED)
	@echo "Installing TensorFlow's CUDA libraries into .venv (several GB) ..."
	@$(INSTALL) -r requirements-gpu.lock
	@touch .venv/runtime.stamp $@

$(VENV_CREATED):
	@case "$(VERSION)" in \
	3.10 | 3.11 | 3.12 | 3.13) ;; \
	"") echo "Error: no interpreter '$(PYTHON)'; try: make PYTHON=python3.12 venv" >&2; exit 2 ;; \
	*) echo "Error: '$(PYTHON)' is Python $(VERSION); TensorFlow 2.21 needs 3.10 to 3.13." \
		"Try: make PYTHON=python3.12 venv" >&2; exit 2 ;; \
	esac
	@"$(PYTHON)" -m venv --clear .venv || { rm -rf .venv; exit 2; }
