/* The sections of the page, from what is wrong to the context of each machine. */
#ifndef BENCH_PAGE_TABLES_H
#define BENCH_PAGE_TABLES_H

#include "page_svg.h"

static int is_noisy(const measurement *m) { return !m->wrong && m->noisy; }
static int is_busy(const measurement *m) { return !m->wrong && m->busy; }

/* The row's name as it is compared between machines, and whether its operands were out of cache on purpose. */
static const char *title_of(const measurement *m) { return m->cold ? format("%.140s (cold)", m->key) : m->key; }

/* The heading of a row, which may break after each part of the name. */
static void row_heading(const measurement *m) {
  const char *name = title_of(m);
  put("<tr><th scope=\"row\">");
  while (*name) {
    const size_t length = strcspn(name, "/");
    const int more = name[length] == '/' && name[length + 1];
    char *part = copy_text(name, length + (size_t)(name[length] == '/'));
    escape(part);
    free(part);
    if (more) put("<wbr/>");
    name += length + (name[length] == '/');
  }
  put("</th>");
}

static void section(const char *id, const char *title) { PUT("<h2 id=\"$\">$</h2>\n", id, title); }

/* -------------------------------------------------------------------------------------------- wrong, noise, summary */

static void section_wrong(const report_data *data) {
  static const char *const titles[] = {"row", "contender", "what is wrong", "command", "machine"};
  const int wrong = count_where(data, -1, -1, is_wrong);
  int i;
  if (!wrong) return;
  section("wrong", "Wrong results");
  PUT("<p class=\"alarm\" role=\"alert\"><strong>$ contender$ failed the check and $ not timed.</strong> "
      "Nothing else on this page speaks for them.</p>\n",
      format("%d", wrong), wrong > 1 ? "s" : "", wrong > 1 ? "were" : "was");
  table_begin("Results that failed their check", "");
  table_head(titles, 5);
  for (i = 0; i < data->count; i++) {
    const measurement *m = &data->list[i];
    if (!m->wrong) continue;
    row_heading(m);
    PUT("<td>$</td><td class=\"wrap bad\">$</td><td><code>$</code></td><td>$</td></tr>\n", m->contender, m->message,
        command_of(data, m), data->series[m->series].label);
  }
  table_end();
}

static void section_noise(const report_data *data) {
  static const char *const titles[] = {"row", ">time", ">noise", "why", "command", "machine"};
  const int noisy = count_where(data, -1, -1, is_unsteady), all = count_where(data, -1, -1, is_main);
  int i;
  section("noise", "Noise");
  if (!noisy) {
    PUT("<p>None of $ rows had more spread than allowed, or a busy machine.</p>\n", format("%d", all));
    return;
  }
  PUT("<p class=\"note\"><strong>$ of $ rows are noisy</strong>: their samples spread more than the run allowed, or "
      "somebody else "
      "used the machine. Their figures say little; charts show them hollow, tables with a tilde.</p>\n",
      format("%d", noisy), format("%d", all));
  put("<details><summary>The noisy rows</summary>\n");
  table_begin("Rows with too much noise: the middle half of their samples as a share of the median", "sort");
  table_head(titles, 6);
  for (i = 0; i < data->count; i++) {
    const measurement *m = &data->list[i];
    if (!is_unsteady(m)) continue;
    row_heading(m);
    number_cell(m->time, format_time(m->time), "");
    number_cell(m->noise, format_percent(m->noise), "");
    PUT("<td>$$</td><td><code>$</code></td><td>$</td></tr>\n", is_noisy(m) ? "spread " : "",
        is_busy(m) ? "busy machine" : "", command_of(data, m), data->series[m->series].label);
  }
  table_end();
  put("</details>\n");
}

static void tile(const char *kind, const char *value, const char *what) {
  PUT("<li><b class=\"$\">$</b>$</li>\n", kind, value, what);
}

