/* test_conv_shapes.c - convolution where layers are as large as those of networks, or sums long: the same bits on every
   row, thread count, layout and place in a batch; matrix products, bounds, adjoints, finite
   differences, far strides. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "conv_problem.h"

#if MLKT_POSIX
#include <sys/mman.h>
#endif

/* ---- the same bits everywhere ------------------------------------------------------------------------------------ */

/* A problem large enough for several tasks, on every row, thread count and in several layouts; judged by samples. */
static void bits_of_layer(problem *p, op what, const layer *l, uint64_t index, mlkt_buffer *panels) {
  static const form forms[] = {FORM_DENSE, FORM_LAST, FORM_COUNT};
  mlkt_rng rng = point_rng(index);
  const int slow = layer_macs(l) > 3e6;
  int f, r, t;
  problem_shape(p, what, l, &rng);
  if (index % 2) problem_epilogue(p, &rng);
  if (what == GRAD_WEIGHTS && !p->bias.present) shape_bias(p);
  problem_fill(p, index % 4 == 3 ? WIDE : SIGNED, &rng);
  p->want_known = 0;
  for (f = 0; f < 3; f++) {
    problem_layout(p, forms[f], &rng);
    if (p->want_known) problem_images(p);
    if (f == 0 && layer_macs(l) < 1e6) { /* the reference gives the expectation, the oracle judges samples of it */
      note_problem(p, "bits", MLK_ISA_REFERENCE, 1, form_names[forms[f]]);
      if (crew_get(MLK_ISA_REFERENCE, 1)) run_problem(p, crew_get(MLK_ISA_REFERENCE, 1), NULL);
    }
    for (r = 0; r < crew.rows; r++)
      for (t = 0; t < 4; t++) {
        const int threads = crew_threads((uint64_t)t);
        mlk_context *ctx = crew_get(crew.isas[r], threads);
        if (!ctx || (t && threads == crew_threads((uint64_t)t - 1))) continue;
        if (crew.rows > 1 && (t * 3 + f + r + (int)index) % (crew.isas[r] == MLK_ISA_SCALAR ? 12 : slow ? 4 : 2))
          continue;
        note_problem(p, "bits", crew.isas[r], threads, form_names[forms[f]]);
        run_problem(p, ctx, NULL);
        if ((t + f) % 3 == 0) run_packed(p, ctx, crew.isas[r], threads, panels, form_names[forms[f]]);
      }
  }
}

static void bits_across_threads(void) {
  problem p;
  mlkt_buffer panels = {NULL, 0, NULL, 0};
  uint64_t index = 0;
  int i, what;
  memset(&p, 0, sizeof p);
  crew_open();
  for (i = 0; i < 15; i++)
    for (what = 0; what < OPS && !mlkt_hopeless(); what++, index++) {
      layer l = layer_cube(2, 2, 33, 40, 1, 15, 3, 1, 1);
      switch (i) {
      case 1: l = layer_cube(2, 3, 70, 17, 1, 14, 3, 2, 1); break;
      case 2: l = layer_cube(2, 1, 3, 49, 1, 40, 7, 2, 3); break;
      case 3: l = layer_cube(2, 2, 64, 64, 1, 12, 1, 1, 0); break;
      case 4: l = layer_cube(2, 2, 96, 96, 96, 40, 3, 1, 1); break;
      case 5: l = layer_cube(2, 1, 48, 96, 48, 33, 5, 2, 2); break;
      case 6: l = layer_cube(1, 2, 20, 24, 1, 1100, 3, 1, 4), l.dilation[0] = 4; break;
      case 7: l = layer_cube(3, 1, 9, 20, 1, 9, 3, 1, 1); break;
      case 8: l = layer_cube(2, 2, 60, 66, 6, 17, 3, 1, 1); break;
      case 9: l = layer_cube(2, 1, 66, 20, 1, 9, 3, 1, 2), l.dilation[1] = 2, l.after[0] = 0, l.stride[1] = 3; break;
      case 10: l = layer_cube(2, 1, 4, 1100, 1, 6, 3, 1, 1); break;
      case 11: l = layer_cube(2, 1, 1100, 4, 1, 6, 3, 1, 1); break;
      case 12: l = layer_cube(2, 1, 64, 300, 1, 5, 3, 1, 1); break;
      case 13: l = layer_cube(2, 1, 300, 64, 1, 5, 3, 1, 1); break;
      case 14: l = layer_cube(1, 3, 2, 3, 1, 23000, 3, 1, 1); break; /* dbias in three segments */
      default: break;
      }
      if (mlkt_keep(index)) bits_of_layer(&p, (op)what, &l, index, &panels);
    }
  crew_close();
  mlkt_buffer_free(&panels);
  problem_free(&p);
}

/* Shapes out of well-known networks. Their spatial axes are shortened and channels cut unless
   --long asks for all of it. */
