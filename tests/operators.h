/* operators.h - one call of each operator, for tests of what they all have in common. */

#ifndef MLKT_OPERATORS_H
#define MLKT_OPERATORS_H

#include "test.h"

#include <stdlib.h>

/* The table of operators. Every test that asks what any operator must do (null arguments, rows, plan and allocator,
   failing memory, hooks, threads, manners; on a device: memory, failures, capture) walks over it. A new operator
   takes a builder work_NAME below, which fills its descriptor, and a line here: X(name, first output, last output),
   as fields of struct outputs. tests/hygiene.sh finds an operator that has none. */
#define OPERATORS(X)                                                                                                   \
  X(matmul, d, d)                                                                                                      \
  X(knn, ids, distances)                                                                                               \
  X(distances, all_distances, all_distances)                                                                           \
  X(conv, y, y)                                                                                                        \
  X(conv_grad_input, dx, dx)                                                                                           \
  X(conv_grad_weights, dw, dbias)                                                                                      \
  X(map, mapped, mapped)                                                                                               \
  X(reduce, sums, sums)                                                                                                \
  X(pool, pooled_at, pooled)                                                                                           \
  X(pool_grad, pool_dx, pool_dx)                                                                                       \
  X(softmax, soft, soft)                                                                                               \
  X(softmax_grad, soft_dx, soft_dx)                                                                                    \
  X(cross_entropy, losses, logits_dx)                                                                                  \
  X(norm, normed, rstd)                                                                                                \
  X(norm_grad, norm_dx, dbeta)                                                                                         \
  X(embedding, embedded, embedded)                                                                                     \
  X(embedding_grad, dtable, dtable)                                                                                    \
  X(rotary, rotated, rotated)                                                                                          \
  X(attention, attended, attended_lse)                                                                                 \
  X(attention_grad, attn_dq, attn_dsinks)                                                                              \
  X(attention_merge, merged, merged_lse)                                                                               \
  X(average, averaged, averaged_norm)                                                                                  \
  X(clip_norm, clipped, length)                                                                                        \
  X(sgd, sgd_param, velocity)                                                                                          \
  X(adamw, adamw_param, second)

enum { MM = 90, MN = 150, MK = 530, KQ = 21, KN = 311, KD = 43, KK = 7 };
enum {
  CN = 2,
  CC = 13,
  CK = 21,
  CH = 23,
  CW = 19,
  CX = CN * CC * CH * CW,
  CY = CN * CK * CH * CW
};                                                         /* 3x3, padding 1 */
enum { PH = CH / 2, PW = CW / 2, PY = CN * CC * PH * PW }; /* 2x2, stride 2 */
enum { LS = 11, LH = 3, LR = LS * LH, LD = 46, LV = 29 };  /* the layers: LR rows of LD, tables of LV rows */
enum { AB = 2, AH = 4, AG = 2, AS = 45, AT = 137, AD = 24, AE = 20, AP = 3 }; /* attention: causal, with sinks; parts */
enum { AQ = AB * AH * AS * AD, AK = AB * AG * AT * AD, AV = AB * AG * AT * AE, AO = AB * AH * AS * AE };

typedef struct outputs {
  float d[MM * MN];
  int64_t ids[KQ * KK];
  float distances[KQ * KK], all_distances[KQ * KN];
  float y[CY], dx[CX], dw[CK * CC * 9], dbias[CK];
  float mapped[LR * LD], sums[LD];
  int64_t pooled_at[PY];
  float pooled[PY], pool_dx[CX];
  float soft[LR * LD], soft_dx[LR * LD], losses[LR], logits_dx[LR * LD];
  float normed[LR * LD], mean[LR], rstd[LR], norm_dx[LR * LD], dgamma[LD], dbeta[LD];
  float embedded[LR * LD], dtable[LV * LD], rotated[LR * LD];
  float attended[AO], attended_lse[AB * AH * AS], attn_dq[AQ], attn_dk[AK], attn_dv[AV], attn_dsinks[AH];
  float merged[AO], merged_lse[AB * AH * AS];
  float averaged[LR * LD], averaged_bias[LD], averaged_norm;
  float clipped[LR * LD], length, sgd_param[LR * LD], velocity[LR * LD], adamw_param[LR * LD], first[LR * LD],
      second[LR * LD];
} outputs;

