# The commands of this repository. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
# Every recipe begins with this file: it finds Rust and the tools of `make install`.
export BASH_ENV := $(CURDIR)/demo/rust.sh

help: ## This list; `make demo DEMO_EDGE_PORT=8081` chooses another port
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: ## A whole cluster on this machine, with an app on it: installs, builds, starts, deploys; NODES=3: several machines, as network namespaces
	@if [ -n "$(NODES)" ]; then NODES="$(NODES)" demo/nodes.sh up; else demo/up.sh; fi

down: ## End the demo, without a trace
	@demo/nodes.sh down
	demo/down.sh

install: ## The Debian packages and tools that building and running need; root
	@demo/install.sh

build: ## target/release/platform, linked statically, and what guests boot
	cargo rustc --release -p platform --bin platform -- -C target-feature=+crt-static
	cargo xtask guest

dist: install ## What is shipped: target/dist/platform, linked statically, and target/dist/guest; minutes
	cargo rustc --profile dist -p platform --bin platform -- -C target-feature=+crt-static
	cargo xtask guest --profile dist
	ln -sfn ../tools/bin/vhost-device-vsock target/dist/vhost-device-vsock

deb: dist ## The Debian package of what `make dist` builds: target/platform_VERSION_amd64.deb
	cargo xtask deb

machines: deb ## Install the package on Debians that boot here as VMs, make a cluster, reboot, upgrade, revoke, remove; root, no KVM, ten minutes and the package
	examples/machines.sh "$$(ls -t target/platform_*_amd64.deb | head -n 1)"

wireguard-kernel: ## The tests of WireGuard interfaces on a Debian kernel, which has WireGuard, in a VM; root, no KVM, minutes
	examples/wireguard-kernel.sh

kernel: install ## The platform's own guest kernel: ten minutes once, then guests boot it in place of Debian's; root
	cargo xtask kernel
	cargo xtask guest

# The crates whose tests need no root, network or VM: the pure ones (ARCHITECTURE.md), `state-file` and the repository's tasks.
PURE := model display state-file api http1 guest-protocol manifest oci overlay scheduler node-core xtask

lint: ## Format, lints, structure and dependency rules; no root
	@echo "== format, lints, structure"
	cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
	cargo fmt --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	cargo xtask tidy
	if command -v shellcheck >/dev/null; then shellcheck -x demo/*.sh examples/*.sh crates/edge-proxy/clients/*.sh
	else echo "skipped: shellcheck is not installed (make install)"; fi
	if command -v cargo-deny >/dev/null; then $(MAKE) deny
	else echo "skipped: advisories, because cargo-deny is not installed (make deny says how); tidy has checked bans, licences and sources"; fi

deny: ## Every rule of deny.toml, by cargo-deny: advisories of known holes too. Installing it takes minutes: cargo install --locked cargo-deny
	@cargo deny --version >/dev/null || { echo "cargo-deny is not installed: cargo install --locked cargo-deny"; exit 1; }
	cargo deny --all-features check bans licenses sources
	if cargo deny fetch db 2>/dev/null; then cargo deny --all-features check advisories
	else echo "skipped: advisories, because their database cannot be fetched"; fi

check: lint ## `make lint` and the tests of the pure crates; no root, two minutes when warm
	@echo "== tests of the pure crates"
	cargo test --release $(addprefix -p ,$(PURE)) -- --quiet

test: install lint build ## `make lint`, then every test; root
	@echo "== tests"
	# Through a file: a process that a failed test left would hold a pipe open, and `make` would wait for it.
	: >target/test.log
	tail -n +1 -f target/test.log & shown=$$!
	trap 'sleep 1; kill $$shown' EXIT
	cargo test --release --workspace >>target/test.log 2>&1
	awk '/^test result:/ { passed += $$4; failed += $$6; ignored += $$8 }
		END { printf "%d tests passed, %d failed, %d ignored\n", passed, failed, ignored }' target/test.log

cases: install build ## The tests of what images, registries and users in the field do (`case_*`), through real VMs where it is about one; root
	cargo test --release --workspace -- case_

simulate: ## 50,000 runs of a simulated cluster under faults, on all processors; a failing seed prints its trace; half an hour
	cargo xtask simulate --seeds 50000

mutations: ## Break each rule of docs/simulation.md on purpose, and see the simulation catch it; minutes
	cargo xtask mutations

images: install build ## Check the root disks of real images by umoci, e2fsck and the kernel; root, npm, minutes
	for image in debian nginx python node; do examples/images.sh $$image; done | tee target/images.txt
	ROOT_DISK_IMAGES="$$(<target/images.txt)" cargo test --release -p root-disk --test images -- --nocapture

clients soak: export EDGE_LOOPBACK := $(CURDIR)/target/release/examples/loopback
clients: ## The edge against programs that others wrote (curl, haproxy, Python, Go, Java, wrk, h2load, testssl.sh, Autobahn) and slow clients; PARTS="curl go"; root once, to install them; five minutes
	demo/install.sh clients
	cargo build --release -p edge-proxy --example loopback
	crates/edge-proxy/clients/run.sh clients.py $(PARTS)

soak: ## The edge under load while backends come and go; MINUTES=60; counts failed requests, looks at memory and open files
	demo/install.sh clients
	cargo build --release -p edge-proxy --example loopback
	SOAK_MINUTES=$(or $(MINUTES),60) crates/edge-proxy/clients/run.sh soak.py

# Measurements boot the guest that is shipped.
bench: export PLATFORM_GUEST_DIR := $(CURDIR)/target/dist/guest
bench: dist ## Measure what we promise of boots, logs, root disks, the edge and deploys, with the binaries of `make dist`; root
	cargo xtask guest --profile dist --natively
	cargo test --profile dist -p microvm --test bench -- --ignored --nocapture --test-threads 1
	WIREGUARD_PROGRAM=$(CURDIR)/target/dist/platform cargo test --profile dist -p wireguard --test bench -- --ignored --nocapture --test-threads 1
	cargo test --profile dist -p guest-init --test vm -- --ignored --nocapture --test-threads 1
	for image in tools modules; do examples/images.sh $$image; done | tee target/bench-images.txt
	mapfile -t images <target/bench-images.txt
	cargo run --profile dist -p root-disk --example bench -- "$${images[@]}"
	demo/install.sh bench
	cargo run --profile dist -p edge-proxy --example bench
	cargo test --profile dist -p resolver --test bench -- --ignored --nocapture
	cargo test --profile dist -p scheduler -- --ignored --nocapture
	cargo test --profile dist -p store --test kill -- --ignored --nocapture
	cargo test --profile dist -p control-plane --test agents -- --ignored --nocapture --exact thousands_of_agents
	cargo test --profile dist -p control-plane --test agents -- --ignored --nocapture --exact writes_against_a_plain_client
	cargo test --profile dist -p control-plane --test agents -- --ignored --nocapture --exact lists_by_page
	cargo test --profile dist -p platform --test manifest -- --ignored --nocapture
	cargo test --profile dist -p platform --test cluster -- --ignored --nocapture
	cargo test --profile dist -p platform --test many -- --ignored
	demo/bench.sh

.PHONY: help demo down install build dist deb machines wireguard-kernel kernel lint deny check test cases simulate mutations images clients soak bench
