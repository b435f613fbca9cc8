/* test_cuda_conv.c - convolutions that only devices do: 16-bit operands, and f32 ones with MLK_FAST. Small whole
   numbers must come out exactly; of other numbers each sum must lie within the bound of docs/numerics.md for tensor
   cores. */

#include "conv_problem.h"

#if defined(MLKT_CUDA_EMULATED)
#include "cuda_emulator_control.h"
#endif

enum { IMAGES = 6, METHODS_MAX = 16 };
typedef enum role { X, W, Y, BIAS, RESIDUAL, PREACT } role;
/* How an array lies: any way; channels first or last, with gaps, or neither aligned; images or filters fastest. */
typedef enum layout { ANY, FIRST, FIRST_GAPS, LAST, LAST_GAPS, UNALIGNED, OUTER } layout;

/* A tensor of up to five axes in the device's memory. value: dense, exactly what its elements hold. */
typedef struct array {
  int present, dtype;
  layout lies;
  int64_t shape[AXES], stride[AXES], count, first; /* 1 beyond its rank */
  double *value;
  mlk_tensor view;
  void *memory, *bytes; /* there and here */
  uint64_t size;
} array;

typedef struct job {
  op what;
  layer l;
  int64_t out[3];
  int whole; /* small whole numbers */
  float alpha, beta;
  mlk_activation activation;
  array a[IMAGES];
  double *want, *bound, *before, *before_bound;
} job;

static mlk_context *cpu; /* converts */

static int width_of(int dtype) { return dtype == MLK_F32 ? 4 : 2; }

static void convert(int from, const void *in, int to, void *out, int64_t n) {
  mlk_map_desc copy;
  memset(&copy, 0, sizeof copy);
  copy.a = mlk_f32((const float *)in, n), copy.out = mlk_f32((const float *)out, n);
  copy.a.dtype = from, copy.out.dtype = to;
  CHECK_OK(cpu, mlk_map(cpu, &copy));
}

/* x rounded to dtype, as elements and as what these hold. */
static void round_values(int dtype, double *x, void *elements, int64_t n) {
  float *f = (float *)calloc((size_t)n + 1, 4);
  int64_t i;
  for (i = 0; i < n; i++) f[i] = (float)x[i];
  convert(MLK_F32, f, dtype, elements, n);
  convert(dtype, elements, MLK_F32, f, n);
  for (i = 0; i < n; i++) x[i] = f[i];
  free(f);
}

static int64_t place(const array *a, int64_t number) {
  int64_t at = a->first;
  int i;
  for (i = AXES - 1; i >= 0; i--) at += number % a->shape[i] * a->stride[i], number /= a->shape[i];
  return at;
}

/* Rogue around the elements. */
static int lay_out(mlk_context *ctx, array *a, int rank, mlkt_rng *rng) {
  const layout lies = a->lies == ANY ? (layout)mlkt_int(rng, FIRST, UNALIGNED) : a->lies;
  const int width = width_of(a->dtype), last = lies >= LAST && lies <= UNALIGNED;
  const int64_t gap = lies == FIRST_GAPS || lies == UNALIGNED ? mlkt_int(rng, 1, 9)
                      : lies == LAST_GAPS                     ? (8 - a->shape[1] % 8) % 8
                                                              : 0;
  int64_t step = lies == UNALIGNED ? mlkt_int(rng, 1, 2) : 1, i;
  char *elements = (char *)malloc((size_t)(a->count * width) + 8);
  int axis;
  a->first = lies == UNALIGNED ? mlkt_int(rng, 0, 3) : 0;
  for (i = 0; i < rank; i++) { /* innermost first */
    axis = (int)(last && rank > 1 ? (i == 0 ? 1 : i == rank - 1 ? 0 : rank - i) : rank - 1 - i);
    if (lies == OUTER) axis = (int)(i == 0 ? 0 : rank - i);
    a->stride[axis] = step, step *= a->shape[axis];
    if (i == 0) step += gap;
  }
  a->size = (uint64_t)((a->first + step + 8) * width);
  a->bytes = malloc((size_t)a->size);
  memset(a->bytes, 0xFF, (size_t)a->size); /* NaN in every type */
  if (!CHECK_OK(ctx, mlk_alloc(ctx, a->size, &a->memory))) return 0;
  round_values(a->dtype, a->value, elements, a->count);
  for (i = 0; i < a->count; i++) memcpy((char *)a->bytes + place(a, i) * width, elements + i * width, (size_t)width);
  free(elements);
  memset(&a->view, 0, sizeof a->view);
  a->view.data = (char *)a->memory + a->first * width, a->view.dtype = a->dtype, a->view.rank = rank;
  for (i = 0; i < rank; i++) a->view.shape[i] = a->shape[i], a->view.stride[i] = a->stride[i];
  return CHECK_OK(ctx, mlk_copy(ctx, a->memory, a->bytes, a->size));
}

