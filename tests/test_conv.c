/* test_conv.c - convolution, its gradients, transposed convolution: every kind of layer against the oracle on every
   row, epilogues, packed weights, bad arguments, aliasing, plans and memory. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "conv_problem.h"

/* ---- exact-integer sweeps: compared with == (bit patterns) ------------------------------------------------------- */

static void sweep_layer(problem *p, op what, const layer *l, values kind, int forms, uint64_t index,
                        mlkt_buffer *panels) {
  mlkt_rng rng = point_rng(index + 500009);
  int i;
  problem_shape(p, what, l, &rng);
  if (mlkt_u64(&rng) % 2) problem_epilogue(p, &rng);
  problem_fill(p, kind, &rng);
  reference(p);
  for (i = 0; i < forms; i++) {
    const form f = (form)((index + (uint64_t)i * 5) % (FORM_COUNT + 1)); /* FORM_COUNT: each operand its own */
    problem_layout(p, f, &rng);
    problem_images(p);
    every_row(p, index + (uint64_t)i, "sweep", form_names[f], panels);
  }
}

/* Layers of every kind; the values' kind turns with the point: exact integers in every second. */
static void sweep(op what, uint64_t points, double macs) {
  problem p;
  mlkt_buffer panels = {NULL, 0, NULL, 0};
  uint64_t index;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < points && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const layer l = layer_random(&rng, index % 16 == 0 ? macs * 8 : macs);
    const values kind = index % 2 ? INTEGERS : (values)(SIGNED + index / 2 % 4);
    if (mlkt_keep(index)) sweep_layer(&p, what, &l, kind, 2, index, &panels);
  }
  crew_close();
  mlkt_buffer_free(&panels);
  problem_free(&p);
}

static void sweep_conv(void) { sweep(CONV, 2000, 2e4); }
static void sweep_grad_input(void) { sweep(GRAD_INPUT, 2000, 2e4); }
static void sweep_grad_weights(void) { sweep(GRAD_WEIGHTS, 1500, 2e4); }

/* Every filter 1..7, stride 1..3, dilation 1..3 and some paddings on one axis, with sizes around the edges. */
static void geometries(void) {
  static const int64_t ins[] = {1, 2, 3, 7, 16, 17, 33};
  problem p;
  uint64_t index = 0;
  int64_t filter, stride, dilation, before, after;
  int i, what;
  memset(&p, 0, sizeof p);
  crew_open();
  for (filter = 1; filter <= 7; filter++)
    for (stride = 1; stride <= 3; stride++)
      for (dilation = 1; dilation <= 3; dilation++)
        for (before = 0; before <= 9; before += before < 2 ? 1 : 7)
          for (after = 0; after <= 8; after += after < 1 ? 1 : 7)
            for (i = 0; i < 7 && !mlkt_hopeless(); i++, index++) {
              mlkt_rng rng = point_rng(index);
              layer l = layer_new(1, 1 + (int64_t)(index % 2), mlkt_int(&rng, 1, 9), mlkt_int(&rng, 1, 9), 1);
              if (!mlkt_keep(index)) continue;
              if (index % 3 == 0) l.groups = l.c = mlkt_int(&rng, 1, 20), l.k = l.c * (1 + (int64_t)(index % 2));
              l.in[0] = ins[i], l.filter[0] = filter, l.stride[0] = stride, l.dilation[0] = dilation;
              l.before[0] = before, l.after[0] = after;
              what = (int)(index % OPS);
              sweep_layer(&p, (op)what, &l, INTEGERS, 1, index, NULL);
            }
  crew_close();
  problem_free(&p);
}

/* Channels around the widths of registers and tiles, 3x3 and 1x1, depthwise and dense. */
static void channel_edges(void) {
  static const int64_t channels[] = {1,  2,  3,  4,  5,  7,  8,  9,  12, 15, 16, 17,
                                     24, 31, 32, 33, 47, 48, 49, 63, 64, 65, 70};
  enum { COUNT = (int)(sizeof channels / sizeof channels[0]) };
  problem p;
  mlkt_buffer panels = {NULL, 0, NULL, 0};
  uint64_t index = 0;
  int i, j;
  memset(&p, 0, sizeof p);
  crew_open();
  for (i = 0; i < COUNT; i++)
    for (j = 0; j <= COUNT && !mlkt_hopeless(); j++, index++) { /* j = COUNT: depthwise */
      const int64_t c = channels[i], k = j < COUNT ? channels[j] : c;
      layer l = layer_cube(2, 1, c, k, j < COUNT ? 1 : c, index % 3 ? 5 : 7, index % 3 ? 3 : 1, 1, index % 3 ? 1 : 0);
      l.in[1] = 1 + (int64_t)(index * 7 % 11);
      if (!mlkt_keep(index)) continue;
      sweep_layer(&p, (op)(index / 2 % OPS), &l, index % 2 ? INTEGERS : SIGNED, 1, index, &panels);
    }
  crew_close();
  mlkt_buffer_free(&panels);
  problem_free(&p);
}

/* Inputs whose axes repeat by a stride of 0 read as if they were written out. */
static void repeated_inputs(void) {
  problem p;
  uint64_t index;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 240 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const layer l = layer_random(&rng, 2e4);
    const op what = (op)(index % OPS);
    operand *o;
    int axis;
    size_t i, inner = 1, size;
    if (!mlkt_keep(index)) continue;
    problem_shape(&p, what, &l, &rng);
    o = what == CONV         ? (index % 2 ? &p.x : &p.w)
        : what == GRAD_INPUT ? (index % 2 ? &p.y : &p.w)
        : index % 2          ? &p.x
                             : &p.y;
    axis = (int)mlkt_int(&rng, 0, o->rank - 1);
    size = (size_t)o->shape[axis];
    for (i = (size_t)axis + 1; i < AXES; i++) inner *= (size_t)o->shape[i];
    if (o->count / greatest(size, 1) < 2) continue; /* another axis must have a stride, lest all are zero */
    problem_fill(&p, INTEGERS, &rng);
    for (i = 0; i < o->count; i++) o->dense[i] = o->dense[i / (inner * size) * (inner * size) + i % inner];
    reference(&p);
    problem_layout(&p, FORM_PADDED, &rng);
    problem_images(&p);
    o->view.stride[axis] = 0;
    for (i = 0; i < (size_t)o->rank; i++)
      if (o->shape[i] == 1) o->view.stride[i] = 1;
    every_row(&p, index, "repeated", axis == 0 ? "axis 0" : axis == 1 ? "axis 1" : "a spatial axis", NULL);
  }
  crew_close();
  problem_free(&p);
}

/* ---- epilogues --------------------------------------------------------------------------------------------------- */

static void epilogues(void) {
  static const float scalars[] = {0.0f, 1.0f, -2.5f};
  problem p;
  mlkt_buffer panels = {NULL, 0, NULL, 0};
  uint64_t index = 0;
  int activation, alpha, beta, bias, residual, preact;
  memset(&p, 0, sizeof p);
  crew_open();
  for (activation = 0; activation < MLK_ACTIVATION_COUNT; activation++)
    for (alpha = -1; alpha < 3; alpha++)
      for (beta = -1; beta < 3; beta++)
        for (bias = 0; bias < 2; bias++)
          for (residual = 0; residual < 3; residual++)
            for (preact = 0; preact < 2 && !mlkt_hopeless(); preact++, index++) {
              mlkt_rng rng = point_rng(index);
              const layer l = layer_random(&rng, index % 16 ? 4e3 : 4e5);
              size_t i;
              if (!mlkt_keep(index)) continue;
              problem_shape(&p, index / 2 % 2 ? CONV : GRAD_INPUT, &l, &rng);
              p.activation = (mlk_activation)activation;
              if (alpha >= 0) p.alpha_value = scalars[alpha], p.alpha = &p.alpha_value;
              if (beta >= 0) p.beta_value = scalars[beta], p.beta = &p.beta_value;
              if (bias) shape_bias(&p);
              if (residual == 1) shape_like_out(&p, &p.residual);
              p.residual_is_out = residual == 2;
              if (preact) shape_like_out(&p, &p.preact);
              problem_fill(&p, SIGNED, &rng);
              for (i = 0; i < p.w.count; i++) p.w.dense[i] *= index % 3 == 0 ? 6.0f : 1.0f; /* far into both tails */
              reference(&p);
              problem_layout(&p, FORM_COUNT, &rng);
              problem_images(&p);
              every_row(&p, index, "epilogue", "", &panels);
            }
  crew_close();
  mlkt_buffer_free(&panels);
  problem_free(&p);
}

