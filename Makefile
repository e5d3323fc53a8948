# make course          run every chapter from the first cell to the last; print the results
# make test            run every test, and compare every notebook with its stored outputs
# make check           run the tests of what you have changed, in about a minute
# make browser         check every page, exercise and control in JupyterLab, in Chromium
# make lab             open the course in JupyterLab
# make play            write each model as one page, and open a list of them
# make site            build the course as a web site, from the stored outputs
# make export          write the chapters' modules and the exercises from the notebooks
# make run-notebooks   run every notebook and store what it prints
#
# Each command first builds the virtual environment .venv if it is missing or older than
# the lists of requirements.

# Every training step frees and allocates the same hundreds of megabytes. By default glibc
# gives them back to the system, which must clear each page before it can be used again.
# That takes up to a quarter of the time. On other systems these two settings do nothing.
export MALLOC_MMAP_MAX_ := 0
export MALLOC_TRIM_THRESHOLD_ := 1000000000000

PYTHON ?= python3
RUN := .venv/bin/python
# uv installs the same packages in less time than pip, but it does not read pip's settings,
# such as a mirror. So pip installs if it has settings, or if there is no uv. `make UV=true
# ...` and `make UV=false ...` decide otherwise.
UV ?= command -v uv >/dev/null && test -z "$$($(RUN) -m pip config list)"
install = @if $(UV); then set -x; uv pip install --quiet --python $(RUN) $(1); \
    else set -x; $(RUN) -m pip install --quiet --disable-pip-version-check $(1); fi
READY := .venv/ready
SITE := .venv-site/bin/python

.PHONY: course test check browser lab play site export run-notebooks clean

course: $(READY)
	$(RUN) -m tools.course run

test: $(READY)
	$(RUN) -m tools.export --check
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	    --nbval --nbval-current-env tests $(sort $(wildcard ch*_* appendix_*))

check: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m tools.check

# The last two files test the pages of models, and the web site, if `make site` has built
# it.
# Without Playwright or Chromium all these tests are skipped, and say so.
browser: $(READY)
	-$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-browser.txt
	$(RUN) -m pytest -rs tests/browser/in_jupyterlab.py tests/browser/practice.py \
	    tests/browser/pages.py tests/browser/website.py

lab: $(READY)
	$(RUN) -m jupyterlab --LabApp.default_url=/lab/tree/README.md $(LAB_ARGS)

# Other models, or one page to send to somebody: docs/page.md
play: $(READY)
	$(RUN) -m tools.page all --open $(PLAY_ARGS)

# Writes build/site and build/site.zip. Needs npm, once, for two packages of scripts.
site: $(READY) .venv-site/ready
	$(SITE) -m tools.site

export: $(READY)
	$(RUN) -m tools.export

run-notebooks: $(READY) export
	$(RUN) -m tools.course run --write
	$(RUN) -m tools.course results

$(READY): requirements.txt requirements-data.txt pyproject.toml docs/jupyterlab-settings.json
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'The course needs Python 3.11 or newer, not ' + sys.version.split()[0] + '. Name one: make PYTHON=python3.12 course')"
	$(PYTHON) -m venv --clear .venv
	$(call install,-r requirements.txt)
	$(call install,--no-deps -r requirements-data.txt)
	mkdir -p .venv/share/jupyter/lab/settings
	cp docs/jupyterlab-settings.json .venv/share/jupyter/lab/settings/overrides.json
	touch $@

# Sphinx stays out of .venv. But .venv-site sees the packages of .venv, after its own.
.venv-site/ready: requirements-site.txt $(READY)
	$(RUN) -m venv --clear .venv-site
	$(SITE) -m pip install --quiet --disable-pip-version-check -r requirements-site.txt
	$(RUN) -c "import sysconfig; print(sysconfig.get_path('purelib'))" > .venv-site/course.pth
	$(SITE) -c "import shutil, sysconfig; shutil.move('.venv-site/course.pth', sysconfig.get_path('purelib'))"
	touch $@

clean:
	rm -rf .venv .venv-site
