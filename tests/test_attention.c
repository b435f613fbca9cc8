/* test_attention.c - attention and its gradient: every kind of mask, position, length and layout against the oracle on
   every row; across blocks and segments; exact results; finite differences. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "attention_problem.h"

/* ---- every combination, on small shapes -------------------------------------------------------------------------- */

/* Every combination on some shapes. */
static void combinations_of(op what, int shapes) {
  problem p;
  uint64_t index = 0;
  int n, i;
  memset(&p, 0, sizeof p);
  crew_open();
  tallies_clear();
  for (n = 0; n < COMBINATIONS; n++)
    for (i = 0; i < shapes && !mlkt_hopeless(); i++, index++) {
      mlkt_rng rng = point_rng(index);
      setup s = combination(n, &rng);
      const values kind = index % 5 == 3 ? SPECIAL : index % 3 == 0 ? SHARP : SIGNED;
      if (!mlkt_keep(index) || (what == BACKWARD && s.keys == KEYS_PAGES)) continue;
      if (what == BACKWARD) s.dtype = MLK_F32;
      problem_shape(&p, what, &s, &rng);
      problem_fill(&p, kind, &rng);
      if (!forward_first(&p)) break;
      if (p.judged) oracle(&p);
      problem_layout(&p, index % 2 ? FORM_COUNT : (form)(index / 2 % FORM_COUNT), &rng);
      every_row(&p, index, "combination", kind == SPECIAL ? "special" : kind == SHARP ? "sharp" : "signed");
    }
  judge_tallies();
  crew_close();
  problem_free(&p);
}

static void combinations(void) { combinations_of(FORWARD, 3); }
static void combinations_grad(void) { combinations_of(BACKWARD, 3); }

/* ---- across blocks of keys, segments of parts, chains of the gradient -------------------------------------------- */

/* Runs op of s on every row: operands of the given kind of values in layout f. */
static void point(problem *p, op what, const setup *s, values kind, form f, uint64_t index, const char *name) {
  mlkt_rng rng = point_rng(index + 700001);
  problem_shape(p, what, s, &rng);
  problem_fill(p, kind, &rng);
  if (!forward_first(p)) return;
  if (p->judged) oracle(p);
  problem_layout(p, f, &rng);
  every_row(p, index, name, form_names[f]);
}

static void blocks(void) {
  static const int64_t keys[] = {15, 33, 64, 511, 512, 513, 700, 1024, 1030, 2049, 4095, 4096, 4097, 8192, 9001};
  static const int64_t queries[] = {1, 2, 3, 5, 8, 16, 33, 65, 130};
  enum { KEYS = (int)(sizeof keys / sizeof keys[0]), QUERIES = (int)(sizeof queries / sizeof queries[0]) };
  problem p;
  uint64_t index = 0;
  int i, j, again;
  memset(&p, 0, sizeof p);
  crew_open();
  tallies_clear();
  for (i = 0; i < KEYS; i++)
    for (j = 0; j < QUERIES; j++)
      for (again = 0; again < 2 && !mlkt_hopeless(); again++, index++) {
        mlkt_rng rng = point_rng(index);
        const setup s = any_features(queries[j], keys[i], 8e5, &rng);
        if (!mlkt_keep(index) || macs_of(&s) > 3e6) continue;
        point(&p, FORWARD, &s, index % 4 ? SIGNED : SHARP, index % 3 ? FORM_COUNT : FORM_DENSE, index, "blocks");
      }
  judge_tallies();
  crew_close();
  problem_free(&p);
}