/* alpha = 0 does not read X and W: they point nowhere. */
static void not_read(void) {
  enum { N = 2, C = 5, K = 18, SIZE = 9 };
  const float zero = 0.0f, minus_zero = -0.0f;
  float *nowhere = (float *)(uintptr_t)4096; /* reading it ends the test */
  static float out[N * K * SIZE * SIZE], bias[K], want[N * K * SIZE * SIZE];
  int r, sign, what;
  size_t i;
  for (i = 0; i < K; i++) bias[i] = (float)i - 3;
  for (i = 0; i < N * K * SIZE * SIZE; i++) want[i] = bias[i / (SIZE * SIZE) % K];
  crew_open();
  for (r = 0; r < crew.rows; r++)
    for (sign = 0; sign < 2; sign++)
      for (what = CONV; what <= GRAD_INPUT; what++) {
        mlk_context *ctx = crew_get(crew.isas[r], crew_threads(1));
        if (!ctx) continue;
        mlkt_note("%s, isa %s", op_names[what], mlk_isa_name(crew.isas[r]));
        mlkt_rogue_f32(out, N * K * SIZE * SIZE); /* quiet NaNs, and beta is absent */
        if (what == CONV) {
          mlk_conv_desc desc;
          memset(&desc, 0, sizeof desc);
          desc.x = mlk_f32(nowhere, N, C, SIZE, SIZE);
          desc.w = mlk_f32(nowhere + 100000, K, C, 3, 3);
          desc.y = mlk_f32(out, N, K, SIZE, SIZE);
          for (i = 0; i < 2; i++) desc.geometry.pad_before[i] = desc.geometry.pad_after[i] = 1;
          desc.alpha = sign ? &minus_zero : &zero;
          desc.bias = mlk_f32(bias, K);
          CHECK_OK(ctx, mlk_conv(ctx, &desc));
        } else {
          mlk_conv_grad_input_desc desc;
          memset(&desc, 0, sizeof desc);
          desc.dy = mlk_f32(nowhere, N, C, SIZE, SIZE);
          desc.w = mlk_f32(nowhere + 100000, C, K, 3, 3);
          desc.dx = mlk_f32(out, N, K, SIZE, SIZE);
          for (i = 0; i < 2; i++) desc.geometry.pad_before[i] = desc.geometry.pad_after[i] = 1;
          desc.alpha = sign ? &minus_zero : &zero;
          desc.bias = mlk_f32(bias, K);
          CHECK_OK(ctx, mlk_conv_grad_input(ctx, &desc));
        }
        CHECK_BITS_F32_N(out, want, N * K * SIZE * SIZE);
      }
  crew_close();
}

/* DW or DBIAS may be absent; the other is then the same. */
static void one_gradient_only(void) {
  problem p;
  uint64_t index;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 120 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const layer l = layer_random(&rng, 2e4);
    if (!mlkt_keep(index)) continue;
    problem_shape(&p, GRAD_WEIGHTS, &l, &rng);
    if (index % 2) shape_bias(&p);
    if (index % 4 > 1) p.beta_value = -0.5f, p.beta = &p.beta_value;
    problem_fill(&p, SIGNED, &rng);
    reference(&p);
    p.w.present = index % 2 == 0;
    problem_layout(&p, FORM_COUNT, &rng);
    if (index % 4 == 3) memset(&p.x.view, 0, sizeof p.x.view); /* without dw nobody looks at x */
    problem_images(&p);
    every_row(&p, index, p.w.present ? "dw only" : "dbias only", "", NULL);
  }
  crew_close();
  problem_free(&p);
}

/* ---- packing ----------------------------------------------------------------------------------------------------- */

/* The call must be refused because of packed_w, and leave the output alone. The filter's size is the handle's: where it
   does not fit, so does the output's not. */
static void refuse_packed(problem *p, mlk_context *ctx, const mlk_packed *packed, int sizes_differ, const char *why) {
  operand *out = problem_out(p);
  mlk_status status;
  mlkt_note("%s, %s", op_names[p->what], why);
  mlkt_rogue_f32(mlkt_buffer_f32(&out->buffer), out->span);
  status = call(p, ctx, packed);
  CHECK_STATUS(ctx, status, sizes_differ && status == MLK_ERR_SHAPE ? MLK_ERR_SHAPE : MLK_ERR_ARGUMENT);
  CHECK_MSG(mlkt_has_word(mlk_last_error(ctx), "packed_w") ||
                (mlkt_opt.cuda && mlkt_has_word(mlk_last_error(ctx), "w")) || /* what the handle is there */
                (sizes_differ && mlkt_has_word(mlk_last_error(ctx), p->what == CONV ? "y" : "dy")),
            "the sentence does not name packed_w: \"%s\"", mlk_last_error(ctx));
  CHECK_MSG(mlkt_is_rogue_f32(mlkt_buffer_f32(&out->buffer), out->span), "a refused call wrote the output");
}

static void refuse_pack(problem *p, mlk_context *ctx, void *buffer, uint64_t bytes, const char *word,
                        const char *value) {
  mlk_packed packed, kept;
  memset(&packed, 0xFE, sizeof packed);
  memcpy(&kept, &packed, sizeof packed);
  CHECK_STATUS(ctx, call_pack(p, ctx, buffer, bytes, &packed), MLK_ERR_ARGUMENT);
  CHECK_MSG(mlkt_has_word(mlk_last_error(ctx), word) && strstr(mlk_last_error(ctx), value),
            "the sentence does not tell %s and %s: \"%s\"", word, value, mlk_last_error(ctx));
  CHECK_MSG(memcmp(&packed, &kept, sizeof packed) == 0, "a refused call wrote packed");
}

