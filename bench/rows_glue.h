/* The rows of what stands between the large operators: maps, reductions, pooling, softmax, normalisation,
   cross-entropy, an optimiser's step. All are bound by memory: glue/near works on what a second-level cache holds,
   glue/far on more than the last one does; the ceiling is copying (a sum: reading) as many bytes. Checked element by
   element against libm in double. */
#ifndef BENCH_ROWS_GLUE_H
#define BENCH_ROWS_GLUE_H

typedef enum glue_op {
  GLUE_ADD,
  GLUE_MUL,
  GLUE_GELU,
  GLUE_SUM,
  GLUE_POOL_FIRST,
  GLUE_POOL_LAST,
  GLUE_SOFTMAX,
  GLUE_LAYER_NORM,
  GLUE_RMS_NORM,
  GLUE_CROSS_ENTROPY,
  GLUE_ADAMW,
  GLUE_OPS
} glue_op;

enum { GLUE_BUFFERS = 4 };

static int glue_is_norm(glue_op op) { return op == GLUE_LAYER_NORM || op == GLUE_RMS_NORM; }
static int glue_is_pool(glue_op op) { return op == GLUE_POOL_FIRST || op == GLUE_POOL_LAST; }
static int glue_has_two(glue_op op) { return op == GLUE_ADD || op == GLUE_MUL; }

typedef struct glue_spec {
  glue_op op;
  int64_t rows, width; /* pooling: channels, height and width of the square image */
  problem_common common;
} glue_spec;

typedef struct glue_state {
  glue_op op;
  int64_t rows, width;
  int64_t count[GLUE_BUFFERS], expected_count;
  float *buffer[GLUE_BUFFERS]; /* adamw: parameters, gradient, m, v; else operands, and the result in the last one */
  float *start[GLUE_BUFFERS];  /* adamw: what the updated ones begin as */
  double *expected, tolerance, slack; /* relative and absolute bound of the error; 0: equal */
  int64_t *labels;
  float scale;
  mlk_context *ctx;
  mlk_map_desc map;
  mlk_reduce_desc reduce;
  mlk_pool_desc pool;
  mlk_softmax_desc softmax;
  mlk_norm_desc norm;
  mlk_cross_entropy_desc entropy;
  mlk_adamw_desc adamw;
  dnn_program program;
} glue_state;

static float *glue_result(const glue_state *w) { return w->buffer[w->op == GLUE_ADAMW ? 0 : GLUE_BUFFERS - 1]; }

static void glue_call(void *arg) {
  glue_state *w = (glue_state *)arg;
  mlk_status status = MLK_ERR_ARGUMENT;
  switch (w->op) {
  case GLUE_ADD:
  case GLUE_MUL:
  case GLUE_GELU: status = mlk_map(w->ctx, &w->map); break;
  case GLUE_SUM: status = mlk_reduce(w->ctx, &w->reduce); break;
  case GLUE_POOL_FIRST:
  case GLUE_POOL_LAST: status = mlk_pool(w->ctx, &w->pool); break;
  case GLUE_SOFTMAX: status = mlk_softmax(w->ctx, &w->softmax); break;
  case GLUE_LAYER_NORM:
  case GLUE_RMS_NORM: status = mlk_norm(w->ctx, &w->norm); break;
  case GLUE_CROSS_ENTROPY: status = mlk_cross_entropy(w->ctx, &w->entropy); break;
  case GLUE_ADAMW: status = mlk_adamw(w->ctx, &w->adamw); break;
  case GLUE_OPS: break;
  }
  if (status != MLK_OK) call_failed(glue_result(w));
}

static mlk_status glue_plan(void *arg, mlk_plan *plan) {
  const glue_state *w = (const glue_state *)arg;
  switch (w->op) {
  case GLUE_ADD:
  case GLUE_MUL:
  case GLUE_GELU: return mlk_map_plan(w->ctx, &w->map, plan);
  case GLUE_SUM: return mlk_reduce_plan(w->ctx, &w->reduce, plan);
  case GLUE_POOL_FIRST:
  case GLUE_POOL_LAST: return mlk_pool_plan(w->ctx, &w->pool, plan);
  case GLUE_SOFTMAX: return mlk_softmax_plan(w->ctx, &w->softmax, plan);
  case GLUE_LAYER_NORM:
  case GLUE_RMS_NORM: return mlk_norm_plan(w->ctx, &w->norm, plan);
  case GLUE_CROSS_ENTROPY: return mlk_cross_entropy_plan(w->ctx, &w->entropy, plan);
  case GLUE_ADAMW: return mlk_adamw_plan(w->ctx, &w->adamw, plan);
  case GLUE_OPS: break;
  }
  return MLK_ERR_ARGUMENT;
}

