# A thin index of what can be done here. The work is in scripts/, which shellcheck can read.

SHELL := bash

# A clean checkout, as CI has it, must not build every dependency anew: there the build folder lies in the user's cache.
# Elsewhere cargo decides. (What the demo reports is in target/demo/ of the checkout in any case.)
ifdef CI
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mysql-pitr/target
locked := --locked
endif

.PHONY: help demo test torture bench check lint-ansible clean
.DEFAULT_GOAL := help

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## fetch what is needed, then show the whole story on a scratch MySQL server
	@scripts/demo.sh

test: ## fetch what is needed, then run the tests, against real servers (ARGS="..." goes to cargo test)
	@scripts/test.sh $(ARGS)

torture: ## kill, cut, rotate and fail over two servers at random, then compare (ROUNDS=200 SEED=n)
	@ROUNDS="$(ROUNDS)" SEED="$(SEED)" scripts/torture.sh

bench: ## fetch what is needed, then measure, beside MySQL's own tools (ARGS="..." names benches; into target/bench/report.json)
	@scripts/bench.sh $(ARGS)

# Advisories are not checked: their database cannot be fetched everywhere.
check: ## check format, lints, documentation, dependencies, scripts and Terraform
	cargo fmt --check
	cargo clippy $(locked) --all-targets -- -D warnings
	cargo clippy $(locked) --no-default-features --features demo -- -D warnings
	cargo clippy $(locked) --features bench --bench suite -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc $(locked) --no-deps --document-private-items
	deny=$$(scripts/cargo-deny.sh | tail -n 1) && "$$deny" $(locked) check bans licenses sources
	scripts/terraform-lint.sh
	python3 scripts/costs.py --check docs/costs.md
	@if command -v shellcheck >/dev/null; then set -x; shellcheck scripts/*.sh .ci/run; else echo "SKIPPED: no shellcheck here"; fi
	@if command -v promtool >/dev/null; then set -x; promtool check rules monitoring/alerts.yml; else echo "SKIPPED: no promtool here (Debian's package prometheus has it)"; fi

lint-ansible: ## check the playbook and its roles, and that mysql-pitr takes what they write (fetches 700 MB of tools, once)
	@scripts/ansible-lint.sh

clean: ## remove what was built (the cache of downloads stays)
	cargo clean
	rm -rf target
