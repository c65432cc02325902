# Shardwright's commands. `make` lists them. Each sets up what it needs, once, and says so:
#   system packages (apt-get when root)  ->  .venv  ->  build/  ->  the command itself

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory --no-builtin-rules

PYTHON ?= python3
JOBS ?= $(shell nproc)
VENV := .venv
IN_VENV := $(VENV)/bin/python
TOOLS := $(VENV)/tools
comma := ,
say = @printf '\n== %s\n' "$(1)"

.PHONY: help demo test check stub lint format bench fuzz sanitize peers compare engines docs clean build
help: ## list the commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

demo: module ## generate a small checkpoint, load it on two ranks, check it and print the figures
	$(call say,demo)
	@$(IN_VENV) examples/demo.py

# Tests of one file share what they set up. In the order of conftest.py: what takes long begins first.
SEVERAL_FILES := --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

test: build $(TOOLS) ## run every C++ and Python test
	@.ci/system_packages $(SHELLS) || echo 'Going on without: tests of completion are skipped.'
	$(call say,C++ tests)
	@ctest --test-dir build --parallel $(JOBS) --timeout 300 --output-on-failure
	$(call say,Python tests)
	@$(TO_BYTECODE) -m pytest $(SEVERAL_FILES)

# What a check leaves to `make test`: ranks and processes, which first import torch; what goes through every family in Python,
# as C++ does here; four of five examples of each property, and in C++ of those that take long; the C++ tests in which each
# allocation fails in turn, those of devices that are acted, and the simulation of the full model; and kernels/, whose tests go
# through all codes.
check: export SHARDWRIGHT_PROPERTY_EXAMPLES := 20
SHORT := --gtest_brief=1 --gtest_filter=-failing_allocations.*:device_*:*devices*:*.a_device_*:simulate.the_full_model_*
on_all_cores = seq 0 7 | GTEST_TOTAL_SHARDS=8 xargs -P $(JOBS) -I% env GTEST_SHARD_INDEX=% $(1)

check: build $(TOOLS) ## for every few minutes: formats, lint of what has changed, and the tests that start no processes
	$(call say,formats and types)
	@$(IN_VENV) -m ruff check --quiet
	@$(IN_VENV) -m ruff format --check --quiet
	@$(IN_VENV) -m mypy
	@$(if $(shell command -v clang-format-14),clang-format-14 --dry-run -Werror $(CXX_FILES))
	@$(if $(shell command -v clang-tidy-14),$(MAKE) -j$(JOBS) tidy-changed)
	$(call say,C++ tests)
	@cd build && for room in planner storage; do $(call on_all_cores,tests/shardwright_$${room}_test $(SHORT)); done
	$(call say,Python tests)
	@$(TO_BYTECODE) -m pytest --quiet $(SEVERAL_FILES) -m "not (ranks or process or families)"

# --- system packages ---------------------------------------------------------------------------------------------------
# Only what is missing is installed. An interpreter that is not Debian's brings venv and headers of its own.

PACKAGES := g++ cmake ninja-build ccache libprotobuf-dev protobuf-compiler nlohmann-json3-dev libgtest-dev libhwy-dev \
  libbenchmark-dev liburing-dev libxxhash-dev
LINT_PACKAGES := clang-format-14 clang-tidy-14
# Whose completion is tested. Where they are not there, those tests are skipped.
SHELLS := zsh fish
has = $(shell $(PYTHON) -c 'import ensurepip, os, sysconfig; $(1)' 2>/dev/null && echo yes)
PYTHON_PACKAGES = $(if $(call has,),,python3-venv) \
  $(if $(call has,os.stat(sysconfig.get_path("include") + "/Python.h")),,python3-dev)

.PHONY: system lint-system
system:
	@.ci/system_packages $(PACKAGES) $(PYTHON_PACKAGES)
lint-system: system
	@.ci/system_packages $(LINT_PACKAGES)

# --- .venv -------------------------------------------------------------------------------------------------------------
# The stamp vouches for this folder, an interpreter that runs and the pinned torch. When one of them has changed, it is
# thrown away and the environment is set up anew.