static void blocks_grad(void) {
  static const int64_t keys[] = {5, 31, 64, 100, 513, 1025}, queries[] = {1, 3, 17, 64, 129, 260, 515};
  enum { KEYS = (int)(sizeof keys / sizeof keys[0]), QUERIES = (int)(sizeof queries / sizeof queries[0]) };
  problem p;
  uint64_t index = 0;
  int i, j, again;
  memset(&p, 0, sizeof p);
  crew_open();
  tallies_clear();
  for (i = 0; i < KEYS; i++)
    for (j = 0; j < QUERIES; j++)
      for (again = 0; again < 2 && !mlkt_hopeless(); again++, index++) {
        mlkt_rng rng = point_rng(index);
        setup s = any_features(queries[j], keys[i], 5e5, &rng);
        s.dtype = MLK_F32;
        if (s.keys == KEYS_PAGES) s.keys = KEYS_DENSE;
        if (!mlkt_keep(index) || macs_of(&s) > 2e6) continue;
        point(&p, BACKWARD, &s, index % 4 ? SIGNED : SHARP, index % 3 ? FORM_COUNT : FORM_DENSE, index, "blocks");
      }
  judge_tallies();
  crew_close();
  problem_free(&p);
}

/* Many keys of which each query sees few: blocks, segments and parts that nobody sees on both sides. */
static void far_windows(void) {
  static const int64_t queries[] = {1, 70, 600}, keys[] = {700, 5000, 9000}, windows[] = {1, 100, 700};
  static const int64_t offsets[] = {0, -4500, 400};
  problem p;
  uint64_t index = 0;
  int i, j, w, what;
  memset(&p, 0, sizeof p);
  crew_open();
  tallies_clear();
  for (i = 0; i < 3; i++)
    for (j = 0; j < 3; j++)
      for (w = 0; w < 3; w++)
        for (what = FORWARD; what <= BACKWARD && !mlkt_hopeless(); what++, index++) {
          mlkt_rng rng = point_rng(index);
          setup s = setup_new(1, 2, 1 + (int64_t)(index % 2), queries[i], keys[j], mlkt_int(&rng, 1, 9),
                              mlkt_int(&rng, 1, 9));
          s.window = windows[w], s.offset = offsets[mlkt_u64(&rng) % 3];
          s.causal = mlkt_u64(&rng) % 2 != 0, s.sinks = mlkt_u64(&rng) % 2 != 0;
          if (mlkt_u64(&rng) % 2) s.masks = MASK_BIAS, s.broad = 8;
          if (mlkt_u64(&rng) % 3 == 0) s.keys = KEYS_LENGTHS, s.b = 2;
          if (mlkt_u64(&rng) % 3 == 0) s.keys = KEYS_OFFSETS, s.q_ragged = 1, s.b = 2;
          while ((double)(s.b * s.h * s.s) * (double)s.t > (mlkt_opt.quick ? 3e5 : 1.2e6) && s.s > 1) s.s--;
          if (!mlkt_keep(index)) continue;
          point(&p, (op)what, &s, SIGNED, FORM_COUNT, index, "far windows");
        }
  judge_tallies();
  crew_close();
  problem_free(&p);
}

/* ---- layouts ----------------------------------------------------------------------------------------------------- */

static void layouts(void) {
  static const mlk_dtype dtypes[] = {MLK_F32, MLK_F16, MLK_BF16};
  static const key_kind kinds[] = {KEYS_DENSE, KEYS_LENGTHS, KEYS_OFFSETS, KEYS_PAGES};
  problem p;
  uint64_t index = 0;
  int f, t, k, what;
  memset(&p, 0, sizeof p);
  crew_open();
  tallies_clear();
  for (f = 0; f <= FORM_COUNT; f++)
    for (t = 0; t < 3; t++)
      for (k = 0; k < 4; k++)
        for (what = FORWARD; what <= BACKWARD && !mlkt_hopeless(); what++, index++) {
          mlkt_rng rng = point_rng(index);
          setup s = setup_new(2, 4, 2, mlkt_int(&rng, 1, 20), mlkt_int(&rng, 1, 60), mlkt_int(&rng, 1, 40),
                              mlkt_int(&rng, 1, 40));
          s.dtype = dtypes[t];
          s.keys = kinds[k], s.page = 5, s.page_lengths = 1, s.q_ragged = k == 2;
          s.masks = (int)(index % 4), s.causal = index % 3 == 0;
          if ((index && !mlkt_keep(index)) || (what == BACKWARD && (t || k == 3))) continue;
          point(&p, (op)what, &s, SIGNED, (form)f, index, "layouts");
        }
  judge_tallies();
  crew_close();
  problem_free(&p);
}