static void glue_onednn_call(void *arg) {
  glue_state *w = (glue_state *)arg;
  if (dnn_run(&w->program) != 0) fill_nan(glue_result(w), 1);
}

static void glue_spoil(void *arg) {
  const glue_state *w = (const glue_state *)arg;
  int i;
  if (w->op != GLUE_ADAMW) fill_nan(glue_result(w), w->expected_count);
  for (i = 0; i < GLUE_BUFFERS && w->op == GLUE_ADAMW; i++)
    memcpy(w->buffer[i], w->start[i], (size_t)w->count[i] * sizeof(float));
}

static void glue_check(void *arg, const contender *who, char *why, size_t size) {
  const glue_state *w = (const glue_state *)arg;
  const float *got = glue_result(w);
  int64_t i;
  for (i = 0; i < w->expected_count; i++) {
    const double e = w->expected[i];
    if (fabs((double)got[i] - e) <= w->tolerance * fabs(e) + w->slack) continue;
    text(why, size, "element %lld is %.9g, but should be %.17g", (long long)i, (double)got[i], e);
    break;
  }
  if (who->peer < 0 && why[0] && mlk_last_error(w->ctx)[0]) text(why, size, "%s", mlk_last_error(w->ctx));
}

/* One row of softmax, layer norm, cross-entropy's gradient, or a sum. */
static void glue_expect_row(const glue_state *w, int64_t row_index) {
  const int64_t d = w->width;
  const float *x = w->buffer[0] + row_index * d;
  double *e = w->expected + row_index * (w->op == GLUE_SUM ? 1 : d), largest = (double)x[0], sum = 0, squares = 0;
  int64_t j;
  for (j = 0; j < d; j++) largest = greater(largest, (double)x[j]);
  for (j = 0; j < d && w->op != GLUE_RMS_NORM; j++)
    sum += w->op == GLUE_SUM || w->op == GLUE_LAYER_NORM ? (double)x[j] : exp((double)x[j] - largest);
  for (j = 0; j < d; j++) squares += ((double)x[j] - sum / (double)d) * ((double)x[j] - sum / (double)d);
  if (w->op == GLUE_SUM) e[0] = sum;
  for (j = 0; j < d && w->op != GLUE_SUM; j++) {
    if (glue_is_norm(w->op))
      e[j] = ((double)x[j] - sum / (double)d) / sqrt(squares / (double)d + 1e-5) * (double)w->buffer[1][j] +
             (double)w->buffer[2][j];
    else
      e[j] = exp((double)x[j] - largest) / sum;
    if (w->op == GLUE_CROSS_ENTROPY) e[j] = (double)w->scale * (e[j] - (j == w->labels[row_index]));
  }
}

/* Windows 3 x 3, stride 2, padded by 1 at the front, as after the first convolution of a ResNet. */
static void glue_expect_pool(const glue_state *w) {
  const int64_t c = w->rows, in = w->width, out = in / 2;
  const int64_t step = w->op == GLUE_POOL_LAST ? c : 1, plane = w->op == GLUE_POOL_LAST ? 1 : in * in;
  const int64_t out_plane = w->op == GLUE_POOL_LAST ? 1 : out * out;
  int64_t k, y, x, i, j;
  for (k = 0; k < c; k++)
    for (y = 0; y < out; y++)
      for (x = 0; x < out; x++) {
        double largest = -INFINITY;
        for (i = 2 * y - 1; i < 2 * y + 2; i++)
          for (j = 2 * x - 1; j < 2 * x + 2; j++)
            if (i >= 0 && j >= 0 && i < in && j < in)
              largest = greater(largest, (double)w->buffer[0][k * plane + (i * in + j) * step]);
        w->expected[k * out_plane + (y * out + x) * step] = largest;
      }
}