static void packing_layer(problem *p, op what, const layer *l, mlk_isa isa, mlkt_buffer *buffer, uint64_t index) {
  mlkt_rng rng = point_rng(index);
  mlk_context *ctx = crew_get(isa, 1);
  mlk_packed packed, bad;
  char text[32];
  layer other;
  int i;
  if (!ctx) return;
  problem_shape(p, what, l, &rng);
  problem_fill(p, SIGNED, &rng);
  reference(p);
  problem_layout(p, FORM_COUNT, &rng);
  problem_images(p);
  note_problem(p, "packing", isa, 1, "");
  memset(&packed, 0xFE, sizeof packed);
  if (!CHECK_OK(ctx, call_pack(p, ctx, NULL, 0, &packed))) return;
  CHECK(packed.data == NULL);
  CHECK_MSG(packed.bytes >= p->w.count * 4 && packed.bytes <= (p->w.count + 4096) * 64, "%" PRIu64 " bytes",
            packed.bytes);
  mlkt_buffer_place(buffer, (size_t)packed.bytes + 64, MLKT_HEAD);
  memset(buffer->data, (int)MLKT_ROGUE_BYTE, buffer->bytes);
  snprintf(text, sizeof text, "%" PRIu64, packed.bytes);
  refuse_pack(p, ctx, buffer->data, packed.bytes - 1, "buffer_bytes", text);
  refuse_pack(p, ctx, (char *)buffer->data + 32, packed.bytes, "buffer", "64");
  CHECK_MSG(mlkt_is_rogue_i64(mlkt_buffer_i64(buffer), buffer->bytes / 8), "a refused call wrote into the buffer");
  if (!CHECK_OK(ctx, call_pack(p, ctx, buffer->data, packed.bytes, &packed))) return;
  CHECK(packed.data == buffer->data);
  CHECK(mlkt_is_rogue_i64((int64_t *)(void *)((char *)buffer->data + packed.bytes), 8));
  run_problem(p, ctx, &packed);

  bad = packed, bad.data = NULL;
  refuse_packed(p, ctx, &bad, 0, "no data");
  bad = packed, bad.data = (const char *)packed.data + 4;
  refuse_packed(p, ctx, &bad, 0, "data moved by 4 bytes");
  bad = packed, bad.bytes = packed.bytes - 1;
  refuse_packed(p, ctx, &bad, 0, "bytes missing");
  for (i = MLK_ISA_SCALAR; i < MLK_ISA_COUNT; i++)
    if (!mlkt_opt.cuda && /* where all rows are one device */
        i != (int)isa && i != MLK_ISA_REFERENCE && mlk_isa_available((mlk_isa)i) && crew_get((mlk_isa)i, 1)) {
      refuse_packed(p, crew_get((mlk_isa)i, 1), &packed, 0, "packed by another row");
      CHECK_MSG(mlkt_has_word(mlk_last_error(crew_get((mlk_isa)i, 1)), mlk_isa_name(isa)),
                "the sentence does not name %s: \"%s\"", mlk_isa_name(isa), mlk_last_error(crew_get((mlk_isa)i, 1)));
    }
  if (crew_get(MLK_ISA_REFERENCE, 1)) { /* which packs nothing */
    mlk_context *plain = crew_get(MLK_ISA_REFERENCE, 1);
    CHECK_STATUS(plain, call(p, plain, &packed), MLK_ERR_UNSUPPORTED);
    CHECK_STATUS(plain, call_pack(p, plain, NULL, 0, &bad), MLK_ERR_UNSUPPORTED);
  }
  { /* w as well */
    mlk_conv_desc conv = conv_desc(p, NULL);
    mlk_conv_grad_input_desc input = grad_input_desc(p, NULL);
    conv.packed_w = input.packed_w = &packed;
    CHECK_STATUS(ctx, what == CONV ? mlk_conv(ctx, &conv) : mlk_conv_grad_input(ctx, &input), MLK_ERR_ARGUMENT);
    CHECK_NAMES(ctx, "packed_w");
  }
  if (what == CONV && l->c == l->k && !mlkt_opt.cuda) { /* the other operator's panels; a device's handle serves both */
    p->what = GRAD_INPUT;
    p->want = grown_f32(p->want, &p->want_room, p->x.count);
    problem_layout(p, FORM_DENSE, &rng);
    refuse_packed(p, ctx, &packed, 0, "packed for conv");
  }
  /* calls it serves: other images, sizes and layouts, of conv any geometry */
  for (i = 0; i < 6; i++) {
    int axis;
    other = *l;
    other.n = i == 5 ? 0 : mlkt_int(&rng, 1, 4);
    for (axis = 0; axis < l->spatial && i > 0; axis++) {
      other.in[axis] = mlkt_int(&rng, 1, 14);
      other.after[axis] = mlkt_int(&rng, 0, 3);
      if (what == GRAD_INPUT || i == 1) continue;
      other.before[axis] = mlkt_int(&rng, 0, 9);
      other.stride[axis] = mlkt_int(&rng, 1, 3);
      other.dilation[axis] = mlkt_int(&rng, 1, 3);
    }
    problem_shape(p, what, &other, &rng);
    fill(&p->x, SIGNED, &rng); /* the weights stay */
    fill(&p->y, SIGNED, &rng);
    reference(p);
    problem_layout(p, FORM_COUNT, &rng);
    problem_images(p);
    note_problem(p, "packed for another call", isa, 1, "");
    run_problem(p, ctx, &packed);
  }
  for (i = 0; i < 3 && what == GRAD_INPUT && !mlkt_opt.cuda; i++) { /* a device's handle serves any geometry */
    other = *l;
    if (i == 0) other.stride[0]++;
    if (i == 1) other.dilation[0]++;
    if (i == 2 && other.stride[0] > 1) other.before[0]++;
    if (memcmp(&other, l, sizeof other) == 0) continue;
    problem_shape(p, what, &other, &rng);
    problem_layout(p, FORM_DENSE, &rng);
    refuse_packed(p, ctx, &packed, 0, i == 0 ? "stride differs" : i == 1 ? "dilation differs" : "pad_before differs");
  }
  /* and calls it was not made for */
  other = layer_cube(l->spatial % 3 + 1, 1, l->c, l->k, l->groups, 5, 1, 1, 0);
  problem_shape(p, what, &other, &rng);
  problem_layout(p, FORM_DENSE, &rng);
  refuse_packed(p, ctx, &packed, 1, "other spatial axes");
  for (i = 0; i < 5; i++) {
    static const char *const why[] = {"C differs", "K differs", "groups differ", "a filter axis is longer",
                                      "a filter axis is shorter"};
    other = *l;
    if (i == 0) other.c += other.groups;
    if (i == 1) other.k += other.groups;
    if (i == 2) other.groups = l->groups == 1 && l->c % 2 == 0 && l->k % 2 == 0 ? 2 : 1;
    if (i == 3) other.filter[0]++, other.before[0]++;
    if (i == 4 && other.filter[0] > 1) other.filter[0]--;
    if (memcmp(&other, l, sizeof other) == 0) continue;
    if (i > 2) { /* with a stride, the handle's filter may give as many outputs: then the call is its own */
      layer with_handle = other;
      with_handle.filter[0] = l->filter[0];
      if (layer_out(&with_handle, 0) == layer_out(&other, 0)) continue;
    }
    problem_shape(p, what, &other, &rng);
    problem_layout(p, FORM_DENSE, &rng);
    refuse_packed(p, ctx, &packed, 1, why[i]);
  }
}

static void packing(void) {
  problem p;
  mlkt_buffer buffer = {NULL, 0, NULL, 0};
  int r, what, i;
  memset(&p, 0, sizeof p);
  crew_open();
  for (r = 0; r < crew.rows; r++)
    for (what = CONV; what <= GRAD_INPUT; what++)
      for (i = 0; i < 7 && !mlkt_hopeless(); i++) {
        layer l = layer_cube(2, 1, 12, 20, 1, 7, 3, 1, 1);
        if (crew.isas[r] == MLK_ISA_REFERENCE) {
          mlkt_skip("the reference packs nothing");
          continue;
        }
        switch (i) {
        case 1: l = layer_cube(2, 1, 12, 20, 4, 7, 3, 1, 1); break;
        case 2: l = layer_cube(2, 1, 19, 19, 19, 8, 3, 1, 1); break;
        case 3: l = layer_cube(2, 1, 18, 18, 1, 6, 1, 1, 0); break;
        case 4: l = layer_cube(2, 1, 3, 33, 1, 12, 7, 2, 3); break;
        case 5: l = layer_cube(1, 1, 16, 16, 1, 30, 2, 1, 0), l.dilation[0] = 8; break;
        case 6: l = layer_cube(3, 1, 6, 10, 1, 5, 3, 2, 1); break;
        default: break;
        }
        packing_layer(&p, (op)what, &l, crew.isas[r], &buffer, (uint64_t)(i * OPS + what));
      }
  crew_close();
  mlkt_buffer_free(&buffer);
  problem_free(&p);
}

/* ---- bad arguments ----------------------------------------------------------------------------------------------- */

enum { BAD_ROOM = 4096 };
static float bad_x[BAD_ROOM], bad_w[BAD_ROOM], bad_y[BAD_ROOM], bad_bias[BAD_ROOM], bad_residual[BAD_ROOM],
    bad_preact[BAD_ROOM];

/* Runs one operator and its plan on desc, whatever its type. */
static mlk_status any_call(op what, mlk_context *ctx, const void *desc, mlk_plan *plan) {
  const mlk_conv_desc *conv = (const mlk_conv_desc *)desc;
  const mlk_conv_grad_input_desc *input = (const mlk_conv_grad_input_desc *)desc;
  const mlk_conv_grad_weights_desc *weights = (const mlk_conv_grad_weights_desc *)desc;
  if (what == CONV) return plan ? mlk_conv_plan(ctx, conv, plan) : mlk_conv(ctx, conv);
  if (what == GRAD_INPUT) return plan ? mlk_conv_grad_input_plan(ctx, input, plan) : mlk_conv_grad_input(ctx, input);
  return plan ? mlk_conv_grad_weights_plan(ctx, weights, plan) : mlk_conv_grad_weights(ctx, weights);
}

/* The operator must refuse desc with status, by a sentence that holds word and value; its outputs
   are bad_out and preact. */
