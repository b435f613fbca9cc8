/* test_math.c - the activations, through mlk_matmul alone; exp, log, erf and the gradients of activations, through
   mlk_map.

   With K = 0 the product is zero and D = act(bias): a bias of D's shape puts any float before the activation (but -0,
   which 0 + bias turns into +0). References are the formulas of mlk_activation in double, whose own error of a few
   2^-53 times the condition of the formula is far below the 2^-24 that is measured here. */

#include "test.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof(array)[0]))

enum { ROWS = 64, COLUMNS = 256, BLOCK = ROWS * COLUMNS };

/* The greatest errors over all floats that the header promises, in units in the last place of the exact f32 result. */
static const struct {
  const char *name;
  double ulp;
} promised[MLK_ACTIVATION_COUNT] = {{"none", 0},     {"relu", 0},     {"gelu", 6.497},   {"gelu_tanh", 2.567},
                                    {"silu", 2.417}, {"tanh", 1.363}, {"sigmoid", 1.647}};

/* The formula of act in double. At -infinity the products infinity times 0 stand for their limits. */
static double exact_activation(mlk_activation act, double x) {
  switch (act) {
  case MLK_RELU: return x < 0 ? 0 : x;
  case MLK_GELU: return x == -HUGE_VAL ? -0.0 : 0.5 * x * erfc(-x * 0.70710678118654752440);
  case MLK_GELU_TANH: /* x/2 (1 + tanh u) = x / (1 + exp(-2u)) */
    return x == -HUGE_VAL ? -0.0 : x / (1 + exp(-2 * 0.79788456080286535588 * (x + 0.044715 * x * x * x)));
  case MLK_SILU: return x == -HUGE_VAL ? -0.0 : x / (1 + exp(-x));
  case MLK_TANH: return tanh(x);
  case MLK_SIGMOID: return 1 / (1 + exp(-x));
  default: return x;
  }
}

/* |got - exact| in units in the last place of exact as a float; HUGE_VAL where one is a NaN or
   infinite and not the other. */
static double ulp_error(float got, double exact) {
  const float nearest = (float)exact;
  const uint32_t exponent = mlkt_bits(nearest) >> 23 & 255u;
  if (isnan(exact) || isnan(got)) return isnan(exact) && isnan(got) ? 0 : HUGE_VAL;
  if (got == nearest && fabs((double)got) <= DBL_MAX && exponent == 255u) return 0;
  if (exponent == 255u || isinf(got)) return got == nearest ? 0 : HUGE_VAL;
  return fabs((double)got - exact) * ldexp(1.0, 150 - (int)(exponent ? exponent : 1u));
}

/* D = act(x) for a block of ROWS x COLUMNS elements */
static int activate(mlk_context *ctx, mlk_activation act, const float *x, float *preact, float *y) {
  mlk_matmul_desc d;
  memset(&d, 0, sizeof d);
  d.a = mlk_f32(x, ROWS, 0);
  d.b = mlk_f32(x, 0, COLUMNS);
  d.bias = mlk_f32(x, ROWS, COLUMNS);
  d.d = mlk_f32(y, ROWS, COLUMNS);
  if (preact) d.preact = mlk_f32(preact, ROWS, COLUMNS);
  d.activation = act;
  return CHECK_OK(ctx, mlk_matmul(ctx, &d));
}

typedef struct team {
  mlk_isa isas[MLK_ISA_COUNT];
  mlk_context *ctx[MLK_ISA_COUNT];
  int count;
} team;

/* The rows to test and, where wanted and unless --isa names one, MLK_ISA_REFERENCE behind them. */
static team team_open(int with_reference) {
  team t;
  int i;
  t.count = mlkt_isas(t.isas);
  if (with_reference && mlkt_opt.isa == MLK_ISA_BEST) t.isas[t.count++] = MLK_ISA_REFERENCE;
  for (i = 0; i < t.count; i++) {
    t.ctx[i] = mlkt_open(t.isas[i], 1);
    if (!t.ctx[i]) t.count = i;
  }
  return t;
}

