# `make demo` and `make test` do all the setup.
PYTHON ?= python3.11
CORES ?= $(shell nproc)
RUN = . .venv/bin/activate &&

# What the demo shows: cars or mugs.
KIND ?= cars
DEMO = $(if $(filter cars,$(KIND)),demo,$(KIND))

# Random faults of single steps and of whole runs, and the seed they follow from.
STEPS ?= 950
GRAPHS ?= 50
SEED ?= 0

.PHONY: venv demo test test-slow test-gpu test-slurm faults bench lint docs lock clean
.DEFAULT_GOAL := demo

# Everything is installed into .venv; rebuilt when the lock file changes.
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.lock
	.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

venv: .venv/installed

# The whole pipeline on the embedded data set with the embedded networks.
demo: .venv/installed
	$(RUN) snakemake --cores $(CORES) -- results/$(DEMO)/overview.txt
	@cat results/$(DEMO)/overview.txt

test: .venv/installed lint
	$(RUN) python -m pytest --numprocesses $(CORES) --dist loadfile -m "not slow"

# Interruptions, several processes, variants of the whole workflow: twenty minutes on two cores.
test-slow: .venv/installed
	$(RUN) python -m pytest --numprocesses $(CORES) --dist loadfile -m slow

# On a CUDA device everything is as on the CPU; prints speeds.
test-gpu: .venv/installed
	$(RUN) python -m pytest -s tests/test_gpu.py

# Starts and stops a SLURM cluster of one node: root, Debian or a derivative.
test-slurm: .venv/installed
	$(RUN) tests/slurm/run.sh

# A campaign of faults against the miniature pipeline, an hour on two cores; goes on where it stopped.
faults: .venv/installed
	$(RUN) python tests/faults/campaign.py --steps $(STEPS) --graphs $(GRAPHS) --seed $(SEED) \
		--workers $(CORES) --folder results/faults-$(STEPS)-$(GRAPHS)

# Speed beside other packages on this machine: a table, and files in results/bench.
bench: .venv/installed
	$(RUN) python benchmarks/bench.py

lint: .venv/installed
	$(RUN) ruff check . && ruff format --check . && snakefmt --check Snakefile rules && mypy

# The documentation as a site in build/site, its links checked; `mkdocs serve` shows it while one writes.
docs: .venv/docs
	$(RUN) NO_MKDOCS_2_WARNING=1 mkdocs build

.venv/docs: .venv/installed
	.venv/bin/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable ".[docs]"
	touch $@

# After a change of the dependencies in pyproject.toml.
lock: .venv/installed
	.venv/bin/pip install --quiet pip-tools
	.venv/bin/pip-compile --quiet --extra dev --extra slurm --strip-extras --no-annotate --no-header \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host -o .venv/full.lock
	{ sed -n '/^#/p' requirements.lock; grep -v -E '^(#|-|nvidia-|cuda-|triton)' .venv/full.lock; } \
		> .venv/requirements.lock
	mv .venv/requirements.lock requirements.lock

clean:
	rm -rf .venv .snakemake build results
