/* The rows of mlk_conv and its gradients. Operands are small integers, so every right result is exact in f32 whatever
   the order of its sums. A result is checked by projecting it along its channels with random integers: by bilinearity
   that must equal, to the bit, a convolution with one channel less to sum over, computed naively in double. */
#ifndef BENCH_ROWS_CONV_H
#define BENCH_ROWS_CONV_H

typedef enum conv_op { CONV_FWD, CONV_PACKED, CONV_GRAD_X, CONV_GRAD_X_PACKED, CONV_GRAD_W, CONV_OPS } conv_op;

typedef struct conv_spec {
  int axes; /* spatial ones */
  int64_t n, c, k, in[3], filter[3], stride, dilation, pad, groups;
  int channels_last;
  conv_op op;
  mlk_dtype dtype; /* of X, W and Y; on a device also of 16 bits */
  problem_common common;
} conv_spec;

/* Everything about the row's problem, and of a contender its way of doing it. Spatial axes stand in the last places of
   arrays of three, missing ones are of size 1. */
typedef struct conv_state {
  conv_spec s;
  int64_t in[3], out[3], filter[3], stride[3], dilation[3], pad[3], c_group, k_group, taps;
  int64_t x_stride[5], y_stride[5], x_count, y_count, w_count;
  float *x, *y, *w, *result;
  void *narrow[3], *narrow_result; /* of 16 bits: X, Y and W as calls read and write them; result is then its values */
  float *rounded;                  /* what these are to be */
  double *r, *expected;            /* r: a number per channel that the check sums over */
  int64_t result_count, expected_count;
  mlk_context *ctx;
  mlk_conv_desc forward;
  mlk_conv_grad_input_desc grad_x;
  mlk_conv_grad_weights_desc grad_w;
  mlk_packed packed;
  dnn_program program;
} conv_state;

static conv_state conv_states[3];

static void conv_call(void *arg) {
  conv_state *w = (conv_state *)arg;
  const mlk_status status = w->s.op == CONV_GRAD_W                          ? mlk_conv_grad_weights(w->ctx, &w->grad_w)
                            : w->s.op == CONV_FWD || w->s.op == CONV_PACKED ? mlk_conv(w->ctx, &w->forward)
                                                                            : mlk_conv_grad_input(w->ctx, &w->grad_x);
  if (status != MLK_OK) call_failed(w->result);
}

static mlk_status conv_plan(void *arg, mlk_plan *plan) {
  const conv_state *w = (const conv_state *)arg;
  if (w->s.op == CONV_GRAD_W) return mlk_conv_grad_weights_plan(w->ctx, &w->grad_w, plan);
  if (w->s.op == CONV_FWD || w->s.op == CONV_PACKED) return mlk_conv_plan(w->ctx, &w->forward, plan);
  return mlk_conv_grad_input_plan(w->ctx, &w->grad_x, plan);
}

static void conv_onednn_call(void *arg) {
  conv_state *w = (conv_state *)arg;
  if (dnn_run(&w->program) != 0) fill_nan(w->result, 1);
}

static void conv_spoil(void *arg) {
  const conv_state *w = (const conv_state *)arg;
  fill_nan(w->result, w->result_count);
  if (w->rounded) memset(w->narrow_result, 0xff, (size_t)w->result_count * 2); /* NaN in both types */
}

/* The place of tap t, and the input element that output element o reads through it; 0 where that is padding. */
static int conv_reads(const conv_state *w, const int64_t *o, const int64_t *t, int64_t *i) {
  int a;
  for (a = 0; a < 3; a++) {
    i[a] = o[a] * w->stride[a] + t[a] * w->dilation[a] - w->pad[a];
    if (i[a] < 0 || i[a] >= w->in[a]) return 0;
  }
  return 1;
}

static int64_t place(const int64_t *at, const int64_t *size) { return (at[0] * size[1] + at[1]) * size[2] + at[2]; }

