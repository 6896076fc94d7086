# Everything that this project does, in one place. `make` alone lists it.
# A thin layer over the package's own command: `cxr-explain --help`, which Windows users call directly.

PYTHON  ?= python3
VENV    ?= .venv
PROFILE ?= phantom
BIN      = $(VENV)/bin
RUNNER   = $(BIN)/cxr-explain
READY    = $(VENV)/.ready
OPTIONS  = --profile $(PROFILE) $(if $(RUN),--run "$(RUN)") $(if $(DATA),--data "$(DATA)") $(if $(SEED),--seed $(SEED)) \
           $(if $(FROM),--from $(FROM)) $(if $(ONLY),--only $(ONLY)) $(if $(FORCE),--force) $(if $(APPENDIX),--appendix)

.DEFAULT_GOAL := help
.PHONY: help reproduce results publish test check lab site bench hooks clean

help: ## show this list
	@echo "Interpretable chest X-ray AI. Research only, not for clinical use."
	@echo
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18
	@echo
	@echo "  make reproduce PROFILE=real DATA=folder   real data sets; also RUN=name SEED=1 FROM=ch ONLY='a b' FORCE=1 APPENDIX=1"
	@echo "  PYTHON=python3.12 chooses the Python of the environment, VENV=folder its place, PIP_ARGS what pip is told, too"

# The environment is made once, and again when the package facts or the pinned versions change.
$(READY): settings.ini constraints.txt setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5))' || \
	  { echo "Python 3.11.5 or newer is needed (the tested versions ask for it); try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "== environment in $(VENV): installing the tested versions (minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "Python cannot make an environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[dev,dicom,site,export]'
	@touch $@

reproduce: $(READY) ## run all chapters that are not up to date, at PROFILE=phantom
	@$(RUNNER) reproduce $(OPTIONS)

results: $(READY) ## print every number of the run
	@$(RUNNER) results $(if $(RUN),--run "$(RUN)",--run $(PROFILE))

publish: $(READY) ## copy outputs, figures and numbers of the phantom run into the pages
	@$(RUNNER) publish $(if $(RUN),--run "$(RUN)")

test: $(READY) ## all checks, all chapters twice at smoke, all tests: what CI runs
	@$(RUNNER) test

check: $(READY) ## notebooks clean and exported, lint, links, published outputs fresh
	@$(RUNNER) check

lab: $(READY) ## open the notebooks in JupyterLab
	@$(RUNNER) lab

site: $(READY) ## render the website to _docs/
	@$(RUNNER) site

bench: $(READY) ## run the benchmarks (PROFILE=smoke: in seconds)
	@$(RUNNER) bench --profile $(PROFILE) $(if $(RUN),--run "$(RUN)")

hooks: $(READY) ## install git hooks that keep notebooks clean and merge them
	@$(BIN)/nbdev_install_hooks

clean: ## remove rendered pages and caches; runs/ and the environment stay
	rm -rf _docs _proc build dist .pytest_cache .ruff_cache nbs/_quarto.yml nbs/nbdev.yml nbs/.last_checked
	find cxr_explain nbs tests tools -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
