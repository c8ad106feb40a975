# make demo    everything from nothing: data, teacher, labels, two students, one table
# make test    format, lints, unit and end-to-end tests, readers that are not ours
# make teacher-labels RECIPE=… [DEVICE=cpu]     stage 1 of a real run
# make train-student  RECIPE=… [DEVICE=cpu]     stage 2 of a real run
# make schemas  the published schemas made again from the types
# make bench   ratios against PyTorch on this machine, and label layouts of ours and of others
# make selections   what each selection of labels costs and gives: the tables and plots of docs/selections.md
# make gpu     a GPU against the CPU, and its speed beside PyTorch: one table, in less than ten minutes (docs/gpu.md)
# make lavapipe  what runs on GPUs, on one that is none, against the CPU (Debian: mesa-vulkan-drivers)
# make peers   golden files made again with PyTorch, and our files read by it
.PHONY: build demo test lint schemas teacher-labels train-student bench selections lavapipe peers check-cuda gpu gpu-program

CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR
SOFTSHARD := $(CARGO_TARGET_DIR)/debug/softshard
DEVICE ?= cpu
# Builds for GPUs where there is none: what is compiled only to be checked, or runs in small.
QUICKLY := --config .cargo/quickly.toml

build:
	cargo build --locked --workspace --bins

demo: build
	$(SOFTSHARD) demo-data runs/demo/data
	@echo "── the teacher learns the task ──"
	$(SOFTSHARD) prepare pipelines/demo.toml
	$(SOFTSHARD) finetune pipelines/demo.toml
	@echo "── stage 1: the teacher writes labels ──"
	$(SOFTSHARD) teacher-labels pipelines/demo.toml
	@$(SOFTSHARD) labels stats runs/demo/labels/train --html runs/demo/labels.html > /dev/null
	@echo "page: runs/demo/labels.html"
	@echo "── a smaller model learns the language ──"
	$(SOFTSHARD) prepare pipelines/demo-start.toml
	$(SOFTSHARD) train-student pipelines/demo-start.toml
	@echo "── stage 2: it learns the task twice, without and with the labels, never from the teacher ──"
	$(SOFTSHARD) train-student pipelines/demo.toml --set output.student=alpha-0 --set student.loss.alpha=0
	$(SOFTSHARD) train-student pipelines/demo.toml --set output.student=alpha-3 --set student.loss.alpha=3
	@echo "── scores on held-out articles ──"
	rm -rf runs/demo/evaluations
	$(SOFTSHARD) evaluate pipelines/demo.toml --set output.student=alpha-0
	$(SOFTSHARD) evaluate pipelines/demo.toml --set output.student=alpha-3
	$(SOFTSHARD) evaluate pipelines/demo.toml --set evaluate.model=../runs/demo/teacher/model --set evaluate.name=teacher
	@echo
	@$(SOFTSHARD) report pipelines/demo.toml
	@echo "── what of the difference 300 articles carry ──"
	@$(SOFTSHARD) compare runs/demo/evaluations/alpha-0 runs/demo/evaluations/alpha-3

test: lint
	cargo test --locked --workspace
	tests/peers/ci.sh

lint:
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet --package softshard-labels

schemas: build
	rm -rf schemas
	$(SOFTSHARD) schema --all schemas

teacher-labels train-student: build
	@test -n "$(RECIPE)" || { echo "usage: make $@ RECIPE=pipelines/<name>.toml [DEVICE=cpu]"; exit 2; }
	$(SOFTSHARD) $@ $(RECIPE) --device $(DEVICE)

bench: build
	cargo build --locked --workspace --examples
	$$(tests/peers/venv.sh ci) tests/peers/bench_labels.py $(SOFTSHARD)
	$$(tests/peers/venv.sh torch) tests/peers/bench_head.py $(SOFTSHARD)
	$$(tests/peers/venv.sh torch) tests/peers/bench.py $(SOFTSHARD)
	$$(tests/peers/venv.sh torch) tests/peers/bench_generate.py $(SOFTSHARD)
	$$(tests/peers/venv.sh torch) tests/peers/bench_labelling.py $(SOFTSHARD)
	$$(tests/peers/venv.sh torch) tests/peers/bench_training.py $(SOFTSHARD)
	$$(tests/peers/venv.sh torch) tests/peers/bench_full.py $(SOFTSHARD)
	$$(tests/peers/venv.sh lm_eval) tests/peers/bench_choices.py $(SOFTSHARD)

selections: build
	cargo build --locked --workspace --examples
	$(SOFTSHARD) prepare pipelines/stories260k-to-tiny.tinystories.toml
	$(dir $(SOFTSHARD))examples/selections --plot docs/selections-made-up.svg
	$(dir $(SOFTSHARD))examples/selections --plot docs/selections-stories260k.svg \
		../shared/data/stories260k/hf runs/stories260k-to-tiny.tinystories/sequences/train

peers: build
	cargo build --locked --workspace --examples
	tests/peers/peers.sh $(SOFTSHARD)

# A GPU that is none: Mesa's Vulkan on the CPU, through Burn's WebGPU backend.
lavapipe: export CARGO_TARGET_DIR := $(CARGO_TARGET_DIR)/lavapipe
lavapipe:
	cargo $(QUICKLY) test --locked --workspace --features softshard-cli/wgpu,softshard-e2e/wgpu --test gpu_head --test gpu_losses --test wgpu
	cargo $(QUICKLY) test --locked --workspace --features softshard-cli/wgpu,softshard-e2e/wgpu --bins --lib -- lost_task no_kernel_wrote

# Nothing is optimised: what is compiled here only runs while it is checked. Tensors are larger with a GPU's among them.
check-cuda:
	cargo $(QUICKLY) clippy --locked --workspace --bins --example gpu \
		--features softshard-cli/cuda -- -D warnings -A clippy::large-enum-variant

gpu:
	@tests/gpu/gpu.sh

# The program of `make gpu` for a machine without cargo: SOFTSHARD_GPU=…/gpu.xz make gpu
gpu-program:
	cargo build --locked --workspace --example gpu --features softshard-cli/cuda
	strip -o $(CARGO_TARGET_DIR)/gpu $(CARGO_TARGET_DIR)/debug/examples/gpu
	xz --force --threads=0 $(CARGO_TARGET_DIR)/gpu
	@ls -l $(CARGO_TARGET_DIR)/gpu.xz