/* The next place in row-major order; 0 after the last. */
static int next_place(int64_t *at, const int64_t *size) {
  int a;
  for (a = 2; a >= 0; a--) {
    if (++at[a] < size[a]) return 1;
    at[a] = 0;
  }
  return 0;
}

static double conv_x(const conv_state *w, int64_t n, int64_t c, const int64_t *i) {
  const int64_t *s = w->x_stride;
  return (double)w->x[n * s[0] + c * s[1] + i[0] * s[2] + i[1] * s[3] + i[2] * s[4]];
}

static double conv_y(const conv_state *w, int64_t n, int64_t k, const int64_t *o) {
  const int64_t *s = w->y_stride;
  return (double)w->y[n * s[0] + k * s[1] + o[0] * s[2] + o[1] * s[3] + o[2] * s[4]];
}

/* out[outer][place] = sum over the group's channels of r times the image: a projection of X or DY.
   outer: image, group. */
static void conv_project_image(const conv_state *w, int of_y, double *out) {
  const int64_t groups = w->s.groups, channels = of_y ? w->k_group : w->c_group;
  const int64_t *size = of_y ? w->out : w->in;
  int64_t n, g, c, at[3];
  for (n = 0; n < w->s.n; n++)
    for (g = 0; g < groups; g++) {
      memset(at, 0, sizeof at);
      do {
        double sum = 0;
        for (c = g * channels; c < (g + 1) * channels; c++)
          sum += w->r[c] * (of_y ? conv_y(w, n, c, at) : conv_x(w, n, c, at));
        *out++ = sum;
      } while (next_place(at, size));
    }
}

/* The weights projected along K, for the check of Y: out[g][t][c], or along C, for DX: out[k][t]. */
static void conv_project_weights(const conv_state *w, int along_k, double *out) {
  int64_t k, c, t;
  memset(out, 0, (size_t)(along_k ? w->s.c : w->s.k) * (size_t)w->taps * sizeof *out);
  for (k = 0; k < w->s.k; k++)
    for (c = 0; c < w->c_group; c++)
      for (t = 0; t < w->taps; t++) {
        const int64_t g = k / w->k_group;
        const double value = (double)w->w[(k * w->c_group + c) * w->taps + t];
        if (along_k)
          out[(g * w->taps + t) * w->c_group + c] += w->r[k] * value;
        else
          out[k * w->taps + t] += w->r[g * w->c_group + c] * value;
      }
}

/* What the projection of a right result is, into w->expected: [n][g][o] for Y, [n][g][i] for DX, [k][t] for DW. */
static void conv_expect(conv_state *w) {
  const int64_t groups = w->s.groups, ins = w->in[0] * w->in[1] * w->in[2], outs = w->out[0] * w->out[1] * w->out[2];
  const int of_y = w->s.op == CONV_FWD || w->s.op == CONV_PACKED, of_w = w->s.op == CONV_GRAD_W;
  const int64_t count = of_w ? w->s.n * groups * ins : (of_y ? w->s.c : w->s.k) * w->taps;
  double *v = (double *)row_alloc((size_t)count * sizeof *v);
  int64_t n, g, j, o[3], t[3], i[3];
  if (of_w)
    conv_project_image(w, 0, v);
  else
    conv_project_weights(w, of_y, v);
  memset(w->expected, 0, (size_t)w->expected_count * sizeof *w->expected);
  for (n = 0; n < w->s.n; n++)
    for (g = 0; g < groups; g++) {
      memset(o, 0, sizeof o);
      do {
        memset(t, 0, sizeof t);
        do {
          const int64_t tap = place(t, w->filter), image = n * groups + g;
          if (!conv_reads(w, o, t, i)) continue;
          if (of_y) {
            double *e = &w->expected[image * outs + place(o, w->out)];
            for (j = 0; j < w->c_group; j++)
              *e += conv_x(w, n, g * w->c_group + j, i) * v[(g * w->taps + tap) * w->c_group + j];
          } else {
            for (j = g * w->k_group; j < (g + 1) * w->k_group; j++) {
              const double dy = conv_y(w, n, j, o);
              if (of_w)
                w->expected[j * w->taps + tap] += dy * v[image * ins + place(i, w->in)];
              else
                w->expected[image * ins + place(i, w->in)] += dy * v[j * w->taps + tap];
            }
          }
        } while (next_place(t, w->filter));
      } while (next_place(o, w->out));
    }
}

