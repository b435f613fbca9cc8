/* The rows of mlk_knn and mlk_distances. Coordinates are integers small enough that every distance is exact in f32, so
   the expected answer needs no tolerance: every returned distance is recomputed, and for some of the queries the whole
   base is searched in the naive way and ids are compared, ties to the lower id. Peers owe the right distances within
   the rounding of |q|^2 + |x|^2 - 2 q x; which of equal rows they name is theirs. */
#ifndef BENCH_ROWS_KNN_H
#define BENCH_ROWS_KNN_H

typedef struct knn_spec {
  const char *data; /* "pictures", "clusters" */
  int64_t queries, base, d, k;
  mlk_metric metric;
  int strict, fast;
  problem_common common;
} knn_spec;

typedef struct knn_state {
  knn_spec s;
  const float *queries, *base;
  float *distances;
  int64_t *ids;
  mlk_context *ctx;
  mlk_knn_desc desc;
  mlk_distances_desc all;
  /* Expected, for the checked queries: ids and distances of the k nearest. */
  int checked;
  int64_t *checked_query, *expected_ids;
  float *expected_distances;
} knn_state;

/* Data sets outlive their row, since rows share them; the oldest one makes room. */
enum { MAX_DATA_SETS = 8 };
typedef struct data_set {
  const char *name, *source;
  int64_t queries, base, d;
  float *query_data, *base_data;
} data_set;
static data_set data_sets[MAX_DATA_SETS];
static int data_set_count;

/* Reads an idx3 file of 28 x 28 pictures, gzip or plain, halving the grey values (0 .. 127: distances of 784 of them
   are exact in f32). Returns 1 when all count pictures were there. */
static int read_pictures(const char *folder, const char *file, float *out, int64_t count) {
  char command[1024];
  unsigned char header[16], picture[784];
  int64_t i, j = 0;
  FILE *f;
  text(command, sizeof command, "%s/%s", folder, file);
  if (access(command, R_OK) != 0) return 0;
  text(command, sizeof command, "gunzip -c '%s/%s' 2>/dev/null", folder, file);
  f = popen(command, "r");
  if (!f) return 0;
  if (fread(header, 1, 16, f) == 16 && header[2] == 8 && header[3] == 3)
    for (j = 0; j < count && fread(picture, 1, 784, f) == 784; j++)
      for (i = 0; i < 784; i++) out[j * 784 + i] = (float)(picture[i] >> 1);
  pclose(f);
  return j == count;
}

/* Ten kinds of blurred blobs on a black ground, each picture moved, dimmed and speckled: half
   zeros, as in real ones. */
static void make_pictures(float *out, int64_t count, uint64_t seed) {
  static float kind[10][32 * 32];
  uint64_t shapes = 7;
  int64_t p;
  int i, j, c, blob;
  for (c = 0; c < 10; c++) {
    memset(kind[c], 0, sizeof kind[c]);
    for (blob = 0; blob < 5; blob++) {
      const double x = random_int(&shapes, 8, 23), y = random_int(&shapes, 8, 23), width = random_int(&shapes, 6, 24);
      for (i = 0; i < 32; i++)
        for (j = 0; j < 32; j++)
          kind[c][i * 32 + j] += (float)(90 * exp(-((i - y) * (i - y) + (j - x) * (j - x)) / width));
    }
  }
  for (p = 0; p < count; p++) {
    const uint64_t r = random_next(&seed);
    const float *from = kind[r % 10] + (r >> 8) % 5 * 32 + (r >> 16) % 5;
    const float light = 0.6f + 0.4f * (float)((r >> 24) % 256) / 256;
    for (i = 0; i < 28; i++) {
      uint64_t noise = random_next(&seed);
      for (j = 0; j < 28; j++, noise = noise >> 2 | noise << 62) {
        const float v = light * from[i * 32 + j] + (float)(noise & 7) - 8;
        out[p * 784 + i * 28 + j] = v < 0 ? 0 : v > 127 ? 127 : floorf(v);
      }
    }
  }
}

