# Short names for the commands of README.md and CONTRIBUTING.md; nothing here is needed to work without make.
PYTHON ?= .venv/bin/python

.PHONY: help environment check slow test-gpu demo data pretrain school builtin-evaluate

help:  ## this list (what bare `make` prints)
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

environment:  ## make .venv with everything that the tests need
	python3 -m venv .venv
	.venv/bin/pip install -c constraints.txt -e '.[dev]'

check:  ## format, lint, types, CPU tests
	$(PYTHON) check.py

slow:  ## the tests that take minutes
	$(PYTHON) check.py --slow

test-gpu:  ## kernels and graphs, on a machine with a CUDA GPU
	$(PYTHON) -m pytest -m gpu

demo:  ## a few hundred frames through the built-in model, with questions
	$(dir $(PYTHON))infinitevl demo

data:  ## fetch the packages and build the data of the built-in model
	$(PYTHON) -m builtin.build_data

pretrain:  ## the model that the school's teacher starts from; wants a GPU
	$(PYTHON) -m builtin.start builtin/recipes/hybrid/shape.yaml --out runs/hybrid/start
	$(PYTHON) -m builtin.teach builtin/recipes/hybrid/dense.yaml
	$(PYTHON) -m builtin.teach builtin/recipes/hybrid/joint.yaml
	$(PYTHON) -m builtin.teach builtin/recipes/hybrid/keyed.yaml

school:  ## the built-in model through the published pipeline, scored and packaged; wants a GPU
	$(PYTHON) -m builtin.school
	$(PYTHON) -m builtin.package

builtin-evaluate:  ## score the built-in model on the test split
	$(PYTHON) -m builtin.evaluate --split test