/* Results of 16 bits: those of f32, which have passed the projection, rounded. */
static void conv_rounded_check(const conv_state *w, char *why, size_t size) {
  int64_t i;
  host_convert(dense_view(w->narrow_result, w->s.dtype, w->result_count),
               dense_view(w->result, MLK_F32, w->result_count));
  for (i = 0; i < w->result_count && w->result[i] == w->rounded[i]; i++) {}
  if (i < w->result_count)
    text(why, size, "element %lld is %.9g, but should be %.9g", (long long)i, (double)w->result[i],
         (double)w->rounded[i]);
}

static void conv_projection_check(const conv_state *w, char *why, size_t size) {
  double *got = (double *)malloc((size_t)w->expected_count * sizeof *got);
  int64_t i;
  if (!got) die("no memory");
  if (w->s.op == CONV_GRAD_W)
    conv_project_weights(w, 0, got);
  else
    conv_project_image(w, w->s.op == CONV_FWD || w->s.op == CONV_PACKED, got);
  for (i = 0; i < w->expected_count && got[i] == w->expected[i]; i++) {}
  if (i < w->expected_count)
    text(why, size, "projection %lld is %.17g, but should be %.17g", (long long)i, got[i], w->expected[i]);
  free(got);
}

static void conv_check(void *arg, const contender *who, char *why, size_t size) {
  const conv_state *w = (const conv_state *)arg;
  if (w->rounded)
    conv_rounded_check(w, why, size);
  else
    conv_projection_check(w, why, size);
  if (who->peer < 0 && why[0] && mlk_last_error(w->ctx)[0]) text(why, size, "%s", mlk_last_error(w->ctx));
}

/* [N, channels, spatial...] as it lies: strides of the five axes, and the view for MLK. */
static mlk_tensor conv_view(const conv_spec *s, float *data, int64_t channels, const int64_t *size, int64_t *stride) {
  mlk_tensor t = mlk_f32(data, s->n, channels);
  const int64_t step = s->channels_last ? channels : 1;
  int a;
  stride[4] = step, stride[3] = step * size[2], stride[2] = stride[3] * size[1];
  stride[1] = s->channels_last ? 1 : stride[2] * size[0];
  stride[0] = channels * size[0] * size[1] * size[2];
  t.rank = 2 + s->axes;
  t.stride[0] = stride[0], t.stride[1] = stride[1];
  for (a = 0; a < s->axes; a++) t.shape[2 + a] = size[3 - s->axes + a], t.stride[2 + a] = stride[5 - s->axes + a];
  return t;
}

/* What the calls are given: X, Y and W where they lie there, in their types; the result in its own, or as f32. */
static void conv_describe(conv_state *w, int result_is_f32) {
  const conv_spec *s = &w->s;
  float *const values[3] = {w->x, w->y, w->w};
  mlk_conv_desc *f = &w->forward;
  mlk_tensor t[3];
  int a, i;
  t[0] = conv_view(s, w->x, s->c, w->in, w->x_stride), t[1] = conv_view(s, w->y, s->k, w->out, w->y_stride);
  t[2] = mlk_f32(w->w, s->k, w->c_group);
  t[2].rank = 2 + s->axes;
  for (a = 0; a < s->axes; a++) t[2].shape[2 + a] = s->filter[a];
  for (i = 0; i < 3; i++) {
    const int wide = s->dtype == MLK_F32 || (result_is_f32 && values[i] == w->result);
    t[i].data = there(wide ? values[i] : w->narrow[i]);
    t[i].dtype = (int32_t)(wide ? MLK_F32 : s->dtype);
  }
  f->x = t[0], f->y = t[1], f->w = t[2];
  w->grad_x.dy = f->y, w->grad_x.w = f->w, w->grad_x.dx = f->x, w->grad_x.geometry = f->geometry;
  w->grad_w.x = f->x, w->grad_w.dy = f->y, w->grad_w.dw = f->w, w->grad_w.geometry = f->geometry;
}

