/* oneDNN's primitives (convolution, pooling, ...) through its C interface: a program is a list of primitives with their
   operands, reorders included, that runs as one contender. Constants are those of oneDNN 3, whose interface is stable
   within the major version. */
#ifndef BENCH_ONEDNN_H
#define BENCH_ONEDNN_H

enum {
  DNN_OMP = 2, /* threading runtimes, see dnnl_version_t */
  DNN_TBB = 4,
  DNN_CPU = 1, /* kind of engine */
  DNN_F32 = 3,
  DNN_TAG_ANY = 1, /* the layout that the primitive likes best */
  DNN_FORWARD_TRAINING = 64,
  DNN_FORWARD_INFERENCE = 96,
  DNN_CONVOLUTION_DIRECT = 1,
  DNN_GELU_ERF = 0x31,
  DNN_POOLING_MAX = 0x1ff,
  DNN_BINARY_ADD = 0x1fff0,
  DNN_BINARY_MUL = 0x1fff1,
  DNN_REDUCTION_SUM = 0x2fff4,
  DNN_SOFTMAX_ACCURATE = 0x30000,
  DNN_USE_SCALE = 2,
  DNN_USE_SHIFT = 4
};
enum { /* operands */
       DNN_SRC = 1,
       DNN_SRC_1 = 2,
       DNN_DST = 17,
       DNN_WEIGHTS = 33,
       DNN_SCALE = 51,
       DNN_SHIFT = 52,
       DNN_DIFF_SRC = 129,
       DNN_DIFF_DST = 145,
       DNN_DIFF_WEIGHTS = 161
};
enum { /* questions to a primitive descriptor */
       DNN_ASK_SRC = 129,
       DNN_ASK_DIFF_SRC = 130,
       DNN_ASK_WEIGHTS = 131,
       DNN_ASK_DIFF_WEIGHTS = 132,
       DNN_ASK_DST = 133,
       DNN_ASK_DIFF_DST = 134
};

typedef struct dnn_arg {
  int what;
  void *memory;
} dnn_arg;

/* Every function returns 0 for success but md_equal, md_size and ask_md. Descriptors, memories and primitives are
   pointers to unknown structs; md is a memory descriptor, pd a primitive descriptor. */
static struct {
  int present;
  void *library, *engine, *stream;
  int (*engine_create)(void **engine, int kind, size_t index);
  int (*stream_create)(void **stream, void *engine, unsigned flags);
  int (*stream_wait)(void *stream);
  int (*md_strides)(void **md, int rank, const int64_t *shape, int dtype, const int64_t *stride);
  int (*md_tag)(void **md, int rank, const int64_t *shape, int dtype, int tag);
  int (*md_equal)(const void *a, const void *b);
  size_t (*md_size)(const void *md);
  int (*md_destroy)(void *md);
  int (*memory_create)(void **memory, const void *md, void *engine, void *data);
  int (*memory_destroy)(void *memory);
  const void *(*ask_md)(const void *pd, int what, int index);
  int (*pd_destroy)(void *pd);
  int (*primitive_create)(void **primitive, const void *pd);
  int (*primitive_destroy)(void *primitive);
  int (*execute)(const void *primitive, void *stream, int count, const dnn_arg *args);
  int (*reorder)(void **pd, const void *from, void *from_engine, const void *to, void *to_engine, const void *attr);
  int (*conv)(void **pd, void *engine, int prop, int algorithm, const void *x, const void *w, const void *bias,
              const void *y, const int64_t *stride, const int64_t *dilation, const int64_t *before,
              const int64_t *after, const void *attr);
  int (*conv_grad_input)(void **pd, void *engine, int algorithm, const void *dx, const void *w, const void *dy,
                         const int64_t *stride, const int64_t *dilation, const int64_t *before, const int64_t *after,
                         const void *forward, const void *attr);
  int (*conv_grad_weights)(void **pd, void *engine, int algorithm, const void *x, const void *dw, const void *dbias,
                           const void *dy, const int64_t *stride, const int64_t *dilation, const int64_t *before,
                           const int64_t *after, const void *forward, const void *attr);
  int (*eltwise)(void **pd, void *engine, int prop, int algorithm, const void *src, const void *dst, float alpha,
                 float beta, const void *attr);
  int (*binary)(void **pd, void *engine, int algorithm, const void *a, const void *b, const void *dst,
                const void *attr);
  int (*reduction)(void **pd, void *engine, int algorithm, const void *src, const void *dst, float p, float epsilon,
                   const void *attr);
  int (*softmax)(void **pd, void *engine, int prop, int algorithm, const void *src, const void *dst, int axis,
                 const void *attr);
  int (*layer_norm)(void **pd, void *engine, int prop, const void *src, const void *dst, const void *stat,
                    float epsilon, unsigned flags, const void *attr);
  int (*pooling)(void **pd, void *engine, int prop, int algorithm, const void *src, const void *dst,
                 const int64_t *stride, const int64_t *window, const int64_t *dilation, const int64_t *before,
                 const int64_t *after, const void *attr);
} dnn;