typedef struct work {
  float a[MM * MK], b[MK * MN], bias[MN];
  float queries[KQ * KD], base[KN * KD];
  float x[CX], w[CK * CC * 9], dy[CY], pool_dy[PY];
  int64_t pool_from[PY]; /* places in x that the windows saw */
  float rows[LR * LD], grad[LR * LD], gamma[LD], beta[LD], row_mean[LR], row_rstd[LR], table[LV * LD];
  int64_t tokens[LR];
  float attn_q[AQ], attn_k[AK], attn_v[AV], attn_sinks[AH], attn_out[AO], attn_lse[AB * AH * AS], attn_dout[AO];
  float parts[AP * AO], parts_lse[AP * AB * AH * AS];
  mlk_tensor to_clip[1], to_average[AP * 2], averages[2];
  outputs out;
  outputs start; /* what out holds before a call: rogue values, or what the operator updates in place */
} work;

static inline mlk_matmul_desc work_matmul(work *w) {
  mlk_matmul_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.a = mlk_f32(w->a, MM, MK);
  desc.b = mlk_f32(w->b, MK, MN);
  desc.bias = mlk_f32(w->bias, MN);
  desc.d = mlk_f32(w->out.d, MM, MN);
  desc.activation = MLK_RELU;
  return desc;
}

static inline mlk_knn_desc work_knn(work *w) {
  mlk_knn_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.queries = mlk_f32(w->queries, KQ, KD);
  desc.base = mlk_f32(w->base, KN, KD);
  desc.k = KK;
  desc.ids = mlk_i64(w->out.ids, KQ, KK);
  desc.distances = mlk_f32(w->out.distances, KQ, KK);
  return desc;
}

static inline mlk_distances_desc work_distances(work *w) {
  mlk_distances_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.queries = mlk_f32(w->queries, KQ, KD);
  desc.base = mlk_f32(w->base, KN, KD);
  desc.out = mlk_f32(w->out.all_distances, KQ, KN);
  return desc;
}

static inline mlk_conv_geometry work_geometry(void) {
  mlk_conv_geometry g;
  memset(&g, 0, sizeof g);
  g.pad_before[0] = g.pad_before[1] = g.pad_after[0] = g.pad_after[1] = 1;
  return g;
}

static inline mlk_conv_desc work_conv(work *w) {
  mlk_conv_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.x = mlk_f32(w->x, CN, CC, CH, CW);
  desc.w = mlk_f32(w->w, CK, CC, 3, 3);
  desc.y = mlk_f32(w->out.y, CN, CK, CH, CW);
  desc.geometry = work_geometry();
  return desc;
}

static inline mlk_conv_grad_input_desc work_conv_grad_input(work *w) {
  mlk_conv_grad_input_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.dy = mlk_f32(w->dy, CN, CK, CH, CW);
  desc.w = mlk_f32(w->w, CK, CC, 3, 3);
  desc.dx = mlk_f32(w->out.dx, CN, CC, CH, CW);
  desc.geometry = work_geometry();
  return desc;
}

static inline mlk_conv_grad_weights_desc work_conv_grad_weights(work *w) {
  mlk_conv_grad_weights_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.x = mlk_f32(w->x, CN, CC, CH, CW);
  desc.dy = mlk_f32(w->dy, CN, CK, CH, CW);
  desc.dw = mlk_f32(w->out.dw, CK, CC, 3, 3);
  desc.dbias = mlk_f32(w->out.dbias, CK);
  desc.geometry = work_geometry();
  return desc;
}

static inline mlk_map_desc work_map(work *w) {
  mlk_map_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.op = MLK_ACT_GRAD;
  desc.activation = MLK_GELU;
  desc.a = mlk_f32(w->rows, LR, LD);
  desc.b = mlk_f32(w->grad, LR, LD);
  desc.out = mlk_f32(w->out.mapped, LR, LD);
  return desc;
}

