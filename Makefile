# The common journeys. Each target stands alone: on a fresh Debian machine it installs what it needs first.
.PHONY: all demo test bench bench-peers bench-train-peers format install clean deps deps-demo deps-peers
PREFIX ?= /usr/local
MODEL ?= models/xsr-multi.xsr

all: deps
	cmake --preset release
	cmake --build --preset release

deps:
	scripts/install-deps.sh

deps-demo:
	scripts/install-deps.sh demo

deps-peers:
	scripts/install-deps.sh peers

# Builds the library and the demo only, then searches a few hundred sentence pairs across languages.
demo:
	@start=$$(date +%s) && $(MAKE) --no-print-directory deps-demo && cmake --preset demo >/dev/null && \
	cmake --build --preset demo --target xsr-demo && \
	build/demo/examples/xsr-demo --model "$(MODEL)" --pairs examples/data/tatoeba.en-fr.tsv && \
	echo "make demo: $$(($$(date +%s) - start)) s in all, dependencies and build included"

test: all
	ctest --preset release $(CTEST_FLAGS)

bench: all
	build/release/bench/xsr-bench -m "$(MODEL)"

# xsr beside the other engines, on one model and the same sentences (bench/peers/README.md); PEERS_FLAGS=--quick for a first look.
bench-peers: deps-peers all
	bench/peers/bench_peers.py --model "$(MODEL)" --markdown peers.md --json peers.json --svg peers.svg $(PEERS_FLAGS)

# xsr-train beside PyTorch on the same batches (bench/peers/README.md); CONFIG is a config of xsr-train. Takes a quiet machine.
bench-train-peers: deps-peers all
	@[ -n "$(CONFIG)" ] || { echo "bench-train-peers: name a config of xsr-train: make $@ CONFIG=FILE.toml" >&2; exit 2; }
	bench/peers/train_baseline.py check
	bench/peers/train_baseline.py follow --config "$(CONFIG)"
	bench/peers/train_baseline.py speed --config "$(CONFIG)" --markdown train-peers.md --json train-peers.json

format:
	scripts/check-format.sh --fix

# sudo make install, or make install PREFIX=$$HOME/.local
install: all
	cmake --install build/release --prefix "$(PREFIX)"

clean:
	rm -rf build
