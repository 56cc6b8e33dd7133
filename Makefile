# Five words do all the set-up: demo, test, lint, bench, docs. Each installs what it needs into .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
PHOTOS := tests/faces/astronaut.jpg tests/faces/hopper.jpg tests/faces/group.jpg

.PHONY: demo test lint types format bench soak train-bundled docs clean

demo: $(VENV)/.core
	$(BIN)/agelens analyze $(PHOTOS) --annotate demo
	@echo "Annotated pictures: demo/astronaut.jpg, demo/hopper.jpg, demo/group.jpg"

test: $(VENV)/.dev $(VENV)/.debian
	$(BIN)/python -m pytest -q

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/serving.py

soak: $(VENV)/.dev
	$(BIN)/python benchmarks/soak_images.py
	$(BIN)/python benchmarks/soak_serving.py --only kills,slow,overload,leaving

# DATA: folder of Parquet tables of FairFace and UTKFace; OUT: folder to work in.
train-bundled: $(VENV)/.dev
	$(BIN)/python benchmarks/train_bundled.py $(DATA) $(OUT)

docs: $(VENV)/.dev
	$(BIN)/zensical build --clean --strict

clean:
	rm -rf $(VENV) demo site build dist

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "AgeLens needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.13")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e .
	@touch $@

# Debian's packages that tests drive; where they cannot be installed, those tests are skipped and say
# why. Pango is what WeasyPrint sets its PDF pages with; the GStreamer ones make an RTSP camera.
DEBIAN := chromium nginx mosquitto poppler-utils postgresql fonts-dejavu-core \
  libpango-1.0-0 libpangoft2-1.0-0 python3-gi gir1.2-gst-rtsp-server-1.0 \
  gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly
MISSING = $$(for name in $(DEBIAN); do dpkg -s $$name >/dev/null 2>&1 || printf '%s ' $$name; done)
$(VENV)/.debian: $(VENV)/bin/python
	@if [ -n "$(MISSING)" ] && which apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
	  apt-get -qq install -y --no-install-recommends $(MISSING) >/dev/null; fi
	@[ -z "$(MISSING)" ] || echo "Not installed, and their tests are skipped: $(MISSING)"
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e '.[all,dev]'
	@touch $@ $(VENV)/.core
