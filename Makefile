# The front door: `make` lists what there is.

VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
RUNS ?= 10
SECONDS ?= 600
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup system bpf kernel-matrix guest-shell guest-test demo synthetic-demo lab chaos-matrix slice-table test test-slow check lint types docs golden model bench bench-table bench-agent bench-agent-table soak wheel clean

help: ## list the targets
	@grep -hE '^[a-z][a-z0-9-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 18

setup: system $(VENV)/.installed ## everything that is needed: system packages (as root), .venv, the install, the BPF objects
	@$(PY) -m compileall -q libslo tools
	@$(MAKE) --no-print-directory -s maybe-bpf

# Debian package : a file or program whose absence means that it is missing.
PACKAGES = clang:clang llvm:llvm-strip libbpf-dev:/usr/include/bpf/bpf_helpers.h bpftool:bpftool iproute2:ip iptables:iptables \
	nftables:nft util-linux:nsenter procps:ps python3-venv:ensurepip libnetfilter-queue1:libnetfilter_queue.so.1 \
	qemu-system-x86:qemu-system-x86_64 busybox-static:busybox kmod:depmod e2fsprogs:mke2fs stress-ng:stress-ng

system: ## install missing system packages (Debian, as root; otherwise says which are missing)
	@missing=; for pair in $(PACKAGES); do package=$${pair%%:*}; what=$${pair#*:}; \
	  case $$what in \
	    /*) test -e $$what ;; \
	    ensurepip) $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null ;; \
	    *.so.*) ls /usr/lib/*/$$what /lib/*/$$what >/dev/null 2>&1 ;; \
	    *) command -v $$what >/dev/null || test -x /usr/sbin/$$what -o -x /sbin/$$what ;; \
	  esac || missing="$$missing $$package"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing:$$missing" >&2; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	  else echo "missing (the live parts need them):$$missing" >&2; echo "  try: sudo apt-get install$$missing" >&2; fi; \
	fi

$(VENV)/.installed: pyproject.toml
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing Python packages into $(VENV)" >&2
	@$(PY) -m pip install -q --disable-pip-version-check -e '.[kernel,otel,metrics,lab,report,dev]'
	@touch $@

bpf: ## compile bpf/*.bpf.c against this kernel's BTF into bpf/build
	@$(MAKE) --no-print-directory -C bpf

.PHONY: maybe-bpf
maybe-bpf:
	@if [ ! -r /sys/kernel/btf/vmlinux ]; then echo "no BTF at /sys/kernel/btf/vmlinux: BPF objects are not built, the live parts stay off" >&2; \
	elif ! command -v clang >/dev/null || ! { command -v bpftool || test -x /usr/sbin/bpftool; } >/dev/null; then \
	  echo "no clang or bpftool: BPF objects are not built, the live parts stay off" >&2; \
	else $(MAKE) --no-print-directory -s -C bpf; fi

demo: setup ## set-up, then the live slice: a real DNS fault, seen by the kernel, named by the attributor
	@if [ "$$(id -u)" != 0 ]; then echo "demo: not root, so no live run: synthetic pipeline instead" >&2; $(MAKE) --no-print-directory -s synthetic-demo; \
	elif [ ! -r /sys/kernel/btf/vmlinux ]; then echo "demo: no BTF, so no live run: synthetic pipeline instead" >&2; $(MAKE) --no-print-directory -s synthetic-demo; \
	else $(PY) -m libslo.lab.slice; fi

synthetic-demo: $(VENV)/.installed ## the same pipeline on synthetic input (needs neither root nor eBPF)
	@echo "SYNTHETIC: every record below was drawn from a random generator (cluster \"synthetic\")" >&2
	@faultinject --scenario mixed --count 200 --seed 42 | collector | attributor

# SCENARIO=dns_latency RUNS=3 SEVERITY=all PROFILE=ci LOAD=rag_mixed_8rps; all but RUNS may be left out.
HOW := $(if $(PROFILE),--profile $(PROFILE)) $(if $(SEVERITY),--severity $(SEVERITY)) $(if $(LOAD),--load $(LOAD))
CHAOS := $(PY) -m libslo.lab.chaos $(HOW) $(ARGS)

lab: setup ## SCENARIO with its real faults, RUNS times (10): load, detection and what must hold; recordings in artifacts/lab (as root)
	$(CHAOS) --scenario $(or $(SCENARIO),dns_latency) --runs $(RUNS) >/dev/null

chaos-matrix: setup ## every scenario x severity, RUNS times (10); goes on where it stopped; writes TABLE (artifacts/lab/table.md) (as root)
	$(CHAOS) $(if $(SEVERITY),,--severity all) --runs $(RUNS) --table $(or $(TABLE),artifacts/lab/table.md) >/dev/null

# What m5gate compares: scenarios by name, RUNS of each with PROFILE's durations at SEVERITY. REF: the source of the baseline.
M5 := artifacts/m5
M5_SCENARIOS ?= baseline app_stall cpu_throttle dns_latency memory_pressure network_partition provider_error provider_throttle retrieval_slowdown
M5_CHAOS = $(foreach name,$(M5_SCENARIOS),--scenario $(name)) $(HOW) --runs $(RUNS)
REF ?= $(shell git describe --tags --abbrev=0 2>/dev/null || git rev-parse --verify -q HEAD~1)
.PHONY: m5-candidate-rebuild m5-baseline-rebuild m5-rebuild m5-gate m5-source m5-candidate-runs m5-baseline-runs m5-candidate-root m5-baseline-root gate-rates

m5-candidate-rebuild: setup ## RUNS runs (10) of each of M5_SCENARIOS of this checkout, as artifacts/m5/candidate (as root)
	@rm -rf $(M5)/candidate-lab
	@$(MAKE) --no-print-directory -s m5-candidate-runs
	@$(MAKE) --no-print-directory -s m5-candidate-root

m5-baseline-rebuild: setup m5-source ## the same of source REF (last tag, else the commit before), as artifacts/m5/baseline (as root)
	@rm -rf $(M5)/baseline-lab
	@$(MAKE) --no-print-directory -s m5-baseline-runs
	@$(MAKE) --no-print-directory -s m5-baseline-root REF=$(REF)

m5-rebuild: setup m5-source ## both, run by run in turns, so that a drift of the machine meets both: what E3's error rates hold for
	@rm -rf $(M5)/candidate-lab $(M5)/baseline-lab
	@for n in $$(seq $(RUNS)); do \
	  if [ $$((n % 2)) = 1 ]; then sides="candidate baseline"; else sides="baseline candidate"; fi; \
	  for side in $$sides; do $(MAKE) --no-print-directory -s m5-$$side-runs RUNS=$$n || exit; done; done
	@$(MAKE) --no-print-directory -s m5-candidate-root
	@$(MAKE) --no-print-directory -s m5-baseline-root REF=$(REF)

# Of the tools only the agent is on a node of the application; the others run where one likes.
m5-gate: $(VENV)/.installed ## gate artifacts/m5/candidate against artifacts/m5/baseline; summaries beside them
	@m5gate --candidate-root $(M5)/candidate --baseline-root $(M5)/baseline --require-baseline-manifest --overhead-of agent \
	  --out-json $(M5)/summary.json --out-md $(M5)/summary.md $(ARGS)

# What a run showed (exit 1: something that must hold did not) is not what is compared.
m5-candidate-runs:
	@$(PY) -m libslo.lab.chaos $(M5_CHAOS) --artifacts $(M5)/candidate-lab >/dev/null || [ $$? = 1 ]

m5-baseline-runs:
	@cd $(M5)/source && PATH="$(CURDIR)/$(M5)/source/.venv/bin:$$PATH" .venv/bin/python -m libslo.lab.chaos $(M5_CHAOS) \
	  --artifacts $(CURDIR)/$(M5)/baseline-lab >/dev/null || [ $$? = 1 ]

m5-source:
	@test -n "$(REF)" || { echo "no tag and no earlier commit to compare with" >&2; echo "  try: make $(MAKECMDGOALS) REF=..." >&2; exit 2; }
	@commit=$$(git rev-parse --verify -q "$(REF)^{commit}") || { echo "no such revision: $(REF)" >&2; exit 2; }; \
	if [ -e $(M5)/source/.git ]; then git -C $(M5)/source checkout -q --detach $$commit; \
	else git worktree prune && git worktree add -q --detach $(M5)/source $$commit; fi
	@$(MAKE) --no-print-directory -s -C $(M5)/source VENV=.venv setup

m5-candidate-root:
	@rm -rf $(M5)/candidate && $(PY) -m libslo.lab.benchroot $(M5)/candidate-lab $(M5)/candidate

m5-baseline-root:
	@rm -rf $(M5)/baseline && $(PY) -m libslo.lab.benchroot --source-ref $(REF) $(M5)/baseline-lab $(M5)/baseline

gate-rates: setup ## how often E3 is wrong on real noise: writes docs/m5gate-rates.md
	@$(PY) tests/gate_rates.py

slice-table: setup ## RUNS live runs of the slice in a row; writes docs/first-light.md
	$(PY) -m libslo.lab.slice --runs $(RUNS) --table docs/first-light.md

# These measure real time on a real machine. What fails twice has failed; both outputs are shown.
TIMED := tests/libslo/test_load_driver.py
LIVE := tests/kernel tests/lab tests/matrix $(TIMED)

test: setup ## set-up, then every test but the slow ones (the pure ones side by side, those of kernel and lab one after another)
	@$(PY) -m pytest tests/libslo tests/tools $(TIMED:%=--ignore=%) -n 3
	@$(PY) -m pytest $(LIVE) || { [ $$? = 1 ] && echo "what failed, once more: a machine that others use may have been busy" >&2 && \
	  $(PY) -m pytest --last-failed --last-failed-no-failures none $(LIVE); }

test-slow: setup ## kill -9 of everybody in a run of the lab at many moments, faults on top of each other
	@$(PY) -m pytest -m slow

check: setup ## lint, types, import direction, docs in step with --help
	@$(MAKE) --no-print-directory -s lint types
	@$(PY) -m pytest tests/libslo/test_layout.py tests/tools/test_docs.py
	@schemavalidate --schemas

lint:
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

types:
	@$(PY) -m mypy

docs: $(VENV)/.installed ## write docs/tools/*.md from the tools' --help
	@$(PY) docs/make_pages.py

golden: $(VENV)/.installed ## rewrite testdata/golden from what the tools print now (then read the diff)
	@GOLDEN=1 $(PY) -m pytest tests/tools/test_golden.py

model: setup ## fit the attribution model on the recorded runs of testdata/recordings (its holdout is for judging it)
	@$(VENV)/bin/sloctl model fit --recordings testdata/recordings --out contracts/models/bayes.json

.PHONY: key-results
HOLDOUT := testdata/recordings/holdout
key-results: $(VENV)/.installed ## measure the key results again from the recordings, written to docs/key-results.md (needs no root)
	@$(PY) -m libslo.bench.key_results $(if $(wildcard $(HOLDOUT)/*/manifest.json),--holdout $(HOLDOUT)) --recordings testdata/recordings \
	  --table docs/key-results.md

