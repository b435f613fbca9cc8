/* Problems as text: a family, a shape and words, in any order but for the family. "matmul 1024x512:512x768 layout=nt
   threads=2" is read by asking for one word after another; what nobody asked for is an error. Every error is one
   sentence that names the word, its value and what is allowed. */
#ifndef BENCH_PROBLEM_H
#define BENCH_PROBLEM_H

enum { MAX_WORDS = 24, MAX_ASKED = 32, PROBLEM_CHARS = 192 };

typedef struct problem {
  char text[PROBLEM_CHARS]; /* with single spaces */
  const char *where;        /* of error messages: the file and line of a batch, else "" */
  char split[PROBLEM_CHARS];
  const char *words[MAX_WORDS]; /* in split, so a problem is not copied; [0] is the family */
  int used[MAX_WORDS], count;
  const char *asked[MAX_ASKED];
  int asked_count;
} problem;

static void problem_die(const problem *p, const char *format, ...) {
  char what[512];
  va_list args;
  va_start(args, format);
  vsnprintf(what, sizeof what, format, args);
  va_end(args);
  die("%s%s: %s", p->where, p->count ? p->words[0] : "problem", what);
}

static void problem_read(problem *p, const char *from, const char *where) {
  char *word;
  size_t used = 0;
  int i;
  memset(p, 0, sizeof *p);
  p->where = where;
  if (strlen(from) >= sizeof p->split) problem_die(p, "%.40s... is longer than %d characters", from, PROBLEM_CHARS - 1);
  text(p->split, sizeof p->split, "%s", from);
  for (word = strtok(p->split, " \t\r\n"); word; word = strtok(NULL, " \t\r\n")) {
    if (p->count == MAX_WORDS) problem_die(p, "more than %d words", MAX_WORDS);
    p->words[p->count++] = word;
  }
  if (p->count == 0) problem_die(p, "is empty");
  for (i = 0; i < p->count; i++)
    used += strlen(text(p->text + used, sizeof p->text - used, "%s%s", i ? " " : "", p->words[i]));
}

/* Is there a word key=value? */
static int problem_has(const problem *p, const char *key) {
  const size_t length = strlen(key);
  int i;
  for (i = 1; i < p->count; i++)
    if (strncmp(p->words[i], key, length) == 0 && p->words[i][length] == '=') return 1;
  return 0;
}

/* The value of key=value; NULL when the word is not there. */
static const char *problem_value(problem *p, const char *key) {
  const size_t length = strlen(key);
  const char *found = NULL;
  int i;
  if (p->asked_count == MAX_ASKED) die("too many words are asked for");
  p->asked[p->asked_count++] = key;
  for (i = 1; i < p->count; i++) {
    if (strncmp(p->words[i], key, length) != 0 || p->words[i][length] != '=') continue;
    if (found) problem_die(p, "%s stands twice: %s and %s", key, found, p->words[i] + length + 1);
    p->used[i] = 1, found = p->words[i] + length + 1;
  }
  return found;
}

/* The one word without "=": a shape. NULL when there is none. */
static const char *problem_shape(problem *p) {
  const char *found = NULL;
  int i;
  for (i = 1; i < p->count; i++) {
    if (strchr(p->words[i], '=')) continue;
    if (found) problem_die(p, "two shapes, %s and %s; one is allowed", found, p->words[i]);
    p->used[i] = 1, found = p->words[i];
  }
  return found;
}

static int64_t problem_integer_of(const problem *p, const char *key, const char *value, int64_t low, int64_t high) {
  char *end;
  const long long x = strtoll(value, &end, 10);
  if (end == value || *end || x < low || x > high)
    problem_die(p, "%s=%s is not a whole number in %lld .. %lld", key, value, (long long)low, (long long)high);
  return x;
}

static int64_t problem_integer(problem *p, const char *key, int64_t low, int64_t high, int64_t otherwise) {
  const char *value = problem_value(p, key);
  return value ? problem_integer_of(p, key, value, low, high) : otherwise;
}

static int64_t problem_integer_needed(problem *p, const char *key, int64_t low, int64_t high) {
  const char *value = problem_value(p, key);
  if (!value) problem_die(p, "needs %s=N, a whole number in %lld .. %lld", key, (long long)low, (long long)high);
  return value ? problem_integer_of(p, key, value, low, high) : 0;
}