static void tiles(const report_data *data) {
  const int wrong = count_where(data, -1, -1, is_wrong), noisy = count_where(data, -1, -1, is_unsteady);
  int shares, ratios, errors, i;
  double *share = values_of(data, -1, -1, SHARE, &shares), *ratio = values_of(data, -1, -1, VERSUS, &ratios);
  double *error = values_of(data, -1, -1, PREDICTION, &errors);
  put("<ul class=\"tiles\">\n");
  tile(wrong ? "bad" : "good", format("%d", wrong), "wrong results");
  tile(noisy ? "warn" : "good", format("%d", noisy), "noisy rows");
  tile("", format("%d", count_where(data, -1, -1, is_main)), "rows");
  if (shares) tile("", format_percent(quantile(share, shares, 0.5)), "of the ceiling, median");
  if (ratios) tile("", format("%.2fx", quantile(ratio, ratios, 0.5)), "the best peer's speed, median");
  for (i = 0; i < errors; i++) error[i] = fabs(error[i]);
  qsort(error, (size_t)errors, sizeof *error, by_value);
  if (errors) tile("", format_percent(quantile(error, errors, 0.5)), "prediction error, median");
  put("</ul>\n");
  free(share), free(ratio), free(error);
}

/* Median share of ceiling, ratio to the best peer and prediction error of a family in a series, as cells. */
static void family_cells(const report_data *data, int s, int f) {
  int counts[3], q, i, faster = 0;
  for (q = 0; q < 3; q++) {
    double *v = values_of(data, s, f, (quantity)q, &counts[q]);
    const int n = counts[q];
    if (q == PREDICTION) {
      for (i = 0; i < n; i++) v[i] = fabs(v[i]);
      qsort(v, (size_t)n, sizeof *v, by_value);
    }
    for (i = 0; q == VERSUS && i < n; i++) faster += v[i] >= 1;
    if (!n)
      empty_cell();
    else if (q == VERSUS)
      number_cell(quantile(v, n, 0.5), format("%.2fx", quantile(v, n, 0.5)), quantile(v, n, 0.5) < 0.995 ? "bad" : "");
    else
      number_cell(quantile(v, n, 0.5), format_percent(quantile(v, n, 0.5)), "");
    if (q == VERSUS && n) number_cell(faster, format("%d of %d", faster, n), "");
    if (q == VERSUS && !n) empty_cell();
    free(v);
  }
}

static int family_rows(const report_data *data, int s, int f) { return count_where(data, s, f, is_main); }

static void section_families(const report_data *data) {
  static const char *const titles[] = {
      "family", ">rows", ">share of ceiling", ">against the best peer", ">faster in", ">prediction error"};
  int s, f;
  section("families", "Families at a glance");
  put("<p>Medians over the rows of a family. Share: of the time that the measured ceilings allow. Against the best "
      "peer: its time over MLK's, above 1 MLK is faster. Prediction error: of the plan's time after calibration, "
      "regardless of sign; runs with --quick have none.</p>\n");
  for (s = 0; s < data->series_count; s++) {
    table_begin(data->series[s].label, "");
    table_head(titles, 6);
    for (f = 0; f < FAMILIES; f++) {
      const int rows = family_rows(data, s, f);
      if (!rows) continue;
      PUT("<tr><th scope=\"row\">$</th>", family_names[f]);
      number_cell(rows, format("%d", rows), "");
      family_cells(data, s, f);
      put("</tr>\n");
    }
    table_end();
  }
}

/* The least number of threads above this one that rows of a series ran on; 0: there is none. */
static int more_threads(const report_data *data, int s, int threads) {
  int i, least = 0;
  for (i = 0; i < data->count; i++) {
    const measurement *m = &data->list[i];
    if (m->series == s && m->threads > threads && (!least || m->threads < least)) least = m->threads;
  }
  return least;
}

static void section_rooflines(const report_data *data) {
  int s, threads;
  section("rooflines", "Rooflines");
  put("<p>Speed of every row over its arithmetic intensity, under the machine's ceilings: reading memory, and the best "
      "probe of "
      "multiply-adds beside any row. At the right: rows "
      "that work in "
      "cache, whose memory traffic does not count. At the left: rows without arithmetic, as high as their bytes a "
      "second "
      "reach on the slope. Marks above the slope work from a cache. The tables below have the same figures.</p>\n");
  legend(data);
  put("<div class=\"charts\">\n");
  for (s = 0; s < data->series_count; s++)
    for (threads = more_threads(data, s, 0); threads; threads = more_threads(data, s, threads))
      draw_roofline(data, s, threads);
  put("</div>\n");
}