static void expect_refusal(op what, mlk_context *ctx, const void *desc, mlk_status status, const char *word,
                           const char *value, const char *spoilt, int line) {
  const float *out = what == CONV ? bad_y : what == GRAD_INPUT ? bad_x : bad_w;
  mlk_plan plan, kept;
  mlkt_note("line %d: %s: %s", line, op_names[what], spoilt);
  memset(&plan, 0xFE, sizeof plan);
  memcpy(&kept, &plan, sizeof plan);
  CHECK_STATUS(ctx, any_call(what, ctx, desc, NULL), status);
  CHECK_NAMES(ctx, word);
  if (value) CHECK_NAMES(ctx, value);
  CHECK_STATUS(ctx, any_call(what, ctx, desc, &plan), status);
  CHECK_MSG(memcmp(&plan, &kept, sizeof plan) == 0, "a refused plan was written");
  CHECK_MSG(mlkt_is_rogue_f32(out, BAD_ROOM) && mlkt_is_rogue_f32(bad_preact, BAD_ROOM),
            "a refused call wrote an output");
  CHECK_MSG(what != GRAD_WEIGHTS || mlkt_is_rogue_f32(bad_bias, BAD_ROOM), "a refused call wrote dbias");
}

#define BAD(spoil, status, word, value)                                                                                \
  do {                                                                                                                 \
    DESC desc = good;                                                                                                  \
    spoil;                                                                                                             \
    expect_refusal(WHAT, ctx, &desc, (status), (word), (value), #spoil, __LINE__);                                     \
  } while (0)

/* What all three refuse alike: X_ and Y_ are their names of the tensors of x's and y's shape. x [2, 6, 9, 7],
   w [8, 3, 3, 3], groups 2, stride 2 and 1, padding 1, y [2, 8, 5, 7]. */
#define BAD_GEOMETRIES(Y_NAME)                                                                                         \
  BAD(desc.geometry.stride[0] = -2, MLK_ERR_ARGUMENT, "stride", "-2");                                                 \
  BAD(desc.geometry.stride[1] = INT64_MIN, MLK_ERR_ARGUMENT, "stride", NULL);                                          \
  BAD(desc.geometry.stride[2] = 1, MLK_ERR_ARGUMENT, "stride", "1");                                                   \
  BAD(desc.geometry.dilation[0] = -1, MLK_ERR_ARGUMENT, "dilation", "-1");                                             \
  BAD(desc.geometry.dilation[2] = 1, MLK_ERR_ARGUMENT, "dilation", "1");                                               \
  BAD(desc.geometry.pad_before[0] = -1, MLK_ERR_ARGUMENT, "pad_before", "-1");                                         \
  BAD(desc.geometry.pad_before[2] = 3, MLK_ERR_ARGUMENT, "pad_before", "3");                                           \
  BAD(desc.geometry.pad_after[1] = -7, MLK_ERR_ARGUMENT, "pad_after", "-7");                                           \
  BAD(desc.geometry.pad_after[2] = -7, MLK_ERR_ARGUMENT, "pad_after", "-7");                                           \
  BAD(desc.geometry.groups = -2, MLK_ERR_ARGUMENT, "groups", "-2");                                                    \
  BAD(desc.geometry.groups = 4, MLK_ERR_SHAPE, "groups", "4"); /* divides K, not C */                                  \
  BAD(desc.geometry.groups = 5, MLK_ERR_SHAPE, "groups", "5");                                                         \
  BAD(desc.geometry.groups = 1000000, MLK_ERR_SHAPE, "groups", "1000000");                                             \
  BAD(desc.geometry.stride[0] = 1, MLK_ERR_SHAPE, Y_NAME, "5"); /* y no longer fits: 9 */                              \
  BAD(desc.geometry.stride[1] = 2, MLK_ERR_SHAPE, Y_NAME, "7");                                                        \
  BAD(desc.geometry.dilation[0] = 2, MLK_ERR_SHAPE, Y_NAME, "5");                                                      \
  BAD(desc.geometry.dilation[1] = 100, MLK_ERR_SHAPE, Y_NAME, "7");                                                    \
  BAD(desc.geometry.pad_before[0] = 3, MLK_ERR_SHAPE, Y_NAME, "5");                                                    \
  BAD(desc.geometry.pad_after[1] = 0, MLK_ERR_SHAPE, Y_NAME, "7");                                                     \
  BAD(desc.geometry.pad_after[0] = INT64_MAX, MLK_ERR_ARGUMENT, "pad_after", "9223372036854775807");                   \
  BAD(desc.geometry.pad_before[0] = INT64_C(1) << 31, MLK_ERR_ARGUMENT, "pad_before", "2147483648");                   \
  BAD(desc.geometry.stride[0] = INT64_C(1) << 40, MLK_ERR_ARGUMENT, "stride", "1099511627776");                        \
  BAD(desc.geometry.dilation[0] = INT64_MAX / 2, MLK_ERR_ARGUMENT, "dilation", "4611686018427387903");                 \
  BAD(desc.geometry.dilation[1] = (INT64_C(1) << 31) - 1, MLK_ERR_SHAPE, Y_NAME,                                       \
      "2147483647"); /* allowed, but too wide */                                                                       \
  BAD((desc.geometry.pad_before[0] = desc.geometry.pad_after[0] = (INT64_C(1) << 31) - 1), MLK_ERR_SHAPE, Y_NAME, "5")

/* A tensor: data, dtype, rank, negative and absurd sizes. */
#define BAD_TENSOR(FIELD, NAME)                                                                                        \
  BAD(desc.FIELD.dtype = MLK_I64, MLK_ERR_DTYPE, NAME, NULL);                                                          \
  BAD(desc.FIELD.dtype = -1, MLK_ERR_DTYPE, NAME, NULL);                                                               \
  BAD(desc.FIELD.rank = 7, MLK_ERR_SHAPE, NAME, "7");                                                                  \
  BAD(desc.FIELD.rank = 2, MLK_ERR_SHAPE, NAME, "2");                                                                  \
  BAD(desc.FIELD.rank = -1, MLK_ERR_SHAPE, NAME, NULL);                                                                \
  BAD(desc.FIELD.shape[0] = -2, MLK_ERR_SHAPE, NAME, "-2");                                                            \
  BAD((desc.FIELD.shape[0] = INT64_C(1) << 40, desc.FIELD.shape[1] = INT64_C(1) << 40), MLK_ERR_SIZE, NAME, NULL)

static mlk_conv_geometry bad_geometry(void) {
  mlk_conv_geometry g;
  memset(&g, 0, sizeof g);
  g.stride[0] = 2;
  g.pad_before[0] = g.pad_before[1] = g.pad_after[0] = g.pad_after[1] = 1;
  g.groups = 2;
  return g;
}

static void bad_memory(void) {
  size_t i;
  for (i = 0; i < BAD_ROOM; i++) bad_x[i] = bad_w[i] = bad_y[i] = bad_bias[i] = bad_residual[i] = 1.0f;
}

#define DESC mlk_conv_desc
#define WHAT CONV
static void bad_conv(void) {
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  mlk_conv_desc good;
  if (!ctx) return;
  bad_memory();
  memset(&good, 0, sizeof good);
  good.x = mlk_f32(bad_x, 2, 6, 9, 7);
  good.w = mlk_f32(bad_w, 8, 3, 3, 3);
  good.y = mlk_f32(bad_y, 2, 8, 5, 7);
  good.bias = mlk_f32(bad_bias, 8);
  good.residual = mlk_f32(bad_residual, 2, 8, 5, 7);
  good.preact = mlk_f32(bad_preact, 2, 8, 5, 7);
  good.geometry = bad_geometry();
  CHECK_OK(ctx, mlk_conv(ctx, &good));
  mlkt_rogue_f32(bad_y, BAD_ROOM);
  mlkt_rogue_f32(bad_preact, BAD_ROOM);

  BAD(desc.x.data = NULL, MLK_ERR_ARGUMENT, "x", NULL);
  BAD(desc.w.data = NULL, MLK_ERR_ARGUMENT, "w", NULL);
  BAD(desc.y.data = NULL, MLK_ERR_ARGUMENT, "y", NULL);
  BAD(memset(&desc.x, 0, sizeof desc.x), MLK_ERR_ARGUMENT, "x", NULL);
  BAD(memset(&desc.w, 0, sizeof desc.w), MLK_ERR_ARGUMENT, "w", NULL);
  BAD(memset(&desc.y, 0, sizeof desc.y), MLK_ERR_ARGUMENT, "y", NULL);
  BAD_TENSOR(x, "x");
  BAD_TENSOR(w, "w");
  BAD_TENSOR(y, "y");
  BAD_TENSOR(residual, "residual");
  BAD_TENSOR(preact, "preact");
  BAD(desc.bias.dtype = MLK_I64, MLK_ERR_DTYPE, "bias", NULL);
  BAD(desc.bias.rank = 2, MLK_ERR_SHAPE, "bias", "2");
  BAD(desc.bias.shape[0] = 7, MLK_ERR_SHAPE, "bias", "7");
  BAD(desc.bias.shape[0] = 1, MLK_ERR_SHAPE, "bias", "1"); /* nothing broadcasts */

  BAD(desc.x = mlk_f32(bad_x, 2, 6, 9, 7, 1), MLK_ERR_SHAPE, "x", "5"); /* y's rank rules */
  BAD(desc.w.shape[2] = 0, MLK_ERR_SHAPE, "w", "0");
  BAD((desc.w.shape[2] = INT64_C(1) << 40, desc.geometry.dilation[0] = INT64_C(1) << 30), MLK_ERR_SIZE, "w", NULL);
  BAD(desc.w.shape[0] = 10, MLK_ERR_SHAPE, "y", "8");
  BAD(desc.w.shape[1] = 6, MLK_ERR_SHAPE, "w", "6");
  BAD(desc.w.shape[1] = 1, MLK_ERR_SHAPE, "w", "1");
  BAD(desc.w.shape[2] = 5, MLK_ERR_SHAPE, "y", "5");
  BAD(desc.x.shape[1] = 8, MLK_ERR_SHAPE, "w", "3");
  BAD(desc.x.shape[2] = 12, MLK_ERR_SHAPE, "y", "5");
  BAD(desc.y.shape[0] = 1, MLK_ERR_SHAPE, "y", "1");
  BAD(desc.y.shape[1] = 7, MLK_ERR_SHAPE, "y", "7");
  BAD(desc.y.shape[2] = 4, MLK_ERR_SHAPE, "y", "4");
  BAD(desc.y.shape[3] = 8, MLK_ERR_SHAPE, "y", "8");
  BAD(desc.residual.shape[0] = 1, MLK_ERR_SHAPE, "residual", "1");
  BAD(desc.residual.shape[3] = 6, MLK_ERR_SHAPE, "residual", NULL);
  BAD(desc.preact.shape[1] = 9, MLK_ERR_SHAPE, "preact", NULL);
  BAD((desc.y = mlk_with_row_stride(desc.y, 7), desc.y.stride[3] = 0), MLK_ERR_SHAPE, "y", NULL);
  BAD(desc.y = mlk_with_row_stride(desc.y, 6), MLK_ERR_SHAPE, "y", "6");
  BAD(desc.preact = mlk_with_row_stride(desc.preact, 3), MLK_ERR_SHAPE, "preact", "3");
  BAD(desc.activation = MLK_ACTIVATION_COUNT, MLK_ERR_ARGUMENT, "activation", "7");
  BAD_GEOMETRIES("y");

  mlkt_note("%s", "the context must still work");
  CHECK_OK(ctx, mlk_conv(ctx, &good));
  CHECK(!mlkt_is_rogue_f32(bad_y, 1));
  mlk_close(ctx);
}
#undef DESC
#undef WHAT

#define DESC mlk_conv_grad_input_desc
#define WHAT GRAD_INPUT
static void bad_grad_input(void) {
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  mlk_conv_grad_input_desc good;
  if (!ctx) return;
  bad_memory();
  memset(&good, 0, sizeof good);
  good.dy = mlk_f32(bad_y, 2, 8, 5, 7);
  good.w = mlk_f32(bad_w, 8, 3, 3, 3);
  good.dx = mlk_f32(bad_x, 2, 6, 9, 7);
  good.bias = mlk_f32(bad_bias, 6);
  good.residual = mlk_f32(bad_residual, 2, 6, 9, 7);
  good.preact = mlk_f32(bad_preact, 2, 6, 9, 7);
  good.geometry = bad_geometry();
  CHECK_OK(ctx, mlk_conv_grad_input(ctx, &good));
  mlkt_rogue_f32(bad_x, BAD_ROOM);
  mlkt_rogue_f32(bad_preact, BAD_ROOM);

  BAD(desc.dy.data = NULL, MLK_ERR_ARGUMENT, "dy", NULL);
  BAD(desc.w.data = NULL, MLK_ERR_ARGUMENT, "w", NULL);
  BAD(desc.dx.data = NULL, MLK_ERR_ARGUMENT, "dx", NULL);
  BAD_TENSOR(dy, "dy");
  BAD_TENSOR(w, "w");
  BAD_TENSOR(dx, "dx");
  BAD_TENSOR(residual, "residual");
  BAD_TENSOR(preact, "preact");
  BAD(desc.bias.shape[0] = 8, MLK_ERR_SHAPE, "bias", "8"); /* C, not K */
  BAD(desc.bias.rank = 3, MLK_ERR_SHAPE, "bias", "3");

  BAD(desc.w.shape[0] = 10, MLK_ERR_SHAPE, "dy", "8");
  BAD(desc.w.shape[1] = 6, MLK_ERR_SHAPE, "w", "6");
  BAD(desc.dy.shape[0] = 3, MLK_ERR_SHAPE, "dy", "3");
  BAD(desc.dy.shape[1] = 4, MLK_ERR_SHAPE, "dy", "4");
  BAD(desc.dy.shape[2] = 6, MLK_ERR_SHAPE, "dy", "6");
  BAD(desc.dx.shape[1] = 8, MLK_ERR_SHAPE, "w", "3");
  BAD(desc.dx.shape[2] = 11, MLK_ERR_SHAPE, "dy", "5"); /* 9 and 10 have 5 outputs: output padding 0 and 1 */
  BAD(desc.dx.shape[2] = 8, MLK_ERR_SHAPE, "dy", "5");
  BAD(desc.residual.shape[2] = 8, MLK_ERR_SHAPE, "residual", NULL);
  BAD(desc.preact.shape[3] = 8, MLK_ERR_SHAPE, "preact", NULL);
  BAD(desc.dx = mlk_with_row_stride(desc.dx, 6), MLK_ERR_SHAPE, "dx", "6");
  BAD(desc.activation = MLK_ACTIVATION_COUNT, MLK_ERR_ARGUMENT, "activation", "7");
  BAD_GEOMETRIES("dy");

  mlkt_note("%s", "the context must still work, with output padding as well");
  CHECK_OK(ctx, mlk_conv_grad_input(ctx, &good));
  CHECK(!mlkt_is_rogue_f32(bad_x, 1));
  good.dx.shape[2] = 10;
  memset(&good.residual, 0, sizeof good.residual);
  memset(&good.preact, 0, sizeof good.preact);
  CHECK_OK(ctx, mlk_conv_grad_input(ctx, &good));
  mlk_close(ctx);
}
#undef DESC
#undef WHAT

#define DESC mlk_conv_grad_weights_desc
#define WHAT GRAD_WEIGHTS
static void bad_grad_weights(void) {
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  mlk_conv_grad_weights_desc good;
  if (!ctx) return;
  bad_memory();
  memset(&good, 0, sizeof good);
  good.x = mlk_f32(bad_x, 2, 6, 9, 7);
  good.dy = mlk_f32(bad_y, 2, 8, 5, 7);
  good.dw = mlk_f32(bad_w, 8, 3, 3, 3);
  good.dbias = mlk_f32(bad_bias, 8);
  good.geometry = bad_geometry();
  CHECK_OK(ctx, mlk_conv_grad_weights(ctx, &good));
  mlkt_rogue_f32(bad_w, BAD_ROOM);
  mlkt_rogue_f32(bad_bias, BAD_ROOM);
  mlkt_rogue_f32(bad_preact, BAD_ROOM); /* no operand: expect_refusal looks at it */

  BAD(desc.x.data = NULL, MLK_ERR_ARGUMENT, "x", NULL);
  BAD(desc.dy.data = NULL, MLK_ERR_ARGUMENT, "dy", NULL);
  BAD((desc.dw.data = NULL, desc.dbias.data = NULL), MLK_ERR_ARGUMENT, "dw", NULL);
  BAD_TENSOR(x, "x");
  BAD_TENSOR(dy, "dy");
  BAD_TENSOR(dw, "dw");
  BAD(desc.dbias.dtype = MLK_I64, MLK_ERR_DTYPE, "dbias", NULL);
  BAD(desc.dbias.shape[0] = 6, MLK_ERR_SHAPE, "dbias", "6");
  BAD(desc.dbias.rank = 2, MLK_ERR_SHAPE, "dbias", "2");

  BAD(desc.dw.shape[0] = 10, MLK_ERR_SHAPE, "dy", "8");
  BAD(desc.dw.shape[1] = 6, MLK_ERR_SHAPE, "dw", "6");
  BAD(desc.dw.shape[2] = 5, MLK_ERR_SHAPE, "dy", "5");
  BAD(desc.dw.shape[3] = 0, MLK_ERR_SHAPE, "dw", "0");
  BAD((desc.dw.shape[2] = INT64_C(1) << 40, desc.geometry.dilation[0] = INT64_C(1) << 30), MLK_ERR_SIZE, "dw", NULL);
  BAD(desc.x.shape[1] = 8, MLK_ERR_SHAPE, "dw", "3");
  BAD(desc.dy.shape[0] = 3, MLK_ERR_SHAPE, "dy", "3");
  BAD(desc.dy.shape[1] = 6, MLK_ERR_SHAPE, "dy", "6");
  BAD(desc.dy.shape[3] = 8, MLK_ERR_SHAPE, "dy", "8");
  BAD(desc.dw = mlk_with_row_stride(desc.dw, 2), MLK_ERR_SHAPE, "dw", "2");
  BAD((desc.dbias = mlk_transposed(mlk_transposed(desc.dbias)), desc.dbias.rank = 2, desc.dbias.shape[1] = 3),
      MLK_ERR_SHAPE, "dbias", "2");
  BAD_GEOMETRIES("dy");

  mlkt_note("%s", "the context must still work");
  CHECK_OK(ctx, mlk_conv_grad_weights(ctx, &good));
  CHECK(!mlkt_is_rogue_f32(bad_w, 1) && !mlkt_is_rogue_f32(bad_bias, 1));
  mlk_close(ctx);
}
#undef DESC
#undef WHAT

/* ---- aliasing ---------------------------------------------------------------------------------------------------- */

static float alias_memory[4000];

static void refuse_alias(op what, mlk_context *ctx, const void *desc, const char *word, int line) {
  static float kept[4000];
  mlkt_note("%s, line %d", op_names[what], line);
  memcpy(kept, alias_memory, sizeof kept);
  CHECK_STATUS(ctx, any_call(what, ctx, desc, NULL), MLK_ERR_ALIAS);
  CHECK_NAMES(ctx, word);
  CHECK_MSG(memcmp(kept, alias_memory, sizeof kept) == 0, "a refused call wrote memory");
}

#define REFUSE(spoil, word)                                                                                            \
  do {                                                                                                                 \
    DESC desc = good;                                                                                                  \
    spoil;                                                                                                             \
    refuse_alias(WHAT, ctx, &desc, word, __LINE__);                                                                    \
  } while (0)
#define ACCEPT(change)                                                                                                 \
  do {                                                                                                                 \
    DESC desc = good;                                                                                                  \
    change;                                                                                                            \
    mlkt_note("%s, line %d", op_names[WHAT], __LINE__);                                                                \
    CHECK_OK(ctx, any_call(WHAT, ctx, &desc, NULL));                                                                   \
  } while (0)

/* x [1, 4, 5, 5] of 100 elements, w [4, 4, 1, 1] of 16, y like x, all inside one block of memory or outside it. */
static void aliasing(void) {
  float *m = alias_memory;
  static float x[100], w[16], y[100], b[4];
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  size_t i;
  if (!ctx) return;
  for (i = 0; i < 4000; i++) alias_memory[i] = (float)(i % 7);
  for (i = 0; i < 100; i++) x[i] = y[i] = (float)(i % 5), w[i % 16] = (float)(i % 3);
#define DESC mlk_conv_desc
#define WHAT CONV
  {
    mlk_conv_desc good;
    memset(&good, 0, sizeof good);
    good.x = mlk_f32(x, 1, 4, 5, 5);
    good.w = mlk_f32(w, 4, 4, 1, 1);
    good.y = mlk_f32(m + 1000, 1, 4, 5, 5);
    REFUSE(desc.x = desc.y, "x"); /* even where a filter of 1x1 might do without */
    REFUSE(desc.x = mlk_f32(m + 1099, 1, 4, 5, 5), "x");
    REFUSE(desc.x = mlk_f32(m + 901, 1, 4, 5, 5), "x");
    REFUSE(desc.w = mlk_f32(m + 1084, 4, 4, 1, 1), "w");
    REFUSE(desc.bias = mlk_f32(m + 997, 4), "bias");
    REFUSE(desc.residual = mlk_f32(m + 1001, 1, 4, 5, 5), "residual");
    REFUSE(desc.residual = mlk_channels_last(mlk_f32(m + 1000, 1, 5, 5, 4)), "residual"); /* y, but not its strides */
    REFUSE(desc.preact = desc.y, "preact");
    REFUSE(desc.preact = mlk_f32(m + 1050, 1, 4, 5, 5), "preact");
    REFUSE(desc.preact = desc.x, "preact");
    REFUSE((desc.residual = mlk_f32(m, 1, 4, 5, 5), desc.preact = desc.residual), "preact");
    REFUSE((desc.bias = mlk_f32(m, 4), desc.preact = mlk_f32(m, 1, 4, 5, 5)), "preact");
    ACCEPT(desc.x = mlk_f32(m + 1100, 1, 4, 5, 5)); /* right behind */
    ACCEPT(desc.x = mlk_f32(m + 900, 1, 4, 5, 5));  /* right before */
    ACCEPT(desc.residual = desc.y);
    ACCEPT(desc.residual = mlk_transposed(mlk_transposed(desc.y))); /* the same strides, spelled out */
    ACCEPT(desc.residual = desc.x);                                 /* inputs may be one */
    ACCEPT((desc.bias = mlk_f32(w, 4), desc.residual = desc.x));
    /* channels of one wider tensor: x reads 4 of 8, y writes the other 4 */
    ACCEPT((desc.x = mlk_slice(mlk_channels_last(mlk_f32(m, 1, 5, 5, 8)), 1, 0, 4),
            desc.y = mlk_slice(mlk_channels_last(mlk_f32(m, 1, 5, 5, 8)), 1, 4, 4)));
    REFUSE((desc.x = mlk_slice(mlk_channels_last(mlk_f32(m, 1, 5, 5, 8)), 1, 1, 4),
            desc.y = mlk_slice(mlk_channels_last(mlk_f32(m, 1, 5, 5, 8)), 1, 4, 4)),
           "x");
  }
#undef DESC
#undef WHAT
#define DESC mlk_conv_grad_input_desc
#define WHAT GRAD_INPUT
  {
    mlk_conv_grad_input_desc good;
    memset(&good, 0, sizeof good);
    good.dy = mlk_f32(y, 1, 4, 5, 5);
    good.w = mlk_f32(w, 4, 4, 1, 1);
    good.dx = mlk_f32(m + 1000, 1, 4, 5, 5);
    REFUSE(desc.dy = desc.dx, "dy");
    REFUSE(desc.dy = mlk_f32(m + 1099, 1, 4, 5, 5), "dy");
    REFUSE(desc.w = mlk_f32(m + 985, 4, 4, 1, 1), "w");
    REFUSE(desc.bias = mlk_f32(m + 1096, 4), "bias");
    REFUSE(desc.residual = mlk_f32(m + 999, 1, 4, 5, 5), "residual");
    REFUSE(desc.preact = desc.dx, "preact");
    REFUSE(desc.preact = desc.dy, "preact");
    ACCEPT(desc.residual = desc.dx);
    ACCEPT(desc.residual = desc.dy);
    ACCEPT(desc.dy = mlk_f32(m + 1100, 1, 4, 5, 5));
  }
#undef DESC
#undef WHAT
#define DESC mlk_conv_grad_weights_desc
#define WHAT GRAD_WEIGHTS
  {
    mlk_conv_grad_weights_desc good;
    memset(&good, 0, sizeof good);
    good.x = mlk_f32(x, 1, 4, 5, 5);
    good.dy = mlk_f32(y, 1, 4, 5, 5);
    good.dw = mlk_f32(m + 1000, 4, 4, 1, 1);
    good.dbias = mlk_f32(b, 4);
    REFUSE(desc.x = mlk_f32(m + 1015, 1, 4, 5, 5), "x");
    REFUSE(desc.dy = mlk_f32(m + 901, 1, 4, 5, 5), "dy");
    REFUSE(desc.dbias = mlk_f32(m + 1012, 4), "dbias");
    REFUSE((desc.dbias = mlk_f32(m, 4), desc.x = mlk_f32(m, 1, 4, 5, 5)), "dbias");
    REFUSE((desc.dbias = mlk_f32(m, 4), desc.dy = mlk_f32(m + 3, 1, 4, 5, 5)), "dbias");
    ACCEPT(desc.dy = desc.x);
    ACCEPT(desc.dbias = mlk_f32(m + 1016, 4));
    ACCEPT((desc.x = mlk_f32(m + 1016, 1, 4, 5, 5), desc.dy = mlk_f32(m + 900, 1, 4, 5, 5)));
  }
#undef DESC
#undef WHAT
  mlk_close(ctx);
}

/* ---- plans, memory ----------------------------------------------------------------------------------------------- */

/* One layer on a fresh context: exact flops and bytes, the plan's workspace and not a byte more, a workspace that is
   fixed and one byte too small, every allocation failing in turn. */
static void plan_layer(problem *p, mlk_isa isa, int threads, int fail) {
  operand *const all[] = {&p->x, &p->w, &p->y, &p->bias, &p->residual, &p->preact};
  const operand *out = problem_out(p);
  mlk_context_desc context = mlkt_context_desc(isa, threads);
  mlkt_memory memory;
  mlk_context *ctx = NULL;
  mlk_plan plan;
  mlk_info info;
  uint64_t opened, calls, elements = 0, flops, number;
  char size[32];
  int i;
  for (i = 0; i < 6; i++) elements += all[i]->present ? all[i]->count : 0;
  if (p->residual_is_out || (p->beta && *p->beta != 0))
    elements += out->count * (1 + (uint64_t)(p->residual_is_out && p->beta && *p->beta != 0));
  if (p->what == GRAD_WEIGHTS && p->bias.present && p->beta && *p->beta != 0) elements += p->bias.count;
  flops = p->w.present || p->what != GRAD_WEIGHTS
              ? 2 * p->y.count * (uint64_t)(p->l.c / p->l.groups * p->l.filter[0] * p->l.filter[1] * p->l.filter[2])
              : 0;
  if (p->what == GRAD_WEIGHTS && p->bias.present) flops += p->y.count;
  memset(&memory, 0, sizeof memory);
  context.allocator = mlkt_memory_hook(&memory);
  if (!CHECK_STATUS(NULL, mlk_open(&ctx, &context), MLK_OK)) return;
  opened = memory.live_bytes;
  calls = memory.calls;
  memset(&plan, 0xFE, sizeof plan);
  if (CHECK_OK(ctx, call_plan(p, ctx, NULL, &plan))) {
    CHECK_EQ_I64(plan.flops, flops);
    CHECK_EQ_I64(plan.bytes, 4 * elements);
    CHECK(plan.variant && plan.variant[0]);
    CHECK_EQ_I64(memory.calls, calls);
    if (mlkt_opt.cuda && isa != MLK_ISA_REFERENCE) { /* workspace is the device's; threads counts kernels */
      CHECK_EQ_STR(plan.backend, "cuda");
      CHECK(plan.threads == 0 || plan.seconds > 0);
      CHECK_OK(ctx, mlk_reserve(ctx, plan.workspace_bytes, MLK_FIXED));
      run_problem(p, ctx, NULL);
    } else {
      CHECK_EQ_STR(plan.backend, "cpu");
      CHECK_EQ_STR(plan.isa, mlk_isa_name(isa));
      CHECK(plan.threads >= 1 && plan.threads <= threads);
      CHECK(plan.seconds == 0);
      run_problem(p, ctx, NULL);
      CHECK_EQ_I64(memory.live_bytes - opened, plan.workspace_bytes);
      CHECK_EQ_I64(memory.peak_bytes - opened, plan.workspace_bytes);
    }
    calls = memory.calls;
    run_problem(p, ctx, NULL); /* with a used workspace */
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
      if (!reads_out(p) && out->present)
        CHECK_MSG(mlkt_is_rogue_f32(mlkt_buffer_f32(&out->buffer), out->span), "a refused call wrote its output");
    }
    CHECK_OK(ctx, mlk_reserve(ctx, plan.workspace_bytes, MLK_FIXED));
    calls = memory.calls;
    run_problem(p, ctx, NULL);
    CHECK_EQ_I64(memory.calls, calls);
    mlk_close(ctx);
  }
  CHECK_MEMORY_EMPTY(&memory);
  if (mlkt_opt.cuda) return; /* a device's workspace is its own memory */

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
      if (!reads_out(p) && out->present)
        CHECK_MSG(mlkt_is_rogue_f32(mlkt_buffer_f32(&out->buffer), out->span), "a failed call wrote its output");
      run_problem(p, ctx, NULL); /* memory is back */
    }
    mlk_close(ctx);
    CHECK_MEMORY_EMPTY(&memory);
    if (!memory.failed) break;
  }
  CHECK_MSG(number > 1 && number < 100, "with a workspace, some allocation must have failed");
}