static void team_close(team *t) {
  int i;
  for (i = 0; i < t->count; i++) mlk_close(t->ctx[i]);
}

/* ---- every STEP-th float ----------------------------------------------------------------------------------------- */

/* The distance between the bit patterns tried: a prime, so that all low bits occur with all exponents. */
static uint64_t sweep_step(void) { return mlkt_opt.long_run ? 1 : mlkt_opt.quick ? 20011 : 1021; }

/* The next BLOCK floats from bit pattern *next on; behind the last one, zeros. */
static void next_inputs(uint64_t *next, uint64_t step, float *x) {
  const uint64_t all = UINT64_C(1) << 32;
  int i;
  for (i = 0; i < BLOCK; i++) {
    x[i] = mlkt_float((uint32_t)(*next < all ? *next : 0));
    if (isnan(x[i]) && step == 1) { /* a few NaNs of each sign do */
      const uint64_t past = (*next | UINT64_C(0x7FFFFFFF)) + 1;
      if (*next % 64 == 63) *next = past - 1;
    }
    if (*next < all) *next += step;
  }
}

static void sweep(mlk_activation act) {
  static float x[BLOCK], y[BLOCK], other[BLOCK];
  const uint64_t step = sweep_step(), all = UINT64_C(1) << 32;
  mlkt_rng rng = mlkt_rng_case();
  uint64_t next = step > 1 ? mlkt_u64(&rng) % step : 0, tried = 0;
  double worst = 0;
  float worst_x = 0, worst_y = 0;
  team t = team_open(0);
  int i, r;
  while (next < all && t.count > 0 && !mlkt_hopeless()) {
    next_inputs(&next, step, x);
    if (!activate(t.ctx[0], act, x, NULL, y)) break;
    tried += BLOCK;
    for (i = 0; i < BLOCK; i++) {
      const double error = ulp_error(y[i], exact_activation(act, (double)x[i]));
      if (error > worst) worst = error, worst_x = x[i], worst_y = y[i];
    }
    for (r = 1; r < t.count; r++) {
      mlkt_note("%s, isa %s against %s", promised[act].name, mlk_isa_name(t.isas[r]), mlk_isa_name(t.isas[0]));
      if (!activate(t.ctx[r], act, x, NULL, other)) break;
      if (!CHECK_BITS_F32_N(other, y, BLOCK)) {
        for (i = 0; i < BLOCK; i++)
          if (mlkt_bits(other[i]) != mlkt_bits(y[i]) && !(isnan(other[i]) && isnan(y[i]))) break;
        CHECK_MSG(0, "first at x = %.9g (0x%08" PRIx32 ")", (double)x[i], mlkt_bits(x[i]));
      }
    }
  }
  mlkt_note("%s", promised[act].name);
  CHECK_MSG(worst <= promised[act].ulp, "%.3f ulp at x = %.9g (0x%08" PRIx32 "): %.9g, exactly %.12g; promised %.3f",
            worst, (double)worst_x, mlkt_bits(worst_x), (double)worst_y, exact_activation(act, (double)worst_x),
            promised[act].ulp);
  if (mlkt_opt.long_run)
    printf("  %s: greatest error %.4f ulp at x = %.9g (0x%08" PRIx32 "), %" PRIu64 " floats\n", promised[act].name,
           worst, (double)worst_x, mlkt_bits(worst_x), tried);
  team_close(&t);
}

static void test_none(void) { sweep(MLK_NONE); }
static void test_relu(void) { sweep(MLK_RELU); }
static void test_gelu(void) { sweep(MLK_GELU); }
static void test_gelu_tanh(void) { sweep(MLK_GELU_TANH); }
static void test_silu(void) { sweep(MLK_SILU); }
static void test_tanh(void) { sweep(MLK_TANH); }
static void test_sigmoid(void) { sweep(MLK_SIGMOID); }

/* ---- single values ----------------------------------------------------------------------------------------------- */

