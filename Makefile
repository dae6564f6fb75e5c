# Two commands matter: `make demo` and `make test`. Everything lives in .venv; a second run does no work twice.
PYTHON ?= python3
ARGS =

VENV = .venv
BIN = $(VENV)/bin
NATIVE = netpol/kernel/_native.abi3.so
OUR_C = $(sort $(wildcard csrc/*.c))
OUR_H = $(sort $(wildcard csrc/*.h))
FLOOR_C = $(sort $(wildcard bench/floor/*.c))
OUR_PYTHON = netpol tests bench
SITE = build/site
WARNINGS = -std=gnu11 -O3 -Wall -Wextra -Wshadow -Wconversion -Werror
# setuptools explains at length, each time, what an editable install is.
PIP = PYTHONWARNINGS=ignore $(BIN)/pip --disable-pip-version-check --quiet
SANITIZED = build/sanitize

export PYTHON
# Debian keeps iptables and ipset where only root's PATH looks.
export PATH := $(PATH):/usr/sbin:/sbin

.DEFAULT_GOAL = help
.PHONY: help demo test lint format docs settings pictures recording bench soak sanitize mutants apiserver build wheel lowest clean

help:  ## This list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F '|' '{ printf "make %-13s %s\n", $$1, $$2 }'

demo: $(NATIVE)  ## Enforce the example policy on real packets and show it (ARGS="--json")
	@$(BIN)/netpol demo $(ARGS)

apiserver:  ## Build the API server that tests run against, once, into a cache (needs Go)
	@tests/kube/apiserver/build

# Tests wait more than they work. A file's tests stay together, for they may share a server.
test: $(NATIVE) $(VENV)/.dev  ## Run all tests, two at a time (ARGS="-k name"); as root, first install the tools they compare with
	@.ci/needs referees
	@if command -v go >/dev/null; then tests/kube/apiserver/build >/dev/null; fi
	@$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

# musl brings no headers of the kernel: the system's own, and nothing else of /usr/include.
KERNEL_HEADERS = build/kernel-headers
lint: $(NATIVE) $(VENV)/.dev  ## Check style, types, workflows, and C warnings: for aarch64 and with musl too
	@.ci/needs lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict $(OUR_PYTHON)
	$(BIN)/clang-format --dry-run --Werror $(OUR_C) $(OUR_H) $(FLOOR_C)
	$(BIN)/zizmor --offline --quiet --persona=pedantic --min-severity=low .github
	@mkdir -p $(KERNEL_HEADERS) && ln -sfn /usr/include/linux /usr/include/asm-generic $(KERNEL_HEADERS) && \
		ln -sfn /usr/include/$$(gcc -print-multiarch)/asm $(KERNEL_HEADERS)
	@set -e; for compiler in gcc clang aarch64-linux-gnu-gcc "musl-gcc -isystem $(KERNEL_HEADERS)"; do \
		command -v $${compiler%% *} >/dev/null || continue; \
		for file in $(OUR_C) $(FLOOR_C); do $$compiler $(WARNINGS) -c -o /dev/null $$file; done; \
		echo "$$compiler: $(words $(OUR_C) $(FLOOR_C)) C files without a warning"; \
	done

format: $(VENV)/.dev  ## Rewrite the sources in the house style
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(OUR_C) $(OUR_H) $(FLOOR_C)

docs: $(VENV)/.docs  ## Build the documentation into build/site, and look for dead links
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --clean -f docs/site/mkdocs.yml
	@$(BIN)/python -m docs.site.check $(SITE)

settings: $(NATIVE)  ## Write docs/settings.md anew from the commands
	@$(BIN)/python -m docs.site.settings

pictures: $(NATIVE) $(VENV)/.dev  ## Draw the pictures of docs/ anew from the code (FIGURES=bench-results.json: with the figures of a new run)
	@$(BIN)/python -m docs.site.chains
	@$(BIN)/python -m docs.site.rooms
	@$(BIN)/python -m docs.site.event
	@$(BIN)/python -m docs.site.figures $(FIGURES)

recording: $(NATIVE)  ## Record netpol demo in a terminal anew, as the picture of the README
	@$(BIN)/python -m docs.site.recording

bench: $(NATIVE) $(VENV)/.dev  ## Measure, and write bench-results.json
	@.ci/needs referees
	@$(BIN)/pytest bench --benchmark-quiet $(ARGS)

.PHONY: bench-compare
REV = HEAD
bench-compare: $(NATIVE) $(VENV)/.dev  ## Measure this tree beside another revision, in turn; fails above 1.10x (REV=main, ARGS="--only table")
	@$(BIN)/python -m bench.compare $(REV) $(ARGS)

soak: $(NATIVE) $(VENV)/.dev  ## Run the long tests of changes under traffic, and beside other writers, whole
	@.ci/needs referees
	@tests/kube/apiserver/build >/dev/null
	@NETPOL_SOAK=1 NETPOL_REQUIRE_ALL=1 $(BIN)/pytest tests/test_hitless_packets.py tests/test_cutting_packets.py tests/test_writers_at_work.py \
		tests/test_agent_packets.py tests/test_agent_churn.py tests/test_faults.py tests/test_kills_packets.py $(ARGS)

# $(call tree,DIRECTORY): a copy, for a module that is built otherwise must not take the place of .venv's.
tree = rm -rf $(1) && mkdir -p $(1) && tar -c --exclude=./.git --exclude=./.venv --exclude=./build --exclude=./dist --exclude=./mutants \
	--exclude='*.so' --exclude=__pycache__ --exclude='.*_cache' --exclude=.hypothesis . | tar -x -C $(1)

# Whatever process a sanitizer finds something in, also one that a test started, it leaves a report, and no report may be left. Left out are
# rooms that have no C (tests/test_layers.py holds them to it), targets that are built with sanitizers of their own, what another
# instrument counts or a sanitizer's own memory would be counted in, and a test of each file that is written, for reports are files.
UNSANITIZED = --ignore=tests/policy --ignore=tests/rules --ignore=tests/fuzz --ignore=tests/bench/test_instructions.py \
	--ignore=tests/bench/test_memory.py --deselect=tests/bench/test_apart.py::test_a_rows_memory_is_its_own \
	--deselect=tests/deploy/test_node.py::test_it_runs_as_its_manifest_says
sanitize: $(VENV)/.dev  ## Run all tests that can reach C under ASan and UBSan, child processes too, in a tree of their own (ARGS="tests/kernel")
	@.ci/needs referees
	@$(call tree,$(SANITIZED)) && mkdir $(SANITIZED)/reports
	@cd $(SANITIZED) && NETPOL_SANITIZE=1 ../../$(BIN)/python setup.py -q build_ext --inplace --force
	@cd $(SANITIZED) && PYTHONMALLOC=malloc ASAN_OPTIONS="detect_leaks=0:log_path=$$PWD/reports/asan" \
		UBSAN_OPTIONS="print_stacktrace=1:log_path=$$PWD/reports/ubsan" \
		LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
		../../$(BIN)/python -m pytest -p no:cacheprovider $(UNSANITIZED) $(or $(ARGS),tests); \
		status=$$?; for report in reports/*; do [ ! -e $$report ] || { cat $$report; status=1; }; done; exit $$status

.PHONY: valgrind
MEMCHECKED = build/valgrind
# Not optimised, see csrc/ffi_build.py. Few examples of each law, always the same ones: memcheck is 30 times slower.
valgrind: $(VENV)/.dev  ## Run the hot C paths under memcheck, in a tree of its own; no error of ours passes (ARGS="tests/kernel": tests)
	@.ci/needs valgrind
	@$(call tree,$(MEMCHECKED))
	@cd $(MEMCHECKED) && NETPOL_MEMCHECK=1 ../../$(BIN)/python setup.py -q build_ext --inplace --force
	@cd $(MEMCHECKED) && NETPOL_HYPOTHESIS_PROFILE=mutants PYTHONUNBUFFERED=1 ../../$(BIN)/python -m tests.valgrind $(ARGS)

.PHONY: coverage
COVERED = build/coverage
coverage: $(VENV)/.dev  ## Count the lines of C that tests run, in a tree of its own; docs/c-coverage.md says why each other one is not
	@.ci/needs referees
	@$(call tree,$(COVERED))
	@cd $(COVERED) && NETPOL_COVERAGE=1 ../../$(BIN)/python setup.py -q build_ext --inplace --force
	@cd $(COVERED) && ../../$(BIN)/python -m pytest -p no:cacheprovider --hypothesis-seed=0 $(or $(ARGS),tests/kernel tests/kube/test_protobuf.py tests/test_faults.py)
	@cd $(COVERED) && ../../$(BIN)/python -m tests.coverage

.PHONY: analyze
analyze:  ## Look through the C files with gcc's analyzer, cppcheck and clang-tidy (.clang-tidy); no finding passes
	@.ci/needs analyze
	@set -e; for file in $(OUR_C); do gcc -std=gnu11 -O2 -fanalyzer -Wall -Wextra -Werror -c -o /dev/null $$file; done
	@cppcheck --quiet --std=c11 --enable=warning,portability,performance --error-exitcode=1 \
		--suppress=missingIncludeSystem $(OUR_C)
	@clang-tidy --quiet $(OUR_C) -- -std=gnu11 2>/dev/null
	@echo "gcc -fanalyzer, cppcheck, clang-tidy: $(words $(OUR_C)) C files without a finding"

.PHONY: fuzz
fuzz: $(NATIVE) $(VENV)/.dev  ## Run each fuzz target, C and Python, for a minute (FUZZ_SECONDS=60) and count executions (ARGS="table watch": these)
	@.ci/needs fuzz
	@$(BIN)/python -m tests.fuzz $(ARGS)

# Anew each time, for mutmut does not notice that a test has changed. Of pure code only: no mutant meets a kernel.
mutants: $(NATIVE) $(VENV)/.mutants  ## Break policy/ and rules/ in 6,000 ways, each for a test to find (three quarters of an hour; ARGS="netpol.rules.diff*")
	@rm -rf mutants
	@NETPOL_HYPOTHESIS_PROFILE=mutants $(BIN)/mutmut run $(ARGS)
	@$(BIN)/python -m tests.mutants

# Which Python builds is .ci/wheel's to choose, unless somebody said.
wheel:  ## Build the sdist and a wheel from it into dist/, check both, and run the demo from it on each Python here
	@$(if $(filter file,$(origin PYTHON)),env -u PYTHON) .ci/wheel

lowest:  ## Test with each dependency at its lower bound, in build/lowest (ARGS="tests/policy")
	@.ci/lowest $(ARGS)

build: $(NATIVE)  ## Set up .venv and build the native module

clean:  ## Remove .venv and everything that was built
	rm -rf $(VENV) build dist *.egg-info netpol/kernel/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis bench-results.json mutants
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.base: pyproject.toml setup.py
	@.ci/needs build
	@echo "setting up $(VENV)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) install "setuptools>=77" "cffi>=2.0"
	@$(PIP) install --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "installing what tests and checks need"
	@$(PIP) install --no-build-isolation --editable ".[dev]"
	@touch $@

$(VENV)/.docs: $(VENV)/.base
	@$(PIP) install --no-build-isolation --editable ".[docs]"
	@touch $@

$(VENV)/.mutants: $(VENV)/.dev
	@$(PIP) install --no-build-isolation --editable ".[dev,mutants]"
	@touch $@

# The date is set by hand because an unchanged module is not written again.
$(NATIVE): $(OUR_C) $(OUR_H) csrc/ffi_build.py setup.py $(VENV)/.base
	@$(BIN)/python setup.py -q build_ext --inplace
	@touch -c $@