static void shape_array(array *a, int dtype, int64_t s0, int64_t s1, const int64_t *spatial, int whole, mlkt_rng *rng) {
  int64_t i;
  a->present = 1, a->dtype = dtype;
  a->shape[0] = s0, a->shape[1] = s1, a->count = s0 * s1;
  for (i = 0; i < 3; i++) a->shape[2 + i] = spatial ? spatial[i] : 1, a->count *= a->shape[2 + i];
  a->value = (double *)malloc((size_t)a->count * sizeof(double) + 8);
  for (i = 0; i < a->count; i++) a->value[i] = whole ? (double)mlkt_int(rng, -2, 2) : (double)mlkt_signed(rng);
}

static array *out_of(job *j) { return &j->a[j->what == CONV ? Y : j->what == GRAD_INPUT ? X : W]; }

static double activate(mlk_activation activation, double t) {
  return activation == MLK_NONE ? t : activation_exact(activation, t);
}

/* The products of all terms, by the definition of the convolution, added to the output's element each. */
static void sums(job *j, double *sum, double *size, double *terms) {
  const layer *l = &j->l;
  const int64_t c_group = l->c / l->groups, k_group = l->k / l->groups, positions = j->out[0] * j->out[1] * j->out[2],
                taps = l->filter[0] * l->filter[1] * l->filter[2];
  int64_t n, k, o, c, t;
  for (n = 0; n < l->n; n++)
    for (k = 0; k < l->k; k++)
      for (o = 0; o < positions; o++)
        for (t = 0; t < taps; t++) {
          const int64_t os[3] = {o / (j->out[1] * j->out[2]), o / j->out[2] % j->out[1], o % j->out[2]},
                        ts[3] = {t / (l->filter[1] * l->filter[2]), t / l->filter[2] % l->filter[1], t % l->filter[2]};
          int64_t at = 0;
          int a, inside = 1;
          for (a = 0; a < 3; a++) {
            const int64_t i = os[a] * l->stride[a] + ts[a] * l->dilation[a] - l->before[a];
            inside &= i >= 0 && i < l->in[a];
            at = at * l->in[a] + i;
          }
          for (c = 0; c < c_group && inside; c++) {
            const int64_t x = (n * l->c + k / k_group * c_group + c) * (l->in[0] * l->in[1] * l->in[2]) + at,
                          w = (k * c_group + c) * taps + t, y = (n * l->k + k) * positions + o,
                          to = j->what == CONV         ? y
                               : j->what == GRAD_INPUT ? x
                                                       : w;
            const double product = (j->what == GRAD_INPUT ? j->a[Y].value[y] : j->a[X].value[x]) *
                                   (j->what == GRAD_WEIGHTS ? j->a[Y].value[y] : j->a[W].value[w]);
            sum[to] += product, size[to] += fabs(product), terms[to] += 1;
          }
        }
}

/* What the outputs should hold, and by how much they may differ before their rounding: a sum of k products by
   (k + 2) 2^-23 + unit of their sizes. */