# 180 s of the service as it is, then 72 s of fault: for once long enough that a minute of it can be overlooked.
LATE_SCENARIOS ?= app_stall cpu_throttle dns_latency memory_pressure network_partition provider_error provider_throttle retrieval_slowdown
late-onset: setup ## what an onset that is known late costs, with RUNS real faults of each domain; writes docs/late-onset.md (as root)
	@$(PY) -m libslo.lab.chaos $(LATE_SCENARIOS:%=--scenario %) --severity medium --runs $(RUNS) --seed 700 --profile late \
	  --load $(or $(LOAD),rag_mixed_8rps) --artifacts artifacts/late-lab --compact-to artifacts/late >/dev/null || [ $$? = 1 ]
	@$(PY) -m libslo.bench.late_onset --recordings artifacts/late --table docs/late-onset.md

bench: setup ## speed as ratios against named peers in the same run
	@$(PY) tests/bench.py

bench-table: setup ## the same, written to docs/bench.md
	@$(PY) tests/bench.py --table docs/bench.md

bench-agent: setup ## what the agent costs the application, its memory, events a second, one hit beside named peers (as root)
	@$(PY) tests/bench_agent.py

bench-agent-table: setup ## the same, written to docs/bench-agent.md
	@$(PY) tests/bench_agent.py --table docs/bench-agent.md