static void plans(void) {
  problem p;
  mlk_isa isas[MLK_ISA_COUNT];
  const int count = mlkt_isas(isas);
  uint64_t index;
  memset(&p, 0, sizeof p);
  for (index = 0; index < 500 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const mlk_isa isa = index % 16 == 5 ? MLK_ISA_REFERENCE : isas[index % (uint64_t)count];
    const int threads = isa == MLK_ISA_REFERENCE ? 1 : 1 + (int)(index / 3 % (uint64_t)mlkt_opt.threads_max);
    const layer l = layer_random(&rng, index % 8 ? 3e4 : 2e6);
    if (!mlkt_keep(index)) continue;
    problem_shape(&p, (op)(index / 5 % OPS), &l, &rng);
    problem_epilogue(&p, &rng);
    if (p.alpha && *p.alpha == 0) p.alpha = NULL; /* x and w are not read then */
    problem_fill(&p, INTEGERS, &rng);
    reference(&p);
    problem_layout(&p, FORM_COUNT, &rng);
    problem_images(&p);
    note_problem(&p, "plan", isa, threads, "");
    plan_layer(&p, isa, threads, index % 3 == 0);
  }
  problem_free(&p);
}

/* Taps far apart: all but the middle one lie in the padding. Neither the bits nor the workspace
   may depend on how far. */
