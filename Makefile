# Thin: meson does the work. `make run` and `make test` are all that a fresh Debian machine needs.
BUILD := build
LISTEN := 127.0.0.1:8760

all: $(BUILD)/build.ninja
	@ninja -C $(BUILD)
	@ln -sf server/denoised $(BUILD)/denoised
	@ln -sf clients/cli/denoise $(BUILD)/denoise

$(BUILD)/build.ninja:
	@deploy/install-packages run build
	@meson setup $(BUILD) >/dev/null

run: all
	@echo 'Try: curl -s http://$(LISTEN)/generate -H "Content-Type: application/json" -H "Accept: image/png" \'
	@echo '          -d '"'"'{"class_label":"sandal","n":16,"steps":20,"output":{"layout":"grid"}}'"'"' > sandals.png'
	@exec $(BUILD)/denoised --listen $(LISTEN) --models models

test: test-deps
	@python3 tests/run.py

test-slow: test-deps
	@python3 tests/run.py --slow

bench: all
	@python3 tests/bench/run.py

fuzz:
	@deploy/install-packages build fuzz
	@python3 tests/fuzz/run.py

deps:
	@deploy/install-packages run build test

test-deps:
	@deploy/install-packages run build test

clean:
	rm -rf build build-asan build-tsan build-fuzz

.PHONY: all run test test-slow bench fuzz deps test-deps clean