/* act(x) alone in a 1 x 1 product; -0 comes from a product that underflows. */
static float activate_one(mlk_context *ctx, mlk_activation act, float x, float *preact) {
  const int minus_zero = mlkt_bits(x) == 0x80000000u;
  float a = minus_zero ? -1e-30f : x, b = minus_zero ? 1e-30f : 1.0f, y = 12345.0f;
  mlk_matmul_desc d;
  memset(&d, 0, sizeof d);
  d.a = mlk_f32(&a, 1, 1);
  d.b = mlk_f32(&b, 1, 1);
  d.d = mlk_f32(&y, 1, 1);
  d.preact = mlk_f32(preact, 1, 1);
  d.activation = act;
  CHECK_OK(ctx, mlk_matmul(ctx, &d));
  return y;
}

static void test_special_values(void) {
  static const struct {
    mlk_activation act;
    float x, y;
  } table[] = {
      {MLK_RELU, 0.0f, 0.0f},
      {MLK_RELU, -0.0f, -0.0f},
      {MLK_RELU, -1.0f, 0.0f},
      {MLK_RELU, FLT_MAX, FLT_MAX},
      {MLK_RELU, -FLT_MAX, 0.0f},
      {MLK_RELU, INFINITY, INFINITY},
      {MLK_RELU, -INFINITY, 0.0f},
      {MLK_RELU, 1e-45f, 1e-45f},
      {MLK_RELU, -1e-45f, 0.0f},
      {MLK_TANH, 0.0f, 0.0f},
      {MLK_TANH, -0.0f, -0.0f},
      {MLK_TANH, INFINITY, 1.0f},
      {MLK_TANH, -INFINITY, -1.0f},
      {MLK_TANH, FLT_MAX, 1.0f},
      {MLK_TANH, -FLT_MAX, -1.0f},
      {MLK_TANH, 20.0f, 1.0f},
      {MLK_TANH, 1e-45f, 1e-45f},
      {MLK_TANH, -1e-45f, -1e-45f},
      {MLK_TANH, FLT_MIN, FLT_MIN},
      {MLK_SIGMOID, 0.0f, 0.5f},
      {MLK_SIGMOID, -0.0f, 0.5f},
      {MLK_SIGMOID, 1e-45f, 0.5f},
      {MLK_SIGMOID, INFINITY, 1.0f},
      {MLK_SIGMOID, -INFINITY, 0.0f},
      {MLK_SIGMOID, FLT_MAX, 1.0f},
      {MLK_SIGMOID, -FLT_MAX, 0.0f},
      {MLK_SILU, 0.0f, 0.0f},
      {MLK_SILU, -0.0f, -0.0f},
      {MLK_SILU, INFINITY, INFINITY},
      {MLK_SILU, FLT_MAX, FLT_MAX},
      {MLK_SILU, 100.0f, 100.0f},
      {MLK_GELU, 0.0f, 0.0f},
      {MLK_GELU, -0.0f, -0.0f},
      {MLK_GELU, INFINITY, INFINITY},
      {MLK_GELU, FLT_MAX, FLT_MAX},
      {MLK_GELU, 100.0f, 100.0f},
      {MLK_GELU_TANH, 0.0f, 0.0f},
      {MLK_GELU_TANH, -0.0f, -0.0f},
      {MLK_GELU_TANH, INFINITY, INFINITY},
      {MLK_GELU_TANH, FLT_MAX, FLT_MAX},
      {MLK_GELU_TANH, 100.0f, 100.0f},
  };
  static const float far_left[] = {-INFINITY, -FLT_MAX, -1e30f, -1e10f, -1000.0f, -200.0f};
  static const mlk_activation vanishing[] = {MLK_GELU, MLK_GELU_TANH, MLK_SILU, MLK_SIGMOID};
  team t = team_open(1);
  int r, i, j;
  for (r = 0; r < t.count; r++) {
    float preact = 0;
    for (i = 0; i < COUNT_OF(table); i++) {
      mlkt_note("isa %s, %s(%g)", mlk_isa_name(t.isas[r]), promised[table[i].act].name, (double)table[i].x);
      CHECK_BITS_F32(activate_one(t.ctx[r], table[i].act, table[i].x, &preact), table[i].y);
      CHECK_BITS_F32(preact, table[i].x);
    }
    for (i = 0; i < MLK_ACTIVATION_COUNT; i++) {
      mlkt_note("isa %s, %s(NaN)", mlk_isa_name(t.isas[r]), promised[i].name);
      CHECK(isnan(activate_one(t.ctx[r], (mlk_activation)i, NAN, &preact)));
      CHECK(isnan(preact));
    }
    for (i = 0; i < COUNT_OF(vanishing); i++)
      for (j = 0; j < COUNT_OF(far_left); j++) {
        mlkt_note("isa %s, %s(%g)", mlk_isa_name(t.isas[r]), promised[vanishing[i]].name, (double)far_left[j]);
        CHECK(activate_one(t.ctx[r], vanishing[i], far_left[j], &preact) == 0.0f);
      }
  }
  team_close(&t);
}

