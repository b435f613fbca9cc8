/* test_attention_bits.c - what must not move a bit of attention: the other rows of a call, where its keys are split,
   pages, threads; the manual's arithmetic spelled out; merging; special values; sequences of 100,000. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "attention_problem.h"

static float *need_f32(size_t count) {
  float *memory = (float *)malloc(count * sizeof *memory + 1);
  if (!memory) exit(2);
  return memory;
}

/* ---- pieces: some queries of some heads of one sequence over some of its keys, as a call of their own ------------ */

typedef struct piece {
  int64_t b, h0, heads, i0, n, first, keys;
  int parts;      /* outputs are parts; 0: folded, with sinks */
  int64_t length; /* memory of k_lengths */
} piece;

static mlk_tensor slice_of(const problem *p, int w, const int64_t first[4], const int64_t count[4]) {
  mlk_tensor t = view_of(p, w);
  const int rank = t.rank;
  int axis;
  for (axis = 0; axis < rank; axis++)
    if (w == Q || w == K || w == V || t.shape[axis] != 1)
      t = mlk_slice(t, axis, first[axis + 4 - rank], count[axis + 4 - rank]);
  return t;
}

static mlk_attention_desc piece_desc(const problem *p, piece *c, float *out, float *lse) {
  const setup *s = &p->s;
  const int64_t group = s->h / s->g, groups = c->heads < group ? 1 : c->heads / group;
  const int64_t position = c->i0 + (p->keys[c->b] - p->queries[c->b]) + s->offset - c->first; /* of the first query */
  const int64_t parts = largest((c->keys + MLK_ATTENTION_SEGMENT - 1) / MLK_ATTENTION_SEGMENT, 1);
  int64_t first[4], count[4];
  mlk_attention_desc desc;
  memset(&desc, 0, sizeof desc);
  first[0] = s->q_ragged ? 0 : c->b, first[1] = c->h0;
  first[2] = s->q_ragged ? p->q_start[c->b] + c->i0 : c->i0, first[3] = 0;
  count[0] = 1, count[1] = c->heads, count[2] = c->n, count[3] = s->d;
  desc.q = slice_of(p, Q, first, count);
  first[0] = s->keys == KEYS_OFFSETS ? 0 : c->b, first[1] = c->h0 / group;
  first[2] = s->keys == KEYS_OFFSETS ? p->k_start[c->b] + c->first : c->first;
  count[1] = groups, count[2] = c->keys;
  if (s->keys == KEYS_PAGES) {
    const int64_t pages = (c->keys + s->page - 1) / s->page;
    first[0] = 0, count[0] = p->o[K].shape[0], first[2] = 0, count[2] = s->page;
    desc.pages = mlk_slice(mlk_slice(view_of(p, PAGES), 0, c->b, 1), 1, c->first / s->page, pages);
    c->length = c->keys;
    desc.scores.k_lengths = mlk_i64(&c->length, 1);
    desc.scores.longest_k = c->keys;
  }
  desc.k = slice_of(p, K, first, count);
  count[3] = s->e;
  desc.v = slice_of(p, V, first, count);
  desc.out = c->parts ? mlk_f32(out, parts, 1, c->heads, c->n, s->e) : mlk_f32(out, 1, c->heads, c->n, s->e);
  desc.lse = c->parts ? mlk_f32(lse, parts, 1, c->heads, c->n) : mlk_f32(lse, 1, c->heads, c->n);
  first[0] = c->b, first[1] = c->h0, first[2] = c->i0, first[3] = c->first;
  count[0] = 1, count[1] = c->heads, count[2] = c->n, count[3] = c->keys;
  desc.scores.scale = s->scale, desc.scores.softcap = s->softcap;
  desc.scores.causal = s->causal, desc.scores.window = s->window;
  desc.scores.offset = position - (c->keys - c->n);
  if (p->o[MASK].present) desc.scores.mask = slice_of(p, MASK, first, count);
  if (p->o[BIAS].present) desc.scores.bias = slice_of(p, BIAS, first, count);
  if (s->alibi) desc.scores.alibi = mlk_slice(view_of(p, ALIBI), 0, c->h0, c->heads);
  if (s->sinks && !c->parts) desc.scores.sinks = mlk_slice(view_of(p, SINKS), 0, c->h0, c->heads);
  return desc;
}

/* Rows of a piece, dense, against those of the whole call. */
static int same_as_whole(const problem *p, const piece *c, const float *out, const float *lse) {
  const int64_t e = p->s.e;
  int64_t h, i;
  for (h = 0; h < c->heads; h++)
    for (i = 0; i < c->n; i++) {
      const int64_t row = q_row(p, c->b, c->h0 + h, c->i0 + i), at = h * c->n + i;
      if (!CHECK_BITS_F32_N(out + at * e, f32_of(&p->o[OUT]) + row * e, e)) return 0;
      if (!CHECK_BITS_F32(lse[at], f32_of(&p->o[LSE])[row])) return 0;
    }
  return 1;
}

/* A random piece over all keys: one row, some of them, a key head's or all heads. */
static piece random_piece(const problem *p, mlkt_rng *rng) {
  const int64_t group = p->s.h / p->s.g;
  piece c;
  memset(&c, 0, sizeof c);
  c.b = mlkt_int(rng, 0, p->s.b - 1);
  c.keys = p->keys[c.b];
  switch (mlkt_u64(rng) % 4) {
  case 0: c.h0 = mlkt_int(rng, 0, p->s.g - 1) * group, c.heads = group; break;
  case 1: c.heads = p->s.h; break;
  default: c.h0 = mlkt_int(rng, 0, p->s.h - 1), c.heads = 1; break;
  }
  if (p->queries[c.b] == 0) return c;
  c.i0 = mlkt_int(rng, 0, p->queries[c.b] - 1);
  c.n = mlkt_u64(rng) % 2 ? 1 : mlkt_int(rng, 1, p->queries[c.b] - c.i0);
  return c;
}

static void pieces_of(problem *p, uint64_t index, mlkt_rng *rng) {
  const size_t rows = (size_t)(p->s.h * largest(p->s.s, 1));
  float *out = need_f32(rows * (size_t)p->s.e), *lse = need_f32(rows);
  int r, i;
  for (r = 0; r < crew.rows; r++)
    for (i = 0; i < 3; i++) {
      const int threads = crew_threads(index + (uint64_t)(r + i));
      mlk_context *ctx = crew_get(crew.isas[r], threads);
      piece c = random_piece(p, rng);
      const mlk_attention_desc desc = piece_desc(p, &c, out, lse);
      if (!ctx) break;
      note_problem(p, "piece", crew.isas[r], threads, "");
      mlkt_rogue_f32(out, rows * (size_t)p->s.e), mlkt_rogue_f32(lse, rows);
      if (CHECK_OK(ctx, mlk_attention(ctx, &desc))) same_as_whole(p, &c, out, lse);
    }
  free(out);
  free(lse);
}

/* Some rows of a call, alone or together, are the rows of the call. */
static void pieces(void) {
  static const int64_t queries[] = {1, 2, 7, 17, 40, 70}, keys[] = {1, 7, 17, 40, 513, 1100, 4100};
  problem p;
  uint64_t index;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 400 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    setup s = any_features(queries[mlkt_u64(&rng) % 6], keys[mlkt_u64(&rng) % (index % 4 ? 5 : 7)], 2e5, &rng);
    s.no_lse = 0;
    if (s.b == 0) s.b = 1;
    if (!mlkt_keep(index) || macs_of(&s) > 1e6) continue;
    problem_shape(&p, FORWARD, &s, &rng);
    problem_fill(&p, index % 4 ? SIGNED : SPECIAL, &rng);
    p.judged = 0;
    problem_layout(&p, FORM_COUNT, &rng);
    note_problem(&p, "whole", MLK_ISA_REFERENCE, 1, "");
    if (crew_get(MLK_ISA_REFERENCE, 1) && run_problem(&p, crew_get(MLK_ISA_REFERENCE, 1))) pieces_of(&p, index, &rng);
  }
  crew_close();
  problem_free(&p);
}

/* ---- split over keys --------------------------------------------------------------------------------------------- */