/* Points around 256 centres. The greatest coordinate keeps d max^2 below 2^24. */
static void make_clusters(float *out, int64_t count, int64_t d, uint64_t seed) {
  const int greatest = d <= 128 ? 255 : 127;
  uint64_t centres = 11;
  float *centre = row_floats(256 * d);
  int64_t i, j;
  for (i = 0; i < 256 * d; i++) centre[i] = (float)random_int(&centres, greatest / 4, 3 * greatest / 4);
  for (i = 0; i < count; i++) {
    const float *c = centre + random_next(&seed) % 256 * (uint64_t)d;
    for (j = 0; j < d; j++) out[i * d + j] = c[j] + (float)random_int(&seed, -greatest / 6, greatest / 6);
  }
}

static const data_set *data_of(const knn_spec *s) {
  static const char *const folders[] = {"examples/data/cache/fashion-mnist", "/usr/share/datasets/fashion-mnist"};
  data_set *set;
  size_t f;
  int i;
  for (i = 0; i < data_set_count && i < MAX_DATA_SETS; i++) {
    set = &data_sets[i];
    if (strcmp(set->name, s->data) == 0 && set->d == s->d && set->base >= s->base && set->queries >= s->queries)
      return set;
  }
  set = &data_sets[data_set_count++ % MAX_DATA_SETS];
  free_kept(set->query_data), free_kept(set->base_data);
  memset(set, 0, sizeof *set);
  set->name = s->data, set->d = s->d, set->base = s->base, set->queries = s->queries;
  if (strcmp(s->data, "pictures") == 0) {
    set->base = 60000, set->queries = 10000;
    set->base_data = keep_floats(set->base * 784), set->query_data = keep_floats(set->queries * 784);
    for (f = 0; f < sizeof folders / sizeof *folders && !set->source; f++)
      if (read_pictures(folders[f], "train-images-idx3-ubyte.gz", set->base_data, set->base) &&
          read_pictures(folders[f], "t10k-images-idx3-ubyte.gz", set->query_data, set->queries))
        set->source = "Fashion-MNIST, grey values halved";
    if (!set->source) {
      make_pictures(set->base_data, set->base, 1), make_pictures(set->query_data, set->queries, 2);
      set->source = "synthetic pictures (make data fetches Fashion-MNIST)";
    }
    printf("  pictures: %s\n", set->source);
  } else {
    set->base_data = keep_floats(set->base * set->d), set->query_data = keep_floats(set->queries * set->d);
    make_clusters(set->base_data, set->base, set->d, 3), make_clusters(set->query_data, set->queries, set->d, 4);
    set->source = "256 clusters of integers";
  }
  return set;
}

/* Exact: integers whose sums stay below 2^24; the root of L2 is correctly rounded. */
static float exact_distance(mlk_metric metric, const float *q, const float *x, int64_t d) {
  float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  int64_t j;
  if (metric == MLK_INNER_PRODUCT) {
    for (j = 0; j + 4 <= d; j += 4)
      s0 += q[j] * x[j], s1 += q[j + 1] * x[j + 1], s2 += q[j + 2] * x[j + 2], s3 += q[j + 3] * x[j + 3];
    for (; j < d; j++) s0 += q[j] * x[j];
  } else {
    for (j = 0; j + 4 <= d; j += 4) {
      const float t0 = q[j] - x[j], t1 = q[j + 1] - x[j + 1], t2 = q[j + 2] - x[j + 2], t3 = q[j + 3] - x[j + 3];
      s0 += t0 * t0, s1 += t1 * t1, s2 += t2 * t2, s3 += t3 * t3;
    }
    for (; j < d; j++) s0 += (q[j] - x[j]) * (q[j] - x[j]);
  }
  return metric == MLK_L2 ? sqrtf((s0 + s1) + (s2 + s3)) : (s0 + s1) + (s2 + s3);
}

/* Does (da, a) come before (db, b)? */
static int nearer(mlk_metric metric, float da, int64_t a, float db, int64_t b) {
  if (da != db) return metric == MLK_INNER_PRODUCT ? da > db : da < db;
  return a < b;
}

