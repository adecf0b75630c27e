# Short verbs over one environment in .venv. `make` alone lists them.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# What the linters read: every folder of ours that exists.
CODE := $(wildcard matl matl_common matl_coordinator matl_participant scripts benchmarks tests)

# `make check TESTS=done` skips the suite, for a caller that has just run it or is about to.
TESTS ?= test

# Processes that share the suite, file by file; tests wait for daemons more than they compute.
WORKERS ?= 3

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check mutants dev proto fix clean constraints \
	format lint types imports wire-drift migrations-drift packages docs

help: ## List the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-21s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  make demo EPSILON=4 ATTACK=sign-flip PATIENTS=2100 ROUNDS=8    change the demo"
	@echo "  make test ARGS='-m hostile'                                   run one subject"

demo: $(VENV)/demo.stamp ## Five hospitals train one model on this machine; results in out/demo/
	@$(RUN) -m matl.demo \
		$(if $(EPSILON),--epsilon '$(EPSILON)') $(if $(ATTACK),--attack '$(ATTACK)') \
		$(if $(PATIENTS),--patients '$(PATIENTS)') $(if $(ROUNDS),--rounds '$(ROUNDS)')

test: $(VENV)/dev.stamp packages ## Run the tests, on real processes, sockets and PostgreSQL
	@$(RUN) -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

check: format lint types imports wire-drift migrations-drift $(filter-out done,$(TESTS)) ## Everything that must hold before a change lands

mutants: $(VENV)/dev.stamp ## Break the privacy ledger in every declared way; a named test must fail
	@$(RUN) scripts/dev/mutate_ledger.py $(ARGS)

docs: $(VENV)/docs.stamp ## Build the documentation's site in out/docs/
	@$(RUN) -m sphinx -n -W --keep-going -q -d out/.doctrees docs out/docs $(ARGS)
	@echo "out/docs/index.html"

dev: $(VENV)/dev.stamp ## Set up .venv for working on the code
	@echo "Ready: source $(VENV)/bin/activate"

proto: $(VENV)/dev.stamp ## Generate matl_common/wire from proto/
	@$(RUN) scripts/dev/generate_wire.py

fix: $(VENV)/dev.stamp ## Format the code and repair what the linter can repair
	@$(RUN) -m ruff check --quiet --fix $(CODE) || true
	@$(RUN) -m ruff format $(CODE)

constraints: $(VENV)/dev.stamp ## Choose new versions of every dependency and pin them
	@$(RUN) scripts/dev/pin_constraints.py

clean: ## Remove the environment, the caches and everything in out/
	rm -rf $(VENV) out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +

# The gates of `make check`, one by one.

format: $(VENV)/dev.stamp
	@$(RUN) -m ruff format --check $(CODE)

lint: $(VENV)/dev.stamp
	@$(RUN) -m ruff check $(CODE)

types: $(VENV)/dev.stamp
	@$(RUN) -m mypy $(CODE)

imports: $(VENV)/dev.stamp
	@$(VENV)/bin/lint-imports

wire-drift: $(VENV)/dev.stamp
	@$(RUN) scripts/dev/generate_wire.py --check

migrations-drift: $(VENV)/dev.stamp
	@$(RUN) scripts/dev/check_migrations.py

# Of the system: PKCS#11 tokens in software, and what watches daemons and pages. Where this cannot
# install them, it says what to install, and so do the tests that need one. Debian starts a service
# along with Prometheus and HAProxy, which nobody asked for: tests run their own.
NEEDS := softhsm2 prometheus chromium haproxy
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq
INSTALL_PACKAGES := $(APT) install -y --no-install-recommends
packages:
	@missing=; for each in $(NEEDS); do \
		command -v $$(echo $$each | sed 's/^softhsm2$$/softhsm2-util/') >/dev/null \
			|| missing="$$missing $$each"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && { \
		$(INSTALL_PACKAGES) $$missing >/dev/null 2>&1 \
		|| { $(APT) update && $(INSTALL_PACKAGES) $$missing; } >/dev/null; \
	}; then \
		for each in prometheus haproxy; do case "$$missing" in *$$each*) \
			! command -v systemctl >/dev/null \
				|| systemctl disable --now $$each >/dev/null 2>&1 || true;; \
		esac; done; \
	else \
		echo "Some tests will be skipped, or fail and say why: apt-get install$$missing" >&2; \
	fi

# One benchmark a file: benchmarks/aggregation.py is `make bench-aggregation`.