/* All heads and queries of sequence b in parts made by several calls, cut between segments, then merged. */
static void split_sequence(problem *p, mlk_context *ctx, mlk_context *merger, int64_t b, mlkt_rng *rng) {
  const int64_t keys = p->keys[b], parts = largest((keys + MLK_ATTENTION_SEGMENT - 1) / MLK_ATTENTION_SEGMENT, 1);
  const size_t rows = (size_t)(p->s.h * p->queries[b]), e = (size_t)p->s.e;
  float *out = need_f32((size_t)parts * rows * e), *lse = need_f32((size_t)parts * rows);
  float *merged = need_f32(rows * e), *merged_lse = need_f32(rows);
  mlk_attention_merge_desc merge;
  int64_t done = 0;
  piece c;
  memset(&c, 0, sizeof c);
  memset(&merge, 0, sizeof merge);
  c.b = b, c.heads = p->s.h, c.n = p->queries[b];
  mlkt_rogue_f32(out, (size_t)parts * rows * e), mlkt_rogue_f32(lse, (size_t)parts * rows);
  while (done < parts) {
    const int64_t many = mlkt_int(rng, 1, parts - done);
    mlk_attention_desc desc;
    c.first = done * MLK_ATTENTION_SEGMENT;
    c.keys = keys - c.first < many * MLK_ATTENTION_SEGMENT ? keys - c.first : many * MLK_ATTENTION_SEGMENT;
    c.parts = many > 1 || mlkt_u64(rng) % 2 || p->s.sinks;
    desc = piece_desc(p, &c, out + (size_t)done * rows * e, lse + (size_t)done * rows);
    if (!CHECK_OK(ctx, mlk_attention(ctx, &desc))) break;
    done += many;
  }
  merge.parts = mlk_f32(out, parts, 1, p->s.h, p->queries[b], p->s.e);
  merge.parts_lse = mlk_f32(lse, parts, 1, p->s.h, p->queries[b]);
  merge.sinks = view_of(p, SINKS);
  merge.out = mlk_f32(merged, 1, p->s.h, p->queries[b], p->s.e);
  merge.lse = mlk_f32(merged_lse, 1, p->s.h, p->queries[b]);
  if (CHECK_OK(merger, mlk_attention_merge(merger, &merge))) same_as_whole(p, &c, merged, merged_lse);
  free(out), free(lse), free(merged), free(merged_lse);
}

static void split(void) {
  static const int64_t keys[] = {100, 4095, 4096, 4097, 8192, 9000, 13000}, pages[] = {1, 16, 64, 4096};
  problem p;
  uint64_t index;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 60 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    setup s = any_features(mlkt_int(&rng, 1, 4), keys[index % 7], 2e5, &rng);
    int64_t b;
    int r;
    s.no_lse = 0, s.page = pages[index % 4]; /* pages end where segments do */
    if (s.b == 0) s.b = 1;
    if (!mlkt_keep(index)) continue;
    problem_shape(&p, FORWARD, &s, &rng);
    problem_fill(&p, SIGNED, &rng);
    p.judged = 0;
    problem_layout(&p, FORM_COUNT, &rng);
    note_problem(&p, "whole", MLK_ISA_REFERENCE, 1, "");
    if (!crew_get(MLK_ISA_REFERENCE, 1) || !run_problem(&p, crew_get(MLK_ISA_REFERENCE, 1))) continue;
    for (r = 0; r < crew.rows; r++)
      for (b = 0; b < s.b; b++) {
        const int other = (int)(index % (uint64_t)crew.rows), threads = crew_threads(index + (uint64_t)r);
        mlk_context *ctx = crew_get(crew.isas[r], threads), *merger = crew_get(crew.isas[other], 1);
        note_problem(&p, "split", crew.isas[r], threads, "");
        if (ctx && merger) split_sequence(&p, ctx, merger, b, &rng);
      }
  }
  crew_close();
  problem_free(&p);
}

/* Parts of a batch of several lengths: parts behind a sequence's end are of nothing. */
static void parts_of_a_batch(void) {
  enum { B = 3, H = 2, S = 3, T = 9000, D = 4, E = 3, P = 3, ROWS = B * H * S };
  static const int64_t lengths[B] = {9000, 4097, 0};
  static float q[ROWS * D], k[B * T * D], v[B * T * E], out[ROWS * E], lse[ROWS], parts[P * ROWS * E],
      parts_lse[P * ROWS];
  static float merged[ROWS * E], merged_lse[ROWS];
  mlkt_rng rng = mlkt_rng_case();
  int r, row, part;
  draw(&rng, q, ROWS * D), draw(&rng, k, B * T * D), draw(&rng, v, B * T * E);
  crew_open();
  for (r = -1; r < crew.rows; r++) {
    mlk_context *ctx = crew_get(r < 0 ? MLK_ISA_REFERENCE : crew.isas[r], r < 0 ? 1 : crew_threads((uint64_t)r + 1));
    mlk_attention_desc desc;
    mlk_attention_merge_desc merge;
    if (!ctx) break;
    mlkt_note("isa %s", mlk_isa_name(r < 0 ? MLK_ISA_REFERENCE : crew.isas[r]));
    memset(&desc, 0, sizeof desc), memset(&merge, 0, sizeof merge);
    desc.q = mlk_f32(q, B, H, S, D), desc.k = mlk_f32(k, B, 1, T, D), desc.v = mlk_f32(v, B, 1, T, E);
    desc.scores.k_lengths = mlk_i64(lengths, B), desc.scores.causal = 1;
    desc.out = mlk_f32(out, B, H, S, E), desc.lse = mlk_f32(lse, B, H, S);
    CHECK_OK(ctx, mlk_attention(ctx, &desc));
    desc.out = mlk_swapped(mlk_f32(parts, P, B, S, H, E), 2, 3), desc.lse = mlk_f32(parts_lse, P, B, H, S);
    mlkt_rogue_f32(parts, P * ROWS * E), mlkt_rogue_f32(parts_lse, P * ROWS);
    CHECK_OK(ctx, mlk_attention(ctx, &desc));
    for (part = 0; part < P; part++)
      for (row = 0; row < ROWS; row++) {
        const int b = row / (H * S), i = row % S, none = part * MLK_ATTENTION_SEGMENT >= lengths[b] - (S - 1 - i);
        CHECK_MSG((parts_lse[part * ROWS + row] == -INFINITY) == none, "part %d of row %d: lse %g", part, row,
                  (double)parts_lse[part * ROWS + row]);
        if (none)
          CHECK(parts[(((part * B + b) * S + i) * H + row / S % H) * E] == 0);
        else
          CHECK(isfinite(parts_lse[part * ROWS + row]));
      }
    merge.parts = desc.out, merge.parts_lse = desc.lse;
    merge.out = mlk_f32(merged, B, H, S, E), merge.lse = mlk_f32(merged_lse, B, H, S);
    CHECK_OK(ctx, mlk_attention_merge(ctx, &merge));
    CHECK_BITS_F32_N(merged, out, ROWS * E);
    CHECK_BITS_F32_N(merged_lse, lse, ROWS);
  }
  crew_close();
}

/* ---- pages ------------------------------------------------------------------------------------------------------- */

/* A paged call, and the same keys in one piece. */
static void paged(void) {
  static const int64_t pages[] = {1, 2, 3, 8, 16, 17, 64, 100, 256, 512, 600},
                       keys[] = {1, 16, 50, 130, 520, 1300, 4200};
  problem p;
  uint64_t index;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 120 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    setup s = any_features(mlkt_int(&rng, 1, 9), keys[mlkt_u64(&rng) % 7], 2e5, &rng);
    int64_t b, g, j;
    size_t width, count_k, count_v;
    unsigned char *k, *v;
    int r;
    s.keys = KEYS_PAGES, s.page = pages[index % 11], s.q_ragged = 0, s.no_lse = 0;
    if (!mlkt_keep(index)) continue;
    problem_shape(&p, FORWARD, &s, &rng);
    problem_fill(&p, SIGNED, &rng);
    s = p.s;
    width = dtype_bytes(s.dtype);
    count_k = (size_t)(s.b * s.g * s.t * s.d), count_v = (size_t)(s.b * s.g * s.t * s.e);
    k = (unsigned char *)malloc(count_k * width + 1), v = (unsigned char *)malloc(count_v * width + 1);
    if (!k || !v) exit(2);
    rogue(k, count_k, s.dtype), rogue(v, count_v, s.dtype);
    for (b = 0; b < s.b; b++)
      for (g = 0; g < s.g; g++)
        for (j = 0; j < p.keys[b]; j++) {
          const size_t to = (size_t)((b * s.g + g) * s.t + j), from = (size_t)k_row(&p, b, g, j);
          const size_t d = (size_t)s.d * width, e = (size_t)s.e * width;
          memcpy(k + to * d, p.o[K].dense + from * d, d);
          memcpy(v + to * e, p.o[V].dense + from * e, e);
        }
    p.judged = 0;
    problem_layout(&p, FORM_DENSE, &rng);
    for (r = 0; r < crew.rows; r++) {
      const int threads = crew_threads(index + (uint64_t)r);
      mlk_context *ctx = crew_get(crew.isas[r], threads);
      mlk_attention_desc desc;
      if (!ctx) break;
      note_problem(&p, "paged", crew.isas[r], threads, "");
      run_problem(&p, ctx);
      desc = forward_desc(&p);
      memset(&desc.pages, 0, sizeof desc.pages);
      desc.k = mlk_f32((float *)(void *)k, s.b, s.g, s.t, s.d),
      desc.v = mlk_f32((float *)(void *)v, s.b, s.g, s.t, s.e);
      desc.k.dtype = desc.v.dtype = (int32_t)s.dtype;
      reset_outputs(&p);
      if (CHECK_OK(ctx, mlk_attention(ctx, &desc))) check_output(&p.o[OUT], "out"), check_output(&p.o[LSE], "lse");
    }
    free(k);
    free(v);
  }
  crew_close();
  problem_free(&p);
}

