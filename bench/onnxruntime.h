/* ONNX Runtime through its C interface, on models of one node that are written here. */
#ifndef BENCH_ONNXRUNTIME_H
#define BENCH_ONNXRUNTIME_H

enum { ORT_OPERANDS = 8, ORT_FLOAT = 1, ORT_INT32 = 6, ORT_FLOAT16 = 10 };

/* Functions return a status: NULL for success, else an object to be released. Their table only ever grows at its end,
   so a place in it is for good (onnxruntime_c_api.h, struct OrtApi). */
static struct {
  void *env, *memory;
  void *(*create_env)(int severity, const char *name, void **env);
  void *(*create_session)(void *env, const void *model, size_t bytes, const void *options, void **session);
  void *(*run)(void *session, const void *options, const char *const *in_names, const void *const *in, size_t in_count,
               const char *const *out_names, size_t out_count, void **out);
  void *(*create_options)(void **options);
  void *(*set_intra_threads)(void *options, int threads);
  void *(*set_inter_threads)(void *options, int threads);
  void *(*create_tensor)(const void *memory, void *data, size_t bytes, const int64_t *shape, size_t rank, int dtype,
                         void **value);
  void *(*create_memory_info)(int allocator, int kind, void **memory);
  const char *(*message)(const void *status);
  void (*release_status)(void *status);
  void (*release_session)(void *session);
  void (*release_value)(void *value);
  void (*release_options)(void *options);
} ort;

static char ort_error[192]; /* the last failed call's */

static int ort_ok(void *status) {
  if (!status) return 1;
  text(ort_error, sizeof ort_error, "%s", ort.message(status));
  ort.release_status(status);
  return 0;
}

static int ort_load(peer *p) {
  typedef struct ort_api_base {
    const void *(*api)(uint32_t version);
    const char *(*version)(void);
  } ort_api_base;
  const ort_api_base *(*base)(void);
  void *const *table = NULL;
  void *library = open_library("onnxruntime", "libonnxruntime.so");
  if (!library || !find_symbol(library, "OrtGetApiBase", &base))
    return peer_absent(p, "onnxruntime", "libonnxruntime.so");
  table = (void *const *)base()->api(1);
  if (!table) return peer_absent(p, "onnxruntime", "libonnxruntime.so");
#define AT(place, member) memcpy(&ort.member, &table[place], sizeof table[place])
  AT(2, message), AT(3, create_env), AT(8, create_session), AT(9, run), AT(10, create_options);
  AT(24, set_intra_threads), AT(25, set_inter_threads), AT(49, create_tensor), AT(69, create_memory_info);
  AT(93, release_status), AT(95, release_session), AT(96, release_value), AT(100, release_options);
#undef AT
  if (!ort_ok(ort.create_env(4, "bench", &ort.env)) || !ort_ok(ort.create_memory_info(0, 0, &ort.memory)))
    return peer_absent(p, "onnxruntime", "libonnxruntime.so");
  text(p->version, sizeof p->version, "%s", base()->version());
  text(p->core, sizeof p->core, "its own choice");
  return 1;
}

/* ------------------------------------------------------------------------ a model as protocol buffers (onnx.proto) */

typedef struct proto {
  unsigned char data[4096];
  size_t size;
} proto;

static void proto_byte(proto *p, unsigned byte) {
  if (p->size == sizeof p->data) die("a model of onnxruntime's is longer than %d bytes", (int)sizeof p->data);
  p->data[p->size++] = (unsigned char)byte;
}

static void proto_number(proto *p, uint64_t n) {
  for (; n >= 128; n >>= 7) proto_byte(p, (unsigned)(n & 127) | 128);
  proto_byte(p, (unsigned)n);
}

static void proto_int(proto *p, int field, int64_t n) {
  proto_number(p, (uint64_t)field << 3);
  proto_number(p, (uint64_t)n);
}

static void proto_bytes(proto *p, int field, const void *bytes, size_t size) {
  size_t i;
  proto_number(p, (uint64_t)field << 3 | 2);
  proto_number(p, size);
  for (i = 0; i < size; i++) proto_byte(p, ((const unsigned char *)bytes)[i]);
}

static void proto_text(proto *p, int field, const char *s) { proto_bytes(p, field, s, strlen(s)); }

/* -------------------------------------------------------------------------------------------- one node, one session */

typedef struct ort_operand {
  const char *name;
  int dtype, rank; /* rank -1: the node goes without this operand */
  int64_t shape[5];
  void *value; /* the tensor; of several copies the one to be used next */
} ort_operand;

typedef struct ort_program {
  proto node;
  ort_operand in[ORT_OPERANDS], out[ORT_OPERANDS];
  int ins, outs, failed;
  void *session;
} ort_program;

/* A tensor on memory of the row's; the caller may put it into the operand's value. */
static void *ort_value(ort_program *p, const ort_operand *o, void *data) {
  const size_t size = o->dtype == ORT_FLOAT16 ? 2 : 4;
  size_t count = 1;
  void *value = NULL;
  int i;
  for (i = 0; i < o->rank; i++) count *= (size_t)o->shape[i];
  if (!ort_ok(ort.create_tensor(ort.memory, data, count * size, o->shape, (size_t)o->rank, o->dtype, &value)))
    p->failed = 1;
  return value;
}