BENCHMARKS := $(filter-out %/__init__.py benchmarks/evidence_%,$(wildcard benchmarks/*.py))
ifneq ($(BENCHMARKS),)
.PHONY: bench
bench: $(BENCHMARKS:benchmarks/%.py=bench-%) ## Run every benchmark; figures in out/bench/

bench-%: benchmarks/%.py $(VENV)/dev.stamp
	@$(RUN) -m benchmarks.$* $(ARGS)
endif

# Evidence is a figure that a claim rests on: benchmarks/evidence_robust.py is `make evidence-robust`.

.PHONY: evidence evidence-quick evidence-check evidence-robust evidence-robust-quick evidence-privacy evidence-soak evidence-faults
evidence: $(VENV)/dev.stamp ## Every table of docs/evidence.md: a day of two cores, resumes where it stopped; ARGS='--continue' goes on from what is published
	@$(RUN) -m benchmarks.evidence_results $(ARGS)

evidence-quick: $(VENV)/dev.stamp ## Some minutes on digits: are the rules still in their order?
	@$(RUN) -m benchmarks.evidence_results --quick $(ARGS)

evidence-check: $(VENV)/dev.stamp ## Some published runs of docs/evidence.md again, drawn at random: do the same figures come out?
	@$(RUN) -m benchmarks.evidence_check $(ARGS)

evidence-robust: $(VENV)/dev.stamp ## Every attack against every rule, on two data sets; tens of minutes
	@$(RUN) -m benchmarks.evidence_robust $(ARGS)

evidence-robust-quick: $(VENV)/dev.stamp ## The same on little data, in a minute
	@$(RUN) -m benchmarks.evidence_robust --quick $(ARGS)

evidence-privacy: $(VENV)/dev.stamp ## Attack the privacy promise, check its accounting, and measure what it costs; an hour or two
	@$(RUN) -m benchmarks.evidence_privacy $(ARGS)

evidence-soak: $(VENV)/dev.stamp ## 500 rounds under random faults, and what grows with them; 20 minutes
	@$(RUN) -m benchmarks.evidence_soak $(ARGS)

# Lines, disks and names that fail need root; kills do not.
evidence-faults: NEEDS := softhsm2
evidence-faults: $(VENV)/dev.stamp packages ## Kill every daemon inside every durable write, fill disks, cut lines; an hour, resumes where it stopped
	@$(RUN) -m benchmarks.evidence_faults $(ARGS)

# Others' dependencies differ from ours, so what is compared with them runs in environments of their own.

FLOWER := out/venv-flower
FLARE := out/venv-flare
TLOG := out/venv-tlog
.PHONY: peers
peers: $(VENV)/dev.stamp $(FLOWER)/simulation.stamp $(TLOG)/stamp ## Compare our rules with ByzFL's and Flower's, our log with sigstore's and tlog-scales'
	@$(RUN) -m pytest -m peers $(ARGS)

$(FLOWER)/simulation.stamp:
	@$(PYTHON) -m venv $(FLOWER)
	@$(FLOWER)/bin/pip --disable-pip-version-check install -qq 'flwr[simulation]==1.41.0' psutil cryptography
	@touch $@

$(FLARE)/stamp:
	@$(PYTHON) -m venv $(FLARE)
	@$(FLARE)/bin/pip --disable-pip-version-check install -qq nvflare==2.9.0 psutil
	@touch $@

# Flower's own rules are in its tables.
evidence: $(FLOWER)/simulation.stamp

# Compares rounds with both frameworks' deployments; see ARGS='--help'.
bench-round: $(FLOWER)/simulation.stamp $(FLARE)/stamp

# Compares with Flower's simulation engine; half an hour, for which the machine should do nothing else.
bench-scaling_simulation: $(FLOWER)/simulation.stamp

$(TLOG)/stamp:
	@$(PYTHON) -m venv $(TLOG)
	@$(TLOG)/bin/pip --disable-pip-version-check install -qq sigstore==4.5.1 tlog-scales==0.0.3
	@touch $@

# One target a file of tests/fuzz; its corpus, and what broke it, is in out/fuzz/TARGET.

SECONDS ?= 20
FUZZ := $(filter-out __init__ run samples target test_%,$(basename $(notdir $(wildcard tests/fuzz/*.py))))
.PHONY: fuzz
fuzz: $(VENV)/fuzz.stamp ## Throw mutated input at every parser and RPC method; SECONDS=20 each
	@for target in $(if $(TARGET),$(TARGET),$(FUZZ)); do \
		$(RUN) -m tests.fuzz.run $$target $(SECONDS) || { \
			echo "To repeat: $(RUN) -m tests.fuzz.run $$target out/fuzz/$$target/crash-..." \
				"(the file named above)" >&2; exit 1; }; \
	done

# The environment. A stamp is newer than what it was installed from, or the install runs again;
# the development extra contains the demo's, so nothing is installed twice.

INSTALL := $(RUN) -m pip --disable-pip-version-check install -qq -c constraints.txt

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(RUN)
	@echo "Installing MATL into $(VENV); the first time this takes a few minutes."
	@$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(RUN)
	@echo "Installing MATL for development into $(VENV); the first time this takes a few minutes."
	@$(INSTALL) -e '.[demo,dev]'
	@touch $(VENV)/demo.stamp $@

$(VENV)/docs.stamp: $(VENV)/demo.stamp
	@$(INSTALL) -e '.[docs]'
	@touch $@

$(VENV)/fuzz.stamp: $(VENV)/dev.stamp
	@$(INSTALL) -e '.[fuzz]'
	@touch $@

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "MATL needs Python 3.11 or newer: apt-get install python3 python3-venv," \
			"or make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "Python's venv module is missing: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
