# `make demo` and `make test` set up everything they need in .venv and target/; `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules
export PATH := $(PATH):$(HOME)/.cargo/bin
export CARGO_TARGET_DIR ?= $(CURDIR)/target
# The boundary crate compiles against this Python, also for cargo's own commands.
export PYO3_PYTHON := $(CURDIR)/.venv/bin/python
unexport PYTHONPATH
# Servers start again and again: without compiled files each start of one takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
PIP := -m pip --disable-pip-version-check --quiet install --require-hashes
VENV := .venv/.stamp
EXT := .venv/.stamp-core
VENV_PROTO := .venv-proto/.stamp
RUST_SOURCES := $(wildcard Cargo.toml Cargo.lock rust/core/Cargo.toml rust/dump/Cargo.toml rust/python/Cargo.toml) \
    $(shell find rust/core/src rust/dump/src rust/python -name '*.rs' 2>/dev/null)
PYTHON_CODE := python $(wildcard tests bench examples scripts)
BENCH_ARGS ?=
CLIENTS ?= go typescript java rust python grpcurl
DEMO_ARGS ?=
PYTEST_ARGS ?=
# Most tests wait for servers: two at once, a file at a time.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile
MATURIN = PIP_QUIET=1 VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/maturin develop --quiet --release --locked --features failpoints
# Tests want optimised code, not the best code: link-time optimisation and debug information cost more than they save.
FAST := CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
FAST_RELEASE := $(FAST) CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true
CARGO_TEST := CARGO_PROFILE_TEST_OPT_LEVEL=2 CARGO_PROFILE_TEST_DEBUG=line-tables-only CARGO_INCREMENTAL=0 cargo test --locked
LOOM := $(FAST_RELEASE) CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/loom RUSTFLAGS="--cfg roost_loom"
LOOM_TESTS := $(patsubst rust/core/tests/%.rs,--test %,$(wildcard rust/core/tests/loom*.rs))
SHUTTLE := $(FAST_RELEASE) CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/shuttle
SHUTTLE_TESTS := $(patsubst rust/core/tests/%.rs,--test %,$(wildcard rust/core/tests/shuttle*.rs))

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# ---- setting up -----------------------------------------------------------------------------------------------------

$(VENV): requirements/dev.lock
	@scripts/toolchain.sh check
	@echo "Python packages -> .venv"
	@[ -x $(BIN)/python ] || "$$(scripts/toolchain.sh python)" -m venv .venv
	@$(BIN)/python $(PIP) -r requirements/dev.lock
	@touch $@

# With failpoints, which tests need: a wheel is built without.
$(EXT): $(VENV) pyproject.toml $(RUST_SOURCES)
	@scripts/toolchain.sh check
	@echo "Rust engine -> python/roost/_core"
	@$(FAST) $(MATURIN)
	@touch $@

$(VENV_PROTO): requirements/proto.lock
	@scripts/toolchain.sh check
	@echo "protoc and its plugins -> .venv-proto"
	@[ -x .venv-proto/bin/python ] || "$$(scripts/toolchain.sh python)" -m venv .venv-proto
	@.venv-proto/bin/python $(PIP) -r requirements/proto.lock
	@touch $@

.PHONY: build
build: $(EXT) ## set up .venv and build the engine into it

# ---- the main job ---------------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(EXT) ## replay recorded agent sessions through a server that is killed once, and verify what it kept
	@$(BIN)/roost demo $(DEMO_ARGS)

# ---- tests ----------------------------------------------------------------------------------------------------------

.PHONY: test test-rust test-loom test-shuttle test-python
test: test-rust test-loom test-shuttle test-python ## all tests that fit in ten minutes on two cores

test-rust: $(VENV)
	$(CARGO_TEST) -p roost-core -p roost-dump

test-loom: $(VENV)
	@$(if $(LOOM_TESTS),:,echo "no loom models"; exit 0); set -x; \
	    $(LOOM) LOOM_MAX_PREEMPTIONS=$${LOOM_MAX_PREEMPTIONS:-2} cargo test --locked --release -p roost-core $(LOOM_TESTS)

test-shuttle: $(VENV)
	@$(if $(SHUTTLE_TESTS),:,echo "no shuttle models"; exit 0); set -x; \
	    $(SHUTTLE) cargo test --locked --release -p roost-core --features shuttle $(SHUTTLE_TESTS)

test-python: $(EXT)
	$(PYTEST) -m "not long" $(PYTEST_ARGS)

.PHONY: test-long
test-long: $(EXT) ## the long ones too: a million-operation runs, deeper models, crash loops (up to 90 minutes)
	$(CARGO_TEST) -p roost-core -p roost-dump -- --include-ignored
	LOOM_MAX_PREEMPTIONS=3 $(MAKE) --no-print-directory test-loom
	$(MAKE) --no-print-directory mutants
	$(PYTEST) --timeout 3600 $(PYTEST_ARGS)