/* The threading runtime of a library that is loaded, with its version as text; 0 when it does not say. */
static unsigned onednn_runtime(void *library, char *version, size_t size) {
  typedef struct dnn_version {
    int major, minor, patch;
    const char *hash;
    unsigned cpu_runtime, gpu_runtime;
  } dnn_version;
  const dnn_version *(*ask)(void);
  if (!library || !find_symbol(library, "dnnl_version", &ask)) return 0;
  text(version, size, "%d.%d.%d", ask()->major, ask()->minor, ask()->patch);
  return ask()->major == 3 ? ask()->cpu_runtime : 0;
}

/* The package that has dnnl_sgemm is built for SYCL, whose engine needs a driver for the processor. The primitives
   therefore come from a second library, in onednn_cpu, on the OpenMP runtime of this process, or from the first one
   where that is a plain CPU build. */
static void onednn_primitives_load(void) {
  static const char *const folders[] = {"onednn_cpu", "onednn"};
  char version[32] = "";
  void *library = NULL;
  unsigned runtime = 0;
  size_t i, used;
  int found = 1;
  for (i = 0; i < sizeof folders / sizeof *folders && runtime != DNN_OMP && runtime != DNN_TBB; i++) {
    library = open_library(folders[i], "libdnnl.so.3");
    runtime = onednn_runtime(library, version, sizeof version);
  }
  if (runtime != DNN_OMP && runtime != DNN_TBB) return;
#define FIND(member, name) found &= find_symbol(library, "dnnl_" name, &dnn.member)
  FIND(engine_create, "engine_create");
  FIND(stream_create, "stream_create");
  FIND(stream_wait, "stream_wait");
  FIND(md_strides, "memory_desc_create_with_strides");
  FIND(md_tag, "memory_desc_create_with_tag");
  FIND(md_equal, "memory_desc_equal");
  FIND(md_size, "memory_desc_get_size");
  FIND(md_destroy, "memory_desc_destroy");
  FIND(memory_create, "memory_create");
  FIND(memory_destroy, "memory_destroy");
  FIND(ask_md, "primitive_desc_query_md");
  FIND(pd_destroy, "primitive_desc_destroy");
  FIND(primitive_create, "primitive_create");
  FIND(primitive_destroy, "primitive_destroy");
  FIND(execute, "primitive_execute");
  FIND(reorder, "reorder_primitive_desc_create");
  FIND(conv, "convolution_forward_primitive_desc_create");
  FIND(conv_grad_input, "convolution_backward_data_primitive_desc_create");
  FIND(conv_grad_weights, "convolution_backward_weights_primitive_desc_create");
  FIND(eltwise, "eltwise_forward_primitive_desc_create");
  FIND(binary, "binary_primitive_desc_create");
  FIND(reduction, "reduction_primitive_desc_create");
  FIND(softmax, "softmax_forward_primitive_desc_create");
  FIND(layer_norm, "layer_normalization_forward_primitive_desc_create");
  FIND(pooling, "pooling_forward_primitive_desc_create");
#undef FIND
  if (!found || dnn.engine_create(&dnn.engine, DNN_CPU, 0) != 0 ||
      dnn.stream_create(&dnn.stream, dnn.engine, 1 /* in order */) != 0)
    return;
  dnn.present = 1, dnn.library = library;
  used = strlen(peers[ONEDNN].core);
  if (!peers[ONEDNN].present) text(peers[ONEDNN].version, sizeof peers[ONEDNN].version, "no dnnl_sgemm");
  text(peers[ONEDNN].core + used, sizeof peers[ONEDNN].core - used, "%sprimitives: %s", used ? ", " : "", version);
  peers[ONEDNN].present = 1;
}

