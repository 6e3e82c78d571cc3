# Everything a developer runs.  `make demo` and `make test` need nothing
# installed but make and git, and root or sudo.

SHELL = /bin/bash
ARGS ?=
export ZFS_SUITE ?= 2.3

VM = python3 tests/vm/vm.py
# in the guest: a copy of the tree in memory
GUEST = mkdir -p /root/src && \
    tar -c -C /src --exclude=./.?* --exclude=./build . | tar -x -C /root/src && \
    cd /root/src &&

# make joins these into the one line that the guest takes
ZFS_TEST = $(GUEST) export ZFS_TESTS_REQUIRED=1 \
    $(if $(QUBES_CORE_ADMIN),QUBES_CORE_ADMIN=/core-admin) && \
    exec python3 -m pytest -v -p no:cacheprovider --durations=15 tests/zfs $(ARGS)

# power cuts, and what seeds them (a new number each time if not given)
CUTS ?= 100
SEED ?=

# what the long model test does, and what seeds it
MODEL_EXAMPLES ?= 50
MODEL_STEPS ?= 40
MODEL_SEED ?= $(shell echo $$RANDOM)

MODEL_TEST = $(GUEST) export ZFS_TESTS_REQUIRED=1 \
    MODEL_EXAMPLES=$(MODEL_EXAMPLES) MODEL_STEPS=$(MODEL_STEPS) \
    MODEL_SEED=$(MODEL_SEED) && exec python3 -m pytest -v -s \
    -p no:cacheprovider tests/zfs/test_model.py $(ARGS)

# a python in the guest that finds qubes, the real one if it is given
GUEST_PYTHON = $(GUEST) PYTHONPATH=$(if \
    $(QUBES_CORE_ADMIN),/core-admin:/core-admin/test-packages:)tests/host \
    exec python3 -u

.PHONY: help demo test lint unit zfs-test test-crash test-power test-model \
    test-teeth prepare vm-image clean

help:
	@echo 'make demo    the story of a qube on ZFS, told in a VM'
	@echo 'make test    lint, unit tests, then the tests on real ZFS in a VM'
	@echo '             ARGS="-k revert" selects, ZFS_SUITE=2.4 chooses OpenZFS'
	@echo 'make test-crash    qubesd stopped at every point; ARGS="--depth 1"'
	@echo 'make test-teeth    do the tests notice deliberate faults'
	@echo 'make test-model    verbs by chance; MODEL_EXAMPLES, _STEPS, _SEED'
	@echo 'make test-power    100 power cuts while qubes live; CUTS=3, SEED=n'
	@echo 'make lint | unit | zfs-test    the parts of it'

prepare:
	@tests/vm/prepare

vm-image: prepare
	@$(VM) image >/dev/null

demo: vm-image
	@$(VM) run -- '$(GUEST) exec python3 -u -m demo'

test: lint unit zfs-test

lint: prepare
	@python=$$(tests/vm/venv)/bin/python && set -x && \
	$$python -m black --check -q . && \
	$$python -m ruff check -q . && \
	$$python -m mypy --no-error-summary

unit: prepare
	@$$(tests/vm/venv)/bin/python -m pytest -q -p no:cacheprovider \
	    tests/unit $(ARGS) || [ $$? = 5 -a -n "$(ARGS)" ]

zfs-test: vm-image
	@$(VM) run -- '$(ZFS_TEST)'

test-crash: vm-image
	@$(VM) run -- '$(GUEST_PYTHON) -m tests.crash $(ARGS)'

test-model: vm-image
	@$(VM) run -- '$(MODEL_TEST)'

test-teeth: vm-image
	@$(VM) run -- '$(GUEST_PYTHON) -m tests.teeth $(ARGS)'

test-power: vm-image
	@tests/vm/prepare power
	@python3 -m tests.power --cuts $(CUTS) $(if $(SEED),--seed $(SEED)) $(ARGS)

clean:
	rm -rf build dist *.egg-info