/* Of 16 bits: the same with a result of f32 first. */
static void conv_round(conv_state *w) {
  const int64_t count = w->result_count;
  contender plain;
  memset(&plain, 0, sizeof plain);
  plain.peer = -1;
  conv_describe(w, 1);
  conv_spoil(w);
  operands_up();
  conv_call(w);
  operands_down();
  conv_check(w, &plain, plain.wrong, sizeof plain.wrong);
  w->narrow_result = w->narrow[w->result == w->x ? 0 : w->result == w->y ? 1 : 2];
  w->rounded = row_floats(count);
  host_convert(dense_view(w->result, MLK_F32, count), dense_view(w->narrow_result, w->s.dtype, count));
  host_convert(dense_view(w->narrow_result, w->s.dtype, count), dense_view(w->rounded, MLK_F32, count));
  if (plain.wrong[0]) fill_nan(w->rounded, count);
}

static void conv_prepare(conv_state *w, const conv_spec *spec) {
  conv_spec *s = &w->s;
  mlk_conv_desc *f = &w->forward;
  uint64_t seed = 30;
  int64_t i;
  int a;
  memset(w, 0, sizeof *w);
  *s = *spec;
  w->taps = 1, w->c_group = s->c / s->groups, w->k_group = s->k / s->groups;
  for (a = 0; a < 3; a++) {
    const int axis = a - (3 - s->axes), there = axis >= 0;
    w->in[a] = there ? s->in[axis] : 1, w->filter[a] = there ? s->filter[axis] : 1;
    w->stride[a] = there ? s->stride : 1, w->dilation[a] = there ? s->dilation : 1, w->pad[a] = there ? s->pad : 0;
    w->out[a] = (w->in[a] + 2 * w->pad[a] - w->dilation[a] * (w->filter[a] - 1) - 1) / w->stride[a] + 1;
    w->taps *= w->filter[a];
    if (!there) continue;
    f->geometry.stride[axis] = w->stride[a], f->geometry.dilation[axis] = w->dilation[a];
    f->geometry.pad_before[axis] = f->geometry.pad_after[axis] = w->pad[a];
  }
  f->geometry.groups = s->groups;
  w->x_count = s->n * s->c * w->in[0] * w->in[1] * w->in[2];
  w->y_count = s->n * s->k * w->out[0] * w->out[1] * w->out[2];
  w->w_count = s->k * w->c_group * w->taps;
  w->x = row_floats(w->x_count), w->y = row_floats(w->y_count), w->w = row_floats(w->w_count);
  fill_small_integers(w->x, w->x_count, 1), fill_small_integers(w->y, w->y_count, 2);
  fill_small_integers(w->w, w->w_count, 3);
  if (s->dtype != MLK_F32) {
    w->narrow[0] = row_narrowed(w->x, s->dtype, w->x_count), w->narrow[1] = row_narrowed(w->y, s->dtype, w->y_count);
    w->narrow[2] = row_narrowed(w->w, s->dtype, w->w_count);
  }
  w->ctx = context(s->common.threads, s->common.isa, MLK_STRICT);
  if (s->op == CONV_GRAD_W)
    w->result = w->w, w->result_count = w->w_count, w->expected_count = s->k * w->taps;
  else if (s->op == CONV_FWD || s->op == CONV_PACKED)
    w->result = w->y, w->result_count = w->y_count, w->expected_count = w->y_count / w->k_group;
  else
    w->result = w->x, w->result_count = w->x_count, w->expected_count = w->x_count / w->c_group;
  i = s->c > s->k ? s->c : s->k;
  w->r = (double *)row_alloc((size_t)i * sizeof(double));
  while (i-- > 0) w->r[i] = 2 * random_int(&seed, -512, 511) + 1; /* odd: a group of one channel is seen too */
  w->expected = (double *)row_alloc((size_t)w->expected_count * sizeof(double));
  conv_describe(w, 0);
  conv_expect(w);
  if (s->dtype != MLK_F32) conv_round(w), conv_describe(w, 0);
}