static void expect(job *j, double unit) {
  const array *out = out_of(j);
  const size_t bytes = (size_t)out->count * sizeof(double) + 8;
  const int64_t inner = out->shape[2] * out->shape[3] * out->shape[4];
  double *sum = (double *)calloc(1, bytes), *size = (double *)calloc(1, bytes), *terms = (double *)calloc(1, bytes);
  int64_t i;
  j->want = (double *)malloc(bytes), j->bound = (double *)malloc(bytes);
  j->before = (double *)malloc(bytes), j->before_bound = (double *)malloc(bytes);
  if (j->alpha != 0) sums(j, sum, size, terms);
  for (i = 0; i < out->count; i++) {
    double t = (double)j->alpha * sum[i], all = fabs((double)j->alpha) * size[i];
    double e = all * ((terms[i] + 2) * 0x1p-23 + unit);
    if (j->a[BIAS].present && j->what != GRAD_WEIGHTS) t += j->a[BIAS].value[i / inner % out->shape[1]];
    if (j->beta != 0) t += (double)j->beta * out->value[i];
    e += 0x1p-22 * (fabs(t) + all + 4);
    j->before[i] = t, j->before_bound[i] = e;
    t = activate(j->activation, t), e = 1.13 * e + 0x1p-20 * fabs(t);
    if (j->a[RESIDUAL].present) t += j->a[RESIDUAL].value[i];
    j->want[i] = t, j->bound[i] = e + 0x1p-23 * fabs(t);
  }
  free(sum), free(size), free(terms);
}

/* Checks an output's elements, and that nothing beside them was written. */
static void check_array(const job *j, mlk_context *ctx, array *a, const double *want, const double *bound,
                        const char *name) {
  const int width = width_of(a->dtype);
  const double rounding = a->dtype == MLK_F16 ? 0x1p-11 : a->dtype == MLK_BF16 ? 0x1p-8 : 0x1p-24;
  char *elements = (char *)malloc((size_t)(a->count * width) + 8), *const bytes = (char *)a->bytes;
  float *got = (float *)malloc((size_t)a->count * 4 + 8);
  double *exact = (double *)malloc((size_t)a->count * sizeof(double) + 8);
  int64_t i, at;
  CHECK_OK(ctx, mlk_copy(ctx, bytes, a->memory, a->size));
  CHECK_OK(ctx, mlk_sync(ctx));
  memcpy(exact, want, (size_t)a->count * sizeof(double));
  if (j->whole) round_values(a->dtype, exact, elements, a->count);
  for (i = 0; i < a->count; i++) memcpy(elements + i * width, bytes + place(a, i) * width, (size_t)width);
  convert(a->dtype, elements, MLK_F32, got, a->count);
  for (i = 0; i < a->count; i++) {
    const double allowed = j->whole ? 0 : bound[i] + rounding * (fabs(want[i]) + bound[i]) + 0x1p-24;
    if (fabs((double)got[i] - exact[i]) <= allowed) continue;
    CHECK_MSG(0, "%s[%lld] is %.9g, expected %.9g with an error of at most %.3g", name, (long long)i, (double)got[i],
              exact[i], allowed);
    break;
  }
  CHECK(i == a->count);
  for (i = 0; i < a->count; i++) memset(bytes + place(a, i) * width, 0xFF, (size_t)width);
  for (at = 0; at < (int64_t)a->size && (unsigned char)bytes[at] == 0xFF; at++) continue;
  CHECK_MSG(at == (int64_t)a->size, "%s: byte %lld beside its elements was written", name, (long long)at);
  free(elements), free(got), free(exact);
}