/* ------------------------------------------------------------------------------------------------------------ peers */

enum { MAX_PEERS = 64 };

/* Is a contender one of this peer's ways: "mkl", "mkl jit"? */
static int of_peer(const measurement *m, const char *peer, size_t length) {
  return m->peer && strncmp(m->contender, peer, length) == 0 && strcspn(m->contender, " ,") == length;
}

/* The peers of a series, each by the first of its names. */
static int peers_of(const report_data *data, int s, const char *peers[MAX_PEERS], size_t lengths[MAX_PEERS]) {
  int i, p, count = 0;
  for (i = 0; i < data->count; i++) {
    const measurement *m = &data->list[i];
    for (p = 0; p < count && !of_peer(m, peers[p], lengths[p]); p++) {}
    if (m->peer && m->series == s && p == count && count < MAX_PEERS)
      peers[count] = m->contender, lengths[count++] = strcspn(m->contender, " ,");
  }
  return count;
}

/* A peer's best time in the row of measurement i over that measurement's; 0: it has none. wrong: one of its ways
   failed the check. */
static double ratio_in_row(const report_data *data, int i, const char *peer, size_t length, int *wrong) {
  const measurement *m = &data->list[i];
  double best = 0;
  *wrong = 0;
  while (i > 0 && data->list[i - 1].row_order == m->row_order && data->list[i - 1].series == m->series) i--;
  for (; i < data->count && data->list[i].row_order == m->row_order && data->list[i].series == m->series; i++) {
    const measurement *p = &data->list[i];
    if (!of_peer(p, peer, length)) continue;
    *wrong |= p->wrong;
    if (!p->wrong && (best <= 0 || p->time < best)) best = p->time;
  }
  return best / m->time;
}

/* Sorted ratios of a peer's best time in a row over MLK's. */
static double *ratios_of(const report_data *data, int s, int f, const char *peer, size_t length, int *count) {
  double *values = (double *)malloc((size_t)(data->count + 1) * sizeof *values);
  int i, wrong;
  if (!values) die("no memory");
  for (i = *count = 0; i < data->count; i++) {
    const measurement *m = &data->list[i];
    if (!m->main || m->wrong || m->series != s || m->family != f) continue;
    values[*count] = ratio_in_row(data, i, peer, length, &wrong);
    *count += values[*count] > 0;
  }
  qsort(values, (size_t)*count, sizeof *values, by_value);
  return values;
}

static void peer_row(const report_data *data, int s, int f, const char *peer, size_t length) {
  int count, i, faster = 0;
  double *v = ratios_of(data, s, f, peer, length, &count);
  for (i = 0; i < count; i++) faster += v[i] >= 1;
  if (count) {
    const double middle = quantile(v, count, 0.5);
    PUT("<tr><th scope=\"row\">$</th><td>$</td>", family_names[f], format("%.*s", (int)length, peer));
    number_cell(count, format("%d", count), "");
    number_cell(middle, format("%.2fx", middle), middle < 0.995 ? "bad" : "");
    number_cell(v[0], format("%.2fx", v[0]), "");
    number_cell(v[count - 1], format("%.2fx", v[count - 1]), "");
    number_cell(faster, format("%d of %d", faster, count), "");
    PUT("<td>$</td></tr>\n", data->series[s].label);
  }
  free(v);
}