/* ---- properties -------------------------------------------------------------------------------------------------- */

/* x of BLOCK floats over all exponents, none a NaN or a zero, with the ranges where activations bend
   given half the room. */
static void fill_inputs(mlkt_rng *rng, float *x) {
  int i;
  for (i = 0; i < BLOCK; i++) {
    do x[i] = i % 2 ? 12.0f * mlkt_signed(rng) : mlkt_float((uint32_t)mlkt_u64(rng));
    while (isnan(x[i]) || x[i] == 0.0f);
  }
}

/* tanh(-x) = -tanh(x), bit for bit */
static void test_tanh_odd(void) {
  static float x[BLOCK], minus[BLOCK], y[BLOCK], minus_y[BLOCK];
  mlkt_rng rng = mlkt_rng_case();
  team t = team_open(1);
  int r, i, round;
  for (r = 0; r < t.count; r++)
    for (round = 0; round < (mlkt_opt.quick ? 4 : 100); round++) {
      fill_inputs(&rng, x);
      for (i = 0; i < BLOCK; i++) minus[i] = -x[i];
      activate(t.ctx[r], MLK_TANH, x, NULL, y);
      activate(t.ctx[r], MLK_TANH, minus, NULL, minus_y);
      for (i = 0; i < BLOCK; i++) y[i] = -y[i];
      mlkt_note("isa %s", mlk_isa_name(t.isas[r]));
      CHECK_BITS_F32_N(minus_y, y, BLOCK);
    }
  team_close(&t);
}

/* |tanh| <= 1, 0 <= sigmoid <= 1, and x - 0.2 <= gelu(x), silu(x) - 0.1 and the like <= max(x, 0) */
static void test_ranges(void) {
  static float x[BLOCK], y[BLOCK];
  mlkt_rng rng = mlkt_rng_case();
  team t = team_open(1);
  int r, i, round;
  for (r = 0; r < t.count; r++)
    for (round = 0; round < (mlkt_opt.quick ? 2 : 20); round++) {
      const mlk_activation soft[] = {MLK_GELU, MLK_GELU_TANH, MLK_SILU};
      int s, bad = 0;
      fill_inputs(&rng, x);
      mlkt_note("isa %s", mlk_isa_name(t.isas[r]));
      activate(t.ctx[r], MLK_TANH, x, NULL, y);
      for (i = 0; i < BLOCK; i++) bad += !(fabsf(y[i]) <= 1.0f && fabsf(y[i]) <= fabsf(x[i]));
      CHECK_MSG(bad == 0, "%d values of tanh beyond 1 or beyond x", bad);
      activate(t.ctx[r], MLK_SIGMOID, x, NULL, y);
      for (i = 0, bad = 0; i < BLOCK; i++) bad += !(y[i] >= 0.0f && y[i] <= 1.0f);
      CHECK_MSG(bad == 0, "%d values of sigmoid outside [0, 1]", bad);
      for (s = 0; s < COUNT_OF(soft); s++) {
        activate(t.ctx[r], soft[s], x, NULL, y);
        for (i = 0, bad = 0; i < BLOCK; i++)
          bad += !(x[i] < 0 ? y[i] <= 0 && y[i] >= -0.28f : y[i] >= 0 && y[i] <= x[i]);
        CHECK_MSG(bad == 0, "%d values of %s outside [-0.28, max(x, 0)]", bad, promised[soft[s]].name);
      }
    }
  team_close(&t);
}