/* Inputs whose axes repeat by a stride of 0 read as if they were written out. */
static void repeated_inputs(void) {
  static const which inputs[] = {Q, K, V, MASK, BIAS, DOUT};
  problem p;
  uint64_t index;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 240 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const op what = index % 3 == 2 ? BACKWARD : FORWARD;
    setup s = any_features(mlkt_int(&rng, 1, 40), mlkt_int(&rng, 1, 150), 2e5, &rng);
    operand *o = &p.o[inputs[mlkt_u64(&rng) % 6]];
    const int axis = (int)mlkt_int(&rng, 0, 3);
    size_t i, inner = 1, size;
    if (what == BACKWARD) s.dtype = MLK_F32, s.keys = s.keys == KEYS_PAGES ? KEYS_DENSE : s.keys;
    if (!mlkt_keep(index)) continue;
    problem_shape(&p, what, &s, &rng);
    if (!o->present || axis >= o->rank) continue;
    size = (size_t)o->shape[axis];
    for (i = (size_t)axis + 1; i < AXES; i++) inner *= (size_t)o->shape[i];
    if (size < 2 || o->count / size < 2) continue; /* another axis must have a stride, lest all are zero */
    problem_fill(&p, SIGNED, &rng);
    for (i = 0; i < o->count; i++) {
      const size_t first = i / (inner * size) * (inner * size) + i % inner;
      memmove(o->dense + i * o->width, o->dense + first * o->width, o->width);
      if (o == &p.o[K]) p.key[i] = p.key[first];
      if (o == &p.o[V]) p.value[i] = p.value[first];
    }
    if (!forward_first(&p)) break;
    p.judged = what == FORWARD;
    oracle(&p);
    problem_layout(&p, FORM_PADDED, &rng);
    o->view.stride[axis] = 0;
    for (i = 0; i < (size_t)o->rank; i++)
      if (o->shape[i] == 1) o->view.stride[i] = 1;
    every_row(&p, index, "repeated", axis == 0 ? "axis 0" : axis == 1 ? "axis 1" : axis == 2 ? "axis 2" : "axis 3");
  }
  crew_close();
  problem_free(&p);
}

/* Q, K and V side by side in one tensor, heads that share keys by a stride of 0, masks that repeat by one: the bits of
   dense operands. */