static void glue_expect(glue_state *w) {
  const float *a = w->buffer[0], *b = w->buffer[1];
  int64_t i;
  if (glue_is_pool(w->op)) glue_expect_pool(w);
  if (w->op == GLUE_SUM || w->op == GLUE_SOFTMAX || glue_is_norm(w->op) || w->op == GLUE_CROSS_ENTROPY)
    for (i = 0; i < w->rows; i++) glue_expect_row(w, i);
  for (i = 0; i < w->expected_count; i++) {
    if (w->op == GLUE_ADD) w->expected[i] = (double)a[i] + (double)b[i];
    if (w->op == GLUE_MUL) w->expected[i] = (double)a[i] * (double)b[i];
    if (w->op == GLUE_GELU) w->expected[i] = (double)a[i] / 2 * erfc((double)a[i] * -0.70710678118654752440);
    if (w->op == GLUE_ADAMW) { /* step 3 */
      const double g = (double)b[i], m = 0.9 * (double)w->buffer[2][i] + 0.1 * g;
      const double v = 0.999 * (double)w->buffer[3][i] + 0.001 * g * g;
      w->expected[i] = (double)a[i] * (1 - 1e-3 * 0.01) -
                       1e-3 * (m / (1 - pow(0.9, 3))) / (sqrt(v / (1 - pow(0.999, 3))) + 1e-8);
    }
  }
}

static void glue_describe(glue_state *w) {
  float *b[GLUE_BUFFERS];
  const int64_t rows = w->rows, d = w->width;
  mlk_tensor in, out;
  int i;
  for (i = 0; i < GLUE_BUFFERS; i++) b[i] = (float *)there(w->buffer[i]);
  in = mlk_f32(b[0], rows, d), out = mlk_f32(b[3], rows, d);
  w->map.op = w->op == GLUE_ADD ? MLK_ADD : w->op == GLUE_MUL ? MLK_MUL : MLK_ACT;
  w->map.activation = glue_has_two(w->op) ? MLK_NONE : MLK_GELU;
  w->map.a = in, w->map.out = out;
  if (glue_has_two(w->op)) w->map.b = mlk_f32(b[1], rows, d);
  w->reduce.x = in, w->reduce.axes = 2, w->reduce.out = mlk_f32(b[3], rows);
  w->pool.x = mlk_f32(b[0], 1, rows, d, d), w->pool.y = mlk_f32(b[3], 1, rows, d / 2, d / 2);
  if (w->op == GLUE_POOL_LAST)
    w->pool.x = mlk_channels_last(mlk_f32(b[0], 1, d, d, rows)),
    w->pool.y = mlk_channels_last(mlk_f32(b[3], 1, d / 2, d / 2, rows));
  w->pool.window[0] = w->pool.window[1] = 3;
  w->pool.geometry.stride[0] = w->pool.geometry.stride[1] = 2;
  w->pool.geometry.pad_before[0] = w->pool.geometry.pad_before[1] = 1;
  w->softmax.x = in, w->softmax.y = out;
  w->norm.kind = w->op == GLUE_RMS_NORM ? MLK_NORM_RMS : MLK_NORM_LAYER;
  w->norm.x = in, w->norm.gamma = mlk_f32(b[1], d), w->norm.beta = mlk_f32(b[2], d), w->norm.y = out;
  w->scale = 1.0f / 64, w->entropy.scale = &w->scale;
  w->entropy.x = in, w->entropy.labels = mlk_i64((int64_t *)there(w->labels), rows), w->entropy.dx = out;
  w->adamw.param = in, w->adamw.grad = mlk_f32(b[1], rows, d);
  w->adamw.m = mlk_f32(b[2], rows, d), w->adamw.v = mlk_f32(b[3], rows, d);
  w->adamw.step = 3, w->adamw.lr = 1e-3f, w->adamw.weight_decay = 0.01f;
}

