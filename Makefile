CARGO ?= cargo
# Bash scripts of ours, for the linter.
SCRIPTS = .ci/prepare .ci/run bundles/build-patterns bundles/make-bundle \
	bundles/demo/run bundles/demo/host-init benches/run \
	fuzz/run hooks/announce hooks/move-address hooks/network-lock
# Random cases of each property in fuzz-short.
CASES ?= 20000
# Arguments for the demo: make demo ARGS='--mib 1024'
ARGS ?=

# Seconds for each fuzz target: make fuzz SECONDS=600
SECONDS ?= 60

.PHONY: build demo test test-crossed bench fuzz fuzz-short fmt lint bundle clean

build:
	@.ci/prepare build
	$(CARGO) build --locked

# Two hosts on this machine, a container that moves between them, an account.
demo:
	@.ci/prepare demo
	@bundles/demo/run $(ARGS)

test: lint
	$(CARGO) test --locked --no-fail-fast

# What CRIU=/path/to/criu writes, dunlin restores, and the other way round.
test-crossed:
	@test -x "$(CRIU)" || { echo "usage: make test-crossed CRIU=/path/to/criu"; exit 2; }
	@.ci/prepare test
	CRIU="$(CRIU)" $(CARGO) test --locked crossed

# dunlin, and CRIU=/path/to/criu if given, in one run.
bench:
	@.ci/prepare bench
	@CRIU="$(CRIU)" benches/run $(ARGS)

# All fuzz targets, one after the other; see fuzz/run.
fuzz:
	@.ci/prepare build
	fuzz/run $(SECONDS)

# The properties of all decoders, with many more cases than in `test`.
fuzz-short:
	@.ci/prepare build
	PROPTEST_CASES=$(CASES) $(CARGO) test --locked --lib

fmt:
	$(CARGO) fmt
	$(CARGO) fmt --manifest-path bundles/patterns/Cargo.toml

lint:
	@.ci/prepare test
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path bundles/patterns/Cargo.toml
	$(CARGO) clippy --locked -- -D warnings
	$(CARGO) clippy --locked --manifest-path bundles/patterns/Cargo.toml --target-dir target/samples/build -- -D warnings
	shellcheck -x $(SCRIPTS)

# A bundle of the sample program, to play with: out/bundle
bundle:
	@.ci/prepare demo
	@mkdir -p out
	bundles/build-patterns out/patterns
	bundles/make-bundle out/bundle -- out/patterns
	@echo "runc run --bundle out/bundle NAME"

clean:
	$(CARGO) clean
	rm -rf out

# Installation. DESTDIR and PREFIX as usual; FORCE=1 lets install-criu hide or
# replace a CRIU that is there.
PREFIX ?= /usr/local
BINDIR = $(DESTDIR)$(PREFIX)/bin
SBINDIR = $(DESTDIR)$(PREFIX)/sbin
MANDIR = $(DESTDIR)$(PREFIX)/share/man

.PHONY: install install-criu uninstall-criu
install:
	$(CARGO) build --locked --release
	install -D -m 0755 target/release/dunlin $(BINDIR)/dunlin
	install -D -m 0644 docs/dunlin.1 $(MANDIR)/man1/dunlin.1
	install -D -m 0644 docs/dunlin-criu.8 $(MANDIR)/man8/dunlin-criu.8

# The name criu, on the search path of runc, podman and crun.
install-criu: install
	@link="$(SBINDIR)/criu"; found=$$(command -v criu || true); \
	if [ -e "$$link" ] && ! [ -L "$$link" ]; then found="$$link"; fi; \
	case "$$(readlink -f "$$found" 2>/dev/null)" in */dunlin) found= ;; esac; \
	if [ -n "$$found" ] && [ -z "$(FORCE)" ]; then \
		echo "install-criu: $$found is there, and stays as it is."; \
		echo "install-criu: FORCE=1 puts $$link before it (or in its place, if it is that file)."; \
		exit 1; \
	fi; \
	install -d "$(SBINDIR)" && ln -sfn ../bin/dunlin "$$link" && echo "$$link -> dunlin"

uninstall-criu:
	@link="$(SBINDIR)/criu"; \
	case "$$(readlink "$$link")" in ../bin/dunlin) rm "$$link" ;; *) echo "$$link is not ours" ;; esac