static void conv_pack(conv_state *w) {
  const int forward = w->s.op == CONV_PACKED;
  mlk_packed size;
  void *buffer;
  memset(&size, 0, sizeof size);
  if ((forward ? mlk_conv_pack(w->ctx, &w->forward, NULL, 0, &size)
               : mlk_conv_grad_input_pack(w->ctx, &w->grad_x, NULL, 0, &size)) != MLK_OK)
    return;
  buffer = there(row_alloc((size_t)size.bytes));
  operands_up();
  if ((forward ? mlk_conv_pack(w->ctx, &w->forward, buffer, size.bytes, &w->packed)
               : mlk_conv_grad_input_pack(w->ctx, &w->grad_x, buffer, size.bytes, &w->packed)) != MLK_OK)
    return;
  operands_down();
  memset(&w->forward.w, 0, sizeof w->forward.w), memset(&w->grad_x.w, 0, sizeof w->grad_x.w);
  w->forward.packed_w = w->grad_x.packed_w = &w->packed;
}

/* An operand of oneDNN's: in the layout that the primitive asks for, which is the user's own or a copy. */
typedef struct dnn_operand {
  void *user_md, *user, *used;
  const void *used_md;
} dnn_operand;

static void dnn_operand_make(dnn_program *p, dnn_operand *o, const void *pd, int ask) {
  o->used_md = p->failed ? NULL : dnn.ask_md(pd, ask, 0);
  o->used = o->used_md && dnn.md_equal(o->used_md, o->user_md) ? o->user : dnn_memory(p, o->used_md, NULL);
}

/* The same work as oneDNN does it, weights always in the layout it likes; images too when reorders is set, else as they
   lie. Reorders are part of the program, but that of weights when they are to be packed, which is done here. */
