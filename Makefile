# MLK: make help says what there is. A C compiler and GNU make suffice; everything else is probed and named.

CC      ?= cc
CFLAGS  ?= -O2
TEST_CFLAGS ?= $(CFLAGS)
PREFIX  ?= /usr/local
DESTDIR ?=
B       := build

# CUDA=1: the examples and mlk_bench take --device cuda. NVCC is looked for on the path and where NVIDIA installs it. CUDA_ARCH:
# compute capabilities (80 86 90a), ascending, of the last of which PTX goes along for newer devices, without the a; or native.
CUDA      ?=
NVCC      ?= $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc) nvcc)
CUDA_ARCH ?= 75 80 90a
NVCCFLAGS ?= -O3

WARN := -std=c99 -Wall -Wextra -Wpedantic -Wshadow -Wconversion

# --- probes: only goals that compile pay for them -------------------------------------------------------------------
# $(call links,flags,program) gives the flags when the program compiles and links with them, else nothing.
links = $(shell mkdir -p $(B) && printf '%b' '$(2)' > $(B)/probe.c && \
          $(CC) $(B)/probe.c -o $(B)/probe.out $(1) >/dev/null 2>&1 && echo '$(1)'; \
          rm -f $(B)/probe.c $(B)/probe.out)

GOALS := $(or $(MAKECMDGOALS),all)
ifneq ($(filter-out help clean distclean install uninstall format data peers,$(GOALS)),)
  OMP_PROGRAM := \043include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n
  ifeq ($(origin OPENMP),undefined)
    OPENMP := $(call links,-fopenmp,$(OMP_PROGRAM))
    ifeq ($(OPENMP),)
      OPENMP := $(call links,-Xpreprocessor -fopenmp -lomp,$(OMP_PROGRAM))
    endif
  endif
  LIBDL   := $(call links,-ldl,int main(void) { return 0; }\n)
  PTHREAD := $(call links,-pthread,int main(void) { return 0; }\n)
  ZLIB    := $(call links,-lz,\043include <zlib.h>\nint main(void) { return zlibVersion()[0] == 0; }\n)
endif

LIBS := $(LIBDL) -lm