static void network_layers(void) {
  static const struct {
    const char *name;
    int spatial;
    int64_t c, k, groups, in, filter, stride, pad, dilation, small_in, divide; /* divide: channels in the short form */
  } table[] = {{"ResNet-50 stem", 2, 3, 64, 1, 224, 7, 2, 3, 1, 35, 1},
               {"ResNet-50 conv2 1x1", 2, 64, 256, 1, 56, 1, 1, 0, 1, 9, 1},
               {"ResNet-50 conv2 3x3", 2, 64, 64, 1, 56, 3, 1, 1, 1, 9, 1},
               {"ResNet-50 conv3 3x3 s2", 2, 128, 128, 1, 56, 3, 2, 1, 1, 9, 1},
               {"ResNet-50 conv4 shortcut", 2, 512, 1024, 1, 28, 1, 2, 0, 1, 5, 4},
               {"ResNet-50 conv5 3x3", 2, 512, 512, 1, 7, 3, 1, 1, 1, 7, 4},
               {"ResNeXt 32x4d", 2, 128, 128, 32, 56, 3, 1, 1, 1, 9, 1},
               {"MobileNet depthwise s1", 2, 256, 256, 256, 28, 3, 1, 1, 1, 28, 1},
               {"MobileNet depthwise s2", 2, 144, 144, 144, 56, 3, 2, 1, 1, 28, 1},
               {"MobileNet depthwise 5x5", 2, 240, 240, 240, 28, 5, 1, 2, 1, 14, 1},
               {"MobileNet pointwise", 2, 144, 24, 1, 56, 1, 1, 0, 1, 17, 1},
               {"U-Net up 2x2 s2", 2, 64, 128, 1, 112, 2, 2, 0, 1, 14, 1},
               {"U-Net 3x3 no padding", 2, 64, 64, 1, 140, 3, 1, 0, 1, 11, 1},
               {"WaveNet dilation 512", 1, 32, 64, 1, 16000, 2, 1, 512, 512, 1100, 1},
               {"WaveNet dilation 8", 1, 64, 64, 1, 8000, 3, 1, 8, 8, 300, 1},
               {"3-D U-Net 3x3x3", 3, 32, 64, 1, 32, 3, 1, 1, 1, 6, 1},
               {"3-D U-Net down 2x2x2", 3, 32, 32, 1, 48, 2, 2, 0, 1, 12, 1},
               {"ConvNeXt depthwise 7x7", 2, 96, 96, 96, 56, 7, 1, 3, 1, 15, 1},
               {"ViT patches 16x16", 2, 3, 768, 1, 224, 16, 16, 0, 1, 48, 4}};
  enum { LAYERS = (int)(sizeof table / sizeof table[0]) };
  problem p;
  mlkt_buffer panels = {NULL, 0, NULL, 0};
  uint64_t index = 0;
  int i, what;
  memset(&p, 0, sizeof p);
  crew_open();
  for (i = 0; i < LAYERS; i++)
    for (what = 0; what < OPS && !mlkt_hopeless(); what++, index++) {
      const int64_t divide = mlkt_opt.long_run ? 1 : table[i].divide;
      layer l = layer_cube(table[i].spatial, mlkt_opt.long_run ? 2 : 1, table[i].c, table[i].k, table[i].groups,
                           mlkt_opt.long_run ? table[i].in : table[i].small_in, table[i].filter, table[i].stride,
                           table[i].pad);
      int s;
      for (s = 0; s < l.spatial; s++) l.dilation[s] = table[i].dilation;
      if (table[i].spatial == 1 && table[i].filter == 2) l.after[0] = 0; /* causal */
      if (divide > 1) {
        l.k /= divide;
        if (l.c > divide * 16) l.c /= divide;
      }
      if (mlkt_keep(index)) bits_of_layer(&p, (op)what, &l, index, &panels);
      if (mlkt_failures()) mlkt_note("%s", table[i].name);
    }
  crew_close();
  mlkt_buffer_free(&panels);
  problem_free(&p);
}

