/* test_attention_calls.c - calls of attention that must be refused, and those next to them that must not; overlap of
   operands; plans against allocators, flops and bytes against loops; sizes at the limits. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "attention_problem.h"

/* ---- refusals ---------------------------------------------------------------------------------------------------- */

typedef enum callee { ATTENTION, GRADIENT, MERGE, CALLEES } callee;
static const char *const callee_names[CALLEES] = {"attention", "attention_grad", "attention_merge"};

/* Runs one operator or, with plan, its plan on desc, whatever its type. */
static mlk_status any_call(callee what, mlk_context *ctx, const void *desc, mlk_plan *plan) {
  const mlk_attention_desc *forward = (const mlk_attention_desc *)desc;
  const mlk_attention_grad_desc *grad = (const mlk_attention_grad_desc *)desc;
  const mlk_attention_merge_desc *merge = (const mlk_attention_merge_desc *)desc;
  if (what == ATTENTION) return plan ? mlk_attention_plan(ctx, forward, plan) : mlk_attention(ctx, forward);
  if (what == GRADIENT) return plan ? mlk_attention_grad_plan(ctx, grad, plan) : mlk_attention_grad(ctx, grad);
  return plan ? mlk_attention_merge_plan(ctx, merge, plan) : mlk_attention_merge(ctx, merge);
}

enum { BAD_ROOM = 2048, BAD_OUTPUTS = 7 };
static float bad_in[BAD_ROOM], bad_out[BAD_OUTPUTS][BAD_ROOM];
static uint8_t bad_mask[BAD_ROOM];
static int64_t bad_lengths[16], bad_q_offsets[16], bad_k_offsets[16], bad_pages[16];

static void bad_memory(void) {
  int i;
  for (i = 0; i < BAD_ROOM; i++) bad_in[i] = 0.25f, bad_mask[i] = 1;
  for (i = 0; i < 16; i++) bad_lengths[i] = 4, bad_q_offsets[i] = 3 * i, bad_k_offsets[i] = 5 * i, bad_pages[i] = i % 4;
}

static void bad_reset(void) {
  int i;
  for (i = 0; i < BAD_OUTPUTS; i++) mlkt_rogue_f32(bad_out[i], BAD_ROOM);
}

static int bad_untouched(void) {
  int i, ok = 1;
  for (i = 0; i < BAD_OUTPUTS; i++) ok &= mlkt_is_rogue_f32(bad_out[i], BAD_ROOM);
  return ok;
}

/* The operator must refuse desc with status, by a sentence that holds word and value; with planned so must its plan,
   else the plan is fine. Outputs are bad_out. */
static void expect_refusal(callee what, mlk_context *ctx, const void *desc, mlk_status status, const char *word,
                           const char *value, int planned, const char *spoilt, int line) {
  mlk_plan plan, kept;
  mlkt_note("line %d: %s: %s", line, callee_names[what], spoilt);
  memset(&plan, 0xFE, sizeof plan);
  memcpy(&kept, &plan, sizeof plan);
  if (mlkt_opt.cuda && !planned) { /* what lies in the device's memory is told afterwards, without its value */
    CHECK_OK(ctx, any_call(what, ctx, desc, NULL));
    CHECK_STATUS(ctx, mlk_sync(ctx), status);
    CHECK_NAMES(ctx, word);
    CHECK_OK(ctx, any_call(what, ctx, desc, &plan));
    bad_reset();
    return;
  }
  CHECK_STATUS(ctx, any_call(what, ctx, desc, NULL), status);
  CHECK_NAMES(ctx, word);
  if (value) CHECK_NAMES(ctx, value);
  CHECK_STATUS(ctx, any_call(what, ctx, desc, &plan), planned ? status : MLK_OK);
  if (planned) CHECK_MSG(memcmp(&plan, &kept, sizeof plan) == 0, "a refused plan was written");
  CHECK_MSG(bad_untouched(), "a refused call wrote an output");
}