/* Returns the bytes that the operation moves at least. */
static double glue_prepare(glue_state *w, const glue_spec *s) {
  const glue_op op = s->op;
  const int64_t lines = s->rows, width = s->width, n = lines * width, image = n * width;
  double bytes = 0;
  uint64_t seed = 40;
  int64_t i;
  int j;
  memset(w, 0, sizeof *w);
  w->op = op, w->rows = lines, w->width = width;
  w->ctx = context(s->common.threads, s->common.isa, MLK_STRICT);
  w->count[0] = n, w->count[3] = n, w->expected_count = n;
  if (glue_is_pool(op)) w->count[0] = image, w->count[3] = w->expected_count = image / 4;
  if (op == GLUE_SUM) w->count[3] = w->expected_count = lines;
  if (glue_has_two(op) || op == GLUE_ADAMW) w->count[1] = n;
  if (op == GLUE_ADAMW) w->count[2] = n;
  if (glue_is_norm(op)) w->count[1] = w->count[2] = width;
  for (j = 0; j < GLUE_BUFFERS; j++) {
    bytes += 4.0 * (double)w->count[j] * (op == GLUE_ADAMW && j != 1 ? 2 : 1);
    if (w->count[j] == 0) continue;
    w->buffer[j] = row_floats(w->count[j]);
    /* Multiples of 1/8 from -4 to 4: sums are exact. AdamW's v is positive, and its step large enough to be seen */
    for (i = 0; i < w->count[j]; i++)
      w->buffer[j][i] = (float)random_int(&seed, op == GLUE_ADAMW && j > 0 ? 1 : -32, 32) / 8;
    if (op != GLUE_ADAMW) continue;
    w->start[j] = row_floats(w->count[j]);
    memcpy(w->start[j], w->buffer[j], (size_t)w->count[j] * sizeof(float));
  }
  w->labels = (int64_t *)row_alloc((size_t)lines * sizeof *w->labels);
  for (i = 0; i < lines; i++) w->labels[i] = random_int(&seed, 0, (int)width - 1);
  w->expected = (double *)row_alloc((size_t)w->expected_count * sizeof *w->expected);
  /* The peers' erf, exp and roots are not MLK's: a bound that all keep, and no wrong formula does. Where terms cancel,
     at the zeros of a normalised row and in the tail of GELU, it is absolute, in units of the operands. */
  w->tolerance = glue_has_two(op) || op == GLUE_SUM || glue_is_pool(op) ? 0 : 2e-5;
  w->slack = op == GLUE_GELU || glue_is_norm(op) ? 2e-6 : 0;
  glue_describe(w);
  glue_expect(w);
  return bytes;
}

static void glue_onednn_make(glue_state *w) {
  const int pooling = glue_is_pool(w->op);
  const int64_t shape[2] = {w->rows, w->width}, sums[2] = {w->rows, 1}, two[2] = {2, 2}, three[2] = {3, 3},
                one[2] = {1, 1}, none[2] = {0, 0};
  dnn_program *p = &w->program;
  const mlk_tensor x = mlki_explicit_strides(w->pool.x), y = mlki_explicit_strides(w->pool.y);
  void *from = pooling ? dnn_view(p, 4, x.shape, x.stride) : dnn_view(p, 2, shape, NULL), *pd = NULL;
  void *to = pooling ? dnn_view(p, 4, y.shape, y.stride) : w->op == GLUE_SUM ? dnn_view(p, 2, sums, NULL) : from;
  void *vector = dnn_view(p, 1, shape + 1, NULL);
  int status = 1;
  if (glue_has_two(w->op))
    status = dnn.binary(&pd, dnn.engine, w->op == GLUE_ADD ? DNN_BINARY_ADD : DNN_BINARY_MUL, from, from, to, NULL);
  if (w->op == GLUE_GELU)
    status = dnn.eltwise(&pd, dnn.engine, DNN_FORWARD_INFERENCE, DNN_GELU_ERF, from, to, 0, 0, NULL);
  if (w->op == GLUE_SUM) status = dnn.reduction(&pd, dnn.engine, DNN_REDUCTION_SUM, from, to, 0, 0, NULL);
  if (w->op == GLUE_SOFTMAX)
    status = dnn.softmax(&pd, dnn.engine, DNN_FORWARD_INFERENCE, DNN_SOFTMAX_ACCURATE, from, to, 1, NULL);
  if (w->op == GLUE_LAYER_NORM)
    status = dnn.layer_norm(&pd, dnn.engine, DNN_FORWARD_INFERENCE, from, to, NULL, 1e-5f,
                            DNN_USE_SCALE | DNN_USE_SHIFT, NULL);
  if (pooling)
    status = dnn.pooling(&pd, dnn.engine, DNN_FORWARD_INFERENCE, DNN_POOLING_MAX, from, to, two, three, none, one, none,
                         NULL);
  dnn_own(p, status, pd, dnn.pd_destroy);
  dnn_step(p, pd);
  dnn_arg_add(p, DNN_SRC, dnn_memory(p, from, w->buffer[0]));
  if (glue_has_two(w->op)) dnn_arg_add(p, DNN_SRC_1, dnn_memory(p, from, w->buffer[1]));
  if (w->op == GLUE_LAYER_NORM) {
    dnn_arg_add(p, DNN_SCALE, dnn_memory(p, vector, w->buffer[1]));
    dnn_arg_add(p, DNN_SHIFT, dnn_memory(p, vector, w->buffer[2]));
  }
  dnn_arg_add(p, DNN_DST, dnn_memory(p, to, w->buffer[3]));
}

