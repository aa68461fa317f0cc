# Every target does its own set-up: .venv in the checkout, and as root Debian's packages for demo and test.

.PHONY: demo chaos attack bench fuzz test lint prose lock audit dist clean

demo:
	@[ "$$(id -u)" = 0 ] || { echo "demo: this needs root, for network namespaces and TUN devices" >&2; exit 1; }
	@deploy/setup --system
	@PYTHONPATH=deploy exec .venv/bin/python -m lab.demo $(if $(KEEP),--keep)$(if $(STOP),--stop)

# MINUTES=60 soaks; EACH=50 does as many faults of each kind; docs/CHAOS.md explains KINDS=, SEED=, OUT= and STRICT=1.
chaos:
	@[ "$$(id -u)" = 0 ] || { echo "chaos: this needs root, for network namespaces and TUN devices" >&2; exit 1; }
	@deploy/setup --system
	@PYTHONPATH=deploy exec .venv/bin/python -m tests.chaos $(if $(MINUTES),--minutes $(MINUTES),$(if $(EACH),--each $(EACH),--short)) \
		$(if $(KINDS),--kinds $(KINDS)) $(if $(SEED),--seed $(SEED)) $(if $(OUT),--out $(OUT)) \
		--compare $(or $(COMPARE),5) $(if $(STRICT),--strict)

# ONLY=M9,A5 tries these lines; docs/ATTACK.md explains SEED= and OUT=.
attack:
	@[ "$$(id -u)" = 0 ] || { echo "attack: this needs root, for network namespaces and TUN devices" >&2; exit 1; }
	@deploy/setup --system
	@PYTHONPATH=deploy exec .venv/bin/python -m tests.attack $(if $(ONLY),--only $(ONLY)) $(if $(SEED),--seed $(SEED)) \
		$(if $(OUT),--out $(OUT)) $(if $(JOBS),--jobs $(JOBS))

# TESTS=tests/proto runs a part; JOBS=1 runs one test after another; AGAIN=1 tries what failed once more, by itself.
# Workers share the test modules that one of them has compiled, so pytest must be able to keep these.
test:
	@deploy/setup --system
	@PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest --numprocesses $(or $(JOBS),$$(($$(nproc) + 1))) --dist loadfile --no-loadscope-reorder $(TESTS) || \
		{ [ $$? = 1 ] && [ -n "$(AGAIN)" ] || exit 1; \
		echo "test: tries what failed once more; what passes now depends on the machine's load, which is a bug to fix"; \
		.venv/bin/python -m pytest --last-failed -v $(TESTS); }

lint:
	@deploy/setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	PYTHONPATH=services:shared .venv/bin/lint-imports
	@$(MAKE) --no-print-directory prose CODE=1

# Checks sentences by CONTRIBUTING's rule; CODE=1 checks docstrings and comments as well.
prose:
	@deploy/setup
	@.venv/bin/python tests/prose.py $(if $(CODE),--code)

# QUICK=1 needs two minutes; docs/performance/README.md explains OUT=FOLDER, BENCH_PEER=/path/to/program and ONLY="groups".
bench:
	@[ "$$(id -u)" = 0 ] || { echo "bench: this needs root, for network namespaces and TUN devices" >&2; exit 1; }
	@deploy/setup --system
	@PYTHONPATH=deploy exec .venv/bin/python -m tests.bench

# Searches for inputs that break a door; docs/FUZZING.md explains DOORS=, JOBS=, CORPUS= and MINIMISE=1.
fuzz:
	@deploy/setup --fuzz
	@PYTHONPATH=deploy exec .venv/bin/python -m tests.fuzz $(if $(MINUTES),--minutes $(MINUTES)) $(if $(JOBS),--jobs $(JOBS)) \
		$(if $(DOORS),--doors $(DOORS)) $(if $(CORPUS),--corpus $(CORPUS)) $(if $(MINIMISE),--minimise)

# Renews deploy/*.lock: the newest versions that pyproject.toml allows, each with its hashes.
lock:
	@deploy/setup --tools
	@.venv/bin/python deploy/supply.py lock

# Looks for known vulnerabilities of the pinned packages; says 'not audited' where no database can be reached.
audit:
	@deploy/setup --tools
	@.venv/bin/python deploy/supply.py audit

# Makes a wheel, an sdist, a CycloneDX bill of materials and manual pages in dist/.
dist:
	@deploy/setup --tools
	.venv/bin/python -m build --no-isolation --outdir dist
	.venv/bin/python deploy/supply.py wheel dist
	.venv/bin/python deploy/supply.py bill dist
	.venv/bin/python -m stagewire_cli.manual dist/man
	cp deploy/requirements.lock deploy/top.lock dist/

clean:
	rm -rf .venv dist build *.egg-info shared/stagewire/*/*.c shared/stagewire/*/*.so shared/stagewire/proto/kernel/*.c shared/stagewire/proto/kernel/*.so .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