static inline mlk_reduce_desc work_reduce(work *w) {
  mlk_reduce_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.op = MLK_SUM;
  desc.x = mlk_f32(w->rows, LR, LD);
  desc.axes = 1;
  desc.out = mlk_f32(w->out.sums, LD);
  return desc;
}

static inline mlk_conv_geometry work_pool_geometry(void) {
  mlk_conv_geometry g;
  memset(&g, 0, sizeof g);
  g.stride[0] = g.stride[1] = 2;
  return g;
}

static inline mlk_pool_desc work_pool(work *w) {
  mlk_pool_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.x = mlk_f32(w->x, CN, CC, CH, CW);
  desc.y = mlk_f32(w->out.pooled, CN, CC, PH, PW);
  desc.indices = mlk_i64(w->out.pooled_at, CN, CC, PH, PW);
  desc.window[0] = desc.window[1] = 2;
  desc.geometry = work_pool_geometry();
  return desc;
}

static inline mlk_pool_grad_desc work_pool_grad(work *w) {
  mlk_pool_grad_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.dy = mlk_f32(w->pool_dy, CN, CC, PH, PW);
  desc.indices = mlk_i64(w->pool_from, CN, CC, PH, PW);
  desc.dx = mlk_f32(w->out.pool_dx, CN, CC, CH, CW);
  desc.window[0] = desc.window[1] = 2;
  desc.geometry = work_pool_geometry();
  return desc;
}

static inline mlk_softmax_desc work_softmax(work *w) {
  mlk_softmax_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.x = mlk_f32(w->rows, LR, LD);
  desc.y = mlk_f32(w->out.soft, LR, LD);
  return desc;
}

static inline mlk_softmax_grad_desc work_softmax_grad(work *w) {
  mlk_softmax_grad_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.y = mlk_f32(w->rows, LR, LD);
  desc.dy = mlk_f32(w->grad, LR, LD);
  desc.dx = mlk_f32(w->out.soft_dx, LR, LD);
  return desc;
}

static inline mlk_cross_entropy_desc work_cross_entropy(work *w) {
  mlk_cross_entropy_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.x = mlk_f32(w->rows, LR, LD);
  desc.labels = mlk_i64(w->tokens, LR);
  desc.loss = mlk_f32(w->out.losses, LR);
  desc.dx = mlk_f32(w->out.logits_dx, LR, LD);
  return desc;
}

static inline mlk_norm_desc work_norm(work *w) {
  mlk_norm_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.x = mlk_f32(w->rows, LR, LD);
  desc.gamma = mlk_f32(w->gamma, LD);
  desc.beta = mlk_f32(w->beta, LD);
  desc.y = mlk_f32(w->out.normed, LR, LD);
  desc.mean = mlk_f32(w->out.mean, LR);
  desc.rstd = mlk_f32(w->out.rstd, LR);
  return desc;
}

static inline mlk_norm_grad_desc work_norm_grad(work *w) {
  mlk_norm_grad_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.x = mlk_f32(w->rows, LR, LD);
  desc.gamma = mlk_f32(w->gamma, LD);
  desc.mean = mlk_f32(w->row_mean, LR);
  desc.rstd = mlk_f32(w->row_rstd, LR);
  desc.dy = mlk_f32(w->grad, LR, LD);
  desc.dx = mlk_f32(w->out.norm_dx, LR, LD);
  desc.dgamma = mlk_f32(w->out.dgamma, LD);
  desc.dbeta = mlk_f32(w->out.dbeta, LD);
  return desc;
}

static inline mlk_embedding_desc work_embedding(work *w) {
  mlk_embedding_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.table = mlk_f32(w->table, LV, LD);
  desc.ids = mlk_i64(w->tokens, LR);
  desc.out = mlk_f32(w->out.embedded, LR, LD);
  return desc;
}