STAMP := $(VENV)/stamp
PRINT_STATE := $(IN_VENV) -c 'import sys; from importlib.metadata import version; \
  print("$(CURDIR)", "python", sys.version.split()[0], "torch", version("torch"))'
ifneq ($(shell $(PRINT_STATE) 2>/dev/null),$(shell cat $(STAMP) 2>/dev/null))
$(shell rm -f $(STAMP))
endif

# pip would compile all of torch, half of its time; the demo uses a tenth. What tests use is compiled with their tools, and
# what they are and test by the first run of them, wherever Python is told to write no bytecode.
TO_BYTECODE := env -u PYTHONDONTWRITEBYTECODE $(IN_VENV)

$(STAMP): .ci/requirements.txt | system
	$(call say,.venv: Python environment with $(shell grep '^torch' $<))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=...")'
	@$(IN_VENV) -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(IN_VENV) -m pip install --no-compile --quiet --quiet --requirement $<
	@$(TO_BYTECODE) -c 'import torch.distributed.checkpoint, torch.distributed.tensor'
	@$(IN_VENV) -c 'import sysconfig; print("$(CURDIR)/python_shim", \
	  file=open(sysconfig.get_path("purelib") + "/shardwright.pth", "w"))'
	@printf '#!/bin/sh\nexec "$(CURDIR)/$(IN_VENV)" -m shardwright "$$@"\n' >$(VENV)/bin/shardwright
	@chmod +x $(VENV)/bin/shardwright
	@$(PRINT_STATE) >$@

# What tests, lints and measures, which `make demo` need not wait for.
$(TOOLS): .ci/requirements-tools.txt $(STAMP)
	$(call say,.venv: what tests and lints)
	@$(IN_VENV) -m pip install --no-compile --quiet --quiet --requirement $<
	@$(TO_BYTECODE) -m compileall -qq -j $(JOBS) $(VENV)/lib || true # templates among what is installed are no Python
	@touch $@

# --- build/ ------------------------------------------------------------------------------------------------------------
# The Python module is built beside the package, which .venv finds where it lies: edits of Python need no build.

# ccache looks into precompiled headers only if it is told to.
CCACHE = $(if $(shell command -v ccache),\
  -D CMAKE_CXX_COMPILER_LAUNCHER="cmake;-E;env;CCACHE_SLOPPINESS=pch_defines$(comma)time_macros;ccache" \
  -D CMAKE_CUDA_COMPILER_LAUNCHER=ccache)

# Machine code takes half a minute for each architecture. Without a GPU there is PTX alone, of the oldest: any later one runs it.
CUDA = $(if $(wildcard /dev/nvidia[0-9]* /dev/dxg),,-D CMAKE_CUDA_ARCHITECTURES=80-virtual)

build/build.ninja: $(STAMP)
	$(call say,build: configure)
	@cmake --fresh -G Ninja -S . -B build -D Python3_EXECUTABLE="$(CURDIR)/$(IN_VENV)" \
	  -D SHARDWRIGHT_MODULE_DIR="$(CURDIR)/python_shim/shardwright" $(CUDA) $(CCACHE)
	@touch $@

build: system build/build.ninja ## compile
	@ninja -C build

# What Python runs, without tests and benchmarks.
.PHONY: module
module: system build/build.ninja
	@ninja -C build shardwright_core

# --- lint --------------------------------------------------------------------------------------------------------------

CXX_FILES := $(shell find include kernels planner storage python_shim tests bench -name '*.h' -o -name '*.cpp' -o -name '*.cu')
# torch's headers take a minute a file and are not ours; CUDA's are not on every machine. Large files come first.
TIDY_FILES := $(shell find kernels planner storage bench -name '*.cpp' -exec grep -LE '^.include.*(<(torch|ATen|c10)/|<cuda_|torch_tensor|exchange\.h)' {} + | xargs ls -S)

.PHONY: lint-python lint-cpp
lint: lint-python lint-cpp ## check format, types and common mistakes
lint-python: $(TOOLS)
	$(call say,ruff and mypy)
	@$(IN_VENV) -m ruff check
	@$(IN_VENV) -m ruff format --check
	@$(IN_VENV) -m mypy
