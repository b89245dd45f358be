CARGO ?= cargo

.PHONY: build test
build:
	$(CARGO) build --locked
test:
	$(CARGO) test --locked