static void far_taps(void) {
  static const int64_t far_apart[] = {9, 100, 20000, INT32_MAX};
  enum { C = 16, K = 32, SIDE = 8, X = C * SIDE * SIDE, Y = K * SIDE * SIDE, W = K * C * 9 };
  static float x[X], y[Y], w[W], got[W], want[W];
  mlkt_rng rng = mlkt_rng_case();
  mlk_isa isas[MLK_ISA_COUNT];
  const int rows = mlkt_isas(isas);
  size_t i, j;
  int last, what, r;
  for (i = 0; i < X; i++) x[i] = mlkt_signed(&rng);
  for (i = 0; i < Y; i++) y[i] = mlkt_signed(&rng);
  for (i = 0; i < W; i++) w[i] = mlkt_signed(&rng);
  for (i = 0; i < sizeof far_apart / sizeof far_apart[0]; i++)
    for (last = 0; last < 2; last++)
      for (what = 0; what < OPS; what++)
        for (r = 0; r <= rows; r++) { /* the reference first */
          const mlk_isa isa = r ? isas[r - 1] : MLK_ISA_REFERENCE;
          const size_t count = what == CONV ? Y : what == GRAD_INPUT ? X : W;
          mlk_context *ctx = mlkt_open(isa, 2);
          mlk_tensor xs = mlk_f32(x, 1, C, SIDE, SIDE), ys = mlk_f32(y, 1, K, SIDE, SIDE);
          mlk_conv_geometry geometry;
          mlk_plan plan;
          if (!ctx) return;
          mlkt_note("%s, dilation %lld, channels %s, isa %s", op_names[what], (long long)far_apart[i],
                    last ? "last" : "first", mlk_isa_name(isa));
          if (last)
            xs = mlk_channels_last(mlk_f32(x, 1, SIDE, SIDE, C)), ys = mlk_channels_last(mlk_f32(y, 1, SIDE, SIDE, K));
          memset(&geometry, 0, sizeof geometry), memset(&plan, 0, sizeof plan);
          for (j = 0; j < 2; j++) geometry.dilation[j] = geometry.pad_before[j] = geometry.pad_after[j] = far_apart[i];
          if (what == CONV) {
            mlk_conv_desc d;
            memset(&d, 0, sizeof d);
            d.x = xs, d.w = mlk_f32(w, K, C, 3, 3), d.y = ys, d.y.data = got, d.geometry = geometry;
            CHECK_OK(ctx, mlk_conv_plan(ctx, &d, &plan));
            CHECK_OK(ctx, mlk_conv(ctx, &d));
          } else if (what == GRAD_INPUT) {
            mlk_conv_grad_input_desc d;
            memset(&d, 0, sizeof d);
            d.dy = ys, d.w = mlk_f32(w, K, C, 3, 3), d.dx = xs, d.dx.data = got, d.geometry = geometry;
            CHECK_OK(ctx, mlk_conv_grad_input_plan(ctx, &d, &plan));
            CHECK_OK(ctx, mlk_conv_grad_input(ctx, &d));
          } else {
            mlk_conv_grad_weights_desc d;
            memset(&d, 0, sizeof d);
            d.x = xs, d.dy = ys, d.dw = mlk_f32(got, K, C, 3, 3), d.geometry = geometry;
            CHECK_OK(ctx, mlk_conv_grad_weights_plan(ctx, &d, &plan));
            CHECK_OK(ctx, mlk_conv_grad_weights(ctx, &d));
          }
          CHECK_MSG(plan.workspace_bytes < UINT64_C(4) << 20, "%" PRIu64 " bytes of workspace", plan.workspace_bytes);
          if (r) CHECK_BITS_F32_N(got, want, count);
          if (!r) memcpy(want, got, count * sizeof *want);
          mlk_close(ctx);
        }
}

