/* Which rows: the families and their words, problems from the command line and from batch files, filters. */
#ifndef BENCH_SELECT_H
#define BENCH_SELECT_H

/* The first word of a problem; its rows' names begin with area. run with r NULL only reads the problem. */
typedef struct family {
  const char *word, *area;
  void (*run)(problem *p, row *r);
} family;

static const family families[] = {{"matmul", "matmul", matmul_run},
                                  {"knn", "knn", knn_run},
                                  {"distances", "distances", distances_run},
                                  {"conv", "conv", conv_run},
                                  {"map", "glue", glue_run},
                                  {"reduce", "glue", glue_run},
                                  {"pool", "glue", glue_run},
                                  {"softmax", "glue", glue_run},
                                  {"norm", "glue", glue_run},
                                  {"cross_entropy", "glue", glue_run},
                                  {"adamw", "glue", glue_run},
                                  {"attention", "attention", attention_run},
                                  {"merge", "attention", merge_run},
                                  {"average", "average", average_run}};
enum { FAMILY_COUNT = sizeof families / sizeof *families };

/* Names wanted by --filter: parts separated by commas; a name is wanted when it contains one of them, and none of those
   that begin with '-'. */
static int name_wanted(const char *name) {
  const char *p = opt.filter;
  int any_positive = 0, hit = 0;
  if (!p) return 1;
  while (*p) {
    char part[128];
    const size_t length = strcspn(p, ",");
    const int negative = *p == '-';
    if (length >= sizeof part) die("--filter: part longer than %d characters", (int)sizeof part - 1);
    memcpy(part, p, length);
    part[length] = 0;
    if (length > (size_t)negative) {
      const int found = strstr(name, part + negative) != NULL;
      if (negative && found) return 0;
      if (!negative) any_positive = 1, hit |= found;
    }
    p += length + (p[length] == ',');
  }
  return hit || !any_positive;
}

static void declare_all(void) {
  declare_matmul();
  declare_knn();
  declare_convs();
  declare_glue();
  declare_attention();
  declare_average();
}

static const family *family_of(const problem *p) {
  char list[256] = "";
  size_t used = 0;
  int f;
  for (f = 0; f < FAMILY_COUNT; f++)
    if (strcmp(p->words[0], families[f].word) == 0) return &families[f];
  for (f = 0; f < FAMILY_COUNT; f++)
    used += strlen(text(list + used, sizeof list - used, "%s%s", f ? ", " : "", families[f].word));
  die("%s%s begins no problem; one begins with %s", p->where, p->words[0], list);
  return NULL;
}

/* Reads the row's problem as far as it says how it is run. */
static problem_common row_common_of(const bench_row *r) {
  problem p;
  problem_read(&p, r->problem, r->where);
  return problem_read_common(&p);
}

/* Do two problems have the same words? */
static int problem_same(const problem *a, const problem *b) {
  int i, j;
  if (a->count != b->count || strcmp(a->words[0], b->words[0]) != 0) return 0;
  for (i = 1; i < a->count; i++) {
    for (j = 1; j < b->count && strcmp(a->words[i], b->words[j]) != 0; j++) {}
    if (j == b->count) return 0;
  }
  return 1;
}

/* The row of the table that stands for the same problem. */
static const bench_row *row_like(const problem *p, int table_rows) {
  int i;
  for (i = 0; i < table_rows; i++) {
    problem other;
    problem_read(&other, row_list[i].problem, "");
    if (problem_same(p, &other)) return &row_list[i];
  }
  return NULL;
}

/* AREA/CLASS/WORDS/tN or, on a device, /cuda, without the words that are no property of the operation. */
static void name_problem(bench_row *r, const problem *p, const family *f, const char *class_name, int threads) {
  size_t used = strlen(text(r->name, sizeof r->name, "%s/%s/", f->area, class_name));
  int i;
  if (strcmp(f->word, f->area) != 0) used += strlen(text(r->name + used, sizeof r->name - used, "%s,", f->word));
  for (i = 1; i < p->count; i++)
    if (strncmp(p->words[i], "threads=", 8) != 0 && strncmp(p->words[i], "count=", 6) != 0)
      used += strlen(text(r->name + used, sizeof r->name - used, "%s%s", p->words[i], i + 1 < p->count ? "," : ""));
  while (used > 0 && r->name[used - 1] == ',') r->name[--used] = 0;
  if (opt.cuda)
    text(r->name + used, sizeof r->name - used, "/cuda");
  else
    text(r->name + used, sizeof r->name - used, "/t%d", threads);
}