/* Appends an operand [a, b, c, d], without its last axes where they are 0; a 0: it is left out, as
   optional ones may be. */
static ort_operand *ort_add(ort_program *p, int output, const char *name, int dtype, int64_t a, int64_t b, int64_t c,
                            int64_t d) {
  ort_operand *o = output ? &p->out[p->outs++] : &p->in[p->ins++];
  o->name = a ? name : "", o->dtype = dtype;
  o->shape[0] = a, o->shape[1] = b, o->shape[2] = c, o->shape[3] = d;
  o->rank = !a ? -1 : !b ? 1 : !c ? 2 : !d ? 3 : 4;
  return o;
}

static void ort_attribute(ort_program *p, const char *name, int is_float, double value) {
  const float number = (float)value;
  proto attribute;
  attribute.size = 0;
  proto_text(&attribute, 1, name);
  if (is_float) {
    proto_number(&attribute, 2 << 3 | 5);
    proto_byte(&attribute, 0), proto_byte(&attribute, 0), proto_byte(&attribute, 0), proto_byte(&attribute, 0);
    memcpy(attribute.data + attribute.size - 4, &number, 4);
  } else {
    proto_int(&attribute, 3, (int64_t)value);
  }
  proto_int(&attribute, 20, is_float ? 1 : 2);
  proto_bytes(&p->node, 5, attribute.data, attribute.size);
}

static void ort_declare(proto *graph, int field, const ort_operand *o) {
  proto shape, tensor, type, info;
  int i;
  shape.size = tensor.size = type.size = info.size = 0;
  for (i = 0; i < o->rank; i++) {
    proto dimension;
    dimension.size = 0;
    proto_int(&dimension, 1, o->shape[i]);
    proto_bytes(&shape, 1, dimension.data, dimension.size);
  }
  proto_int(&tensor, 1, o->dtype), proto_bytes(&tensor, 2, shape.data, shape.size);
  proto_bytes(&type, 1, tensor.data, tensor.size);
  proto_text(&info, 1, o->name), proto_bytes(&info, 2, type.data, type.size);
  proto_bytes(graph, field, info.data, info.size);
}

/* The session of a model with this one node, its operands and attributes added before. */
static void ort_make(ort_program *p, const char *domain, const char *op, int threads) {
  proto graph, model, opset;
  void *options = NULL;
  int i;
  graph.size = model.size = opset.size = 0;
  for (i = 0; i < p->ins; i++) proto_text(&p->node, 1, p->in[i].name);
  for (i = 0; i < p->outs; i++) proto_text(&p->node, 2, p->out[i].name);
  proto_text(&p->node, 4, op), proto_text(&p->node, 7, domain);
  proto_bytes(&graph, 1, p->node.data, p->node.size), proto_text(&graph, 2, "g");
  for (i = 0; i < p->ins; i++)
    if (p->in[i].rank >= 0) ort_declare(&graph, 11, &p->in[i]);
  for (i = 0; i < p->outs; i++) ort_declare(&graph, 12, &p->out[i]);
  proto_int(&model, 1, 10), proto_bytes(&model, 7, graph.data, graph.size);
  proto_text(&opset, 1, ""), proto_int(&opset, 2, 23), proto_bytes(&model, 8, opset.data, opset.size);
  opset.size = 0;
  proto_text(&opset, 1, "com.microsoft"), proto_int(&opset, 2, 1), proto_bytes(&model, 8, opset.data, opset.size);
  if (!ort_ok(ort.create_options(&options)) || !ort_ok(ort.set_intra_threads(options, threads)) ||
      !ort_ok(ort.set_inter_threads(options, 1)) ||
      !ort_ok(ort.create_session(ort.env, model.data, model.size, options, &p->session)))
    p->failed = 1;
  if (options) ort.release_options(options);
}

static int ort_run(const ort_program *p) {
  const char *in_names[ORT_OPERANDS], *out_names[ORT_OPERANDS];
  const void *in[ORT_OPERANDS];
  void *out[ORT_OPERANDS];
  size_t ins = 0;
  int i;
  if (p->failed) return 0;
  for (i = 0; i < p->ins; i++)
    if (p->in[i].rank >= 0) in_names[ins] = p->in[i].name, in[ins++] = p->in[i].value;
  for (i = 0; i < p->outs; i++) out_names[i] = p->out[i].name, out[i] = p->out[i].value;
  return ort_ok(ort.run(p->session, NULL, in_names, in, ins, out_names, (size_t)p->outs, out));
}

static void ort_release(ort_program *p) {
  int i;
  for (i = 0; i < p->ins; i++)
    if (p->in[i].value) ort.release_value(p->in[i].value);
  for (i = 0; i < p->outs; i++)
    if (p->out[i].value) ort.release_value(p->out[i].value);
  if (p->session) ort.release_session(p->session);
  memset(p, 0, sizeof *p);
}

#endif