/* The naive search: insertion into a sorted list of k. */
static void expect_neighbours(const knn_state *w, int64_t query, int64_t *ids, float *distances) {
  const knn_spec *s = &w->s;
  int64_t i, found = 0, at;
  for (i = 0; i < s->base; i++) {
    const float distance = exact_distance(s->metric, w->queries + query * s->d, w->base + i * s->d, s->d);
    if (found == s->k && !nearer(s->metric, distance, i, distances[found - 1], ids[found - 1])) continue;
    if (found < s->k) found++;
    for (at = found - 1; at > 0 && nearer(s->metric, distance, i, distances[at - 1], ids[at - 1]); at--)
      distances[at] = distances[at - 1], ids[at] = ids[at - 1];
    distances[at] = distance, ids[at] = i;
  }
}

static void knn_call(void *arg) {
  knn_state *w = (knn_state *)arg;
  if (mlk_knn(w->ctx, &w->desc) != MLK_OK) call_failed(w->distances), w->ids[0] = -2;
}

static mlk_status knn_plan(void *arg, mlk_plan *plan) {
  return mlk_knn_plan(((knn_state *)arg)->ctx, &((knn_state *)arg)->desc, plan);
}

static void faiss_knn_call(void *arg) {
  knn_state *w = (knn_state *)arg;
  const knn_spec *s = &w->s;
  if (s->metric == MLK_INNER_PRODUCT)
    faiss_only.knn_ip(w->queries, w->base, (size_t)s->d, (size_t)s->queries, (size_t)s->base, (size_t)s->k,
                      w->distances, w->ids, NULL);
  else
    faiss_only.knn_l2(w->queries, w->base, (size_t)s->d, (size_t)s->queries, (size_t)s->base, (size_t)s->k,
                      w->distances, w->ids, NULL, NULL);
}

static void knn_spoil(void *arg) {
  const knn_state *w = (const knn_state *)arg;
  int64_t i;
  fill_nan(w->distances, w->s.queries * w->s.k);
  for (i = 0; i < w->s.queries * w->s.k; i++) w->ids[i] = -2;
}

static void knn_check(void *arg, const contender *who, char *why, size_t size) {
  const knn_state *w = (const knn_state *)arg;
  const knn_spec *s = &w->s;
  const int own = who->peer < 0;
  int64_t q, j;
  int c;
  if (own && w->ids[0] == -2) {
    text(why, size, "%s", mlk_last_error(((const knn_state *)who->arg)->ctx));
    return;
  }
  for (q = 0; q < s->queries; q++) {
    const float *query = w->queries + q * s->d;
    for (j = 0; j < s->k; j++) {
      const int64_t id = w->ids[q * s->k + j];
      const float got = w->distances[q * s->k + j];
      float expected, slack = 0;
      if (id < 0 || id >= s->base) {
        text(why, size, "query %lld, rank %lld: id %lld is no row", (long long)q, (long long)j, (long long)id);
        return;
      }
      expected = exact_distance(s->metric, query, w->base + id * s->d, s->d);
      if (!own) /* 32 units in the last place of the greatest term */
        slack = 32 * FLT_EPSILON *
                (exact_distance(MLK_INNER_PRODUCT, query, query, s->d) +
                 exact_distance(MLK_INNER_PRODUCT, w->base + id * s->d, w->base + id * s->d, s->d));
      if (!(fabsf(got - expected) <= slack)) {
        text(why, size, "query %lld, id %lld: distance is %.9g, but should be %.9g", (long long)q, (long long)id,
             (double)got, (double)expected);
        return;
      }
      if (j > 0 && own && !nearer(s->metric, w->distances[q * s->k + j - 1], w->ids[q * s->k + j - 1], got, id)) {
        text(why, size, "query %lld: ranks %lld and %lld are in the wrong order", (long long)q, (long long)j - 1,
             (long long)j);
        return;
      }
    }
  }
  for (c = 0; c < w->checked; c++) {
    q = w->checked_query[c];
    for (j = 0; j < s->k; j++) {
      const int64_t at = q * s->k + j, expected_at = c * s->k + j;
      const float slack = own ? 0
                              : 64 * FLT_EPSILON *
                                    exact_distance(MLK_INNER_PRODUCT, w->base + w->ids[at] * s->d,
                                                   w->base + w->ids[at] * s->d, s->d);
      if ((own && w->ids[at] != w->expected_ids[expected_at]) ||
          !(fabsf(w->distances[at] - w->expected_distances[expected_at]) <= slack)) {
        text(why, size, "query %lld, rank %lld: id %lld at %.9g, but should be id %lld at %.9g", (long long)q,
             (long long)j, (long long)w->ids[at], (double)w->distances[at], (long long)w->expected_ids[expected_at],
             (double)w->expected_distances[expected_at]);
        return;
      }
    }
  }
}