static void conv_onednn_make(conv_state *w, int reorders) {
  const conv_spec *s = &w->s;
  const conv_op op = s->op;
  const int packed = op == CONV_PACKED || op == CONV_GRAD_X_PACKED;
  const int is_fwd = op == CONV_FWD || op == CONV_PACKED, is_w = op == CONV_GRAD_W, first = 3 - s->axes;
  dnn_program *p = &w->program;
  const mlk_tensor *tx = &w->grad_w.x, *ty = &w->grad_w.dy;
  int64_t shape[6] = {0}, dilation[3] = {0};
  dnn_operand x, y, f;
  void *x_md, *y_md, *f_md, *pd = NULL, *hint = NULL;
  int rank = 0, a, status;
  memset(&x, 0, sizeof x), memset(&y, 0, sizeof y), memset(&f, 0, sizeof f);
  if (s->groups > 1) shape[rank++] = s->groups;
  shape[rank++] = w->k_group, shape[rank++] = w->c_group;
  for (a = 0; a < s->axes; a++) shape[rank++] = s->filter[a], dilation[a] = s->dilation - 1;
  x.user_md = dnn_view(p, tx->rank, tx->shape, tx->stride), y.user_md = dnn_view(p, ty->rank, ty->shape, ty->stride);
  f.user_md = dnn_view(p, rank, shape, NULL);
  x.user = dnn_memory(p, x.user_md, w->x), y.user = dnn_memory(p, y.user_md, w->y);
  f.user = dnn_memory(p, f.user_md, w->w);
  x_md = reorders ? dnn_any(p, tx->rank, tx->shape) : x.user_md;
  y_md = reorders ? dnn_any(p, ty->rank, ty->shape) : y.user_md;
  f_md = dnn_any(p, rank, shape);
  if (p->failed) return;
  status = dnn.conv(&hint, dnn.engine, is_fwd ? DNN_FORWARD_INFERENCE : DNN_FORWARD_TRAINING, DNN_CONVOLUTION_DIRECT,
                    x_md, f_md, NULL, y_md, w->stride + first, dilation, w->pad + first, w->pad + first, NULL);
  pd = dnn_own(p, status, hint, dnn.pd_destroy);
  if (p->failed) return;
  if (is_w)
    status = dnn.conv_grad_weights(&pd, dnn.engine, DNN_CONVOLUTION_DIRECT, x_md, f_md, NULL, y_md, w->stride + first,
                                   dilation, w->pad + first, w->pad + first, hint, NULL);
  else if (!is_fwd)
    status = dnn.conv_grad_input(&pd, dnn.engine, DNN_CONVOLUTION_DIRECT, x_md, f_md, y_md, w->stride + first, dilation,
                                 w->pad + first, w->pad + first, hint, NULL);
  if (!is_fwd) dnn_own(p, status, pd, dnn.pd_destroy);
  dnn_operand_make(p, &x, pd, is_fwd || is_w ? DNN_ASK_SRC : DNN_ASK_DIFF_SRC);
  dnn_operand_make(p, &y, pd, is_fwd ? DNN_ASK_DST : DNN_ASK_DIFF_DST);
  dnn_operand_make(p, &f, pd, is_w ? DNN_ASK_DIFF_WEIGHTS : DNN_ASK_WEIGHTS);
  if (!is_w && f.used != f.user) {
    dnn_reorder(p, f.user_md, f.user, f.used_md, f.used);
    if (packed && dnn_run(p) == 0)
      p->steps = 0; /* done once, like MLK's packing; what was made for it is released at the end */
  }
  if ((is_fwd || is_w) && x.used != x.user) dnn_reorder(p, x.user_md, x.user, x.used_md, x.used);
  if (!is_fwd && y.used != y.user) dnn_reorder(p, y.user_md, y.user, y.used_md, y.used);
  dnn_step(p, pd);
  dnn_arg_add(p, is_fwd || is_w ? DNN_SRC : DNN_DIFF_SRC, x.used);
  dnn_arg_add(p, is_w ? DNN_DIFF_WEIGHTS : DNN_WEIGHTS, f.used);
  dnn_arg_add(p, is_fwd ? DNN_DST : DNN_DIFF_DST, y.used);
  if (is_fwd && y.used != y.user) dnn_reorder(p, y.used_md, y.used, y.user_md, y.user);
  if (!is_fwd && !is_w && x.used != x.user) dnn_reorder(p, x.used_md, x.used, x.user_md, x.user);
  if (is_w && f.used != f.user) dnn_reorder(p, f.used_md, f.used, f.user_md, f.user);
}