/* Operands need not be there for a plan, and workspace does not grow with the images: there is no im2col buffer. */
static void plans_of_large_layers(void) {
  float *nowhere = (float *)(uintptr_t)4096;
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  int n, last;
  if (!ctx) return;
  for (last = 0; last < 2; last++)
    for (n = 1; n <= 1024; n *= 32) {
      const uint64_t macs = (uint64_t)n * 64 * 64 * 9 * 56 * 56, image = (uint64_t)n * 64 * 56 * 56;
      const mlk_tensor image_view = last ? mlk_channels_last(mlk_f32(nowhere, n, 56, 56, 64))
                                         : mlk_f32(nowhere, n, 64, 56, 56);
      mlk_conv_desc conv;
      mlk_conv_grad_input_desc input;
      mlk_conv_grad_weights_desc weights;
      mlk_plan plan[OPS];
      int what;
      memset(&conv, 0, sizeof conv);
      memset(&input, 0, sizeof input);
      memset(&weights, 0, sizeof weights);
      conv.x = conv.y = input.dx = input.dy = weights.x = weights.dy = image_view;
      conv.w = input.w = weights.dw = mlk_f32(nowhere, 64, 64, 3, 3);
      conv.geometry.pad_before[0] = conv.geometry.pad_before[1] = 1;
      conv.geometry.pad_after[0] = conv.geometry.pad_after[1] = 1;
      input.geometry = weights.geometry = conv.geometry;
      memset(plan, 0, sizeof plan);
      CHECK_OK(ctx, mlk_conv_plan(ctx, &conv, &plan[CONV]));
      CHECK_OK(ctx, mlk_conv_grad_input_plan(ctx, &input, &plan[GRAD_INPUT]));
      CHECK_OK(ctx, mlk_conv_grad_weights_plan(ctx, &weights, &plan[GRAD_WEIGHTS]));
      for (what = 0; what < OPS; what++) {
        mlkt_note("%s of %d images, channels %s", op_names[what], n, last ? "last" : "first");
        CHECK_EQ_I64(plan[what].flops, 2 * macs);
        CHECK_EQ_I64(plan[what].bytes, 4 * (2 * image + 64 * 64 * 9));
        CHECK_MSG(plan[what].workspace_bytes < UINT64_C(24) << 20, "%" PRIu64 " bytes of workspace",
                  plan[what].workspace_bytes); /* the im2col matrix of one image has 7 MB, of 1024 images 7 GB */
      }
    }
  mlk_close(ctx);
}