/* An image gives the same bits alone and in any place of a batch; channels-first and channels-last likewise. */
static void batch_position(void) {
  enum { N = 3, C = 19, K = 21, H = 13, W = 12, X = N * C * H * W, Y = N * K * H * W };
  static float x[X], w[K * C * 9], y[Y], alone[Y], last[Y];
  mlkt_rng rng = mlkt_rng_case();
  int r, n, s, what;
  size_t i;
  for (i = 0; i < X; i++) x[i] = mlkt_signed(&rng);
  for (i = 0; i < K * C * 9; i++) w[i] = mlkt_signed(&rng);
  crew_open();
  for (r = 0; r <= crew.rows; r++)
    for (what = CONV; what <= GRAD_INPUT; what++)
      for (s = 1; s <= 2; s++) {
        const mlk_isa isa = r < crew.rows ? crew.isas[r] : MLK_ISA_REFERENCE;
        mlk_context *ctx = crew_get(isa, r < crew.rows && crew.threads > 1 ? 2 : 1);
        /* GRAD_INPUT: w as [C, K, 3, 3] takes C channels in and gives K */
        const int64_t oh = (H - 1) / s + 1, ow = (W - 1) / s + 1;
        const int64_t ih = what == CONV ? (int64_t)H : oh, iw = what == CONV ? (int64_t)W : ow;
        const int64_t th = what == CONV ? oh : (int64_t)H, tw = what == CONV ? ow : (int64_t)W;
        const mlk_tensor in = mlk_f32(x, N, C, ih, iw), out = mlk_f32(y, N, K, th, tw);
        const size_t image = (size_t)(K * th * tw);
        mlk_conv_geometry g;
        int form_last;
        if (!ctx) continue;
        memset(&g, 0, sizeof g);
        g.stride[0] = g.stride[1] = s;
        for (n = 0; n < 2; n++) g.pad_before[n] = g.pad_after[n] = 1;
        mlkt_note("%s, stride %d, isa %s", op_names[what], s, mlk_isa_name(isa));
        for (n = -1; n < N; n++)
          for (form_last = 0; form_last < 2; form_last++) {
            mlk_tensor from = n < 0 ? in : mlk_slice(in, 0, n, 1), to = n < 0 ? out : mlk_f32(alone, 1, K, th, tw);
            mlk_status status;
            if (form_last) to = mlk_channels_last(mlk_f32(last, to.shape[0], th, tw, K));
            if (what == CONV) {
              mlk_conv_desc desc;
              memset(&desc, 0, sizeof desc);
              desc.x = from, desc.w = mlk_f32(w, K, C, 3, 3), desc.y = to, desc.geometry = g;
              status = mlk_conv(ctx, &desc);
            } else {
              mlk_conv_grad_input_desc desc;
              memset(&desc, 0, sizeof desc);
              desc.dy = from, desc.w = mlk_f32(w, C, K, 3, 3), desc.dx = to, desc.geometry = g;
              status = mlk_conv_grad_input(ctx, &desc);
            }
            if (!CHECK_OK(ctx, status)) continue;
            if (form_last) { /* the same numbers in another order */
              const float *of = n < 0 ? y : y + (size_t)n * image;
              size_t wrong = 0;
              for (i = 0; i < (size_t)to.shape[0] * image; i++) {
                const size_t place = i / image * image + i % (size_t)(th * tw) * K + i % image / (size_t)(th * tw);
                wrong += mlkt_bits(of[i]) != mlkt_bits(last[place]);
              }
              CHECK_EQ_I64(wrong, 0);
            } else if (n >= 0)
              CHECK_BITS_F32_N(alone, y + (size_t)n * image, image);
          }
      }
  crew_close();
}

/* A 1x1 filter with stride 1 is a matrix product, to the bit: as rows of pixels (channels last)
   and as columns (first). */