static void shared_memory(void) {
  enum { B = 2, H = 6, G = 2, S = 21, D = 24, W = H + 2 * G, N = B * H * S * D };
  static float packed[B * S * W * D], q[N], k[B * G * S * D], v[B * G * S * D], out[N], want[N], bias[S];
  static float many_k[B * H * S * D], many_v[B * H * S * D];
  static uint8_t mask[S];
  mlkt_rng rng = mlkt_rng_case();
  int64_t b, h, s, d;
  int r, form_of;
  draw(&rng, packed, B * S * W * D);
  draw(&rng, bias, S);
  for (s = 0; s < S; s++) mask[s] = mlkt_u64(&rng) % 4 != 0;
  for (b = 0; b < B; b++)
    for (s = 0; s < S; s++)
      for (h = 0; h < W; h++)
        for (d = 0; d < D; d++) {
          const float x = packed[((b * S + s) * W + h) * D + d];
          if (h < H) q[((b * H + h) * S + s) * D + d] = x;
          if (h >= H && h < H + G) k[((b * G + h - H) * S + s) * D + d] = x;
          if (h >= H + G) v[((b * G + h - H - G) * S + s) * D + d] = x;
        }
  for (b = 0; b < B; b++)
    for (h = 0; h < H; h++) {
      memcpy(many_k + (b * H + h) * S * D, k + b * G * S * D, S * D * sizeof *k); /* all heads: key head 0 */
      memcpy(many_v + (b * H + h) * S * D, v + b * G * S * D, S * D * sizeof *v);
    }
  crew_open();
  for (r = -1; r < crew.rows; r++)
    for (form_of = 0; form_of < 3; form_of++) {
      mlk_context *ctx = crew_get(r < 0 ? MLK_ISA_REFERENCE : crew.isas[r], 1);
      const mlk_tensor all = mlk_swapped(mlk_f32(packed, B, S, W, D), 1, 2);
      mlk_attention_desc plain, desc;
      if (!ctx) continue;
      mlkt_note("isa %s, form %d", mlk_isa_name(r < 0 ? MLK_ISA_REFERENCE : crew.isas[r]), form_of);
      memset(&plain, 0, sizeof plain);
      plain.q = mlk_f32(q, B, H, S, D);
      plain.k = form_of == 1 ? mlk_f32(many_k, B, H, S, D) : mlk_f32(k, B, G, S, D);
      plain.v = form_of == 1 ? mlk_f32(many_v, B, H, S, D) : mlk_f32(v, B, G, S, D);
      plain.out = mlk_f32(want, B, H, S, D);
      plain.scores.causal = form_of == 0;
      if (form_of == 2) plain.scores.mask = mlk_u8(mask, S), plain.scores.bias = mlk_f32(bias, S, 1);
      desc = plain;
      desc.out = mlk_swapped(mlk_f32(out, B, S, H, D), 1, 2);
      if (form_of == 0) {
        desc.q = mlk_slice(all, 1, 0, H);
        desc.k = mlk_slice(all, 1, H, G);
        desc.v = mlk_slice(all, 1, H + G, G);
      } else if (form_of == 1) { /* key head 0 for each query head */
        desc.k = mlk_slice(mlk_f32(k, B, G, S, D), 1, 0, 1), desc.v = mlk_slice(mlk_f32(v, B, G, S, D), 1, 0, 1);
        desc.k.shape[1] = desc.v.shape[1] = H;
        desc.k.stride[1] = desc.v.stride[1] = 0;
      } else {
        desc.scores.mask = mlk_u8(mask, B, H, S, S);
        desc.scores.bias = mlk_f32(bias, B, H, S, S);
        memset(desc.scores.mask.stride, 0, sizeof desc.scores.mask.stride);
        memset(desc.scores.bias.stride, 0, sizeof desc.scores.bias.stride);
        desc.scores.mask.stride[3] = 1, desc.scores.bias.stride[2] = 1;
      }
      CHECK_OK(ctx, mlk_attention(ctx, &plain));
      mlkt_rogue_f32(out, N);
      CHECK_OK(ctx, mlk_attention(ctx, &desc));
      for (b = 0; b < B; b++)
        for (h = 0; h < H; h++)
          for (s = 0; s < S; s++)
            if (!CHECK_BITS_F32_N(out + ((b * S + s) * H + h) * D, want + ((b * H + h) * S + s) * D, D)) b = h = s = 99;
    }
  crew_close();
}

/* ---- exact results ----------------------------------------------------------------------------------------------- */

enum { EXACT_S = 24, EXACT_T = 4500, EXACT_D = 24, EXACT_E = 9, EXACT_H = 4, EXACT_G = 2 };
typedef enum one_hot { BY_MASK, BY_BIAS, BY_SCORE, BY_WINDOW, ONE_HOTS } one_hot;