/* Types and values of a layer's operands. */
static void choose(job *j, int dtype, mlkt_rng *rng) {
  static const float scalars[] = {1.0f, 2.0f, -0.5f};
  static const mlk_activation others[] = {MLK_NONE, MLK_RELU, MLK_GELU, MLK_TANH, MLK_SILU};
  const layer *l = &j->l;
  const int epilogue = j->what != GRAD_WEIGHTS && mlkt_int(rng, 0, 1);
  int i;
  for (i = 0; i < 3; i++) j->out[i] = layer_out(l, i);
  j->whole = (int)mlkt_int(rng, 0, 1), j->alpha = 1, j->beta = 0, j->activation = MLK_NONE;
  if (mlkt_int(rng, 0, 1)) j->beta = scalars[mlkt_int(rng, 0, 2)];
  if (epilogue) {
    j->alpha = mlkt_int(rng, 0, 15) ? scalars[mlkt_int(rng, 0, 2)] : 0;
    j->activation = others[mlkt_int(rng, 0, j->whole ? 1 : 4)];
  }
  for (i = 0; i < IMAGES; i++) {
    const int free_choice = i >= BIAS || i == (j->what == CONV ? Y : j->what == GRAD_INPUT ? X : W);
    const int type = free_choice && mlkt_int(rng, 0, 1) ? MLK_F32 : dtype;
    array *a = &j->a[i];
    if (i == X)
      shape_array(a, type, l->n, l->c, l->in, j->whole, rng);
    else if (i == W)
      shape_array(a, type, l->k, l->c / l->groups, l->filter, j->whole, rng);
    else if (i == Y)
      shape_array(a, type, l->n, l->k, j->out, j->whole, rng);
    else if (i == BIAS && (epilogue || j->what == GRAD_WEIGHTS) && mlkt_int(rng, 0, 1))
      shape_array(a, j->what == GRAD_WEIGHTS ? MLK_F32 : type, j->what == GRAD_INPUT ? l->c : l->k, 1, NULL, j->whole,
                  rng);
    else if (i > BIAS && epilogue && mlkt_int(rng, 0, 1))
      shape_array(a, type, l->n, j->what == CONV ? l->k : l->c, j->what == CONV ? j->out : l->in, j->whole, rng);
  }
}

/* DBIAS, whose terms are few: sums of DY over all but the channels. */
static void check_bias(job *j, mlk_context *ctx) {
  array *b = &j->a[BIAS];
  const int64_t positions = j->out[0] * j->out[1] * j->out[2], count = j->l.n * positions;
  double *want = (double *)malloc((size_t)b->count * sizeof(double) + 8),
         *bound = (double *)malloc((size_t)b->count * sizeof(double) + 8);
  int64_t k, i;
  for (k = 0; k < b->count; k++) {
    double size = 0;
    want[k] = (double)j->beta * b->value[k];
    for (i = 0; i < count; i++) {
      const double t = j->a[Y].value[(i / positions * j->l.k + k) * positions + i % positions];
      want[k] += t, size += fabs(t);
    }
    bound[k] = (double)(count + 2) * 0x1p-23 * (size + fabs(want[k]) + 1);
  }
  check_array(j, ctx, b, want, bound, "dbias");
  free(want), free(bound);
}

static mlk_status run_call(const job *j, mlk_context *ctx, const mlk_conv_geometry *geometry, mlk_plan *plan) {
  const array *a = j->a;
  if (j->what == CONV) {
    mlk_conv_desc d;
    memset(&d, 0, sizeof d);
    d.x = a[X].view, d.w = a[W].view, d.y = a[Y].view;
    d.bias = a[BIAS].view, d.residual = a[RESIDUAL].view, d.preact = a[PREACT].view;
    d.alpha = &j->alpha, d.beta = &j->beta, d.activation = j->activation, d.geometry = *geometry;
    return plan ? mlk_conv_plan(ctx, &d, plan) : mlk_conv(ctx, &d);
  }
  if (j->what == GRAD_INPUT) {
    mlk_conv_grad_input_desc d;
    memset(&d, 0, sizeof d);
    d.dy = a[Y].view, d.w = a[W].view, d.dx = a[X].view;
    d.bias = a[BIAS].view, d.residual = a[RESIDUAL].view, d.preact = a[PREACT].view;
    d.alpha = &j->alpha, d.beta = &j->beta, d.activation = j->activation, d.geometry = *geometry;
    return plan ? mlk_conv_grad_input_plan(ctx, &d, plan) : mlk_conv_grad_input(ctx, &d);
  }
  {
    mlk_conv_grad_weights_desc d;
    memset(&d, 0, sizeof d);
    d.x = a[X].view, d.dy = a[Y].view, d.dw = a[W].view, d.dbias = a[BIAS].view, d.beta = &j->beta;
    d.geometry = *geometry;
    return plan ? mlk_conv_grad_weights_plan(ctx, &d, plan) : mlk_conv_grad_weights(ctx, &d);
  }
}