/* The value of an element depends neither on its place, nor on the shape and strides of D, nor on how it came about. */
static void test_place(void) {
  static float x[BLOCK], y[BLOCK], got[BLOCK];
  const float one = 1.0f;
  mlkt_rng rng = mlkt_rng_case();
  team t = team_open(1);
  int r, act, n, i;
  for (r = 0; r < t.count; r++)
    for (act = 0; act < MLK_ACTIVATION_COUNT; act++) {
      fill_inputs(&rng, x);
      activate(t.ctx[r], (mlk_activation)act, x, NULL, y);
      for (n = 1; n <= 70; n += mlkt_opt.quick ? 13 : 1) {
        const int m = (int)mlkt_int(&rng, 1, BLOCK / n < 40 ? BLOCK / n : 40), by_column = (int)mlkt_int(&rng, 0, 1);
        mlk_matmul_desc d;
        memset(&d, 0, sizeof d);
        mlkt_note("isa %s, %s, %d x %d%s", mlk_isa_name(t.isas[r]), promised[act].name, m, n,
                  by_column ? ", D transposed" : "");
        if (n % 2) { /* x as bias of nothing */
          d.a = mlk_f32(x, m, 0);
          d.b = mlk_f32(x, 0, n);
          d.bias = mlk_f32(x, m, n);
        } else { /* x as a column times 1, seen through a row of the last axis only */
          d.a = mlk_f32(x, m * n, 1);
          d.b = mlk_f32(&one, 1, 1);
        }
        d.d = n % 2 ? mlk_f32(got, m, n) : mlk_f32(got, m * n, 1);
        if (n % 2 && by_column) {
          d.d = mlk_transposed(mlk_f32(got, n, m));
          d.bias = mlk_transposed(mlk_f32(x, n, m));
        }
        d.activation = (mlk_activation)act;
        if (CHECK_OK(t.ctx[r], mlk_matmul(t.ctx[r], &d)))
          for (i = 0; i < m * n; i++) {
            if (!CHECK_BITS_F32(got[i], y[i])) break;
          }
      }
    }
  team_close(&t);
}

/* In a whole product with alpha, beta, C and bias: preact holds the argument of the activation, whatever its
   distribution, and preact without an activation is D. */