/* ---- threads, hooks ---------------------------------------------------------------------------------------------- */

static void hooks_of(problem *p, mlk_isa isa) {
  static const char *const manners[] = {"threads 1",   "threads 2", "threads 3", "threads 7",
                                        "serial hook", "reversed",  "fresh",     "pool"};
  int i;
  for (i = 0; i < 8; i++) {
    mlk_context_desc desc = mlkt_context_desc(isa, i < 4 ? crew_threads((uint64_t)i) : 5);
    mlk_context *ctx = NULL;
    if (i == 4) desc.parallel = mlkt_parallel_serial(5);
    if (i == 5) desc.parallel = mlkt_parallel_reversed(5);
    if (i == 6) desc.parallel = mlkt_parallel_threads(5);
    if (i == 7) desc.parallel = mlkt_parallel_pool(5);
    if (!CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) return;
    note_problem(p, "threads", isa, desc.threads, manners[i]);
    run_problem(p, ctx);
    run_problem(p, ctx); /* in a used workspace */
    mlk_close(ctx);
  }
}

static void threads(void) {
  problem p;
  uint64_t index = 0;
  int what, which_one, r;
  memset(&p, 0, sizeof p);
  crew_open();
  for (what = FORWARD; what <= BACKWARD; what++)
    for (which_one = 0; which_one < 6; which_one++, index++) {
      mlkt_rng rng = point_rng(index);
      setup s = setup_new(1, 8, 2, 1, 9000, 16, 16); /* one token against a long cache */
      if (which_one == 1) s = setup_new(1, 2, 1, 150, 150, 24, 24), s.causal = 1;
      if (which_one == 2) s = setup_new(9, 3, 3, 11, 40, 16, 8), s.masks = 3;
      if (which_one == 3) s = setup_new(2, 4, 2, 40, 100, 20, 33), s.keys = KEYS_OFFSETS, s.q_ragged = 1, s.sinks = 1;
      if (which_one == 4) s = setup_new(3, 4, 1, 5, 1100, 16, 16), s.keys = KEYS_LENGTHS, s.window = 700;
      if (which_one == 5) s = setup_new(1, 1, 1, 40, 600, 16, 64), s.masks = 2, s.broad = 8, s.softcap = 3;
      if (what == BACKWARD && which_one == 0) s.t = 2000;
      if (mlkt_opt.quick && (mlkt_sampled() ? which_one != 2 : (index + mlkt_opt.seed) % 3 != 0)) continue;
      problem_shape(&p, (op)what, &s, &rng);
      problem_fill(&p, SIGNED, &rng);
      if (!forward_first(&p)) break;
      oracle(&p);
      problem_layout(&p, FORM_COUNT, &rng);
      every_row(&p, index, "threads", "");
      for (r = 0; r < crew.rows; r++)
        if (!mlkt_opt.quick || r == (int)(index % (uint64_t)crew.rows)) hooks_of(&p, crew.isas[r]);
    }
  crew_close();
  problem_free(&p);
}

/* ---- the manual's arithmetic, spelled out ------------------------------------------------------------------------ */

/* y = f(x) as mlk_map computes it: exp, log, tanh of the manual. */
static void map_n(mlk_map_op what, const float *x, float *y, int64_t n) {
  mlk_context *ctx = crew_get(MLK_ISA_REFERENCE, 1);
  mlk_map_desc desc;
  if (!ctx || n == 0) return;
  memset(&desc, 0, sizeof desc);
  desc.op = what, desc.activation = MLK_TANH;
  desc.a = mlk_f32(x, n), desc.out = mlk_f32(y, n);
  CHECK_OK(ctx, mlk_map(ctx, &desc));
}
static float map_1(mlk_map_op what, float x) {
  float y = 0;
  map_n(what, &x, &y, 1);
  return y;
}

static float tree16(float lane[16]) {
  int half, i;
  for (half = 8; half > 0; half /= 2)
    for (i = 0; i < half; i++) lane[i] += lane[i + half];
  return lane[0];
}

/* A sum in segments, each one chain of fused multiply-adds from +0; a sum of -0 is +0. */
static float chains(const float *a, const float *b, int64_t n, int64_t segment) {
  float sum = 0, chain = 0;
  int64_t i;
  for (i = 0; i < n; i++) {
    chain = fmaf(a[i], b[i], chain);
    if ((i + 1) % segment == 0 || i + 1 == n) sum += chain, chain = 0;
  }
  return sum;
}

/* The score of one pair; sees 0: no part. */
static float spelled_score(const problem *p, int64_t b, int64_t h, int64_t i, int64_t j, int *sees) {
  const setup *s = &p->s;
  const float *q = f32_of(&p->o[Q]) + q_row(p, b, h, i) * s->d, *k = p->key + k_row(p, b, h / (s->h / s->g), j) * s->d;
  const float scale = s->scale != 0 ? s->scale : 1.0f / sqrtf((float)s->d);
  float scaled[1024], x;
  int64_t d;
  *sees = pair_left(p, b, h, i, j);
  if (!*sees) return -INFINITY;
  for (d = 0; d < s->d; d++) scaled[d] = scale * q[d];
  x = chains(scaled, k, s->d, MLK_SEGMENT);
  if (s->softcap != 0) x = s->softcap * map_1(MLK_ACT, x / s->softcap);
  if (s->alibi) x = fmaf(-f32_of(&p->o[ALIBI])[h], (float)distance_of(position_of(p, b, i), j), x);
  if (p->o[BIAS].present) x += f32_of(&p->o[BIAS])[spread(&p->o[BIAS], b, h, i, j)];
  *sees = x != -INFINITY;
  return x;
}

typedef struct state {
  float m, l, o[64];
  int any;
} state;

static void fold(state *a, const state *b, int64_t e) {
  float most, left, right;
  int64_t i;
  if (!b->any) return;
  if (!a->any) {
    *a = *b;
    return;
  }
  most = a->m > b->m ? a->m : b->m;
  left = map_1(MLK_EXP, a->m - most), right = map_1(MLK_EXP, b->m - most);
  a->l = fmaf(a->l, left, b->l * right);
  for (i = 0; i < e; i++) a->o[i] = fmaf(a->o[i], left, b->o[i] * right);
  a->m = most;
}

/* (M + log L, 1, O / L) */
static void unfold(state *a, int64_t e) {
  int64_t i;
  if (!a->any) return;
  for (i = 0; i < e; i++) a->o[i] /= a->l;
  a->m += map_1(MLK_LOG, a->l), a->l = 1;
}

static void spelled_row(problem *p, int64_t b, int64_t h, int64_t i) {
  const setup *s = &p->s;
  const int64_t keys = p->keys[b], row = q_row(p, b, h, i);
  float x[MLK_ATTENTION_BLOCK], weight[MLK_ATTENTION_BLOCK];
  int sees[MLK_ATTENTION_BLOCK];
  int64_t part, block, j, e;
  state whole, sink;
  memset(&whole, 0, sizeof whole);
  for (part = 0; part < keys; part += MLK_ATTENTION_SEGMENT) {
    const int64_t end = part + MLK_ATTENTION_SEGMENT < keys ? part + MLK_ATTENTION_SEGMENT : keys;
    state sums;
    memset(&sums, 0, sizeof sums);
    for (block = part; block < end; block += MLK_ATTENTION_BLOCK) {
      const int64_t n = block + MLK_ATTENTION_BLOCK < end ? MLK_ATTENTION_BLOCK : end - block;
      float lane[16] = {0};
      state one;
      memset(&one, 0, sizeof one);
      one.m = -INFINITY;
      for (j = 0; j < n; j++) {
        x[j] = spelled_score(p, b, h, i, block + j, &sees[j]);
        if (sees[j] && x[j] > one.m) one.m = x[j];
        one.any |= sees[j];
      }
      for (j = 0; j < n; j++) x[j] = sees[j] ? x[j] - one.m : -1;
      map_n(MLK_EXP, x, weight, n);
      for (j = 0; j < n; j++) {
        if (!sees[j]) continue;
        lane[j % 16] += weight[j];
        for (e = 0; e < s->e; e++)
          one.o[e] = fmaf(weight[j], p->value[k_row(p, b, h / (s->h / s->g), block + j) * s->e + e], one.o[e]);
      }
      one.l = tree16(lane);
      fold(&sums, &one, s->e);
    }
    unfold(&sums, s->e);
    fold(&whole, &sums, s->e);
  }
  if (s->sinks) {
    memset(&sink, 0, sizeof sink);
    sink.m = f32_of(&p->o[SINKS])[h], sink.l = 1, sink.any = 1;
    fold(&whole, &sink, s->e);
  }
  unfold(&whole, s->e);
  for (e = 0; e < s->e; e++) f32_of(&p->o[OUT])[row * s->e + e] = whole.any ? whole.o[e] : 0;
  f32_of(&p->o[LSE])[row] = whole.any ? whole.m : -INFINITY;
}