#define BAD_CALL(spoil, status, word, value, planned)                                                                  \
  do {                                                                                                                 \
    DESC desc = good;                                                                                                  \
    spoil;                                                                                                             \
    expect_refusal(WHAT, ctx, &desc, (status), (word), (value), (planned), #spoil, __LINE__);                          \
  } while (0)
#define BAD(spoil, status, word, value) BAD_CALL(spoil, status, word, value, 1)
/* A value in memory, put back afterwards: only the call looks at it. */
#define BAD_VALUE(place, x, word, value)                                                                               \
  do {                                                                                                                 \
    const int64_t kept_ = (place);                                                                                     \
    (place) = (x);                                                                                                     \
    BAD_CALL((void)0, MLK_ERR_ARGUMENT, word, value, 0);                                                               \
    (place) = kept_;                                                                                                   \
  } while (0)
#define FINE(change)                                                                                                   \
  do {                                                                                                                 \
    DESC desc = good;                                                                                                  \
    mlk_plan plan;                                                                                                     \
    change;                                                                                                            \
    mlkt_note("line %d: %s: %s", __LINE__, callee_names[WHAT], #change);                                               \
    CHECK_OK(ctx, any_call(WHAT, ctx, &desc, &plan));                                                                  \
    CHECK_OK(ctx, any_call(WHAT, ctx, &desc, NULL));                                                                   \
    bad_reset();                                                                                                       \
  } while (0)

/* A tensor: dtype, rank, negative and absurd sizes. */
#define BAD_TENSOR(FIELD, NAME)                                                                                        \
  BAD(desc.FIELD.dtype = MLK_I64, MLK_ERR_DTYPE, NAME, NULL);                                                          \
  BAD(desc.FIELD.dtype = MLK_U8, MLK_ERR_DTYPE, NAME, NULL);                                                           \
  BAD(desc.FIELD.dtype = -1, MLK_ERR_DTYPE, NAME, NULL);                                                               \
  BAD(desc.FIELD.rank = 7, MLK_ERR_SHAPE, NAME, "7");                                                                  \
  BAD(desc.FIELD.rank = 2, MLK_ERR_SHAPE, NAME, "2");                                                                  \
  BAD(desc.FIELD.rank = -1, MLK_ERR_SHAPE, NAME, NULL);                                                                \
  BAD(desc.FIELD.shape[0] = -2, MLK_ERR_SHAPE, NAME, "-2");                                                            \
  BAD((desc.FIELD.shape[0] = INT64_C(1) << 40, desc.FIELD.shape[1] = INT64_C(1) << 40), MLK_ERR_SIZE, NAME, NULL)

/* One axis after another has a size that fits nothing. */
#define BAD_AXES(FIELD, NAME, AXES_)                                                                                   \
  do {                                                                                                                 \
    int axis_;                                                                                                         \
    for (axis_ = 0; axis_ < (AXES_); axis_++) BAD(desc.FIELD.shape[axis_] += 11, MLK_ERR_SHAPE, NAME, NULL);           \
  } while (0)

/* An output's strides must step over what they span. */
#define BAD_STRIDES(FIELD, NAME)                                                                                       \
  BAD(desc.FIELD = mlk_with_row_stride(desc.FIELD, 2), MLK_ERR_SHAPE, NAME, NULL);                                     \
  BAD((desc.FIELD = mlk_with_row_stride(desc.FIELD, 9), desc.FIELD.stride[0] = 0), MLK_ERR_SHAPE, NAME, NULL)

/* What both have in common: B 2, H 4, G 2, S 3, T 5, D 6, E 7, mask [2, 4, 3, 5], bias [4, 3, 5]. */
#define BAD_SCORES()                                                                                                   \
  BAD(desc.q.data = NULL, MLK_ERR_ARGUMENT, "q", NULL);                                                                \
  BAD(desc.k.data = NULL, MLK_ERR_ARGUMENT, "k", NULL);                                                                \
  BAD(desc.v.data = NULL, MLK_ERR_ARGUMENT, "v", NULL);                                                                \
  BAD_TENSOR(q, "q");                                                                                                  \
  BAD_TENSOR(k, "k");                                                                                                  \
  BAD_TENSOR(v, "v");                                                                                                  \
  BAD(desc.q.dtype = MLK_F16, MLK_ERR_DTYPE, mlkt_opt.cuda ? "k" : "q", NULL);                                         \
  BAD(desc.q.shape[3] = 0, MLK_ERR_SHAPE, "q", "0");                                                                   \
  BAD(desc.q.shape[3] = 5, MLK_ERR_SHAPE, "k", "6");                                                                   \
  BAD(desc.k.shape[3] = 7, MLK_ERR_SHAPE, "k", "7");                                                                   \
  BAD(desc.k.shape[0] = 1, MLK_ERR_SHAPE, "v", "2");                                                                   \
  BAD((desc.k.shape[0] = 1, desc.v.shape[0] = 1), MLK_ERR_SHAPE, "k", "1"); /* nothing broadcasts */                   \
  BAD((desc.k.shape[0] = 3, desc.v.shape[0] = 3), MLK_ERR_SHAPE, "k", "3");                                            \
  BAD((desc.k.shape[1] = 3, desc.v.shape[1] = 3), MLK_ERR_SHAPE, "k", "3");                                            \
  BAD((desc.k.shape[1] = 8, desc.v.shape[1] = 8), MLK_ERR_SHAPE, "k", "8");                                            \
  BAD((desc.k.shape[1] = 0, desc.v.shape[1] = 0), MLK_ERR_SHAPE, "k", "0");                                            \
  BAD(desc.v.shape[1] = 1, MLK_ERR_SHAPE, "v", "1");                                                                   \
  BAD(desc.v.shape[2] = 6, MLK_ERR_SHAPE, "v", "6");                                                                   \
  BAD(desc.k.shape[2] = 4, MLK_ERR_SHAPE, "v", "5");                                                                   \
  BAD(desc.scores.scale = NAN, MLK_ERR_ARGUMENT, "scale", NULL);                                                       \
  BAD(desc.scores.scale = -INFINITY, MLK_ERR_ARGUMENT, "scale", NULL);                                                 \
  BAD(desc.scores.softcap = -1, MLK_ERR_ARGUMENT, "softcap", "1");                                                     \
  BAD(desc.scores.softcap = NAN, MLK_ERR_ARGUMENT, "softcap", NULL);                                                   \
  BAD(desc.scores.softcap = INFINITY, MLK_ERR_ARGUMENT, "softcap", NULL);                                              \
  BAD(desc.scores.window = -1, MLK_ERR_ARGUMENT, "window", "-1");                                                      \
  BAD(desc.scores.window = INT64_MIN, MLK_ERR_ARGUMENT, "window", NULL);                                               \
  BAD(desc.scores.window = INT64_MAX, MLK_ERR_ARGUMENT, "window", "9223372036854775807");                              \
  BAD(desc.scores.offset = INT64_MAX, MLK_ERR_ARGUMENT, "offset", "9223372036854775807");                              \
  BAD(desc.scores.offset = INT64_MIN, MLK_ERR_ARGUMENT, "offset", NULL);                                               \
  BAD(desc.scores.mask.dtype = MLK_F32, MLK_ERR_DTYPE, "mask", NULL);                                                  \
  BAD(desc.scores.mask.rank = 5, MLK_ERR_SHAPE, "mask", "5");                                                          \
  BAD_AXES(scores.mask, "mask", 4);                                                                                    \
  BAD(desc.scores.mask.shape[3] = 0, MLK_ERR_SHAPE, "mask", "0");                                                      \
  BAD(desc.scores.bias.dtype = MLK_U8, MLK_ERR_DTYPE, "bias", NULL);                                                   \
  BAD(desc.scores.bias.dtype = MLK_F16, MLK_ERR_DTYPE, "bias", NULL);                                                  \
  BAD(desc.scores.bias.rank = 6, MLK_ERR_SHAPE, "bias", "6");                                                          \
  BAD_AXES(scores.bias, "bias", 3);                                                                                    \
  BAD(desc.scores.alibi.dtype = MLK_I64, MLK_ERR_DTYPE, "alibi", NULL);                                                \
  BAD(desc.scores.alibi.shape[0] = 2, MLK_ERR_SHAPE, "alibi", "2");                                                    \
  BAD(desc.scores.alibi.shape[0] = 1, MLK_ERR_SHAPE, "alibi", "1"); /* nothing broadcasts */                           \
  BAD(desc.scores.alibi = mlk_f32(bad_in, 1, 4), MLK_ERR_SHAPE, "alibi", "2");                                         \
  BAD(desc.scores.sinks.dtype = MLK_U8, MLK_ERR_DTYPE, "sinks", NULL);                                                 \
  BAD(desc.scores.sinks.shape[0] = 3, MLK_ERR_SHAPE, "sinks", "3");                                                    \
  BAD(desc.scores.sinks = mlk_f32(bad_in, 2, 2), MLK_ERR_SHAPE, "sinks", "2");                                         \
  BAD(desc.scores.offset = INT64_C(1) << 24, MLK_ERR_SIZE, "alibi", NULL);                                             \
  BAD(desc.scores.longest_q = 3, MLK_ERR_ARGUMENT, "longest_q", "3"); /* all have one length */                        \
  BAD(desc.scores.longest_k = 5, MLK_ERR_ARGUMENT, "longest_k", "5");                                                  \
  BAD(desc.scores.k_lengths = mlk_i64(bad_lengths, 3), MLK_ERR_SHAPE, "k_lengths", "3");                               \
  BAD((desc.scores.k_lengths = mlk_i64(bad_lengths, 2), desc.scores.k_lengths.dtype = MLK_F32), MLK_ERR_DTYPE,         \
      "k_lengths", NULL);                                                                                              \
  BAD(desc.scores.k_lengths = mlk_i64(bad_lengths, 1, 2), MLK_ERR_SHAPE, "k_lengths", "2");                            \
  BAD((desc.scores.k_lengths = mlk_i64(bad_lengths, 2), desc.scores.longest_k = 6), MLK_ERR_ARGUMENT, "longest_k",     \
      "6");                                                                                                            \
  BAD((desc.scores.k_lengths = mlk_i64(bad_lengths, 2), desc.scores.longest_k = -1), MLK_ERR_ARGUMENT, "longest_k",    \
      "-1");                                                                                                           \
  BAD(desc.scores.q_offsets = mlk_i64(bad_q_offsets, 3), MLK_ERR_SHAPE, "q", "2"); /* axis 0 must be 1 */              \
  BAD(desc.scores.k_offsets = mlk_i64(bad_k_offsets, 3), MLK_ERR_SHAPE, "k", "2");                                     \
  BAD(desc.scores.q_offsets = mlk_i64(bad_q_offsets, 0), MLK_ERR_SHAPE, "q_offsets", NULL);                            \
  BAD(desc.scores.q_offsets = mlk_i64(bad_q_offsets, 1, 3), MLK_ERR_SHAPE, "q_offsets", NULL);                         \
  BAD((desc.scores.k_offsets = mlk_i64(bad_k_offsets, 3), desc.scores.k_offsets.dtype = MLK_U8), MLK_ERR_DTYPE,        \
      "k_offsets", NULL);                                                                                              \
  FINE(desc.scores.mask = mlk_u8(bad_mask, 5));                                                                        \
  FINE(desc.scores.mask = mlk_u8(bad_mask, 2, 1, 1, 5));                                                               \
  FINE((desc.scores.window = INT64_C(1) << 60, memset(&desc.scores.alibi, 0, sizeof desc.scores.alibi),                \
        desc.scores.offset = -(INT64_C(1) << 60)));                                                                    \
  FINE((desc.scores.window = INT64_C(1) << 60, memset(&desc.scores.alibi, 0, sizeof desc.scores.alibi),                \
        desc.scores.offset = INT64_C(1) << 60));                                                                       \
  FINE(desc.scores.scale = -3);                                                                                        \
  FINE((desc.scores.k_lengths = mlk_i64(bad_lengths, 2)));                                                             \
  FINE((desc.scores.causal = -1))

/* Values of offsets and lengths: of two sequences of 3 queries and 5 keys, packed; lengths of 4 of 5. */
#define BAD_OFFSETS()                                                                                                  \
  FINE((void)0);                                                                                                       \
  FINE((desc.scores.longest_q = 3, desc.scores.longest_k = 5));                                                        \
  BAD(desc.scores.q_offsets = mlk_i64(bad_q_offsets, 4), MLK_ERR_SHAPE, "k_offsets", "3");                             \
  BAD(desc.scores.k_offsets = mlk_i64(bad_k_offsets, 2), MLK_ERR_SHAPE, "k_offsets", "1");                             \
  BAD(desc.scores.k_lengths = mlk_i64(bad_lengths, 2), MLK_ERR_ARGUMENT, "k_offsets", NULL);                           \
  BAD(desc.scores.longest_q = 7, MLK_ERR_ARGUMENT, "longest_q", "7");                                                  \
  BAD(desc.scores.longest_q = -3, MLK_ERR_ARGUMENT, "longest_q", "-3");                                                \
  BAD(desc.scores.longest_k = 11, MLK_ERR_ARGUMENT, "longest_k", "11");                                                \
  BAD_CALL(desc.scores.longest_q = 2, MLK_ERR_ARGUMENT, "q_offsets", "3", 0);                                          \
  BAD_CALL(desc.scores.longest_k = 4, MLK_ERR_ARGUMENT, "k_offsets", "5", 0);                                          \
  BAD_VALUE(bad_q_offsets[0], 1, "q_offsets", "1");                                                                    \
  BAD_VALUE(bad_q_offsets[0], -1, "q_offsets", "-1");                                                                  \
  BAD_VALUE(bad_q_offsets[1], -1, "q_offsets", "-1");                                                                  \
  BAD_VALUE(bad_q_offsets[1], 7, "q_offsets", NULL);                                                                   \
  BAD_VALUE(bad_q_offsets[2], 5, "q_offsets", "5");                                                                    \
  BAD_VALUE(bad_q_offsets[2], 7, "q_offsets", "7");                                                                    \
  BAD_VALUE(bad_q_offsets[2], INT64_MAX, "q_offsets", NULL);                                                           \
  BAD_VALUE(bad_q_offsets[1], INT64_MIN, "q_offsets", NULL);                                                           \
  BAD_VALUE(bad_k_offsets[0], 2, "k_offsets", "2");                                                                    \
  BAD_VALUE(bad_k_offsets[1], 11, "k_offsets", NULL);                                                                  \
  BAD_VALUE(bad_k_offsets[2], 9, "k_offsets", "9");                                                                    \
  BAD_VALUE(bad_k_offsets[2], 11, "k_offsets", "11")

#define BAD_LENGTHS()                                                                                                  \
  FINE((void)0);                                                                                                       \
  BAD_VALUE(bad_lengths[0], -1, "k_lengths", "-1");                                                                    \
  BAD_VALUE(bad_lengths[1], 6, "k_lengths", "6");                                                                      \
  BAD_VALUE(bad_lengths[1], INT64_MIN, "k_lengths", NULL);                                                             \
  BAD_VALUE(bad_lengths[1], INT64_MAX, "k_lengths", NULL);                                                             \
  BAD_CALL(desc.scores.longest_k = 3, MLK_ERR_ARGUMENT, "k_lengths", "4", 0);                                          \
  FINE(desc.scores.longest_k = 4)

static void good_scores(mlk_attention_scores *scores) {
  memset(scores, 0, sizeof *scores);
  scores->mask = mlk_u8(bad_mask, 2, 4, 3, 5);
  scores->bias = mlk_f32(bad_in, 4, 3, 5);
  scores->alibi = mlk_f32(bad_in, 4);
  scores->sinks = mlk_f32(bad_in, 4);
}

#define DESC mlk_attention_desc
#define WHAT ATTENTION
static void bad_attention(void) {
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  mlk_attention_desc good;
  if (!ctx) return;
  bad_memory();
  bad_reset();
  memset(&good, 0, sizeof good);
  good.q = mlk_f32(bad_in, 2, 4, 3, 6);
  good.k = mlk_f32(bad_in, 2, 2, 5, 6), good.v = mlk_f32(bad_in, 2, 2, 5, 7);
  good.out = mlk_f32(bad_out[0], 2, 4, 3, 7), good.lse = mlk_f32(bad_out[1], 2, 4, 3);
  good_scores(&good.scores);
  FINE((void)0);
  BAD_SCORES();
  BAD(desc.k.dtype = MLK_F16, MLK_ERR_DTYPE, "v", NULL); /* both alike */
  BAD(desc.v.dtype = MLK_BF16, MLK_ERR_DTYPE, "v", NULL);
  BAD((desc.k.dtype = MLK_F16, desc.v.dtype = MLK_BF16), MLK_ERR_DTYPE, "v", NULL);
  FINE((desc.k.dtype = MLK_F16, desc.v.dtype = MLK_F16));
  BAD(desc.out.data = NULL, MLK_ERR_ARGUMENT, "out", NULL);
  BAD(memset(&desc.out, 0, sizeof desc.out), MLK_ERR_ARGUMENT, "out", NULL);
  BAD_TENSOR(out, "out");
  BAD_TENSOR(lse, "lse");
  BAD_AXES(out, "out", 4);
  BAD_AXES(lse, "lse", 3);
  BAD_STRIDES(out, "out");
  BAD_STRIDES(lse, "lse");
  FINE(memset(&desc.lse, 0, sizeof desc.lse));
  /* parts */
  memset(&good.scores.sinks, 0, sizeof good.scores.sinks);
  BAD(desc.out = mlk_f32(bad_out[0], 1, 2, 4, 3, 7), MLK_ERR_SHAPE, "lse", "3");
  BAD((desc.out = mlk_f32(bad_out[0], 1, 2, 4, 3, 7), desc.lse.data = NULL), MLK_ERR_ARGUMENT, "lse", NULL);
  BAD((desc.out = mlk_f32(bad_out[0], 2, 2, 4, 3, 7), desc.lse = mlk_f32(bad_out[1], 2, 2, 4, 3)), MLK_ERR_SHAPE, "out",
      "2");
  BAD((desc.out = mlk_f32(bad_out[0], 1, 2, 4, 3, 7), desc.lse = mlk_f32(bad_out[1], 2, 2, 4, 3)), MLK_ERR_SHAPE, "lse",
      "2");
  BAD((desc.lse = mlk_f32(bad_out[1], 1, 2, 4, 3)), MLK_ERR_SHAPE, "lse", "4");
  BAD((desc.out = mlk_f32(bad_out[0], 1, 2, 4, 3, 7), desc.lse = mlk_f32(bad_out[1], 1, 2, 4, 3),
       desc.scores.sinks = mlk_f32(bad_in, 4)),
      MLK_ERR_ARGUMENT, "sinks", NULL);
  FINE((desc.out = mlk_f32(bad_out[0], 1, 2, 4, 3, 7), desc.lse = mlk_f32(bad_out[1], 1, 2, 4, 3)));

  memset(&good.scores, 0, sizeof good.scores); /* lengths, without any mask */
  good.scores.k_lengths = mlk_i64(bad_lengths, 2);
  BAD_LENGTHS();
  good.q = mlk_f32(bad_in, 1, 4, 6, 6), good.out = mlk_f32(bad_out[0], 1, 4, 6, 7); /* packed */
  good.lse = mlk_f32(bad_out[1], 1, 4, 6);
  good.k = mlk_f32(bad_in, 1, 2, 10, 6), good.v = mlk_f32(bad_in, 1, 2, 10, 7);
  memset(&good.scores, 0, sizeof good.scores);
  good.scores.q_offsets = mlk_i64(bad_q_offsets, 3), good.scores.k_offsets = mlk_i64(bad_k_offsets, 3);
  BAD_OFFSETS();
  BAD(desc.scores.k_offsets.data = NULL, MLK_ERR_SHAPE, "k", "1"); /* one sequence of keys, two of queries */
  BAD(desc.pages = mlk_i64(bad_pages, 2, 2), MLK_ERR_ARGUMENT, "k_offsets", NULL);

  good.k = mlk_f32(bad_in, 4, 2, 5, 6),
  good.v = mlk_f32(bad_in, 4, 2, 5, 7); /* four pages of five keys, two a sequence */
  memset(&good.scores.k_offsets, 0, sizeof good.scores.k_offsets);
  good.scores.k_lengths = mlk_i64(bad_lengths, 2);
  good.pages = mlk_i64(bad_pages, 2, 2);
  bad_lengths[1] = 6;
  FINE((void)0);
  FINE(desc.scores.longest_k = 6);
  FINE(desc.scores.k_lengths.data = NULL);
  BAD(desc.pages.dtype = MLK_F32, MLK_ERR_DTYPE, "pages", NULL);
  BAD(desc.pages = mlk_i64(bad_pages, 4), MLK_ERR_SHAPE, "pages", "1");
  BAD(desc.pages = mlk_i64(bad_pages, 1, 4), MLK_ERR_SHAPE, "pages", "1");
  BAD(desc.pages = mlk_i64(bad_pages, 3, 2), MLK_ERR_SHAPE, "pages", "3");
  BAD((desc.scores.longest_k = 3, desc.scores.k_lengths.data = NULL), MLK_ERR_ARGUMENT, "longest_k", "3");
  BAD(desc.scores.longest_k = 11, MLK_ERR_ARGUMENT, "longest_k", "11");
  BAD(desc.pages = mlk_i64(bad_pages, 2, INT64_C(1) << 58), MLK_ERR_SIZE, "pages", NULL);
  BAD_VALUE(bad_pages[0], -1, "pages", "-1");
  BAD_VALUE(bad_pages[2], 4, "pages", "4");
  BAD_VALUE(bad_pages[3], INT64_MAX, "pages", NULL);
  BAD_VALUE(bad_lengths[0], 11, "k_lengths", "11");
  bad_pages[1] = -7; /* behind the length of sequence 0: nobody looks */
  FINE((void)0);
  BAD_CALL(desc.scores.k_lengths.data = NULL, MLK_ERR_ARGUMENT, "pages", "-7", 0);
  mlk_close(ctx);
}
#undef DESC
#undef WHAT

#define DESC mlk_attention_grad_desc
#define WHAT GRADIENT
static void bad_gradient(void) {
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  mlk_attention_grad_desc good;
  if (!ctx) return;
  bad_memory();
  bad_reset();
  memset(&good, 0, sizeof good);
  good.q = mlk_f32(bad_in, 2, 4, 3, 6);
  good.k = mlk_f32(bad_in, 2, 2, 5, 6), good.v = mlk_f32(bad_in, 2, 2, 5, 7);
  good.out = mlk_f32(bad_in, 2, 4, 3, 7), good.lse = mlk_f32(bad_in, 2, 4, 3), good.dout = mlk_f32(bad_in, 2, 4, 3, 7);
  good.dq = mlk_f32(bad_out[0], 2, 4, 3, 6);
  good.dk = mlk_f32(bad_out[1], 2, 2, 5, 6), good.dv = mlk_f32(bad_out[2], 2, 2, 5, 7);
  good.dbias = mlk_f32(bad_out[3], 4, 3, 5), good.dsinks = mlk_f32(bad_out[4], 4);
  good_scores(&good.scores);
  FINE((void)0);
  BAD_SCORES();
  BAD((desc.k.dtype = MLK_F16, desc.v.dtype = MLK_F16), MLK_ERR_DTYPE, "k", NULL);
  BAD(desc.out.data = NULL, MLK_ERR_ARGUMENT, "out", NULL);
  BAD(desc.lse.data = NULL, MLK_ERR_ARGUMENT, "lse", NULL);
  BAD(desc.dout.data = NULL, MLK_ERR_ARGUMENT, "dout", NULL);
  BAD_TENSOR(out, "out");
  BAD_TENSOR(lse, "lse");
  BAD_TENSOR(dout, "dout");
  BAD_TENSOR(dq, "dq");
  BAD_TENSOR(dk, "dk");
  BAD_TENSOR(dv, "dv");
  BAD_TENSOR(dbias, "dbias");
  BAD_AXES(out, "out", 4);
  BAD_AXES(lse, "lse", 3);
  BAD_AXES(dout, "dout", 4);
  BAD_AXES(dq, "dq", 4);
  BAD_AXES(dk, "dk", 4);
  BAD_AXES(dv, "dv", 4);
  BAD_AXES(dbias, "dbias", 3);
  BAD_AXES(dsinks, "dsinks", 1);
  BAD_STRIDES(dq, "dq");
  BAD_STRIDES(dk, "dk");
  BAD_STRIDES(dv, "dv");
  BAD_STRIDES(dbias, "dbias");
  BAD(desc.out = mlk_f32(bad_in, 1, 2, 4, 3, 7), MLK_ERR_SHAPE, "out", "5"); /* not parts */
  BAD(desc.scores.bias.data = NULL, MLK_ERR_ARGUMENT, "dbias", NULL);
  BAD(desc.scores.sinks.data = NULL, MLK_ERR_ARGUMENT, "dsinks", NULL);
  BAD((desc.dbias = mlk_f32(bad_out[3], 1, 4, 3, 5)), MLK_ERR_SHAPE, "dbias", NULL);
  BAD((desc.dq.data = desc.dk.data = desc.dv.data = desc.dbias.data = desc.dsinks.data = NULL), MLK_ERR_ARGUMENT, "dq",
      NULL);
  FINE((desc.dq.data = desc.dk.data = desc.dv.data = desc.dbias.data = NULL));
  FINE((desc.dq.data = desc.dk.data = desc.dv.data = desc.dsinks.data = NULL));
  FINE((desc.dk.data = desc.dv.data = desc.dbias.data = desc.dsinks.data = NULL));

  memset(&good.dbias, 0, sizeof good.dbias), memset(&good.dsinks, 0, sizeof good.dsinks);
  memset(&good.scores, 0, sizeof good.scores);
  good.scores.k_lengths = mlk_i64(bad_lengths, 2);
  BAD_LENGTHS();
  good.q = mlk_f32(bad_in, 1, 4, 6, 6), good.out = good.dout = mlk_f32(bad_in, 1, 4, 6, 7);
  good.dq = mlk_f32(bad_out[0], 1, 4, 6, 6), good.lse = mlk_f32(bad_in, 1, 4, 6);
  good.k = mlk_f32(bad_in, 1, 2, 10, 6), good.v = mlk_f32(bad_in, 1, 2, 10, 7);
  good.dk = mlk_f32(bad_out[1], 1, 2, 10, 6), good.dv = mlk_f32(bad_out[2], 1, 2, 10, 7);
  memset(&good.scores, 0, sizeof good.scores);
  good.scores.q_offsets = mlk_i64(bad_q_offsets, 3), good.scores.k_offsets = mlk_i64(bad_k_offsets, 3);
  BAD_OFFSETS();
  mlk_close(ctx);
}
#undef DESC
#undef WHAT

#define DESC mlk_attention_merge_desc
#define WHAT MERGE
static void bad_merge(void) {
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  mlk_attention_merge_desc good;
  if (!ctx) return;
  bad_memory();
  bad_reset();
  memset(&good, 0, sizeof good);
  good.parts = mlk_f32(bad_in, 3, 2, 4, 3, 7), good.parts_lse = mlk_f32(bad_in, 3, 2, 4, 3);
  good.sinks = mlk_f32(bad_in, 4);
  good.out = mlk_f32(bad_out[0], 2, 4, 3, 7), good.lse = mlk_f32(bad_out[1], 2, 4, 3);
  FINE((void)0);
  FINE(memset(&desc.lse, 0, sizeof desc.lse));
  FINE(memset(&desc.sinks, 0, sizeof desc.sinks));
  BAD(desc.parts.data = NULL, MLK_ERR_ARGUMENT, "parts", NULL);
  BAD(desc.parts_lse.data = NULL, MLK_ERR_ARGUMENT, "parts_lse", NULL);
  BAD(desc.out.data = NULL, MLK_ERR_ARGUMENT, "out", NULL);
  BAD_TENSOR(parts, "parts");
  BAD_TENSOR(parts_lse, "parts_lse");
  BAD_TENSOR(out, "out");
  BAD_TENSOR(lse, "lse");
  BAD_AXES(parts_lse, "parts_lse", 4);
  BAD_AXES(out, "out", 4);
  BAD_AXES(lse, "lse", 3);
  BAD_STRIDES(out, "out");
  BAD_STRIDES(lse, "lse");
  BAD(desc.parts = mlk_f32(bad_in, 2, 4, 3, 7), MLK_ERR_SHAPE, "parts", "4");
  BAD(desc.sinks.shape[0] = 3, MLK_ERR_SHAPE, "sinks", "3");
  BAD(desc.sinks.dtype = MLK_I64, MLK_ERR_DTYPE, "sinks", NULL);
  BAD(desc.sinks = mlk_f32(bad_in, 1, 4), MLK_ERR_SHAPE, "sinks", "2");
  mlk_close(ctx);
}
#undef DESC
#undef WHAT

/* ---- aliasing ---------------------------------------------------------------------------------------------------- */

static float alias_memory[8000];

static void refuse_alias(callee what, mlk_context *ctx, const void *desc, const char *word, const char *other,
                         int line) {
  static float kept[8000];
  mlkt_note("%s, line %d", callee_names[what], line);
  memcpy(kept, alias_memory, sizeof kept);
  CHECK_STATUS(ctx, any_call(what, ctx, desc, NULL), MLK_ERR_ALIAS);
  CHECK_MSG(mlkt_has_word(mlk_last_error(ctx), word) && mlkt_has_word(mlk_last_error(ctx), other),
            "the sentence does not name %s and %s: \"%s\"", word, other, mlk_last_error(ctx));
  CHECK_MSG(memcmp(kept, alias_memory, sizeof kept) == 0, "a refused call wrote memory");
}

#define REFUSE(spoil, word, other)                                                                                     \
  do {                                                                                                                 \
    DESC desc = good;                                                                                                  \
    spoil;                                                                                                             \
    refuse_alias(WHAT, ctx, &desc, word, other, __LINE__);                                                             \
  } while (0)
#define ACCEPT(change)                                                                                                 \
  do {                                                                                                                 \
    DESC desc = good;                                                                                                  \
    change;                                                                                                            \
    mlkt_note("%s, line %d", callee_names[WHAT], __LINE__);                                                            \
    CHECK_OK(ctx, any_call(WHAT, ctx, &desc, NULL));                                                                   \
  } while (0)

/* B 1, H 2, G 1, S 4, T 5, D 3, E 3: q and out of 24 elements, k and v of 15, lse of 8. */
static void aliasing(void) {
  float *m = alias_memory;
  static float x[200];
  static int64_t offsets[2] = {0, 4}, lengths[1] = {5};
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  mlk_tensor packed = mlk_swapped(mlk_f32(m, 1, 4, 6, 3), 1, 2); /* [1, 6, 4, 3]: two heads of q, k, v, out ... */
  size_t i;
  if (!ctx) return;
  for (i = 0; i < 8000; i++) alias_memory[i] = 0.125f * (float)(i % 7);
  for (i = 0; i < 200; i++) x[i] = 0.125f * (float)(i % 5);
#define DESC mlk_attention_desc
#define WHAT ATTENTION
  {
    mlk_attention_desc good;
    memset(&good, 0, sizeof good);
    good.q = mlk_f32(x, 1, 2, 4, 3), good.k = mlk_f32(x, 1, 1, 5, 3), good.v = mlk_f32(x, 1, 1, 5, 3);
    good.out = mlk_f32(m + 1000, 1, 2, 4, 3), good.lse = mlk_f32(m + 2000, 1, 2, 4);
    REFUSE(desc.q = desc.out, "out", "q");
    REFUSE(desc.q = mlk_f32(m + 1023, 1, 2, 4, 3), "out", "q");
    REFUSE(desc.k = mlk_f32(m + 986, 1, 1, 5, 3), "out", "k");
    REFUSE(desc.v = mlk_f32(m + 1010, 1, 1, 5, 3), "out", "v");
    REFUSE(desc.scores.bias = mlk_f32(m + 1003, 5), "out", "bias");
    REFUSE(desc.scores.mask = mlk_u8((uint8_t *)(m + 1002), 5), "out", "mask");
    REFUSE(desc.scores.alibi = mlk_f32(m + 999, 2), "out", "alibi");
    REFUSE(desc.scores.sinks = mlk_f32(m + 1023, 2), "out", "sinks");
    REFUSE(desc.scores.q_offsets = mlk_i64((int64_t *)(void *)(m + 1000), 2), "out", "q_offsets");
    REFUSE(desc.scores.k_offsets = mlk_i64((int64_t *)(void *)(m + 1002), 2), "out", "k_offsets");
    REFUSE(desc.scores.k_lengths = mlk_i64((int64_t *)(void *)(m + 1004), 1), "out", "k_lengths");
    REFUSE((desc.pages = mlk_i64((int64_t *)(void *)(m + 1004), 1, 1)), "out", "pages");
    REFUSE(desc.lse = mlk_f32(m + 1020, 1, 2, 4), "lse", "out");
    REFUSE(desc.lse = mlk_f32(x, 1, 2, 4), "lse", "q");
    REFUSE(desc.q = mlk_f32(m + 2007, 1, 2, 4, 3), "lse", "q");
    REFUSE(desc.scores.sinks = mlk_f32(m + 2001, 2), "lse", "sinks");
    ACCEPT(desc.q = mlk_f32(m + 1024, 1, 2, 4, 3)); /* right behind */
    ACCEPT(desc.q = mlk_f32(m + 976, 1, 2, 4, 3));  /* right before */
    ACCEPT(desc.lse = mlk_f32(m + 1024, 1, 2, 4));
    ACCEPT((desc.scores.q_offsets = mlk_i64(offsets, 2), desc.scores.k_lengths = mlk_i64(lengths, 1)));
    /* heads of one packed tensor: out lies between q, k and v */
    ACCEPT((desc.q = mlk_slice(packed, 1, 0, 2), desc.k = mlk_slice(packed, 1, 2, 1),
            desc.v = mlk_slice(packed, 1, 3, 1), desc.out = mlk_slice(packed, 1, 4, 2)));
    REFUSE((desc.q = mlk_slice(packed, 1, 0, 2), desc.k = mlk_slice(packed, 1, 2, 1),
            desc.v = mlk_slice(packed, 1, 3, 1), desc.out = mlk_slice(packed, 1, 3, 2)),
           "out", "v");
  }
#undef DESC
#undef WHAT
#define DESC mlk_attention_grad_desc
#define WHAT GRADIENT
  {
    mlk_attention_grad_desc good;
    memset(&good, 0, sizeof good);
    good.q = good.out = good.dout = mlk_f32(x, 1, 2, 4, 3), good.k = good.v = mlk_f32(x, 1, 1, 5, 3);
    good.lse = mlk_f32(x, 1, 2, 4);
    good.scores.bias = mlk_f32(x, 5), good.scores.sinks = mlk_f32(x, 2);
    good.dq = mlk_f32(m + 1000, 1, 2, 4, 3), good.dk = mlk_f32(m + 2000, 1, 1, 5, 3);
    good.dv = mlk_f32(m + 3000, 1, 1, 5, 3), good.dbias = mlk_f32(m + 4000, 5), good.dsinks = mlk_f32(m + 5000, 2);
    ACCEPT((void)0);
    REFUSE(desc.q = desc.dq, "dq", "q");
    REFUSE(desc.k = mlk_f32(m + 1014, 1, 1, 5, 3), "dq", "k");
    REFUSE(desc.dout = desc.dq, "dq", "dout");
    REFUSE(desc.out = mlk_f32(m + 2014, 1, 2, 4, 3), "dk", "out");
    REFUSE(desc.lse = mlk_f32(m + 2993, 1, 2, 4), "dv", "lse");
    REFUSE(desc.dk = mlk_f32(m + 1023, 1, 1, 5, 3), "dk", "dq");
    REFUSE(desc.dv = desc.dk, "dv", "dk");
    REFUSE(desc.dbias = mlk_f32(m + 3010, 5), "dbias", "dv");
    REFUSE(desc.scores.bias = mlk_f32(m + 4004, 5), "dbias", "bias");
    REFUSE(desc.dsinks = mlk_f32(m + 4004, 2), "dsinks", "dbias");
    REFUSE((desc.dsinks = mlk_f32(m + 6000, 2), desc.scores.sinks = mlk_f32(m + 6001, 2)), "dsinks", "sinks");
    ACCEPT(desc.dv = mlk_f32(m + 2015, 1, 1, 5, 3));
    ACCEPT((desc.dq = mlk_slice(packed, 1, 0, 2), desc.dout = mlk_slice(packed, 1, 2, 2)));
  }
#undef DESC
#undef WHAT
#define DESC mlk_attention_merge_desc
#define WHAT MERGE
  {
    mlk_attention_merge_desc good;
    memset(&good, 0, sizeof good);
    good.parts = mlk_f32(x, 2, 1, 2, 4, 3), good.parts_lse = mlk_f32(x, 2, 1, 2, 4);
    good.out = mlk_f32(m + 1000, 1, 2, 4, 3), good.lse = mlk_f32(m + 2000, 1, 2, 4);
    REFUSE(desc.parts = mlk_f32(m + 1000, 2, 1, 2, 4, 3), "out", "parts"); /* not even its first part */
    REFUSE(desc.parts_lse = mlk_f32(m + 990, 2, 1, 2, 4), "out", "parts_lse");
    REFUSE(desc.sinks = mlk_f32(m + 2007, 2), "lse", "sinks");
    REFUSE(desc.lse = mlk_f32(m + 999, 1, 2, 4), "lse", "out");
    ACCEPT(desc.parts = mlk_f32(m + 1024, 2, 1, 2, 4, 3));
  }
#undef DESC
#undef WHAT
  mlk_close(ctx);
}

/* ---- plans, memory ----------------------------------------------------------------------------------------------- */

/* Pairs that causal and window leave, all sequences at their longest: a loop over them. */
static uint64_t count_pairs(const problem *p) {
  const setup *s = &p->s;
  uint64_t pairs = 0;
  int64_t i, j;
  for (i = 0; i < p->longest_q; i++) {
    const int64_t position = i + p->longest_k - p->longest_q + s->offset;
    for (j = 0; j < p->longest_k; j++)
      pairs += !(s->causal && j > position) && !(s->window && distance_of(position, j) >= s->window);
  }
  return pairs * (uint64_t)(s->b * s->h);
}

/* One problem on a fresh context: exact flops and bytes, the plan's workspace and not a byte more, a workspace that is
   fixed and one byte too small, every allocation failing in turn. */
static void plan_problem(problem *p, mlk_isa isa, int threads, int fail) {
  const setup *s = &p->s;
  const int64_t per_pair = p->what == FORWARD ? s->d + s->e : 3 * s->d + 2 * s->e;
  mlk_context_desc context = mlkt_context_desc(isa, threads);
  mlkt_memory memory;
  mlk_context *ctx = NULL;
  mlk_plan plan;
  mlk_info info;
  uint64_t opened, calls, bytes = 0, number;
  const int device = mlkt_opt.cuda && isa != MLK_ISA_REFERENCE;
  char size[32];
  int i, planned;
  for (i = 0; i < OPERANDS; i++) bytes += p->o[i].present ? p->o[i].count * p->o[i].width : 0;
  memset(&memory, 0, sizeof memory);
  context.allocator = mlkt_memory_hook(&memory);
  if (!CHECK_STATUS(NULL, mlk_open(&ctx, &context), MLK_OK)) return;
  opened = memory.live_bytes;
  calls = memory.calls;
  memset(&plan, 0xFE, sizeof plan);
  planned = CHECK_OK(ctx, call(p, ctx, &plan));
  if (planned) {
    CHECK_EQ_I64(plan.flops, 2 * (uint64_t)per_pair * count_pairs(p));
    CHECK_EQ_I64(plan.bytes, bytes);
    CHECK_EQ_STR(plan.backend, device ? "cuda" : "cpu");
    if (!device) CHECK_EQ_STR(plan.isa, mlk_isa_name(isa));
    CHECK(plan.variant && plan.variant[0]);
    CHECK(plan.threads >= (device ? 0 : 1) && (device || plan.threads <= threads)); /* or launches */
    CHECK(device ? plan.seconds > 0 || plan.threads == 0 : plan.seconds == 0);
    CHECK_EQ_I64(memory.calls, calls);
  }
  if (device) { /* a device's workspace is not this allocator's, see test_cuda_calls.c */
    mlk_close(ctx);
    CHECK_MEMORY_EMPTY(&memory);
    return;
  }
  if (planned) {
    run_problem(p, ctx);
    CHECK_EQ_I64(memory.live_bytes - opened, plan.workspace_bytes);
    CHECK_EQ_I64(memory.peak_bytes - opened, plan.workspace_bytes);
    calls = memory.calls;
    run_problem(p, ctx); /* with a used workspace */
    CHECK_EQ_I64(memory.calls, calls);
  }
  mlk_close(ctx);
  CHECK_MEMORY_EMPTY(&memory);
  if (!fail || plan.workspace_bytes == 0) return;

  context.growth = MLK_FIXED;
  if (CHECK_STATUS(NULL, mlk_open(&ctx, &context), MLK_OK)) {
    CHECK_OK(ctx, mlk_reserve(ctx, plan.workspace_bytes - 1, MLK_FIXED));
    CHECK_OK(ctx, mlk_get_info(ctx, &info));
    if (info.workspace_bytes < plan.workspace_bytes) {
      reset_outputs(p);
      CHECK_STATUS(ctx, call(p, ctx, NULL), MLK_ERR_WORKSPACE);
      snprintf(size, sizeof size, "%" PRIu64, plan.workspace_bytes);
      CHECK_MSG(strstr(mlk_last_error(ctx), size) != NULL, "the sentence does not tell %s: \"%s\"", size,
                mlk_last_error(ctx));
      CHECK_MSG(outputs_untouched(p), "a refused call wrote its output");
    }
    CHECK_OK(ctx, mlk_reserve(ctx, plan.workspace_bytes, MLK_FIXED));
    calls = memory.calls;
    run_problem(p, ctx);
    CHECK_EQ_I64(memory.calls, calls);
    mlk_close(ctx);
  }
  CHECK_MEMORY_EMPTY(&memory);

  context.growth = MLK_GROWS;
  for (number = 1; number < 100; number++) {
    memset(&memory, 0, sizeof memory);
    if (!CHECK_STATUS(NULL, mlk_open(&ctx, &context), MLK_OK)) break;
    memory.fail_at = memory.calls + number;
    reset_outputs(p);
    if (call(p, ctx, NULL) == MLK_OK) {
      CHECK_EQ_I64(memory.failed, 0);
    } else {
      CHECK_EQ_I64(memory.failed, 1);
      CHECK_MSG(mlk_last_error(ctx)[0] != 0, "failed without a sentence");
      CHECK_MSG(outputs_untouched(p), "a failed call wrote its output");
      run_problem(p, ctx); /* memory is back */
    }
    mlk_close(ctx);
    CHECK_MEMORY_EMPTY(&memory);
    if (!memory.failed) break;
  }
  CHECK_MSG(number > 1 && number < 100, "with a workspace, some allocation must have failed");
}

static void plans(void) {
  static const int64_t queries[] = {0, 1, 5, 17, 40, 130}, keys[] = {0, 1, 5, 17, 40, 130, 600, 4200};
  problem p;
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = mlkt_isas(isas);
  uint64_t index;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 300 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const op what = index % 3 == 2 ? BACKWARD : FORWARD;
    const mlk_isa isa = index % 16 == 5 ? MLK_ISA_REFERENCE : isas[index % (uint64_t)count];
    const int threads = isa == MLK_ISA_REFERENCE ? 1 : 1 + (int)(index / 3 % (uint64_t)mlkt_opt.threads_max);
    setup s = any_features(queries[mlkt_u64(&rng) % 6], keys[mlkt_u64(&rng) % 8], 1e5, &rng);
    if (what == BACKWARD) s.dtype = MLK_F32, s.keys = s.keys == KEYS_PAGES ? KEYS_LENGTHS : s.keys;
    if (!mlkt_keep(index) || macs_of(&s) > 5e5) continue;
    problem_shape(&p, what, &s, &rng);
    problem_fill(&p, SIGNED, &rng);
    if (!forward_first(&p)) break;
    oracle(&p);
    problem_layout(&p, FORM_COUNT, &rng);
    note_problem(&p, "plan", isa, threads, "");
    plan_problem(&p, isa, threads, index % 3 == 0 || index % 9 == 2);
  }
  crew_close();
  problem_free(&p);
}

/* Operands need not be there for a plan; workspace does not hold scores, nor grow with the batch. */
static void plans_of_large_calls(void) {
  enum { D = 64 };
  float *nowhere = (float *)(uintptr_t)4096;
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 4);
  uint64_t before[2] = {0, 0};
  int64_t b, s;
  if (!ctx) return;
  for (b = 1; b <= 4096; b *= 64)
    for (s = 512; s <= 131072; s *= 16) {
      const uint64_t pairs = (uint64_t)(b * 8) * (uint64_t)s * (uint64_t)(s + 1) / 2;
      const uint64_t head = (uint64_t)s * 2 * D * 4;
      uint64_t most;
      mlk_attention_desc desc;
      mlk_attention_grad_desc grad;
      mlk_plan plan[2];
      int i;
      if (mlkt_opt.cuda && b > 64 && s > 512) continue; /* more than a device's memory */
      memset(&desc, 0, sizeof desc), memset(&grad, 0, sizeof grad), memset(plan, 0, sizeof plan);
      desc.q = desc.out = grad.q = grad.out = grad.dout = grad.dq = mlk_f32(nowhere, b, 8, s, D);
      desc.k = desc.v = grad.k = grad.v = grad.dk = grad.dv = mlk_f32(nowhere, b, 2, s, D);
      desc.lse = grad.lse = mlk_f32(nowhere, b, 8, s);
      desc.scores.causal = grad.scores.causal = 1;
      CHECK_OK(ctx, mlk_attention_plan(ctx, &desc, &plan[0]));
      CHECK_OK(ctx, mlk_attention_grad_plan(ctx, &grad, &plan[1]));
      for (i = 0; i < 2; i++) {
        mlkt_note("%s, B %d, S %d", i ? "gradient" : "forward", (int)b, (int)s);
        CHECK_EQ_I64(plan[i].flops, 2 * pairs * (uint64_t)(i ? 5 * D : 2 * D));
        /* packed operands of some key heads, at most so much or one head: K and V, of the gradient K twice, and Q and
           dout twice for four query heads; an eighth for rounding; then what each task has of its own, of the gradient
           dq of a head */
        most = i ? 10 * head : head;
        most = (uint64_t)largest((int64_t)(most + most / 8), INT64_C(64) << (i ? 22 : 20));
        most += 4 * ((i ? 2 * head : 0) + (UINT64_C(4) << 20));
        if (mlkt_opt.cuda) { /* states of the tiles at hand, and of the gradient 8 bytes a row */
          most = (UINT64_C(64) << 20) + (i ? 8 * (uint64_t)(b * 8 * s) : 0);
          CHECK_MSG(plan[i].workspace_bytes <= most, "%" PRIu64 " bytes of workspace", plan[i].workspace_bytes);
          continue;
        }
        CHECK_MSG(plan[i].workspace_bytes <= most, "%" PRIu64 " bytes of workspace, K and V of a head have %" PRIu64,
                  plan[i].workspace_bytes, head);
        if (b > 64 && s == 512)
          CHECK_MSG(plan[i].workspace_bytes <= before[i] + (UINT64_C(1) << 20),
                    "grows with the batch: %" PRIu64 ", %" PRIu64, plan[i].workspace_bytes, before[i]);
        if (s == 512) before[i] = plan[i].workspace_bytes;
      }
    }
  mlk_close(ctx);
}

