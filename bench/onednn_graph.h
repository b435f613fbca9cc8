/* oneDNN's fused attention, through its graph interface: the library recognises the pattern product, scale, mask,
   softmax, product as one partition, compiled for the shapes. Constants are those of oneDNN 3. Forward only: no pattern
   for a backward pass on the CPU. */
#ifndef BENCH_ONEDNN_GRAPH_H
#define BENCH_ONEDNN_GRAPH_H

enum { /* kinds of operation, attributes, policy */
       DNN_ADD = 2,
       DNN_MATMUL = 39,
       DNN_MULTIPLY = 46,
       DNN_SOFTMAX = 64,
       DNN_TANH = 75,
       DNN_AXIS = 0x30,
       DNN_TRANSPOSE_B = 0x66,
       DNN_FUSION = 1
};
enum { DNN_GRAPH_OPS = 8, DNN_GRAPH_TENSORS = 16 };

/* dnnl_graph_logical_tensor_t */
typedef struct dnn_logical {
  size_t id;
  int rank;
  int64_t shape[12];
  int dtype, property, layout;
  int64_t stride[12];
} dnn_logical;

static struct {
  int present;
  int (*create)(void **graph, int engine_kind);
  int (*destroy)(void *graph);
  int (*op_create)(void **op, size_t id, int kind, const char *name);
  int (*op_destroy)(void *op);
  int (*op_input)(void *op, const dnn_logical *tensor);
  int (*op_output)(void *op, const dnn_logical *tensor);
  int (*op_int)(void *op, int attribute, const int64_t *value, size_t count);
  int (*op_bool)(void *op, int attribute, const uint8_t *value, size_t count);
  int (*add)(void *graph, void *op);
  int (*finalize)(void *graph);
  int (*filter)(void *graph, int policy);
  int (*partition_count)(void *graph, size_t *count);
  int (*partitions)(void *graph, size_t count, void **partitions);
  int (*partition_destroy)(void *partition);
  int (*partition_supported)(void *partition, uint8_t *is_supported);
  int (*compiled_create)(void **compiled, void *partition);
  int (*compiled_destroy)(void *compiled);
  int (*compile)(void *partition, void *compiled, size_t ins, const dnn_logical **in, size_t outs,
                 const dnn_logical **out, void *engine);
  int (*execute)(void *compiled, void *stream, size_t ins, void *const *in, size_t outs, void *const *out);
  int (*tensor_create)(void **tensor, const dnn_logical *logical, void *engine, void *data);
  int (*tensor_destroy)(void *tensor);
} dnng;

static void onednn_graph_load(void) {
  int found = dnn.present;
  if (!found) return;
#define FIND(member, name) found &= find_symbol(dnn.library, "dnnl_graph_" name, &dnng.member)
  FIND(create, "graph_create");
  FIND(destroy, "graph_destroy");
  FIND(op_create, "op_create");
  FIND(op_destroy, "op_destroy");
  FIND(op_input, "op_add_input");
  FIND(op_output, "op_add_output");
  FIND(op_int, "op_set_attr_s64");
  FIND(op_bool, "op_set_attr_bool");
  FIND(add, "add_op");
  FIND(finalize, "graph_finalize");
  FIND(filter, "graph_filter");
  FIND(partition_count, "graph_get_partition_num");
  FIND(partitions, "graph_get_partitions");
  FIND(partition_destroy, "partition_destroy");
  FIND(partition_supported, "partition_is_supported");
  FIND(compiled_create, "compiled_partition_create");
  FIND(compiled_destroy, "compiled_partition_destroy");
  FIND(compile, "partition_compile");
  FIND(execute, "compiled_partition_execute");
  FIND(tensor_create, "tensor_create");
  FIND(tensor_destroy, "tensor_destroy");
#undef FIND
  dnng.present = found;
}

/* out = softmax(scale q k^T + mask) v as one compiled partition. Operands are q, k, scale, mask where there is one, v;
   tensors of k and v are the caller's to make and to destroy (dnn_graph_tensor). */
typedef struct dnn_attention {
  int failed, ins;
  dnn_logical logical[DNN_GRAPH_TENSORS];
  void *compiled, *partition, *graph, *op[DNN_GRAPH_OPS], *in[5], *out;
  int ops, tensors;
} dnn_attention;

static dnn_logical *dnn_logical_make(dnn_attention *a, const mlk_tensor *t) {
  static const int dtypes[MLK_DTYPE_COUNT] = {DNN_F32, 0, 1, 2, 6};
  dnn_logical *l = &a->logical[a->tensors];
  const mlk_tensor dense = mlki_explicit_strides(*t);
  l->id = (size_t)a->tensors++, l->rank = dense.rank, l->dtype = dtypes[dense.dtype], l->layout = 2 /* strided */;
  memcpy(l->shape, dense.shape, sizeof dense.shape);
  memcpy(l->stride, dense.stride, sizeof dense.stride);
  return l;
}