/* Runs j and checks every output; gives the variant. */
static const char *run_job(mlk_context *ctx, job *j, mlkt_rng *rng) {
  const mlk_conv_geometry geometry = layer_geometry(&j->l, rng);
  mlk_plan plan;
  const layer *l = &j->l;
  int i, fine = 1;
  memset(&plan, 0, sizeof plan);
  for (i = 0; i < IMAGES; i++)
    if (j->a[i].present) fine = fine && lay_out(ctx, &j->a[i], i == BIAS ? 1 : 2 + l->spatial, rng);
  expect(j, j->a[j->what == CONV ? X : Y].dtype == MLK_F32 ? 0x1p-9 : 0);
  mlkt_note("%s, dtype %d, N %d, C %d, K %d, groups %d, in %dx%dx%d, filter %dx%dx%d, stride %d,%d,%d, dilation "
            "%d,%d,%d, before %d,%d,%d, out %dx%dx%d, alpha %g, beta %g, activation %d, whole %d",
            op_names[j->what], j->a[j->what == CONV ? X : Y].dtype, (int)l->n, (int)l->c, (int)l->k, (int)l->groups,
            (int)l->in[0], (int)l->in[1], (int)l->in[2], (int)l->filter[0], (int)l->filter[1], (int)l->filter[2],
            (int)l->stride[0], (int)l->stride[1], (int)l->stride[2], (int)l->dilation[0], (int)l->dilation[1],
            (int)l->dilation[2], (int)l->before[0], (int)l->before[1], (int)l->before[2], (int)j->out[0],
            (int)j->out[1], (int)j->out[2], (double)j->alpha, (double)j->beta, (int)j->activation, j->whole);
  if (fine && CHECK_OK(ctx, run_call(j, ctx, &geometry, &plan))) {
    CHECK_OK(ctx, mlk_reserve(ctx, plan.workspace_bytes, MLK_FIXED));
    if (CHECK_OK(ctx, run_call(j, ctx, &geometry, NULL))) {
      check_array(j, ctx, out_of(j), j->want, j->bound, "the output");
      if (j->a[PREACT].present) check_array(j, ctx, &j->a[PREACT], j->before, j->before_bound, "preact");
      if (j->what == GRAD_WEIGHTS && j->a[BIAS].present) check_bias(j, ctx);
    }
  }
  for (i = 0; i < IMAGES; i++) {
    if (j->a[i].memory) mlk_free(ctx, j->a[i].memory, j->a[i].size);
    free(j->a[i].bytes), free(j->a[i].value);
  }
  free(j->want), free(j->bound), free(j->before), free(j->before_bound);
  return plan.variant ? plan.variant : "";
}

/* A context on the device; cc and multiprocessors: of an emulated one, which turn the choice of methods and tiles. */
static mlk_context *open_device(mlk_numerics numerics, int cc, int multiprocessors) {
  mlk_context_desc desc;
  mlk_context *ctx = NULL;
#if defined(MLKT_CUDA_EMULATED)
  mlkt_emu_device(1, cc, multiprocessors);
#else
  (void)cc, (void)multiprocessors;
#endif
  desc = mlkt_context_desc(MLK_ISA_BEST, 1);
  desc.numerics = numerics;
  CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK);
  return ctx;
}

static int start(void) {
  mlk_context_desc desc;
  if (!mlkt_opt.cuda) {
    mlkt_skip("only with --cuda");
    return 0;
  }
  memset(&desc, 0, sizeof desc);
  desc.threads = 1;
  return CHECK_STATUS(NULL, mlk_open(&cpu, &desc), MLK_OK);
}

static void finish(void) {
#if defined(MLKT_CUDA_EMULATED)
  mlkt_emu_reset();
#endif
  mlk_close(cpu);
  cpu = NULL;
}