/* Adds the row of a problem that somebody wrote. It is read now: a wrong word is said before anything is timed. */
static void add_problem(const char *problem_text, const char *class_name, const char *where, int table_rows) {
  char whole[PROBLEM_CHARS];
  const bench_row *like;
  bench_row *r;
  problem p, read;
  const family *f;
  problem_common common;
  problem_read(&p, problem_text, where);
  f = family_of(&p);
  common = problem_read_common(&p);
  text(whole, sizeof whole, "%s", p.text);
  if (!problem_has(&p, "threads") && !opt.cuda) {
    if (strlen(whole) + 16 > sizeof whole) problem_die(&p, "is longer than %d characters", PROBLEM_CHARS - 16);
    text(whole + strlen(whole), sizeof whole - strlen(whole), " threads=%d", common.threads);
  }
  problem_read(&p, whole, where);
  problem_read(&read, whole, where);
  f->run(&read, NULL);
  r = row_new();
  text(r->problem, sizeof r->problem, "%s", p.text);
  text(r->where, sizeof r->where, "%s", where);
  like = row_like(&p, table_rows);
  if (like)
    text(r->name, sizeof r->name, "%s", like->name);
  else
    name_problem(r, &p, f, class_name, common.threads);
  r->quick = 1;
}

/* "resnet50" of bench/batches/resnet50.txt. */
static char *batch_name(char *out, size_t size) {
  const char *slash = strrchr(opt.batch, '/'), *from = slash ? slash + 1 : opt.batch;
  return text(out, size, "%.*s", (int)strcspn(from, "."), from);
}

static void add_batch(int table_rows) {
  char line[1024], where[96], name[64];
  FILE *f = fopen(opt.batch, "r");
  int number = 0, added = row_count;
  if (!f) die("cannot open %s", opt.batch);
  batch_name(name, sizeof name);
  while (fgets(line, sizeof line, f)) {
    line[strcspn(line, "#\r\n")] = 0;
    text(where, sizeof where, "%s:%d: ", opt.batch, ++number);
    if (line[strspn(line, " \t")]) add_problem(line, name, where, table_rows);
  }
  fclose(f);
  if (row_count == added) die("%s has no problem in it", opt.batch);
}

/* Is name what itself, or below it: matmul, matmul/large, matmul/large/1024/t1? */
static int name_is_below(const char *name, const char *what) {
  const size_t length = strlen(what);
  return strncmp(name, what, length) == 0 && (!name[length] || name[length] == '/');
}

static int any_row_below(const char *what) {
  int i;
  for (i = 0; i < row_count; i++)
    if (name_is_below(row_list[i].name, what)) return 1;
  return 0;
}

/* Leaves in row_list what the command line asks for. */
static void select_rows(void) {
  int table_rows, by_name, from = 0, i, kept = 0;
  declare_all();
  table_rows = row_count;
  by_name = opt.what[0] && any_row_below(opt.what);
  if (opt.batch)
    add_batch(table_rows), from = table_rows;
  else if (opt.what[0] && !by_name)
    add_problem(opt.what, "problem", "", table_rows), from = table_rows;
  for (i = from; i < row_count; i++) {
    const bench_row *r = &row_list[i];
    if ((by_name && !name_is_below(r->name, opt.what)) || !name_wanted(r->name) || (opt.quick && !r->quick)) continue;
    row_list[kept++] = *r;
  }
  row_count = kept;
  if (kept == 0)
    die("no row is left: %s%s%s%s%s; see mlk_bench list", opt.what, opt.what[0] ? " " : "",
        opt.filter ? "--filter " : "", opt.filter ? opt.filter : "", opt.quick ? "--quick" : "");
}

#endif
