# Targets are printed by `make help`, from the comments behind ##.
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
FUZZTIME ?= 20s

.DEFAULT_GOAL := help
.PHONY: help demo build build-all test process scenarios conformance check fuzz mutate bench e2e clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: build ## three hosts form a mesh and a VirtualService splits traffic; CHECK=1 only checks and exits
	./bin/meshagent demo $(if $(CHECK),--check)

# cpu.pgo says where the data path spends its time: PROFILE=1 test/bench/proxy/run.sh makes it anew.
build: ## bin/meshagent, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -pgo=cmd/meshagent/cpu.pgo -ldflags '$(LDFLAGS)' -o bin/meshagent ./cmd/meshagent

build-all: ## does it build for every system we promise
	for os in linux darwin windows freebsd; do echo $$os; GOOS=$$os CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/meshagent && GOOS=$$os $(GO) vet ./... || exit 1; done

# Without GORACE each program under the race detector would wait a second before it ends.
test: ## all tests, with the race detector, in random order
	GORACE=atexit_sleep_ms=0 $(GO) test -race -shuffle=on ./...

process: ## real agents as processes, killed and measured; takes times, so nothing else should run
	$(GO) test -tags process -count=1 -v ./test/process

scenarios: ## the pages of docs/tasks, each as a script in a mesh of real agents
	$(GO) test -tags process -count=1 ./test/scenario

conformance: ## h2spec, gRPC interop, connect conformance, WebSocket, curl, nginx and HAProxy, through two real agents
	$(GO) test -tags process -count=1 -v ./test/conformance

check: ## formatting, vet, fixes, lint, modules, import rules, all systems
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "run: gofmt -w ."; exit 1; }
	$(GO) vet ./... && $(GO) vet -tags process ./test/lab ./test/process ./test/scenario ./test/conformance
	@d="$$($(GO) fix -diff ./... 2>&1)"; test -z "$$d" || { echo "$$d"; echo "run: go fix ./..."; exit 1; }
	$(GO) tool -modfile=tool.mod staticcheck ./...
	$(GO) mod tidy -diff
	$(GO) test -run 'TestImportRules|TestTreeRules' ./test
	$(MAKE) build-all

fuzz: ## every fuzz target for FUZZTIME (20s)
	$(GO) run ./test/fuzzall -time $(FUZZTIME)

mutate: ## change the code of authorization in one place after the other: do its tests notice? two hours
	$(GO) run ./test/mutate -least 90
	$(GO) run ./test/mutate -files tokenout.go -first 'Token|UserHeaders|Claims|Bad' -then Token -least 90
	$(GO) run ./test/mutate -files tokenkeys.go -first 'Token|Key|Bad' -then Token -least 90
	$(GO) run ./test/mutate -pkg ./proxy -files inbound.go -first 'Authz|Authorize|Token|Peer|Forged' -then . -least 90
	$(GO) run ./test/mutate -pkg ./proxy -files 'extauthz*.go' -first 'ExternalAuth|S49|Check|PartsOf|TestSeen|TestUnary|TestDenied|HasBody' -then S49 -every 5 -least 90

bench: ## Go benchmarks, and the benches beside peers in test/bench
	$(GO) test -run NONE -bench . -benchmem ./...
	for b in test/bench/*/run.sh; do bash $$b || exit 1; done

e2e: build ## the same on three hosts with real systemd (root; systemd-container, mmdebstrap, iproute2)
	bash test/e2e/hosts.sh

clean: ## remove what was built
	rm -rf bin dist
