# One name a task. `make serve` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
VENV := .venv/bin
FAST := not torch and not vllm and not clients and not browser and not kills

.PHONY: help serve test test-fast check format install demo-model train-demo evaluate-demo bench

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: ## .venv with everything that serving needs
	@$(PYTHON) deploy/install.py --group serve

serve: install ## the API on 127.0.0.1:8000 (HOST= PORT=); settings: MEDTHINK_*, see deploy/env.example
	@MEDTHINK_HOST="$(or $(HOST),$(MEDTHINK_HOST),127.0.0.1)" MEDTHINK_PORT="$(or $(PORT),$(MEDTHINK_PORT),8000)" \
		exec $(VENV)/python -m services.api

test: ## every test that this machine can run
	@$(PYTHON) deploy/install.py --group test
	@$(VENV)/python -m ruff check .
	@$(VENV)/python -m ruff format --check .
	@$(VENV)/python -m mypy
	@OMP_NUM_THREADS=1 $(VENV)/python -m pytest

test-fast: ## the tests that need neither torch nor an engine nor a browser
	@$(PYTHON) deploy/install.py --group test
	@$(VENV)/python -m pytest -m "$(FAST)"

check: ## lint, types and fast tests
	@$(PYTHON) deploy/install.py --group test
	@$(VENV)/python -m ruff check .
	@$(VENV)/python -m ruff format --check .
	@$(VENV)/python -m mypy
	@$(VENV)/python -m pytest -q -m "$(FAST)"

format: ## put the code into its form
	@$(VENV)/python -m ruff check --fix .
	@$(VENV)/python -m ruff format .

demo-model: ## trains deploy/demo again and measures it (minutes on a GPU, hours without)
	@$(PYTHON) deploy/install.py --group test
	@$(VENV)/python -m services.trainer demo --out deploy/demo

train-demo: ## the training loop on the example set: prepare, plan, train, publish; a running `make serve` serves it
	@$(PYTHON) deploy/install.py --group test
	@$(VENV)/python -m services.trainer train-demo --url http://127.0.0.1:$(or $(PORT),$(MEDTHINK_PORT),8000)

evaluate-demo: ## the demo model and its adapter asked the same, and compared; needs `make serve` and `make train-demo` before
	@$(PYTHON) deploy/install.py --group test
	@$(VENV)/python -m services.trainer evaluate-demo --url http://127.0.0.1:$(or $(PORT),$(MEDTHINK_PORT),8000)

bench: ## the demo model here and under vLLM's own server, side by side
	@$(PYTHON) deploy/install.py --group test
	@$(VENV)/python -m benchmarks.serve_compare