/* One call whose rows see one key each, or are ruled by one; keys: which. Values are integers. */
static void one_hot_call(one_hot how, int64_t t, float *const data[7], uint8_t *mask, mlkt_rng *rng) {
  float *q = data[0], *k = data[1], *v = data[2], *out = data[3], *lse = data[4], *bias = data[5], *dv = data[6];
  static int64_t key[EXACT_H][EXACT_S];
  static float want_lse[EXACT_H * EXACT_S];
  const int64_t offset = how == BY_WINDOW ? -mlkt_int(rng, 0, t - 1) : 0;
  int64_t h, i, j, d, e;
  int r;
  mlk_attention_desc desc;
  for (i = 0; i < EXACT_H * EXACT_S * EXACT_D; i++) q[i] = (float)mlkt_int(rng, -3, 3);
  for (i = 0; i < EXACT_G * t * EXACT_D; i++) k[i] = (float)mlkt_int(rng, -3, 3);
  for (i = 0; i < EXACT_G * t * EXACT_E; i++) v[i] = (float)mlkt_int(rng, -100, 100);
  for (i = 0; i < EXACT_H * EXACT_S * t; i++) mask[i] = 0, bias[i] = -2e5f;
  if (how == BY_SCORE) /* key j has a one at j % D; only the first and last D keys are not zero */
    for (i = 0; i < EXACT_G * t; i++)
      for (d = 0; d < EXACT_D; d++)
        k[i * EXACT_D + d] = (i % t < EXACT_D / 2 || t - i % t <= EXACT_D / 2) &&
                             d == (i % t < EXACT_D / 2 ? i % t : i % t - t + EXACT_D);
  for (h = 0; h < EXACT_H; h++)
    for (i = 0; i < EXACT_S; i++) {
      float *row = q + (h * EXACT_S + i) * EXACT_D;
      float x = 0;
      j = mlkt_int(rng, 0, t - 1);
      if (how == BY_SCORE)
        j = mlkt_u64(rng) % 2 ? mlkt_int(rng, 0, EXACT_D / 2 - 1) : t - mlkt_int(rng, 1, EXACT_D / 2);
      if (how == BY_WINDOW) j = i + t - EXACT_S + offset;
      for (d = 0; d < EXACT_D && how == BY_SCORE; d++)
        row[d] = d == (j < EXACT_D / 2 ? j : j - t + EXACT_D) ? 500.0f : 0.0f;
      key[h][i] = j;
      if (j >= 0 && j < t) {
        mask[(h * EXACT_S + i) * t + j] = 1, bias[(h * EXACT_S + i) * t + j] = 0;
        for (d = 0; d < EXACT_D; d++) x += row[d] * k[(h / 2 * t + j) * EXACT_D + d];
      }
      want_lse[h * EXACT_S + i] = j >= 0 && j < t ? x : -INFINITY;
    }
  memset(&desc, 0, sizeof desc);
  desc.q = mlk_f32(q, 1, EXACT_H, EXACT_S, EXACT_D);
  desc.k = mlk_f32(k, 1, EXACT_G, t, EXACT_D);
  desc.v = mlk_f32(v, 1, EXACT_G, t, EXACT_E);
  desc.out = mlk_f32(out, 1, EXACT_H, EXACT_S, EXACT_E);
  desc.lse = mlk_f32(lse, 1, EXACT_H, EXACT_S);
  desc.scores.scale = 1;
  if (how == BY_MASK) desc.scores.mask = mlk_u8(mask, EXACT_H, EXACT_S, t);
  if (how == BY_BIAS) desc.scores.bias = mlk_f32(bias, EXACT_H, EXACT_S, t);
  if (how == BY_WINDOW) desc.scores.window = 1, desc.scores.offset = offset;
  for (r = -1; r < crew.rows; r++) {
    const mlk_isa isa = r < 0 ? MLK_ISA_REFERENCE : crew.isas[r];
    mlk_context *ctx = crew_get(isa, t < 1000 ? 1 : crew_threads((uint64_t)r));
    mlk_attention_grad_desc grad;
    size_t wrong = 0;
    if (!ctx) return;
    if (r < 0 && t > 600) continue; /* the reference: slow, and == asks nobody */
    mlkt_note("one-hot %d, T %d, offset %d, isa %s", (int)how, (int)t, (int)offset, mlk_isa_name(isa));
    mlkt_rogue_f32(out, EXACT_H * EXACT_S * EXACT_E);
    if (!CHECK_OK(ctx, mlk_attention(ctx, &desc))) return;
    CHECK_BITS_F32_N(lse, want_lse, EXACT_H * EXACT_S);
    for (h = 0; h < EXACT_H; h++)
      for (i = 0; i < EXACT_S; i++)
        for (e = 0; e < EXACT_E; e++) {
          const int seen = key[h][i] >= 0 && key[h][i] < t;
          wrong += !(out[(h * EXACT_S + i) * EXACT_E + e] == (seen ? v[(h / 2 * t + key[h][i]) * EXACT_E + e] : 0.0f));
        }
    CHECK_MSG(wrong == 0, "%lu elements of out are not those of the key", (unsigned long)wrong);
    if (t > 600) continue;

    memset(&grad, 0, sizeof grad); /* q stands for dout: integers; dv is then a sum of its rows */
    grad.q = desc.q, grad.k = desc.k, grad.v = desc.v, grad.out = desc.out, grad.lse = desc.lse;
    grad.dout = mlk_slice(desc.q, 3, 0, EXACT_E);
    grad.dv = mlk_f32(dv, 1, EXACT_G, t, EXACT_E);
    grad.scores = desc.scores;
    mlkt_rogue_f32(dv, (size_t)(EXACT_G * t * EXACT_E));
    if (!CHECK_OK(ctx, mlk_attention_grad(ctx, &grad))) return;
    wrong = 0;
    for (j = 0; j < EXACT_G * t; j++)
      for (e = 0; e < EXACT_E; e++) {
        float sum = 0;
        for (h = 0; h < EXACT_H; h++)
          for (i = 0; i < EXACT_S; i++)
            if (h / 2 == j / t && key[h][i] == j % t) sum += q[(h * EXACT_S + i) * EXACT_D + e];
        wrong += !(dv[j * EXACT_E + e] == sum);
      }
    CHECK_MSG(wrong == 0, "%lu elements of dv are not the sum of their rows", (unsigned long)wrong);
  }
}

