# Every target does its own set-up: .venv in the checkout, and from Debian what demo and test need (as root).

.PHONY: demo chaos test lint bench clean

demo:
	@[ "$$(id -u)" = 0 ] || { echo "demo: this needs root, for network namespaces and TUN devices" >&2; exit 1; }
	@deploy/setup --system
	@PYTHONPATH=deploy exec .venv/bin/python -m lab.demo $(if $(KEEP),--keep)$(if $(STOP),--stop)

# MINUTES=60 soaks; EACH=50 does so many of each kind; KINDS=, SEED=, OUT= and STRICT=1 as docs/CHAOS.md says.
chaos:
	@[ "$$(id -u)" = 0 ] || { echo "chaos: this needs root, for network namespaces and TUN devices" >&2; exit 1; }
	@deploy/setup --system
	@PYTHONPATH=deploy exec .venv/bin/python -m chaos $(if $(MINUTES),--minutes $(MINUTES),$(if $(EACH),--each $(EACH),--short)) \
		$(if $(KINDS),--kinds $(KINDS)) $(if $(SEED),--seed $(SEED)) $(if $(OUT),--out $(OUT)) \
		--compare $(or $(COMPARE),5) $(if $(STRICT),--strict)

test:
	@deploy/setup --system
	@.venv/bin/python -m pytest $(TESTS)

lint:
	@deploy/setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	PYTHONPATH=services:shared .venv/bin/lint-imports

# QUICK=1: two minutes. OUT=FOLDER, BENCH_PEER=/path/to/program, ONLY="groups": see docs/performance/README.md.
bench:
	@[ "$$(id -u)" = 0 ] || { echo "bench: this needs root, for network namespaces and TUN devices" >&2; exit 1; }
	@deploy/setup --system
	@PYTHONPATH=deploy exec .venv/bin/python -m bench

clean:
	rm -rf .venv dist build .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