static void section_peers(const report_data *data) {
  static const char *const titles[] = {"family", "peer",  ">rows",          ">median",
                                       ">least", ">most", ">MLK faster in", "machine"};
  const char *peers[MAX_PEERS];
  size_t lengths[MAX_PEERS];
  int s, f, p, any, count;
  section("peers", "Against other libraries");
  free(values_of(data, -1, -1, VERSUS, &any));
  if (!any) {
    put("<p>No file has results of other libraries.</p>\n");
    return;
  }
  put("<p>The peer's time over MLK's, measured in turns in one process: above 1 MLK is faster. Versions of the peers "
      "stand under "
      "<a href=\"#context\">context</a>.</p>\n");
  put("<div class=\"charts\">\n");
  for (s = 0; s < data->series_count; s++) draw_ratios(data, s);
  put("</div>\n");
  table_begin("Each peer's time over MLK's, by family", "sort");
  table_head(titles, 8);
  for (s = 0; s < data->series_count; s++) {
    count = peers_of(data, s, peers, lengths);
    for (f = 0; f < FAMILIES; f++)
      for (p = 0; p < count; p++) peer_row(data, s, f, peers[p], lengths[p]);
  }
  table_end();
}

/* ----------------------------------------------------------------------------------------------------- side by side */

static void machine_cells(const measurement *m) {
  if (!m) {
    put("<td class=\"n first\">–</td><td class=\"n\">–</td><td class=\"n\">–</td>");
    return;
  }
  if (m->wrong) {
    put("<td class=\"bad first\">WRONG</td><td></td><td></td>");
    return;
  }
  number_cell(m->time, format("%s%s", format_time(m->time), is_unsteady(m) ? " ~" : ""), "first");
  if (m->share > 0)
    number_cell(m->share, format_percent(m->share), "");
  else
    empty_cell();
  if (m->versus > 0)
    number_cell(m->versus, format("%.2fx", m->versus), m->versus < 0.995 ? "bad" : "");
  else
    empty_cell();
}

static void section_machines(const report_data *data) {
  int i, s;
  section("machines", data->series_count > 1 ? "Machines side by side" : "Rows");
  put("<p>One line per row: the median time of one operation, its share of the ceiling, and the best peer's time over "
      "it. In names, "
      "tN is all threads of each machine, or all of a GPU.</p>\n");
  PUT("<div class=\"box tall\" role=\"region\" tabindex=\"0\" aria-label=\"$\"><table class=\"sort "
      "pin\"><caption><span>$</span></caption>\n",
      "Rows, machines side by side", "Rows, machines side by side; a tilde marks noise");
  put("<thead><tr><td></td>");
  for (s = 0; s < data->series_count; s++)
    PUT("<th scope=\"colgroup\" colspan=\"3\" class=\"wide\">$</th>", data->series[s].label);
  put("</tr><tr><th scope=\"col\">row</th>");
  for (s = 0; s < data->series_count; s++)
    put("<th scope=\"col\" class=\"n first\">time</th><th scope=\"col\" class=\"n\">of ceiling</th>"
        "<th scope=\"col\" class=\"n\">best peer</th>");
  put("</tr></thead><tbody>\n");
  for (i = 0; i < data->count;) {
    const measurement *cells[MAX_SERIES] = {NULL}, *first = &data->list[i];
    int any = 0;
    for (; i < data->count && data->list[i].row_order == first->row_order; i++)
      if (data->list[i].main) cells[data->list[i].series] = &data->list[i], any = 1;
    if (!any) continue;
    row_heading(first);
    for (s = 0; s < data->series_count; s++) machine_cells(cells[s]);
    put("</tr>\n");
  }
  table_end();
}

/* ------------------------------------------------------------------------------------------------------ predictions */

static void prediction_row(const report_data *data, int s, int f) {
  int count, i, close = 0;
  double *v = values_of(data, s, f, PREDICTION, &count), middle, low, high;
  if (!count) {
    free(v);
    return;
  }
  middle = quantile(v, count, 0.5), low = quantile(v, count, 0.25), high = quantile(v, count, 0.75);
  PUT("<tr><th scope=\"row\">$</th>", f < 0 ? "all" : family_names[f]);
  number_cell(count, format("%d", count), "");
  number_cell(middle, format_change(middle), "");
  number_cell(high - low, format("%s to %s", format_change(low), format_change(high)), "");
  for (i = 0; i < count; i++) v[i] = fabs(v[i]), close += v[i] <= 0.15;
  qsort(v, (size_t)count, sizeof *v, by_value);
  number_cell(quantile(v, count, 0.5), format_percent(quantile(v, count, 0.5)),
              quantile(v, count, 0.5) > 0.15 ? "bad" : "");
  number_cell(v[count - 1], format_percent(v[count - 1]), "");
  number_cell((double)close / count, format("%d of %d", close, count), "");
  PUT("<td>$</td></tr>\n", data->series[s].label);
  free(v);
}