static void exact(void) {
  static const int64_t keys[] = {24, 25, 100, 511, 512, 513, 600, 1024, 4096, 4097, EXACT_T};
  static const size_t counts[7] = {EXACT_H * EXACT_S * EXACT_D, EXACT_G * EXACT_T * EXACT_D,
                                   EXACT_G * EXACT_T * EXACT_E, EXACT_H * EXACT_S * EXACT_E,
                                   EXACT_H * EXACT_S,           EXACT_H * EXACT_S * EXACT_T,
                                   EXACT_G * 600 * EXACT_E};
  float *data[7];
  uint8_t *mask = (uint8_t *)malloc(EXACT_H * EXACT_S * EXACT_T);
  uint64_t index = 0;
  int i, how;
  for (i = 0; i < 7; i++) data[i] = (float *)malloc(counts[i] * sizeof(float));
  for (i = 0; i < 7; i++)
    if (!data[i] || !mask) exit(2);
  crew_open();
  for (i = 0; i < (int)(sizeof keys / sizeof keys[0]); i++)
    for (how = 0; how < ONE_HOTS && !mlkt_hopeless(); how++, index++) {
      mlkt_rng rng = point_rng(index);
      if (mlkt_opt.quick && i != 1 && keys[i] != 513 && !(keys[i] == 4097 && how == BY_WINDOW)) continue;
      one_hot_call((one_hot)how, keys[i], data, mask, &rng);
    }
  crew_close();
  for (i = 0; i < 7; i++) free(data[i]);
  free(mask);
}

/* ---- finite differences ------------------------------------------------------------------------------------------ */