static void test_preact(void) {
  static float a[ROWS * 33], b[33 * COLUMNS], c[BLOCK], bias[COLUMNS], plain[BLOCK], preact[BLOCK], y[BLOCK],
      again[BLOCK];
  const float alpha = 0.75f, beta = -1.5f;
  mlkt_rng rng = mlkt_rng_case();
  team t = team_open(1);
  int r, act, spread, i;
  for (r = 0; r < t.count; r++)
    for (act = 0; act < MLK_ACTIVATION_COUNT; act++)
      for (spread = 0; spread < 4; spread++) {
        const float scales[] = {0.01f, 1.0f, 30.0f, 1e6f};
        mlk_matmul_desc d;
        if (mlkt_sampled() && (r + act + spread) % 4) continue;
        memset(&d, 0, sizeof d);
        for (i = 0; i < COUNT_OF(a); i++) a[i] = scales[spread] * mlkt_signed(&rng);
        for (i = 0; i < COUNT_OF(b); i++) b[i] = mlkt_signed(&rng);
        for (i = 0; i < BLOCK; i++) c[i] = mlkt_wide(&rng, 6);
        for (i = 0; i < COLUMNS; i++) bias[i] = mlkt_signed(&rng);
        mlkt_note("isa %s, %s, spread %g", mlk_isa_name(t.isas[r]), promised[act].name, (double)scales[spread]);
        d.a = mlk_f32(a, ROWS, 33);
        d.b = mlk_f32(b, 33, COLUMNS);
        d.c = mlk_f32(c, ROWS, COLUMNS);
        d.bias = mlk_f32(bias, COLUMNS);
        d.alpha = &alpha;
        d.beta = &beta;
        d.d = mlk_f32(plain, ROWS, COLUMNS);
        CHECK_OK(t.ctx[r], mlk_matmul(t.ctx[r], &d));
        d.d = mlk_f32(y, ROWS, COLUMNS);
        d.preact = mlk_f32(preact, ROWS, COLUMNS);
        d.activation = (mlk_activation)act;
        CHECK_OK(t.ctx[r], mlk_matmul(t.ctx[r], &d));
        CHECK_BITS_F32_N(preact, plain, BLOCK);
        activate(t.ctx[r], (mlk_activation)act, preact, NULL, again);
        CHECK_BITS_F32_N(y, again, BLOCK);
        for (i = 0; i < BLOCK; i++) {
          const double error = ulp_error(y[i], exact_activation((mlk_activation)act, (double)preact[i]));
          if (!CHECK_MSG(error <= promised[act].ulp, "%.3f ulp at %.9g", error, (double)preact[i])) break;
        }
      }
  team_close(&t);
}

/* ---- functions of mlk_map: the same sweep ------------------------------------------------------------------------ */

/* promised: ulp of the exact value, or, between low and high, where the function crosses zero, an absolute error. */
typedef struct function {
  const char *name;
  mlk_map_op op;
  mlk_activation act;
  double ulp, absolute, low, high;
} function;

static const function functions[] = {
    {"exp", MLK_EXP, MLK_NONE, 0.892, 0, 0, 0},
    {"log", MLK_LOG, MLK_NONE, 0.876, 0, 0, 0},
    {"erf", MLK_ERF, MLK_NONE, 1.092, 0, 0, 0},
    {"relu'", MLK_ACT_GRAD, MLK_RELU, 0, 0, 0, 0},
    {"gelu'", MLK_ACT_GRAD, MLK_GELU, 6.3, 7.2e-08, -1, -0.5},
    {"gelu_tanh'", MLK_ACT_GRAD, MLK_GELU_TANH, 7.76, 5e-08, -1, -0.5},
    {"silu'", MLK_ACT_GRAD, MLK_SILU, 5.65, 2e-08, -1.6, -1},
    {"tanh'", MLK_ACT_GRAD, MLK_TANH, 4.22, 0, 0, 0},
    {"sigmoid'", MLK_ACT_GRAD, MLK_SIGMOID, 4.22, 0, 0, 0},
};

/* (1 + z (1 + w)) / (1 + z)^2 or z (1 + z - w) / (1 + z)^2 with z = exp(-t): the derivative of x sigmoid(t(x)) for x >
   0 or x < 0, w = |x| dt/dx. */
static double x_sigmoid_slope(double x, double t, double w) {
  const double z = exp(-t);
  if (isinf(x)) return x > 0 ? 1 : -0.0;
  return (x > 0 ? 1 + z * (1 + w) : z * (1 + z - w)) / ((1 + z) * (1 + z));
}

static double exact_function(const function *f, double x) {
  const double a = fabs(x), k1 = 2 * 0.79788456080286535588, k3 = k1 * 0.044715;
  double z;
  if (isnan(x)) return x;
  if (f->op == MLK_EXP) return exp(x);
  if (f->op == MLK_LOG) return log(x);
  if (f->op == MLK_ERF) return erf(x);
  switch (f->act) {
  case MLK_RELU: return x > 0;
  case MLK_GELU:
    if (a > 40) return x > 0 ? 1 : -0.0;
    return 0.5 * erfc(-x * 0.70710678118654752440) + x * 0.39894228040143267794 * exp(-0.5 * x * x);
  case MLK_GELU_TANH:
    if (a > 40) return x > 0 ? 1 : -0.0;
    return x_sigmoid_slope(x, a * (k1 + k3 * a * a), a * (k1 + 3 * k3 * a * a));
  case MLK_SILU: return x_sigmoid_slope(x, a, a);
  case MLK_TANH: return z = exp(-2 * a), 4 * z / ((1 + z) * (1 + z));
  default: return z = exp(-a), z / ((1 + z) * (1 + z));
  }
}

