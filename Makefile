# All commands for a developer.  `make demo` and `make test` need make, git and
# either root or sudo; they install everything else.

SHELL = /bin/bash
ARGS ?=
export ZFS_SUITE ?= 2.3

# ends a command when make ends, also if make is killed
TIED = setpriv --pdeathsig TERM
VM = $(TIED) python3 tests/vm/vm.py
# in the guest: change to a copy of the tree in memory
GUEST = mkdir -p /root/src && \
    tar -c -C /src --exclude=./.?* --exclude=./build . | tar -x -C /root/src && \
    cd /root/src &&

# make joins these lines into one, because the guest takes one line.  Python
# writes bytecode, because the tests start qvm-zfs and keyholders hundreds of
# times.
ZFS_TEST = $(GUEST) unset PYTHONDONTWRITEBYTECODE && \
    export ZFS_TESTS_REQUIRED=1 \
    $(if $(QUBES_CORE_ADMIN),QUBES_CORE_ADMIN=/core-admin) \
    $(if $(QUBES_CORE_ADMIN_LINUX),QUBES_CORE_ADMIN_LINUX=/core-admin-linux) \
    $(if $(QUBES_LINUX_UTILS),QUBES_LINUX_UTILS=/linux-utils) && \
    exec python3 -m pytest -v -p no:cacheprovider --durations=15 tests/zfs $(ARGS)

# number of power cuts, and seed of the random numbers (default: a new one)
CUTS ?= 100
SEED ?=

# examples and steps of the long model test, and seed of its random numbers
MODEL_EXAMPLES ?= 50
MODEL_STEPS ?= 40
MODEL_SEED ?= $(shell echo $$RANDOM)

MODEL_TEST = $(GUEST) export ZFS_TESTS_REQUIRED=1 \
    MODEL_EXAMPLES=$(MODEL_EXAMPLES) MODEL_STEPS=$(MODEL_STEPS) \
    MODEL_SEED=$(MODEL_SEED) && exec python3 -m pytest -v -s \
    -p no:cacheprovider tests/zfs/test_model.py $(ARGS)

# Python in the guest with the module qubes: from $(QUBES_CORE_ADMIN), or the
# stand-in
GUEST_PYTHON = $(GUEST) PYTHONPATH=$(if \
    $(QUBES_CORE_ADMIN),/core-admin:/core-admin/test-packages:)tests/host \
    exec python3 -u

# variables that name the checkouts for a dom0 in the guest
DOM0 = QUBES_CORE_ADMIN QUBES_CORE_ADMIN_CLIENT QUBES_CORE_QREXEC
QUBESD_TEST = $(GUEST) tests/qubesd/install.sh && export QUBESD_TESTS=1 && \
    exec python3 -m pytest -s -p no:cacheprovider --durations=10 \
    tests/qubesd $(ARGS)

# rounds of the benchmarks, each with all operations of all drivers
ROUNDS ?= 5
# number of other volumes in the pool, each with ten revisions
VOLUMES ?= 2000
BENCH_DISKS = 2048 2048 2048 2048 2048 2048 2048 2048 2048
BENCH_VM = VM_DISKS="$(BENCH_DISKS)" VM_OUT=build/bench $(VM)
BENCH = $(GUEST_PYTHON) -m benchmarks
SMOKE = ( $(BENCH) --rounds 0 ) && \
    ( $(BENCH).scale --volumes 20 --revisions 2 ) && \
    ( $(BENCH).bulk --size 128 --rounds 1 )

# the Python for builds, and the folders to install to
PYTHON ?= python3
DESTDIR ?=
UNITDIR ?= /usr/lib/systemd/system
MODULESLOADDIR ?= /usr/lib/modules-load.d
MANDIR ?= /usr/share/man
DOCDIR ?= /usr/share/doc/$(NAME)
COMPLETIONS = /usr/share/bash-completion/completions
# folder for the source tarball and the packages
DIST ?= dist

NAME = qubes-storage-zfs
RELEASE = $(NAME)-$(shell cat version)
# builds are reproducible: all files get the time of the commit, which the files
# of a tarball by "make dist" have
SOURCES_TIME = $(shell if [ -e .git ]; then git log -1 --format=%ct; \
    else stat -c %Y version; fi)