.PHONY: test-clients
test-clients: $(EXT) ## build examples/clients and run each against a server; CLIENTS="go rust" for some of them
	scripts/example_clients.sh $(CLIENTS)
	ROOST_CLIENTS="$(CLIENTS)" $(BIN)/pytest -n 0 $(addprefix tests/e2e/test_,example_clients.py curl_lines.py) $(PYTEST_ARGS)

.PHONY: mutants
mutants: $(EXT) ## break the engine on purpose, and see that the turn state machine finds each break
	$(BIN)/python scripts/mutants.py $(MUTANTS)

.PHONY: bench
bench: $(EXT) ## ratios against the alternatives, exit 1 if a bar is missed; BENCH_ARGS=--quick for a short run
	@$(MATURIN) # as it is shipped
	@status=0; cargo run --quiet --locked --release -p roost-bench -- $(BENCH_ARGS) || status=$$?; \
	    for script in $(wildcard bench/[a-z]*.py); do echo; $(BIN)/python $$script $(BENCH_ARGS) || status=$$?; done; \
	    exit $$status

# ---- what must hold before a commit ---------------------------------------------------------------------------------

.PHONY: lint lint-python lint-rust lint-proto lint-docs
lint: lint-python lint-rust lint-proto lint-docs ## formats, types, clippy, protos, generated code, licenses, docs
	@echo "make lint: clean"

lint-python: $(EXT)
	$(BIN)/ruff check $(PYTHON_CODE)
	$(BIN)/ruff format --check $(PYTHON_CODE)
	$(BIN)/mypy
	$(BIN)/python scripts/check_imports.py
	@for generate in $(wildcard python/roost/client/_generate.py); do $(BIN)/python -m roost.client._generate --check; done

lint-rust: $(VENV)
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --quiet -- -D warnings
	$(LOOM) cargo clippy --locked -p roost-core --all-targets --quiet -- -D warnings
	$(SHUTTLE) cargo clippy --locked -p roost-core --all-targets --features shuttle --quiet -- -D warnings
	$(BIN)/python scripts/check_licenses.py
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --offline check bans licenses sources; \
	    else echo "cargo-deny is not installed: its part of deny.toml is skipped"; fi

lint-proto: $(VENV)
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against proto/baseline.binpb
	@scripts/check_generated.sh

lint-docs: $(EXT)
	$(BIN)/python scripts/gen_docs.py --check
	$(BIN)/python scripts/gen_dashboard.py --check
	$(BIN)/python scripts/gen_chart.py --check
	$(BIN)/python scripts/check_docs.py

.PHONY: lint-deploy
lint-deploy: $(EXT) ## the image's and the chart's checks; installs their tools (Go is needed) into .tools
	scripts/deploy_tools.sh lint
	ROOST_DEPLOY_TOOLS=required $(BIN)/pytest -q tests/deploy $(PYTEST_ARGS)

.PHONY: prove-image
prove-image: ## do what the Dockerfile does without a container engine, and run the result (root; compiles the engine)
	deploy/docker/prove.sh $(WHEELS)

.PHONY: fmt
fmt: $(VENV) ## format everything
	$(BIN)/ruff check --fix-only --quiet $(PYTHON_CODE)
	$(BIN)/ruff format $(PYTHON_CODE)
	cargo fmt --all
	$(BIN)/buf format --write

# ---- generated files ------------------------------------------------------------------------------------------------

.PHONY: proto
proto: $(VENV_PROTO) ## write the Python stubs and the Rust messages from proto/
	.venv-proto/bin/python scripts/gen_proto.py

.PHONY: proto-baseline
proto-baseline: $(VENV) ## take today's protos as what later ones must not break (with a release, on purpose)
	$(BIN)/buf build --exclude-source-info --output proto/baseline.binpb

.PHONY: docs
docs: $(EXT) ## write the generated tables of docs/, and what the Helm chart has from the code
	$(BIN)/python scripts/gen_docs.py
	$(BIN)/python scripts/gen_dashboard.py
	$(BIN)/python scripts/gen_chart.py

.PHONY: manifests
manifests: $(EXT) ## write deploy/manifests from the chart with its default values (needs the tools of lint-deploy)
	@scripts/deploy_tools.sh lint
	$(BIN)/python scripts/gen_manifests.py

.PHONY: sbom
sbom: ## write dist/sbom: what the image's Python packages and crates are, from the lock files
	@scripts/deploy_tools.sh sbom
	scripts/sbom.sh

.PHONY: lock
lock: ## write the lock files of Python and Rust; LOCK_ARGS=--upgrade to take the newest
	@scripts/toolchain.sh check
	scripts/lock.sh $(LOCK_ARGS)
	cargo update --workspace

.PHONY: clean
clean: ## remove everything that make made
	rm -rf .venv .venv-proto .venv-lock .tools target dist .mypy_cache .ruff_cache .pytest_cache .hypothesis python/roost/_core*.so
	rm -rf examples/clients/*/gen examples/clients/*/build examples/clients/*/target examples/clients/typescript/node_modules
