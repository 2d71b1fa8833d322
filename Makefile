# `make` sets up .venv and runs every experiment of a profile; `make help` lists the rest.
PROFILE ?= quick
CORES   ?=
VENV    := .venv
PY      := $(VENV)/bin/python

# The first interpreter that is new enough; override with `make PYTHON=...`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# Named after what was installed and where: a changed lock or a moved checkout installs again, and so does a killed install.
STAMP := $(VENV)/installed-$(shell (cat requirements.lock pyproject.toml setup.py gtl_core/_engine/*.[ch]; pwd) | cksum | cut -d' ' -f1)
CLUSTER := $(STAMP)-cluster
CLIENTS := $(STAMP)-clients
SITE    := $(STAMP)-site
BROWSER := $(SITE)-test

.PHONY: run test test-fuzz test-faults test-clients test-site test-slurm test-lowest audit lint figures compare site lab bench lock clean help

run: $(if $(SNAKEMAKE_PROFILE),$(CLUSTER),$(STAMP)) ## run the experiments of PROFILE=quick (or paper) on CORES (all)
	@$(PY) workflow/launch.py $(PROFILE) $(if $(CORES),--cores $(CORES))

test: $(STAMP) ## run the tests
	@$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-fuzz: $(STAMP) ## try the laws of tests/test_fuzz.py on 2000 random inputs each (minutes)
	@FUZZ=2000 $(PY) -m pytest -n auto --maxprocesses 4 tests/test_fuzz.py

test-faults: $(STAMP) ## kill, interrupt, damage and starve a small batch, and run it again (half an hour)
	@FAULTS=7 $(PY) -m pytest -q tests/test_faults.py

test-clients: $(CLIENTS) ## run the recipes of docs/frameworks.md in the frameworks that they are for
	@$(PY) -m pytest -n auto --maxprocesses 4 tests/test_clients.py

test-site: $(BROWSER) ## build the site and check it: links, pictures, and in chromium, if there is one, what axe-core says
	@$(PY) -m pytest -q tests/test_site.py

test-lowest: ## run the tests with the oldest allowed versions of what the notebooks need, in .venv-lowest
	@$(PYTHON) -m venv $(VENV)-lowest
	@$(PYTHON) -c 'import tomllib; \
	p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	texts = [*p["dependencies"], *p["optional-dependencies"]["notebooks"]]; \
	print(*[text.replace(">=", "==") for text in texts], sep="\n")' > $(VENV)-lowest/oldest.txt
	@$(VENV)-lowest/bin/python -m pip install -q -c $(VENV)-lowest/oldest.txt -e ".[notebooks,test]"
	@$(VENV)-lowest/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -o filterwarnings=default

audit: ## ask PyPI for known vulnerabilities of the versions that requirements.lock names (needs the network)
	@$(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/python -m pip install -q pip-audit
	@$(VENV)-audit/bin/pip-audit --strict -r requirements.lock --no-deps --disable-pip

test-slurm: $(CLUSTER) ## run the quick profile through a Slurm of two nodes on this machine (root; slurm-wlm, munge)
	@$(PY) tests/slurm/run.py

lint: $(STAMP) ## check style and format of code and notebooks, and the types of the core
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m pyright

figures: $(STAMP) ## draw the figures of PROFILE again from its tables, without training
	@$(PY) workflow/draw_figures.py $(PROFILE)

compare: $(STAMP) ## say how the results in B=results/mine differ from those in A=results/paper
	@$(PY) workflow/compare.py $(or $(A),results/paper) $(or $(B),$(error which results? make compare B=results/mine))

site: $(SITE) ## build the site from the pages and the executed notebooks of the paper profile
	@$(PY) -m sphinx -q -W --keep-going -c docs . build/site
	@echo "Site: build/site/index.html"

lab: $(STAMP) ## open the notebooks in JupyterLab
	@$(PY) -m jupyterlab notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

bench: $(STAMP) ## speed and memory against plain PyTorch
	@$(PY) -m benchmarks

lock: ## resolve pyproject.toml anew into requirements.lock
	@$(PYTHON) -m pip install -qq --dry-run --ignore-installed --report .lock.json -e ".[notebooks,test,cluster]"
	@$(PYTHON) -c 'import json; \
	packages = (i["metadata"] for i in json.load(open(".lock.json"))["install"] if not i.get("is_direct")); \
	pins = sorted("{}=={}".format(p["name"].lower(), p["version"].split("+")[0]) for p in packages); \
	print("# Constraints, made by `make lock`: pip install -c requirements.lock -e \".[notebooks,test]\"", *pins, sep="\n")' \
	> requirements.lock.new
	@rm .lock.json && mv requirements.lock.new requirements.lock

clean: ## remove results (but not the committed ones) and caches; keep .venv and downloaded data
	@find results -mindepth 1 -maxdepth 1 ! -name paper ! -name validate -exec rm -rf {} + 2>/dev/null || true
	@rm -rf results/*/prepared results/*/logs .snakemake .pytest_cache .ruff_cache build *.egg-info

help:
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile
	@echo "profiles: $(patsubst config/%.yaml,%,$(wildcard config/*.yaml)); without PROFILE=... it is quick"

# --no-compile: Python compiles a module when it is first imported, and most of these never are.
$(STAMP):
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3"; exit 1; }
	@echo "Setting up $(VENV) (about a minute) ..."
	@ls $(VENV)/installed-* >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $(VENV)/installed-*
	@$(PY) -m pip install -qq --upgrade pip
	@$(PY) -m pip install -qq --no-compile -c requirements.lock -e ".[notebooks,test]"
	@touch $@

$(CLUSTER): $(STAMP)
	@$(PY) -m pip install -qq --no-compile -c requirements.lock -e ".[cluster]"
	@touch $@

$(SITE): $(STAMP)
	@$(PY) -m pip install -qq --no-compile -c requirements.lock -e ".[site]"
	@touch $@

$(BROWSER): $(SITE)
	@$(PY) -m pip install -qq --no-compile -c requirements.lock -e ".[site-test]"
	@touch $@

$(CLIENTS): $(STAMP)
	@$(PY) -m pip install -qq --no-compile -c requirements.lock -e ".[clients]"
	@touch $@
