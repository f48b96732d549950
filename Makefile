# `make train` and `make test` need nothing but Python 3.10+: they create .venv and install into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Also for the build environments that pip creates, so that nothing pulls another torch.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: train test test-envpool quick lint docs learn bench gpu clean

train: $(VENV)/installed
	$(BIN)/python -m pg_lightning fit --config configs/ppo_cartpole.yaml
	$(BIN)/python -m pg_lightning test --data.eval_episodes 100 \
	  --ckpt_path $$(ls -td runs/ppo_cartpole/version_*/ | head -n 1)checkpoints/best.ckpt
	@echo
	@echo "Next, in the environment just made (. $(BIN)/activate):"
	@echo "  python -m pg_lightning fit --config configs/ppo_acrobot.yaml"
	@echo "  python -m pg_lightning fit --config configs/ppo_pendulum.yaml --model.lr 3e-4 --seed_everything 2"
	@echo "  python -m pg_lightning fit --help"

test: $(VENV)/installed-dev lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The tests and configs that need EnvPool (Python 3.11+, some 700 MB), which `make test` skips.
test-envpool: $(VENV)/installed-dev
	$(BIN)/pip install -q -e ".[envpool]"
	$(BIN)/python -m pytest -n 2 --dist worksteal -m envpool
	$(BIN)/python -m pytest tests/games

# Before each commit: lint, and the tests that start no process and train nothing, in two minutes.
quick: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/house tests/algorithms tests/policies tests/learning \
	  tests/test_returns.py tests/test_losses.py tests/test_rollout.py tests/test_statistics.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

learn: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m learning -x tests/learning

bench: $(VENV)/installed-dev
	$(BIN)/pip install -q -e ".[bench,mujoco]"
	$(BIN)/python benchmarks/throughput.py

gpu: $(VENV)/installed
	$(BIN)/python benchmarks/gpu.py --json gpu.json --markdown gpu.md

# torch comes first and alone: asked for by another package's range, pip would look at its newest build.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q torch
	$(BIN)/pip install -q -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install -q -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
