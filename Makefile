# The commands of this repository. `make demo` and `make test` work from a bare clone.

PYTHON ?= python3
VENV ?= .venv
BIN ?= $(VENV)/bin
INSTALLED := $(VENV)/.installed

# `make setup CPU=1` installs torch without CUDA. Where pip knows no index with builds for the CPU, TORCH_INDEX names
# one: the address that pytorch.org gives for pip and CPU, or a folder of wheels.
CPU ?=
TORCH_INDEX ?=
WHAT ?= --editable '.[dev]'
PIP_MORE = $(if $(TORCH_INDEX),$(if $(findstring ://,$(TORCH_INDEX)),--extra-index-url,--find-links) '$(TORCH_INDEX)')
# On Linux the torch of PyPI needs CUDA's libraries to be imported; builds for the CPU have a version with +cpu.
ON_CPU := $(if $(strip $(CPU)),$(filter Linux,$(shell uname -s)))
PINS = $(if $(ON_CPU),$(VENV)/constraints-cpu.txt,constraints.txt)
NO_CPU_BUILD := no torch for the CPU was found: make setup CPU=1 TORCH_INDEX=address or folder (see Makefile)

# `make demo` trains on these X-rays: a folder or manifest, or the word phantoms for drawn ones. RECIPE is the
# recipe, DEMO the folder for all results, DEMO_TRAIN further options of the training.
DATA ?= data/xrays-sample
DEMO ?= demo
DEMO_TRAIN ?=
PHANTOMS ?= 400
NEW_PHANTOMS ?= 60
# Not where the word is a part of a folder's name, as in DATA='my phantoms'.
DRAWN := $(if $(filter-out phantoms,$(DATA)),,$(filter phantoms,$(DATA)))
RECIPE ?= $(if $(DRAWN),phantom,transfer)
DEMO_DATA = $(if $(DRAWN),$(DEMO)/phantoms,$(DATA))
NEW = $(DEMO)/$(if $(DRAWN),new,samples)
# An X-ray for the shipped model: make demo IMAGE=chest.png
IMAGE ?=

PYTEST_OPTIONS ?= -n 2 --dist worksteal

# `make node-demo` sends X-rays of this folder.
LARGE_XRAYS = $(if $(shell test -d '$(PNEUMOSCOPE_DATA)/kermany-original' && echo yes),$(PNEUMOSCOPE_DATA)/kermany-original)
NODE_XRAYS ?= $(or $(if $(filter command line environment,$(origin XRAYS)),$(XRAYS)),$(LARGE_XRAYS),data/xrays-sample)

# `make bundle` trains the shipped model on these: images of children, lung masks of the same names, two sets of
# adults, and images of other kinds for the gate to reject.
XRAYS ?= $(if $(PNEUMOSCOPE_DATA),$(PNEUMOSCOPE_DATA)/kermany-224)
MASKS ?= $(if $(PNEUMOSCOPE_DATA),$(PNEUMOSCOPE_DATA)/lung-masks-224)
NIH ?= $(if $(PNEUMOSCOPE_DATA),$(PNEUMOSCOPE_DATA)/nih-adult)
ADULTS ?= $(if $(PNEUMOSCOPE_DATA),$(PNEUMOSCOPE_DATA)/adults)
NOT_CHEST ?= $(if $(PNEUMOSCOPE_DATA),$(PNEUMOSCOPE_DATA)/not-chest)
# Normal adults of a hospital that nothing is trained on, for the card.
UNKNOWN ?= $(if $(PNEUMOSCOPE_DATA),$(PNEUMOSCOPE_DATA)/lung-masks-adult/images)
SHIPPED := src/pneumoscope/bundles/default
MADE := build/bundle

.PHONY: help setup demo node-demo test test-long check faults docs screenshots tutorial bundle clean
.DEFAULT_GOAL := help

help:
	@echo 'make setup    virtual environment $(VENV) with everything in it; CPU=1 TORCH_INDEX=address without CUDA'
	@echo 'make demo     train on real X-rays, evaluate and predict; DATA=folder on others, DATA=phantoms on drawn ones'
	@echo 'make node-demo Orthanc as archive, the DICOM node, ten X-rays; XRAYS=folder'
	@echo 'make test     run the tests'
	@echo 'make test-long the tests that make test leaves out'
	@echo 'make faults   the long fault tests of the DICOM node: hours'
	@echo 'make check    lint, types, import contracts and tests'
	@echo 'make docs     build the documentation into build/docs'
	@echo 'make screenshots  images of the documentation, from the running program; EVALUATED=folder of an evaluation'
	@echo 'make tutorial run the walkthrough notebook and all commands of README and tutorial, and write their output'
	@echo 'make bundle   train the shipped model again; XRAYS=folder MASKS=folder NIH=folder ADULTS=folder NOT_CHEST=folder UNKNOWN=folder'
	@echo 'make clean    remove what the others made, except $(VENV) and runs/'

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@# An earlier pip downloads packages to look them up. Without a connection it has to do.
	-$(BIN)/python -m pip install --quiet 'pip>=23.3'
	sed -E 's/^(torch|torchvision)==([^+]*)$$/\1==\2+cpu/' constraints.txt > $(VENV)/constraints-cpu.txt
	@echo 'Looking up what is to be installed, which takes a minute; packages are downloaded after that.'
	$(BIN)/python -m pip install --constraint $(PINS) $(PIP_MORE) --dry-run --quiet --report $(VENV)/plan.json $(WHAT) \
		$(if $(ON_CPU),|| { echo '$(NO_CPU_BUILD)' >&2; exit 2; })
	$(BIN)/python tools/install_plan.py $(VENV)/plan.json --write $(VENV)/plan.txt $(if $(CPU),--no-cuda)
	@# Python compiles the tenth of the files that is ever imported when it first is; all take minutes.
	$(BIN)/python -m pip install --no-compile --no-deps $(PIP_MORE) --requirement $(VENV)/plan.txt $(WHAT)
	touch $@

demo: $(INSTALLED)
	@rm -rf '$(DEMO)'/phantoms '$(DEMO)'/run '$(DEMO)'/evaluated '$(DEMO)'/new '$(DEMO)'/samples '$(DEMO)'/heatmaps
	@mkdir -p '$(DEMO)'
ifneq ($(DRAWN),)
	@echo; echo '== Draw $(PHANTOMS) phantoms: synthetic chest X-rays'
	$(BIN)/pneumoscope data phantom '$(DEMO_DATA)' --n $(PHANTOMS)
endif
	@echo; echo '== Audit: unreadable files, duplicates, patients'
	$(BIN)/pneumoscope data audit '$(DEMO_DATA)' || [ $$? -eq 3 ]
	@echo; echo '== Split by patient: no patient, and no copy of an image, is in two parts'
	$(BIN)/pneumoscope data split '$(DEMO_DATA)' --out '$(DEMO)/split.csv' || [ $$? -eq 3 ]
	@echo; echo '== Train on train, choose and calibrate on val (recipe $(RECIPE)$(if $(filter data/xrays-sample,$(DATA)),; two to three minutes on two cores))'
	$(BIN)/pneumoscope train $(RECIPE) --data '$(DEMO)/split.csv' --out '$(DEMO)/run' $(DEMO_TRAIN)
	@echo; echo '== Evaluate the exported model on the patients of test, with 95% intervals'
	$(BIN)/pneumoscope evaluate '$(DEMO)/split.csv' --split test --bundle '$(DEMO)/run' --out '$(DEMO)/evaluated'
ifneq ($(DRAWN),)
	@echo; echo '== Predict new phantoms, drawn with another seed, with a heat map of each'
	$(BIN)/pneumoscope data phantom '$(NEW)' --seed 1 --n $(NEW_PHANTOMS)
else
	@echo; echo '== Predict the sample images with it, of which two are no frontal chest X-rays, with a heat map of each'
	$(BIN)/pneumoscope samples '$(NEW)'
endif
	$(BIN)/pneumoscope predict '$(NEW)' --bundle '$(DEMO)/run' --out '$(DEMO)/predictions.csv' \
		--heatmaps '$(DEMO)/heatmaps' --report '$(DEMO)/predictions.html' || [ $$? -eq 3 ]
	@echo
	@echo 'Report of the training:   $(DEMO)/run/report.html'
	@echo 'Report of the evaluation: $(DEMO)/evaluated/report.html'
	@echo 'Report of predictions:    $(DEMO)/predictions.html'
	@echo 'Predictions, heat maps:   $(DEMO)/predictions.csv, $(DEMO)/heatmaps/'
	@echo 'The split, image by image: $(DEMO)/split.csv'
ifneq ($(DRAWN),)
	@echo 'Phantoms are easy: this shows that training works, and nothing about real X-rays.'
else
	@echo
	@echo 'Few patients give wide intervals. On the full set, 5,856 X-rays (1.2 GB to download):'
	@echo '  $(BIN)/pneumoscope data fetch kermany kermany'
	@echo '  make demo DATA=kermany'
endif
ifneq ($(strip $(IMAGE)),)
	@echo; echo '== The shipped model on $(IMAGE)'
	$(BIN)/pneumoscope predict '$(IMAGE)'
else
	@echo
	@echo 'The shipped model was trained on more, and for longer:  $(BIN)/pneumoscope demo'
endif

node-demo: $(INSTALLED)
	@test -d '$(NODE_XRAYS)' || { echo '$(NODE_XRAYS): no such folder; make node-demo XRAYS=folder' >&2; exit 2; }
	$(BIN)/python deploy/node_demo.py '$(NODE_XRAYS)'

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

test-long: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_OPTIONS) -m long

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

screenshots: $(INSTALLED)
	$(BIN)/python benchmarks/screenshots.py $(if $(EVALUATED),--evaluated '$(EVALUATED)')

tutorial: $(INSTALLED)
	$(BIN)/python notebooks/build_page.py
	$(BIN)/python notebooks/build_outputs.py

# The card of what ships: test patients of the children with all that can be measured, then of the others.
MEASURE = $(BIN)/pneumoscope evaluate --bundle $(MADE)/shipped --out $(MADE)/evaluated
OF_NIH := NIH ChestX-ray14, nearly all adults, patients not trained on
OF_ADULTS := Adults, COVID-19 of BIMCV against normals of RSNA; the source may separate them
OF_LUNGS := Adults, lungs-only images of RSNA: opacity against normal and other abnormal chests, the gate overridden
WHOLE = $(MADE)/adults/whole.csv
LUNGS_ONLY = $(MADE)/lungs-only.csv
OF_UNKNOWN := OpenIST, normal adults of a hospital of which no image was trained on

bundle: $(INSTALLED) $(MADE)/run/report.html $(if $(UNKNOWN),$(MADE)/unknown/labels.csv)
	rm -rf $(MADE)/shipped $(MADE)/evaluated
	$(BIN)/pneumoscope export $(MADE)/run --out $(MADE)/shipped
	$(MEASURE)/children --masks '$(MASKS)' --robustness --images 200 --sign $(MADE)/children/all.csv --split test || [ $$? -eq 3 ]
	$(if $(NIH),$(MEASURE)/nih --add-to-card '$(OF_NIH)' $(MADE)/nih/all.csv --split test || [ $$? -eq 3 ])
	@# Images that show the lungs only are no radiographs to predict on; radiologists drew boxes on these.
	$(if $(ADULTS),sed /rsna-masked/d $(MADE)/adults/all.csv > $(WHOLE))
	$(if $(ADULTS),$(MEASURE)/adults --add-to-card '$(OF_ADULTS)' $(WHOLE) --split test || [ $$? -eq 3 ])
	$(if $(ADULTS),sed -n -e 1p -e '/rsna-masked/p' $(MADE)/adults/all.csv > $(LUNGS_ONLY))
	$(if $(ADULTS),! grep -q rsna-masked $(LUNGS_ONLY) || $(MEASURE)/lungs-only --add-to-card '$(OF_LUNGS)' --lungs-only inverted \
		--boxes $(LUNGS_ONLY) --curves 0 $(LUNGS_ONLY) --split test || [ $$? -eq 3 ])
	$(if $(UNKNOWN),$(MEASURE)/unknown --add-to-card '$(OF_UNKNOWN)' $(MADE)/unknown || [ $$? -eq 3 ])
	rm -rf $(SHIPPED)
	mv $(MADE)/shipped $(SHIPPED)

# Each step is done once; trainings of networks continue from their last epoch. Exit code 3: some images were left out.
HAS_IMAGES = test -d '$(XRAYS)' && test -d '$(MASKS)' || { echo 'make bundle XRAYS=folder MASKS=folder' >&2; exit 2; }
# On the split of the children, so that no test patient is among those that it is trained on.
$(MADE)/lungs/lungs.onnx: $(MADE)/children/all.csv
	$(BIN)/pneumoscope train-lungs --data $< --masks '$(MASKS)' --out $(@D) || [ $$? -eq 3 ]

# What a set states about itself: ages and views of images that have none.
$(MADE)/children/all.csv:
	@$(HAS_IMAGES)
	@test -n '$(ADULTS)' || { echo 'make bundle ADULTS=folder: its images of class other are needed' >&2; exit 2; }
	mkdir -p $(@D)
	test -f '$(XRAYS)/dataset.yaml' || echo "{name: Kermany et al., hospital: Guangzhou Women and Children's Medical Center, population: {name: children, ages: [1, 5], views: [AP]}}" > $(@D)/dataset.yaml
	$(BIN)/pneumoscope data split '$(XRAYS)' --fractions 0.8,0.1,0.1 --out $@ || [ $$? -eq 3 ]

$(MADE)/nih/all.csv:
	mkdir -p $(@D)
	$(BIN)/pneumoscope data split '$(NIH)' --out $@ || [ $$? -eq 3 ]

$(MADE)/adults/all.csv:
	mkdir -p $(@D)
	test -f '$(ADULTS)/dataset.yaml' || echo '{name: RSNA and BIMCV, population: {name: adults, ages: [18, 90]}}' > $(@D)/dataset.yaml
	$(BIN)/pneumoscope data split '$(ADULTS)' --out $@ || [ $$? -eq 3 ]

$(MADE)/unknown/labels.csv:
	mkdir -p $(@D)
	ln -sfn '$(abspath $(UNKNOWN))' $(@D)/images
	echo '{name: OpenIST, population: {name: adults}}' > $(@D)/dataset.yaml
	(echo file,label,source; cd $(@D) && find images/ -type f | sort | sed 's/$$/,normal,openist/') > $@

$(MADE)/joined/all.csv: $(MADE)/children/all.csv $(if $(NIH),$(MADE)/nih/all.csv) $(if $(ADULTS),$(MADE)/adults/all.csv)
	mkdir -p $(@D)
	$(BIN)/pneumoscope data join $(MADE)/children/all.csv $(if $(NIH),nih=$(MADE)/nih/all.csv) \
		$(if $(ADULTS),$(MADE)/adults/all.csv) --out $@ || [ $$? -eq 3 ]

$(MADE)/teacher/report.html: $(MADE)/lungs/lungs.onnx $(MADE)/children/all.csv
	$(BIN)/pneumoscope train children --data $(MADE)/children/all.csv --lungs $(MADE)/lungs/lungs.onnx --out $(@D) --resume || [ $$? -eq 3 ]

$(MADE)/run/report.html: $(MADE)/joined/all.csv $(MADE)/teacher/report.html
	$(BIN)/pneumoscope train hospitals --data $(MADE)/joined/all.csv --lungs $(MADE)/lungs/lungs.onnx \
		--teacher $(MADE)/teacher $(if $(NOT_CHEST),--not-chest '$(NOT_CHEST)') --out $(@D) --resume || [ $$? -eq 3 ]

clean:
	rm -rf build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