/* The gradients without a cap; out and lse are there. */
static void spelled_gradient(problem *p) {
  const setup *s = &p->s;
  const int64_t group = s->h / s->g;
  const float scale = s->scale != 0 ? s->scale : 1.0f / sqrtf((float)s->d);
  int64_t b, g, i, hg, j, d, n, w;
  for (w = DQ; w <= DSINKS; w++)
    for (i = 0; p->o[w].present && i < (int64_t)p->o[w].count; i++) f32_of(&p->o[w])[i] = 0;
  for (b = 0; b < s->b; b++)
    for (g = 0; g < s->g; g++) {
      const int64_t rows = p->queries[b] * group, keys = p->keys[b], most = largest(rows, keys) + 1;
      float *weight = need_f32((size_t)(rows * keys)), *slope = need_f32((size_t)(rows * keys));
      float *one = need_f32((size_t)most), *two = need_f32((size_t)most);
      for (i = 0; i < rows; i++) { /* row i: query i / group of head g group + i % group */
        const int64_t h = g * group + i % group, row = q_row(p, b, h, i / group);
        const float *dout = f32_of(&p->o[DOUT]) + row * s->e, *out = f32_of(&p->o[OUT]) + row * s->e;
        float lane[16] = {0}, delta;
        for (d = 0; d < s->e; d++) lane[d % 16] = fmaf(dout[d], out[d], lane[d % 16]);
        delta = tree16(lane);
        for (j = 0; j < keys; j++) {
          int sees;
          const float x = spelled_score(p, b, h, i / group, j, &sees);
          float *pair = weight + i * keys + j;
          *pair = slope[i * keys + j] = NAN;
          if (!sees) continue;
          *pair = map_1(MLK_EXP, x - f32_of(&p->o[LSE])[row]);
          slope[i * keys + j] = *pair * (chains(dout, p->value + k_row(p, b, g, j) * s->e, s->e, MLK_SEGMENT) - delta);
        }
        for (d = 0; d < s->d; d++) {
          for (j = 0; j < keys; j++) {
            const int none = weight[i * keys + j] != weight[i * keys + j];
            one[j] = none ? 0 : slope[i * keys + j], two[j] = none ? 0 : p->key[k_row(p, b, g, j) * s->d + d];
          }
          f32_of(&p->o[DQ])[row * s->d + d] = scale * chains(one, two, keys, MLK_ATTENTION_BLOCK);
        }
      }
      for (n = 0; n < keys && p->o[DBIAS].present; n += MLK_ATTENTION_BLOCK)
        for (i = 0; i < rows; i++)
          for (j = n; j < keys && j < n + MLK_ATTENTION_BLOCK; j++)
            if (weight[i * keys + j] == weight[i * keys + j])
              f32_of(&p->o[DBIAS])[spread(&p->o[DBIAS], b, g * group + i % group, i / group, j)] += slope[i * keys + j];
      for (j = 0; j < keys; j++)
        for (d = 0; d < s->d + s->e; d++) {
          const int64_t e = d - s->d, key = k_row(p, b, g, j);
          for (i = 0; i < rows; i++) {
            const int64_t row = q_row(p, b, g * group + i % group, i / group);
            const int none = weight[i * keys + j] != weight[i * keys + j];
            one[i] = none ? 0 : e < 0 ? slope[i * keys + j] : weight[i * keys + j];
            two[i] = none ? 0 : e < 0 ? scale * f32_of(&p->o[Q])[row * s->d + d] : f32_of(&p->o[DOUT])[row * s->e + e];
          }
          if (e < 0)
            f32_of(&p->o[DK])[key * s->d + d] = chains(one, two, rows, MLK_SEGMENT);
          else
            f32_of(&p->o[DV])[key * s->e + e] = chains(one, two, rows, MLK_SEGMENT);
        }
      free(weight), free(slope), free(one), free(two);
    }
  for (hg = 0; p->o[DSINKS].present && hg < s->h; hg++) {
    double sum = 0;
    for (b = 0; b < s->b; b++)
      for (i = 0; i < p->queries[b]; i++) {
        const int64_t row = q_row(p, b, hg, i);
        float lane[16] = {0};
        for (d = 0; d < s->e; d++)
          lane[d % 16] = fmaf(f32_of(&p->o[DOUT])[row * s->e + d], f32_of(&p->o[OUT])[row * s->e + d], lane[d % 16]);
        sum -= (double)map_1(MLK_EXP, f32_of(&p->o[SINKS])[hg] - f32_of(&p->o[LSE])[row]) * (double)tree16(lane);
      }
    f32_of(&p->o[DSINKS])[hg] = (float)sum;
  }
}

/* Blocks, parts, lanes and chains as mlk_attention_desc and mlk_attention_grad_desc tell them, bit for bit. */
static void arithmetic(void) {
  static const int64_t keys[] = {1, 15, 33, 100, 512, 513, 1100, 4100, 8300};
  problem p;
  uint64_t index;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 54 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const op what = index % 3 == 2 ? BACKWARD : FORWARD;
    setup s = any_features(mlkt_int(&rng, 1, 6), keys[index / 3 % (what == BACKWARD ? 6 : 9)], 1e5, &rng);
    int64_t b, h, i;
    s.no_lse = 0;
    if (index % 9 == 0) s.d = 600, s.e = 3, s.t = 20;
    if (index % 9 == 5) s = setup_new(1, 8, 1, 70, 9, 5, 3), s.causal = 1, s.offset = 2; /* 560 rows of one key head */
    if (what == BACKWARD) s.softcap = 0, s.dtype = MLK_F32, s.keys = s.keys == KEYS_PAGES ? KEYS_DENSE : s.keys;
    if (s.e > 64) s.e = 64;
    if (!mlkt_keep(index)) continue;
    problem_shape(&p, what, &s, &rng);
    problem_fill(&p, SIGNED, &rng);
    p.judged = 0;
    for (b = 0; b < s.b; b++)
      for (h = 0; h < s.h; h++)
        for (i = 0; i < p.queries[b]; i++) spelled_row(&p, b, h, i);
    if (what == BACKWARD) spelled_gradient(&p);
    problem_layout(&p, FORM_COUNT, &rng);
    p.want_known = 1;
    every_row(&p, index, "arithmetic", "");
  }
  crew_close();
  problem_free(&p);
}

/* ---- merging ----------------------------------------------------------------------------------------------------- */

/* A row of the merge in double. Gives 0 where the result is NaN. What is alone stays as it is. */
static int merged_exactly(const float *parts, const float *lse, int64_t count, int64_t step, int64_t e,
                          const float *sink, double *out, double *out_lse) {
  double most = sink ? (double)*sink : -INFINITY, sum = 0;
  int64_t i, j, some = sink != NULL, alone = -1, bad = most != most;
  for (j = 0; j < e; j++) out[j] = 0;
  for (i = 0; i < count; i++) {
    const double x = (double)lse[i * step];
    if (x == -INFINITY) continue;
    some++, alone = i, bad |= x != x;
    if (x > most) most = x;
  }
  *out_lse = some == 1 && alone >= 0 ? (double)lse[alone * step] : most;
  for (j = 0; j < e && some == 1 && alone >= 0; j++) out[j] = (double)parts[alone * step * e + j];
  if (some <= 1) return 1;
  if (bad || most == -INFINITY) return !bad;
  for (i = 0; i < count; i++) {
    const double weight = exp((double)lse[i * step] - most);
    sum += weight;
    for (j = 0; j < e && lse[i * step] != -INFINITY; j++) out[j] += weight * (double)parts[i * step * e + j];
  }
  if (sink) sum += exp((double)*sink - most);
  for (j = 0; j < e; j++) out[j] /= sum;
  *out_lse = most + log(sum);
  return 1;
}