/* conv NxCxIN...:KxC/GROUPSxFILTER..., one to three spatial axes. */
static conv_spec conv_read(problem *p) {
  static const mlk_dtype dtypes[] = {MLK_F32, MLK_BF16, MLK_F16};
  const char *shape = problem_shape(p), *colon = shape ? strchr(shape, ':') : NULL;
  char left[96] = "";
  int64_t image[5], filter[5];
  conv_spec s;
  int axes, packed, a;
  memset(&s, 0, sizeof s);
  if (!colon || (size_t)(colon - shape) >= sizeof left)
    problem_die(p, "needs a shape like 8x64x56x56:128x64x3x3, N x C x IN : K x C/groups x FILTER%s%s",
                shape ? ", not " : "", shape ? shape : "");
  else
    text(left, sizeof left, "%.*s", (int)(colon - shape), shape);
  s.axes = problem_sizes(p, "", left, 3, 5, image) - 2;
  axes = problem_sizes(p, "", colon ? colon + 1 : "", 3, 5, filter) - 2;
  if (axes != s.axes) problem_die(p, "%s: the image has %d spatial axes and the filter %d", shape, s.axes, axes);
  s.n = image[0], s.c = image[1], s.k = filter[0];
  s.stride = problem_integer(p, "stride", 1, 1024, 1), s.dilation = problem_integer(p, "dilation", 1, 4096, 1);
  s.pad = problem_integer(p, "pad", 0, 4096, 0), s.groups = problem_integer(p, "groups", 1, 1 << 20, 1);
  if (s.c % s.groups || s.k % s.groups || filter[1] != s.c / s.groups)
    problem_die(p, "%s groups=%lld: groups must divide C=%lld and K=%lld, and the filter's second size be C/groups",
                shape, (long long)s.groups, (long long)s.c, (long long)s.k);
  for (a = 0; a < s.axes; a++) {
    s.in[a] = image[2 + a], s.filter[a] = filter[2 + a];
    if (s.in[a] + 2 * s.pad < s.dilation * (s.filter[a] - 1) + 1)
      problem_die(p, "%s pad=%lld dilation=%lld: the filter is larger than the image", shape, (long long)s.pad,
                  (long long)s.dilation);
  }
  s.channels_last = problem_choice(p, "layout", "nchw nhwc");
  s.op = (conv_op)(2 * problem_choice(p, "op", "fwd grad_x grad_w"));
  packed = problem_choice(p, "packed", "0 1");
  if (packed && s.op == CONV_GRAD_W) problem_die(p, "packed=1 beside op=grad_w: weights are what that makes");
  s.op = (conv_op)((int)s.op + packed);
  s.dtype = dtypes[problem_choice(p, "dtype", "f32 bf16 f16")];
  if (s.dtype != MLK_F32 && !opt.cuda)
    problem_die(p, "dtype=%s is of --device cuda; on the CPU images are f32", dtype_name(s.dtype));
  s.common = problem_read_common(p);
  problem_finish(p);
  return s;
}

static void conv_run(problem *problem_text, row *r) {
  conv_state *w = &conv_states[0];
  const conv_spec s = conv_read(problem_text);
  int i;
  if (!r) return;
  conv_prepare(w, &s);
  row_common(r, &s.common, s.common.cold ? ROW_FLUSHED : ROW_WARM);
  text(r->dtype, sizeof r->dtype, "%s", dtype_name(s.dtype));
  r->flops = 2.0 * (double)w->y_count * (double)w->c_group * (double)w->taps;
  if (w->c_group == 1 || s.common.cold)
    r->bytes = (double)dtype_bytes(s.dtype) * (double)(w->x_count + w->y_count + w->w_count);
  if (w->c_group == 1 && !s.common.cold) r->footprint = r->bytes;
  for (i = 1; i < 3; i++) conv_states[i] = *w;
  if (s.op == CONV_PACKED || s.op == CONV_GRAD_X_PACKED) conv_pack(w);
  r->spoil = conv_spoil, r->check = conv_check, r->arg = w;
  row_add_mlk(r, "mlk", conv_call, conv_plan, w);
  if (s.dtype != MLK_F32) row_by_tensor_cores(r);
  if (dnn.present && !s.common.forced) {
    peers_set_threads(s.common.threads); /* primitives are made for a number of threads */
    for (i = 1; i < 3; i++) {
      conv_onednn_make(&conv_states[i], i == 2);
      if (!conv_states[i].program.failed)
        row_add(r, i == 2 ? "onednn reorders" : "onednn", ONEDNN, conv_onednn_call, &conv_states[i]);
    }
  }
  row_run(r);
  for (i = 1; i < 3; i++) dnn_release(&conv_states[i].program);
}

/* A shape in both layouts, by the operations whose bits are set in ops. */
static void declare_conv(const char *shape_name, const char *problem_text, unsigned ops, int flags) {
  static const char *const op_names[CONV_OPS] = {"fwd", "packed", "grad_x", "grad_x_packed", "grad_w"};
  static const char *const words[CONV_OPS] = {"", " packed=1", " op=grad_x", " op=grad_x packed=1", " op=grad_w"};
  char name[96];
  int op, last;
  for (op = 0; op < CONV_OPS; op++)
    for (last = 0; last < 2 && (ops >> op & 1); last++)
      declare(text(name, sizeof name, "conv/%s/%s/%s", shape_name, last ? "nhwc" : "nchw", op_names[op]), flags,
              PROBLEM("conv %s%s%s", problem_text, last ? " layout=nhwc" : "", words[op]));
}

