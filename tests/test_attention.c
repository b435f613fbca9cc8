/* test_attention.c - attention, its gradient, the merge of parts: every kind of mask, position, length and layout against the
   oracle on every row; bits that must not move; special values; bad arguments, aliasing, plans and memory. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "attention_problem.h"

/* ---- every combination, on small shapes -------------------------------------------------------------------------------- */

enum {
  MASK_KINDS = 4,
  POSITIONS = 4,
  WINDOWS = 3,
  GROUPINGS = 3,
  LENGTH_KINDS = 6,
  SCORE_KINDS = 8,
  COMBINATIONS = MASK_KINDS * POSITIONS * WINDOWS * GROUPINGS * LENGTH_KINDS * SCORE_KINDS
};

/* Combination number n of mask, position, window, grouping, lengths, and what is done to scores. */
static setup combination(int n, mlkt_rng *rng) {
  static const int64_t offsets[POSITIONS] = {0, 0, -2, 3}, windows[WINDOWS] = {0, 1, 5};
  static const int64_t heads[GROUPINGS] = {2, 4, 3}, groups[GROUPINGS] = {2, 2, 1};
  static const key_kind keys[LENGTH_KINDS] = {KEYS_DENSE, KEYS_LENGTHS, KEYS_OFFSETS,
                                              KEYS_PAGES, KEYS_PAGES,   KEYS_PAGES};
  static const int64_t pages[LENGTH_KINDS] = {0, 0, 0, 1, 3, 16};
  static const int64_t lengths[] = {0, 1, 2, 7, 17}, sizes[] = {1, 3, 8, 20};
  setup s = setup_new(mlkt_int(rng, 1, 3), 0, 0, lengths[mlkt_u64(rng) % 5], lengths[mlkt_u64(rng) % 5],
                      sizes[mlkt_u64(rng) % 4], sizes[mlkt_u64(rng) % 4]);
  const uint64_t dice = mlkt_u64(rng);
  s.masks = n % MASK_KINDS, n /= MASK_KINDS;
  s.offset = offsets[n % POSITIONS], s.causal = n % POSITIONS != 0, n /= POSITIONS;
  s.window = windows[n % WINDOWS], n /= WINDOWS;
  s.h = heads[n % GROUPINGS], s.g = groups[n % GROUPINGS], n /= GROUPINGS;
  s.keys = keys[n % LENGTH_KINDS], s.page = pages[n % LENGTH_KINDS];
  s.q_ragged = s.keys == KEYS_OFFSETS || (s.keys != KEYS_DENSE && dice % 3 == 0), n /= LENGTH_KINDS;
  s.softcap = n & 1 ? 1.5f : 0, s.alibi = n >> 1 & 1, s.sinks = n >> 2 & 1;
  s.page_lengths = dice >> 8 & 1;
  s.told = dice >> 9 & 1;
  s.broad = dice >> 10 & 1 ? 15 : (int)(dice >> 16 & 31);
  s.scale = dice >> 11 & 1 ? 0 : 0.37f;
  s.no_lse = (dice >> 24) % 4 == 0;
  if (!s.causal && (dice >> 32) % 4 == 0) s.offset = mlkt_int(rng, -4, 4); /* it moves alibi and window as well */
  if ((dice >> 40) % 4 == 0) s.dtype = dice >> 48 & 1 ? MLK_F16 : MLK_BF16;
  if ((dice >> 52) % 24 == 0) s.e = 0;
  if ((dice >> 57) % 48 == 0) s.b = 0;
  return s;
}

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

const mlkt_case mlkt_attention_cases[] = {
    {"attention/combinations", combinations}, {"attention/combinations_grad", combinations_grad}, {NULL, NULL}};