enum { MERGE_P = 9, MERGE_ROWS = 3 * 4 * 7, MERGE_E = 21 };
static float merge_parts[MERGE_P * MERGE_ROWS * MERGE_E], merge_lse[MERGE_P * MERGE_ROWS], merge_sinks[4],
    merge_laid[MERGE_P * MERGE_ROWS * (MERGE_E + 2)], merge_out[MERGE_ROWS * MERGE_E], merge_out_lse[MERGE_ROWS],
    merge_want[MERGE_ROWS * MERGE_E], merge_want_lse[MERGE_ROWS];

static void merge_values(int64_t count, int64_t rows, int64_t e, int special, mlkt_rng *rng) {
  int64_t i, j;
  draw(rng, merge_sinks, 4);
  if (special && mlkt_u64(rng) % 2) merge_sinks[0] = -INFINITY;
  if (special && mlkt_u64(rng) % 2) merge_sinks[1] = NAN;
  for (i = 0; i < count * rows; i++) {
    const uint64_t dice = mlkt_u64(rng) % 64;
    merge_lse[i] = 5 * mlkt_signed(rng);
    if (dice < 12) merge_lse[i] = -INFINITY;
    if (dice == 12) merge_lse[i] = 90;
    if (special && dice == 13) merge_lse[i] = 3e38f;
    if (special && dice == 14) merge_lse[i] = NAN;
    for (j = 0; j < e; j++) merge_parts[i * e + j] = merge_lse[i] == -INFINITY ? NAN : mlkt_signed(rng);
  }
}

/* The parts in memory of another order, as a view. */
static mlk_tensor merge_layout(const mlk_tensor *t, int form_of) { /* [P, B, H, S, E] */
  const int64_t *n = t->shape;
  mlk_tensor view = *t;
  int64_t at[5];
  if (form_of == 0) return view;
  view.data = merge_laid;
  view.stride[4] = form_of == 2 ? n[0] * n[1] * n[2] * n[3] : 1;
  view.stride[2] = form_of == 2 ? 1 : n[4] + 2; /* heads beside each other */
  view.stride[3] = view.stride[2] * n[2];
  view.stride[0] = view.stride[3] * n[3], view.stride[1] = view.stride[0] * n[0];
  for (at[0] = 0; at[0] < n[0]; at[0]++)
    for (at[1] = 0; at[1] < n[1]; at[1]++)
      for (at[2] = 0; at[2] < n[2]; at[2]++)
        for (at[3] = 0; at[3] < n[3]; at[3]++)
          for (at[4] = 0; at[4] < n[4]; at[4]++) {
            int64_t to = 0, from = 0;
            int i;
            for (i = 0; i < 5; i++) to += at[i] * view.stride[i], from = from * n[i] + at[i];
            merge_laid[to] = merge_parts[from];
          }
  return view;
}

static void merging(void) {
  static const int64_t es[] = {0, 1, 3, 8, 16, 21}, counts[] = {0, 1, 2, 3, 9};
  uint64_t index;
  crew_open();
  for (index = 0; index < 400 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const int64_t b = mlkt_int(&rng, 0, 3), h = mlkt_int(&rng, 1, 4), s = mlkt_int(&rng, 0, 7), rows = b * h * s;
    const int64_t count = counts[mlkt_u64(&rng) % 5], e = es[mlkt_u64(&rng) % 6];
    const int form_of = (int)(index % 3), sinks = index / 3 % 2 != 0;
    mlk_attention_merge_desc desc;
    mlk_plan plan;
    int64_t row, j;
    int r;
    if (!mlkt_keep(index)) continue;
    merge_values(count, rows, e, index % 5 == 0, &rng);
    memset(&desc, 0, sizeof desc);
    desc.parts = mlk_f32(merge_parts, count, b, h, s, e);
    desc.parts = merge_layout(&desc.parts, form_of);
    desc.parts_lse = mlk_f32(merge_lse, count, b, h, s);
    if (sinks) desc.sinks = mlk_f32(merge_sinks, h);
    desc.out = mlk_f32(merge_out, b, h, s, e);
    if (index % 4) desc.lse = mlk_f32(merge_out_lse, b, h, s);
    for (r = -1; r < crew.rows; r++) {
      const mlk_isa isa = r < 0 ? MLK_ISA_REFERENCE : crew.isas[r];
      const int threads_ = r < 0 ? 1 : crew_threads(index + (uint64_t)r);
      mlk_context *ctx = crew_get(isa, threads_);
      if (!ctx) break;
      mlkt_note("P %d, B %d, H %d, S %d, E %d, form %d, sinks %d, isa %s, threads %d", (int)count, (int)b, (int)h,
                (int)s, (int)e, form_of, sinks, mlk_isa_name(isa), threads_);
      mlkt_rogue_f32(merge_out, MERGE_ROWS * MERGE_E), mlkt_rogue_f32(merge_out_lse, MERGE_ROWS);
      memset(&plan, 0xFE, sizeof plan);
      CHECK_OK(ctx, mlk_attention_merge_plan(ctx, &desc, &plan));
      CHECK_EQ_I64(plan.bytes, 4 * (count * rows * (e + 1) + rows * e + (desc.lse.data ? rows : 0) + (sinks ? h : 0)));
      if (!CHECK_OK(ctx, mlk_attention_merge(ctx, &desc))) break;
      CHECK(mlkt_is_rogue_f32(merge_out + rows * e, (size_t)(MERGE_ROWS * MERGE_E - rows * e)));
      if (r < 0) {
        memcpy(merge_want, merge_out, sizeof merge_out), memcpy(merge_want_lse, merge_out_lse, sizeof merge_out_lse);
      } else {
        CHECK_BITS_F32_N(merge_out, merge_want, rows * e);
        CHECK_BITS_F32_N(merge_out_lse, merge_want_lse, rows);
        continue;
      }
      for (row = 0; row < rows; row++) {
        double out[MERGE_E], lse;
        const int whole = merged_exactly(merge_parts + row * e, merge_lse + row, count, rows, e,
                                         sinks ? &merge_sinks[row / s % h] : NULL, out, &lse);
        for (j = 0; j < e; j++)
          CHECK_MSG(whole ? fabs((double)merge_out[row * e + j] - out[j]) <= 3e-6 : isnan(merge_out[row * e + j]) != 0,
                    "row %d: %.9g, expected %.9g", (int)row, (double)merge_out[row * e + j], whole ? out[j] : NAN);
        if (desc.lse.data)
          CHECK_MSG(whole && lse == lse
                        ? (lse == -INFINITY ? (double)merge_out_lse[row] == lse
                                            : fabs((double)merge_out_lse[row] - lse) <= 3e-6 * (1 + fabs(lse)))
                        : isnan(merge_out_lse[row]) != 0,
                    "row %d: lse %.9g, expected %.9g", (int)row, (double)merge_out_lse[row], whole ? lse : NAN);
      }
    }
  }
  crew_close();
}

/* ---- special values ---------------------------------------------------------------------------------------------- */

/* One query over t keys whose scores are those of k: q is one, D 1, scale 1. */
static void special_setup(problem *p, int64_t t, int features, mlkt_rng *rng) {
  setup s = setup_new(1, 1, 1, 1, t, 1, 3);
  int64_t j, e;
  s.scale = 1;
  s.masks = features & 1 ? MASK_BOOL : features & 2 ? MASK_BIAS : 0;
  s.sinks = features >> 2 & 1;
  s.softcap = features & 8 ? 2.0f : 0;
  problem_shape(p, FORWARD, &s, rng);
  f32_of(&p->o[Q])[0] = 1;
  for (j = 0; j < t; j++) {
    set_key_value(&p->o[K], p->key, (size_t)j, mlkt_signed(rng));
    for (e = 0; e < 3; e++) set_key_value(&p->o[V], p->value, (size_t)(j * 3 + e), mlkt_signed(rng));
    if (s.masks == MASK_BOOL) p->o[MASK].dense[j] = 1;
    if (s.masks == MASK_BIAS) f32_of(&p->o[BIAS])[j] = 0;
  }
  if (s.sinks) f32_of(&p->o[SINKS])[0] = 0.5f;
  p->judged = 1;
}

static void set_score(problem *p, int64_t j, float x) { set_key_value(&p->o[K], p->key, (size_t)j, x); }
static void set_value(problem *p, int64_t j, float x) { set_key_value(&p->o[V], p->value, (size_t)(3 * j + 1), x); }