static void section_predictions(const report_data *data) {
  static const char *const titles[] = {"family",          ">rows",  ">median",      ">middle half",
                                       ">median of size", ">worst", ">within 15 %", "machine"};
  int s, f, any;
  section("predictions", "Predicted times");
  free(values_of(data, -1, -1, PREDICTION, &any));
  if (!any) {
    put("<p>No file has predicted times.</p>\n");
    return;
  }
  put("<p>What a plan said before the run, after one calibration of the machine, over what was measured: +10 % is a "
      "prediction of "
      "more time than it took.</p>\n<div class=\"charts\">\n");
  for (s = 0; s < data->series_count; s++) draw_predictions(data, s);
  put("</div>\n");
  table_begin("Error of predicted times: median, middle half, and without the sign", "sort");
  table_head(titles, 8);
  for (s = 0; s < data->series_count; s++)
    for (f = -1; f < FAMILIES; f++) prediction_row(data, s, f);
  table_end();
}

/* --------------------------------------------------------------------------------------------------------- baseline */

/* The same contender of the same row on the same machine, NULL where there is none. */
static const measurement *find_before(const report_data *old, const report_data *data, const measurement *m) {
  const series *s = &data->series[m->series];
  int i;
  for (i = 0; i < old->count; i++) {
    const measurement *o = &old->list[i];
    const series *t = &old->series[o->series];
    if (!o->wrong && o->cold == m->cold && strcmp(o->key, m->key) == 0 && strcmp(o->contender, m->contender) == 0 &&
        strcmp(s->machine, t->machine) == 0 && strcmp(s->isa, t->isa) == 0)
      return o;
  }
  return NULL;
}

/* A change as `mlk_bench compare` judges it. */
typedef struct change {
  const measurement *before, *now;
  double ratio, low, high;
  verdict what;
} change;

static change judge_change(const measurement *before, const measurement *now, double threshold) {
  timed old = {before->time, before->share, before->noise, before->samples, before->sample_count};
  timed new = {now->time, now->share, now->noise, now->samples, now->sample_count};
  static time_ratio r; /* large */
  change c;
  time_ratio_of(&old, &new, &r);
  c.before = before, c.now = now, c.ratio = r.ratio, c.low = r.low, c.high = r.high, c.what = verdict_of(&r, threshold);
  return c;
}

/* Contenders of MLK that both sides have, judged once: the caller frees them. */
static change *changes_of(const report_data *old, const report_data *data, double threshold, int *count) {
  change *list = (change *)malloc((size_t)(data->count + 1) * sizeof *list);
  int i;
  if (!list) die("no memory");
  for (i = *count = 0; i < data->count; i++) {
    const measurement *m = &data->list[i], *before;
    if (!m->peer && !m->wrong && (before = find_before(old, data, m)) != NULL)
      list[(*count)++] = judge_change(before, m, threshold);
  }
  return list;
}

static void change_rows(const report_data *data, const change *list, int count, verdict wanted, const char *word,
                        const char *kind) {
  int i;
  for (i = 0; i < count; i++) {
    const change *c = &list[i];
    if (c->what != wanted) continue;
    row_heading(c->now);
    PUT("<td>$</td><td class=\"$\">$</td>", c->now->contender, kind, word);
    number_cell(c->ratio, format("%.3fx", c->ratio), "");
    number_cell(c->high - c->low, format("%.3f to %.3f", c->low, c->high), "");
    number_cell(c->before->time, format_time(c->before->time), "");
    number_cell(c->now->time, format_time(c->now->time), "");
    PUT("<td><code>$</code></td><td>$</td></tr>\n", command_of(data, c->now), data->series[c->now->series].label);
  }
}

static int changes_that_are(const change *list, int count, verdict what) {
  int i, found = 0;
  for (i = 0; i < count; i++) found += list[i].what == what;
  return found;
}