/* y = f(x); gradients are those of a one. */
static int evaluate(mlk_context *ctx, const function *f, const float *x, float *y, int count) {
  const float one = 1.0f;
  mlk_map_desc d;
  memset(&d, 0, sizeof d);
  d.op = f->op;
  d.activation = f->act;
  d.a = mlk_f32(x, count);
  if (f->op == MLK_ACT_GRAD) d.b = mlk_f32(&one, 1);
  d.out = mlk_f32(y, count);
  return CHECK_OK(ctx, mlk_map(ctx, &d));
}

static void sweep_function(const function *f) {
  static float x[BLOCK], y[BLOCK], other[BLOCK];
  const uint64_t step = sweep_step(), all = UINT64_C(1) << 32;
  mlkt_rng rng = mlkt_rng_case();
  uint64_t next = step > 1 ? mlkt_u64(&rng) % step : 0;
  double worst = 0, absolute = 0;
  float worst_x = 0, worst_y = 0;
  team t = team_open(0);
  int i, r;
  while (next < all && t.count > 0 && !mlkt_hopeless()) {
    next_inputs(&next, step, x);
    if (!evaluate(t.ctx[0], f, x, y, BLOCK)) break;
    for (i = 0; i < BLOCK; i++) {
      const double exact = exact_function(f, (double)x[i]), error = ulp_error(y[i], exact);
      if ((double)x[i] > f->low && (double)x[i] < f->high) {
        if (!(fabs((double)y[i] - exact) <= absolute)) absolute = fabs((double)y[i] - exact);
      } else if (error > worst) {
        worst = error, worst_x = x[i], worst_y = y[i];
      }
    }
    for (r = 1; r < t.count; r++) {
      mlkt_note("%s, isa %s against %s", f->name, mlk_isa_name(t.isas[r]), mlk_isa_name(t.isas[0]));
      if (!evaluate(t.ctx[r], f, x, other, BLOCK)) break;
      CHECK_BITS_F32_N(other, y, BLOCK);
    }
  }
  mlkt_note("%s", f->name);
  CHECK_MSG(worst <= f->ulp, "%.3f ulp at x = %.9g (0x%08" PRIx32 "): %.9g, exactly %.12g; promised %.3f", worst,
            (double)worst_x, mlkt_bits(worst_x), (double)worst_y, exact_function(f, (double)worst_x), f->ulp);
  CHECK_MSG(absolute <= f->absolute, "an error of %.3g near the zero; promised %.3g", absolute, f->absolute);
  if (mlkt_opt.long_run)
    printf("  %s: greatest error %.4f ulp at x = %.9g (0x%08" PRIx32 "), %.4g near its zero\n", f->name, worst,
           (double)worst_x, mlkt_bits(worst_x), absolute);
  team_close(&t);
}

static void test_exp(void) { sweep_function(&functions[0]); }
static void test_log(void) { sweep_function(&functions[1]); }
static void test_erf(void) { sweep_function(&functions[2]); }
static void test_relu_grad(void) { sweep_function(&functions[3]); }
static void test_gelu_grad(void) { sweep_function(&functions[4]); }
static void test_gelu_tanh_grad(void) { sweep_function(&functions[5]); }
static void test_silu_grad(void) { sweep_function(&functions[6]); }
static void test_tanh_grad(void) { sweep_function(&functions[7]); }
static void test_sigmoid_grad(void) { sweep_function(&functions[8]); }