typedef enum outcome { ROW_NAN, ROW_ZERO, ROW_FINITE, ROW_OF_J, ROW_AS_WITHOUT_J } outcome;

/* Runs what has been set up; out must come to what is said of it, first by the oracle, then by every row. */
static void special_run(problem *p, outcome want, int64_t j, uint64_t index, const char *what) {
  const operand *out = &p->o[OUT];
  int e;
  oracle(p);
  mlkt_note("%s, T %d, key %d", what, (int)p->s.t, (int)j);
  for (e = 0; e < 3; e++) {
    const double x = out->exact[e];
    CHECK_MSG(want == ROW_NAN    ? x != x
              : want == ROW_ZERO ? x == 0
              : want == ROW_OF_J ? fabs(x - (double)p->value[3 * j + e]) <= 1e-12
                                 : fabs(x) < INFINITY,
              "the oracle says %g", x);
  }
  p->want_known = 0;
  {
    mlkt_rng rng = point_rng(index);
    problem_layout(p, (form)(index % FORM_COUNT), &rng);
  }
  every_row(p, index, what, "");
  if (want == ROW_NAN) CHECK(isnan(f32_of(&p->o[LSE])[0]));
  if (want == ROW_OF_J) CHECK_BITS_F32_N(f32_of(out), p->value + 3 * j, 3);
}

static void special_scores(problem *p, int64_t t, int64_t j, uint64_t index, mlkt_rng *rng) {
  const int64_t other = (j + 1) % t;
  static const float huge[] = {3e38f, 1e30f, 1e5f, 200.0f};
  int64_t i;
  size_t n;
  special_setup(p, t, 0, rng), set_score(p, j, NAN), special_run(p, ROW_NAN, j, index, "a NaN score");
  special_setup(p, t, 0, rng), set_score(p, j, INFINITY), special_run(p, ROW_NAN, j, index, "an infinite score");
  special_setup(p, t, 0, rng), set_score(p, j, INFINITY), set_score(p, other, INFINITY);
  special_run(p, ROW_NAN, j, index, "two infinite scores");
  special_setup(p, t, 0, rng), set_score(p, j, -INFINITY), set_value(p, j, NAN);
  special_run(p, t == 1 ? ROW_ZERO : ROW_FINITE, j, index, "a score of -infinity, its value NaN");
  special_setup(p, t, 0, rng), set_value(p, j, NAN), special_run(p, ROW_NAN, j, index, "a NaN value");
  special_setup(p, t, 0, rng), set_value(p, j, -INFINITY), special_run(p, ROW_NAN, j, index, "an infinite value");
  for (n = 0; n < sizeof huge / sizeof huge[0]; n++) {
    special_setup(p, t, 0, rng), set_score(p, j, huge[n]);
    special_run(p, ROW_OF_J, j, index, "a score far above all others");
    special_setup(p, t, 0, rng);
    for (i = 0; i < t; i++)
      if (i != j) set_score(p, i, -huge[n]);
    special_run(p, ROW_OF_J, j, index, "scores far below one");
    special_setup(p, t, 0, rng);
    for (i = 0; i < t; i++) set_score(p, i, -huge[n]);
    special_run(p, ROW_FINITE, j, index, "all scores far below zero");
    if (t > 1) {
      special_setup(p, t, 0, rng), set_score(p, other, huge[n]), set_value(p, j, NAN);
      special_run(p, ROW_NAN, j, index, "a NaN value of weight zero");
      special_setup(p, t, 0, rng), set_score(p, other, huge[n]), set_value(p, j, INFINITY);
      special_run(p, ROW_NAN, j, index, "an infinite value of weight zero");
    }
  }
  special_setup(p, t, 8, rng), set_score(p, j, INFINITY),
      special_run(p, ROW_FINITE, j, index, "an infinite score, capped");
  special_setup(p, t, 8, rng), set_score(p, j, -INFINITY), special_run(p, ROW_FINITE, j, index, "-infinity, capped");
  special_setup(p, t, 8, rng), set_score(p, j, NAN), special_run(p, ROW_NAN, j, index, "NaN, capped");
}

static void special_masks(problem *p, int64_t t, int64_t j, uint64_t index, mlkt_rng *rng) {
  const outcome others = t == 1 ? ROW_ZERO : ROW_FINITE;
  int64_t i;
  special_setup(p, t, 1, rng), set_score(p, j, NAN), set_value(p, j, INFINITY), p->o[MASK].dense[j] = 0;
  special_run(p, others, j, index, "a NaN key, masked");
  special_setup(p, t, 1, rng), memset(p->o[MASK].dense, 0, (size_t)t), special_run(p, ROW_ZERO, j, index, "all masked");
  CHECK_BITS_F32(f32_of(&p->o[LSE])[0], -INFINITY);
  special_setup(p, t, 1, rng), memset(p->o[MASK].dense, 0, (size_t)t), p->o[MASK].dense[j] = 255;
  special_run(p, ROW_OF_J, j, index, "all masked but one");
  special_setup(p, t, 2, rng), f32_of(&p->o[BIAS])[j] = -INFINITY, set_value(p, j, NAN);
  special_run(p, others, j, index, "a bias of -infinity");
  special_setup(p, t, 2, rng), f32_of(&p->o[BIAS])[j] = -INFINITY, set_score(p, j, NAN);
  special_run(p, ROW_NAN, j, index, "a bias of -infinity on NaN");
  special_setup(p, t, 2, rng), f32_of(&p->o[BIAS])[j] = -INFINITY, set_score(p, j, INFINITY);
  special_run(p, ROW_NAN, j, index, "a bias of -infinity on infinity");
  special_setup(p, t, 2, rng), f32_of(&p->o[BIAS])[j] = INFINITY;
  special_run(p, ROW_NAN, j, index, "a bias of infinity");
  special_setup(p, t, 2, rng), f32_of(&p->o[BIAS])[j] = NAN, special_run(p, ROW_NAN, j, index, "a NaN bias");
  special_setup(p, t, 2, rng), f32_of(&p->o[BIAS])[j] = 3e38f, special_run(p, ROW_OF_J, j, index, "a huge bias");
  special_setup(p, t, 2, rng);
  for (i = 0; i < t; i++) f32_of(&p->o[BIAS])[i] = -INFINITY;
  special_run(p, ROW_ZERO, j, index, "all biases -infinity");
  CHECK_BITS_F32(f32_of(&p->o[LSE])[0], -INFINITY);
}

static void special_sinks(problem *p, int64_t t, int64_t j, uint64_t index, mlkt_rng *rng) {
  static const float sinks[] = {-INFINITY, -3e38f, 3e38f};
  size_t n;
  special_setup(p, t, 5, rng), memset(p->o[MASK].dense, 0, (size_t)t);
  special_run(p, ROW_ZERO, j, index, "a sink and no key");
  CHECK_BITS_F32(f32_of(&p->o[LSE])[0], 0.5f);
  for (n = 0; n < 3; n++) {
    special_setup(p, t, 4, rng), f32_of(&p->o[SINKS])[0] = sinks[n];
    special_run(p, n == 2 ? ROW_ZERO : ROW_FINITE, j, index, "a sink of -infinity, far below, far above");
    if (n == 2) CHECK_BITS_F32(f32_of(&p->o[LSE])[0], 3e38f);
    special_setup(p, t, 5, rng), f32_of(&p->o[SINKS])[0] = sinks[n], memset(p->o[MASK].dense, 0, (size_t)t);
    special_run(p, ROW_ZERO, j, index, "such a sink and no key");
    CHECK_BITS_F32(f32_of(&p->o[LSE])[0], sinks[n]);
  }
  special_setup(p, t, 4, rng), set_value(p, j, NAN), special_run(p, ROW_NAN, j, index, "a NaN value and a sink");
}

static void special_values(void) {
  static const int64_t keys[] = {1, 2, 5, 16, 17, 40, 513, 600, 1100, 4100};
  problem p;
  uint64_t index = 0;
  size_t n;
  memset(&p, 0, sizeof p);
  crew_open();
  for (n = 0; n < sizeof keys / sizeof keys[0]; n++) {
    const int64_t t = keys[n], step = t <= 17 ? 1 : t / 5;
    int64_t j;
    for (j = 0; j < t && !mlkt_hopeless(); j += step, index++) {
      mlkt_rng rng = point_rng(index);
      if (mlkt_opt.one_in > 1 && (index + mlkt_opt.seed) % 8) continue;
      special_scores(&p, t, j, index, &rng);
      special_masks(&p, t, j, index, &rng);
      special_sinks(&p, t, j, index, &rng);
    }
  }
  crew_close();
  problem_free(&p);
}

