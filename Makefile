# The commands of this repository. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
# Every recipe begins with this file: it finds Rust and the tools of `make install`.
export BASH_ENV := $(CURDIR)/demo/rust.sh

help: ## This list; `make demo DEMO_EDGE_PORT=8081` chooses another port
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: ## A whole cluster on this machine, with an app on it: installs, builds, starts, deploys
	@demo/up.sh

down: ## End the demo, without a trace
	@demo/down.sh

install: ## The Debian packages and tools that building and running need; root
	@demo/install.sh

build: ## target/release/platform, linked statically, and what guests boot
	cargo rustc --release -p platform --bin platform -- -C target-feature=+crt-static
	cargo xtask guest

kernel: install ## The platform's own guest kernel: ten minutes once, then guests boot it in place of Debian's; root
	cargo xtask kernel
	cargo xtask guest

test: install build ## The whole check: formatting, lints, structure, every test; root
	@echo "== format, lints, structure"
	cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
	cargo fmt --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	cargo xtask tidy
	shellcheck -x demo/*.sh examples/*.sh
	echo "== tests"
	cargo test --release --workspace 2>&1 | tee target/test.log
	awk '/^test result:/ { passed += $$4; failed += $$6; ignored += $$8 }
		END { printf "%d tests passed, %d failed, %d ignored\n", passed, failed, ignored }' target/test.log

simulate: ## 10,000 runs of a simulated cluster under faults, on all processors; a failing seed prints its trace
	cargo xtask simulate --seeds 10000

images: install build ## Judge the root disks of real images by umoci, e2fsck and the kernel; root, npm, minutes
	for image in debian nginx python node; do examples/images.sh $$image; done | tee target/images.txt
	ROOT_DISK_IMAGES="$$(<target/images.txt)" cargo test --release -p root-disk --test images -- --nocapture

bench: install build ## Measure what we promise of boots, logs, root disks and deploys; root
	cargo xtask guest --natively
	cargo test --release -p microvm -p guest-init -- --ignored --nocapture --test-threads 1
	cargo test --release -p platform --test manifest -- --ignored --nocapture
	for image in tools modules; do examples/images.sh $$image; done | tee target/bench-images.txt
	mapfile -t images <target/bench-images.txt
	cargo run --release -p root-disk --example bench -- "$${images[@]}"
	demo/bench.sh

.PHONY: help demo down install build kernel test simulate images bench