static inline mlk_embedding_grad_desc work_embedding_grad(work *w) {
  mlk_embedding_grad_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.ids = mlk_i64(w->tokens, LR);
  desc.dout = mlk_f32(w->grad, LR, LD);
  desc.dtable = mlk_f32(w->out.dtable, LV, LD);
  return desc;
}

static inline mlk_rotary_desc work_rotary(work *w) {
  mlk_rotary_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.x = mlk_f32(w->rows, LS, LH, LD);
  desc.y = mlk_f32(w->out.rotated, LS, LH, LD);
  return desc;
}

static inline mlk_attention_desc work_attention(work *w) {
  mlk_attention_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.q = mlk_f32(w->attn_q, AB, AH, AS, AD);
  desc.k = mlk_f32(w->attn_k, AB, AG, AT, AD);
  desc.v = mlk_f32(w->attn_v, AB, AG, AT, AE);
  desc.out = mlk_f32(w->out.attended, AB, AH, AS, AE);
  desc.lse = mlk_f32(w->out.attended_lse, AB, AH, AS);
  desc.scores.causal = 1;
  desc.scores.sinks = mlk_f32(w->attn_sinks, AH);
  return desc;
}

static inline mlk_attention_grad_desc work_attention_grad(work *w) {
  mlk_attention_grad_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.q = mlk_f32(w->attn_q, AB, AH, AS, AD);
  desc.k = mlk_f32(w->attn_k, AB, AG, AT, AD);
  desc.v = mlk_f32(w->attn_v, AB, AG, AT, AE);
  desc.out = mlk_f32(w->attn_out, AB, AH, AS, AE);
  desc.lse = mlk_f32(w->attn_lse, AB, AH, AS);
  desc.dout = mlk_f32(w->attn_dout, AB, AH, AS, AE);
  desc.dq = mlk_f32(w->out.attn_dq, AB, AH, AS, AD);
  desc.dk = mlk_f32(w->out.attn_dk, AB, AG, AT, AD);
  desc.dv = mlk_f32(w->out.attn_dv, AB, AG, AT, AE);
  desc.dsinks = mlk_f32(w->out.attn_dsinks, AH);
  desc.scores.causal = 1;
  desc.scores.sinks = mlk_f32(w->attn_sinks, AH);
  return desc;
}

static inline mlk_attention_merge_desc work_attention_merge(work *w) {
  mlk_attention_merge_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.parts = mlk_f32(w->parts, AP, AB, AH, AS, AE);
  desc.parts_lse = mlk_f32(w->parts_lse, AP, AB, AH, AS);
  desc.sinks = mlk_f32(w->attn_sinks, AH);
  desc.out = mlk_f32(w->out.merged, AB, AH, AS, AE);
  desc.lse = mlk_f32(w->out.merged_lse, AB, AH, AS);
  return desc;
}

static inline mlk_average_desc work_average(work *w) { /* AP replicas of a matrix and a bias, out of x */
  mlk_average_desc desc;
  int r;
  memset(&desc, 0, sizeof desc);
  for (r = 0; r < AP; r++) {
    w->to_average[2 * r] = mlk_f32(w->x + r * (LR + 1) * LD, LR, LD);
    w->to_average[2 * r + 1] = mlk_f32(w->x + (r * (LR + 1) + LR) * LD, LD);
  }
  w->averages[0] = mlk_f32(w->out.averaged, LR, LD);
  w->averages[1] = mlk_f32(w->out.averaged_bias, LD);
  desc.inputs = w->to_average;
  desc.replicas = AP;
  desc.outputs = w->averages;
  desc.count = desc.output_count = 2;
  desc.skip_nonfinite = 1;
  desc.norm = &w->out.averaged_norm;
  return desc;
}

static inline mlk_clip_norm_desc work_clip_norm(work *w) {
  mlk_clip_norm_desc desc;
  memset(&desc, 0, sizeof desc);
  w->to_clip[0] = mlk_f32(w->out.clipped, LR, LD);
  desc.grads = w->to_clip;
  desc.count = 1;
  desc.max_norm = 0.5f;
  desc.norm = &w->out.length;
  return desc;
}