/* Shapes: He et al. 2016 (ResNet), Xie et al. 2017 (ResNeXt), Howard et al. 2017 (MobileNet), Ronneberger et al. 2015
   (U-Net), van den Oord et al. 2016 (WaveNet). name@size: channels in, channels out where they differ, image. */
static void declare_convs(void) {
  static const struct {
    const char *name, *problem;
    int flags;
  } shapes[] = {
      {"stem/7x7s2_3-64@224", "1x3x224x224:64x3x7x7 stride=2 pad=3", QUICK_ONE_THREAD},
      {"3x3/64@56", "1x64x56x56:64x64x3x3 pad=1", QUICK_ONE_THREAD},
      {"3x3/128@28", "1x128x28x28:128x128x3x3 pad=1", 0},
      {"3x3/256@14", "1x256x14x14:256x256x3x3 pad=1", 0},
      {"3x3/512@7", "1x512x7x7:512x512x3x3 pad=1", 0},
      {"3x3/64@56x8", "8x64x56x56:64x64x3x3 pad=1", 0},
      {"3x3/512@7x8", "8x512x7x7:512x512x3x3 pad=1", 0},
      {"3x3/s2_128@56", "1x128x56x56:128x128x3x3 stride=2 pad=1", 0},
      {"1x1/256-64@56", "1x256x56x56:64x256x1x1", QUICK_ONE_THREAD},
      {"1x1/64-256@56", "1x64x56x56:256x64x1x1", 0},
      {"1x1/512-2048@7", "1x512x7x7:2048x512x1x1", 0},
      {"1x1/512-2048@7x8", "8x512x7x7:2048x512x1x1", 0},
      {"depthwise/32@112", "1x32x112x112:32x1x3x3 pad=1 groups=32", QUICK_ONE_THREAD},
      {"depthwise/s2_64@112", "1x64x112x112:64x1x3x3 stride=2 pad=1 groups=64", 0},
      {"depthwise/512@14", "1x512x14x14:512x1x3x3 pad=1 groups=512", 0},
      {"grouped/32x4@56", "1x128x56x56:128x4x3x3 pad=1 groups=32", 0},
      {"transposed/128-64@28", "1x64x56x56:128x64x2x2 stride=2", 0},
      {"other/1d_3d16_64@16000", "1x64x16000:64x64x3 dilation=16 pad=16", 0},
      {"other/3d_3x3x3_32@16", "1x32x16x16x16:32x32x3x3x3 pad=1", 0},
  };
  static const char *const narrow[][2] = {{"bf16/3x3_64@56x32", "32x64x56x56:64x64x3x3 pad=1 dtype=bf16"},
                                          {"bf16/3x3_256@14x32", "32x256x14x14:256x256x3x3 pad=1 dtype=bf16"},
                                          {"bf16/1x1_256-64@56x32", "32x256x56x56:64x256x1x1 dtype=bf16"},
                                          {"f16/3x3_256@14x32", "32x256x14x14:256x256x3x3 pad=1 dtype=f16"}};
  const unsigned usual = 1u << CONV_FWD | 1u << CONV_PACKED | 1u << CONV_GRAD_X | 1u << CONV_GRAD_W;
  const unsigned transposed = 1u << CONV_GRAD_X | 1u << CONV_GRAD_X_PACKED | 1u << CONV_GRAD_W;
  size_t i;
  for (i = 0; i < sizeof narrow / sizeof *narrow && opt.cuda; i++)
    declare_conv(narrow[i][0], narrow[i][1], usual & ~(1u << CONV_PACKED), i == 1 ? QUICK : 0);
  for (i = 0; i < sizeof shapes / sizeof *shapes; i++)
    declare_conv(shapes[i].name, shapes[i].problem, strncmp(shapes[i].name, "transposed", 10) == 0 ? transposed : usual,
                 shapes[i].flags);
}

#endif