static void section_baseline(const report_data *old, const report_data *data, double threshold) {
  static const char *const titles[] = {"row",     "contender", "verdict", ">now / before", ">95 % interval",
                                       ">before", ">now",      "command", "machine"};
  int count, regressed;
  change *list = changes_of(old, data, threshold, &count);
  section("baseline", "Against the baseline");
  regressed = changes_that_are(list, count, VERDICT_REGRESSED);
  if (!count) {
    put("<p class=\"note\">The baseline has none of these rows on one of these machines: nothing was compared.</p>\n");
    free(list);
    return;
  }
  PUT("<p class=\"$\"><strong>$ of $ contenders regressed</strong> by more than $, $ improved, $ are unclear: their "
      "intervals "
      "are wider than that. The rule is that of <code>mlk_bench compare</code>: the bootstrap interval of the ratio of "
      "the medians "
      "lies beyond the threshold, and the share of the ceiling fell as much.</p>\n",
      regressed ? "alarm" : "", format("%d", regressed), format("%d", count), format_percent(threshold),
      format("%d", changes_that_are(list, count, VERDICT_IMPROVED)),
      format("%d", changes_that_are(list, count, VERDICT_UNCLEAR)));
  if (count > changes_that_are(list, count, VERDICT_SAME) + changes_that_are(list, count, VERDICT_UNCLEAR)) {
    table_begin("Contenders of MLK that changed", "sort");
    table_head(titles, 9);
    change_rows(data, list, count, VERDICT_REGRESSED, "REGRESSED", "bad");
    change_rows(data, list, count, VERDICT_MACHINE_IS_SLOWER, "changed as the machine did", "");
    change_rows(data, list, count, VERDICT_IMPROVED, "improved", "good");
    table_end();
  }
  if (changes_that_are(list, count, VERDICT_UNCLEAR)) {
    put("<details><summary>The unclear ones</summary>\n");
    table_begin("Contenders of MLK whose interval is wider than the threshold", "sort");
    table_head(titles, 9);
    change_rows(data, list, count, VERDICT_UNCLEAR, "unclear", "dim");
    table_end();
    put("</details>\n");
  }
  free(list);
}

/* ------------------------------------------------------------------------------------------------------- everything */

static void peer_cells(const report_data *data, int i, const char *const *peers, const size_t *lengths, int count) {
  int p, wrong;
  for (p = 0; p < count; p++) {
    const double ratio = ratio_in_row(data, i, peers[p], lengths[p], &wrong);
    if (ratio > 0)
      number_cell(ratio, format("%.2fx", ratio), ratio < 0.995 ? "bad" : "");
    else if (wrong)
      put("<td class=\"bad\">WRONG</td>");
    else
      empty_cell();
  }
}

static void number_or_none(double value, const char *text) {
  if (value > 0)
    number_cell(value, text, "");
  else
    empty_cell();
}

/* A contender of MLK, with a cell for each peer. */
static void contender_row(const report_data *data, int i, const char *const *peers, const size_t *lengths, int count) {
  const measurement *m = &data->list[i];
  int empty;
  row_heading(m);
  PUT("<td>$</td><td>$</td>", m->contender, m->variant);
  number_cell(m->threads, format("%d", m->threads), "");
  if (m->wrong) {
    put("<td class=\"bad\">WRONG</td>");
    for (empty = 0; empty < count + 6; empty++) put("<td></td>");
  } else {
    number_cell(m->time, format_time(m->time), "");
    number_or_none(m->best, format_time(m->best));
    number_cell(m->noise, format("%s%s", format_percent(m->noise), m->noisy || m->busy ? " ~" : ""), "");
    PUT("<td class=\"n\">$</td>", rate_of(m));
    number_or_none(m->share, format("%s %s", format_percent(m->share), m->bound));
    peer_cells(data, i, peers, lengths, count);
    number_or_none(m->predicted, format_time(m->predicted));
    if (m->workspace >= 0)
      number_cell(m->workspace, format_bytes(m->workspace), "");
    else
      empty_cell();
  }
  PUT("<td><code>$</code></td></tr>\n", command_of(data, m));
}

