/* The list of rows: each is a name and the problem that it stands for. Families declare theirs; the command line and
   batch files add others. What is run is always a problem, read and run by its family. */
#ifndef BENCH_ROWS_H
#define BENCH_ROWS_H

enum {
  ONE_THREAD = 1,
  QUICK = 2,
  QUICK_ONE_THREAD = 4
}; /* no row on several threads; part of --quick, the last on one thread only */

typedef struct bench_row {
  char name[NAME_CHARS], problem[PROBLEM_CHARS], where[96]; /* where: file and line of a batch */
  int quick;
} bench_row;

static bench_row *row_list;
static int row_count;

static bench_row *row_new(void) {
  static int capacity;
  if (row_count == capacity) {
    capacity = capacity ? 2 * capacity : 256;
    row_list = (bench_row *)realloc(row_list, (size_t)capacity * sizeof *row_list);
    if (!row_list) die("no memory");
  }
  memset(&row_list[row_count], 0, sizeof *row_list);
  return &row_list[row_count++];
}

/* Adds the row NAME/t1 and, where the run has several threads, NAME/tN; on a device NAME/cuda. */
static void declare(const char *name, int flags, const char *problem_text) {
  const int many = opt.threads > 1 && !(flags & ONE_THREAD);
  int i;
  if (opt.cuda) {
    bench_row *r = row_new();
    text(r->name, sizeof r->name, "%s/cuda", name), text(r->problem, sizeof r->problem, "%s", problem_text);
    r->quick = (flags & (QUICK | QUICK_ONE_THREAD)) != 0;
    return;
  }
  for (i = 0; i <= many; i++) {
    bench_row *r = row_new();
    const int threads = i ? opt.threads : 1;
    text(r->name, sizeof r->name, "%s/t%d", name, threads);
    text(r->problem, sizeof r->problem, "%s threads=%d", problem_text, threads);
    r->quick = (flags & QUICK) || (i == 0 && (flags & QUICK_ONE_THREAD));
  }
}

static char problem_buffer[PROBLEM_CHARS];
#define PROBLEM(...) text(problem_buffer, sizeof problem_buffer, __VA_ARGS__)

typedef enum row_cache {
  ROW_WARM,
  ROW_ROTATES, /* calls go round copies of the operands that no cache holds all of */
  ROW_FLUSHED  /* the caches are emptied before every sample */
} row_cache;

static void row_common(row *r, const problem_common *c, row_cache cache) {
  r->threads = c->threads, r->isa = c->isa, r->repeats = c->count;
  r->cold = cache != ROW_WARM, r->flushed = cache == ROW_FLUSHED;
}

#endif
