/* The libraries bench compares with, looked up at run time in bench/peers (see fetch_peers.sh), each optional.
   A peer is given its best kernels for this processor where it does not find them itself, and
   says which ones it runs. */
#ifndef BENCH_PEERS_H
#define BENCH_PEERS_H

enum { OPENBLAS, ONEDNN, MKL, BLIS, FAISS, TORCH, ORT, CHAIN, PEER_COUNT };

/* CBLAS by its numbers: row-major 101, no transpose 111, transpose 112. */
typedef void cblas_sgemm_fn(int layout, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                            const float *b, int ldb, float beta, float *c, int ldc);
typedef void cblas_sgemv_fn(int layout, int ta, int m, int n, float alpha, const float *a, int lda, const float *x,
                            int incx, float beta, float *y, int incy);
typedef void cblas_sgemm_batch_fn(int layout, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                                  int stride_a, const float *b, int ldb, int stride_b, float beta, float *c, int ldc,
                                  int stride_c, int batch);
typedef size_t cblas_pack_size_fn(int identifier, int m, int n, int k);
typedef void cblas_pack_fn(int layout, int identifier, int trans, int m, int n, int k, float alpha, const float *src,
                           int ld, float *out);
typedef void cblas_compute_fn(int layout, int ta, int tb, int m, int n, int k, const float *a, int lda, const float *b,
                              int ldb, float beta, float *c, int ldc);
typedef int mkl_jit_create_fn(void **jitter, int layout, int ta, int tb, int m, int n, int k, float alpha, int lda,
                              int ldb, float beta, int ldc);