lint-cpp: lint-system build
	$(call say,clang-format)
	@clang-format-14 --dry-run -Werror $(CXX_FILES)
	$(call say,clang-tidy)
	@$(MAKE) -j$(JOBS) tidy

.PHONY: tidy
tidy: $(TIDY_FILES:%=build/tidy/%.ok)
	@:

# What differs from the last commit, and what that commit changed.
CHANGED = $(shell git diff --name-only --diff-filter=d HEAD~1 2>/dev/null; git ls-files --others --exclude-standard)
.PHONY: tidy-changed
tidy-changed: $(patsubst %,build/tidy/%.ok,$(filter $(CHANGED),$(TIDY_FILES)))
	@:

# One file is looked at again when it, a header or the rules have changed; ccache knows which headers are its own.
build/tidy/%.ok: % .clang-tidy .ci/tidy.py $(filter %.h,$(CXX_FILES))
	@echo $<
	@mkdir -p $(@D)
	@.ci/tidy.py $< $@

stub: module $(TOOLS) ## write the stub of the compiled module anew
	@$(IN_VENV) .ci/core_stub.py

format: lint-system $(TOOLS) ## format all C++ and Python
	@clang-format-14 -i $(CXX_FILES)
	@$(IN_VENV) -m ruff format
	@$(IN_VENV) -m ruff check --fix

bench: build $(TOOLS) peers ## measure kernels, loading beside the peers (a table, JSON and a picture in build/bench), saves, exports
	$(call say,kernels)
	@build/bench/encodings
	@build/bench/kernels
	$(call say,load)
	@$(IN_PEERS) bench/peers.py
	$(call say,adapter)
	@$(IN_PEERS) bench/adapter.py
	$(call say,ranks of a node)
	@$(IN_VENV) bench/node.py
	$(call say,save)
	@$(IN_VENV) bench/save.py
	$(call say,export)
	@$(IN_VENV) bench/export.py
	$(call say,planning)
	@$(IN_PEERS) bench/planning.py --ranks 1024 --no-torch

# --- wheel -------------------------------------------------------------------------------------------------------------

WHEEL_PACKAGES := dpkg-dev
.PHONY: wheel
# WHEEL_PYTHONS="python3.10 python3.12" builds for these, too; each needs its headers.
WHEEL_PYTHONS :=
wheel: system $(STAMP) ## build a wheel for machines without a compiler into dist/, and try it in a fresh environment
	@.ci/system_packages $(WHEEL_PACKAGES)
	$(call say,dist: wheel)
	@.ci/wheel $(CURDIR)/$(IN_VENV) $(WHEEL_PYTHONS)
	$(call say,the wheel in a fresh environment)
	@.ci/try_wheel
	@for python in $(WHEEL_PYTHONS); do PYTHON=$$python .ci/try_wheel; done

# --- .venv-peers -------------------------------------------------------------------------------------------------------
# The libraries that ours is compared with, in an environment of their own: they are large and pin what ours need not.
# nemo-automodel comes without its dependencies, as it asks for CUDA and far more than its models' adapters use; so does torchtitan.

PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/stamp
IN_PEERS := $(PEERS)/bin/python
NEMO_AUTOMODEL := nemo-automodel==0.7.0
TORCHTITAN := torchtitan==0.3.0

# The stamp holds what the environment is for. Where that has changed, what differs is installed beside what is there; only
# what asks for the peers does so, and no other command takes the stamp away.
PEERS_STATE = $(CURDIR) $(shell $(PYTHON) --version) $(NEMO_AUTOMODEL) $(TORCHTITAN)
ifneq ($(PEERS_STATE),$(shell $(IN_PEERS) --version >/dev/null 2>&1 && cat $(PEERS_STAMP) 2>/dev/null))
.PHONY: $(PEERS_STAMP)
endif