/* Of knn and of distances, which has no k. */
static knn_spec knn_read(problem *p, int searches) {
  static const mlk_metric metrics[] = {MLK_L2SQ, MLK_L2, MLK_INNER_PRODUCT};
  knn_spec s;
  int data, numerics = 0;
  memset(&s, 0, sizeof s);
  s.queries = problem_integer_needed(p, "q", 1, 1 << 24), s.base = problem_integer_needed(p, "base", 1, 1 << 28);
  s.d = problem_integer_needed(p, "d", 1, 1024);
  if (searches) {
    s.k = problem_integer(p, "k", 1, 2048, 10);
    if (s.k > s.base) problem_die(p, "k=%lld is more than base=%lld", (long long)s.k, (long long)s.base);
    numerics = problem_choice(p, "numerics", "strict fast strict,fast");
  }
  s.strict = numerics != 1, s.fast = numerics > 0;
  s.metric = metrics[problem_choice(p, "metric", "l2sq l2 ip")];
  data = problem_choice(p, "data", "clusters pictures"), s.data = data ? "pictures" : "clusters";
  if (data && (s.d != 784 || s.base > 60000 || s.queries > 10000))
    problem_die(p, "data=pictures has 60000 rows and 10000 queries of d=784, not base=%lld, q=%lld, d=%lld",
                (long long)s.base, (long long)s.queries, (long long)s.d);
  s.common = problem_read_common(p);
  problem_finish(p);
  return s;
}

/* As many queries searched naively as a fraction of a second allows, at least two, spread over all. */
static void knn_expect(knn_state *w) {
  const knn_spec *s = &w->s;
  const double budget = (opt.quick ? 1.5e8 : 6e8) / ((double)s->base * (double)s->d);
  int c;
  w->checked = budget < 2 ? 2 : budget > 64 ? 64 : (int)budget;
  if (w->checked > s->queries) w->checked = (int)s->queries;
  w->checked_query = (int64_t *)row_alloc((size_t)w->checked * sizeof(int64_t));
  w->expected_ids = (int64_t *)row_alloc((size_t)(w->checked * s->k) * sizeof(int64_t));
  w->expected_distances = row_floats(w->checked * s->k);
  for (c = 0; c < w->checked; c++) {
    w->checked_query[c] = c * s->queries / w->checked;
    expect_neighbours(w, w->checked_query[c], w->expected_ids + c * s->k, w->expected_distances + c * s->k);
  }
}

static void knn_run(problem *problem_text, row *r) {
  static knn_state w, fast;
  const knn_spec s = knn_read(problem_text, 1);
  const data_set *set;
  if (!r) return;
  set = data_of(&s);
  memset(&w, 0, sizeof w);
  w.s = s;
  w.queries = set->query_data, w.base = set->base_data;
  w.distances = row_floats(s.queries * s.k);
  w.ids = (int64_t *)row_alloc((size_t)(s.queries * s.k) * sizeof(int64_t));
  w.ctx = context(s.common.threads, s.common.isa, s.strict ? MLK_STRICT : MLK_FAST);
  w.desc.queries = mlk_f32((float *)there(w.queries), s.queries, s.d);
  w.desc.base = mlk_f32((float *)there(w.base), s.base, s.d);
  w.desc.k = s.k, w.desc.metric = s.metric;
  w.desc.ids = mlk_i64((int64_t *)there(w.ids), s.queries, s.k);
  w.desc.distances = mlk_f32((float *)there(w.distances), s.queries, s.k);
  knn_expect(&w);
  row_common(r, &s.common, s.common.cold ? ROW_FLUSHED : ROW_WARM);
  r->flops = 2.0 * (double)s.queries * (double)s.base * (double)s.d;
  if (s.common.cold || (double)s.base * (double)s.d * 4 > 2 * (double)last_cache_bytes())
    r->bytes = 4.0 * ((double)s.base * (double)s.d + (double)s.queries * (double)s.d) +
               12.0 * (double)s.queries * (double)s.k;
  r->spoil = knn_spoil, r->check = knn_check, r->arg = &w;
  row_add_mlk(r, "mlk", knn_call, knn_plan, &w);
  if (!s.strict) row_by_tensor_cores(r);
  if (s.strict && s.fast) {
    fast = w;
    fast.ctx = context(s.common.threads, s.common.isa, MLK_FAST);
    row_add_mlk(r, "mlk fast", knn_call, knn_plan, &fast);
    row_by_tensor_cores(r);
  }
  if (!s.common.forced && s.metric != MLK_L2) row_add(r, "faiss", FAISS, faiss_knn_call, &w);
  row_run(r);
}