/* Sizes whose products do not fit are refused, whatever the geometry adds to them; the plan tells
   the figures that do. */
static void sizes(void) {
  static const int64_t edges[] = {
      0, 1, 3, 65536, INT64_C(2147483648), INT64_C(4294967297), INT64_C(1) << 40, INT64_C(1) << 61, INT64_MAX, -1};
  enum { EDGES = (int)(sizeof edges / sizeof edges[0]) };
  float *nowhere = (float *)(uintptr_t)4096;
  mlk_context *ctx = mlkt_open(MLK_ISA_BEST, 2);
  int i, j, q, what, accepted = 0;
  if (!ctx) return;
  for (i = 0; i < EDGES; i++)
    for (j = 0; j < EDGES; j++)
      for (q = 0; q < EDGES && !mlkt_hopeless(); q++) {
        const int64_t n = edges[i], channels = edges[j], in = edges[q];
        const double elements = (double)n * (double)channels * (double)in, work = 2.0 * elements * (double)channels * 3;
        const double most = (double)(n > 1 ? n : 1) * (double)(channels > 1 ? channels : 1) * (double)(in > 1 ? in : 1);
        const int negative = n < 0 || channels < 0 || in < 0;
        mlk_conv_desc conv;
        mlk_conv_grad_input_desc input;
        mlk_conv_grad_weights_desc weights;
        memset(&conv, 0, sizeof conv);
        memset(&input, 0, sizeof input);
        memset(&weights, 0, sizeof weights);
        conv.x = conv.y = input.dx = input.dy = weights.x = weights.dy = mlk_f32(nowhere, n, channels, in);
        conv.w = input.w = weights.dw = mlk_f32(nowhere, channels, channels, 3);
        conv.geometry.pad_before[0] = conv.geometry.pad_after[0] = 1;
        input.geometry = weights.geometry = conv.geometry;
        for (what = 0; what < OPS; what++) {
          const void *desc = what == CONV         ? (const void *)&conv
                             : what == GRAD_INPUT ? (const void *)&input
                                                  : (const void *)&weights;
          mlk_plan plan;
          const mlk_status status = any_call((op)what, ctx, desc, &plan);
          mlkt_note("%s: n %" PRId64 ", channels %" PRId64 ", in %" PRId64, op_names[what], n, channels, in);
          if (negative)
            CHECK_STATUS(ctx, status, status == MLK_ERR_SIZE ? MLK_ERR_SIZE : MLK_ERR_SHAPE);
          else if (status == MLK_OK) {
            CHECK_MSG(work < 1.9e19 && elements < 2.4e18, "figures that do not fit were accepted");
            CHECK_MSG(fabs((double)plan.flops - work) <= 1e-9 * work, "flops %" PRIu64 ", expected %g", plan.flops,
                      work);
            accepted++;
          } else {
            CHECK_STATUS(ctx, status, MLK_ERR_SIZE);
            if (mlkt_opt.cuda && strstr(mlk_last_error(ctx), "more than a device's memory")) continue;
            CHECK_MSG(work >= 4e18 || most >= 5e17 || channels >= INT64_C(1) << 30, "sizes that fit were refused: %s",
                      mlk_last_error(ctx));
            CHECK_STATUS(ctx, any_call((op)what, ctx, desc, NULL), MLK_ERR_SIZE); /* before memory is touched */
          }
        }
      }
  CHECK(accepted > 100);
  mlk_close(ctx);
}

const mlkt_case mlkt_conv_cases[] = {{"conv/sweep", sweep_conv},
                                     {"conv/sweep_grad_input", sweep_grad_input},
                                     {"conv/sweep_grad_weights", sweep_grad_weights},
                                     {"conv/geometries", geometries},
                                     {"conv/channel_edges", channel_edges},
                                     {"conv/repeated_inputs", repeated_inputs},
                                     {"conv/epilogues", epilogues},
                                     {"conv/not_read", not_read},
                                     {"conv/one_gradient_only", one_gradient_only},
                                     {"conv/packing", packing},
                                     {"conv/bad_conv", bad_conv},
                                     {"conv/bad_grad_input", bad_grad_input},
                                     {"conv/bad_grad_weights", bad_grad_weights},
                                     {"conv/aliasing", aliasing},
                                     {"conv/plans", plans},
                                     {"conv/far_taps", far_taps},
                                     {"conv/plans_of_large_layers", plans_of_large_layers},
                                     {"conv/sizes", sizes},
                                     {NULL, NULL}};