static void everything_of(const report_data *data, int s) {
  static const char *const before[] = {"row",   "by",     "variant", ">threads",   ">time",
                                       ">best", ">noise", ">rate",   ">of ceiling"};
  static const char *const after[] = {">predicted", ">workspace", "command that repeats it"};
  const char *titles[MAX_PEERS + 12], *peers[MAX_PEERS];
  char names[MAX_PEERS][40];
  size_t lengths[MAX_PEERS];
  const int count = peers_of(data, s, peers, lengths);
  int i, title = 0;
  for (i = 0; i < 9; i++) titles[title++] = before[i];
  for (i = 0; i < count; i++) {
    snprintf(names[i], sizeof names[i], ">%.*s", (int)lengths[i], peers[i]);
    titles[title++] = names[i];
  }
  for (i = 0; i < 3; i++) titles[title++] = after[i];
  PUT("<details><summary>$</summary>\n<div class=\"box tall\" role=\"region\" tabindex=\"0\" aria-label=\"$\">"
      "<table class=\"sort pin\"><caption><span>$</span></caption>\n",
      data->series[s].label, format("Measurements on %.100s", data->series[s].label),
      format("Measurements on %.100s; a peer's column: its time over this one", data->series[s].label));
  table_head(titles, title);
  for (i = 0; i < data->count; i++)
    if (data->list[i].series == s && !data->list[i].peer) contender_row(data, i, peers, lengths, count);
  table_end();
  put("</details>\n");
}

static void section_everything(const report_data *data) {
  int s;
  section("everything", "Every measurement, and the command that repeats it");
  for (s = 0; s < data->series_count; s++) everything_of(data, s);
}

/* ---------------------------------------------------------------------------------------------------------- context */

static const char *plain_value(const json_document *d, const json_value *v) {
  if (v->type == JSON_STRING) return v->text;
  if (v->type == JSON_TRUE) return "yes";
  if (v->type == JSON_FALSE) return "no";
  if (v->type == JSON_NULL) return "unknown";
  return format("%.*s", (int)(v->end - v->at < 100 ? v->end - v->at : 100), d->original + v->at);
}

/* An array of flat objects (caches, ceilings) as a table; other nested values are counted. */
static void context_list(const json_document *d, const json_value *list) {
  int i, j;
  if (list->type != JSON_ARRAY || !list->first || d->values[list->first].type != JSON_OBJECT) return;
  table_begin(list->key, "");
  put("<thead><tr>");
  for (j = d->values[list->first].first; j; j = d->values[j].next)
    PUT("<th scope=\"col\" class=\"$\">$</th>", d->values[j].type == JSON_NUMBER ? "n" : "", d->values[j].key);
  put("</tr></thead><tbody>\n");
  for (i = list->first; i; i = d->values[i].next) {
    put("<tr>");
    for (j = d->values[i].first; j; j = d->values[j].next) {
      const json_value *v = &d->values[j];
      if (v->type == JSON_NUMBER)
        number_cell(v->number, plain_value(d, v), "");
      else
        PUT("<td>$</td>", v->type < JSON_ARRAY ? plain_value(d, v) : "...");
    }
    put("</tr>\n");
  }
  table_end();
}

static void section_context(const report_data *data) {
  int s, i;
  section("context", "Context");
  for (s = 0; s < data->series_count; s++) {
    const series *one = &data->series[s];
    const json_document *d = one->document;
    PUT("<h3>$</h3>\n<p class=\"dim\">$ file$; what follows is of $.</p>\n", one->label, format("%d", one->files),
        one->files > 1 ? "s" : "", d->path);
    table_begin(format("Where and with what: %.100s", one->label), "");
    put("<tbody>\n");
    for (i = one->context->first; i; i = d->values[i].next)
      if (d->values[i].type < JSON_ARRAY)
        PUT("<tr><th scope=\"row\">$</th><td class=\"wrap\">$</td></tr>\n", d->values[i].key,
            plain_value(d, &d->values[i]));
    table_end();
    for (i = one->context->first; i; i = d->values[i].next)
      if (strcmp(d->values[i].key, "rows") != 0) context_list(d, &d->values[i]);
  }
}

#endif