/* NaN in one query or one row of dout: the others do not see it. */
static void contagion(void) {
  enum { S = 40, T = 70, D = 20 };
  problem p;
  uint64_t index;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 60 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    setup s = setup_new(1, 2, 1, S, T, D, D);
    const int64_t bad = mlkt_int(&rng, 0, S - 1);
    const float x = index % 3 == 0 ? NAN : index % 3 == 1 ? INFINITY : -INFINITY;
    const int what = (int)(index % 2);
    int64_t i, j, d;
    if (!mlkt_keep(index)) continue;
    s.causal = 1;
    problem_shape(&p, what ? BACKWARD : FORWARD, &s, &rng);
    problem_fill(&p, SIGNED, &rng);
    if (!forward_first(&p)) break;
    p.judged = 0;
    f32_of(&p.o[what ? DOUT : Q])[bad * D + mlkt_int(&rng, 0, D - 1)] = x;
    problem_layout(&p, FORM_COUNT, &rng);
    every_row(&p, index, "contagion", "");
    for (i = 0; i < S && what == 0; i++) {
      int nans = 0;
      for (d = 0; d < D; d++) nans += isnan(f32_of(&p.o[OUT])[i * D + d]) != 0;
      if (x == x && i == bad) continue; /* infinity times keys of both signs: -infinity as well */
      CHECK_MSG(nans == (i == bad ? D : 0), "row %d: %d NaNs, the bad row is %d", (int)i, nans, (int)bad);
    }
    if (!what) continue;
    for (j = 0; j < T; j++) { /* queries at or behind key j see it */
      int nans = 0;
      for (d = 0; d < D; d++)
        nans += (isnan(f32_of(&p.o[DK])[j * D + d]) != 0) + (isnan(f32_of(&p.o[DV])[j * D + d]) != 0);
      CHECK_MSG(nans == (j <= bad + T - S ? 2 * D : 0), "key %d: %d NaNs, the bad row is %d", (int)j, nans, (int)bad);
    }
  }
  crew_close();
  problem_free(&p);
}

/* ---- nothing of something ---------------------------------------------------------------------------------------- */

static void empty(void) {
  static const int64_t sizes[][7] = {/* B H G S T D E */
                                     {0, 2, 1, 3, 4, 5, 6}, {2, 0, 0, 3, 4, 5, 6}, {2, 0, 1, 3, 4, 5, 6},
                                     {2, 2, 1, 0, 4, 5, 6}, {2, 2, 1, 3, 0, 5, 6}, {2, 2, 1, 3, 4, 5, 0},
                                     {0, 0, 0, 0, 0, 1, 0}, {2, 4, 2, 3, 0, 1, 0}};
  static float x[2048], out[2048], lse[256], grads[3][2048];
  mlkt_rng rng = mlkt_rng_case();
  size_t n;
  int r, i;
  draw(&rng, x, 2048);
  crew_open();
  for (n = 0; n < sizeof sizes / sizeof sizes[0]; n++)
    for (r = -1; r < crew.rows; r++) {
      const int64_t *z = sizes[n];
      mlk_context *ctx = crew_get(r < 0 ? MLK_ISA_REFERENCE : crew.isas[r], r < 0 ? 1 : crew_threads((uint64_t)r + 1));
      mlk_attention_desc desc;
      mlk_attention_grad_desc grad;
      mlk_plan plan;
      const int64_t rows = z[0] * z[1] * z[3];
      if (!ctx) break;
      mlkt_note("B %d, H %d, G %d, S %d, T %d, D %d, E %d", (int)z[0], (int)z[1], (int)z[2], (int)z[3], (int)z[4],
                (int)z[5], (int)z[6]);
      memset(&desc, 0, sizeof desc), memset(&grad, 0, sizeof grad);
      desc.q = mlk_f32(x, z[0], z[1], z[3], z[5]);
      desc.k = mlk_f32(x, z[0], z[2], z[4], z[5]), desc.v = mlk_f32(x, z[0], z[2], z[4], z[6]);
      desc.out = mlk_f32(out, z[0], z[1], z[3], z[6]), desc.lse = mlk_f32(lse, z[0], z[1], z[3]);
      mlkt_rogue_f32(out, 2048), mlkt_rogue_f32(lse, 256);
      CHECK_OK(ctx, mlk_attention_plan(ctx, &desc, &plan));
      CHECK_EQ_I64(plan.flops, 2 * (z[5] + z[6]) * rows * z[4]);
      CHECK_OK(ctx, mlk_attention(ctx, &desc));
      for (i = 0; i < rows * z[6] && z[4] == 0; i++) CHECK_BITS_F32(out[i], 0.0f);
      for (i = 0; i < rows && z[4] == 0; i++) CHECK_BITS_F32(lse[i], -INFINITY);
      CHECK(mlkt_is_rogue_f32(out + rows * z[6], (size_t)(2048 - rows * z[6])));
      grad.q = desc.q, grad.k = desc.k, grad.v = desc.v, grad.out = desc.out, grad.lse = desc.lse, grad.dout = desc.out;
      grad.dq = desc.q, grad.dk = desc.k, grad.dv = desc.v;
      grad.dq.data = grads[0], grad.dk.data = grads[1], grad.dv.data = grads[2];
      for (i = 0; i < 3; i++) mlkt_rogue_f32(grads[i], 2048);
      CHECK_OK(ctx, mlk_attention_grad(ctx, &grad));
      for (i = 0; i < rows * z[5] && (z[4] == 0 || z[6] == 0); i++) CHECK_BITS_F32(grads[0][i], 0.0f);
      for (i = 0; i < z[0] * z[2] * z[4] * z[5] && (rows == 0 || z[6] == 0); i++) CHECK(grads[1][i] == 0);
      for (i = 0; i < z[0] * z[2] * z[4] * z[6] && rows == 0; i++) CHECK_BITS_F32(grads[2][i], 0.0f);
    }
  crew_close();
}

/* ---- 100,000 keys ------------------------------------------------------------------------------------------------ */

enum { LONG_D = 16, LONG_H = 4, LONG_G = 2 };

/* s queries over t keys, made from the seed, into memory of the caller's: q, k, v, out, lse. Gives the descriptor. */
static mlk_attention_desc long_call(int64_t s, int64_t t, float *const data[5], mlkt_rng *rng) {
  mlk_attention_desc desc;
  memset(&desc, 0, sizeof desc);
  draw(rng, data[0], (size_t)(LONG_H * s * LONG_D));
  draw(rng, data[1], (size_t)(LONG_G * t * LONG_D));
  draw(rng, data[2], (size_t)(LONG_G * t * LONG_D));
  desc.q = mlk_f32(data[0], 1, LONG_H, s, LONG_D);
  desc.k = mlk_f32(data[1], 1, LONG_G, t, LONG_D), desc.v = mlk_f32(data[2], 1, LONG_G, t, LONG_D);
  desc.out = mlk_f32(data[3], 1, LONG_H, s, LONG_D), desc.lse = mlk_f32(data[4], 1, LONG_H, s);
  desc.scores.causal = 1, desc.scores.scale = 1;
  return desc;
}

/* Scores, their largest and log-sum-exp of query i of head h in double. */
static double long_row(int64_t s, int64_t t, float *const data[5], int64_t h, int64_t i, double *x) {
  const float *q = data[0] + (h * s + i) * LONG_D;
  double most = -INFINITY, sum = 0;
  int64_t j, d;
  for (j = 0; j <= i + t - s; j++) {
    const float *k = data[1] + (h / (LONG_H / LONG_G) * t + j) * LONG_D;
    for (x[j] = 0, d = 0; d < LONG_D; d++) x[j] += (double)q[d] * (double)k[d];
    most = x[j] > most ? x[j] : most;
  }
  for (j = 0; j <= i + t - s; j++) sum += exp(x[j] - most);
  return most + log(sum);
}

static void long_judge(int64_t s, int64_t t, float *const data[5], int64_t h, int64_t i, double *x) {
  const double lse = long_row(s, t, data, h, i, x);
  double out[LONG_D] = {0}, gauge[LONG_D] = {0};
  int64_t j, d;
  for (j = 0; j <= i + t - s; j++)
    for (d = 0; d < LONG_D; d++) {
      const double term = exp(x[j] - lse) * (double)data[2][(h / (LONG_H / LONG_G) * t + j) * LONG_D + d];
      out[d] += term, gauge[d] += fabs(term);
    }
  CHECK_MSG(fabs((double)data[4][h * s + i] - lse) <= 4e-6 * (1 + fabs(lse)),
            "lse of query %d of head %d: %.9g, exactly %.9g", (int)i, (int)h, (double)data[4][h * s + i], lse);
  for (d = 0; d < LONG_D; d++) /* the manual's (BLOCK + 3 T / BLOCK + 20) u is 6.6e-5, a bound far above what happens */
    CHECK_MSG(fabs((double)data[3][(h * s + i) * LONG_D + d] - out[d]) <= 1e-5 * gauge[d],
              "query %d of head %d [%d]: %.9g, exactly %.9g", (int)i, (int)h, (int)d,
              (double)data[3][(h * s + i) * LONG_D + d], out[d]);
}