/* Points of a sweep; with an emulator every method must have been met. wide: with the channels that warpgroups want. */
static void sweep(op what, int points, int cc, int wide, const char *const *methods) {
  static const int dtypes[] = {MLK_F16, MLK_BF16, MLK_F32}, counts[] = {1, 8, 108};
  const char *met[METHODS_MAX];
  int names = 0, i, k;
  uint64_t index;
  if (!start()) return;
  for (index = 0; index < (uint64_t)points && !mlkt_hopeless(); index++) {
    mlkt_rng rng = mlkt_rng_case();
    mlk_context *ctx;
    const char *variant;
    job j;
    rng.state += index * UINT64_C(0x9E3779B97F4A7C15);
    if (!mlkt_keep(index)) continue;
    ctx = open_device(MLK_FAST, cc, counts[index / 3 % 3]);
    if (!ctx) break;
    memset(&j, 0, sizeof j);
    j.what = what, j.l = layer_random(&rng, wide ? 1e5 : 3e5);
    if (mlkt_int(&rng, 0, 2) == 0 && j.l.groups == 1) j.l.c = (j.l.c + 7) / 8 * 8, j.l.k = (j.l.k + 7) / 8 * 8;
    if (wide && j.l.c && j.l.k) j.l.groups = 1, j.l.c = mlkt_int(&rng, 50, 140), j.l.k = mlkt_int(&rng, 50, 140);
    choose(&j, dtypes[index % (wide ? 2 : 3)], &rng);
    if (wide) j.a[Y].lies = j.a[X].lies = mlkt_int(&rng, 0, 3) ? LAST_GAPS : ANY;
    variant = run_job(ctx, &j, &rng);
    for (i = 0; i < names && strcmp(met[i], variant) != 0; i++) continue;
    if (i == names && names < METHODS_MAX) met[names++] = variant;
    mlk_close(ctx);
  }
#if defined(MLKT_CUDA_EMULATED)
  for (k = 0; methods[k] && !mlkt_opt.quick && mlkt_opt.one_in <= 1 && !mlkt_hopeless(); k++) {
    for (i = 0; i < names && strcmp(met[i], methods[k]) != 0; i++) continue;
    CHECK_MSG(i < names, "no point ran by %s", methods[k]);
  }
#else
  (void)methods, (void)met, (void)k;
#endif
  finish();
}

static void forward(void) {
  static const char *const methods[] = {"mma", "mma_split_k", "tf32", "tf32_split_k", "direct", NULL};
  sweep(CONV, 1500, 80, 0, methods);
}
static void grad_input(void) {
  static const char *const methods[] = {"mma", "mma_split_k", "tf32", "direct", NULL};
  sweep(GRAD_INPUT, 1500, 80, 0, methods);
}
static void grad_weights(void) {
  static const char *const methods[] = {"mma", "mma_split_k", "tf32", "direct", NULL};
  sweep(GRAD_WEIGHTS, 1500, 80, 0, methods);
}

/* A device whose tensor cores take f16 only: bf16 by tiles of f32. */
static void turing(void) {
  static const char *const methods[] = {"mma", "simt", NULL};
  sweep(CONV, 300, 75, 0, methods);
}
static void turing_grad_input(void) {
  static const char *const methods[] = {"mma", "simt", NULL};
  sweep(GRAD_INPUT, 300, 75, 0, methods);
}
static void turing_grad_weights(void) {
  static const char *const methods[] = {"mma", "simt", NULL};
  sweep(GRAD_WEIGHTS, 300, 75, 0, methods);
}