$(PEERS_STAMP): .ci/requirements-peers.txt | system
	$(call say,$(PEERS): Python environment with $(shell grep '^transformers' $<), $(NEMO_AUTOMODEL) and $(TORCHTITAN))
	@$(IN_PEERS) -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(PEERS)
	@$(IN_PEERS) -m pip install --quiet --quiet --requirement $<
	@$(IN_PEERS) -m pip install --quiet --quiet --no-deps $(NEMO_AUTOMODEL) $(TORCHTITAN)
	@$(IN_PEERS) -c 'import sysconfig; print("$(CURDIR)/python_shim", \
	  file=open(sysconfig.get_path("purelib") + "/shardwright.pth", "w"))'
	@echo '$(PEERS_STATE)' >$@

peers: $(PEERS_STAMP) ## set up the libraries that ours is compared with

compare: build peers ## check that results equal those of the peers: trainers, peft, quantizers
	$(call say,comparison with peers)
	@$(IN_PEERS) -m pytest tests/peers
	$(if $(SHARDWRIGHT_TORCH_SOURCE),$(call say,torch's own tests with ours in torch's place))
	$(if $(SHARDWRIGHT_TORCH_SOURCE),@$(IN_PEERS) tests/torch_own/run.py)

# Engines whose own classes our doorways are compared with. Their wheels bring CUDA and another torch, which only these two
# tests are shown: 2 GB on disk.
ENGINES := build/engines
$(ENGINES)/stamp: .ci/requirements-engines.txt $(PEERS_STAMP)
	$(call say,$(ENGINES): $(shell grep '^vllm' $<), $(shell grep '^sglang' $<))
	@$(IN_PEERS) -m pip install --quiet --quiet --no-deps --no-compile --upgrade --target $(ENGINES) --requirement $<
	@touch $@

engines: build peers $(ENGINES)/stamp ## check that vLLM's and sglang's own classes take what they are handed
	$(call say,comparison with engines)
	@PYTHONPATH=$(ENGINES) $(IN_PEERS) -m pytest tests/peers/test_vllm_weight_transfer.py tests/peers/test_sglang_weight_update.py

# --- fuzzing -----------------------------------------------------------------------------------------------------------

FUZZ_SECONDS ?= 600
FUZZ_PACKAGES := clang-14 libclang-rt-14-dev

fuzz: system ## fuzz the decoders of what comes from disk, from other ranks and from servers, FUZZ_SECONDS (600) each
	@.ci/system_packages $(FUZZ_PACKAGES)
	$(call say,build/fuzz)
	@cmake -G Ninja -S . -B build/fuzz -D SHARDWRIGHT_FUZZ=ON -D CMAKE_CXX_COMPILER=clang++-14 \
	  -D SHARDWRIGHT_BUILD_PYTHON=OFF -D SHARDWRIGHT_BUILD_BENCHMARKS=OFF $(CCACHE)
	@ninja -C build/fuzz shardwright_wire_fuzz shardwright_files_fuzz shardwright_http_fuzz
	$(call say,fuzzing)
	@cd build/fuzz && for target in wire files http; do \
	  tests/shardwright_$${target}_fuzz --seeds=corpus_$$target; \
	  tests/shardwright_$${target}_fuzz -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=$$target- corpus_$$target; \
	done

# --- sanitizers --------------------------------------------------------------------------------------------------------
# g++'s, whose run-time libraries come with it. The Python module is built beside links to the package, which is put before
# the other one; the run-time libraries are loaded before Python. LeakSanitizer is for the C++ tests alone: Python and torch
# never free much of what they have, and each stack of ours has their frames, so that no suppression could tell them apart.
# Stacks in place of used ones would not be aligned for 64-byte vectors (GCC bug 110027).
# What is reported ends the test: nothing is only a warning. tests/sanitizers/ says what of others is passed over, and why.

SANITIZED := bad_files bad_input safetensors_attacks mutated_checkpoints sharded load layouts encodings export lora \
  lora_refusals adapter generate devices property dcp_load cooperative changed_pieces refit uploads ranks