# section 1 of the manual has the commands, section 7 the rest
PAGES = $(basename $(notdir $(wildcard doc/manpages/*.rst)))
MANUAL = $(patsubst %,build/man1/%.1,$(filter qvm-%,$(PAGES))) \
    $(patsubst %,build/man7/%.7,$(filter-out qvm-%,$(PAGES)))
RST2MAN = mkdir -p $(@D) && \
    $(PYTHON) -m docutils --writer=manpage --halt=warning

.PHONY: help demo test lint docs unit zfs-test test-crash test-power test-model \
    test-teeth test-rpm test-qubesd dom0-given bench bench-scale bench-bulk bench-smoke prepare prepare-ci vm-image vm \
    build install install-dom0 install-doc install-askpassword dist rpm deb clean

help:
	@echo 'make demo          show the life of a qube on ZFS, in a VM'
	@echo 'make test          run lint, docs, unit and zfs-test'
	@echo 'make lint          check the sources without running them'
	@echo 'make docs          build the documentation as a site, in build/html'
	@echo 'make unit          run the tests that need no ZFS'
	@echo 'make zfs-test      run the tests on real ZFS in a VM; ARGS="-k revert"'
	@echo '                   selects tests, ZFS_SUITE=2.4 selects OpenZFS'
	@echo 'make test-crash    stop qubesd at every point; ARGS="--depth 1"'
	@echo 'make test-teeth    check that the tests notice deliberate faults'
	@echo 'make test-model    run random operations; MODEL_EXAMPLES, MODEL_STEPS'
	@echo '                   and MODEL_SEED'
	@echo 'make test-power    cut the power CUTS=100 times while qubes run; SEED=n'
	@echo 'make test-qubesd   run a real qubesd and real qvm-* commands; needs the'
	@echo '                   checkouts QUBES_CORE_ADMIN, QUBES_CORE_ADMIN_CLIENT'
	@echo '                   and QUBES_CORE_QREXEC'
	@echo 'make test-rpm      build, install and remove the packages'
	@echo 'make bench         measure each operation of each driver; ROUNDS=5'
	@echo 'make bench-scale   measure a qube beside VOLUMES=2000 others'
	@echo 'make bench-bulk    measure copies between zpools, and dd'
	@echo 'make bench-smoke   run each benchmark once, without results'
	@echo 'make vm            open a root shell in the VM; SSH=1 by ssh'
	@echo 'make rpm           build the RPM packages in dist; run'
	@echo "                   'tests/vm/prepare rpm' first"
	@echo 'make deb           build the prompt package for Debian in dist'
	@echo 'make dist          build the source tarball in dist'
	@echo 'make install       install the files of the packages; DESTDIR=, PYTHON='
	@echo 'make clean         delete build and dist'

prepare:
	@tests/vm/prepare

# for everything that .ci/run does
prepare-ci:
	@tests/vm/prepare power rpm

vm-image: prepare
	@$(VM) image >/dev/null

vm: vm-image
	@$(TIED) python3 tests/vm/shell.py $(if $(SSH),--ssh)

# also fetches what the tests need, so that they work offline afterwards
demo: vm-image
	@tests/vm/venv >/dev/null
	@$(VM) run -- '$(GUEST) exec python3 -u -m demo'

test: lint docs unit zfs-test

lint: prepare
	@tests/lint

# Every build is a whole one, because Sphinx warns of a page once only.
docs: prepare
	@rm -rf build/html build/doctrees && mkdir -p build/site
	@bin=$$(tests/vm/venv)/bin && \
	    $$bin/python -m sphinx -q -W --keep-going -j auto -c doc \
	    -d build/doctrees -b html build/site build/html && \
	    $$bin/python -m tests.books.site build/html

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

dom0-given:
	@missing='$(strip $(foreach name,$(DOM0),$(if $($(name)),,$(name))))'; \
	[ -z "$$missing" ] || { echo "cannot test with a real qubesd: $${missing// /, } is" \
	    "not set; set it to a checkout, see doc/testing.md" >&2; exit 2; }

test-qubesd: dom0-given vm-image
	@$(VM) run -- '$(QUBESD_TEST)'

test-power: vm-image
	@tests/vm/prepare power
	@$(TIED) python3 -m tests.power --cuts $(CUTS) $(if $(SEED),--seed $(SEED)) $(ARGS)

# with one disk for each driver, and a clock that counts instructions
bench: vm-image
	@VM_CLOCK=work $(BENCH_VM) run -- \
	    '$(BENCH) --clock work --rounds $(ROUNDS)'
	@python3 -m benchmarks.table build/bench/bench.json

bench-scale: vm-image
	@VM_OUT=build/bench $(VM) run -- '$(BENCH).scale --volumes $(VOLUMES)'
	@python3 -m benchmarks.table build/bench/scale.json

bench-bulk: vm-image
	@VM_OUT=build/bench $(VM) run -- '$(BENCH).bulk --rounds $(ROUNDS)'
	@python3 -m benchmarks.table build/bench/bulk.json

bench-smoke: vm-image
	@$(BENCH_VM) run -- '$(SMOKE)'

test-rpm: prepare
	@tests/vm/prepare rpm
	@$$(tests/vm/venv)/bin/python -m pytest -q -p no:cacheprovider \
	    tests/rpm $(ARGS)

build/man1/%.1: doc/manpages/%.rst
	@$(RST2MAN) $< $@

build/man7/%.7: doc/manpages/%.rst
	@$(RST2MAN) $< $@

# remove older builds, which may have modules that no longer exist
build: $(MANUAL)
	@rm -rf build/lib build/bdist.* build/wheel *.egg-info
	@umask 022 && \
	    export SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$(SOURCES_TIME)} && \
	    $(PYTHON) -m pip wheel -q --disable-pip-version-check --no-cache-dir \
	    --no-index --no-deps --no-build-isolation -w build/wheel .

install: install-dom0 install-doc install-askpassword

# Without RECORD, pip does not change these files, which belong to the package
# manager.  rpm compiles the bytecode.  With -I, root's Python imports nothing
# from a user.
install-dom0: build
	@$(PYTHON) -m pip install -q --disable-pip-version-check --no-cache-dir \
	    --no-index --no-deps --no-compile --no-warn-script-location \
	    --ignore-installed --root-user-action=ignore --root "$(DESTDIR)/" \
	    --prefix /usr --find-links build/wheel $(NAME)
	@sed -i '1s,.*,#!/usr/bin/python3 -I,' $(DESTDIR)/usr/bin/qvm-zfs
	@cd $(DESTDIR)/usr/lib/python3*/site-packages/ && \
	    rm -f qubes_storage_zfs-*.dist-info/{INSTALLER,RECORD,REQUESTED}
	@install -D -m 0664 -t $(DESTDIR)/etc/qubes/policy.d dom0/policy.d/*
	@install -D -m 0644 -t $(DESTDIR)$(MODULESLOADDIR) dom0/modules-load.d/*
	@install -D -m 0644 -t $(DESTDIR)$(UNITDIR) dom0/systemd/*.service
	@install -D -m 0644 -t $(DESTDIR)$(UNITDIR)/qubesd.service.d \
	    dom0/systemd/qubesd.service.d/*
	@install -D -m 0644 -t $(DESTDIR)$(COMPLETIONS) dom0/bash-completion/*
	@for page in $(MANUAL); do install -D -m 0644 -t \
	    $(DESTDIR)$(MANDIR)/$$(basename $$(dirname $$page)) $$page; done

# the pages, without the comments that are for the tests
install-doc:
	@umask 022 && $(PYTHON) doc/plain.py $(DESTDIR)$(DOCDIR)

# the service that asks for a passphrase, for dom0 and the GUI domain
install-askpassword:
	@install -D -m 0755 -t $(DESTDIR)/etc/qubes-rpc dom0/qubes-rpc/*

# the files as they are, also uncommitted ones, with modes that no umask changes
dist:
	@mkdir -p $(DIST)
	@set -o pipefail && \
	    git ls-files -z --cached --others --exclude-standard | \
	    LC_ALL=C sort -zu | tar --create --no-recursion \
	    --transform='s,^,$(RELEASE)/,' --owner=0 --group=0 --numeric-owner \
	    --mode=u=rwX,go=rX --mtime=@$(SOURCES_TIME) \
	    --null --files-from=- | \
	    gzip -n >$(DIST)/$(RELEASE).tar.gz
	@touch -d @$(SOURCES_TIME) $(DIST)/$(RELEASE).tar.gz

rpm: dist
	@rpm_spec/build $(DIST)/$(RELEASE).tar.gz $(DIST)

# This builds from a copy, because debhelper writes to debian/.  -d skips the
# check for a compiler, which the package does not need.
deb: dist
	@work=$$(mktemp -d) && trap 'rm -rf "$$work"' EXIT && \
	    tar -xzf $(DIST)/$(RELEASE).tar.gz -C "$$work" && \
	    ( cd "$$work/$(RELEASE)" && dpkg-buildpackage -us -uc -b -d \
	    >"$$work/log" 2>&1 || \
	    { cat "$$work/log" >&2; exit 1; } ) && \
	    mv "$$work"/*.deb $(DIST)

clean:
	rm -rf build dist *.egg-info