/* The place of the word's value among choices, which are parted by spaces; the first one is meant when the word is not
   there. */
static int problem_choice(problem *p, const char *key, const char *choices) {
  const char *value = problem_value(p, key), *at;
  char list[192];
  size_t i = 0, used = 0;
  int n;
  if (!value) return 0;
  for (at = choices, n = 0; *at; at += at[i] ? i + 1 : i, n++) {
    i = strcspn(at, " ");
    if (strlen(value) == i && strncmp(value, at, i) == 0) return n;
    used += strlen(text(list + used, sizeof list - used, "%s%.*s", n ? ", " : "", (int)i, at));
  }
  problem_die(p, "%s=%s is none of %s", key, value, list);
  return 0;
}

/* "8x64x56x56" into sizes; returns how many, low .. high of them. key: the word, or "" of the shape. */
static int problem_sizes(const problem *p, const char *key, const char *from, int low, int high, int64_t *sizes) {
  const char *at = from, *sign = key[0] ? "=" : "";
  int count = 0;
  for (;;) {
    char *end;
    const long long x = strtoll(at, &end, 10);
    if (end == at || (*end && *end != 'x') || x < 1 || x > ((int64_t)1 << 31))
      problem_die(p, "%s%s%s is not made of sizes 1 .. 2^31 with x between them", key, sign, from);
    if (count == high) problem_die(p, "%s%s%s has more than %d sizes", key, sign, from, high);
    sizes[count++] = x;
    if (!*end) break;
    at = end + 1;
  }
  if (count < low)
    problem_die(p, "%s%s%s has %d size%s, but needs %d", key, sign, from, count, count > 1 ? "s" : "", low);
  return count;
}

/* The sizes of a word that must be there. */
static void problem_sizes_needed(problem *p, const char *key, const char *like, int count, int64_t *sizes) {
  const char *value = problem_value(p, key);
  if (!value) problem_die(p, "needs %s=%s", key, like);
  if (value) problem_sizes(p, key, value, count, count, sizes);
}

/* The shape, which must be there. */
static int problem_shape_needed(problem *p, const char *like, int low, int high, int64_t *sizes) {
  const char *value = problem_shape(p);
  if (!value) problem_die(p, "needs a shape like %s", like);
  return value ? problem_sizes(p, "", value, low, high, sizes) : 0;
}

/* What every family has. */
typedef struct problem_common {
  int threads, cold, count; /* count: how often a model does it; of batches */
  mlk_isa isa;
  int forced; /* the problem names the instruction set: peers take no part */
} problem_common;

/* --cache on the command line overrules the problem's own word. */
static problem_common problem_read_common(problem *p) {
  problem_common c;
  const char *isa;
  int cache;
  memset(&c, 0, sizeof c);
  if (opt.cuda && (problem_has(p, "threads") || problem_has(p, "isa")))
    problem_die(p, "threads and isa are of the CPU; a problem for --device cuda has neither");
  c.threads = (int)problem_integer(p, "threads", 1, 1024, opt.threads);
  c.count = (int)problem_integer(p, "count", 1, 1000000, 1);
  cache = problem_choice(p, "cache", "warm cold");
  c.cold = opt.cache == CACHE_BY_ROW ? cache : opt.cache == CACHE_COLD;
  isa = problem_value(p, "isa");
  c.isa = opt.isa;
  if (isa) {
    for (c.isa = (mlk_isa)1; c.isa < MLK_ISA_REFERENCE && strcmp(mlk_isa_name(c.isa), isa) != 0;
         c.isa = (mlk_isa)(c.isa + 1)) {}
    if (c.isa == MLK_ISA_REFERENCE) problem_die(p, "isa=%s is none of avx512, avx2, neon, scalar", isa);
    if (!mlk_isa_available(c.isa)) problem_die(p, "isa=%s does not run here", isa);
    c.forced = 1;
  }
  return c;
}

/* After the last question. */
static void problem_finish(const problem *p) {
  char list[512] = "";
  size_t used = 0;
  int i, j;
  for (i = 1; i < p->count; i++) {
    if (p->used[i]) continue;
    for (j = 0; j < p->asked_count; j++)
      used += strlen(text(list + used, sizeof list - used, "%s%s", j ? ", " : "", p->asked[j]));
    problem_die(p, "%s is no word of it; there are %s", p->words[i], list);
  }
}

#endif