/* Few queries over many keys on many threads: states of blocks keep to the bound of packed operands. */
static void plans_of_decoding(void) {
  static const int64_t queries[] = {1, 4, 28, 200}, batches[] = {1, 8, 200};
  enum { D = 128, T = 131072, HEAD = T * 2 * D * 4 };
  float *nowhere = (float *)(uintptr_t)4096;
  int threads, i, j;
  for (threads = 1; threads <= 64; threads *= 8) {
    mlk_context_desc context = mlkt_context_desc(MLK_ISA_BEST, threads);
    mlk_context *ctx = NULL;
    context.parallel = mlkt_parallel_serial(threads);
    if (!CHECK_STATUS(NULL, mlk_open(&ctx, &context), MLK_OK)) return;
    for (i = 0; i < 4; i++)
      for (j = 0; j < 3; j++) {
        mlk_attention_desc desc;
        mlk_plan plan;
        memset(&desc, 0, sizeof desc), memset(&plan, 0, sizeof plan);
        desc.q = desc.out = mlk_f32(nowhere, batches[j], 64, queries[i], D);
        desc.k = desc.v = mlk_f32(nowhere, batches[j], 8, T, D);
        mlkt_note("threads %d, B %d, S %d", threads, (int)batches[j], (int)queries[i]);
        CHECK_OK(ctx, mlk_attention_plan(ctx, &desc, &plan));
        if (mlkt_opt.cuda) { /* states of blocks: a 64th of K and V at most; kernels are few */
          CHECK_MSG(plan.workspace_bytes <= (uint64_t)batches[j] * 8 * HEAD / 64 * (uint64_t)(queries[i] < 8 ? 8 : 28),
                    "workspace %" PRIu64, plan.workspace_bytes);
          CHECK_MSG(plan.threads == 1 || plan.threads == 2, "%d kernels", plan.threads);
          continue;
        }
        CHECK_MSG(plan.workspace_bytes <= (uint64_t)HEAD + HEAD / 8 + ((uint64_t)threads << 21), "workspace %" PRIu64,
                  plan.workspace_bytes);
        CHECK_MSG(plan.threads == threads, "only %d tasks", plan.threads);
      }
    mlk_close(ctx);
  }
}

