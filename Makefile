# The list of everything one can do here. `make` alone prints it.

VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
PLATFORMS ?= linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64
FUZZTIME  ?= 5s
COUNT     ?= 6
DATA      ?= ../shared/data
# -tags openblas where the peer can be built.
OPENBLAS  ?= $(shell printf '\#include <cblas.h>\n' | $(CC) -E - >/dev/null 2>&1 && echo -tags openblas)

# The version comes from here, so Go need not ask git (nor fail where it cannot).
GOBUILD = CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'

.DEFAULT_GOAL := help
.PHONY: help build test test-all race lint fmt asm asm-current demo cross fuzz-short bench bench-blas bench-resnet bench-lm bench-forward bench-layers bench-llama bench-gpfq bench-prune bench-search bench-loader clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## bin/fettle, one static file
	$(GOBUILD) -o bin/ ./cmd/fettle

test: ## all tests that a change needs, under 5 minutes
	go test ./...

test-all: ## the long tests too; some need the real models and data in $(DATA)
	FETTLE_LONG=1 go test -timeout 2h ./...

race: ## the packages that use goroutines, under the race detector; needs a C compiler
	CGO_ENABLED=1 go test -short -race -timeout 30m $$(go list -f '{{.ImportPath}} {{join .Deps " "}}' ./... | awk '/internal\/pool/ { print $$1 }')

lint: bin/golangci-lint ## linters, and the order of the folders; .golangci.yml
	bin/golangci-lint run ./...

fmt: bin/gofumpt ## formats every Go file
	bin/gofumpt -w .

asm: ## writes the assembly again, from the programs in internal/asm
	cd internal/asm && go run ./gemm && go run ./vec && go run ./linalg

asm-current: asm ## fails when committed assembly is not what the programs write
	git diff --exit-code --stat -- internal/blas internal/vec internal/linalg

demo: build ## compresses the models of testmodels to 3 bits and says where the reports are
	rm -rf build/demo build/demo-lm
	bin/fettle compress testmodels/resnet8.th --recipe testmodels/demo.yaml --out build/demo --no-cache
	bin/fettle compress testmodels/lm --recipe testmodels/lm/demo.yaml --out build/demo-lm --no-cache
	@echo "Open build/demo/report.html and build/demo-lm/report.html in a browser."

cross: ## build/cross/*, for every platform
	@set -e; for p in $(PLATFORMS); do \
		os=$${p%/*}; arch=$${p#*/}; ext=; [ $$os != windows ] || ext=.exe; \
		echo "build/cross/fettle-$$os-$$arch$$ext"; \
		GOOS=$$os GOARCH=$$arch $(GOBUILD) -o build/cross/fettle-$$os-$$arch$$ext ./cmd/fettle; \
	done

# Once more after a failure: Go's fuzzing fails by its own deadline now and then,
# and an input that does fail stands in testdata by then, and fails again.
fuzz-short: ## every fuzz target for $(FUZZTIME)
	@mkdir -p build
	@go test -list '^Fuzz' ./... > build/fuzz-targets
	@awk '/^Fuzz/ { names = names " " $$1 } /^ok/ { n = split(names, f); for (i = 1; i <= n; i++) print $$2, f[i]; names = "" }' build/fuzz-targets | \
	while read -r package target; do \
		echo "$$target in $$package"; \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package || \
		go test -run "^$$target\$$" -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package || exit 1; \
	done

bench: bin/benchstat ## benchmarks of the kernels, beside those of the run before
	@mkdir -p build
	@[ ! -f build/bench.txt ] || mv build/bench.txt build/bench-before.txt
	go test -run '^$$' -bench . -count $(COUNT) ./internal/... > build/bench.txt
	bin/benchstat $$(ls build/bench-before.txt 2>/dev/null) build/bench.txt

bench-blas: ## products and factorizations beside gonum and, with a C compiler and libopenblas-dev, OpenBLAS
	go run $(OPENBLAS) ./internal/bench/blas
	go run $(OPENBLAS) ./internal/bench/linalg

bench-resnet: ## the tables of a real ResNet; needs the models and images in $(DATA)
	go run ./internal/bench/resnet -data $(DATA)

bench-lm: ## the tables of two real language models; needs them and their data in $(DATA)
	go run ./internal/bench/lm -data $(DATA)

bench-forward: ## a Llama's forward pass beside PyTorch's, where a python3 has it
	go run ./internal/bench/forward

bench-layers: ## single layers, from 256² to 4096²
	go run ./internal/bench/layers

bench-gpfq: ## GPFQ in Gram form beside its authors' data form; two minutes
	go run ./internal/bench/gpfq

bench-prune: ## solvers of pruning on single layers, beside the published ADMM in PyTorch, where a python3 has it
	go run ./internal/bench/prune

bench-search: ## searches at equal bytes on a real model, beside uniform levels and dynamic programming; MODEL=resnet20
	go run ./internal/bench/search -data $(DATA) -model $(or $(MODEL),resnet20)

bench-loader: ## opening and streaming checkpoints of 2 GB, beside torch.load, where a python3 has it
	go run ./internal/bench/loader

bench-llama: build ## time and memory of a Llama of 1.1B random parameters; 2.2 GB of disk, a quarter of an hour
	[ -d build/llama ] || bin/fettle random-llama build/llama
	go run ./internal/bench/llama -model build/llama

clean: ## removes what was built
	rm -rf bin build

# The tools' versions are pinned in a module of their own. The first build of
# golangci-lint takes some minutes; bin/ keeps it.
bin/golangci-lint: tools/go.mod tools/go.sum
	cd tools && go build -buildvcs=false -o ../bin/ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

bin/gofumpt: tools/go.mod tools/go.sum
	cd tools && go build -buildvcs=false -o ../bin/ mvdan.cc/gofumpt

bin/benchstat: tools/go.mod tools/go.sum
	cd tools && go build -buildvcs=false -o ../bin/ golang.org/x/perf/cmd/benchstat