static inline mlk_sgd_desc work_sgd(work *w) {
  mlk_sgd_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.param = mlk_f32(w->out.sgd_param, LR, LD);
  desc.grad = mlk_f32(w->grad, LR, LD);
  desc.velocity = mlk_f32(w->out.velocity, LR, LD);
  desc.lr = 0.1f;
  desc.momentum = 0.9f;
  return desc;
}

static inline mlk_adamw_desc work_adamw(work *w) {
  mlk_adamw_desc desc;
  memset(&desc, 0, sizeof desc);
  desc.param = mlk_f32(w->out.adamw_param, LR, LD);
  desc.grad = mlk_f32(w->grad, LR, LD);
  desc.m = mlk_f32(w->out.first, LR, LD);
  desc.v = mlk_f32(w->out.second, LR, LD);
  desc.step = 3;
  desc.lr = 0.01f;
  desc.weight_decay = 0.01f;
  return desc;
}

/* Where the operands are, if not in w: the same struct at w + work_moved bytes, on a device. Lists of tensors stay. */
static ptrdiff_t work_moved;

static inline void move_pointers(const work *w, void *record, size_t bytes) {
  const uintptr_t from = (uintptr_t)w, lists = (uintptr_t)w->to_clip, behind = (uintptr_t)(w->averages + 2);
  size_t i;
  for (i = 0; i + sizeof(uintptr_t) <= bytes;
       i += sizeof(uintptr_t)) { /* no size or stride looks like a pointer into w */
    uintptr_t word;
    memcpy(&word, (char *)record + i, sizeof word);
    if (word < from || word >= from + sizeof *w || (word >= lists && word < behind)) continue;
    word += (uintptr_t)work_moved;
    memcpy((char *)record + i, &word, sizeof word);
  }
}

static inline void move_operands(work *w, void *desc, size_t bytes) {
  if (!work_moved) return;
  move_pointers(w, desc, bytes);
  move_pointers(w, w->to_clip, sizeof w->to_clip);
  move_pointers(w, w->to_average, sizeof w->to_average);
  move_pointers(w, w->averages, sizeof w->averages);
}

/* call_NAME: the operator, or with planned its plan; with w NULL the descriptor is NULL. */
#define CALL(name, first_output, last_output)                                                                          \
  static inline mlk_status call_##name(mlk_context *ctx, work *w, int planned, mlk_plan *plan) {                       \
    mlk_##name##_desc desc;                                                                                            \
    memset(&desc, 0, sizeof desc);                                                                                     \
    if (w) desc = work_##name(w);                                                                                      \
    if (w) move_operands(w, &desc, sizeof desc);                                                                       \
    return planned ? mlk_##name##_plan(ctx, w ? &desc : NULL, plan) : mlk_##name(ctx, w ? &desc : NULL);               \
  }
OPERATORS(CALL)

#define NUMBER(name, first_output, last_output) OP_##name,
enum { OPERATORS(NUMBER) OP_COUNT };

#define ENTRY(name, first_output, last_output)                                                                         \
  {"mlk_" #name, call_##name, offsetof(outputs, first_output),                                                         \
   offsetof(outputs, last_output) + sizeof(((outputs *)0)->last_output)},
static const struct {
  const char *name;
  mlk_status (*call)(mlk_context *ctx, work *w, int planned, mlk_plan *plan);
  size_t from, to; /* its outputs: bytes of struct outputs */
} operators[OP_COUNT] = {OPERATORS(ENTRY)};

static inline const char *op_name(int op) { return operators[op].name; }
static inline mlk_status op_run(int op, mlk_context *ctx, work *w) { return operators[op].call(ctx, w, 0, NULL); }
static inline mlk_status op_plan(int op, mlk_context *ctx, work *w, mlk_plan *plan) {
  return operators[op].call(ctx, w, 1, plan);
}