static void distances_call(void *arg) {
  knn_state *w = (knn_state *)arg;
  if (mlk_distances(w->ctx, &w->all) != MLK_OK) call_failed(w->distances);
}

static mlk_status distances_plan(void *arg, mlk_plan *plan) {
  return mlk_distances_plan(((knn_state *)arg)->ctx, &((knn_state *)arg)->all, plan);
}

static void faiss_pairwise_call(void *arg) {
  knn_state *w = (knn_state *)arg;
  const knn_spec *s = &w->s;
  faiss_only.pairwise(s->d, s->queries, w->queries, s->base, w->base, w->distances, -1, -1, -1);
}

static void distances_spoil(void *arg) {
  const knn_state *w = (const knn_state *)arg;
  fill_nan(w->distances, w->s.queries * w->s.base);
}

static void distances_check(void *arg, const contender *who, char *why, size_t size) {
  const knn_state *w = (const knn_state *)arg;
  const knn_spec *s = &w->s;
  int64_t q, i;
  for (q = 0; q < s->queries; q++) {
    const float *query = w->queries + q * s->d;
    const float query_norm = exact_distance(MLK_INNER_PRODUCT, query, query, s->d);
    for (i = 0; i < s->base; i++) {
      const float *x = w->base + i * s->d, got = w->distances[q * s->base + i];
      const float expected = exact_distance(s->metric, query, x, s->d);
      const float slack = who->peer < 0 ? 0 : 64 * FLT_EPSILON * query_norm;
      if (!(fabsf(got - expected) <= slack)) {
        text(why, size, "distance of query %lld and row %lld is %.9g, but should be %.9g", (long long)q, (long long)i,
             (double)got, (double)expected);
        return;
      }
    }
  }
}

static void distances_run(problem *problem_text, row *r) {
  static knn_state w;
  const knn_spec s = knn_read(problem_text, 0);
  const data_set *set;
  if (!r) return;
  set = data_of(&s);
  memset(&w, 0, sizeof w);
  w.s = s;
  w.queries = set->query_data, w.base = set->base_data;
  w.distances = row_floats(s.queries * s.base);
  w.ctx = context(s.common.threads, s.common.isa, MLK_STRICT);
  w.all.queries = mlk_f32((float *)there(w.queries), s.queries, s.d);
  w.all.base = mlk_f32((float *)there(w.base), s.base, s.d);
  w.all.metric = s.metric, w.all.out = mlk_f32((float *)there(w.distances), s.queries, s.base);
  row_common(r, &s.common, s.common.cold ? ROW_FLUSHED : ROW_WARM);
  r->flops = 2.0 * (double)s.queries * (double)s.base * (double)s.d;
  if (s.common.cold) r->bytes = 4.0 * ((double)(s.base + s.queries) * (double)s.d + (double)s.base * (double)s.queries);
  r->spoil = distances_spoil, r->check = distances_check, r->arg = &w;
  row_add_mlk(r, "mlk", distances_call, distances_plan, &w);
  if (faiss_only.pairwise && s.metric == MLK_L2SQ && !s.common.forced)
    row_add(r, "faiss", FAISS, faiss_pairwise_call, &w);
  row_run(r);
}

