# Thin: meson does the work. `make run` and `make test` are all that a fresh Debian machine needs.
BUILD := build
LISTEN := 127.0.0.1:8760
ARGS :=

# What people run. Tests and benchmarks build the rest.
all: $(BUILD)/build.ninja
	@ninja -C $(BUILD) server/denoised clients/cli/denoise

# Again when the list of packages has changed: a new one may be there to be found.
$(BUILD)/build.ninja: deploy/packages
	@deploy/install-packages run build
	@meson setup $$(test ! -f $@ || echo --reconfigure) $(BUILD) >/dev/null

run: all
	@echo 'Try, from another terminal:'
	@echo '  curl http://$(LISTEN)/generate -H "Content-Type: application/json" -H "Accept: image/png" \'
	@echo '       -d '"'"'{"class_label":"sandal","n":16,"steps":20,"output":{"layout":"grid"}}'"'"' -o sandals.png'
	@echo '  $(BUILD)/denoise --server http://$(LISTEN) generate --label sandal -n 16 --grid -o sandals.png'
	@exec $(BUILD)/denoised --listen $(LISTEN) --models models --state state $(ARGS)

# Packages of every purpose that `make test` needs; nothing happens when all are there.
deps:
	@deploy/install-packages run build test

test: deps
	@python3 tests/run.py $(ARGS)

test-slow: deps
	@python3 tests/run.py --slow $(ARGS)

bench: $(BUILD)/build.ninja
	@ninja -C $(BUILD)
	@python3 tests/bench/run.py $(ARGS)

fuzz:
	@deploy/install-packages run build fuzz
	@python3 tests/fuzz/run.py $(ARGS)

# The bundled model again, by the daemon itself: an hour or two on two cores.
train-fashion: all
	@deploy/install-packages run build train
	@deploy/train-fashion $(BUILD)

clean:
	rm -rf build build-asan build-tsan build-fuzz

.PHONY: all run deps test test-slow bench fuzz train-fashion clean