/* What an H200 is predicted to do with layers of residual networks. */
static void groups_planned(void) {
  static const struct {
    int64_t c, k, in, filter, stride;
  } layers[] = {{256, 256, 28, 3, 1}, {128, 256, 56, 3, 2}, {512, 512, 14, 3, 1}, {512, 512, 7, 3, 1}};
  mlk_device_figures h200;
  mlk_context_desc open;
  mlk_context *ctx = NULL;
  uint64_t index;
  if (!start()) return;
  memset(&h200, 0, sizeof h200);
  h200.name = "H200", h200.compute_capability = 90, h200.multiprocessors = 132;
  h200.flops = 67e12, h200.tensor_flops = 990e12, h200.bandwidth = 4.8e12, h200.memory_bytes = UINT64_C(141) << 30;
  open = mlkt_context_desc(MLK_ISA_BEST, 1);
  open.figures = &h200;
  if (CHECK_STATUS(NULL, mlk_open(&ctx, &open), MLK_OK))
    for (index = 0; index < 4 * OPS; index++) {
      const int which = (int)index / OPS;
      const layer l = layer_cube(2, 128, layers[which].c, layers[which].k, 1, layers[which].in, layers[which].filter,
                                 layers[which].stride, 1);
      char *memory = (char *)(uintptr_t)0x100000000; /* never touched */
      const mlk_conv_geometry geometry = layer_geometry(&l, NULL);
      mlk_plan plan;
      double least = 2 * (double)(l.n * l.c * l.k) / h200.tensor_flops;
      job j;
      int i;
      memset(&j, 0, sizeof j);
      j.what = (op)(index % OPS), j.l = l, j.alpha = 1;
      for (i = 0; i < 3; i++) j.out[i] = layer_out(&l, i), least *= (double)(j.out[i] * l.filter[i]);
      for (i = X; i <= Y; i++) {
        const int64_t *spatial = i == X ? l.in : i == W ? l.filter : j.out;
        mlk_tensor *t = &j.a[i].view;
        t->data = memory, t->dtype = MLK_BF16, t->rank = 4;
        t->shape[0] = i == W ? l.k : l.n, t->shape[1] = i == Y ? l.k : l.c;
        t->shape[2] = spatial[0], t->shape[3] = spatial[1];
        t->stride[1] = 1, t->stride[3] = t->shape[1], t->stride[2] = t->shape[3] * t->stride[3];
        t->stride[0] = t->shape[2] * t->stride[2];
        memory += (t->shape[0] * t->stride[0] * 2 + 255) / 256 * 256;
      }
      mlkt_note("%s, layer %d", op_names[j.what], which);
      if (!CHECK_OK(ctx, run_call(&j, ctx, &geometry, &plan))) continue;
      CHECK_MSG(strncmp(plan.variant, "wgmma", 5) == 0, "%s", plan.variant);
      CHECK_MSG(plan.seconds > least && plan.seconds < 2.8 * least, "%g s, at best %g", plan.seconds, least);
    }
  mlk_close(ctx);
  finish();
}

#if defined(MLKT_CUDA_EMULATED)
/* Infinities wherever X is read by no output: boxes that reach there must not let them in. */
static void poison(job *j) {
  const layer *l = &j->l;
  array *x = &j->a[X];
  int64_t i, o, t;
  for (i = 0; i < x->count && j->what != GRAD_INPUT; i++) {
    int64_t rest = i;
    int a, read = 1;
    for (a = 2; a >= 0; rest /= l->in[a], a--) {
      int found = 0;
      for (o = 0; o < j->out[a]; o++)
        for (t = 0; t < l->filter[a]; t++)
          found |= o * l->stride[a] + t * l->dilation[a] - l->before[a] == rest % l->in[a];
      read &= found;
    }
    if (!read) x->value[i] = INFINITY;
  }
}

/* A layer by warpgroups, or not; w: how the weights lie. */
static void group_point(op what, const layer *l, int dtype, layout x, layout w, int multiprocessors,
                        const char *variant, mlkt_rng *rng) {
  mlk_context *ctx = open_device(MLK_STRICT, 90, multiprocessors);
  const char *ran;
  job j;
  if (!ctx) return;
  memset(&j, 0, sizeof j);
  j.what = what, j.l = *l;
  choose(&j, dtype, rng);
  if (j.alpha == 0) j.alpha = 1;
  poison(&j);
  j.a[X].lies = x, j.a[W].lies = w, j.a[Y].lies = x;
  ran = run_job(ctx, &j, rng);
  CHECK_MSG(strncmp(ran, variant, strlen(variant)) == 0, "ran by %s instead of %s", ran, variant);
  mlk_close(ctx);
}