static void pointwise_is_matmul(void) {
  static const int64_t cs[] = {1, 5, 16, 33, 70, 511, 512, 513, 1030};
  enum { COUNT = (int)(sizeof cs / sizeof cs[0]), MOST = 1030, K = 37, H = 6, W = 7, N = 2 };
  static float x[N * H * W * MOST], w[K * MOST], bias[K], y[N * H * W * K], want[N * H * W * K], dx[N * H * W * MOST],
      wdx[N * H * W * MOST], dw[K * MOST], wdw[K * MOST];
  mlkt_rng rng = mlkt_rng_case();
  int r, i, last;
  size_t j;
  for (j = 0; j < sizeof x / sizeof x[0]; j++) x[j] = mlkt_signed(&rng);
  for (j = 0; j < sizeof w / sizeof w[0]; j++) w[j] = mlkt_signed(&rng);
  for (j = 0; j < sizeof bias / sizeof bias[0]; j++) bias[j] = mlkt_signed(&rng);
  crew_open();
  for (r = 0; r < crew.rows; r++)
    for (i = 0; i < COUNT && !mlkt_hopeless(); i++)
      for (last = 0; last < 2; last++) {
        const int64_t c = cs[i], pixels = N * H * W;
        mlk_context *ctx = crew_get(crew.isas[r], crew_threads((uint64_t)i));
        mlk_matmul_desc product;
        mlk_conv_desc conv;
        mlk_conv_grad_input_desc input;
        mlk_conv_grad_weights_desc weights;
        mlk_tensor xs, ys, dxs;
        if (!ctx || !mlkt_keep((uint64_t)(r * 100 + i * 2 + last))) continue;
        mlkt_note("C %d, channels %s, isa %s", (int)c, last ? "last" : "first", mlk_isa_name(crew.isas[r]));
        memset(&product, 0, sizeof product);
        memset(&conv, 0, sizeof conv);
        xs = last ? mlk_channels_last(mlk_f32(x, N, H, W, c)) : mlk_f32(x, N, c, H, W);
        ys = last ? mlk_channels_last(mlk_f32(y, N, H, W, K)) : mlk_f32(y, N, K, H, W);
        dxs = last ? mlk_channels_last(mlk_f32(dx, N, H, W, c)) : mlk_f32(dx, N, c, H, W);
        conv.x = xs, conv.w = mlk_f32(w, K, c, 1, 1), conv.y = ys;
        conv.bias = mlk_f32(bias, K);
        conv.activation = product.activation = MLK_SILU;
        if (last) { /* [pixels, C] [C, K] */
          product.a = mlk_f32(x, pixels, c);
          product.b = mlk_transposed(mlk_f32(w, K, c));
          product.d = mlk_f32(want, pixels, K);
          product.bias = mlk_f32(bias, K);
        } else { /* [K, C] [N, C, pixels] */
          product.a = mlk_f32(w, K, c);
          product.b = mlk_f32(x, N, c, H * W);
          product.d = mlk_f32(want, N, K, H * W);
          product.bias = mlk_f32(bias, K, 1);
        }
        CHECK_OK(ctx, mlk_matmul(ctx, &product));
        mlkt_rogue_f32(y, sizeof y / sizeof y[0]);
        CHECK_OK(ctx, mlk_conv(ctx, &conv));
        CHECK_BITS_F32_N(y, want, N * H * W * K);

        memset(&input, 0, sizeof input);
        memset(&product, 0, sizeof product);
        input.dy = ys, input.w = conv.w, input.dx = dxs;
        if (last) {
          product.a = mlk_f32(y, pixels, K);
          product.b = mlk_f32(w, K, c);
          product.d = mlk_f32(wdx, pixels, c);
        } else {
          product.a = mlk_transposed(mlk_f32(w, K, c));
          product.b = mlk_f32(y, N, K, H * W);
          product.d = mlk_f32(wdx, N, c, H * W);
        }
        CHECK_OK(ctx, mlk_matmul(ctx, &product));
        mlkt_rogue_f32(dx, sizeof dx / sizeof dx[0]);
        CHECK_OK(ctx, mlk_conv_grad_input(ctx, &input));
        CHECK_BITS_F32_N(dx, wdx, N * H * W * c);

        if (last) { /* channels first, images and pixels do not lie along one axis */
          memset(&weights, 0, sizeof weights);
          memset(&product, 0, sizeof product);
          weights.x = xs, weights.dy = ys, weights.dw = mlk_f32(dw, K, c, 1, 1);
          product.a = mlk_transposed(mlk_f32(y, pixels, K));
          product.b = mlk_f32(x, pixels, c);
          product.d = mlk_f32(wdw, K, c);
          CHECK_OK(ctx, mlk_matmul(ctx, &product));
          mlkt_rogue_f32(dw, sizeof dw / sizeof dw[0]);
          CHECK_OK(ctx, mlk_conv_grad_weights(ctx, &weights));
          CHECK_BITS_F32_N(dw, wdw, K * c);
        }
      }
  crew_close();
}

/* Padding is zeros that take part: an infinite weight makes NaN where its tap lies outside, and only there. */
static void padding_takes_part(void) {
  enum { C = 6, K = 9, H = 8, W = 9 };
  const float inf = mlkt_float(0x7F800000u);
  static float x[C * H * W], w[K * C * 9], y[K * H * W], dy[K * H * W], dx[C * H * W];
  mlkt_rng rng = mlkt_rng_case();
  int r, tap, last, i, j, k;
  for (i = 0; i < C * H * W; i++) x[i] = 0.5f + mlkt_unit(&rng);
  for (i = 0; i < K * H * W; i++) dy[i] = 0.5f + mlkt_unit(&rng);
  crew_open();
  for (r = 0; r <= crew.rows; r++)
    for (tap = 0; tap < 9; tap++)
      for (last = 0; last < 2; last++) {
        const mlk_isa isa = r < crew.rows ? crew.isas[r] : MLK_ISA_REFERENCE;
        mlk_context *ctx = crew_get(isa, 1);
        mlk_conv_desc conv;
        mlk_conv_grad_input_desc input;
        size_t wrong = 0;
        if (!ctx) continue;
        mlkt_note("tap %d, channels %s, isa %s", tap, last ? "last" : "first", mlk_isa_name(isa));
        for (i = 0; i < K * C * 9; i++) w[i] = i % 9 == tap ? inf : 1.0f;
        memset(&conv, 0, sizeof conv);
        memset(&input, 0, sizeof input);
        conv.x = last ? mlk_channels_last(mlk_f32(x, 1, H, W, C)) : mlk_f32(x, 1, C, H, W);
        conv.y = last ? mlk_channels_last(mlk_f32(y, 1, H, W, K)) : mlk_f32(y, 1, K, H, W);
        input.dx = last ? mlk_channels_last(mlk_f32(dx, 1, H, W, C)) : mlk_f32(dx, 1, C, H, W);
        input.dy = last ? mlk_channels_last(mlk_f32(dy, 1, H, W, K)) : mlk_f32(dy, 1, K, H, W);
        conv.w = input.w = mlk_f32(w, K, C, 3, 3);
        for (i = 0; i < 2; i++) conv.geometry.pad_before[i] = conv.geometry.pad_after[i] = 1;
        input.geometry = conv.geometry;
        CHECK_OK(ctx, mlk_conv(ctx, &conv));
        CHECK_OK(ctx, mlk_conv_grad_input(ctx, &input));
        for (i = 0; i < H; i++)
          for (j = 0; j < W; j++) {
            const int row = i + tap / 3 - 1, column = j + tap % 3 - 1;
            const int from = i - tap / 3 + 1, across = j - tap % 3 + 1;
            const int inside = row >= 0 && row < H && column >= 0 && column < W;
            const int reached = from >= 0 && from < H && across >= 0 && across < W;
            for (k = 0; k < K; k++) {
              const float got = last ? y[(i * W + j) * K + k] : y[(k * H + i) * W + j];
              wrong += inside ? got != inf : got == got;
            }
            for (k = 0; k < C; k++) {
              const float got = last ? dx[(i * W + j) * C + k] : dx[(k * H + i) * W + j];
              wrong += reached ? got != inf : got == got;
            }
          }
        CHECK_EQ_I64(wrong, 0);
      }
  crew_close();
}