typedef void mkl_jit_kernel_fn(void *jitter, float *a, float *b, float *c);
typedef mkl_jit_kernel_fn *mkl_jit_get_fn(const void *jitter);
typedef int mkl_jit_destroy_fn(void *jitter);
/* oneDNN's dnnl_sgemm is row-major too. */
typedef int dnnl_sgemm_fn(char ta, char tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                          const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
/* faiss::knn_L2sqr, faiss::knn_inner_product, faiss::pairwise_L2sqr: what IndexFlat calls, by their mangled names. */
typedef void faiss_knn_l2_fn(const float *x, const float *y, size_t d, size_t nx, size_t ny, size_t k, float *distances,
                             int64_t *ids, const float *y_norms, const void *selector);
typedef void faiss_knn_ip_fn(const float *x, const float *y, size_t d, size_t nx, size_t ny, size_t k, float *distances,
                             int64_t *ids, const void *selector);
typedef void faiss_pairwise_fn(int64_t d, int64_t nq, const float *xq, int64_t nb, const float *xb, float *out,
                               int64_t ldq, int64_t ldb, int64_t ldd);

typedef struct peer {
  const char *name;
  int present;
  char version[96], core[96]; /* core: the kernels it chose; of an absent peer, version says why */
  cblas_sgemm_fn *sgemm;
  cblas_sgemv_fn *sgemv;
  cblas_sgemm_batch_fn *sgemm_batch;
  dnnl_sgemm_fn *dnnl_sgemm;
} peer;

static peer peers[PEER_COUNT] = {{.name = "openblas"}, {.name = "onednn"}, {.name = "mkl"},    {.name = "blis"},
                                 {.name = "faiss"},    {.name = "torch"},  {.name = "onnxrt"}, {.name = "chain"}};

/* Functions that only one peer has. */
static struct {
  cblas_pack_size_fn *pack_size;
  cblas_pack_fn *pack;
  cblas_compute_fn *compute;
  mkl_jit_create_fn *jit_create;
  mkl_jit_get_fn *jit_get;
  mkl_jit_destroy_fn *jit_destroy;
} mkl_only;

static struct {
  faiss_knn_l2_fn *knn_l2;
  faiss_knn_ip_fn *knn_ip;
  faiss_pairwise_fn *pairwise;
} faiss_only;

static void (*openblas_threads)(int), (*mkl_threads)(int), (*blis_threads)(int64_t), (*faiss_omp_threads)(int),
    (*faiss_blas_threads)(int), (*torch_threads)(int);

/* TBB's thread limit, tbb::global_control, through its C++ ABI (oneTBB 2021 and later). */
typedef struct tbb_control {
  size_t value;
  intptr_t reserved;
  int parameter; /* 0: max_allowed_parallelism */
} tbb_control;
static void (*tbb_create)(tbb_control *), (*tbb_destroy)(tbb_control *);
static tbb_control tbb_limit;
static int tbb_limited;

static const char *peers_dir;

/* ISO C has no conversion from void * to a function pointer; POSIX promises that the bits are the same. */
static int find_symbol(void *library, const char *name, void *function) {
  void *symbol = dlsym(library, name);
  memcpy(function, &symbol, sizeof symbol);
  return symbol != NULL;
}

/* Several of these libraries export the same names (sgemm_, cblas_sgemm), and MKL makes its own visible to all that
   come later: each must find its own first, or BLIS and FAISS would be measured running MKL. */
static void *open_library(const char *folder, const char *file) {
  char path[1024];
  int mode = RTLD_NOW | RTLD_LOCAL;
#ifdef RTLD_DEEPBIND
  mode |= RTLD_DEEPBIND;
#endif
  text(path, sizeof path, "%s/%s/%s", peers_dir, folder, file);
  return access(path, R_OK) == 0 ? dlopen(path, mode) : NULL;
}

static void peer_version(peer *p, const char *folder) {
  char path[1024];
  text(path, sizeof path, "%s/%s/VERSION", peers_dir, folder);
  read_line(path, p->version, sizeof p->version);
}

static int peer_absent(peer *p, const char *folder, const char *file) {
  char path[1024];
  const char *why = dlerror();
  text(path, sizeof path, "%s/%s/%s", peers_dir, folder, file);
  if (access(path, R_OK) != 0)
    text(p->version, sizeof p->version, "not fetched (make peers)");
  else
    text(p->version, sizeof p->version, "does not load: %s", why ? why : "a function is missing");
  return 0;
}

/* What a library says about itself before it is loaded for good: asked in a child process, because the choice is made
   while the library is being loaded. */
static void ask_in_child(const char *folder, const char *file, const char *function, char *out, size_t size) {
  int ends[2];
  pid_t child;
  ssize_t got = 0;
  out[0] = 0;
  if (pipe(ends) != 0) return;
  fflush(NULL);
  child = fork();
  if (child == 0) {
    const char *(*ask)(void);
    void *library = open_library(folder, file);
    if (library && find_symbol(library, function, &ask)) {
      const char *answer = ask();
      if (write(ends[1], answer, strlen(answer)) < 0) _exit(1);
    }
    _exit(0);
  }
  close(ends[1]);
  if (child > 0) {
    got = read(ends[0], out, size - 1);
    waitpid(child, NULL, 0);
  }
  close(ends[0]);
  out[got > 0 ? got : 0] = 0;
}

/* OpenBLAS looks its kernels up by processor model and falls back to older ones on models it has not heard of: it is
   then told the AVX-512 core type. */
static void openblas_core_type(const char *folder, const char *file, const char *function) {
  char core[64];
  if (opt.keep_env) return;
  ask_in_child(folder, file, function, core, sizeof core);
  if (core[0] && mlk_isa_available(MLK_ISA_AVX512) && !strstr(core, "kylake") && !strstr(core, "ooperlake") &&
      !strstr(core, "apphire"))
    setenv("OPENBLAS_CORETYPE", "SKYLAKEX", 1);
}

static int openblas_load(peer *p) {
  static const char *const files[] = {"libscipy_openblas.so", "libscipy_openblas.dylib", "libopenblas.so.0", NULL};
  const char *const *file;
  const char *(*core)(void);
  void *library = NULL;
  int scipy;
  for (file = files; *file && !library; file++) {
    if (strncmp(*file, "libscipy", 8) == 0) openblas_core_type("openblas", *file, "scipy_openblas_get_corename");
    library = open_library("openblas", *file);
  }
  if (!library) return peer_absent(p, "openblas", files[0]);
  scipy = find_symbol(library, "scipy_cblas_sgemm", &p->sgemm);
  if (!scipy && !find_symbol(library, "cblas_sgemm", &p->sgemm)) return peer_absent(p, "openblas", files[0]);
  find_symbol(library, scipy ? "scipy_cblas_sgemv" : "cblas_sgemv", &p->sgemv);
  find_symbol(library, scipy ? "scipy_cblas_sgemm_batch_strided" : "cblas_sgemm_batch_strided", &p->sgemm_batch);
  find_symbol(library, scipy ? "scipy_openblas_set_num_threads" : "openblas_set_num_threads", &openblas_threads);
  if (find_symbol(library, scipy ? "scipy_openblas_get_corename" : "openblas_get_corename", &core))
    text(p->core, sizeof p->core, "%s", core());
  peer_version(p, "openblas");
  if (!opt.keep_env) unsetenv("OPENBLAS_CORETYPE");
  return 1;
}

static int onednn_load(peer *p) {
  /* libdnnl names these without saying where they are: loaded first, they are found by name. The plain
     CPU package needs none. */
  static const char *const first[] = {"libintlc.so.5", "libirng.so",        "libimf.so",    "libsvml.so",
                                      "libtbb.so.12",  "libur_loader.so.0", "libsycl.so.9", NULL};
  static const struct {
    int value;
    const char *name;
  } isas[] = {{0x1, "sse41"},         {0x3, "avx"},         {0x7, "avx2"},         {0xf, "avx2_vnni"},
              {0x1f, "avx2_vnni_2"},  {0x27, "avx512"},     {0x67, "avx512_vnni"}, {0xe7, "avx512_bf16"},
              {0x1ef, "avx512_fp16"}, {0xfef, "avx512_amx"}};
  const char *const *file;
  int (*isa)(void);
  void *library;
  size_t i;
  for (file = first; *file; file++) {
    library = open_library("onednn", *file);
    if (library && strcmp(*file, "libtbb.so.12") == 0) {
      find_symbol(library, "_ZN3tbb6detail2r16createERNS0_2d114global_controlE", &tbb_create);
      find_symbol(library, "_ZN3tbb6detail2r17destroyERNS0_2d114global_controlE", &tbb_destroy);
    }
  }
  library = open_library("onednn", "libdnnl.so.3");
  if (!library || !find_symbol(library, "dnnl_sgemm", &p->dnnl_sgemm)) return peer_absent(p, "onednn", "libdnnl.so.3");
  peer_version(p, "onednn");
  if (find_symbol(library, "dnnl_get_effective_cpu_isa", &isa)) {
    const int value = isa();
    text(p->core, sizeof p->core, "isa %#x", (unsigned)value);
    for (i = 0; i < sizeof isas / sizeof *isas; i++)
      if (isas[i].value == value) text(p->core, sizeof p->core, "%s", isas[i].name);
  }
  return 1;
}

/* Whether a file with name in its path is mapped into this process: which of its kernels MKL has loaded. */
static int is_mapped(const char *name) {
  char line[1024];
  FILE *f = fopen("/proc/self/maps", "r");
  int found = 0;
  if (!f) return 0;
  while (!found && fgets(line, sizeof line, f)) found = strstr(line, name) != NULL;
  fclose(f);
  return found;
}

static int mkl_load(peer *p) {
  static const char *const kernels[] = {"avx10", "avx512", "avx2", "mc3", "def"};
  const float x[4] = {1, 1, 1, 1};
  float y[4];
  void *library;
  size_t i;
  setenv("MKL_THREADING_LAYER", "GNU", 0); /* the OpenMP runtime of the process, not one more */
  library = open_library("mkl", "libmkl_rt.so.3");
  if (!library || !find_symbol(library, "cblas_sgemm", &p->sgemm)) return peer_absent(p, "mkl", "libmkl_rt.so.3");
  find_symbol(library, "cblas_sgemv", &p->sgemv);
  find_symbol(library, "cblas_sgemm_batch_strided", &p->sgemm_batch);
  find_symbol(library, "MKL_Set_Num_Threads", &mkl_threads);
  find_symbol(library, "cblas_sgemm_pack_get_size", &mkl_only.pack_size);
  find_symbol(library, "cblas_sgemm_pack", &mkl_only.pack);
  find_symbol(library, "cblas_sgemm_compute", &mkl_only.compute);
  find_symbol(library, "mkl_cblas_jit_create_sgemm", &mkl_only.jit_create);
  find_symbol(library, "mkl_jit_get_sgemm_ptr", &mkl_only.jit_get);
  find_symbol(library, "mkl_jit_destroy", &mkl_only.jit_destroy);
  peer_version(p, "mkl");
  p->sgemm(101, 111, 111, 2, 2, 2, 1, x, 2, x, 2, 0, y, 2); /* the first call loads the kernels */
  text(p->core, sizeof p->core, "?");
  for (i = 0; i < sizeof kernels / sizeof *kernels; i++) {
    char name[32];
    text(name, sizeof name, "libmkl_%s.so", kernels[i]);
    if (is_mapped(name)) {
      text(p->core, sizeof p->core, "%s", kernels[i]);
      break;
    }
  }
  return 1;
}

static int blis_load(peer *p) {
  const float x[4] = {1, 1, 1, 1};
  float y[4];
  int (*query)(void);
  const char *(*name)(int);
  void *library;
  /* BLIS 0.9 knows processors by model; 0 is its skx configuration (AVX-512), 3 haswell (AVX2). */
  if (mlk_isa_available(MLK_ISA_AVX512))
    setenv("BLIS_ARCH_TYPE", "0", 0);
  else if (mlk_isa_available(MLK_ISA_AVX2))
    setenv("BLIS_ARCH_TYPE", "3", 0);
  library = open_library("blis", "libblis.so.4");
  if (!library || !find_symbol(library, "cblas_sgemm", &p->sgemm)) return peer_absent(p, "blis", "libblis.so.4");
  find_symbol(library, "cblas_sgemv", &p->sgemv);
  find_symbol(library, "bli_thread_set_num_threads", &blis_threads);
  peer_version(p, "blis");
  p->sgemm(101, 111, 111, 2, 2, 2, 1, x, 2, x, 2, 0, y,
           2); /* the first call initialises it: it aborts when asked before */
  if (find_symbol(library, "bli_arch_query_id", &query) && find_symbol(library, "bli_arch_string", &name))
    text(p->core, sizeof p->core, "%s", name(query()));
  return 1;
}

/* std::string of libstdc++, returned by value: 15 characters and less stand inside. */
typedef struct cxx_string {
  const char *data;
  size_t length;
  char inside[16];
} cxx_string;

/* FAISS has no C interface in its package; its free functions do, once their mangled names are known. Its OpenMP
   runtime and its OpenBLAS are its own copies, which a look-up in libfaiss finds through its dependencies. */
static int faiss_load(peer *p) {
  const char *(*blas_core)(void);
  cxx_string (*level)(void);
  void *library;
  openblas_core_type("faiss", "faiss/libfaiss.so", "openblas_get_corename");
  library = open_library("faiss", "faiss/libfaiss.so");
  if (!opt.keep_env) unsetenv("OPENBLAS_CORETYPE");
  if (!library) return peer_absent(p, "faiss", "faiss/libfaiss.so");
  if (!find_symbol(library, "_ZN5faiss9knn_L2sqrEPKfS1_mmmmPfPlS1_PKNS_10IDSelectorE", &faiss_only.knn_l2) ||
      !find_symbol(library, "_ZN5faiss17knn_inner_productEPKfS1_mmmmPfPlPKNS_10IDSelectorE", &faiss_only.knn_ip) ||
      !find_symbol(library, "omp_set_num_threads", &faiss_omp_threads))
    return peer_absent(p, "faiss", "faiss/libfaiss.so");
  find_symbol(library, "_ZN5faiss14pairwise_L2sqrEllPKflS1_Pflll", &faiss_only.pairwise);
  find_symbol(library, "openblas_set_num_threads", &faiss_blas_threads);
  peer_version(p, "faiss");
  if (find_symbol(library, "_ZN5faiss10SIMDConfig14get_level_nameB5cxx11Ev", &level)) {
    const cxx_string answer = level();
    if (answer.length < sizeof answer.inside) text(p->core, sizeof p->core, "%.*s", (int)answer.length, answer.inside);
  }
  if (find_symbol(library, "openblas_get_corename", &blas_core)) {
    const size_t used = strlen(p->core);
    text(p->core + used, sizeof p->core - used, ", its OpenBLAS: %s", blas_core());
  }
  return 1;
}

/* Variables that choose a peer's kernels, often left behind by some setup script to mend another program: a comparison
   that obeyed them would be with something slower than the peer. --keep-env obeys them. */
static void forget_environment(void) {
  static const char *const names[] = {"OPENBLAS_CORETYPE",       "OPENBLAS_L2_SIZE", "OPENBLAS_VERBOSE",
                                      "BLIS_ARCH_TYPE",          "MKL_CBWR",         "MKL_DEBUG_CPU_TYPE",
                                      "MKL_ENABLE_INSTRUCTIONS", "MKL_DYNAMIC",      "ONEDNN_MAX_CPU_ISA",
                                      "DNNL_MAX_CPU_ISA",        "FAISS_SIMD_LEVEL"};
  size_t i;
  if (opt.keep_env) return;
  for (i = 0; i < sizeof names / sizeof *names; i++)
    if (getenv(names[i])) {
      printf("environment: %s=%s is not obeyed (--keep-env does)\n", names[i], getenv(names[i]));
      unsetenv(names[i]);
    }
}

static int torch_load(peer *p); /* torch.h */
static int ort_load(peer *p);   /* onnxruntime.h; a session has threads of its own */

/* No library but a method, written in rows_average.h: sums of two vectors, one after another. */
static int chain_load(peer *p) {
  text(p->version, sizeof p->version, "sums of two, as gloo's AllreduceLocal; written in bench");
  text(p->core, sizeof p->core, "%s", mlk_isa_name(opt.isa));
  return 1;
}

static void peers_load(void) {
  static const struct {
    int peer;
    int (*load)(peer *);
  } order[PEER_COUNT] = {{OPENBLAS, openblas_load}, {ONEDNN, onednn_load}, {BLIS, blis_load},   {FAISS, faiss_load},
                         {TORCH, torch_load},       {ORT, ort_load},       {CHAIN, chain_load}, {MKL, mkl_load}};
  int i; /* MKL last: see open_library */
  forget_environment();
  setenv("OPENBLAS_THREAD_TIMEOUT", "22",
         0); /* idle threads spin 2^22 cycles, as long as the other runtimes', not 2^28 */
  for (i = 0; i < PEER_COUNT; i++) {
    dlerror();
    peers[order[i].peer].present = order[i].load(&peers[order[i].peer]);
  }
}

static void peer_set_threads(int which, int threads) {
  if (which == OPENBLAS && openblas_threads) openblas_threads(threads);
  if (which == MKL && mkl_threads) mkl_threads(threads);
  if (which == BLIS && blis_threads) blis_threads(threads);
  if (which == FAISS && faiss_omp_threads) faiss_omp_threads(threads);
  if (which == FAISS && faiss_blas_threads) faiss_blas_threads(threads);
  if (which == TORCH && torch_threads) torch_threads(threads);
  if (which == ONEDNN && tbb_create && tbb_destroy) {
    if (tbb_limited) tbb_destroy(&tbb_limit);
    tbb_limit.value = (size_t)threads, tbb_limit.reserved = 0, tbb_limit.parameter = 0;
    tbb_create(&tbb_limit);
    tbb_limited = 1;
  }
}

/* The same number of threads for everybody. */
static void peers_set_threads(int threads) {
  int i;
  for (i = 0; i < PEER_COUNT; i++) peer_set_threads(i, threads);
#ifdef _OPENMP
  omp_set_num_threads(threads); /* of a oneDNN that runs on the OpenMP of this process */
#endif
}

#endif