static layer group_layer(int number, op what) {
  layer l = layer_cube(2, 2, 128, 320, 1, 14, 3, 1, 1); /* tiles side by side */
  switch (number) {
  case 1: l = layer_cube(2, 11, 128, 120, 1, 4, 3, 1, 1); break; /* several images in a box, the last one cut */
  case 2: l = layer_cube(2, 1, 120, 104, 1, 25, 3, 2, 1), l.in[1] = 18, l.stride[1] = 1; break; /* strides differ */
  case 3: l = layer_cube(1, 3, 64, 128, 1, 130, 5, 1, 4), l.dilation[0] = 3; break;
  case 4: l = layer_cube(3, 2, 64, 128, 1, 6, 3, 1, 1), l.in[0] = 3, l.stride[2] = 2; break;
  case 5: l = layer_cube(2, 4, 128, 112, 1, 15, 1, 2, 0); break;                 /* taps that leave inputs out */
  case 6: l = layer_cube(2, 1, 64, 128, 1, 19, 5, 3, 2), l.before[0] = 9; break; /* rows of padding alone */
  case 7:                                                                        /* rows for outputs beyond the last */
    l = layer_cube(2, 1, what == GRAD_WEIGHTS ? 64 : 128, 128, 1, 42, 3, 2, 0);
    break;
  case 8: l = layer_cube(2, 4, 128, 128, 1, 16, 3, 1, 1), l.filter[0] = 1, l.before[0] = l.after[0] = 0; break;
  default: break;
  }
  return l;
}
enum { GROUP_LAYERS = 9 };

/* Every operator, type, tile, way that weights lie, one multiprocessor and many, in one piece and in parts. */
static void groups(void) {
  static const layout weights[] = {LAST, OUTER, FIRST};
  static const int counts[] = {1, 3, 40};
  uint64_t index;
  if (!start()) return;
  for (index = 0; index < GROUP_LAYERS * OPS * 3 && !mlkt_hopeless(); index++) {
    const int number = (int)(index / (OPS * 3));
    const op what = (op)(index / 3 % OPS);
    const layer l = group_layer(number, what);
    mlkt_rng rng = mlkt_rng_case();
    rng.state += index * UINT64_C(0x9E3779B97F4A7C15);
    if (!mlkt_keep(index)) continue;
    group_point(what, &l, index % 2 ? MLK_BF16 : MLK_F16, LAST, weights[index % 3], counts[number % 3],
                number == 8 && what == GRAD_WEIGHTS ? "wgmma_split_k" : "wgmma", &rng);
  }
  finish();
}

static void groups_any(op what) {
  static const char *const methods[] = {"wgmma", "mma", NULL};
  sweep(what, 120, 90, 1, methods);
}

/* What goes to warps: strides and groups that boxes do not have, outputs whose channels lie apart, a driver or code
   without boxes. Operands that do not lie as boxes want are copied so, and go to warpgroups. */
static void groups_refused(void) {
  int index;
  if (!start()) return;
  for (index = 0; index < 6; index++) {
    layer l = layer_cube(2, 2, 128, 128, 1, 12, 3, 1, 1);
    mlkt_rng rng = mlkt_rng_case();
    if (index == 0) l.stride[0] = 9;
    if (index == 1) l.groups = 2;
    mlkt_emu_hopper(index != 2, index != 3);
    group_point(CONV, &l, MLK_F16, index == 4 ? FIRST : LAST, FIRST, 1, index == 5 ? "wgmma" : "mma", &rng);
    if (index == 5) group_point(GRAD_WEIGHTS, &l, MLK_BF16, UNALIGNED, FIRST, 1, "wgmma", &rng);
  }
  finish();
}

static void groups_forward(void) { groups_any(CONV); }
static void groups_grad_input(void) { groups_any(GRAD_INPUT); }
static void groups_grad_weights(void) { groups_any(GRAD_WEIGHTS); }
#endif

const mlkt_case mlkt_cuda_conv_cases[] = {{"cuda_conv/forward", forward},
                                          {"cuda_conv/grad_input", grad_input},
                                          {"cuda_conv/grad_weights", grad_weights},
                                          {"cuda_conv/turing", turing},
                                          {"cuda_conv/turing_grad_input", turing_grad_input},
                                          {"cuda_conv/turing_grad_weights", turing_grad_weights},
                                          {"cuda_conv/groups_planned", groups_planned},
#if defined(MLKT_CUDA_EMULATED)
                                          {"cuda_conv/groups", groups},
                                          {"cuda_conv/groups_refused", groups_refused},
                                          {"cuda_conv/groups_forward", groups_forward},
                                          {"cuda_conv/groups_grad_input", groups_grad_input},
                                          {"cuda_conv/groups_grad_weights", groups_grad_weights},
#endif
                                          {NULL, NULL}};