/* class/QUERIESxBASExD/kK/METRIC: words are what is put behind the problem. */
static void declare_search(const char *class_name, const knn_spec *s, int flags, const char *words) {
  static const char *const names[MLK_METRIC_COUNT] = {"L2SQ", "L2", "IP", "cosine"};
  static const char *const metrics[MLK_METRIC_COUNT] = {"", " metric=l2", " metric=ip", ""};
  char name[96];
  text(name, sizeof name, "knn/%s/%lldx%lldx%lld/k%lld/%s", class_name, (long long)s->queries, (long long)s->base,
       (long long)s->d, (long long)s->k, names[s->metric]);
  declare(name, flags,
          PROBLEM("knn q=%lld base=%lld d=%lld k=%lld%s%s", (long long)s->queries, (long long)s->base, (long long)s->d,
                  (long long)s->k, metrics[s->metric], words));
}

static void declare_pictures(const char *class_name, int64_t queries, int64_t k, mlk_metric metric, int flags,
                             const char *words) {
  knn_spec s;
  char all[64];
  memset(&s, 0, sizeof s);
  s.queries = queries, s.base = 60000, s.d = 784, s.k = k, s.metric = metric;
  declare_search(class_name, &s, flags, text(all, sizeof all, " data=pictures%s", words));
}

static void declare_knn_forced(mlk_isa isa, int64_t queries) {
  char class_name[32], words[32];
  if (opt.cuda || !mlk_isa_available(isa)) return;
  declare_pictures(text(class_name, sizeof class_name, "forced/%s", mlk_isa_name(isa)), queries, 10, MLK_L2SQ,
                   ONE_THREAD, text(words, sizeof words, " isa=%s", mlk_isa_name(isa)));
}

static void declare_clusters(void) {
  static const int dims[] = {16, 64, 128, 960};
  knn_spec s;
  int i;
  for (i = 0; i < 4; i++) {
    memset(&s, 0, sizeof s);
    s.base = dims[i] >= 960 ? 100000 : 200000, s.d = dims[i], s.k = 10, s.queries = 1000;
    declare_search("clusters", &s, dims[i] == 128 ? 0 : ONE_THREAD, "");
    s.metric = MLK_INNER_PRODUCT, declare_search("clusters", &s, ONE_THREAD, "");
    s.metric = MLK_L2SQ, s.k = 1, declare_search("clusters", &s, ONE_THREAD, "");
    s.k = 100, declare_search("clusters", &s, ONE_THREAD, "");
    s.k = 10, s.queries = 1, declare_search("clusters", &s, ONE_THREAD, "");
  }
}

static void declare_knn(void) {
  declare_pictures("pictures", 1000, 10, MLK_L2SQ, QUICK, "");
  declare_pictures("pictures", 10000, 10, MLK_L2SQ, 0, "");
  declare_pictures("pictures", 10, 10, MLK_L2SQ, QUICK, "");
  declare_pictures("pictures", 1, 10, MLK_L2SQ, QUICK, "");
  declare_pictures("pictures", 1000, 1, MLK_L2SQ, ONE_THREAD, "");
  declare_pictures("pictures", 1000, 100, MLK_L2SQ, ONE_THREAD, "");
  declare_pictures("pictures", 1000, 10, MLK_INNER_PRODUCT, ONE_THREAD, "");
  declare_pictures("pictures", 10, 10, MLK_INNER_PRODUCT, ONE_THREAD, "");
  declare_pictures("pictures", 1, 10, MLK_INNER_PRODUCT, ONE_THREAD, "");
  declare_pictures("strict_fast", 1000, 10, MLK_L2SQ, ONE_THREAD, " numerics=strict,fast");
  declare_knn_forced(MLK_ISA_AVX2, 1000), declare_knn_forced(MLK_ISA_NEON, 1000);
  declare_knn_forced(MLK_ISA_SCALAR, 100);
  declare_clusters();
  declare("distances/clusters/500x10000x128", ONE_THREAD | QUICK, "distances q=500 base=10000 d=128");
  declare("distances/clusters/500x10000x16", ONE_THREAD, "distances q=500 base=10000 d=16");
  declare("distances/pictures/200x5000x784", ONE_THREAD, "distances q=200 base=5000 d=784 data=pictures");
}

#endif