/* Sizes whose products do not fit are refused before memory is touched; the plan tells the figures that do. */
static void sizes(void) {
  static const int64_t edges[] = {
      0, 1, 3, 65536, INT64_C(2147483648), INT64_C(4294967297), INT64_C(1) << 40, INT64_C(1) << 61, INT64_MAX, -1};
  enum { EDGES = (int)(sizeof edges / sizeof edges[0]) };
  float *nowhere = (float *)(uintptr_t)4096;
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  int i, j, k, what, accepted = 0;
  if (!ctx) return;
  for (i = 0; i < EDGES; i++)
    for (j = 0; j < EDGES; j++)
      for (k = 0; k < EDGES && !mlkt_hopeless(); k++) {
        const int64_t b = edges[i], s = edges[j], t = edges[k];
        const double rows = (double)b * (double)s, work = 2.0 * rows * (double)t * 16;
        /* may be refused; a device counts along each axis in 31 bits, and its memory ends */
        const double most = mlkt_opt.cuda && (double)largest(b, 1) * (double)largest(s, 1) * (double)largest(t, 1) > 2e9
                                ? 4e18
                                : (double)largest(b, 1) * (double)largest(s, 1) * (double)largest(t, 1) * 40;
        mlk_attention_desc desc;
        mlk_attention_grad_desc grad;
        mlk_attention_merge_desc merge;
        memset(&desc, 0, sizeof desc), memset(&grad, 0, sizeof grad), memset(&merge, 0, sizeof merge);
        desc.q = desc.out = grad.q = grad.out = grad.dout = grad.dq = mlk_f32(nowhere, b, 1, s, 8);
        desc.k = desc.v = grad.k = grad.v = grad.dk = grad.dv = mlk_f32(nowhere, b, 1, t, 8);
        grad.lse = mlk_f32(nowhere, b, 1, s);
        merge.parts = mlk_f32(nowhere, t, b, 1, s, 8), merge.parts_lse = mlk_f32(nowhere, t, b, 1, s);
        merge.out = mlk_f32(nowhere, b, 1, s, 8);
        for (what = 0; what < CALLEES; what++) {
          const void *call_desc = what == ATTENTION  ? (const void *)&desc
                                  : what == GRADIENT ? (const void *)&grad
                                                     : (const void *)&merge;
          mlk_plan plan;
          mlk_status status = any_call((callee)what, ctx, call_desc, &plan);
          mlkt_note("%s: B %" PRId64 ", S %" PRId64 ", T %" PRId64, callee_names[what], b, s, t);
          if (b < 0 || s < 0 || t < 0)
            CHECK_STATUS(ctx, status, status == MLK_ERR_SIZE ? MLK_ERR_SIZE : MLK_ERR_SHAPE);
          else if (status == MLK_OK) {
            const double flops = what == ATTENTION ? work : 2.5 * work;
            CHECK_MSG((what == MERGE || work < 1.9e19) && rows < 2.4e18, "figures that do not fit were accepted");
            if (what != MERGE)
              CHECK_MSG(fabs((double)plan.flops - flops) <= 1e-9 * flops, "flops %" PRIu64 ", expected %g", plan.flops,
                        flops);
            accepted++;
          } else {
            CHECK_STATUS(ctx, status, MLK_ERR_SIZE);
            CHECK_MSG(most >= 4e18, "sizes that fit were refused: %s", mlk_last_error(ctx));
            status = any_call((callee)what, ctx, call_desc, NULL); /* before memory is touched; all operands are one */
            CHECK_STATUS(ctx, status, status == MLK_ERR_ALIAS ? MLK_ERR_ALIAS : MLK_ERR_SIZE);
          }
        }
      }
  CHECK(accepted > 100);
  for (i = 0; i < EDGES; i++)
    for (j = 0; j < EDGES && !mlkt_hopeless(); j++) { /* sizes of a head */
      const int64_t d = edges[i], e = edges[j];
      mlk_attention_desc desc;
      mlk_attention_grad_desc grad;
      memset(&desc, 0, sizeof desc), memset(&grad, 0, sizeof grad);
      desc.q = grad.q = grad.dq = mlk_f32(nowhere, 1, 1, 3, d),
      desc.k = grad.k = grad.dk = mlk_f32(nowhere, 1, 1, 5, d);
      desc.v = grad.v = grad.dv = mlk_f32(nowhere, 1, 1, 5, e);
      desc.out = grad.out = grad.dout = mlk_f32(nowhere, 1, 1, 3, e), grad.lse = mlk_f32(nowhere, 1, 1, 3);
      for (what = ATTENTION; what <= GRADIENT; what++) {
        mlk_plan plan;
        const mlk_status status = any_call((callee)what, ctx, what == ATTENTION ? (void *)&desc : (void *)&grad, &plan);
        mlkt_note("%s: D %" PRId64 ", E %" PRId64, callee_names[what], d, e);
        if (d < 1 || e < 0) {
          CHECK_STATUS(ctx, status, status == MLK_ERR_SIZE ? MLK_ERR_SIZE : MLK_ERR_SHAPE);
        } else if (status == MLK_OK) {
          CHECK_EQ_I64(plan.flops, 2 * 15 * (what == ATTENTION ? (uint64_t)(d + e) : (uint64_t)(3 * d + 2 * e)));
          CHECK_MSG(plan.workspace_bytes < UINT64_C(1) << 62, "workspace %" PRIu64, plan.workspace_bytes);
        } else {
          CHECK_STATUS(ctx, status, MLK_ERR_SIZE);
          CHECK_MSG(largest(d, e) > (mlkt_opt.cuda ? INT64_C(2147000000) : INT64_C(1) << 31),
                    "sizes that fit were refused: %s", mlk_last_error(ctx));
        }
      }
    }
  mlk_close(ctx);
}

const mlkt_case mlkt_attention_calls_cases[] = {{"attention/bad_attention", bad_attention},
                                                {"attention/bad_gradient", bad_gradient},
                                                {"attention/bad_merge", bad_merge},
                                                {"attention/aliasing", aliasing},
                                                {"attention/plans", plans},
                                                {"attention/plans_of_large_calls", plans_of_large_calls},
                                                {"attention/plans_of_decoding", plans_of_decoding},
                                                {"attention/sizes", sizes},
                                                {NULL, NULL}};