# --- what there is --------------------------------------------------------------------------------------------------
TEST_CUDA := $(sort $(wildcard tests/test_cuda_*.c))
TEST_C    := $(filter-out $(TEST_CUDA),$(sort $(wildcard tests/test_*.c)))
TEST_O    := $(TEST_C:tests/%.c=$(B)/test/%.o)
MPICC     := $(shell command -v mpicc 2>/dev/null)
EXAMPLE_C := $(filter-out $(if $(MPICC),,%_mpi.c),$(sort $(wildcard examples/*.c)))
EXAMPLES  := $(EXAMPLE_C:examples/%.c=$(B)/%)
EXAMPLES  += $(if $(filter 1,$(CUDA)),$(patsubst examples/%.cu,$(B)/%,$(wildcard examples/*.cu)))
BENCH_C   := $(sort $(wildcard bench/*.c))
BENCHES   := $(BENCH_C:bench/%.c=$(B)/%)
FORMATTED := mlk.h mlk_cuda.cuh $(wildcard tests/*.c tests/*.cc tests/*.h examples/*.c examples/*.cu bench/*.c bench/*.cu bench/*.cuh bench/*.h bench/processes/*.cc)

.PHONY: all help probe demo train test check test-long test-cuda test-bench bench peers data examples format format-check \
        install uninstall clean distclean FORCE
.DELETE_ON_ERROR:

all: help probe $(B)/mlk_test $(EXAMPLES) $(BENCHES)

help:
	@echo 'MLK, machine-learning kernels in one C header'
	@echo '  make demo       a search over real pictures, a network that learns them for less than a minute, a model of text'
	@echo '  make train      the whole training of examples/02_fashion_cnn: a minute or a few; stopped, it continues'
	@echo '  make test       every check this machine has the tools for, about eight minutes on two cores'
	@echo '  make test-long  the same with the slow extras'
	@echo '  make test-cuda  mlk_cuda.cuh: compile gates with nvcc where there is one, the kernels in an emulator; no GPU is needed'
	@echo '  make test-bench what bench measures with: rows, files, comparisons, messages'
	@echo '  make bench      measure this machine, then every operator   (BENCH_ARGS="--help" tells more)'
	@echo '  make peers      fetch the libraries bench compares with, into bench/peers'
	@echo '  make data       fetch pictures and models for the examples, into examples/data/cache'
	@echo '  make examples   build everything in examples'
	@echo '  make format     clang-format every C file'
	@echo '  make install    copy mlk.h, mlk_cuda.cuh and mlk.pc under $$(DESTDIR)$$(PREFIX), default /usr/local'
	@echo '  make clean      remove $(B)/          make distclean: fetched data and peers as well'
	@echo '  variables: CC, CFLAGS (default -O2), OPENMP= (build without OpenMP), PREFIX, DESTDIR, DEMO_ARGS, TRAIN_ARGS, TEST_ARGS,'
	@echo '             CUDA=1 (examples and mlk_bench with --device cuda; NVCC, NVCCFLAGS, CUDA_ARCH="75 80 90")'

have = $(if $(shell command -v $(1) 2>/dev/null),$(1),none)

probe:
	@echo 'C compiler   $(CC): $(shell $(CC) --version 2>/dev/null | head -n 1)'
	@echo 'OpenMP       $(if $(OPENMP),$(OPENMP),none: examples and bench run on one thread; see also the parallel hook in mlk.h)'
	@echo 'zlib         $(or $(ZLIB),none: the demo reads .gz files through a gunzip pipe)'
	@echo 'MPI          $(or $(MPICC),none: examples/06_group_mpi is left out)'
	@echo 'C++          $(call have,$(CXX))     second compiler: $(call have,clang)     cmake: $(call have,cmake)'
	@echo 'nvcc         $(if $(shell command -v $(NVCC) 2>/dev/null),$(NVCC): $(shell $(NVCC) --version | grep release)$(if $(filter 1,$(CUDA)),; sm: $(CUDA_ARCH),; CUDA=1 uses it),none: no CUDA)'
	@echo 'emulators    $(call have,qemu-aarch64) $(call have,qemu-x86_64)  (none: make test leaves their stages out and says so)'

# --- programs -------------------------------------------------------------------------------------------------------
# TEST_CFLAGS: of the tests themselves, all but the implementation
$(B)/test/%.o: tests/%.c $(wildcard tests/*.h) mlk.h Makefile
	@mkdir -p $(@D)
	$(CC) $(WARN) $(if $(filter test_mlk,$*),$(CFLAGS),$(TEST_CFLAGS)) $(OPENMP) $(PTHREAD) -I. -c $< -o $@

$(B)/mlk_test: $(TEST_O)
	$(CC) $(CFLAGS) $(OPENMP) $(PTHREAD) $(TEST_O) -o $@ $(LIBS)

$(B)/group_processes: tests/group_processes.c $(B)/test/test_mlk.o
	$(CC) $(WARN) $(CFLAGS) $(OPENMP) $(PTHREAD) -I. $< $(B)/test/test_mlk.o -o $@ $(LIBS)

# --- CUDA: one object, which C programs link with the C compiler ------------------------------------------------------
CXX_WARN := -std=c++17 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-unknown-pragmas
GENCODE  = $(if $(filter native,$(CUDA_ARCH)),-arch=native,$(foreach a,$(CUDA_ARCH),-gencode arch=compute_$(a),code=sm_$(a)) \
  $(foreach a,$(patsubst %a,%,$(lastword $(CUDA_ARCH))),-gencode arch=compute_$(a),code=compute_$(a)))
CUDA_LIBS = $(shell echo | $(NVCC) --dryrun -x cu - 2>&1 | sed -n 's/^.*LIBRARIES=//p') -lcudart_static -ldl -lrt -lpthread -lm

$(B)/mlk_cuda.o: mlk_cuda.cuh mlk.h Makefile
	@mkdir -p $(@D)
	@printf '%s\n' '#define MLK_CUDA_IMPLEMENTATION' '#include "mlk_cuda.cuh"' > $(B)/mlk_cuda.cu
	$(NVCC) -std=c++17 $(NVCCFLAGS) -Xcompiler -fno-exceptions,-fno-threadsafe-statics $(GENCODE) --threads 0 -I. \
	  -c $(B)/mlk_cuda.cu -o $@

# The tests on a device, and on its emulator; what the suite has of its own comes from the suite.
SUITE_O    := $(filter-out $(B)/test/test_main.o,$(TEST_O))
DEVICE_O   := $(patsubst tests/%.c,$(B)/test_device/%.o,tests/test_main.c $(TEST_CUDA))
EMULATED_O := $(patsubst tests/%.c,$(B)/test_emulated/%.o,tests/test_main.c $(TEST_CUDA))
$(DEVICE_O) $(EMULATED_O): $(wildcard tests/*.h) mlk.h mlk_cuda.cuh Makefile
$(DEVICE_O): $(B)/test_device/%.o: tests/%.c
	@mkdir -p $(@D)
	$(CC) $(WARN) $(TEST_CFLAGS) $(OPENMP) $(PTHREAD) -DMLKT_CUDA -I. -c $< -o $@
$(EMULATED_O): $(B)/test_emulated/%.o: tests/%.c
	@mkdir -p $(@D)
	$(CC) $(WARN) $(TEST_CFLAGS) $(OPENMP) $(PTHREAD) -DMLKT_CUDA -DMLKT_CUDA_EMULATED -I. -c $< -o $@

# (the emulator wants a multiply-add of the processor where it has one; g++ knows nvcc's "#pragma unroll" under another name;
# EMULATED names another build of it)
EMULATED       ?= mlk_test_emulated
EMULATOR_FLAGS ?= -O2
$(B)/test_emulated/$(EMULATED).o: tests/cuda_backend.cc $(wildcard tests/cuda_*.h) mlk_cuda.cuh mlk.h Makefile
	@mkdir -p $(@D)
	$(CXX) $(CXX_WARN) -Wno-unknown-pragmas $(EMULATOR_FLAGS) -ffp-contract=off $$(grep -qsw fma /proc/cpuinfo && echo -mfma) \
	  -Itests -I. -c $< -o $@

$(B)/mlk_test_cuda: $(SUITE_O) $(DEVICE_O) $(B)/mlk_cuda.o
	$(CC) $(CFLAGS) $(OPENMP) $(PTHREAD) $^ -o $@ $(LIBS) $(CUDA_LIBS)
$(B)/$(EMULATED): $(SUITE_O) $(EMULATED_O) $(B)/test_emulated/$(EMULATED).o
	$(CC) $(CFLAGS) $(EMULATOR_LINK) $(OPENMP) $(PTHREAD) $^ -o $@ $(LIBS) -lstdc++

$(B)/gpu_graphs: tests/gpu_graphs.cu mlk_cuda.cuh mlk.h $(B)/mlk_cuda.o $(B)/test/test_mlk.o
	$(NVCC) -std=c++17 -Xcompiler -Wall,-Wextra -I. $< $(B)/mlk_cuda.o $(B)/test/test_mlk.o -o $@ \
	  $(addprefix -Xcompiler ,$(OPENMP) $(PTHREAD)) $(LIBS)

# Examples whose GPU is the emulator, for tests/cuda_examples.sh.
$(B)/emulated/%: examples/%.c mlk.h mlk_cuda.cuh $(B)/test/test_mlk.o $(B)/test_emulated/$(EMULATED).o Makefile
	@mkdir -p $(@D)
	sed '/^#define MLK_IMPLEMENTATION$$/d' $< > $@.c
	$(CC) $(WARN) $(CFLAGS) $(OPENMP) $(PTHREAD) -DMLK_EXAMPLE_CUDA -I. $@.c $(filter %.o,$^) -o $@ $(LIBS) -lstdc++

# The examples and mlk_bench are built anew when CUDA is another than last time.
$(B)/cuda_is: FORCE
	@mkdir -p $(@D)
	@test "$$(cat $@ 2>/dev/null)" = 'CUDA=$(CUDA)' || echo 'CUDA=$(CUDA)' > $@
ifeq ($(CUDA),1)
  EXAMPLE_CUDA := $(B)/mlk_cuda.o
  EXAMPLE_CUDA_FLAGS = -DMLK_EXAMPLE_CUDA $(EXAMPLE_CUDA) $(CUDA_LIBS)
  $(B)/mlk_bench: $(B)/mlk_cuda.o
  $(B)/mlk_bench: BENCH_CUDA_FLAGS = -DBENCH_CUDA $(B)/mlk_cuda.o $(CUDA_LIBS)
endif

# mpicc calls the compiler that is named there (Open MPI, MPICH).
$(B)/06_group_mpi: EXAMPLE_CC = OMPI_CC='$(CC)' MPICH_CC='$(CC)' $(MPICC)
$(B)/00_knn_pictures: EXAMPLE_FLAGS := $(if $(ZLIB),-DMLK_EXAMPLE_ZLIB $(ZLIB))
$(filter-out $(B)/%_cuda,$(EXAMPLES)): $(B)/%: examples/%.c mlk.h mlk_cuda.cuh Makefile $(B)/cuda_is $(EXAMPLE_CUDA)
	@mkdir -p $(@D)
	$(or $(EXAMPLE_CC),$(CC)) $(WARN) $(CFLAGS) $(OPENMP) $(PTHREAD) -I. $< -o $@ $(EXAMPLE_FLAGS) $(EXAMPLE_CUDA_FLAGS) $(LIBS)

$(B)/%_cuda: examples/%_cuda.cu mlk.h mlk_cuda.cuh Makefile
	@mkdir -p $(@D)
	$(NVCC) -std=c++17 $(NVCCFLAGS) $(GENCODE) --threads 0 -I. $< -o $@

$(BENCHES): $(B)/%: bench/%.c $(wildcard bench/*.h) mlk.h Makefile $(B)/cuda_is
	@mkdir -p $(@D)
	$(CC) $(WARN) $(CFLAGS) $(OPENMP) $(PTHREAD) -DBENCH_FLAGS='"$(strip $(CFLAGS) $(OPENMP))"' -I. $< -o $@ $(BENCH_CUDA_FLAGS) $(LIBS)

examples: $(EXAMPLES)

demo: probe $(B)/00_knn_pictures $(B)/02_fashion_cnn $(B)/03_gpt
	@sh examples/fetch_data.sh fashion-mnist
	$(B)/00_knn_pictures $(DEMO_ARGS)
	@echo
	$(B)/02_fashion_cnn --short --fresh --out $(B)/demo_cnn $(TRAIN_ARGS)
	@echo
	$(B)/03_gpt --demo

train: probe $(B)/02_fashion_cnn
	@sh examples/fetch_data.sh fashion-mnist
	$(B)/02_fashion_cnn $(TRAIN_ARGS)

bench: probe $(B)/mlk_bench
	$(B)/mlk_bench run $(BENCH_ARGS)

RUN_STAGES = CC='$(CC)' CFLAGS='$(CFLAGS)' OPENMP='$(OPENMP)' MAKE='$(MAKE)' bash tests/run.sh

test check:
	@if command -v bash >/dev/null; then $(RUN_STAGES) $(TEST_ARGS); \
	 else echo 'no bash: only the test program runs'; $(MAKE) -s $(B)/mlk_test && $(B)/mlk_test; fi

test-long:
	@$(RUN_STAGES) --long $(TEST_ARGS)

test-cuda:
	@NVCC='$(NVCC)' $(RUN_STAGES) --cuda $(TEST_ARGS)

test-bench:
	@$(RUN_STAGES) --bench $(TEST_ARGS)

# --- fetched things -------------------------------------------------------------------------------------------------
peers:
	sh bench/fetch_peers.sh

data:
	sh examples/fetch_data.sh

# --- upkeep ---------------------------------------------------------------------------------------------------------
format:
	clang-format -i $(FORMATTED)

format-check:
	clang-format --dry-run --Werror $(FORMATTED)

VERSION = $(shell sed -n 's,.*mlk\.h - \([0-9.]*\) -.*,\1,p' mlk.h)

install:
	mkdir -p '$(DESTDIR)$(PREFIX)/include' '$(DESTDIR)$(PREFIX)/share/pkgconfig'
	cp mlk.h mlk_cuda.cuh '$(DESTDIR)$(PREFIX)/include/'
	printf '%s\n' 'includedir=$(PREFIX)/include' '' 'Name: mlk' 'Description: machine-learning kernels in one C header' \
	  'Version: $(VERSION)' 'Cflags: -I$${includedir}' 'Libs: -lm' > '$(DESTDIR)$(PREFIX)/share/pkgconfig/mlk.pc'

uninstall:
	rm -f '$(DESTDIR)$(PREFIX)/include/mlk.h' '$(DESTDIR)$(PREFIX)/include/mlk_cuda.cuh' '$(DESTDIR)$(PREFIX)/share/pkgconfig/mlk.pc'

clean:
	rm -rf $(B)

distclean: clean
	rm -rf bench/peers examples/data/cache