/* Tells |result - exact| against the bound of NUMERICS for long and short sums. */
static void error_bound(void) {
  problem p;
  uint64_t index;
  int points = 0;
  double worst = 0;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 270 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const op what = (op)(index % OPS);
    const mlk_isa isa = crew.isas[index / 3 % (uint64_t)crew.rows];
    mlk_context *ctx = crew_get(isa, crew_threads(index));
    operand *out;
    double ratio = 0;
    size_t i, j;
    layer l = layer_random(&rng, 2e4);
    if (index % 4 == 0) /* sums of several segments */
      l = what == GRAD_WEIGHTS ? layer_cube(2, 3, 2, 3, 1, 40, 2, 1, 1) : layer_cube(2, 1, 120, 130, 1, 4, 3, 1, 1);
    if (!mlkt_keep(index)) continue;
    if (!ctx) break;
    points++;
    problem_shape(&p, what, &l, &rng);
    if (what == GRAD_WEIGHTS) shape_bias(&p);
    problem_fill(&p, (values)(SIGNED + index / 9 % 3), &rng);
    problem_layout(&p, FORM_COUNT, &rng);
    reset_outputs(&p);
    note_problem(&p, "error bound", isa, 0, "");
    if (!CHECK_OK(ctx, call(&p, ctx, NULL))) continue;
    out = problem_out(&p);
    operand_move(out, p.want, out->first, 0);
    for (i = 0; i < out->count; i += index % 4 == 0 ? 8 : 1) {
      const size_t count = terms(&p, i);
      const double bound = (double)((count < MLK_SEGMENT ? count : MLK_SEGMENT) +
                                    (count + MLK_SEGMENT - 1) / MLK_SEGMENT);
      double exact = 0, magnitude = 0, q;
      for (j = 0; j < count; j++) {
        const double product = (double)p.first[j] * p.second[j];
        exact += product;
        magnitude += fabs(product);
      }
      q = fabs(p.want[i] - exact) / (bound / 16777216.0 * (1 + 1 / 1024.0) * magnitude);
      if (magnitude > 0 ? !(q <= ratio) : p.want[i] != 0) ratio = magnitude > 0 ? q : 2;
    }
    if (what == GRAD_WEIGHTS) {
      const size_t positions = (size_t)(p.out[0] * p.out[1] * p.out[2]), count = (size_t)l.n * positions;
      operand_move(&p.bias, p.want_bias, p.bias.first, 0);
      for (i = 0; i < p.bias.count; i++) {
        double exact = 0, magnitude = 0;
        for (j = 0; j < count; j++) {
          const double v = p.y.dense[(j / positions * (size_t)l.k + i) * positions + j % positions];
          exact += v;
          magnitude += fabs(v);
        }
        CHECK_MSG(fabs(p.want_bias[i] - exact) <=
                      ((double)((count + 15) / 16) + 5) / 16777216.0 * (1 + 1 / 1024.0) * magnitude,
                  "dbias[%lu] is %.9g, exact %.9g", (unsigned long)i, (double)p.want_bias[i], exact);
      }
    }
    CHECK_MSG(ratio <= 1, "the error is %g of the bound", ratio);
    if (!(ratio <= worst)) worst = ratio;
  }
  crew_close();
  problem_free(&p);
  CHECK_MSG(worst > 1e-3 || points < 10, "the greatest error is %g of the bound: was anything computed?", worst);
}