# What ThreadSanitizer sees of processes under torchrun is torch's (Gloo's futures) and Python's own; forks it does not follow.
THREADED_PYTHON := bad_files bad_input safetensors_attacks sharded load encodings
# C++ programs that use torch are left out: its libraries are not built with ThreadSanitizer.
THREADED := $(foreach folder,kernels planner storage,shardwright_$(folder)_test)
sanitized = cmake -G Ninja -S . -B build/$(1) -D SHARDWRIGHT_SANITIZE=$(2) -D CMAKE_BUILD_TYPE=RelWithDebInfo \
  -D Python3_EXECUTABLE="$(CURDIR)/$(IN_VENV)" -D SHARDWRIGHT_BUILD_BENCHMARKS=OFF -D SHARDWRIGHT_BUILD_CUDA=OFF \
  -D CMAKE_COMPILE_WARNING_AS_ERROR=OFF $(CCACHE) $(3)
run_time = $(subst $(eval) ,:,$(foreach name,$(1),$(realpath $(shell g++ -print-file-name=lib$(name).so))))
in_sanitizers = TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:suppressions=$(CURDIR)/tests/sanitizers/thread.txt \
  LSAN_OPTIONS=suppressions=$(CURDIR)/tests/sanitizers/leak.txt:print_suppressions=0 UBSAN_OPTIONS=print_stacktrace=1 ASAN_OPTIONS=detect_stack_use_after_return=0:$(1)
python_under = (cd build/$(1)/python/shardwright && ln -sfn ../../../../python_shim/shardwright/*.py* \
    $(patsubst %/__init__.py,../../../../%,$(wildcard python_shim/shardwright/*/__init__.py)) .) && \
  $(call in_sanitizers,$(3)) LD_PRELOAD="$(call run_time,$(2))" PYTHONMALLOC=malloc PYTHONPATH=build/$(1)/python \
  $(IN_VENV) -m pytest -q -p no:cacheprovider $(addprefix tests/python/test_,$(addsuffix .py,$(4)))

sanitize: system $(TOOLS) ## run the C++ tests and the Python module under address, undefined and thread sanitizers
	$(call say,build/sanitize: address and undefined)
	@$(call sanitized,sanitize,address) && nice ninja -C build/sanitize -j$(JOBS)
	@$(call in_sanitizers,detect_leaks=1) ctest --test-dir build/sanitize --parallel $(JOBS) --timeout 1200 --output-on-failure
	$(call say,the Python module: address and undefined)
	@$(call python_under,sanitize,asan ubsan stdc++,detect_leaks=0:allocator_may_return_null=1,$(SANITIZED))
	$(call say,build/tsan: thread)
	@$(call sanitized,tsan,thread,-D SHARDWRIGHT_BUILD_PYTHON=ON) && nice ninja -C build/tsan -j$(JOBS) $(THREADED) cufile shardwright_core
	@$(call in_sanitizers) ctest --test-dir build/tsan --exclude-regex '^(cpp|torch)\.' --parallel $(JOBS) --timeout 1200 --output-on-failure
	$(call say,the Python module: thread)
	@$(call python_under,tsan,tsan,,$(THREADED_PYTHON))

# --- documentation -----------------------------------------------------------------------------------------------------
# Built from docs/ and the package's docstrings, which are read and not imported: nothing need be compiled, and the tools,
# once they are there, ask nothing of the network. A warning is an error.

DOCS_TOOLS := build/docs/tools
$(DOCS_TOOLS)/stamp: .ci/requirements-docs.txt
	@.ci/system_packages $(filter python3-venv,$(PYTHON_PACKAGES))
	$(call say,$(DOCS_TOOLS): $(shell grep '^mkdocs-material' $<))
	@$(PYTHON) -m venv --clear $(DOCS_TOOLS)
	@$(DOCS_TOOLS)/bin/python -m pip install --quiet --quiet --requirement $<
	@touch $@

docs: $(DOCS_TOOLS)/stamp ## build the documentation into build/docs/site: open index.html there
	$(call say,build/docs/site)
	@NO_MKDOCS_2_WARNING=1 $(DOCS_TOOLS)/bin/python -m mkdocs build --strict

clean: ## remove all that the other commands made here
	rm -rf $(VENV) $(PEERS) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f python_shim/shardwright/_*.so
	find python_shim tests bench examples -name __pycache__ -prune -exec rm -rf {} +
