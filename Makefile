# make demo   the whole DiffAUD pipeline on the embedded Digits data (7 minutes on 2 CPU cores) -> runs/demo/report.html
# make table-fusiondistill DATASET=Digits SEEDS=3   every approach of FusionDistill's table, over three seeds -> runs/fusiondistill/Digits
# make table-diffaud DATASET=CIFAR10   source, DDA, the two distilled classifiers, DiffAUD -> runs/diffaud/CIFAR10
# make table-sda DATASET=Digits   the same and SDA: the classifier fine-tuned on generated images -> runs/sda/Digits
# make table-decorruptor DATASET=Digits   the latent editor and DDA in few steps, beside DDA -> runs/decorruptor/Digits
# make table-repfusion DATASET=Digits SEEDS=3   what a diffusion model sees, and its students know -> runs/repfusion/Digits
# make table-repfusion-start DATASET=Digits   after it: DiffAUD's classifiers started from those students
# make table-tta DATASET=Digits   test-time adaptation of classifiers, under several protocols -> runs/tta/Digits
# make table-adapters DATASET=Digits   adapters of images by gain and cost, alone, summed, weighted, gated -> runs/adapters/Digits
# make bench   every part against the reference way, 4 minutes on 2 CPU cores -> runs/bench
# make docs   the documentation as a site with a search -> build/docs
# make test   the test suite            make lint   style, format and types          make test-all   with the slow tests
# Another data set: make demo DATASET=path/to/images OUT=runs/mine    Options of the pipeline: ARGS="--ranks 8" (docs/configuration.md)

PYTHON  ?= python3
VENV    ?= .venv
DATASET ?= Digits
OUT     ?= runs/demo
ARGS    ?=
ARCH    ?=
SEEDS   ?= 1
BIN     := $(VENV)/bin
# an MPI of the machine is used if there is one, else the one from PyPI
MPI     := $(if $(shell command -v mpiexec 2>/dev/null),mpi,mpich)
READY   := $(VENV)/.ready
SITE    := $(VENV)/.docs

.PHONY: demo table-fusiondistill table-diffaud table-sda table-decorruptor table-repfusion table-repfusion-start table-tta table-adapters bench docs test test-all lint types install clean

demo: $(READY)
	$(BIN)/python utils/pipeline.py -c configs/pipelines/demo.yaml --dataset $(DATASET) --out $(OUT) --jobs 2 $(ARGS)

# what is trained for which data set is said in configs/pipelines
table-fusiondistill table-diffaud table-sda table-decorruptor table-repfusion table-repfusion-start table-tta table-adapters: $(READY)
	$(BIN)/python utils/pipeline.py -c configs/pipelines/$(subst -,_,$(@:table-%=%)).yaml --dataset $(DATASET) \
	  --seeds $(shell seq -s, 1 $(SEEDS)) $(addprefix --arch ,$(ARCH)) $(ARGS)

bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks $(ARGS)

docs: $(SITE)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/docs/index.html; with the search: $(BIN)/python -m http.server -d build/docs"

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" --durations 10

test-all: $(READY)
	HYPOTHESIS_PROFILE=many OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations 20

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory types

types: $(READY)
	mkdir -p .links/undegrade
	ln -sfn $(addprefix ../../,$(wildcard undegrade/*.py) utils models trainers image_adapt evaluation train.py train_all_deg.py test.py test_ensemble.py) .links/undegrade/
	$(BIN)/mypy

install: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("undegrade needs Python 3.10 or newer, $(PYTHON) is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -qq --editable ".[dev,$(MPI)]"
	touch $(READY)

$(SITE): $(READY)
	$(BIN)/python -m pip install -qq --editable ".[docs]"
	touch $(SITE)

clean:
	rm -rf $(VENV) runs build/docs .pytest_cache .hypothesis .ruff_cache .mypy_cache .links