/* Values that must be exact, and the ends of ranges. */
static void test_special_functions(void) {
  static const struct {
    int function;
    float x, y;
  } table[] = {
      {0, 0.0f, 1.0f},       {0, -0.0f, 1.0f},          {0, INFINITY, INFINITY}, {0, -INFINITY, 0.0f},
      {0, 89.0f, INFINITY},  {0, -104.0f, 0.0f},        {1, 1.0f, 0.0f},         {1, 0.0f, -INFINITY},
      {1, -0.0f, -INFINITY}, {1, INFINITY, INFINITY},   {1, -1.0f, NAN},         {1, -INFINITY, NAN},
      {1, -1e-45f, NAN},     {1, 1e-45f, -103.278931f}, {2, 0.0f, 0.0f},         {2, -0.0f, -0.0f},
      {2, INFINITY, 1.0f},   {2, -INFINITY, -1.0f},     {2, 4.0f, 1.0f},         {2, FLT_MAX, 1.0f},
      {3, 0.0f, 0.0f},       {3, -0.0f, 0.0f},          {3, 1e-45f, 1.0f},       {3, -INFINITY, 0.0f},
      {4, 0.0f, 0.5f},       {4, INFINITY, 1.0f},       {4, FLT_MAX, 1.0f},      {5, 0.0f, 0.5f},
      {5, INFINITY, 1.0f},   {6, 0.0f, 0.5f},           {6, INFINITY, 1.0f},     {7, 0.0f, 1.0f},
      {7, INFINITY, 0.0f},   {7, -INFINITY, 0.0f},      {8, 0.0f, 0.25f},        {8, -0.0f, 0.25f},
      {8, INFINITY, 0.0f},   {8, -INFINITY, 0.0f},
  };
  static const float far_left[] = {-INFINITY, -FLT_MAX, -1e30f, -1000.0f, -200.0f};
  team t = team_open(1);
  int r, i, j;
  for (r = 0; r < t.count; r++) {
    float y;
    for (i = 0; i < COUNT_OF(table); i++) {
      mlkt_note("isa %s, %s(%g)", mlk_isa_name(t.isas[r]), functions[table[i].function].name, (double)table[i].x);
      evaluate(t.ctx[r], &functions[table[i].function], &table[i].x, &y, 1);
      CHECK_BITS_F32(y, table[i].y);
    }
    for (i = 0; i < COUNT_OF(functions); i++) {
      const float nan = NAN;
      mlkt_note("isa %s, %s(NaN)", mlk_isa_name(t.isas[r]), functions[i].name);
      evaluate(t.ctx[r], &functions[i], &nan, &y, 1);
      CHECK(isnan(y));
      for (j = 0; j < COUNT_OF(far_left) && functions[i].op == MLK_ACT_GRAD; j++) {
        mlkt_note("isa %s, %s(%g)", mlk_isa_name(t.isas[r]), functions[i].name, (double)far_left[j]);
        evaluate(t.ctx[r], &functions[i], &far_left[j], &y, 1);
        CHECK(y == 0.0f);
      }
    }
  }
  team_close(&t);
}

const mlkt_case mlkt_math_cases[] = {
    {"math/none", test_none},
    {"math/relu", test_relu},
    {"math/gelu", test_gelu},
    {"math/gelu_tanh", test_gelu_tanh},
    {"math/silu", test_silu},
    {"math/tanh", test_tanh},
    {"math/sigmoid", test_sigmoid},
    {"math/exp", test_exp},
    {"math/log", test_log},
    {"math/erf", test_erf},
    {"math/relu_grad", test_relu_grad},
    {"math/gelu_grad", test_gelu_grad},
    {"math/gelu_tanh_grad", test_gelu_tanh_grad},
    {"math/silu_grad", test_silu_grad},
    {"math/tanh_grad", test_tanh_grad},
    {"math/sigmoid_grad", test_sigmoid_grad},
    {"math/special_functions", test_special_functions},
    {"math/special_values", test_special_values},
    {"math/tanh_odd", test_tanh_odd},
    {"math/ranges", test_ranges},
    {"math/place", test_place},
    {"math/preact", test_preact},
    {NULL, NULL},
};