/* softmax 64x1024 and the like; pooling is of windows 3 x 3, stride 2, of square images with an even side. */
static glue_spec glue_read(problem *p) {
  static const glue_op pools[] = {GLUE_POOL_FIRST, GLUE_POOL_LAST}, maps[] = {GLUE_ADD, GLUE_MUL, GLUE_GELU};
  const char *word = p->words[0];
  int64_t sizes[3];
  glue_spec s;
  memset(&s, 0, sizeof s);
  if (strcmp(word, "pool") == 0) {
    problem_shape_needed(p, "16x112x112, channels x height x width", 3, 3, sizes);
    if (sizes[1] != sizes[2] || sizes[1] % 2)
      problem_die(p, "%lldx%lldx%lld: the image must be square, with an even side", (long long)sizes[0],
                  (long long)sizes[1], (long long)sizes[2]);
    s.op = pools[problem_choice(p, "layout", "nchw nhwc")];
  } else {
    problem_shape_needed(p, "64x1024, rows x width", 2, 2, sizes);
    if (strcmp(word, "map") == 0) s.op = maps[problem_choice(p, "op", "add mul gelu")];
    if (strcmp(word, "reduce") == 0) s.op = GLUE_SUM, problem_choice(p, "op", "sum");
    if (strcmp(word, "softmax") == 0) s.op = GLUE_SOFTMAX;
    if (strcmp(word, "norm") == 0) s.op = problem_choice(p, "op", "layer rms") ? GLUE_RMS_NORM : GLUE_LAYER_NORM;
    if (strcmp(word, "cross_entropy") == 0) s.op = GLUE_CROSS_ENTROPY;
    if (strcmp(word, "adamw") == 0) s.op = GLUE_ADAMW;
  }
  s.rows = sizes[0], s.width = sizes[1];
  s.common = problem_read_common(p);
  problem_finish(p);
  return s;
}

static void glue_run(problem *problem_text, row *r) {
  static glue_state w, peer_state;
  const glue_spec s = glue_read(problem_text);
  if (!r) return;
  row_common(r, &s.common, s.common.cold ? ROW_FLUSHED : ROW_WARM);
  r->bytes = glue_prepare(&w, &s);
  r->footprint = s.common.cold ? 0 : r->bytes; /* cold: against reading what no cache holds */
  r->reads_only = s.op == GLUE_SUM;
  r->spoil = glue_spoil, r->check = glue_check, r->arg = &w;
  row_add_mlk(r, "mlk", glue_call, glue_plan, &w);
  memset(&peer_state, 0, sizeof peer_state);
  if (dnn.present && !s.common.forced && s.op != GLUE_CROSS_ENTROPY && s.op != GLUE_ADAMW && s.op != GLUE_RMS_NORM) {
    peers_set_threads(s.common.threads);
    peer_state = w;
    glue_onednn_make(&peer_state);
    if (!peer_state.program.failed) row_add(r, "onednn", ONEDNN, glue_onednn_call, &peer_state);
  }
  row_run(r);
  dnn_release(&peer_state.program);
}

/* near stays in a second-level cache, far exceeds the last one. */
static void declare_glue(void) {
  static const struct {
    const char *name, *near_problem, *far_problem;
  } ops[] = {
      {"add", "map 64x1024 op=add", "map 16384x1024 op=add"},
      {"gelu", "map 64x1024 op=gelu", "map 16384x1024 op=gelu"},
      {"sum", "reduce 64x1024 op=sum", "reduce 32768x1024 op=sum"},
      {"maxpool_nchw", "pool 16x112x112", "pool 2048x112x112"},
      {"maxpool_nhwc", "pool 16x112x112 layout=nhwc", "pool 2048x112x112 layout=nhwc"},
      {"softmax", "softmax 64x1024", "softmax 16384x1024"},
      {"layer_norm", "norm 64x768 op=layer", "norm 16384x768 op=layer"},
      {"cross_entropy", "cross_entropy 64x1000", "cross_entropy 16384x1000"},
      {"adamw", "adamw 32x1024", "adamw 8192x1024"},
  };
  char name[64];
  size_t op;
  int far;
  for (far = 0; far < 2; far++)
    for (op = 0; op < sizeof ops / sizeof *ops; op++)
      declare(text(name, sizeof name, "glue/%s/%s", far ? "far" : "near", ops[op].name), far ? 0 : QUICK_ONE_THREAD,
              far ? ops[op].far_problem : ops[op].near_problem);
}

#endif