/* The sum over dout times out, exactly. */
static double loss(problem *p) {
  const operand *out = &p->o[OUT];
  double sum = 0;
  size_t i;
  oracle(p);
  for (i = 0; i < out->count; i++)
    if (out->exact[i] != 0) sum += (double)f32_of(&p->o[DOUT])[i] * out->exact[i];
  return sum;
}

static float *element_of(problem *p, int w, size_t i) { /* in q, k, v, bias, sinks, as the oracle reads them */
  return w == DK ? p->key + i : w == DV ? p->value + i : f32_of(&p->o[w == DQ ? Q : w == DBIAS ? BIAS : SINKS]) + i;
}

/* The oracle's gradients are those of its loss: central differences at two distances, extrapolated. What the library
   computes is judged by the oracle everywhere else. */
static void differences(void) {
  problem p;
  uint64_t index, checked = 0;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 400 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    setup s = combination((int)mlkt_int(&rng, 0, COMBINATIONS - 1), &rng);
    double *gradient;
    size_t count = 0, i, at = 0;
    int w;
    s.b = 1 + (int64_t)(index % 2), s.s = mlkt_int(&rng, 1, 4), s.t = mlkt_int(&rng, 1, 5), s.d = 3, s.e = 2;
    s.dtype = MLK_F32;
    if (s.keys == KEYS_PAGES) s.keys = KEYS_LENGTHS;
    if (!mlkt_keep(index)) continue;
    problem_shape(&p, BACKWARD, &s, &rng);
    problem_fill(&p, SIGNED, &rng);
    if (!forward_first(&p)) break;
    oracle(&p);
    for (w = DQ; w <= DSINKS; w++) count += p.o[w].present ? p.o[w].count : 0;
    gradient = (double *)malloc((count + 1) * sizeof *gradient);
    if (!gradient) exit(2);
    for (w = DQ; w <= DSINKS; w++)
      for (i = 0; p.o[w].present && i < p.o[w].count; i++) gradient[at++] = p.o[w].exact[i];
    note_problem(&p, "differences", MLK_ISA_REFERENCE, 1, "");
    for (w = DQ, at = 0; w <= DSINKS; w++)
      for (i = 0; p.o[w].present && i < p.o[w].count; i++, at++) {
        float *x = element_of(&p, w, i), kept = *x;
        double slope[2];
        int step;
        if (!isfinite(kept)) continue; /* nobody looks at it */
        for (step = 0; step < 2; step++) {
          const float high = kept + (step ? 1.0f / 64 : 1.0f / 32), low = kept - (step ? 1.0f / 64 : 1.0f / 32);
          double up;
          *x = high, up = loss(&p);
          *x = low, slope[step] = (up - loss(&p)) / ((double)high - (double)low);
          *x = kept;
        }
        slope[1] += (slope[1] - slope[0]) / 3;
        CHECK_MSG(fabs(slope[1] - gradient[at]) <= 2e-5 * (1 + fabs(gradient[at])),
                  "%s[%lu]: the gradient is %.9g, the difference %.9g", which_names[w], (unsigned long)i, gradient[at],
                  slope[1]);
        checked++;
      }
    free(gradient);
    problem_layout(&p, FORM_COUNT, &rng);
    oracle(&p);
    every_row(&p, index, "differences", "");
  }
  CHECK(checked > (mlkt_opt.one_in > 1 ? 0 : 5000));
  crew_close();
  problem_free(&p);
}

const mlkt_case mlkt_attention_cases[] = {{"attention/combinations", combinations},
                                          {"attention/combinations_grad", combinations_grad},
                                          {"attention/blocks", blocks},
                                          {"attention/blocks_grad", blocks_grad},
                                          {"attention/far_windows", far_windows},
                                          {"attention/layouts", layouts},
                                          {"attention/repeated_inputs", repeated_inputs},
                                          {"attention/shared_memory", shared_memory},
                                          {"attention/exact", exact},
                                          {"attention/differences", differences},
                                          {NULL, NULL}};