/* 1 when the outputs of op are the same bits (NaN-free data: memcmp is enough). */
static inline int same_outputs(int op, const outputs *x, const outputs *y) {
  const size_t from = operators[op].from;
  return memcmp((const char *)x + from, (const char *)y + from, operators[op].to - from) == 0;
}
static inline int op_untouched(int op, const work *w) { return same_outputs(op, &w->out, &w->start); }
static inline int op_same(int op, const work *x, const work *y) { return same_outputs(op, &x->out, &y->out); }

static inline void work_rogue(work *w) { memcpy(&w->out, &w->start, sizeof w->out); }

static inline void draw(mlkt_rng *rng, float *x, size_t count) {
  size_t i;
  for (i = 0; i < count; i++) x[i] = mlkt_signed(rng);
}

static inline work *work_new(mlkt_rng rng) {
  work *w = (work *)calloc(1, sizeof *w);
  size_t i;
  if (!w) exit(2);
  draw(&rng, w->a, MM * MK);
  draw(&rng, w->b, MK * MN);
  draw(&rng, w->bias, MN);
  draw(&rng, w->queries, KQ * KD);
  draw(&rng, w->base, KN * KD);
  draw(&rng, w->x, CX);
  draw(&rng, w->w, CK * CC * 9);
  draw(&rng, w->dy, CY);
  draw(&rng, w->pool_dy, PY);
  draw(&rng, w->rows, LR * LD);
  draw(&rng, w->grad, LR * LD);
  draw(&rng, w->gamma, LD);
  draw(&rng, w->beta, LD);
  draw(&rng, w->row_mean, LR);
  draw(&rng, w->table, LV * LD);
  for (i = 0; i < LR; i++) w->row_rstd[i] = 1 + mlkt_unit(&rng);
  for (i = 0; i < LR; i++) w->tokens[i] = mlkt_int(&rng, 0, LV - 1);
  for (i = 0; i < PY; i++) w->pool_from[i] = (int64_t)(2 * (i / PW % PH) * CW + 2 * (i % PW) + i % 2);
  draw(&rng, w->attn_q, AQ);
  draw(&rng, w->attn_k, AK);
  draw(&rng, w->attn_v, AV);
  draw(&rng, w->attn_sinks, AH);
  draw(&rng, w->attn_out, AO);
  draw(&rng, w->attn_dout, AO);
  for (i = 0; i < AB * AH * AS; i++) w->attn_lse[i] = 3 + mlkt_unit(&rng);
  draw(&rng, w->parts, AP * AO);
  draw(&rng, w->parts_lse, AP * AB * AH * AS);
  mlkt_rogue_f32((float *)(void *)&w->start, sizeof w->start / sizeof(float));
  draw(&rng, w->start.dtable, LV * LD);
  draw(&rng, w->start.clipped, LR * LD);
  draw(&rng, w->start.sgd_param, LR * LD);
  draw(&rng, w->start.velocity, LR * LD);
  draw(&rng, w->start.adamw_param, LR * LD);
  draw(&rng, w->start.first, LR * LD);
  for (i = 0; i < LR * LD; i++) w->start.second[i] = mlkt_unit(&rng);
  work_rogue(w);
  return w;
}

/* A work whose outputs come from one thread of the scalar row with nothing special. */
static inline work *work_expected(mlkt_rng rng) {
  work *w = work_new(rng);
  mlk_context_desc desc;
  mlk_context *ctx = NULL;
  int op;
  memset(&desc, 0, sizeof desc);
  desc.isa = MLK_ISA_SCALAR;
  desc.threads = 1;
  if (!CHECK_STATUS(NULL, mlk_open(&ctx, &desc), MLK_OK)) return w;
  for (op = 0; op < OP_COUNT; op++) {
    CHECK_OK(ctx, op_run(op, ctx, w));
    CHECK_MSG(!op_untouched(op, w), "%s left its outputs untouched", op_name(op));
  }
  mlk_close(ctx);
  return w;
}

/* The same inputs, outputs rogue again. */
static inline work *work_copy(const work *from) {
  work *w = (work *)malloc(sizeof *w);
  if (!w) exit(2);
  memcpy(w, from, sizeof *w);
  work_rogue(w);
  return w;
}

#endif /* MLKT_OPERATORS_H */