static void long_memory(int64_t s, int64_t t, float *data[5], double **x) {
  data[0] = need_f32((size_t)(LONG_H * s * LONG_D));
  data[1] = need_f32((size_t)(LONG_G * t * LONG_D)), data[2] = need_f32((size_t)(LONG_G * t * LONG_D));
  data[3] = need_f32((size_t)(LONG_H * s * LONG_D)), data[4] = need_f32((size_t)(LONG_H * s));
  *x = (double *)malloc((size_t)t * sizeof **x);
  if (!*x) exit(2);
}

/* The workspace is blocks of scores and at most a few heads of K and V, whatever S and T. */
static void check_long_plan(mlk_context *ctx, const mlk_attention_desc *desc, int64_t t) {
  const uint64_t head = (uint64_t)(t * 2 * LONG_D * 4);
  mlk_plan plan;
  memset(&plan, 0xFE, sizeof plan);
  CHECK_OK(ctx, mlk_attention_plan(ctx, desc, &plan));
  CHECK_MSG(plan.workspace_bytes <= 4 * head + (UINT64_C(16) << 20),
            "workspace %" PRIu64 ", K and V of a head %" PRIu64, plan.workspace_bytes, head);
}

/* A few queries over 100,000 keys. */
static void long_cache(void) {
  enum { T = 100000 };
  float *data[5], *want;
  double *x;
  mlkt_rng rng = mlkt_rng_case();
  int64_t s;
  int r;
  long_memory(3, T, data, &x);
  want = need_f32(3 * LONG_H * LONG_D);
  crew_open();
  for (s = 1; s <= (mlkt_opt.quick ? 1 : 3); s += 2) {
    const mlk_attention_desc desc = long_call(s, T, data, &rng);
    int64_t h, i;
    for (r = 0; r < crew.rows; r++) {
      const int threads_ = crew_threads((uint64_t)(r + s));
      mlk_context *ctx = crew_get(crew.isas[r], threads_);
      if (!ctx || (mlkt_opt.quick && r != (int)(mlkt_opt.seed % (uint64_t)crew.rows))) continue;
      mlkt_note("S %d, isa %s, threads %d", (int)s, mlk_isa_name(crew.isas[r]), threads_);
      check_long_plan(ctx, &desc, T);
      if (!CHECK_OK(ctx, mlk_attention(ctx, &desc))) continue;
      if (r > 0 && !mlkt_opt.quick) CHECK_BITS_F32_N(data[3], want, LONG_H * s * LONG_D);
      memcpy(want, data[3], (size_t)(LONG_H * s * LONG_D) * sizeof *want);
    }
    for (h = 0; h < LONG_H; h++)
      for (i = 0; i < s; i++) long_judge(s, T, data, h, i, x);
  }
  crew_close();
  for (r = 0; r < 5; r++) free(data[r]);
  free(want), free(x);
}

/* 100,000 queries over as many keys, and the gradient of that: a matrix of scores would take 40 GB a head. */
static void long_sequence(void) {
  enum { T = 100000, N = LONG_H * LONG_D };
  mlk_context *ctx;
  float *data[5], *dout, *dq, *dk, *dv;
  double *x, sum[LONG_D];
  mlkt_rng rng = mlkt_rng_case();
  mlk_attention_desc desc;
  mlk_attention_grad_desc grad;
  mlk_plan plan;
  int64_t i, d, h, j, sample;
  if (!mlkt_opt.long_run) {
    mlkt_skip("100,000 queries: --long");
    return;
  }
  ctx = mlkt_open(MLK_ISA_BEST, 0);
  if (!ctx) return;
  long_memory(T, T, data, &x);
  dout = need_f32((size_t)T * N), dq = need_f32((size_t)T * N), dk = need_f32((size_t)T * N),
  dv = need_f32((size_t)T * N);
  desc = long_call(T, T, data, &rng);
  draw(&rng, dout, (size_t)T * N);
  check_long_plan(ctx, &desc, T);
  CHECK_OK(ctx, mlk_attention(ctx, &desc));
  for (sample = 0; sample < 40; sample++)
    long_judge(T, T, data, sample % LONG_H, sample < 4 ? T - 1 : mlkt_int(&rng, 0, T - 1), x);
  memset(&grad, 0, sizeof grad);
  grad.q = desc.q, grad.k = desc.k, grad.v = desc.v, grad.out = desc.out, grad.lse = desc.lse,
  grad.scores = desc.scores;
  grad.dout = mlk_f32(dout, 1, LONG_H, T, LONG_D), grad.dq = mlk_f32(dq, 1, LONG_H, T, LONG_D);
  grad.dk = mlk_f32(dk, 1, LONG_G, T, LONG_D), grad.dv = mlk_f32(dv, 1, LONG_G, T, LONG_D);
  CHECK_OK(ctx, mlk_attention_grad_plan(ctx, &grad, &plan));
  CHECK_MSG(plan.workspace_bytes <= UINT64_C(4) * T * N * 4 + (UINT64_C(16) << 20), "workspace %" PRIu64,
            plan.workspace_bytes);
  CHECK_OK(ctx, mlk_attention_grad(ctx, &grad));
  for (sample = 0; sample < 12; sample++) { /* dq of some queries, dv of some keys */
    const int64_t group = LONG_H / LONG_G;
    double gauge = 0, delta = 0;
    h = mlkt_int(&rng, 0, LONG_H - 1), i = mlkt_int(&rng, 0, T - 1);
    for (d = 0; d < LONG_D; d++) {
      sum[d] = 0;
      delta += (double)dout[(h * T + i) * LONG_D + d] * (double)data[3][(h * T + i) * LONG_D + d];
    }
    long_row(T, T, data, h, i, x);
    for (j = 0; j <= i; j++) {
      double t = -delta;
      for (d = 0; d < LONG_D; d++)
        t += (double)dout[(h * T + i) * LONG_D + d] * (double)data[2][(h / group * T + j) * LONG_D + d];
      t *= exp(x[j] - (double)data[4][h * T + i]);
      gauge += fabs(t);
      for (d = 0; d < LONG_D; d++) sum[d] += t * (double)data[1][(h / group * T + j) * LONG_D + d];
    }
    for (d = 0; d < LONG_D; d++)
      CHECK_MSG(fabs((double)dq[(h * T + i) * LONG_D + d] - sum[d]) <= 2e-5 * gauge,
                "dq of query %d: %.9g, expected %.9g", (int)i, (double)dq[(h * T + i) * LONG_D + d], sum[d]);
    j = i, gauge = 0;
    for (d = 0; d < LONG_D; d++) sum[d] = 0;
    for (h = h / group * group; h % group || h / group * group == h; h++) {
      for (i = j; i < T; i++) {
        double score = -(double)data[4][h * T + i];
        for (d = 0; d < LONG_D; d++)
          score += (double)data[0][(h * T + i) * LONG_D + d] * (double)data[1][(h / group * T + j) * LONG_D + d];
        gauge += exp(score);
        for (d = 0; d < LONG_D; d++) sum[d] += exp(score) * (double)dout[(h * T + i) * LONG_D + d];
      }
      if (h % group == group - 1) break;
    }
    for (d = 0; d < LONG_D; d++)
      CHECK_MSG(fabs((double)dv[(h / group * T + j) * LONG_D + d] - sum[d]) <= 2e-5 * gauge,
                "dv of key %d: %.9g, expected %.9g", (int)j, (double)dv[(h / group * T + j) * LONG_D + d], sum[d]);
  }
  mlk_close(ctx);
  for (i = 0; i < 5; i++) free(data[i]);
  free(dout), free(dq), free(dk), free(dv), free(x);
}

const mlkt_case mlkt_attention_bits_cases[] = {{"attention/pieces", pieces},
                                               {"attention/split", split},
                                               {"attention/parts_of_a_batch", parts_of_a_batch},
                                               {"attention/paged", paged},
                                               {"attention/threads", threads},
                                               {"attention/arithmetic", arithmetic},
                                               {"attention/merging", merging},
                                               {"attention/special_values", special_values},
                                               {"attention/contagion", contagion},
                                               {"attention/empty", empty},
                                               {"attention/long_cache", long_cache},
                                               {"attention/long_sequence", long_sequence},
                                               {NULL, NULL}};
