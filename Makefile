# The commands of this repository. `make demo` and `make test` work from a bare clone.

PYTHON ?= python3
VENV ?= .venv
BIN ?= $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Folder of the demonstration, number of phantoms, and further options of its training.
DEMO ?= demo
PHANTOMS ?= 400
NEW_PHANTOMS ?= 60
DEMO_TRAIN ?=
# An X-ray for the shipped model: make demo IMAGE=chest.png
IMAGE ?=

PYTEST_OPTIONS ?= -n 2 --dist worksteal

# `make node-demo` sends X-rays of this folder.
NODE_XRAYS ?= $(if $(filter command line environment,$(origin XRAYS)),$(XRAYS),$(if $(PNEUMOSCOPE_DATA),$(PNEUMOSCOPE_DATA)/kermany-original))

# `make bundle` trains the shipped model on these: images, lung masks of the same names, adults as additional
# training data, and images of other kinds for the gate to reject.
XRAYS ?= $(if $(PNEUMOSCOPE_DATA),$(PNEUMOSCOPE_DATA)/kermany-224)
MASKS ?= $(if $(PNEUMOSCOPE_DATA),$(PNEUMOSCOPE_DATA)/lung-masks-224)
ADULTS ?= $(if $(PNEUMOSCOPE_DATA),$(PNEUMOSCOPE_DATA)/nih-adult)
NOT_CHEST ?= $(if $(PNEUMOSCOPE_DATA),$(PNEUMOSCOPE_DATA)/not-chest)
SHIPPED := src/pneumoscope/bundles/default

.PHONY: help setup demo node-demo test check faults docs tutorial bundle clean
.DEFAULT_GOAL := help

help:
	@echo 'make setup    virtual environment $(VENV) with everything in it'
	@echo 'make demo     draw phantoms, train, evaluate and predict; IMAGE=chest.png runs the shipped model on it'
	@echo 'make node-demo Orthanc as archive, the DICOM node, ten X-rays; XRAYS=folder'
	@echo 'make test     run the tests'
	@echo 'make faults   the long fault tests of the DICOM node: hours'
	@echo 'make check    lint, types, import contracts and tests'
	@echo 'make docs     build the documentation into build/docs'
	@echo 'make tutorial run the walkthrough notebook and rebuild its page'
	@echo 'make bundle   train the shipped model again; XRAYS=folder MASKS=folder ADULTS=folder NOT_CHEST=folder'
	@echo 'make clean    remove what the others made, except $(VENV) and runs/'

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	@rm -rf '$(DEMO)/phantoms' '$(DEMO)/run' '$(DEMO)/new' '$(DEMO)/evaluated' '$(DEMO)/heatmaps'
	@echo; echo '== Draw $(PHANTOMS) phantoms: synthetic chest X-rays'
	$(BIN)/pneumoscope data phantom '$(DEMO)/phantoms' --n $(PHANTOMS)
	@echo; echo '== Train a small network on them, calibrate it, evaluate it on held-out patients'
	$(BIN)/pneumoscope train phantom --data '$(DEMO)/phantoms' --out '$(DEMO)/run' $(DEMO_TRAIN)
	@echo; echo '== Evaluate it on new phantoms, drawn with another seed'
	$(BIN)/pneumoscope data phantom '$(DEMO)/new' --seed 1 --n $(NEW_PHANTOMS)
	$(BIN)/pneumoscope evaluate '$(DEMO)/new' --bundle '$(DEMO)/run' --out '$(DEMO)/evaluated'
	@echo; echo '== Predict them, with a heat map of each'
	$(BIN)/pneumoscope predict '$(DEMO)/new' --bundle '$(DEMO)/run' --out '$(DEMO)/predictions.csv' --heatmaps '$(DEMO)/heatmaps'
	@head -n 4 '$(DEMO)/predictions.csv'
	@echo
	@echo 'Report of the training:   $(DEMO)/run/report.html'
	@echo 'Report on new phantoms:   $(DEMO)/evaluated/report.html'
	@echo 'Predictions, heat maps:   $(DEMO)/predictions.csv, $(DEMO)/heatmaps/'
	@echo 'Phantoms are easy: this shows that training works, and nothing about real X-rays.'
ifneq ($(strip $(IMAGE)),)
	@echo; echo '== The shipped model, trained on real X-rays, on $(IMAGE)'
	$(BIN)/pneumoscope predict '$(IMAGE)'
else
	@echo 'The shipped model was trained on real X-rays; run it:  $(BIN)/pneumoscope predict chest.png'
endif

node-demo: $(INSTALLED)
	@test -d '$(NODE_XRAYS)' || { echo 'make node-demo XRAYS=folder' >&2; exit 2; }
	$(BIN)/python deploy/node_demo.py '$(NODE_XRAYS)'

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

# What was measured is appended to build/faults.jsonl; docs/reference/reliability.md has it.
faults: $(INSTALLED)
	mkdir -p build
	PNEUMOSCOPE_FAULTS=long PNEUMOSCOPE_FAULTS_OUT=build/faults.jsonl $(BIN)/python -m pytest tests/faults --durations=0

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict

tutorial: $(INSTALLED)
	$(BIN)/python notebooks/build_page.py

bundle: $(INSTALLED) build/bundle/run/report.html
	rm -rf $(SHIPPED)
	$(BIN)/pneumoscope export build/bundle/run --out $(SHIPPED)

# Each step is done once; the training continues from its last epoch.
build/bundle/lungs/lungs.onnx:
	@test -d '$(XRAYS)' && test -d '$(MASKS)' || { echo 'make bundle XRAYS=folder MASKS=folder' >&2; exit 2; }
	$(BIN)/pneumoscope train-lungs --data '$(XRAYS)' --masks '$(MASKS)' --out build/bundle/lungs

build/bundle/adults.csv:
	mkdir -p build/bundle
	$(BIN)/pneumoscope data split '$(ADULTS)' --fractions 0.7,0.15,0.15 --out $@

build/bundle/run/report.html: build/bundle/lungs/lungs.onnx $(if $(ADULTS),build/bundle/adults.csv)
	$(BIN)/pneumoscope train default --data '$(XRAYS)' --lungs build/bundle/lungs/lungs.onnx \
		$(if $(ADULTS),--additional build/bundle/adults.csv) \
		$(if $(NOT_CHEST),--not-chest '$(NOT_CHEST)') --out build/bundle/run --resume

clean:
	rm -rf build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