static void *dnn_graph_op(dnn_attention *a, int kind, const dnn_logical *x, const dnn_logical *y,
                          const dnn_logical *out) {
  static const char *const names[DNN_GRAPH_OPS] = {"0", "1", "2", "3", "4", "5", "6", "7"};
  const int n = a->ops++;
  a->failed |= dnng.op_create(&a->op[n], (size_t)n, kind, names[n]) != 0;
  if (a->failed) return NULL;
  a->failed |= dnng.op_input(a->op[n], x) != 0 || (y && dnng.op_input(a->op[n], y) != 0);
  a->failed |= dnng.op_output(a->op[n], out) != 0;
  return a->op[n];
}

/* A tensor of the compiled partition, of logical tensor l on this memory. */
static void *dnn_graph_tensor(dnn_attention *a, const dnn_logical *l, void *data) {
  void *tensor = NULL;
  a->failed |= dnng.tensor_create(&tensor, l, dnn.engine, data) != 0;
  return tensor;
}

static void dnn_attention_compile(dnn_attention *a) {
  const dnn_logical *in[5], *out = &a->logical[a->tensors - 1];
  size_t count = 0;
  uint8_t supported = 0;
  int i;
  for (i = 0; i < a->ops && !a->failed; i++) a->failed = dnng.add(a->graph, a->op[i]) != 0;
  a->failed = a->failed || dnng.finalize(a->graph) != 0 || dnng.filter(a->graph, DNN_FUSION) != 0 ||
              dnng.partition_count(a->graph, &count) != 0 || count != 1 ||
              dnng.partitions(a->graph, 1, &a->partition) != 0 ||
              dnng.partition_supported(a->partition, &supported) != 0 || !supported;
  if (a->failed) return;
  for (i = 0; i < a->ins; i++) in[i] = &a->logical[i];
  a->failed = dnng.compiled_create(&a->compiled, a->partition) != 0 ||
              dnng.compile(a->partition, a->compiled, (size_t)a->ins, in, 1, &out, dnn.engine) != 0;
}

/* Views of four axes, any strides; mask absent or to be broadcast to [B, H, S, T]. */
static void dnn_attention_make(dnn_attention *a, const mlk_tensor *q, const mlk_tensor *k, const mlk_tensor *v,
                               const mlk_tensor *scale, const mlk_tensor *mask, const mlk_tensor *out) {
  static const uint8_t yes = 1;
  static const int64_t last = -1;
  mlk_tensor scores = mlk_f32(NULL, q->shape[0], q->shape[1], q->shape[2], k->shape[2]);
  const dnn_logical *lq, *lk, *lv, *lf, *lm = NULL, *x, *y;
  void *op;
  memset(a, 0, sizeof *a);
  scores.dtype = q->dtype;
  lq = dnn_logical_make(a, q), lk = dnn_logical_make(a, k), lf = dnn_logical_make(a, scale);
  if (mask->data) lm = dnn_logical_make(a, mask);
  lv = dnn_logical_make(a, v);
  a->ins = a->tensors;
  a->failed = dnng.create(&a->graph, DNN_CPU) != 0;
  if (a->failed) return;
  x = dnn_logical_make(a, &scores);
  op = dnn_graph_op(a, DNN_MATMUL, lq, lk, x);
  a->failed |= !op || dnng.op_bool(op, DNN_TRANSPOSE_B, &yes, 1) != 0;
  y = dnn_logical_make(a, &scores);
  dnn_graph_op(a, DNN_MULTIPLY, x, lf, y), x = y;
  if (lm) {
    y = dnn_logical_make(a, &scores);
    dnn_graph_op(a, DNN_ADD, x, lm, y), x = y;
  }
  y = dnn_logical_make(a, &scores);
  op = dnn_graph_op(a, DNN_SOFTMAX, x, NULL, y);
  a->failed |= !op || dnng.op_int(op, DNN_AXIS, &last, 1) != 0;
  x = dnn_logical_make(a, out);
  dnn_graph_op(a, DNN_MATMUL, y, lv, x);
  if (!a->failed) dnn_attention_compile(a);
  if (a->failed) return;
  a->in[0] = dnn_graph_tensor(a, lq, q->data), a->in[2] = dnn_graph_tensor(a, lf, scale->data);
  if (lm) a->in[3] = dnn_graph_tensor(a, lm, mask->data);
  a->out = dnn_graph_tensor(a, x, out->data);
}

static int dnn_attention_run(const dnn_attention *a) {
  if (a->failed || dnng.execute(a->compiled, dnn.stream, (size_t)a->ins, a->in, 1, &a->out) != 0) return 1;
  return dnn.stream_wait(dnn.stream);
}

static void dnn_attention_release(dnn_attention *a) {
  int i;
  for (i = 0; i < a->ins; i++)
    if (a->in[i]) dnng.tensor_destroy(a->in[i]);
  if (a->out) dnng.tensor_destroy(a->out);
  if (a->compiled) dnng.compiled_destroy(a->compiled);
  if (a->partition) dnng.partition_destroy(a->partition);
  for (i = 0; i < a->ops; i++)
    if (a->op[i]) dnng.op_destroy(a->op[i]);
  if (a->graph) dnng.destroy(a->graph);
  memset(a, 0, sizeof *a);
}

#endif