# Debian packages of the peers, installed by root, named otherwise.
.PHONY: bench-load bench-load-table load-peers
load-peers:
	@command -v hey >/dev/null && command -v wrk >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends hey wrk >/dev/null; } || \
	  { echo "the peers hey and wrk are missing" >&2; echo "  try: sudo apt-get install hey wrk" >&2; exit 3; }

bench-load: setup load-peers ## the load generator beside hey and wrk: percentiles at one rate, the highest rate of one CPU
	@$(PY) tests/bench_load.py

bench-load-table: setup load-peers ## the same, written to docs/bench-load.md
	@$(PY) tests/bench_load.py --table docs/bench-load.md

soak: setup ## the agent under mixed load for SECONDS (600): memory flat, nothing lost, nothing left behind (as root)
	@$(PY) tests/soak.py --seconds $(SECONDS)

KERNEL ?= 6.1
LOCKDOWN ?= none
GUEST := tests/matrix/guest.py

# QUICK=1: fewer levels and sets, into artifacts/, compared with what is kept.
kernel-matrix: setup ## every variant on stock Debian 6.1 and 6.12 in qemu and on this kernel: docs/compatibility.md (QUICK=1: only compare)
	@$(PY) tests/matrix/matrix.py $(if $(QUICK),--quick) $(ARGS)

guest-shell: setup ## a shell on a stock Debian kernel in qemu (KERNEL=6.1 or 6.12, LOCKDOWN=none, integrity or confidentiality)
	@$(PY) $(GUEST) shell --kernel $(KERNEL) --lockdown $(LOCKDOWN)

guest-test: setup ## run tests there (ARGS="tests/kernel/test_x.py")
	@$(PY) $(GUEST) run --kernel $(KERNEL) --lockdown $(LOCKDOWN) -- python -m pytest -p no:cacheprovider $(ARGS)

wheel: setup ## build a wheel (schemas, scenarios, model and compiled objects inside)
	@$(PY) -m pip wheel -q --no-deps -w dist .

clean: ## remove what was built
	@rm -rf $(VENV) build dist artifacts bpf/build *.egg-info
