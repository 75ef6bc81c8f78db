# Lookback. `make` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SCALE ?= small
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools
# uv installs in seconds; it is given pip's own settings, which it does not read.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_EXTRA_INDEX_URL ?= $(PIP_EXTRA_INDEX_URL)
UV := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python

# Suites that are run and reported by targets of their names.
SUITES := distance distance-equal-width copying capacity tracking aggregation ladder language cost \
    cost-equal-width paper-grazzi-parity paper-mamba-induction paper-jelassi-copying \
    paper-okpekpe-rates paper-zoology-mqar

.DEFAULT_GOAL := help
.PHONY: help environment bench test test-slow test-gpu smoke lint format pictures cards report speed doctor clean \
    verify publish published reports-check \
    $(SUITES) paper-rrwkv-reach paper-rwkv-lra paper-rwkv-enwik8

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):[^#]*## (.*)/  \1\t\2/' | expand -t 26

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Lookback needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(UV) --constraint constraints.txt --editable .
	@touch $@

$(TOOLS): $(READY)
	$(UV) --constraint constraints.txt --editable '.[dev]'
	@touch $@

environment: $(TOOLS) ## make the environment in .venv, with the pinned packages

bench: $(READY) ## run the quick suite and report it: a first look, in minutes
	$(BIN)/lookback run quick
	@$(BIN)/lookback report quick

test: $(TOOLS) ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow and not gpu"

test-slow: $(TOOLS) ## run the tests that train for minutes
	$(BIN)/python -m pytest -m slow

test-gpu: $(TOOLS) ## run all tests on a machine with a GPU, kernels compiled
	$(BIN)/python -m pytest -m "not slow"

smoke: $(READY) ## run and report the main suite at its smallest scale, into .smoke/: a minute
	rm -rf .smoke
	$(BIN)/lookback run quick --scale smoke --device cpu --results .smoke/results
	@$(BIN)/lookback report --results .smoke/results --reports .smoke/reports

test-oldest: $(TOOLS) ## run tests with the oldest versions that pyproject.toml allows, torch apart, in .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	grep -E '^(torch|triton)==' constraints.txt > .venv-oldest/torch.txt  # a build for GPUs takes gigabytes
	$(BIN)/uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct \
	    --constraint .venv-oldest/torch.txt --editable '.[dev]'
	.venv-oldest/bin/python -m pytest -n 2 --dist loadgroup -m "not slow and not gpu" tests/benchmarks/test_cli.py \
	    tests/benchmarks/test_record.py tests/benchmarks/test_suite.py tests/benchmarks/run/test_run.py \
	    tests/benchmarks/report tests/benchmarks/measure/test_train.py tests/tasks/test_tasks.py

lint: $(TOOLS) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p .typing && ln -sfn .. .typing/lookback  # mypy must see tasks/ and models/ under the import name
	MYPYPATH=.typing $(BIN)/mypy -p lookback.tasks -p lookback.models -p lookback.benchmarks

format: $(TOOLS) ## put files into the common format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A suite a target: `make distance`, at the scale that SCALE names, on the GPU where there is one.
distance: ## retrieval by distance, from 1 to 4,095 tokens, beside a ruler of known range
distance-equal-width: ## RRWKV beside RWKV-4 at equal width, where distance matches parameters
copying: ## selective copying at lengths never trained at
capacity: ## how many pairs a state holds
tracking: ## permutations and parity: states that every token changes
aggregation: ## the majority of all that was read
ladder: ## the rules of Long Range Arena at growing length, beside windows
language: ## what context and verbatim memory save in real text
cost: ## memory, throughput and state against length
cost-equal-width: ## the same at equal width, where cost matches parameters
paper-grazzi-parity: ## parity by the range of eigenvalues (Grazzi et al. 2024)
paper-mamba-induction: ## induction heads read to 16,384 tokens (Gu and Dao 2023)
paper-jelassi-copying: ## copying of strings longer than in training (Jelassi et al. 2024)
paper-okpekpe-rates: ## learning rates at which recall is learned (Okpekpe and Orvieto 2025)
paper-zoology-mqar: ## Zoology's grid of MQAR (Arora et al. 2023)
$(SUITES): $(READY)
	$(BIN)/lookback run $@ --scale $(SCALE)
	@$(BIN)/lookback report $@ --scale $(SCALE)

# The page `papers` sets published tables beside our runs; smoke runs are none.
PAPERS = @test $(SCALE) = smoke || $(BIN)/lookback report papers

paper-rwkv-lra: $(READY) ## the RWKV paper's Long Range Arena table beside our runs (SCALE=smoke, small or paper)
	@test $(SCALE) = smoke || $(BIN)/lookback prefetch pathfinder
	$(BIN)/lookback run lra --scale $(SCALE) || test $$? -eq 1
	@$(BIN)/lookback report lra --scale $(SCALE)
	$(PAPERS)

paper-rwkv-enwik8: $(READY) ## the RWKV paper's table of enwik8 beside our runs (SCALE=smoke, small or paper)
	@test $(SCALE) = smoke || $(BIN)/lookback prefetch enwik8
	$(BIN)/lookback run paper-rwkv-enwik8 --scale $(SCALE)
	@$(BIN)/lookback report paper-rwkv-enwik8 --scale $(SCALE)
	$(PAPERS)

.PHONY: paper-rwkv-complexity paper-rwkv-generation test-oldest claims
paper-rwkv-complexity paper-rwkv-generation: $(READY) ## the RWKV paper's complexities and generation beside ours (SCALE=smoke, small or paper)
	$(BIN)/lookback run cost --scale $(SCALE) || test $$? -eq 1
	@$(BIN)/lookback report cost --scale $(SCALE)
	$(PAPERS)

paper-rrwkv-reach: $(READY) ## the RRWKV paper's path lengths as reach of gradients, measured (SCALE=smoke, small or paper)
	$(BIN)/lookback run reach --scale $(SCALE) || test $$? -eq 1
	@$(BIN)/lookback report reach --scale $(SCALE)

claims: $(READY) ## each claim of the RWKV and RRWKV papers on range and cost beside what the records say, on one page
	@$(BIN)/lookback report claims

pictures: $(READY) ## make the documentation's pictures anew from the data
	@$(BIN)/python -m lookback.benchmarks.describe.pictures

cards: $(READY) ## make the page of the tasks' spec cards anew: docs/tasks.md
	@$(BIN)/python -m lookback.benchmarks.describe.cards

speed: $(READY) ## measure operators, training steps and samplers beside their peers
	@$(UV) --constraint constraints.txt --editable '.[dev,peers]'
	@$(BIN)/python -m lookback.benchmarks.speed.report

.PHONY: gpu
SUITES ?= cost distance copying capacity tracking aggregation language lra
BUDGET ?= 604800
gpu: SCALE = paper
gpu: $(READY) ## run SUITES on the GPU for BUDGET seconds; the same command continues (docs/gpu.md)
	@failed=0; end=$$(($$(date +%s) + $(BUDGET))); for suite in $(SUITES); do \
	    left=$$((end - $$(date +%s))); test $$left -gt 0 || break; \
	    $(BIN)/lookback run $$suite --device cuda --scale $(SCALE) --budget $$left || \
	        { failed=$$?; test $$failed -eq 1 || break; }; \
	done; exit $$failed

.PHONY: fla-evening
MODELS ?= fla:gla fla:rwkv7
DEVICE ?= cuda
fla-evening: $(READY) ## MODELS of flash-linear-attention beside ours, through the small suites on a GPU
	@for suite in distance copying capacity tracking aggregation; do \
	    $(BIN)/lookback run $$suite --device $(DEVICE) --scale $(SCALE) --tolerance 0.2 \
	        --model transformer --model rwkv7 $(MODELS:%=--model %) || exit 1; \
	    $(BIN)/lookback report $$suite --scale $(SCALE); \
	done

report: $(READY) ## make reports/ from your records in results/
	@$(BIN)/lookback report

verify: $(READY) ## measure three published records again, chosen at random
	$(BIN)/lookback verify

publish: $(READY) ## move the records of MACHINE (a folder in results/) to results/published/
	$(BIN)/lookback publish $(MACHINE)
	@$(MAKE) published

published: $(READY) ## make reports/published/ anew from results/published/
	rm -rf reports/published
	@$(BIN)/lookback report --results results/published --reports reports/published > /dev/null

reports-check: $(READY) ## make reports/published/ into a scratch folder, and fail where it differs from the committed pages
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && \
	    $(BIN)/lookback report --results results/published --reports "$$fresh" > /dev/null && \
	    { diff -rq -x '*.png' -x '*.pdf' reports/published "$$fresh" || \
	    { echo "reports/published is not made from results/published: type make published, look at the changes, commit"; exit 1; }; }

doctor: $(READY) ## say what is installed and what will run
	@$(BIN)/lookback doctor

clean: ## remove the environment and caches; results stay
	rm -rf $(VENV) .venv-oldest .smoke .mypy_cache .ruff_cache .pytest_cache .benchmarks lookback.egg-info