/* ---- adjoints and finite differences ----------------------------------------------------------------------------- */

static int64_t dot(const float *x, const float *y, size_t count) {
  int64_t sum = 0;
  size_t i;
  for (i = 0; i < count; i++) sum += (int64_t)x[i] * (int64_t)y[i];
  return sum;
}

/* Runs what on the operands as they lie, copies its output to result, and puts the operand's own values back. */
static int run_and_restore(problem *p, op what, mlk_context *ctx, float *result) {
  operand *out;
  p->what = what;
  out = problem_out(p);
  mlkt_rogue_f32(mlkt_buffer_f32(&out->buffer), out->span);
  if (!CHECK_OK(ctx, call(p, ctx, NULL))) return 0;
  if (out->count) operand_move(out, result, out->first, 0);
  if (out->span) memcpy(out->buffer.data, out->image, out->span * sizeof(float));
  return 1;
}

/* <conv(x, w), y> = <x, convT(y, w)> = <w, dw(x, y)>, in integers: no oracle needed. */
static void adjoints(void) {
  problem p;
  uint64_t index;
  int nonzero = 0, points = 0;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 1500 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const layer l = layer_random(&rng, index % 8 ? 3e4 : 1e6);
    const mlk_isa isa = crew.isas[index % (uint64_t)crew.rows];
    const int threads = crew_threads(index / 3);
    mlk_context *ctx = crew_get(isa, threads);
    float *result[OPS] = {NULL, NULL, NULL};
    size_t room[OPS] = {0, 0, 0};
    if (!ctx || !mlkt_keep(index)) continue;
    problem_shape(&p, CONV, &l, &rng);
    problem_fill(&p, INTEGERS, &rng);
    problem_layout(&p, FORM_COUNT, &rng);
    note_problem(&p, "adjoint", isa, threads, "");
    result[CONV] = grown_f32(NULL, &room[CONV], p.y.count);
    result[GRAD_INPUT] = grown_f32(NULL, &room[GRAD_INPUT], p.x.count);
    result[GRAD_WEIGHTS] = grown_f32(NULL, &room[GRAD_WEIGHTS], p.w.count);
    if (run_and_restore(&p, CONV, ctx, result[CONV]) && run_and_restore(&p, GRAD_INPUT, ctx, result[GRAD_INPUT]) &&
        run_and_restore(&p, GRAD_WEIGHTS, ctx, result[GRAD_WEIGHTS])) {
      const int64_t forward = dot(result[CONV], p.y.dense, p.y.count);
      CHECK_EQ_I64(dot(result[GRAD_INPUT], p.x.dense, p.x.count), forward);
      CHECK_EQ_I64(dot(result[GRAD_WEIGHTS], p.w.dense, p.w.count), forward);
      points++;
      nonzero += forward != 0;
    }
    free(result[CONV]);
    free(result[GRAD_INPUT]);
    free(result[GRAD_WEIGHTS]);
  }
  crew_close();
  problem_free(&p);
  CHECK_MSG(nonzero * 2 > points || points < 10, "%d of %d products are not 0: was anything computed?", nonzero,
            points);
}

/* The exact sum of output element flat (in double), and a bound of what f32 makes of it. */
static double exact_sum(problem *p, size_t flat, double *bound) {
  const size_t count = terms(p, flat);
  const size_t plane = (size_t)(p->out[0] * p->out[1] * p->out[2]);
  double sum = p->bias.dense[flat / plane % (size_t)p->l.k], magnitude = fabs(sum);
  size_t i;
  for (i = 0; i < count; i++) {
    sum += (double)p->first[i] * p->second[i];
    magnitude += fabs((double)p->first[i] * p->second[i]);
  }
  *bound = (double)(count + 2) / 16777216.0 * magnitude;
  return sum;
}

/* Forward through the library with one value moved by step; out gets y, exact the sums in double,
   bounds their bounds. */
static int forward_moved(problem *p, mlk_context *ctx, operand *moved, size_t at, float step, float *out, double *exact,
                         double *bounds) {
  const float kept = moved->dense[at];
  size_t i;
  int ok;
  moved->dense[at] = kept + step; /* both multiples of 2^-10: exact */
  operand_move(moved, moved->dense, moved->first, 1);
  p->what = CONV;
  ok = CHECK_OK(ctx, call(p, ctx, NULL));
  if (ok) operand_move(&p->y, out, p->y.first, 0);
  for (i = 0; i < p->y.count; i++) exact[i] = exact_sum(p, i, &bounds[i]);
  moved->dense[at] = kept;
  operand_move(moved, moved->dense, moved->first, 1);
  return ok;
}

/* The loss is sum r_j sin(y_j). y is affine in any one value v: y_j' = a_j. So the central difference with step h is
   off by at most h^2/6 sum |r_j a_j^3| (third derivative) + sum |r_j| bound_j / h (rounding of y at both ends), and the
   gradient by its own rounding, that of dy, and dy's being taken at a rounded y. h is where the first two balance. */