enum { DNN_STEPS = 6, DNN_ARGS = 6, DNN_OWNED = 48 };

typedef struct dnn_program {
  int failed, steps, owned;
  struct {
    void *primitive;
    int count;
    dnn_arg args[DNN_ARGS];
  } step[DNN_STEPS];
  struct {
    void *object;
    int (*destroy)(void *);
  } own[DNN_OWNED]; /* in the order of their making */
} dnn_program;

static void *dnn_own(dnn_program *p, int status, void *object, int (*destroy)(void *)) {
  if (status != 0 || p->owned == DNN_OWNED) {
    p->failed = 1;
    return NULL;
  }
  p->own[p->owned].object = object, p->own[p->owned].destroy = destroy;
  p->owned++;
  return object;
}

static void dnn_release(dnn_program *p) {
  while (p->owned > 0) {
    p->owned--;
    p->own[p->owned].destroy(p->own[p->owned].object);
  }
  memset(p, 0, sizeof *p);
}

/* A view as it lies; stride NULL: dense row-major. */
static void *dnn_view(dnn_program *p, int rank, const int64_t *shape, const int64_t *stride) {
  int64_t dense[MLK_MAX_RANK], step = 1;
  void *md = NULL;
  int i, status;
  for (i = rank - 1; i >= 0; i--) dense[i] = step, step *= shape[i];
  status = dnn.md_strides(&md, rank, shape, DNN_F32, stride ? stride : dense);
  return dnn_own(p, status, md, dnn.md_destroy);
}

/* A tensor whose layout the primitive may choose. */
static void *dnn_any(dnn_program *p, int rank, const int64_t *shape) {
  void *md = NULL;
  const int status = dnn.md_tag(&md, rank, shape, DNN_F32, DNN_TAG_ANY);
  return dnn_own(p, status, md, dnn.md_destroy);
}

/* data NULL: memory of the row, of the size that md needs. */
static void *dnn_memory(dnn_program *p, const void *md, void *data) {
  void *memory = NULL;
  int status;
  if (p->failed || !md) {
    p->failed = 1;
    return NULL;
  }
  status = dnn.memory_create(&memory, md, dnn.engine, data ? data : row_alloc(dnn.md_size(md)));
  return dnn_own(p, status, memory, dnn.memory_destroy);
}

/* Appends the primitive of pd; arguments follow by dnn_arg_add. */
static void dnn_step(dnn_program *p, void *pd) {
  void *primitive = NULL;
  int status;
  if (p->failed || p->steps == DNN_STEPS) {
    p->failed = 1;
    return;
  }
  status = dnn.primitive_create(&primitive, pd);
  p->step[p->steps].count = 0;
  p->step[p->steps].primitive = dnn_own(p, status, primitive, dnn.primitive_destroy);
  p->steps++;
}

static void dnn_arg_add(dnn_program *p, int what, void *memory) {
  const int last = p->steps - 1;
  if (p->failed || !memory || p->step[last].count == DNN_ARGS) {
    p->failed = 1;
    return;
  }
  p->step[last].args[p->step[last].count].what = what;
  p->step[last].args[p->step[last].count].memory = memory;
  p->step[last].count++;
}

static void dnn_reorder(dnn_program *p, const void *from_md, void *from, const void *to_md, void *to) {
  void *pd = NULL;
  int status;
  if (p->failed) return;
  status = dnn.reorder(&pd, from_md, dnn.engine, to_md, dnn.engine, NULL);
  dnn_own(p, status, pd, dnn.pd_destroy);
  dnn_step(p, pd);
  dnn_arg_add(p, DNN_SRC, from);
  dnn_arg_add(p, DNN_DST, to);
}

static int dnn_run(const dnn_program *p) {
  int i, status = p->failed;
  for (i = 0; i < p->steps && status == 0; i++)
    status = dnn.execute(p->step[i].primitive, dnn.stream, p->step[i].count, p->step[i].args);
  return status == 0 ? dnn.stream_wait(dnn.stream) : status;
}

#endif
