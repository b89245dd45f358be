CARGO ?= cargo

.PHONY: build test
build:
	$(CARGO) build --locked
test:
	$(CARGO) test --locked

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