static void differ(problem *p, mlk_context *ctx, operand *moved, size_t at, double gradient, const double *r,
                   double *work, double *tolerances, double *gradients) {
  const size_t count = p->y.count;
  float *plus = (float *)(void *)(work + 4 * count), *minus = plus + count;
  double *exact_plus = work, *exact_minus = work + count, *bound_plus = work + 2 * count,
         *bound_minus = work + 3 * count;
  double third = 0, rounding = 0, slope = 0, quotient = 0, tolerance, h = 1.0 / 32;
  size_t i;
  int round;
  for (round = 0; round < 2; round++) { /* the first round finds the step */
    if (!forward_moved(p, ctx, moved, at, (float)h, plus, exact_plus, bound_plus)) return;
    if (!forward_moved(p, ctx, moved, at, (float)-h, minus, exact_minus, bound_minus)) return;
    third = rounding = slope = quotient = 0;
    for (i = 0; i < count; i++) {
      const double a = (exact_plus[i] - exact_minus[i]) / (2 * h), bound = fmax(bound_plus[i], bound_minus[i]);
      if (fabs(a) < 1e-12) continue; /* v has no part in y_i: both are the same bits */
      third += fabs(r[i] * a * a * a);
      rounding += fabs(r[i]) * bound;
      slope += fabs(r[i] * a) * (bound + 1.2e-7 * (double)(p->l.n * (int64_t)count + 20));
      quotient += r[i] * (sin(plus[i]) - sin(minus[i])) / (2 * h);
    }
    if (round == 0 && third > 0)
      while (h > 1.0 / 512 && h * h * h > 3 * rounding / third) h /= 2;
  }
  tolerance = h * h / 6 * third + rounding / h + slope + 1e-12;
  CHECK_MSG(fabs(quotient - gradient) <= tolerance,
            "element %lu: the gradient is %.9g, the difference quotient %.9g +- %.2g", (unsigned long)at, gradient,
            quotient, tolerance);
  *tolerances += tolerance;
  *gradients += fabs(gradient);
}

static void finite_differences(void) {
  problem p;
  uint64_t index;
  double tolerances = 0, gradients = 0;
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 60 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    const layer l = layer_random(&rng, 4e3);
    const mlk_isa isa = crew.isas[index % (uint64_t)crew.rows];
    mlk_context *ctx = crew_get(isa, 1);
    operand *const all[] = {&p.x, &p.w, &p.bias};
    float *gradient[3] = {NULL, NULL, NULL}, *dy;
    double *r, *work;
    size_t i, room = 0;
    int which, probe;
    if (!ctx || !mlkt_keep(index * 3)) continue;
    problem_shape(&p, CONV, &l, &rng);
    shape_bias(&p);
    if (p.y.count == 0 || p.x.count == 0 || p.w.count == 0) continue;
    problem_fill(&p, SIGNED, &rng);
    for (which = 0; which < 3; which++)
      for (i = 0; i < all[which]->count; i++) all[which]->dense[i] = floorf(all[which]->dense[i] * 1024) / 1024;
    problem_layout(&p, FORM_COUNT, &rng);
    note_problem(&p, "finite differences", isa, 1, "");
    r = (double *)malloc(p.y.count * sizeof *r + 64);
    work = (double *)malloc(p.y.count * 5 * sizeof *work + 64);
    dy = grown_f32(NULL, &room, p.y.count);
    for (which = 0; which < 3; which++) gradient[which] = grown_f32(NULL, (room = 0, &room), all[which]->count);
    if (!r || !work) exit(2);
    for (i = 0; i < p.y.count; i++) r[i] = mlkt_signed(&rng);
    if (CHECK_OK(ctx, call(&p, ctx, NULL))) { /* dy at the centre */
      mlk_conv_grad_input_desc input;
      mlk_conv_grad_weights_desc weights;
      operand_move(&p.y, dy, p.y.first, 0);
      for (i = 0; i < p.y.count; i++) dy[i] = (float)(r[i] * cos(dy[i]));
      operand_move(&p.y, dy, p.y.first, 1);
      input = grad_input_desc(&p, NULL);
      memset(&input.bias, 0, sizeof input.bias);
      input.dx = input.dx.rank == 3   ? mlk_f32(gradient[0], l.n, l.c, l.in[0])
                 : input.dx.rank == 4 ? mlk_f32(gradient[0], l.n, l.c, l.in[0], l.in[1])
                                      : mlk_f32(gradient[0], l.n, l.c, l.in[0], l.in[1], l.in[2]);
      weights = grad_weights_desc(&p);
      memset(weights.dw.stride, 0, sizeof weights.dw.stride);
      weights.dw.data = gradient[1];
      weights.dbias = mlk_f32(gradient[2], l.k);
      if (CHECK_OK(ctx, mlk_conv_grad_input(ctx, &input)) && CHECK_OK(ctx, mlk_conv_grad_weights(ctx, &weights)))
        for (which = 0; which < 3; which++)
          for (probe = 0; probe < 4; probe++) {
            const size_t at = (size_t)(mlkt_u64(&rng) % all[which]->count);
            differ(&p, ctx, all[which], at, gradient[which][at], r, work, &tolerances, &gradients);
          }
    }
    free(r);
    free(work);
    free(dy);
    for (which = 0; which < 3; which++) free(gradient[which]);
  }
  crew_close();
  problem_free(&p);
  CHECK_MSG(tolerances <= 0.05 * gradients, "tolerances of %g for gradients of %g tell nothing", tolerances, gradients);
}

/* ---- strides beyond 2^31 elements -------------------------------------------------------------------------------- */

/* Operands with one axis whose elements lie more than 2^31 elements apart, forwards or backwards, in reserved memory of
   which only a few pages are touched. */
static void far_strides(void) {
#if MLKT_POSIX && defined(MAP_NORESERVE) && UINTPTR_MAX > 0xFFFFFFFFu
  enum { SIZE = 3 };
  const int64_t far_apart = (INT64_C(1) << 31) + 7;
  const size_t bytes = (size_t)far_apart * 4 * SIZE;
  float *where[3];
  problem p;
  uint64_t index;
  int i, j, r;
  for (i = 0; i < 3; i++) {
    where[i] = (float *)mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (where[i] == (float *)MAP_FAILED) {
      while (i-- > 0) munmap(where[i], bytes);
      mlkt_skip("no %lu bytes of address space", (unsigned long)bytes);
      return;
    }
  }
  memset(&p, 0, sizeof p);
  crew_open();
  for (index = 0; index < 96 && !mlkt_hopeless(); index++) {
    mlkt_rng rng = point_rng(index);
    layer l = layer_cube(2, SIZE, SIZE, SIZE, index / 3 % 2 ? SIZE : 1, SIZE, SIZE, 1, 1);
    operand *const all[] = {&p.x, &p.w, &p.y};
    operand *out;
    if (!mlkt_keep(index)) continue;
    if (index / 6 % 4 == 3) l = layer_cube(2, SIZE, SIZE, SIZE, 1, SIZE, 1, 1, 0);
    problem_shape(&p, (op)(index % OPS), &l, &rng);
    problem_fill(&p, INTEGERS, &rng);
    reference(&p);
    for (i = 0; i < 3; i++) {
      const int axis = (int)mlkt_int(&rng, 0, 3), backwards = (int)mlkt_int(&rng, 0, 1);
      int64_t step = 1;
      memset(&all[i]->view, 0, sizeof all[i]->view);
      all[i]->view.dtype = MLK_F32;
      all[i]->view.rank = 4;
      memset(all[i]->stride, 0, sizeof all[i]->stride);
      for (j = 3; j >= 0; j--) {
        const int64_t size = all[i]->shape[j];
        all[i]->view.shape[j] = size;
        all[i]->view.stride[j] = all[i]->stride[j] = j == axis ? (backwards ? -far_apart : far_apart) : step;
        if (j != axis) step *= size;
      }
      all[i]->first = where[i] + (backwards ? (all[i]->shape[axis] - 1) * far_apart : 0);
      all[i]->view.data = all[i]->first;
      operand_move(all[i], all[i]->dense, all[i]->first, 1);
    }
    out = problem_out(&p);
    for (r = 0; r < crew.rows; r++) {
      mlk_context *ctx = crew_get(crew.isas[r], 2);
      float got[SIZE * SIZE * SIZE * SIZE];
      if (!ctx) continue;
      note_problem(&p, "far strides", crew.isas[r], 2, "");
      mlkt_rogue_f32(got, out->count);
      operand_move(out, got, out->first, 1);
      CHECK_OK(ctx, call(&p, ctx, NULL));
      operand_move(out, got, out->first, 0);
      CHECK_BITS_F32_N(got, p.want, out->count);
    }
  }
  crew_close();
  problem_free(&p);
  for (i = 0; i < 3; i++) munmap(where[i], bytes);
#else
  mlkt_skip("needs mmap with MAP_NORESERVE and 64-bit addresses");
#endif
}

const mlkt_case mlkt_conv_shapes_cases[] = {{"conv/bits_across_threads", bits_across_threads},
                                            {"conv/network_layers", network_layers},
                                            {"conv/batch_position", batch_position},
                                            {"conv/pointwise_is_matmul", pointwise_is_matmul},
                                            {"conv/padding_takes_part", padding_takes_part},
                                            {"conv/error_bound", error_bound},
                                            {"conv/adjoints", adjoints},
                                            {"conv/finite_differences", finite_differences},
                                            {"conv/far_strides", far_strides},
                                            {NULL, NULL}};
