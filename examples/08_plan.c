/* Plans a training before it runs: memory, arithmetic, traffic, time, cost, and what limits it, out of mlk.h's plans.

   Build: cc -O2 -fopenmp -I. examples/08_plan.c -o build/08_plan -lm
   Run:   build/08_plan --model gpt2-124m --machine h100-sxm --replicas 8 --micro-batch 16
          (--help lists settings, models and machines; docs/planner.md has worked examples, checked against papers)

   How it is built. A model is a list of settings, by name, from a file, or by flags; docs/planner.md says what each
   means. Memory is the list of arrays that a training needs, each counted once: see >>memory below. Arithmetic and time
   are those of the library's calls: the planner makes the descriptor of every call of a forward pass, a backward pass
   and an update, with the shapes of the model and no data, and asks mlk_X_plan. FLOPs are the plans' FLOPs, of the
   definition, and time is the plans' time.

   Three kinds of machine:
     here        a context on the CPU, after mlk_measure: time and workspace as the library has them
     a name      figures of a data sheet: a context that only plans. With CUDA=1 on mlk_cuda_backend(), which knows its
                 kernels and their workspace; else on the table of functions below, >>figures, which knows the roofline:
                 FLOPs by the rate, bytes by the bandwidth, the larger of the two. No run is faster; many are slower
     none        no time

   The two trainers of this folder are models too, 02_fashion_cnn and 03_gpt: for them every byte of --memory is what
   the trainer's own --memory says that it allocated (tests/test_plan.sh).

   Exit code: 0 done, 1 the library or the memory of this program failed, 2 a setting is wrong. */

#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L /* sysconf under -std=c99 */
#endif
#if defined(__linux__) && !defined(_DEFAULT_SOURCE)
#define _DEFAULT_SOURCE /* _SC_PHYS_PAGES */
#endif

#define MLK_IMPLEMENTATION
#include "mlk.h"
#if defined(MLK_EXAMPLE_CUDA)
#include "mlk_cuda.cuh" /* plain, as a header: the program is linked with the object of its implementation */
#endif

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if !defined(_WIN32)
#include <unistd.h>
#endif

enum { EXIT_RUN = 1, EXIT_INPUT = 2 };

/* ---- small things ------------------------------------------------------------------------------------------------ */

/* One line on standard error; returns EXIT_INPUT, so that checks read "return complain(...)". */
static int complain(const char *format, ...) {
  va_list args;
  fflush(stdout);
  fputs("08_plan: ", stderr);
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fputc('\n', stderr);
  return EXIT_INPUT;
}

typedef struct text {
  char s[48];
} text;

/* 1234567 as 1,234,567 */
static text grouped(uint64_t value) {
  char digits[32];
  text t;
  const int length = snprintf(digits, sizeof digits, "%" PRIu64, value);
  int i, to = 0;
  for (i = 0; i < length; i++) {
    t.s[to++] = digits[i];
    if ((length - i) % 3 == 1 && i + 1 < length) t.s[to++] = ',';
  }
  t.s[to] = 0;
  return t;
}

/* 1234567 as "1.23 M" + unit, in steps of 1000 */
static text scaled(double value, const char *unit) {
  static const char *const prefix[] = {"", "k", "M", "G", "T", "P", "E", "Z", "Y"};
  text t;
  int step = 0;
  while (value >= 999.5 && step < 8) value /= 1000, step++;
  snprintf(t.s, sizeof t.s, "%.3g%s%s%s", value, step || *unit ? " " : "", prefix[step], unit);
  return t;
}

static text duration(double seconds) {
  text t;
  if (seconds < 1e-6)
    snprintf(t.s, sizeof t.s, "%.3g ns", seconds * 1e9);
  else if (seconds < 1e-3)
    snprintf(t.s, sizeof t.s, "%.3g us", seconds * 1e6);
  else if (seconds < 1)
    snprintf(t.s, sizeof t.s, "%.3g ms", seconds * 1e3);
  else if (seconds < 600)
    snprintf(t.s, sizeof t.s, "%.3g s", seconds);
  else if (seconds < 2 * 86400)
    snprintf(t.s, sizeof t.s, "%.3g hours", seconds / 3600);
  else if (seconds < 2 * 365.25 * 86400)
    snprintf(t.s, sizeof t.s, "%.3g days", seconds / 86400);
  else
    snprintf(t.s, sizeof t.s, "%.3g years", seconds / (365.25 * 86400));
  return t;
}

static uint64_t ceil_div(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

/* ---- settings ------------------------------------------------------------------------------------------------------
   Every number of a plan is a setting: of a table, one line each, so that flags, files, presets and help agree. All are
   kept as doubles, which hold whole numbers up to 2^53 as they are; those that must be whole are below 2^31. */

typedef enum setting {
  TRAINER, /* of the presets 02_fashion_cnn and 03_gpt */
  LAYERS,
  WIDTH,
  HEADS,
  KV_HEADS,
  HEAD_SIZE,
  FFN,
  GATED,
  VOCABULARY,
  TIED,
  POSITIONS,
  CONTEXT,
  SEGMENTS,
  NORM,
  FINAL_NORM,
  EMBEDDING_NORM,
  BIAS,
  CAUSAL,
  PICTURES,
  BATCH,
  MICRO_BATCH,
  SEQUENCE,
  TOKENS,
  OPTIMISER,
  PRECISION,
  WEIGHTS,
  ACTIVATIONS,
  GRADIENTS,
  STATE,
  MASTER,
  CLIP,
  DROPOUT,
  ATTENTION,
  RECOMPUTE,
  REPLICAS,
  SHARES,
  ZERO,
  OVERLAP,
  PROMPT,
  GENERATE,
  STREAMS,
  FLOPS,
  TENSOR_FLOPS,
  BANDWIDTH,
  MEMORY,
  RESERVE,
  LINK,
  CAPABILITY,
  MULTIPROCESSORS,
  PRICE,
  THREADS,
  ISA,
  CALIBRATE,
  SETTINGS
} setting;

enum { NOT_A_TRAINER, FASHION_CNN, GPT };
enum { LEARNED, ROTARY, NO_POSITIONS };
enum { FASHION, DIGITS };
enum { NO_OPTIMISER, SGD, MOMENTUM, ADAMW };
enum { PRECISION_F32, PRECISION_MIXED, PRECISION_BF16 };
enum { TYPE_F32, TYPE_BF16, TYPE_F16 };
enum { FLASH, SCORES };
enum { KEEP_ALL, DROP_SCORES, DROP_BLOCKS };
enum { UNSET = -1 };

/* values: of a choice its names; NULL: a number, whole unless real is set. usual: without anybody saying anything. */
static const struct {
  const char *name;
  int real;
  const char *values;
  double least, most, usual;
  const char *help;
} settings_table[SETTINGS] = {
    {"trainer", 0, "none 02_fashion_cnn 03_gpt", 0, 2, 0, NULL},
    {"layers", 0, NULL, 1, 100000, 12, "blocks of attention and MLP"},
    {"width", 0, NULL, 1, 1 << 20, 768, "features of a position"},
    {"heads", 0, NULL, 1, 1 << 16, 12, "query heads"},
    {"kv-heads", 0, NULL, 0, 1 << 16, 0, "key and value heads; 0: as many as query heads"},
    {"head-size", 0, NULL, 0, 1 << 16, 0, "of each head; 0: width / heads"},
    {"ffn", 0, NULL, 0, 1 << 24, 0, "the MLP's width; 0: 4 widths, gated 8/3, up to a multiple of 32"},
    {"gated", 0, NULL, 0, 1, 0, "1: the MLP multiplies two branches (SwiGLU)"},
    {"vocabulary", 0, NULL, 1, 1 << 28, 50257, "tokens that there are"},
    {"tied", 0, NULL, 0, 1, 1, "1: one table for tokens and logits"},
    {"positions", 0, "learned rotary none", 0, 2, LEARNED, ""},
    {"context", 0, NULL, 0, 1 << 28, 0, "rows of the table of learned positions; 0: those of a sequence"},
    {"segments", 0, NULL, 0, 1 << 16, 0, "rows of BERT's table of segments"},
    {"norm", 0, "layer rms", 0, 1, 0, ""},
    {"final-norm", 0, NULL, 0, 1, 1, "1: a norm behind the last layer"},
    {"embedding-norm", 0, NULL, 0, 1, 0, "1: a norm before the first (BERT)"},
    {"bias", 0, NULL, 0, 1, 1, "1: products and layer norms have biases"},
    {"causal", 0, NULL, 0, 1, 1, "1: a position sees those before it; 0: all (BERT)"},
    {"pictures", 0, "fashion digits", 0, 1, 0, "of 02_fashion_cnn"},
    {"batch", 0, NULL, 1, 1 << 30, 1, "sequences (pictures) of a step, over all replicas"},
    {"micro-batch", 0, NULL, 0, 1 << 30, 0, "of them at once on a device; 0: all of the replica's"},
    {"sequence", 0, NULL, 1, 1 << 28, 1024, "positions of a sequence"},
    {"tokens", 1, NULL, 0, 1e18, 0, "of the whole run (pictures for 02_fashion_cnn); 0: not said"},
    {"optimiser", 0, "none sgd momentum adamw", 0, 3, ADAMW, "none: a forward pass only"},
    {"precision", 0, "f32 mixed bf16", 0, 2, UNSET,
     "the next five at once: all f32; bf16 with an f32 copy of the weights; all bf16 but the state. Default: f32, on a "
     "GPU mixed"},
    {"weights", 0, "f32 bf16 f16", 0, 2, UNSET, "type of the weights that products read"},
    {"activations", 0, "f32 bf16 f16", 0, 2, UNSET, "type of what is kept for the backward pass"},
    {"gradients", 0, "f32 bf16 f16", 0, 2, UNSET, "type of the weights' gradients, also on the wire"},
    {"state", 0, "f32 bf16 f16", 0, 2, UNSET, "type of the optimiser's moments"},
    {"master", 0, NULL, 0, 1, UNSET, "1: the optimiser has an f32 copy of 16-bit weights"},
    {"clip", 0, NULL, 0, 1, 1, "1: the gradient's norm is clipped"},
    {"dropout", 0, NULL, 0, 1, 0, "1: masks of dropout are kept, a byte an element (memory only)"},
    {"attention", 0, "flash scores", 0, 1, FLASH, "scores: the matrix of scores is made and kept"},
    {"recompute", 0, "none attention block", 0, 2, KEEP_ALL,
     "attention: scores are made again in the backward pass; block: a whole layer from its input"},
    {"replicas", 0, NULL, 1, 1 << 20, 1, "devices, each with the model or its part of it"},
    {"shares", 0, NULL, 0, MLK_MAX_SHARES, 0, "of the trainers: parts of a batch; 0: as they choose"},
    {"zero", 0, NULL, 0, 3, 0, "ZeRO: 1 the optimiser's state, 2 also gradients, 3 also weights are split"},
    {"overlap", 0, NULL, 0, 1, 1, "1: gradients travel while the backward pass goes on"},
    {"prompt", 0, NULL, 0, 1 << 28, 0, "inference: tokens of a prompt; 0: half a sequence"},
    {"generate", 0, NULL, 0, 1 << 28, 0, "tokens written behind it; 0: half a sequence"},
    {"streams", 0, NULL, 1, 1 << 24, 1, "sequences at once"},
    {"flops", 1, NULL, 0, 1e9, 0, "of the machine, 10^12 a second: f32"},
    {"tensor-flops", 1, NULL, 0, 1e9, 0, "with 16-bit operands, dense"},
    {"bandwidth", 1, NULL, 0, 1e9, 0, "of its memory, 10^9 bytes a second"},
    {"memory", 1, NULL, 0, 1e9, 0, "10^9 bytes"},
    {"reserve", 1, NULL, 0, 1e9, 0, "of them for others, 10^9 bytes"},
    {"link", 1, NULL, 0, 1e9, 0, "what a device sends to others, 10^9 bytes a second one way; 0: not said"},
    {"capability", 0, NULL, 0, 999, 0, "CUDA compute capability, 90 for 9.0 (with CUDA=1)"},
    {"multiprocessors", 0, NULL, 0, 1000, 0, "of the GPU (with CUDA=1)"},
    {"price", 1, NULL, 0, 1e9, 0, "of a device for an hour"},
    {"threads", 0, NULL, 0, 1024, 0, "of this machine, for each replica; 0: all, the trainers share them out"},
    {"isa", 0, "best scalar neon avx2 avx512 reference", 0, 5, 0, "instruction set of this machine"},
    {"calibrate", 0, NULL, 0, 1, 1, "1: time some calls of this machine (seconds); 0: its ceilings only"},
};

/* Presets are texts in the language of --file: a name and a value a line. Sources: docs/planner.md. */
typedef struct preset {
  const char *name, *settings, *help;
} preset;

static const preset models[] = {
    {"gpt2-124m", "layers 12\nwidth 768\nheads 12\nvocabulary 50257\nsequence 1024\ncontext 1024\nbatch 512\n",
     "GPT-2 small"},
    {"gpt2-1.5b", "layers 48\nwidth 1600\nheads 25\nvocabulary 50257\nsequence 1024\ncontext 1024\nbatch 512\n",
     "GPT-2 XL"},
    {"gpt3-175b",
     "layers 96\nwidth 12288\nheads 96\nhead-size 128\nvocabulary 50257\nsequence 2048\ncontext 2048\nbatch 1600\n"
     "tokens 300e9\n",
     "GPT-3; its batch was 3.2 million tokens, it learned from 300 billion"},
    {"llama-2-7b",
     "layers 32\nwidth 4096\nheads 32\nffn 11008\ngated 1\nvocabulary 32000\ntied 0\npositions rotary\nnorm rms\n"
     "bias 0\nsequence 4096\nbatch 1024\ntokens 2e12\n",
     "Llama 2, 7 B"},
    {"llama-3-8b",
     "layers 32\nwidth 4096\nheads 32\nkv-heads 8\nffn 14336\ngated 1\nvocabulary 128256\ntied 0\npositions rotary\n"
     "norm rms\nbias 0\nsequence 8192\nbatch 1024\ntokens 15e12\n",
     "Llama 3, 8 B"},
    {"bert-base",
     "layers 12\nwidth 768\nheads 12\nvocabulary 30522\nsequence 512\ncontext 512\nsegments 2\nembedding-norm "
     "1\nfinal-norm 0\n"
     "causal 0\nbatch 256\n",
     "BERT base, without pooler"},
    {"02_fashion_cnn", "trainer 02_fashion_cnn\nprecision f32\n",
     "examples/02_fashion_cnn.c; --batch, --shares, --replicas, --threads as there"},
    {"03_gpt",
     "trainer 03_gpt\nlayers 4\nwidth 128\nheads 4\nkv-heads 2\ngated 1\nvocabulary 256\npositions rotary\nnorm rms\n"
     "bias 0\nsequence 128\nbatch 16\nprecision f32\n",
     "examples/03_gpt.c; --sequence is its --context; the others as there: --layers, --width, --heads, --kv-heads, "
     "--batch, --shares, --replicas, --zero, --clip, --threads, --isa"},
};

/* Data sheets: dense rates (half of what sheets print "with sparsity"), memory in decimal gigabytes, links one way. */
static const preset machines[] = {
    {"a100-40gb",
     "flops 19.5\ntensor-flops 312\nbandwidth 1555\nmemory 40\nlink 300\ncapability 80\nmultiprocessors 108\n",
     "A100 SXM4 40 GB, NVLink 3"}, /* NVIDIA A100 datasheet, 2020 */
    {"a100-80gb",
     "flops 19.5\ntensor-flops 312\nbandwidth 2039\nmemory 80\nlink 300\ncapability 80\nmultiprocessors 108\n",
     "A100 SXM4 80 GB, NVLink 3"}, /* NVIDIA A100 datasheet, nvidia-1758950-r4, 2021 */
    {"h100-pcie",
     "flops 51\ntensor-flops 756\nbandwidth 2000\nmemory 80\nlink 64\ncapability 90\nmultiprocessors 114\n",
     "H100 PCIe, PCIe 5 x16"}, /* NVIDIA H100 datasheet, 2022 */
    {"h100-sxm",
     "flops 67\ntensor-flops 989\nbandwidth 3350\nmemory 80\nlink 450\ncapability 90\nmultiprocessors 132\n",
     "H100 SXM5, NVLink 4"}, /* NVIDIA H100 datasheet: 1,979 TFLOPS with sparsity, NVLink 900 GB/s both ways */
    {"h200", "flops 67\ntensor-flops 989\nbandwidth 4800\nmemory 141\nlink 450\ncapability 90\nmultiprocessors 132\n",
     "H200 SXM, NVLink 4"}, /* NVIDIA H200 datasheet, 2024 */
    {"l4", "flops 30.3\ntensor-flops 121\nbandwidth 300\nmemory 24\nlink 32\ncapability 89\nmultiprocessors 58\n",
     "L4, PCIe 4 x16"}, /* NVIDIA L4 datasheet: 242 TFLOPS with sparsity, PCIe 64 GB/s both ways */
    {"l40s", "flops 91.6\ntensor-flops 362\nbandwidth 864\nmemory 48\nlink 32\ncapability 89\nmultiprocessors 142\n",
     "L40S, PCIe 4 x16"}, /* NVIDIA L40S datasheet: 362.05 | 733 with sparsity */
    {"rtx-4090",
     "flops 82.6\ntensor-flops 165.2\nbandwidth 1008\nmemory 24\nlink 32\ncapability 89\nmultiprocessors 128\n",
     "GeForce RTX 4090, PCIe 4 x16"}, /* NVIDIA Ada GPU architecture whitepaper, 2022: with f32 sums */
    {"rtx-3090", "flops 35.6\ntensor-flops 71\nbandwidth 936\nmemory 24\nlink 32\ncapability 86\nmultiprocessors 82\n",
     "GeForce RTX 3090, PCIe 4 x16"}, /* NVIDIA Ampere GA102 whitepaper, 2020: with f32 sums */
};

enum { MODELS = sizeof models / sizeof *models, MACHINES = sizeof machines / sizeof *machines };
enum { TABLE, JSON, BYTES_ONLY };

typedef struct settings {
  double value[SETTINGS];
  uint8_t said[SETTINGS]; /* by somebody, not only the table's usual */
  const char *model, *machine, *file, *calibration;
  int output, explain, help;
} settings;

static int64_t of(const settings *s, setting which) { return (int64_t)s->value[which]; }

/* The place of a word in a list of words, or -1. */
static int choice_of(const char *values, const char *word) {
  const size_t length = strlen(word);
  int number = 0;
  while (*values) {
    const char *end = strchr(values, ' ');
    const size_t here = end ? (size_t)(end - values) : strlen(values);
    if (here == length && !strncmp(values, word, length)) return number;
    values += here + (end != NULL), number++;
  }
  return -1;
}

static const char *choice_name(setting which, int number, char *room, size_t bytes) {
  const char *from = settings_table[which].values, *end;
  while (number-- > 0) from = strchr(from, ' ') + 1;
  end = strchr(from, ' ');
  snprintf(room, bytes, "%.*s", (int)(end ? (size_t)(end - from) : strlen(from)), from);
  return room;
}

/* place: "--layers" or "FILE:3: layers" */
static int set_value(settings *s, const char *place, setting which, const char *value) {
  char *end = NULL;
  double number;
  if (settings_table[which].values) {
    const int choice = choice_of(settings_table[which].values, value);
    if (choice < 0) return complain("%s is '%s'; it must be one of: %s", place, value, settings_table[which].values);
    number = choice;
  } else {
    const double least = settings_table[which].least, most = settings_table[which].most;
    number = strtod(value, &end);
    if (end == value || *end || !(number >= least && number <= most) ||
        (!settings_table[which].real && number != floor(number)))
      return complain("%s is '%s'; it must be a %s from %.15g to %.15g", place, value,
                      settings_table[which].real ? "number" : "whole number", least, most);
  }
  s->value[which] = number, s->said[which] = 1;
  return 0;
}

static int find_setting(const char *name) {
  int which;
  for (which = 0; which < SETTINGS; which++)
    if (settings_table[which].help && !strcmp(settings_table[which].name, name)) return which;
  return -1;
}

static const preset *find_preset(const preset *list, int count, const char *name) {
  int i;
  for (i = 0; i < count; i++)
    if (!strcmp(list[i].name, name)) return &list[i];
  return NULL;
}

/* One line of a file: a name, white space or =, and a value; what comes after # is not looked at. names: only the lines
   that name a model or a machine; else the others. kept: of those names, which outlive the line. */
static int set_line(settings *s, const char *file, int number, char *line, int names) {
  char place[600], *name = line + strspn(line, " \t"), *value, *end;
  int which;
  name[strcspn(name, "#\r\n")] = 0;
  if (!*name) return 0;
  value = name + strcspn(name, " \t=");
  end = value + strspn(value, " \t=");
  *value = 0, value = end;
  for (end = value + strlen(value); end > value && (end[-1] == ' ' || end[-1] == '\t'); end--) end[-1] = 0;
  snprintf(place, sizeof place, "%.500s:%d: %.60s", file, number, name);
  if (!strcmp(name, "model") || !strcmp(name, "machine")) {
    const int model = !strcmp(name, "model");
    const preset *found = model ? find_preset(models, MODELS, value) : find_preset(machines, MACHINES, value);
    const char *kept = found ? found->name : !strcmp(value, "here") ? "here" : !strcmp(value, "none") ? "none" : NULL;
    if (!names) return 0;
    if (!kept || (model && !found)) return complain("%s is '%s', which is not known; --help lists them", place, value);
    if (model && !s->model) s->model = kept;
    if (!model && !s->machine) s->machine = kept;
    return 0;
  }
  which = find_setting(name);
  if (names) return 0;
  if (which < 0) return complain("%s: there is no such setting; --help lists them", place);
  return set_value(s, place, (setting)which, value);
}

static int set_file(settings *s, const char *path, int names) {
  char line[512];
  FILE *file = fopen(path, "r");
  int number = 0, code = 0;
  if (!file) return complain("--file: %s cannot be opened: %s", path, strerror(errno));
  while (!code && fgets(line, sizeof line, file)) {
    if (!strchr(line, '\n') && !feof(file))
      code = complain("%s:%d: the line is longer than %d bytes", path, number + 1, (int)sizeof line - 2);
    else
      code = set_line(s, path, ++number, line, names);
  }
  if (!code && ferror(file)) code = complain("--file: %s cannot be read: %s", path, strerror(errno));
  fclose(file);
  return code;
}

/* A preset's text; it stands in this file, so nothing in it is wrong. */
static int set_preset(settings *s, const preset *p) {
  char line[512];
  const char *from = p->settings;
  int code = 0;
  while (*from && !code) {
    const size_t length = strcspn(from, "\n");
    snprintf(line, sizeof line, "%.*s", (int)length, from);
    if (!strncmp(line, "trainer ", 8))
      s->value[TRAINER] = choice_of(settings_table[TRAINER].values, line + 8);
    else
      code = set_line(s, p->name, 0, line, 0);
    from += length + (from[length] == '\n');
  }
  return code;
}

static int set_flag(settings *s, const char *arg) {
  if (!strcmp(arg, "--explain")) return s->explain = 1;
  if (!strcmp(arg, "--json")) return s->output = JSON;
  if (!strcmp(arg, "--bytes")) return s->output = BYTES_ONLY;
  return 0;
}

/* names: look only at what names models, machines and files. */
static int set_arguments(settings *s, int argc, char **argv, int names) {
  int i, which;
  for (i = 1; i < argc; i++) {
    const char *arg = argv[i], *equals = strchr(arg, '='), *value;
    char name[64];
    if (!strcmp(arg, "--help")) {
      s->help = 1;
      return 0;
    }
    if (set_flag(s, arg)) continue;
    snprintf(name, sizeof name, "%.*s", (int)(equals ? (size_t)(equals - arg) : strlen(arg)), arg);
    which = strncmp(name, "--", 2) ? -1 : find_setting(name + 2);
    if (which < 0 && strcmp(name, "--model") != 0 && strcmp(name, "--machine") != 0 && strcmp(name, "--file") != 0 &&
        strcmp(name, "--calibration") != 0)
      return complain("'%s' is not an option; --help lists them", arg);
    if (!equals && i + 1 == argc) return complain("%s needs a value; --help tells which", arg);
    value = equals ? equals + 1 : argv[++i];
    if (which >= 0) {
      const int code = names ? 0 : set_value(s, name, (setting)which, value);
      if (code) return code;
    } else if (names && !strcmp(name, "--file")) {
      s->file = value;
    } else if (names && !strcmp(name, "--calibration")) {
      s->calibration = value;
    } else if (names) {
      *(strcmp(name, "--model") ? &s->machine : &s->model) = value;
    }
  }
  return 0;
}

static int read_settings(settings *s, int argc, char **argv) {
  const preset *model = NULL, *machine = NULL;
  int code = set_arguments(s, argc, argv, 1), which;
  for (which = 0; which < SETTINGS; which++) s->value[which] = settings_table[which].usual;
  if (code || s->help) return code;
  if (s->file && (code = set_file(s, s->file, 1)) != 0) return code;
  if (!s->machine) s->machine = "here";
  if (s->model && !(model = find_preset(models, MODELS, s->model)))
    return complain("--model is '%s', which is not known; --help lists models", s->model);
  machine = find_preset(machines, MACHINES, s->machine);
  if (!machine && strcmp(s->machine, "here") != 0 && strcmp(s->machine, "none") != 0)
    return complain("--machine is '%s', which is not known; --help lists machines", s->machine);
  if (model) code = set_preset(s, model);
  if (!code && machine) code = set_preset(s, machine);
  memset(s->said, 0, sizeof s->said);
  if (!code && s->file) code = set_file(s, s->file, 0);
  return code ? code : set_arguments(s, argc, argv, 0);
}

static int64_t type_bytes(int type) { return type == TYPE_F32 ? 4 : 2; }

/* What a setting that nobody gave follows from others. */
static void complete_types(settings *s) {
  const int on_gpu = find_preset(machines, MACHINES, s->machine) != NULL;
  const int precision = s->value[PRECISION] >= 0 ? (int)s->value[PRECISION] : on_gpu ? PRECISION_MIXED : PRECISION_F32;
  const int narrow = precision == PRECISION_F32 ? TYPE_F32 : TYPE_BF16;
  s->value[PRECISION] = precision;
  if (s->value[WEIGHTS] < 0) s->value[WEIGHTS] = narrow;
  if (s->value[ACTIVATIONS] < 0) s->value[ACTIVATIONS] = narrow;
  if (s->value[GRADIENTS] < 0) s->value[GRADIENTS] = narrow;
  if (s->value[STATE] < 0) s->value[STATE] = TYPE_F32;
  if (s->value[MASTER] < 0) s->value[MASTER] = precision == PRECISION_MIXED && s->value[WEIGHTS] > 0;
}

static void complete_sizes(settings *s) {
  const int64_t width = of(s, WIDTH), shares = of(s, SHARES), replicas = of(s, REPLICAS);
  if (!of(s, KV_HEADS)) s->value[KV_HEADS] = s->value[HEADS];
  if (!of(s, HEAD_SIZE)) s->value[HEAD_SIZE] = (double)(width / of(s, HEADS));
  if (!of(s, FFN)) s->value[FFN] = (double)(of(s, GATED) ? (8 * width / 3 + 31) / 32 * 32 : 4 * width);
  if (!of(s, CONTEXT)) s->value[CONTEXT] = s->value[SEQUENCE];
  if (!of(s, PROMPT)) s->value[PROMPT] = (double)((of(s, SEQUENCE) + 1) / 2);
  if (!of(s, GENERATE)) s->value[GENERATE] = of(s, SEQUENCE) > 1 ? floor(s->value[SEQUENCE] / 2) : 1;
  if (of(s, TRAINER) == FASHION_CNN && !s->said[BATCH]) s->value[BATCH] = of(s, PICTURES) == DIGITS ? 32 : 100;
  if (of(s, TRAINER)) { /* a replica without shares has all of the batch; a group has four, or as many as replicas */
    if (!shares) s->value[SHARES] = !s->said[REPLICAS] ? 1 : replicas > 4 ? (double)replicas : 4;
    s->value[MICRO_BATCH] = floor(s->value[BATCH] / s->value[SHARES]);
  } else if (!of(s, MICRO_BATCH)) {
    s->value[MICRO_BATCH] = floor(s->value[BATCH] / s->value[REPLICAS]);
  }
}

/* The trainers have shapes of their own, but for what their options set. */
static int check_trainer(const settings *s) {
  static const setting both[] = {PICTURES, BATCH, SHARES, REPLICAS, TOKENS, OVERLAP}; /* pictures: of the first only */
  static const setting gpt[] = {LAYERS, WIDTH, HEADS, KV_HEADS, SEQUENCE, ZERO, CLIP};
  const char *name = of(s, TRAINER) == GPT ? "03_gpt" : "02_fashion_cnn";
  int which, i;
  for (which = LAYERS; which <= ZERO; which++) {
    int open = 0;
    for (i = of(s, TRAINER) == GPT; i < (int)(sizeof both / sizeof *both); i++) open |= which == (int)both[i];
    for (i = 0; i < (int)(sizeof gpt / sizeof *gpt) && of(s, TRAINER) == GPT; i++) open |= which == (int)gpt[i];
    if (s->said[which] && !open)
      return complain("--%s: %s does not have that option; --help lists those it has", settings_table[which].name,
                      name);
  }
  if (of(s, REPLICAS) > MLK_MAX_RANKS)
    return complain("--replicas is %" PRId64 "; %s takes at most %d", of(s, REPLICAS), name, MLK_MAX_RANKS);
  if (of(s, SHARES) < of(s, REPLICAS))
    return complain("--shares is %" PRId64 "; there are %" PRId64 " replicas, and each needs one", of(s, SHARES),
                    of(s, REPLICAS));
  if (of(s, BATCH) % of(s, SHARES))
    return complain("--batch is %" PRId64 " and --shares %" PRId64 "; the latter must divide the former", of(s, BATCH),
                    of(s, SHARES));
  if (of(s, ZERO) > 1) return complain("--zero is %" PRId64 "; 03_gpt has 0 and 1", of(s, ZERO));
  if (of(s, ZERO) && !s->said[SHARES] && !s->said[REPLICAS])
    return complain("--zero is 1; it needs --replicas or --shares, as in 03_gpt");
  return 0;
}

static int check_transformer(const settings *s) {
  const int64_t heads = of(s, HEADS), width = of(s, WIDTH), in_step = of(s, MICRO_BATCH) * of(s, REPLICAS);
  const int64_t longest = of(s, PROMPT) + of(s, GENERATE);
  if (heads > width || (!s->said[HEAD_SIZE] && of(s, HEAD_SIZE) * heads != width))
    return complain("--width is %" PRId64 " and --heads %" PRId64
                    "; heads must divide the width, or --head-size must be given",
                    width, heads);
  if (heads % of(s, KV_HEADS))
    return complain("--heads is %" PRId64 " and --kv-heads %" PRId64 "; the latter must divide the former", heads,
                    of(s, KV_HEADS));
  if (of(s, POSITIONS) == ROTARY && of(s, HEAD_SIZE) % 2)
    return complain("--head-size is %" PRId64 "; rotary positions need an even one", of(s, HEAD_SIZE));
  if (of(s, POSITIONS) == LEARNED && of(s, CONTEXT) < of(s, SEQUENCE))
    return complain("--context is %" PRId64 " and --sequence %" PRId64 "; the table of positions must be as long",
                    of(s, CONTEXT), of(s, SEQUENCE));
  if (of(s, POSITIONS) == LEARNED && longest > of(s, CONTEXT) && (s->said[PROMPT] || s->said[GENERATE]))
    return complain("--prompt is %" PRId64 " and --generate %" PRId64 "; the table of positions has %" PRId64
                    " rows (--context)",
                    of(s, PROMPT), of(s, GENERATE), of(s, CONTEXT));
  if (!of(s, TRAINER) && (!in_step || of(s, BATCH) % in_step))
    return complain("--batch is %" PRId64 ", --micro-batch %" PRId64 " and --replicas %" PRId64
                    "; the product of the latter must divide the former",
                    of(s, BATCH), of(s, MICRO_BATCH), of(s, REPLICAS));
  return 0;
}

/* Anything that a plan adds up must stay below 2^62 bytes; products here are of doubles, which do not wrap. */
static int check_sizes(const settings *s) {
  const double rows = s->value[MICRO_BATCH] * s->value[SEQUENCE], width = s->value[WIDTH] + s->value[FFN] * 3;
  const double heads = (s->value[HEADS] + 2 * s->value[KV_HEADS]) * s->value[HEAD_SIZE];
  const double weights = s->value[LAYERS] * s->value[WIDTH] * (width + 2 * heads) +
                         (s->value[VOCABULARY] * 2 + s->value[CONTEXT]) * s->value[WIDTH];
  const double scores = of(s, ATTENTION) == SCORES ? 4 * s->value[HEADS] * s->value[SEQUENCE] : 0;
  const double kept = rows * (s->value[LAYERS] * (4 * width + 2 * heads + scores) + s->value[VOCABULARY]);
  const double limit = 4611686018427387904.0; /* 2^62 */
  const double cache = 8 * s->value[LAYERS] * heads * (s->value[PROMPT] + s->value[GENERATE]) * s->value[STREAMS];
  if (weights * 16 > limit) return complain("the model has %.3g weights; planned are at most 2^58", weights);
  if (kept * 16 > limit || rows * weights * 8 > 4 * limit)
    return complain(
        "--micro-batch is %" PRId64 " and --sequence %" PRId64
        "; what one pass computes or keeps is beyond 2^64; a smaller --micro-batch leaves the step as it is",
        of(s, MICRO_BATCH), of(s, SEQUENCE));
  if (cache > limit || s->value[STREAMS] * s->value[PROMPT] * weights * 2 > 4 * limit)
    return complain("--streams is %" PRId64 ", --prompt %" PRId64 " and --generate %" PRId64
                    "; what that computes or keeps is beyond 2^64",
                    of(s, STREAMS), of(s, PROMPT), of(s, GENERATE));
  return 0;
}

static int complete(settings *s) {
  int code = 0;
  complete_types(s), complete_sizes(s);
  if (of(s, TRAINER))
    code = check_trainer(s);
  else if (of(s, SHARES))
    code = complain("--shares is %" PRId64 "; only the trainers have shares; see --micro-batch", of(s, SHARES));
  if (code || of(s, TRAINER) == FASHION_CNN) return code;
  code = check_transformer(s);
  return code ? code : check_sizes(s);
}

/* ---- >>figures: a device by its figures ----------------------------------------------------------------------------
   A backend, as mlk.h lets anybody write one: it plans every call by the roofline and runs none. Where a GPU has no
   code here (CUDA=1 brings some), mlk.h checks the descriptors and counts FLOPs and bytes, and this prices them. */

typedef struct paper {
  mlk_device_figures figures; /* first: open gets a pointer to it */
  int narrow; /* the call is described in f32, for the library has it in f32 only, but its operands have 16 bits */
} paper;

static int paper_devices(void) { return 0; }

static mlk_status paper_open(void **device, const mlk_context_desc *desc, char *error) {
  (void)error;
  *device = (void *)(uintptr_t)desc->figures;
  return MLK_OK;
}

static void paper_close(void *device) { (void)device; }

static mlk_status paper_info(void *device, mlk_info *info, char *error) {
  (void)error;
  info->isa = "figures", info->device = ((const paper *)device)->figures.name;
  return MLK_OK;
}

static mlk_status paper_refuses(char *error) {
  snprintf(error, MLK_ERROR_BYTES, "figures: this context only plans");
  return MLK_ERR_UNSUPPORTED;
}

static mlk_status paper_measure(void *device, const mlk_ceilings *known, mlk_ceilings *ceilings, char *error) {
  (void)device, (void)known, (void)ceilings;
  return paper_refuses(error);
}

static mlk_status paper_alloc(void *device, uint64_t bytes, int shared, void **memory, char *error) {
  (void)device, (void)bytes, (void)shared;
  *memory = NULL;
  return paper_refuses(error);
}

static void paper_free(void *device, void *memory) { (void)device, (void)memory; }

static mlk_status paper_copy(void *device, void *to, const void *from, uint64_t bytes, char *error) {
  (void)device, (void)to, (void)from, (void)bytes;
  return paper_refuses(error);
}

static mlk_status paper_sync(void *device, char *error) {
  (void)device, (void)error;
  return MLK_OK;
}

static mlk_status paper_share(void *device, void *memory, void *handle, char *error) {
  (void)device, (void)memory, (void)handle;
  return paper_refuses(error);
}

static mlk_status paper_attach(void *device, const void *handle, void **memory, char *error) {
  (void)device, (void)handle, (void)memory;
  return paper_refuses(error);
}

static void paper_detach(void *device, const void *handle, void *memory) { (void)device, (void)handle, (void)memory; }

/* Tensor cores take products of 16-bit operands. */
static int on_tensor_cores(const mlk_backend_call *call) {
  switch (call->op) {
  case MLK_OP_MATMUL: return ((const mlk_matmul_desc *)call->desc)->a.dtype != MLK_F32;
  case MLK_OP_ATTENTION: return ((const mlk_attention_desc *)call->desc)->q.dtype != MLK_F32;
  case MLK_OP_ATTENTION_GRAD: return ((const mlk_attention_grad_desc *)call->desc)->q.dtype != MLK_F32;
  default: return 0;
  }
}

static double roofline(double flops, double bytes, double rate, double bandwidth) {
  const double compute = rate > 0 ? flops / rate : 0, memory = bandwidth > 0 ? bytes / bandwidth : 0;
  return compute > memory ? compute : memory;
}

static mlk_status paper_call(void *device, mlk_backend_call *call, char *error) {
  const paper *p = (const paper *)device;
  const int tensor = on_tensor_cores(call);
  if (call->run) return paper_refuses(error);
  call->workspace_bytes = 0, call->variant = "roofline", call->launches = 1;
  call->seconds = roofline((double)call->flops, (double)call->bytes / (p->narrow ? 2 : 1),
                           tensor ? p->figures.tensor_flops : p->figures.flops, p->figures.bandwidth);
  return MLK_OK;
}

static const mlk_backend paper_backend = {MLK_VERSION, "figures",     paper_devices, paper_open,   paper_close,
                                          paper_info,  paper_measure, paper_alloc,   paper_free,   paper_copy,
                                          paper_sync,  paper_share,   paper_attach,  paper_detach, paper_call};

/* ---- the machine ------------------------------------------------------------------------------------------------- */

typedef struct machine {
  mlk_context *ctx;
  paper paper;
  const char *name;
  double flops, tensor_flops, bandwidth, link; /* a second; 0: not known */
  double memory;                               /* bytes that a training may take */
  int here, threads, calibrated, kernels;      /* kernels: plans know them, and their workspace */
} machine;

static double memory_here(void) {
#if defined(_SC_PHYS_PAGES)
  const long pages = sysconf(_SC_PHYS_PAGES), bytes = sysconf(_SC_PAGESIZE);
  return pages > 0 && bytes > 0 ? (double)pages * (double)bytes : 0;
#else
  return 0;
#endif
}

/* What mlk_calibrate found, in a file: a record without pointers, which mlk_open looks at. found: it was there. */
static int read_calibration(const char *path, mlk_calibration *c, int *found) {
  FILE *file = fopen(path, "rb");
  size_t got;
  *found = file != NULL;
  if (!file) return errno == ENOENT ? 0 : complain("--calibration: %s cannot be opened: %s", path, strerror(errno));
  got = fread(c, 1, sizeof *c, file);
  got += fgetc(file) != EOF;
  fclose(file);
  return got == sizeof *c ? 0 : complain("--calibration: %s is no calibration of this version", path);
}

static int write_calibration(const char *path, const mlk_calibration *c) {
  FILE *file = fopen(path, "wb");
  const int bad = !file || fwrite(c, 1, sizeof *c, file) != sizeof *c;
  if (file && fclose(file) == 0 && !bad) return 0;
  return complain("--calibration: %s cannot be written: %s", path, strerror(errno)), EXIT_RUN;
}

/* Ceilings, and times of calls: those of the file, or found now and, with a file, kept there. */
static int measure_here(const settings *s, machine *m, const mlk_calibration *kept) {
  mlk_calibration *found = (mlk_calibration *)calloc(1, sizeof *found);
  mlk_status status = MLK_OK;
  mlk_info info;
  int code = 0;
  if (!found) return complain("no memory for a calibration"), EXIT_RUN;
  if (!kept) status = of(s, CALIBRATE) ? mlk_calibrate(m->ctx, found) : mlk_measure(m->ctx, &found->ceilings);
  if (status == MLK_OK) status = mlk_get_info(m->ctx, &info);
  if (status != MLK_OK) code = (complain("measuring: %s", mlk_last_error(m->ctx)), EXIT_RUN);
  if (!code && !kept && s->calibration && of(s, CALIBRATE)) code = write_calibration(s->calibration, found);
  if (!code) m->flops = m->tensor_flops = info.ceilings.flops_all, m->bandwidth = info.ceilings.read_all;
  m->calibrated = kept != NULL || of(s, CALIBRATE);
  free(found);
  return code;
}

static void tell(void *user, const char *line) {
  (void)user;
  complain("%s", line);
}

static int open_here(const settings *s, machine *m) {
  const int replicas = of(s, TRAINER) ? (int)of(s, REPLICAS) : 1;
  mlk_calibration *kept = (mlk_calibration *)calloc(1, sizeof *kept);
  mlk_context_desc desc;
  mlk_info info;
  int code = kept ? 0 : (complain("no memory for a calibration"), EXIT_RUN), found = 0;
  memset(&desc, 0, sizeof desc), memset(&info, 0, sizeof info);
  desc.threads = (int)of(s, THREADS), desc.isa = (mlk_isa)of(s, ISA), desc.log = tell;
  if (!code && s->calibration) code = read_calibration(s->calibration, kept, &found);
  if (!code && mlk_open(&m->ctx, &desc) != MLK_OK) code = EXIT_INPUT;
  if (!code && mlk_get_info(m->ctx, &info) != MLK_OK) code = EXIT_RUN;
  if (!code) { /* again, now that it is known how many threads there are: the trainers share them out */
    mlk_close(m->ctx);
    m->ctx = NULL;
    if (!desc.threads) desc.threads = info.threads > replicas ? info.threads / replicas : 1;
    if (found) desc.calibration = kept;
    if (mlk_open(&m->ctx, &desc) != MLK_OK) code = EXIT_INPUT;
  }
  m->name = "this machine", m->kernels = 1, m->memory = memory_here(), m->threads = desc.threads;
  if (!code && s->output != BYTES_ONLY) code = measure_here(s, m, found ? kept : NULL);
  free(kept);
  return code;
}

static int open_figures(const settings *s, machine *m) {
  mlk_device_figures *f = &m->paper.figures;
  mlk_context_desc desc;
  memset(&desc, 0, sizeof desc);
  m->name = f->name = strcmp(s->machine, "none") || s->value[FLOPS] > 0 ? s->machine : "no machine";
  f->compute_capability = (int)of(s, CAPABILITY), f->multiprocessors = (int)of(s, MULTIPROCESSORS);
  f->flops = s->value[FLOPS] * 1e12, f->tensor_flops = s->value[TENSOR_FLOPS] * 1e12;
  if (!(f->tensor_flops > 0)) f->tensor_flops = f->flops;
  f->bandwidth = s->value[BANDWIDTH] * 1e9, f->memory_bytes = (uint64_t)(s->value[MEMORY] * 1e9);
  m->flops = f->flops, m->tensor_flops = f->tensor_flops, m->bandwidth = f->bandwidth;
  m->memory = s->value[MEMORY] * 1e9;
  desc.log = tell, desc.device = MLK_DEVICE_BACKEND, desc.figures = f, desc.backends[0] = &paper_backend;
#if defined(MLK_EXAMPLE_CUDA)
  if (f->compute_capability >= 75 && f->multiprocessors > 0 && f->flops > 0 && f->bandwidth > 0)
    desc.backends[0] = mlk_cuda_backend(), m->kernels = 1;
#endif
  if (mlk_open(&m->ctx, &desc) != MLK_OK) return EXIT_INPUT;
  return 0;
}

static int open_machine(const settings *s, machine *m) {
  int code;
  m->here = !strcmp(s->machine, "here");
  if (m->here && (s->value[WEIGHTS] > 0 || s->value[ACTIVATIONS] > 0))
    return complain("--machine is here and --%s not f32; on the CPU the library computes in f32 only",
                    s->value[WEIGHTS] > 0 ? "weights" : "activations");
  code = m->here ? open_here(s, m) : open_figures(s, m);
  if (m->here && s->value[MEMORY] > 0) m->memory = s->value[MEMORY] * 1e9;
  m->memory -= s->value[RESERVE] * 1e9;
  m->link = s->value[LINK] * 1e9;
  return code;
}

/* ---- calls ---------------------------------------------------------------------------------------------------------
   What a training calls, planned one after another and added up by name and phase. Layers are alike: each call of a
   layer is planned once and counted as often as there are layers. */

enum { FORWARD, REMADE, BACKWARD, UPDATE, PHASES };
enum { MOST_ROWS = 48 };

typedef struct row {
  const char *name;
  uint64_t flops[PHASES], calls[PHASES];
  double bytes[PHASES], seconds[PHASES], compute_bound; /* seconds of calls whose FLOPs take longer than their bytes */
} row;

typedef struct calls {
  machine *at;
  mlk_dtype type; /* of activations and weights in products and attention */
  int phase, times, failed;
  int rows;
  uint64_t workspace;
  row row[MOST_ROWS];
} calls;

static mlk_status plan_op(mlk_context *ctx, mlk_op op, const void *d, mlk_plan *plan) {
  switch (op) {
  case MLK_OP_MATMUL: return mlk_matmul_plan(ctx, (const mlk_matmul_desc *)d, plan);
  case MLK_OP_CONV: return mlk_conv_plan(ctx, (const mlk_conv_desc *)d, plan);
  case MLK_OP_CONV_GRAD_INPUT: return mlk_conv_grad_input_plan(ctx, (const mlk_conv_grad_input_desc *)d, plan);
  case MLK_OP_CONV_GRAD_WEIGHTS: return mlk_conv_grad_weights_plan(ctx, (const mlk_conv_grad_weights_desc *)d, plan);
  case MLK_OP_ATTENTION: return mlk_attention_plan(ctx, (const mlk_attention_desc *)d, plan);
  case MLK_OP_ATTENTION_GRAD: return mlk_attention_grad_plan(ctx, (const mlk_attention_grad_desc *)d, plan);
  case MLK_OP_MAP: return mlk_map_plan(ctx, (const mlk_map_desc *)d, plan);
  case MLK_OP_REDUCE: return mlk_reduce_plan(ctx, (const mlk_reduce_desc *)d, plan);
  case MLK_OP_CLIP_NORM: return mlk_clip_norm_plan(ctx, (const mlk_clip_norm_desc *)d, plan);
  case MLK_OP_SGD: return mlk_sgd_plan(ctx, (const mlk_sgd_desc *)d, plan);
  case MLK_OP_ADAMW: return mlk_adamw_plan(ctx, (const mlk_adamw_desc *)d, plan);
  case MLK_OP_POOL: return mlk_pool_plan(ctx, (const mlk_pool_desc *)d, plan);
  case MLK_OP_POOL_GRAD: return mlk_pool_grad_plan(ctx, (const mlk_pool_grad_desc *)d, plan);
  case MLK_OP_SOFTMAX: return mlk_softmax_plan(ctx, (const mlk_softmax_desc *)d, plan);
  case MLK_OP_SOFTMAX_GRAD: return mlk_softmax_grad_plan(ctx, (const mlk_softmax_grad_desc *)d, plan);
  case MLK_OP_CROSS_ENTROPY: return mlk_cross_entropy_plan(ctx, (const mlk_cross_entropy_desc *)d, plan);
  case MLK_OP_NORM: return mlk_norm_plan(ctx, (const mlk_norm_desc *)d, plan);
  case MLK_OP_NORM_GRAD: return mlk_norm_grad_plan(ctx, (const mlk_norm_grad_desc *)d, plan);
  case MLK_OP_EMBEDDING: return mlk_embedding_plan(ctx, (const mlk_embedding_desc *)d, plan);
  case MLK_OP_EMBEDDING_GRAD: return mlk_embedding_grad_plan(ctx, (const mlk_embedding_grad_desc *)d, plan);
  case MLK_OP_ROTARY: return mlk_rotary_plan(ctx, (const mlk_rotary_desc *)d, plan);
  default: return MLK_ERR_UNSUPPORTED;
  }
}

static row *row_of(calls *c, const char *name) {
  int i;
  for (i = 0; i < c->rows; i++)
    if (!strcmp(c->row[i].name, name)) return &c->row[i];
  memset(&c->row[c->rows], 0, sizeof c->row[0]);
  c->row[c->rows].name = name;
  return &c->row[c->rows++];
}

/* Plans a call; narrow: its descriptor d is in f32 although its operands are not. The first failure is told, and the
   rest is passed over. */
static void plan_as(calls *c, mlk_op op, const char *name, const void *d, int narrow) {
  mlk_plan plan;
  mlk_status status;
  row *r;
  double bytes, rate;
  if (c->failed) return;
  c->at->paper.narrow = narrow;
  status = plan_op(c->at->ctx, op, d, &plan);
  if (status != MLK_OK) {
    complain("%s: %s: %s", name, mlk_status_name(status), mlk_last_error(c->at->ctx));
    c->failed = EXIT_RUN;
    return;
  }
  r = row_of(c, name);
  bytes = (double)plan.bytes / (narrow ? 2 : 1);
  rate = c->type == MLK_F32 ? c->at->flops : c->at->tensor_flops;
  r->flops[c->phase] += plan.flops * (uint64_t)c->times, r->calls[c->phase] += (uint64_t)c->times;
  r->bytes[c->phase] += bytes * c->times, r->seconds[c->phase] += plan.seconds * c->times;
  if (rate > 0 && (double)plan.flops / rate > bytes / c->at->bandwidth) r->compute_bound += plan.seconds * c->times;
  if (c->workspace < plan.workspace_bytes) c->workspace = plan.workspace_bytes;
}

/* Products and attention are described in the type that they have; what lies between them the library has in f32 only:
   its traffic counts at the width of the activations. */
static void plan(calls *c, mlk_op op, const char *name, const void *d) { plan_as(c, op, name, d, 0); }
static void plan_between(calls *c, mlk_op op, const char *name, const void *d) {
  plan_as(c, op, name, d, c->type != MLK_F32);
}

/* Arrays have addresses that no one reads: plans look only at whether two views are the same. */
enum array {
  AT_IDS,
  AT_X,
  AT_NORMED,
  AT_STATISTICS,
  AT_QKV,
  AT_ATTENDED,
  AT_LSE,
  AT_MIDDLE,
  AT_PAIR,
  AT_GATE,
  AT_PRODUCT,
  AT_AFTER,
  AT_LOGITS,
  AT_LOSS,
  AT_SCORES,
  AT_KEYS,
  AT_VALUES,
  AT_WEIGHTS,
  AT_BIAS,
  AT_GRADS,
  AT_DX,
  AT_DNORMED,
  AT_DQKV,
  AT_DPAIR,
  AT_DPRODUCT,
  AT_MOMENT1,
  AT_MOMENT2,
  AT_LABELS,
  AT_PLACES,
  ARRAYS
};
static char anywhere[ARRAYS][64];

static float *at(int array) { return (float *)(void *)anywhere[array]; }
static int64_t *at_integers(int array) { return (int64_t *)(void *)anywhere[array]; }

static mlk_tensor typed(const calls *c, mlk_tensor t) {
  t.dtype = (int32_t)c->type;
  return t;
}

static mlk_tensor absent(void) {
  mlk_tensor t;
  memset(&t, 0, sizeof t);
  return t;
}

/* d = a b + bias, + residual */
static void plan_product(calls *c, const char *name, mlk_tensor a, mlk_tensor b, mlk_tensor d, mlk_tensor bias,
                         mlk_tensor residual) {
  mlk_matmul_desc mm;
  memset(&mm, 0, sizeof mm);
  mm.a = typed(c, a), mm.b = typed(c, b), mm.d = typed(c, d);
  if (bias.data) mm.bias = typed(c, bias);
  if (residual.data) mm.residual = typed(c, residual);
  plan(c, MLK_OP_MATMUL, name, &mm);
}

static void plan_map(calls *c, const char *name, mlk_map_op op, mlk_activation activation, mlk_tensor a, mlk_tensor b,
                     mlk_tensor out) {
  mlk_map_desc d;
  memset(&d, 0, sizeof d);
  d.op = op, d.a = a, d.b = b, d.out = out, d.activation = activation;
  plan_between(c, MLK_OP_MAP, name, &d);
}

/* Over axis `axis` of x */
static void plan_reduce(calls *c, const char *name, mlk_reduce_op op, int axis, mlk_tensor x, mlk_tensor out) {
  mlk_reduce_desc d;
  memset(&d, 0, sizeof d);
  d.op = op, d.x = x, d.out = out, d.axes = 1u << axis;
  plan_between(c, MLK_OP_REDUCE, name, &d);
}

/* ---- a transformer's calls -----------------------------------------------------------------------------------------
   The same calls, over the same shapes, as the tapes of 03_gpt.c, where the settings are its; its comments tell what
   each is for. Biases, learned positions, MLPs without a gate and matrices of scores are added where settings ask. A
   norm behind a branch (BERT) costs what one before it does, and is planned there. */

typedef struct shape {
  int64_t batch, length, rows; /* of a pass; rows = batch length */
  int64_t keys;                /* 0: each sees its own sequence; else a cache of so many keys */
  int64_t logit_rows;
  int64_t layers, width, heads, kv_heads, head, hidden, vocabulary, qkv;
  int gated, bias, rms, rotary, learned, causal, scores, tied, final_norm, embedding_norm, segments;
} shape;

static shape shape_of(const settings *s, int64_t batch, int64_t length, int64_t keys) {
  shape h;
  memset(&h, 0, sizeof h);
  h.batch = batch, h.length = length, h.rows = h.logit_rows = batch * length, h.keys = keys;
  h.layers = of(s, LAYERS), h.width = of(s, WIDTH), h.heads = of(s, HEADS), h.kv_heads = of(s, KV_HEADS);
  h.head = of(s, HEAD_SIZE), h.hidden = of(s, FFN), h.vocabulary = of(s, VOCABULARY);
  h.qkv = (h.heads + 2 * h.kv_heads) * h.head;
  h.gated = (int)of(s, GATED), h.bias = (int)of(s, BIAS), h.rms = (int)of(s, NORM), h.causal = (int)of(s, CAUSAL);
  h.rotary = of(s, POSITIONS) == ROTARY, h.learned = of(s, POSITIONS) == LEARNED;
  h.scores = of(s, ATTENTION) == SCORES && !keys, h.tied = (int)of(s, TIED), h.final_norm = (int)of(s, FINAL_NORM);
  h.embedding_norm = (int)of(s, EMBEDDING_NORM), h.segments = of(s, SEGMENTS) > 0;
  return h;
}

static mlk_tensor bias_or_none(const shape *h, int64_t outputs) {
  return h->bias ? mlk_f32(at(AT_BIAS), outputs) : absent();
}

/* y = x w^T + bias with w [outputs, inputs] */
static void plan_dense(calls *c, const shape *h, const char *name, int x, int y, int64_t outputs, int64_t inputs,
                       int residual) {
  plan_product(c, name, mlk_f32(at(x), h->rows, inputs), mlk_transposed(mlk_f32(at(AT_WEIGHTS), outputs, inputs)),
               mlk_f32(at(y), h->rows, outputs), bias_or_none(h, outputs),
               residual < 0 ? absent() : mlk_f32(at(residual), h->rows, outputs));
}

static void plan_norm(calls *c, const shape *h, int x, int y) {
  mlk_norm_desc d;
  memset(&d, 0, sizeof d);
  d.kind = h->rms ? MLK_NORM_RMS : MLK_NORM_LAYER;
  d.x = mlk_f32(at(x), h->rows, h->width), d.y = mlk_f32(at(y), h->rows, h->width);
  d.gamma = mlk_f32(at(AT_WEIGHTS), h->width), d.rstd = mlk_f32(at(AT_STATISTICS), h->rows);
  if (!h->rms) d.mean = mlk_f32(at(AT_LOSS), h->rows);
  if (!h->rms && h->bias) d.beta = mlk_f32(at(AT_BIAS), h->width);
  plan_between(c, MLK_OP_NORM, "norm", &d);
}

/* Heads [first, first + count) of qkv, as [batch, length, count, D]; and as attention wants them */
static mlk_tensor heads_of(const shape *h, int array, int64_t first, int64_t count) {
  return mlk_slice(mlk_f32(at(array), h->batch, h->length, h->heads + 2 * h->kv_heads, h->head), 2, first, count);
}

static mlk_tensor attention_heads(const calls *c, const shape *h, int array, int64_t first, int64_t count) {
  return mlk_swapped(mlk_slice(typed(c, mlk_f32(at(array), h->batch, h->length, h->heads + 2 * h->kv_heads, h->head)),
                               2, first, count),
                     1, 2);
}

static void plan_rotary(calls *c, mlk_tensor x, mlk_tensor y, int inverse) {
  mlk_rotary_desc d;
  memset(&d, 0, sizeof d);
  d.x = x, d.y = y, d.inverse = inverse;
  plan_between(c, MLK_OP_ROTARY, "rotary", &d);
}

/* A token of each sequence: its key and value go into the cache. */
static void plan_cached_keys(calls *c, const shape *h, mlk_attention_desc *d) {
  const mlk_tensor keys = typed(c, mlk_f32(at(AT_KEYS), h->batch, h->keys, h->kv_heads, h->head));
  const mlk_tensor values = typed(c, mlk_f32(at(AT_VALUES), h->batch, h->keys, h->kv_heads, h->head));
  const mlk_tensor queries = heads_of(h, AT_QKV, 0, h->heads);
  mlk_tensor new_key = mlk_slice(keys, 1, 0, h->length), new_value = mlk_slice(values, 1, 0, h->length);
  new_key.dtype = new_value.dtype = MLK_F32;
  if (h->rotary) plan_rotary(c, queries, queries, 0);
  if (h->rotary)
    plan_rotary(c, heads_of(h, AT_QKV, h->heads, h->kv_heads), new_key, 0);
  else
    plan_map(c, "cache", MLK_COPY, MLK_NONE, heads_of(h, AT_QKV, h->heads, h->kv_heads), absent(), new_key);
  plan_map(c, "cache", MLK_COPY, MLK_NONE, heads_of(h, AT_QKV, h->heads + h->kv_heads, h->kv_heads), absent(),
           new_value);
  d->k = mlk_swapped(keys, 1, 2), d->v = mlk_swapped(values, 1, 2);
  d->scores.k_lengths = mlk_i64(at_integers(AT_PLACES), h->batch);
}

/* q k^T and what softmax makes of it, [batch, key heads, queries of each, S, S]; flash attention never has them. */
static mlk_tensor grouped_heads(const shape *h, int array, int64_t keys, int64_t queries) {
  mlk_tensor t = mlk_f32(at(array), h->batch, h->length, keys, queries, h->head);
  return mlk_swapped(mlk_swapped(t, 1, 2), 2, 3); /* [batch, keys, queries, length, D] */
}

static void plan_scores(calls *c, const shape *h) {
  const int64_t group = h->heads / h->kv_heads;
  const mlk_tensor scores = mlk_f32(at(AT_SCORES), h->batch, h->kv_heads, group, h->length, h->length);
  mlk_softmax_desc d;
  plan_product(c, "attention", grouped_heads(h, AT_QKV, h->kv_heads, group),
               mlk_transposed(grouped_heads(h, AT_KEYS, h->kv_heads, 1)), scores, absent(), absent());
  memset(&d, 0, sizeof d);
  d.x = d.y = scores;
  plan_between(c, MLK_OP_SOFTMAX, "softmax", &d);
}

static void plan_scores_grads(calls *c, const shape *h) {
  const int64_t group = h->heads / h->kv_heads;
  const mlk_tensor scores = mlk_f32(at(AT_SCORES), h->batch, h->kv_heads, group, h->length, h->length);
  const mlk_tensor dscores = mlk_f32(at(AT_DPAIR), h->batch, h->kv_heads, group, h->length, h->length);
  const mlk_tensor dout = grouped_heads(h, AT_DNORMED, h->kv_heads, group);
  mlk_softmax_grad_desc d;
  plan_product(c, "attention", mlk_transposed(scores), dout, grouped_heads(h, AT_DQKV, h->kv_heads, group), absent(),
               absent());
  plan_product(c, "attention", dout, mlk_transposed(grouped_heads(h, AT_VALUES, h->kv_heads, 1)), dscores, absent(),
               absent());
  memset(&d, 0, sizeof d);
  d.y = scores, d.dy = d.dx = dscores;
  plan_between(c, MLK_OP_SOFTMAX_GRAD, "softmax", &d);
  plan_product(c, "attention", dscores, grouped_heads(h, AT_KEYS, h->kv_heads, 1),
               grouped_heads(h, AT_DQKV, h->kv_heads, group), absent(), absent());
  plan_product(c, "attention", mlk_transposed(dscores), grouped_heads(h, AT_QKV, h->kv_heads, group),
               grouped_heads(h, AT_DNORMED, h->kv_heads, group), absent(), absent());
}

static void plan_attention(calls *c, const shape *h) {
  const int64_t heads = h->heads, kv_heads = h->kv_heads;
  const mlk_tensor turned = heads_of(h, AT_QKV, 0, heads + kv_heads);
  mlk_attention_desc d;
  memset(&d, 0, sizeof d);
  if (h->rotary && !h->keys) plan_rotary(c, turned, turned, 0);
  if (h->scores) {
    plan_scores(c, h);
    plan_product(c, "attention", mlk_f32(at(AT_SCORES), h->batch, kv_heads, heads / kv_heads, h->length, h->length),
                 grouped_heads(h, AT_VALUES, kv_heads, 1), grouped_heads(h, AT_ATTENDED, kv_heads, heads / kv_heads),
                 absent(), absent());
    return;
  }
  d.q = attention_heads(c, h, AT_QKV, 0, heads);
  d.k = attention_heads(c, h, AT_QKV, heads, kv_heads);
  d.v = attention_heads(c, h, AT_QKV, heads + kv_heads, kv_heads);
  d.out = mlk_swapped(typed(c, mlk_f32(at(AT_ATTENDED), h->batch, h->length, heads, h->head)), 1, 2);
  d.lse = mlk_f32(at(AT_LSE), h->batch, heads, h->length);
  d.scores.causal = h->causal;
  if (h->keys) plan_cached_keys(c, h, &d);
  plan(c, MLK_OP_ATTENTION, "attention", &d);
}

static void plan_mlp(calls *c, const shape *h) {
  const int64_t rows = h->rows, hidden = h->hidden;
  const mlk_tensor normed = mlk_f32(at(AT_NORMED), rows, h->width), pair = mlk_f32(at(AT_PAIR), rows, 2 * hidden);
  const mlk_tensor gate = mlk_f32(at(AT_GATE), rows, hidden), product = mlk_f32(at(AT_PRODUCT), rows, hidden);
  const mlk_tensor both = mlk_f32(at(AT_WEIGHTS), h->gated ? 2 * hidden : hidden, h->width);
  mlk_matmul_desc mm;
  memset(&mm, 0, sizeof mm);
  mm.a = typed(c, normed), mm.b = typed(c, mlk_transposed(mlk_slice(both, 0, 0, hidden)));
  mm.d = typed(c, h->gated ? gate : product), mm.bias = bias_or_none(h, hidden);
  mm.activation = h->gated ? MLK_SILU : MLK_GELU;
  mm.preact = typed(c, h->gated ? mlk_slice(pair, 1, 0, hidden) : gate);
  if (mm.bias.data) mm.bias.dtype = (int32_t)c->type;
  plan(c, MLK_OP_MATMUL, "MLP", &mm);
  if (h->gated) {
    const mlk_tensor up = mlk_slice(pair, 1, hidden, hidden);
    plan_product(c, "MLP", normed, mlk_transposed(mlk_slice(both, 0, hidden, hidden)), up, bias_or_none(h, hidden),
                 absent());
    plan_map(c, "activation", MLK_MUL, MLK_NONE, gate, up, product);
  }
  plan_dense(c, h, "MLP", AT_PRODUCT, AT_AFTER, h->width, hidden, AT_MIDDLE);
}

static void plan_layer(calls *c, const shape *h) {
  plan_norm(c, h, AT_X, AT_NORMED);
  plan_dense(c, h, "q, k, v", AT_NORMED, AT_QKV, h->qkv, h->width, -1);
  plan_attention(c, h);
  plan_dense(c, h, "attention's output", AT_ATTENDED, AT_MIDDLE, h->width, h->heads * h->head, AT_X);
  plan_norm(c, h, AT_MIDDLE, AT_NORMED);
  plan_mlp(c, h);
}

static void plan_lookup(calls *c, const shape *h, int64_t entries) {
  mlk_embedding_desc d;
  memset(&d, 0, sizeof d);
  d.table = mlk_f32(at(AT_WEIGHTS), entries, h->width), d.ids = mlk_i64(at_integers(AT_IDS), h->rows);
  d.out = mlk_f32(at(AT_X), h->rows, h->width);
  plan_between(c, MLK_OP_EMBEDDING, "embedding", &d);
}

static void plan_input(calls *c, const shape *h) {
  const mlk_tensor x = mlk_f32(at(AT_X), h->batch, h->length, h->width);
  plan_lookup(c, h, h->vocabulary);
  if (h->learned) plan_map(c, "embedding", MLK_ADD, MLK_NONE, x, mlk_f32(at(AT_WEIGHTS), h->length, h->width), x);
  if (h->segments) {
    plan_lookup(c, h, 2);
    plan_map(c, "embedding", MLK_ADD, MLK_NONE, x, mlk_f32(at(AT_AFTER), h->batch, h->length, h->width), x);
  }
  if (h->embedding_norm) plan_norm(c, h, AT_X, AT_NORMED);
}

static void plan_layers(calls *c, const shape *h) {
  c->times = (int)h->layers;
  plan_layer(c, h);
  c->times = 1;
}

static void plan_forward(calls *c, const shape *h) {
  plan_input(c, h);
  plan_layers(c, h);
  if (h->final_norm) plan_norm(c, h, AT_X, AT_NORMED);
  plan_product(c, "logits", mlk_f32(at(AT_NORMED), h->logit_rows, h->width),
               mlk_transposed(mlk_f32(at(AT_WEIGHTS), h->vocabulary, h->width)),
               mlk_f32(at(AT_LOGITS), h->logit_rows, h->vocabulary), absent(), absent());
}

/* The gradients of y = x w^T + bias with w [outputs, inputs] */
static void plan_dense_grads(calls *c, const shape *h, const char *name, int x, int dy, int dx, int64_t outputs,
                             int64_t inputs) {
  const mlk_tensor dout = mlk_f32(at(dy), h->rows, outputs);
  plan_product(c, name, mlk_transposed(dout), mlk_f32(at(x), h->rows, inputs), mlk_f32(at(AT_GRADS), outputs, inputs),
               absent(), absent());
  plan_product(c, name, dout, mlk_f32(at(AT_WEIGHTS), outputs, inputs), mlk_f32(at(dx), h->rows, inputs), absent(),
               absent());
  if (h->bias) plan_reduce(c, "bias", MLK_SUM, 0, dout, mlk_f32(at(AT_GRADS), outputs));
}

/* past: something comes past the branch behind the norm */
static void plan_norm_grad(calls *c, const shape *h, int x, int past) {
  const mlk_tensor dnormed = mlk_f32(at(AT_DNORMED), h->rows, h->width), dx = mlk_f32(at(AT_DX), h->rows, h->width);
  mlk_norm_grad_desc d;
  memset(&d, 0, sizeof d);
  d.kind = h->rms ? MLK_NORM_RMS : MLK_NORM_LAYER;
  d.x = mlk_f32(at(x), h->rows, h->width), d.rstd = mlk_f32(at(AT_STATISTICS), h->rows);
  if (!h->rms) d.mean = mlk_f32(at(AT_LOSS), h->rows);
  d.gamma = mlk_f32(at(AT_WEIGHTS), h->width), d.dgamma = mlk_f32(at(AT_GRADS), h->width);
  if (!h->rms && h->bias) d.dbeta = mlk_f32(at(AT_BIAS), h->width);
  d.dy = dnormed, d.dx = past ? dnormed : dx;
  plan_between(c, MLK_OP_NORM_GRAD, "norm", &d);
  if (past) plan_map(c, "residual", MLK_ADD, MLK_NONE, dx, dnormed, dx);
}

static void plan_mlp_grads(calls *c, const shape *h) {
  const int64_t rows = h->rows, hidden = h->hidden;
  const mlk_tensor pair = mlk_f32(at(AT_PAIR), rows, 2 * hidden), dpair = mlk_f32(at(AT_DPAIR), rows, 2 * hidden);
  const mlk_tensor dproduct = mlk_f32(at(AT_DPRODUCT), rows, hidden), gate = mlk_f32(at(AT_GATE), rows, hidden);
  plan_dense_grads(c, h, "MLP", AT_PRODUCT, AT_DX, AT_DPRODUCT, h->width, hidden);
  if (h->gated) {
    plan_map(c, "activation", MLK_MUL, MLK_NONE, dproduct, gate, mlk_slice(dpair, 1, hidden, hidden));
    plan_map(c, "activation", MLK_MUL, MLK_NONE, dproduct, mlk_slice(pair, 1, hidden, hidden), dproduct);
    plan_map(c, "activation", MLK_ACT_GRAD, MLK_SILU, mlk_slice(pair, 1, 0, hidden), dproduct,
             mlk_slice(dpair, 1, 0, hidden));
  } else {
    plan_map(c, "activation", MLK_ACT_GRAD, MLK_GELU, gate, dproduct, dproduct);
  }
  plan_dense_grads(c, h, "MLP", AT_NORMED, h->gated ? AT_DPAIR : AT_DPRODUCT, AT_DNORMED,
                   h->gated ? 2 * hidden : hidden, h->width);
  plan_norm_grad(c, h, AT_MIDDLE, 1);
}

static void plan_attention_grads(calls *c, const shape *h) {
  const int64_t heads = h->heads, kv_heads = h->kv_heads;
  const mlk_tensor turned = heads_of(h, AT_DQKV, 0, heads + kv_heads);
  mlk_attention_grad_desc d;
  plan_dense_grads(c, h, "attention's output", AT_ATTENDED, AT_DX, AT_DNORMED, h->width, heads * h->head);
  memset(&d, 0, sizeof d);
  d.q = mlk_swapped(typed(c, heads_of(h, AT_QKV, 0, heads)), 1, 2),
  d.dq = mlk_swapped(typed(c, heads_of(h, AT_DQKV, 0, heads)), 1, 2);
  d.k = mlk_swapped(typed(c, heads_of(h, AT_QKV, heads, kv_heads)), 1, 2);
  d.dk = mlk_swapped(typed(c, heads_of(h, AT_DQKV, heads, kv_heads)), 1, 2);
  d.v = mlk_swapped(typed(c, heads_of(h, AT_QKV, heads + kv_heads, kv_heads)), 1, 2);
  d.dv = mlk_swapped(typed(c, heads_of(h, AT_DQKV, heads + kv_heads, kv_heads)), 1, 2);
  d.out = mlk_swapped(typed(c, mlk_f32(at(AT_ATTENDED), h->batch, h->length, heads, h->head)), 1, 2);
  d.dout = mlk_swapped(typed(c, mlk_f32(at(AT_DNORMED), h->batch, h->length, heads, h->head)), 1, 2);
  d.lse = mlk_f32(at(AT_LSE), h->batch, heads, h->length);
  d.scores.causal = h->causal;
  if (h->scores)
    plan_scores_grads(c, h);
  else
    plan(c, MLK_OP_ATTENTION_GRAD, "attention", &d);
  if (h->rotary) plan_rotary(c, turned, turned, 1);
  plan_dense_grads(c, h, "q, k, v", AT_NORMED, AT_DQKV, AT_DNORMED, h->qkv, h->width);
  plan_norm_grad(c, h, AT_X, 1);
}

static void plan_loss(calls *c, const shape *h, int with_gradient) {
  mlk_cross_entropy_desc d;
  memset(&d, 0, sizeof d);
  d.x = mlk_f32(at(AT_LOGITS), h->rows, h->vocabulary), d.labels = mlk_i64(at_integers(AT_LABELS), h->rows);
  d.loss = mlk_f32(at(AT_LOSS), h->rows);
  if (with_gradient) d.dx = d.x;
  plan(c, MLK_OP_CROSS_ENTROPY, "cross-entropy", &d);
  plan_reduce(c, "cross-entropy", with_gradient ? MLK_MEAN : MLK_SUM, 0, mlk_f32(at(AT_LOSS), h->rows),
              mlk_f32(at(AT_GRADS), 1));
}

static void plan_input_grads(calls *c, const shape *h) {
  mlk_embedding_grad_desc d;
  if (h->embedding_norm) plan_norm_grad(c, h, AT_X, 0);
  memset(&d, 0, sizeof d);
  d.ids = mlk_i64(at_integers(AT_IDS), h->rows), d.dout = mlk_f32(at(AT_DX), h->rows, h->width);
  d.dtable = mlk_f32(at(AT_GRADS), h->vocabulary, h->width);
  plan_between(c, MLK_OP_EMBEDDING_GRAD, "embedding", &d);
  if (h->learned)
    plan_reduce(c, "embedding", MLK_SUM, 0, mlk_f32(at(AT_DX), h->batch, h->length, h->width),
                mlk_f32(at(AT_GRADS), h->length, h->width));
  if (h->segments) {
    d.dtable = mlk_f32(at(AT_GRADS), 2, h->width);
    plan_between(c, MLK_OP_EMBEDDING_GRAD, "embedding", &d);
  }
}

static void plan_backward(calls *c, const shape *h) {
  const mlk_tensor dlogits = mlk_f32(at(AT_LOGITS), h->rows, h->vocabulary);
  plan_loss(c, h, 1);
  plan_product(c, "logits", mlk_transposed(dlogits), mlk_f32(at(AT_NORMED), h->rows, h->width),
               mlk_f32(at(AT_GRADS), h->vocabulary, h->width), absent(), absent());
  plan_product(c, "logits", dlogits, mlk_f32(at(AT_WEIGHTS), h->vocabulary, h->width),
               mlk_f32(at(AT_DNORMED), h->rows, h->width), absent(), absent());
  if (h->final_norm) plan_norm_grad(c, h, AT_X, 0);
  c->times = (int)h->layers;
  plan_mlp_grads(c, h);
  plan_attention_grads(c, h);
  c->times = 1;
  plan_input_grads(c, h);
}

/* ---- weights ----------------------------------------------------------------------------------------------------- */

enum { IN_TABLE, IN_POSITIONS, IN_ATTENTION, IN_MLP, IN_NORMS, IN_HEAD, IN_CONVOLUTIONS, IN_DENSE, PARTS };
static const char *const part_names[PARTS] = {"table of tokens", "positions", "attention",    "MLP",
                                              "norms",           "logits",    "convolutions", "dense"};

typedef struct weights {
  int64_t part[PARTS], all, decayed; /* decayed: matrices and tables; they come first, and vectors behind them */
} weights;

static weights count_weights(const settings *s) {
  const int64_t width = of(s, WIDTH), layers = of(s, LAYERS), hidden = of(s, FFN), bias = of(s, BIAS);
  const int64_t inner = of(s, HEADS) * of(s, HEAD_SIZE), qkv = inner + 2 * of(s, KV_HEADS) * of(s, HEAD_SIZE);
  const int64_t branches = of(s, GATED) ? 2 : 1, norms = 2 * layers + of(s, FINAL_NORM) + of(s, EMBEDDING_NORM);
  const int64_t attention = width * (qkv + inner), mlp = width * hidden * (branches + 1);
  const int64_t vectors_of_norm = of(s, NORM) == 0 && bias ? 2 : 1;
  weights w;
  int part;
  memset(&w, 0, sizeof w);
  w.part[IN_TABLE] = of(s, VOCABULARY) * width;
  w.part[IN_POSITIONS] = (of(s, POSITIONS) == LEARNED ? of(s, CONTEXT) * width : 0) + of(s, SEGMENTS) * width;
  w.part[IN_ATTENTION] = layers * (attention + bias * (qkv + width));
  w.part[IN_MLP] = layers * (mlp + bias * (branches * hidden + width));
  w.part[IN_NORMS] = norms * width * vectors_of_norm;
  w.part[IN_HEAD] = of(s, TIED) ? 0 : of(s, VOCABULARY) * width;
  for (part = 0; part < PARTS; part++) w.all += w.part[part];
  w.decayed = w.part[IN_TABLE] + w.part[IN_POSITIONS] + w.part[IN_HEAD] + layers * (attention + mlp);
  return w;
}

/* ---- the update -------------------------------------------------------------------------------------------------- */

static int64_t own_part(const settings *s, int stage, int64_t count) {
  return of(s, ZERO) >= stage ? (int64_t)ceil_div((uint64_t)count, (uint64_t)of(s, REPLICAS)) : count;
}

static void plan_step_of(calls *c, const settings *s, int64_t count) {
  mlk_adamw_desc adamw;
  mlk_sgd_desc sgd;
  if (count <= 0) return;
  memset(&adamw, 0, sizeof adamw), memset(&sgd, 0, sizeof sgd);
  adamw.param = sgd.param = mlk_f32(at(AT_WEIGHTS), count), adamw.grad = sgd.grad = mlk_f32(at(AT_GRADS), count);
  adamw.m = mlk_f32(at(AT_MOMENT1), count), adamw.v = mlk_f32(at(AT_MOMENT2), count), adamw.step = 1;
  if (of(s, OPTIMISER) == MOMENTUM) sgd.velocity = adamw.m, sgd.momentum = 0.9f;
  if (of(s, OPTIMISER) == ADAMW)
    plan_as(c, MLK_OP_ADAMW, "optimiser", &adamw, 0);
  else
    plan_as(c, MLK_OP_SGD, "optimiser", &sgd, 0);
}

/* The range of part k of n of a bucket, as mlk_group_range cuts it: whole units of 16 elements. */
static int64_t range_cut(int64_t elements, int64_t k, int64_t n) {
  const int64_t units = (elements + 15) / 16, cut = (units / n * k + units % n * k / n) * 16;
  return cut < elements ? cut : elements;
}

/* Of 03_gpt: weights of a layer's matrices, each a bucket; table and norms are the last. */
static int64_t bucket_elements(const settings *s, const weights *w, int64_t bucket) {
  const int64_t of_layer = (w->part[IN_ATTENTION] + w->part[IN_MLP]) / of(s, LAYERS);
  return bucket < of(s, LAYERS) ? of_layer : w->part[IN_TABLE] + w->part[IN_NORMS];
}

/* What the first replica of 03_gpt keeps with --zero 1. */
static int64_t own_range(const settings *s, const weights *w) {
  int64_t bucket, count = 0;
  for (bucket = 0; bucket <= of(s, LAYERS); bucket++)
    count += range_cut(bucket_elements(s, w, bucket), 1, of(s, REPLICAS));
  return count;
}

static void plan_update(calls *c, const settings *s, const weights *w) {
  const mlk_tensor all = mlk_f32(at(AT_GRADS), of(s, TRAINER) ? w->all : own_part(s, 1, w->all));
  mlk_clip_norm_desc clip;
  c->phase = UPDATE;
  if (of(s, OPTIMISER) == NO_OPTIMISER) return;
  memset(&clip, 0, sizeof clip);
  clip.grads = &all, clip.count = 1, clip.max_norm = 1;
  if (of(s, CLIP)) plan_between(c, MLK_OP_CLIP_NORM, "clip", &clip);
  if (of(s, ZERO) && of(s, TRAINER)) {
    plan_step_of(c, s, own_range(s, w));
  } else if (of(s, ZERO)) {
    plan_step_of(c, s, own_part(s, 1, w->all));
  } else {
    plan_step_of(c, s, w->decayed), plan_step_of(c, s, w->all - w->decayed);
  }
  if (of(s, MASTER)) { /* gradients to f32 and weights back: both calls read and write both types */
    mlk_map_desc d;
    const int64_t own = own_part(s, 1, w->all);
    memset(&d, 0, sizeof d);
    d.a = mlk_bf16((const uint16_t *)(const void *)at(AT_GRADS), own), d.out = mlk_f32(at(AT_MOMENT1), own);
    plan_as(c, MLK_OP_MAP, "conversions", &d, 0);
    d.a = d.out, d.out = mlk_bf16((const uint16_t *)(const void *)at(AT_WEIGHTS), own);
    plan_as(c, MLK_OP_MAP, "conversions", &d, 0);
  }
}

/* ---- >>memory ------------------------------------------------------------------------------------------------------
   Every array that a training holds at once, each in one kind. The arrays of a layer are those that the backward pass
   reads; gradients on their way back exist once, for a layer at a time. */

enum {
  PARAMETERS,
  GRADIENT_BYTES,
  OPTIMISER_BYTES,
  KEPT,           /* activations for the backward pass */
  BACKWARD_BYTES, /* gradients of activations */
  BATCH_BYTES,    /* tokens and labels, or pictures; losses */
  WRITING,        /* of the trainers: what writing text, or judging, needs */
  ALIGNMENT,
  WORKSPACE,
  GROUP_PRIVATE,
  GATHERED, /* ZeRO 3: weights of a layer while it computes */
  KINDS
};
static const char *const kind_names[KINDS] = {"parameters", "gradients", "optimiser", "activations",
                                              "backward",   "batch",     "writing",   "alignment",
                                              "workspace",  "group",     "gathered"};

typedef struct memory {
  uint64_t kind[KINDS], total;
  uint64_t layer, statistics; /* one layer's activations, and of these what norms and softmax keep in f32 */
  uint64_t common;            /* of all replicas of a trainer together */
  int64_t unit;               /* arrays begin at multiples of so many bytes */
} memory;

static uint64_t rounded(const memory *m, int64_t elements, int64_t bytes) {
  const uint64_t unit = (uint64_t)m->unit;
  return ceil_div((uint64_t)elements * (uint64_t)bytes, unit) * unit;
}

static void cut(memory *m, int kind, int64_t elements, int64_t bytes) { m->kind[kind] += rounded(m, elements, bytes); }

/* What the gradients of a layer read: e bytes an element, statistics f32. times: of layers. */
static void cut_layer(memory *m, const settings *s, const shape *h, int kind, int64_t e, int64_t times) {
  const int64_t rows = h->rows, cells = rows * h->heads * h->length;
  const uint64_t wide = rounded(m, rows * h->width, e), hidden = rounded(m, rows * h->hidden, e);
  const int masks = (int)of(s, DROPOUT);
  uint64_t all, figures = (h->rms ? 2 : 4) * rounded(m, rows, 4); /* 1 / deviation and mean of two norms */
  all = 4 * wide;                                                 /* x, x + attention, their norms */
  all += rounded(m, rows * h->qkv, e) + rounded(m, rows * h->heads * h->head, e); /* q, k, v; out of the heads */
  all += 2 * hidden + (h->gated ? rounded(m, rows * 2 * h->hidden, e) : 0); /* around the activation; gate and up */
  if (!h->scores) figures += rounded(m, rows * h->heads, 4);                /* log-sum-exp */
  if (masks) all += 2 * rounded(m, rows * h->width, 1);                     /* behind attention and MLP */
  if (h->scores && of(s, RECOMPUTE) == KEEP_ALL) {
    all += rounded(m, cells, e);
    if (masks) all += rounded(m, cells, 1) + rounded(m, cells, e); /* of softmax: mask, and what it leaves */
  }
  m->kind[kind] += (all + figures) * (uint64_t)times;
  m->layer = all + figures, m->statistics = figures;
}

/* A pass over h->rows: everything between tokens and logits. */
static void cut_stream(memory *m, const settings *s, const shape *h, int kind, int ids) {
  const int64_t e = type_bytes((int)of(s, ACTIVATIONS)), wide = h->rows * h->width;
  cut(m, ids, h->rows, 8);
  if (of(s, OPTIMISER) == NO_OPTIMISER) {
    cut_layer(m, s, h, kind, e, 1); /* nobody comes back for the others */
  } else if (of(s, RECOMPUTE) == DROP_BLOCKS) {
    int64_t l;
    for (l = 1; l < h->layers; l++) cut(m, kind, wide, e); /* inputs; of one layer at a time all the rest */
    cut_layer(m, s, h, kind, e, 1);
  } else {
    cut_layer(m, s, h, kind, e, h->layers);
  }
  cut(m, kind, wide, e); /* what comes out of all */
  if (h->final_norm) cut(m, kind, wide, e), cut(m, kind, h->rows, 4);
  if (h->final_norm && !h->rms) cut(m, kind, h->rows, 4);
  if (h->embedding_norm) cut(m, kind, wide, e), cut(m, kind, 2 * h->rows, 4);
  cut(m, kind, h->logit_rows * h->vocabulary, 4); /* cross-entropy takes f32 */
}

static int64_t largest_layer(const settings *s, const weights *w) {
  const int64_t layer = (w->part[IN_ATTENTION] + w->part[IN_MLP]) / of(s, LAYERS);
  return layer > w->part[IN_TABLE] ? layer : w->part[IN_TABLE];
}

static void cut_state(memory *m, const settings *s, const weights *w) {
  const int moments = of(s, OPTIMISER) == ADAMW ? 2 : of(s, OPTIMISER) == MOMENTUM;
  const int64_t own = own_part(s, 1, w->all);
  int i;
  cut(m, PARAMETERS, own_part(s, 3, w->all), type_bytes((int)of(s, WEIGHTS)));
  if (of(s, ZERO) == 3) /* the largest that is needed at once: the matrices of a layer, or a table */
    cut(m, GATHERED, largest_layer(s, w), type_bytes((int)of(s, WEIGHTS)));
  if (of(s, OPTIMISER) == NO_OPTIMISER) return;
  cut(m, GRADIENT_BYTES, own_part(s, 2, w->all), type_bytes((int)of(s, GRADIENTS)));
  if (of(s, ZERO) && of(s, TRAINER)) { /* 03_gpt allocates both moments as one array of floats, with one to spare */
    m->kind[OPTIMISER_BYTES] += (uint64_t)(2 * own_range(s, w) + 1) * 4;
    return;
  }
  for (i = 0; i < moments; i++) cut(m, OPTIMISER_BYTES, own, type_bytes((int)of(s, STATE)));
  if (of(s, MASTER)) cut(m, OPTIMISER_BYTES, own, 4);
}

static void cut_transformer(memory *m, const settings *s, const weights *w) {
  const shape h = shape_of(s, of(s, MICRO_BATCH), of(s, SEQUENCE), 0);
  const int64_t e = type_bytes((int)of(s, ACTIVATIONS)), wide = h.rows * h.width;
  cut_state(m, s, w);
  cut_stream(m, s, &h, KEPT, BATCH_BYTES);
  cut(m, BATCH_BYTES, h.rows, 8), cut(m, BATCH_BYTES, h.rows, 4); /* labels, losses */
  if (of(s, OPTIMISER) == NO_OPTIMISER) return;
  cut(m, BACKWARD_BYTES, wide, e), cut(m, BACKWARD_BYTES, wide, e), cut(m, BACKWARD_BYTES, h.rows * h.qkv, e);
  cut(m, BACKWARD_BYTES, h.rows * h.hidden, e);
  if (h.gated) cut(m, BACKWARD_BYTES, h.rows * 2 * h.hidden, e);
  if (h.scores) cut(m, BACKWARD_BYTES, h.rows * h.heads * h.length, e);
  if (h.scores && of(s, RECOMPUTE) == DROP_SCORES) cut(m, BACKWARD_BYTES, h.rows * h.heads * h.length, e);
  if (of(s, TRAINER) == GPT) { /* it writes text: a pass over one byte, with a cache of keys and values */
    const shape one = shape_of(s, 1, 1, of(s, SEQUENCE));
    const uint64_t layer = m->layer, statistics = m->statistics;
    int64_t i;
    cut_stream(m, s, &one, WRITING, WRITING);
    for (i = 0; i < 2 * h.layers; i++) cut(m, WRITING, of(s, SEQUENCE) * h.kv_heads * h.head, 4);
    cut(m, WRITING, h.vocabulary, 4);
    m->layer = layer, m->statistics = statistics;
    m->kind[ALIGNMENT] = 64; /* its arrays lie in one block, from the first multiple of 64 on */
  }
}

/* ---- 02_fashion_cnn: its arrays and its calls -------------------------------------------------------------------- */

typedef struct network {
  int64_t batch, edge, edge1, edge2, channels1, channels2, hidden, flat; /* images are square */
} network;

enum { CLASSES = 10 };

static network network_of(const settings *s) {
  network n;
  const int small = of(s, PICTURES) == DIGITS;
  n.batch = of(s, MICRO_BATCH), n.edge = small ? 8 : 28, n.edge1 = n.edge / 2, n.edge2 = n.edge1 / 2;
  n.channels1 = small ? 16 : 32, n.channels2 = small ? 32 : 64, n.hidden = small ? 64 : 128;
  n.flat = n.edge2 * n.edge2 * n.channels2;
  return n;
}

static weights count_network(const network *n) {
  weights w;
  memset(&w, 0, sizeof w);
  w.part[IN_CONVOLUTIONS] = n->channels1 * (9 + 1) + n->channels2 * (9 * n->channels1 + 1);
  w.part[IN_DENSE] = n->hidden * (n->flat + 1) + CLASSES * (n->hidden + 1);
  w.all = w.decayed = w.part[IN_CONVOLUTIONS] + w.part[IN_DENSE];
  return w;
}

static void cut_network(memory *m, const settings *s, const weights *w) {
  const network n = network_of(s);
  const int64_t image1 = n.batch * n.edge * n.edge * n.channels1, pooled1 = n.batch * n.edge1 * n.edge1 * n.channels1;
  const int64_t image2 = n.batch * n.edge1 * n.edge1 * n.channels2, pooled2 = n.batch * n.flat;
  const int64_t dense[] = {n.batch * n.hidden, n.batch * CLASSES};
  const int64_t images[] = {image1, pooled1, image2, pooled2, dense[0], dense[1]};
  int i;
  cut_state(m, s, w);
  for (i = 0; i < 6; i++) cut(m, KEPT, images[i], 4), cut(m, BACKWARD_BYTES, images[i], 4);
  cut(m, KEPT, pooled1, 8), cut(m, KEPT, pooled2, 8); /* the places of the largest */
  cut(m, BATCH_BYTES, n.batch * n.edge * n.edge, 4), cut(m, BATCH_BYTES, n.batch, 4), cut(m, BATCH_BYTES, n.batch, 8);
  cut(m, WRITING, dense[1], 4), cut(m, WRITING, n.batch, 8); /* probabilities, predicted classes */
  m->kind[ALIGNMENT] = 64;
}

static mlk_tensor image(int array, int64_t batch, int64_t channels, int64_t edge) {
  return mlk_channels_last(mlk_f32(at(array), batch, edge, edge, channels));
}

static mlk_tensor places(int64_t batch, int64_t channels, int64_t edge) {
  return mlk_channels_last(mlk_i64(at_integers(AT_PLACES), batch, edge, edge, channels));
}

static mlk_conv_geometry padded_3x3(void) {
  mlk_conv_geometry g;
  memset(&g, 0, sizeof g);
  g.pad_before[0] = g.pad_before[1] = g.pad_after[0] = g.pad_after[1] = 1;
  return g;
}

static void plan_conv(calls *c, const char *name, int64_t batch, int64_t in, int64_t out, int64_t edge) {
  mlk_conv_desc d;
  mlk_pool_desc pool;
  memset(&d, 0, sizeof d), memset(&pool, 0, sizeof pool);
  d.x = image(AT_X, batch, in, edge), d.w = image(AT_WEIGHTS, out, in, 3), d.bias = mlk_f32(at(AT_BIAS), out);
  d.y = image(AT_AFTER, batch, out, edge), d.activation = MLK_RELU, d.geometry = padded_3x3();
  plan(c, MLK_OP_CONV, name, &d);
  pool.x = d.y, pool.y = image(AT_MIDDLE, batch, out, edge / 2), pool.indices = places(batch, out, edge / 2);
  pool.window[0] = pool.window[1] = pool.geometry.stride[0] = pool.geometry.stride[1] = 2;
  plan(c, MLK_OP_POOL, "pooling", &pool);
}

/* Without `below` nobody wants the gradient of what goes in. */
static void plan_conv_grads(calls *c, const char *name, int64_t batch, int64_t in, int64_t out, int64_t edge,
                            int below) {
  const mlk_tensor pooled = mlk_f32(at(AT_DX), batch, edge / 2 * (edge / 2) * out);
  mlk_conv_grad_weights_desc w;
  mlk_conv_grad_input_desc x;
  mlk_pool_grad_desc pool;
  memset(&w, 0, sizeof w), memset(&x, 0, sizeof x), memset(&pool, 0, sizeof pool);
  plan_map(c, "activation", MLK_ACT_GRAD, MLK_RELU, mlk_f32(at(AT_MIDDLE), batch, pooled.shape[1]), pooled, pooled);
  pool.dy = image(AT_DX, batch, out, edge / 2), pool.dx = image(AT_DPAIR, batch, out, edge);
  pool.indices = places(batch, out, edge / 2);
  pool.window[0] = pool.window[1] = pool.geometry.stride[0] = pool.geometry.stride[1] = 2;
  plan(c, MLK_OP_POOL_GRAD, "pooling", &pool);
  w.x = image(AT_X, batch, in, edge), w.dy = x.dy = pool.dx, w.geometry = x.geometry = padded_3x3();
  w.dw = image(AT_GRADS, out, in, 3), w.dbias = mlk_f32(at(AT_BIAS), out);
  plan(c, MLK_OP_CONV_GRAD_WEIGHTS, name, &w);
  x.w = image(AT_WEIGHTS, out, in, 3), x.dx = image(AT_DX, batch, in, edge);
  if (below) plan(c, MLK_OP_CONV_GRAD_INPUT, name, &x);
}

static void plan_network_dense(calls *c, const network *n, int64_t outputs, int64_t inputs, int relu) {
  mlk_matmul_desc mm;
  memset(&mm, 0, sizeof mm);
  mm.a = mlk_f32(at(AT_X), n->batch, inputs), mm.b = mlk_transposed(mlk_f32(at(AT_WEIGHTS), outputs, inputs));
  mm.d = mlk_f32(at(AT_AFTER), n->batch, outputs), mm.bias = mlk_f32(at(AT_BIAS), outputs);
  mm.activation = relu ? MLK_RELU : MLK_NONE;
  plan(c, MLK_OP_MATMUL, "dense", &mm);
}

static void plan_network_dense_grads(calls *c, const network *n, int64_t outputs, int64_t inputs) {
  const mlk_tensor dy = mlk_f32(at(AT_DX), n->batch, outputs), none = absent();
  plan_product(c, "dense", mlk_transposed(dy), mlk_f32(at(AT_X), n->batch, inputs),
               mlk_f32(at(AT_GRADS), outputs, inputs), none, none);
  plan_reduce(c, "dense", MLK_SUM, 0, dy, mlk_f32(at(AT_GRADS), outputs));
  plan_product(c, "dense", dy, mlk_f32(at(AT_WEIGHTS), outputs, inputs), mlk_f32(at(AT_DNORMED), n->batch, inputs),
               none, none);
}

static void plan_classes_loss(calls *c, const network *n, int with_gradient) {
  mlk_cross_entropy_desc d;
  memset(&d, 0, sizeof d);
  d.x = mlk_f32(at(AT_LOGITS), n->batch, CLASSES), d.labels = mlk_i64(at_integers(AT_LABELS), n->batch);
  d.loss = mlk_f32(at(AT_LOSS), n->batch);
  if (with_gradient) d.dx = mlk_f32(at(AT_DX), n->batch, CLASSES);
  plan(c, MLK_OP_CROSS_ENTROPY, "cross-entropy", &d);
  if (with_gradient) plan_reduce(c, "cross-entropy", MLK_MEAN, 0, d.loss, mlk_f32(at(AT_GRADS), 1));
}

static void plan_network(calls *c, const settings *s) {
  const network n = network_of(s);
  const mlk_tensor h = mlk_f32(at(AT_AFTER), n.batch, n.hidden), dh = mlk_f32(at(AT_DX), n.batch, n.hidden);
  c->phase = FORWARD;
  plan_conv(c, "convolution 1", n.batch, 1, n.channels1, n.edge);
  plan_conv(c, "convolution 2", n.batch, n.channels1, n.channels2, n.edge1);
  plan_network_dense(c, &n, n.hidden, n.flat, 1), plan_network_dense(c, &n, CLASSES, n.hidden, 0);
  c->phase = BACKWARD;
  plan_classes_loss(c, &n, 1);
  plan_network_dense_grads(c, &n, CLASSES, n.hidden);
  plan_map(c, "activation", MLK_ACT_GRAD, MLK_RELU, h, dh, dh);
  plan_network_dense_grads(c, &n, n.hidden, n.flat);
  plan_conv_grads(c, "convolution 2", n.batch, n.channels1, n.channels2, n.edge1, 1);
  plan_conv_grads(c, "convolution 1", n.batch, 1, n.channels1, n.edge, 0);
}

/* Calls besides a step's, which the trainers make on the same workspace: judging, and writing text. */
static uint64_t workspace_besides(machine *m, const settings *s) {
  const mlk_tensor one = mlk_f32(at(AT_LOGITS), 1, of(s, VOCABULARY));
  calls *c = (calls *)calloc(1, sizeof *c);
  mlk_softmax_desc softmax;
  uint64_t bytes = 0;
  if (!c) return 0;
  c->at = m, c->times = 1;
  memset(&softmax, 0, sizeof softmax);
  softmax.x = softmax.y = one;
  if (of(s, TRAINER) == GPT) {
    const shape judged = shape_of(s, of(s, MICRO_BATCH), of(s, SEQUENCE), 0),
                single = shape_of(s, 1, 1, of(s, SEQUENCE));
    plan_loss(c, &judged, 0), plan_forward(c, &single);
    plan_map(c, "temperature", MLK_SCALE, MLK_NONE, one, absent(), one);
  } else {
    const network n = network_of(s);
    mlk_reduce_desc d;
    memset(&d, 0, sizeof d);
    plan_classes_loss(c, &n, 0);
    d.op = MLK_ARGMAX, d.x = mlk_f32(at(AT_LOGITS), n.batch, CLASSES), d.axes = 2;
    d.out = mlk_i64(at_integers(AT_LABELS), n.batch);
    plan(c, MLK_OP_REDUCE, "arg max", &d);
    softmax.x = d.x, softmax.y = mlk_f32(at(AT_AFTER), n.batch, CLASSES);
  }
  plan(c, MLK_OP_SOFTMAX, "softmax", &softmax);
  bytes = c->workspace;
  free(c);
  return bytes;
}

/* The trainers' group: the buckets of their gradients, and one of three figures. */
static int plan_group(machine *m, const settings *s, const weights *w, mlk_group_plan *group) {
  const network n = network_of(s);
  const int64_t sizes[4] = {n.channels1 * 10, n.channels2 * (9 * n.channels1 + 1), n.hidden * (n.flat + 1),
                            CLASSES * (n.hidden + 1)};
  const int64_t count = of(s, TRAINER) == GPT ? of(s, LAYERS) + 2 : 5;
  mlk_bucket *buckets = (mlk_bucket *)calloc((size_t)count, sizeof *buckets);
  mlk_group_desc d;
  mlk_status status;
  int64_t i;
  if (!buckets) return complain("no memory for %" PRId64 " buckets", count), EXIT_RUN;
  for (i = 0; i < count - 1; i++) buckets[i].elements = of(s, TRAINER) == GPT ? bucket_elements(s, w, i) : sizes[i];
  buckets[count - 1].elements = 3;
  memset(&d, 0, sizeof d);
  d.ranks = (int)of(s, REPLICAS), d.shares = (int)of(s, SHARES), d.buckets = buckets, d.bucket_count = count;
  status = mlk_group_get_plan(m->ctx, &d, group);
  free(buckets);
  return status == MLK_OK ? 0 : (complain("the group: %s", mlk_last_error(m->ctx)), EXIT_RUN);
}

/* ---- a plan ------------------------------------------------------------------------------------------------------ */

enum { BY_ARITHMETIC, BY_BANDWIDTH, BY_LINK, BOUNDS };
static const char *const bound_names[BOUNDS] = {"arithmetic", "memory bandwidth", "the link between devices"};

typedef struct estimate {
  weights w;
  memory m;
  calls c;
  mlk_group_plan group;
  uint64_t flops[PHASES]; /* of a pass over a micro-batch; UPDATE: of a step, on one device */
  double seconds[PHASES]; /* the same */
  double passes, step_flops, step_tokens, model_flops; /* of a device, in a step; of all devices; PaLM's, of a step */
  double sent, link_seconds, exposed, step_seconds, bound[BOUNDS];
} estimate;

/* What a device sends in a step. A ring takes (n - 1) / n of a buffer for each half of an average: summing, so that
   each device has its part, and gathering (Patarasuk & Yuan, 2009). ZeRO 1 and 2 gather updated weights in place of
   gradients; from 2 on each pass's gradients are summed at once; 3 gathers weights before the forward and again before
   the backward part of each pass (Rajbhandari et al., 2020). */
static double sent_bytes(const settings *s, const estimate *e) {
  const double n = s->value[REPLICAS], part = (n - 1) / n, zero = s->value[ZERO];
  const double gradients = part * (double)e->w.all * (double)type_bytes((int)of(s, GRADIENTS));
  const double parameters = part * (double)e->w.all * (double)type_bytes((int)of(s, WEIGHTS));
  if (of(s, OPTIMISER) == NO_OPTIMISER) return 0;
  if (zero < 1) return 2 * gradients;
  if (zero < 2) return gradients + parameters;
  return zero < 3 ? e->passes * gradients + parameters : e->passes * (gradients + 2 * parameters);
}

static void add_up(const settings *s, const machine *m, estimate *e) {
  double pass, window;
  int i, phase;
  for (i = 0; i < e->c.rows; i++) {
    const row *r = &e->c.row[i];
    for (phase = 0; phase < PHASES; phase++) e->flops[phase] += r->flops[phase], e->seconds[phase] += r->seconds[phase];
  }
  pass = e->seconds[FORWARD] + e->seconds[REMADE] + e->seconds[BACKWARD];
  for (i = 0; i < e->c.rows; i++) {
    const row *r = &e->c.row[i];
    const double all = r->seconds[FORWARD] + r->seconds[REMADE] + r->seconds[BACKWARD] + r->seconds[UPDATE];
    const double of_step = all - r->seconds[UPDATE] + (e->passes > 0 ? r->seconds[UPDATE] / e->passes : 0);
    const double share = all > 0 ? r->compute_bound / all : 0;
    e->bound[BY_ARITHMETIC] += share * of_step * e->passes, e->bound[BY_BANDWIDTH] += (1 - share) * of_step * e->passes;
  }
  e->step_flops = s->value[REPLICAS] *
                  ((double)(e->flops[FORWARD] + e->flops[REMADE] + e->flops[BACKWARD]) * e->passes +
                   (double)e->flops[UPDATE]);
  e->sent = sent_bytes(s, e);
  e->link_seconds = m->link > 0 ? e->sent / m->link : 0;
  window = of(s, ZERO) >= 2 ? pass * e->passes : e->seconds[REMADE] + e->seconds[BACKWARD];
  if (!of(s, OVERLAP)) window = 0;
  e->exposed = e->link_seconds > window ? e->link_seconds - window : 0;
  e->bound[BY_LINK] = e->exposed;
  e->step_seconds = pass * e->passes + e->seconds[UPDATE] + e->exposed;
}

static void plan_calls(const settings *s, machine *m, estimate *e) {
  static const mlk_dtype types[] = {MLK_F32, MLK_BF16, MLK_F16};
  calls *c = &e->c;
  c->at = m, c->times = 1, c->type = types[of(s, ACTIVATIONS)];
  if (of(s, TRAINER) == FASHION_CNN) {
    plan_network(c, s);
  } else {
    const shape h = shape_of(s, of(s, MICRO_BATCH), of(s, SEQUENCE), 0);
    c->phase = FORWARD, plan_forward(c, &h);
    c->phase = REMADE;
    if (of(s, RECOMPUTE) == DROP_BLOCKS) plan_layers(c, &h);
    c->times = (int)h.layers;
    if (of(s, RECOMPUTE) == DROP_SCORES && h.scores) plan_scores(c, &h);
    c->times = 1, c->phase = BACKWARD;
    if (of(s, OPTIMISER) != NO_OPTIMISER) plan_backward(c, &h);
  }
  plan_update(c, s, &e->w);
}

/* A step of the training as s describes it. */
static int make_estimate(const settings *s, machine *m, estimate *e) {
  const double units = of(s, TRAINER) == FASHION_CNN ? 1 : s->value[SEQUENCE];
  int code = 0, kind;
  memset(e, 0, sizeof *e);
  e->m.unit = of(s, TRAINER) ? 64 : 1;
  e->passes = of(s, TRAINER) ? ceil(s->value[SHARES] / s->value[REPLICAS])
                             : s->value[BATCH] / (s->value[MICRO_BATCH] * s->value[REPLICAS]);
  e->step_tokens = s->value[BATCH] * units;
  if (of(s, TRAINER) == FASHION_CNN) {
    const network n = network_of(s);
    e->w = count_network(&n);
    cut_network(&e->m, s, &e->w);
  } else {
    e->w = count_weights(s);
    cut_transformer(&e->m, s, &e->w);
    e->model_flops = e->step_tokens * (6 * (double)e->w.all + 12 * s->value[LAYERS] * s->value[HEADS] *
                                                                  s->value[HEAD_SIZE] * s->value[SEQUENCE]);
    if (of(s, OPTIMISER) == NO_OPTIMISER) e->model_flops /= 3; /* the forward pass: 2 N + 4 L H Q T */
  }
  plan_calls(s, m, e);
  if (e->c.failed) return e->c.failed;
  e->m.kind[WORKSPACE] = e->c.workspace;
  if (of(s, TRAINER)) {
    const uint64_t besides = workspace_besides(m, s);
    if (e->m.kind[WORKSPACE] < besides) e->m.kind[WORKSPACE] = besides;
  }
  if (of(s, TRAINER) && (s->said[REPLICAS] || s->said[SHARES]) && (code = plan_group(m, s, &e->w, &e->group)) == 0) {
    if (e->m.kind[WORKSPACE] < e->group.workspace_bytes) e->m.kind[WORKSPACE] = e->group.workspace_bytes;
    e->m.kind[GROUP_PRIVATE] = e->group.private_bytes, e->m.common = e->group.bytes;
  }
  for (kind = 0; kind < KINDS; kind++) e->m.total += e->m.kind[kind];
  add_up(s, m, e);
  return code;
}

/* Does a micro-batch of so many fit? */
static int fits(const settings *s, machine *m, estimate *e, int64_t micro_batch, int *code) {
  settings tried = *s;
  tried.value[MICRO_BATCH] = (double)micro_batch, tried.value[BATCH] = (double)micro_batch * s->value[REPLICAS];
  if (*code == 0) *code = make_estimate(&tried, m, e);
  return *code == 0 && (double)e->m.total <= m->memory;
}

/* The largest micro-batch that fits; 0: not even one does. Memory grows with it, so it is found by halving. */
static int find_largest(const settings *s, machine *m, int64_t *largest) {
  estimate *e = (estimate *)calloc(1, sizeof *e);
  int64_t low = 0, high = 1;
  int code = 0;
  if (!e) return complain("no memory for a plan"), EXIT_RUN;
  while (high <= 1 << 20 && fits(s, m, e, high, &code)) low = high, high *= 2;
  while (low + 1 < high && code == 0) {
    const int64_t middle = low + (high - low) / 2;
    *(fits(s, m, e, middle, &code) ? &low : &high) = middle;
  }
  free(e);
  *largest = low;
  return code;
}

/* ---- inference --------------------------------------------------------------------------------------------------- */

typedef struct inference {
  uint64_t weight_bytes, cache_bytes, working_bytes; /* cache: of one sequence at its longest */
  double prefill_seconds, decode_seconds, decode_flops, decode_bytes;
  double streams; /* that fit */
} inference;

static double seconds_of(const calls *c) {
  double seconds = 0;
  int i;
  for (i = 0; i < c->rows; i++) seconds += c->row[i].seconds[FORWARD];
  return seconds;
}

/* Prefill: one pass over the prompts, with logits of their last tokens. Decoding: a token of each sequence, which sees
   the keys of the longest; so the last token's time, and the slowest. */
static int infer(const settings *s, machine *m, const weights *w, inference *out) {
  static const mlk_dtype types[] = {MLK_F32, MLK_BF16, MLK_F16};
  const int64_t longest = of(s, PROMPT) + of(s, GENERATE), streams = of(s, STREAMS);
  const int64_t width = of(s, ACTIVATIONS) ? 2 : 4;
  shape prefill = shape_of(s, streams, of(s, PROMPT), 0), decode = shape_of(s, streams, 1, longest);
  calls *c = (calls *)calloc(1, sizeof *c);
  memory one;
  int i, code;
  if (!c) return complain("no memory for a plan"), EXIT_RUN;
  c->at = m, c->times = 1, c->type = types[of(s, ACTIVATIONS)];
  prefill.logit_rows = streams, prefill.scores = 0;
  plan_forward(c, &prefill);
  out->prefill_seconds = seconds_of(c);
  c->rows = 0;
  plan_forward(c, &decode);
  out->decode_seconds = seconds_of(c);
  for (i = 0; i < c->rows; i++)
    out->decode_flops += (double)c->row[i].flops[FORWARD], out->decode_bytes += c->row[i].bytes[FORWARD];
  code = c->failed;
  memset(&one, 0, sizeof one);
  one.unit = 1;
  prefill.rows = of(s, PROMPT);
  cut_layer(&one, s, &prefill, KEPT, width, 1); /* of one prompt at a time */
  out->working_bytes = one.layer + (uint64_t)(of(s, PROMPT) * prefill.width * width + prefill.vocabulary * 4);
  out->weight_bytes = (uint64_t)(w->all * type_bytes((int)of(s, WEIGHTS)));
  out->cache_bytes = (uint64_t)(2 * prefill.layers * prefill.kv_heads * prefill.head * longest * width);
  out->streams = floor((m->memory - (double)(out->weight_bytes + out->working_bytes)) / (double)out->cache_bytes);
  if (out->streams < 0) out->streams = 0;
  free(c);
  return code;
}

/* ---- what is printed --------------------------------------------------------------------------------------------- */

static int largest_kind(const memory *m) {
  int kind, best = 0;
  for (kind = 1; kind < KINDS; kind++)
    if (m->kind[kind] > m->kind[best]) best = kind;
  return best;
}

static int largest_bound(const estimate *e) {
  int i, best = 0;
  for (i = 1; i < BOUNDS; i++)
    if (e->bound[i] > e->bound[best]) best = i;
  return best;
}

static double peak_of(const settings *s, const machine *m) { return of(s, ACTIVATIONS) ? m->tensor_flops : m->flops; }

static const char *type_name(const settings *s, setting which) {
  static const char *const names[] = {"f32", "bf16", "f16"};
  return names[of(s, which)];
}

static void print_head(const settings *s, const machine *m) {
  char room[4][32];
  if (of(s, TRAINER) == FASHION_CNN) {
    const network n = network_of(s);
    printf("model      %s: pictures of %d x %d, convolutions %d and %d, dense %d and %d\n", s->model, (int)n.edge,
           (int)n.edge, (int)n.channels1, (int)n.channels2, (int)n.hidden, CLASSES);
  } else {
    printf("model      %s: %d layers of width %d, %d query and %d key heads of %d, MLP %d%s\n",
           s->model ? s->model : "by settings", (int)of(s, LAYERS), (int)of(s, WIDTH), (int)of(s, HEADS),
           (int)of(s, KV_HEADS), (int)of(s, HEAD_SIZE), (int)of(s, FFN), of(s, GATED) ? " gated" : "");
    printf("           %s tokens%s, positions %s, %s norms%s\n", grouped((uint64_t)of(s, VOCABULARY)).s,
           of(s, TIED) ? " in one table" : "", choice_name(POSITIONS, (int)of(s, POSITIONS), room[0], 32),
           choice_name(NORM, (int)of(s, NORM), room[1], 32), of(s, BIAS) ? ", biases" : "");
  }
  printf("types      weights %s, activations %s, gradients %s, moments %s%s\n", type_name(s, WEIGHTS),
         type_name(s, ACTIVATIONS), type_name(s, GRADIENTS), type_name(s, STATE),
         of(s, MASTER) ? ", an f32 copy of the weights" : "");
  if (of(s, TRAINER) == FASHION_CNN)
    printf("step       %d pictures", (int)of(s, BATCH));
  else
    printf("step       %d sequences of %d", (int)of(s, BATCH), (int)of(s, SEQUENCE));
  printf(" on %d device%s, %d at once; %s, ZeRO %d,\n           recompute %s, attention %s\n", (int)of(s, REPLICAS),
         of(s, REPLICAS) == 1 ? "" : "s", (int)of(s, MICRO_BATCH),
         choice_name(OPTIMISER, (int)of(s, OPTIMISER), room[0], 32), (int)of(s, ZERO),
         choice_name(RECOMPUTE, (int)of(s, RECOMPUTE), room[1], 32),
         choice_name(ATTENTION, (int)of(s, ATTENTION), room[2], 32));
  printf("machine    %s", m->name);
  if (m->here) printf(" on %d thread%s", m->threads, m->threads == 1 ? "" : "s");
  if (m->flops > 0) printf(": %s f32", scaled(m->flops, "FLOP/s").s);
  if (m->flops > 0 && !m->here) printf(", %s 16-bit", scaled(m->tensor_flops, "FLOP/s").s);
  if (m->flops > 0) printf(", %s, %s", scaled(m->bandwidth, "B/s").s, scaled(m->memory, "B").s);
  printf("\n           %s\n\n", m->calibrated  ? "times are what calls like these took here"
                                : m->here      ? "times are the roofline's: no run out of caches is faster"
                                : m->kernels   ? "by its figures; times are the CUDA kernels' plans"
                                : m->flops > 0 ? "by its figures; times are the roofline's: no run is faster"
                                               : "no figures, so no times");
}

static void print_weights(const weights *w) {
  int part;
  printf("weights    %26s\n", grouped((uint64_t)w->all).s);
  for (part = 0; part < PARTS; part++)
    if (w->part[part])
      printf("  %-16s %18s  %5.1f %%\n", part_names[part], grouped((uint64_t)w->part[part]).s,
             100.0 * (double)w->part[part] / (double)w->all);
}

static void print_memory(const machine *m, const memory *b) {
  int kind;
  printf("\nmemory of each device, bytes\n");
  for (kind = 0; kind < KINDS; kind++)
    if (b->kind[kind])
      printf("  %-16s %18s  %5.1f %%\n", kind_names[kind], grouped(b->kind[kind]).s,
             100.0 * (double)b->kind[kind] / (double)b->total);
  printf("  %-16s %18s", "total", grouped(b->total).s);
  if (m->memory > 0) printf("  of %s, %.1f %%", grouped((uint64_t)m->memory).s, 100.0 * (double)b->total / m->memory);
  printf("\n");
  if (b->common) printf("  %-16s %18s  of all replicas together\n", "common", grouped(b->common).s);
  if (!m->kernels) printf("  (without workspace: that of kernels is known here, and of a GPU with CUDA=1)\n");
}

static void print_times(const estimate *e) {
  int i, phase;
  double all = 0;
  for (phase = 0; phase < PHASES; phase++) all += e->seconds[phase];
  printf("\n%-20s %6s %8s %8s  %-8s %-8s %-8s %s\n", "a pass, and update", "calls", "FLOPs", "bytes", "forward", "anew",
         "backward", "update");
  for (i = 0; i < e->c.rows; i++) {
    const row *r = &e->c.row[i];
    double flops = 0, bytes = 0, seconds = 0;
    uint64_t times = 0;
    for (phase = 0; phase < PHASES; phase++)
      flops += (double)r->flops[phase], bytes += r->bytes[phase], seconds += r->seconds[phase],
          times += r->calls[phase];
    printf("  %-18s %6" PRIu64 " %8s %8s ", r->name, times, scaled(flops, "").s, scaled(bytes, "").s);
    for (phase = 0; phase < PHASES; phase++)
      printf(" %-8s", r->seconds[phase] > 0 ? duration(r->seconds[phase]).s : "-");
    if (all > 0) printf(" %4.1f %%%s", 100 * seconds / all, r->compute_bound > seconds / 2 ? "" : " bandwidth");
    printf("\n");
  }
}

static void print_arithmetic(const settings *s, const estimate *e) {
  const int forward = of(s, OPTIMISER) == NO_OPTIMISER;
  const double customary = (forward ? 2 : 6) * (double)e->w.all * e->step_tokens;
  printf("\narithmetic of a step: %.6g FLOP, by the definition of every call", e->step_flops);
  if (e->model_flops > 0)
    printf("\n  %s %.6g (this is %.3f of it); %s a token %.6g (%.3f)", forward ? "2 N D" : "6 N D", customary,
           e->step_flops / customary, forward ? "2 N + 4 L H Q T" : "6 N + 12 L H Q T", e->model_flops,
           e->step_flops / e->model_flops);
  printf("\n  a pass: forward %s, made anew %s, backward %s\n", grouped(e->flops[FORWARD]).s,
         grouped(e->flops[REMADE]).s, grouped(e->flops[BACKWARD]).s);
  if (of(s, REPLICAS) > 1)
    printf("traffic    %s sent by each device in a step%s%s\n", scaled(e->sent, "B").s,
           e->link_seconds > 0 ? ": " : "; --link is not given, so it takes no time here",
           e->link_seconds > 0 ? duration(e->link_seconds).s : "");
}

static void print_run(const settings *s, const machine *m, const estimate *e) {
  const double rate = e->step_tokens / e->step_seconds, devices = s->value[REPLICAS];
  const double steps = s->value[TOKENS] / e->step_tokens, seconds = steps * e->step_seconds;
  printf("step       %s", duration(e->step_seconds).s);
  if (e->exposed > 0) printf(", of which %s waiting for others", duration(e->exposed).s);
  printf(": %s %s/s", scaled(rate, "").s, of(s, TRAINER) == FASHION_CNN ? "pictures" : "tokens");
  if (e->model_flops > 0)
    printf(",\n           model FLOP utilisation %.1f %%",
           100 * e->model_flops / e->step_seconds / devices / peak_of(s, m));
  printf("%s%.1f %% of the peak\n", e->model_flops > 0 ? ", " : ",\n           ",
         100 * e->step_flops / e->step_seconds / devices / peak_of(s, m));
  if (!(s->value[TOKENS] > 0)) return;
  printf("run        %s steps, %.4g FLOP, %s, %s device-hours", scaled(steps, "").s, steps * e->step_flops,
         duration(seconds).s, scaled(seconds / 3600 * devices, "").s);
  if (s->value[PRICE] > 0) printf(", cost %.2f", seconds / 3600 * devices * s->value[PRICE]);
  printf("\n");
}

static void print_limits(const machine *m, const estimate *e, int64_t largest) {
  const int kind = largest_kind(&e->m), bound = largest_bound(e);
  double all = 0;
  int i;
  for (i = 0; i < BOUNDS; i++) all += e->bound[i];
  printf("limits     memory: %s, %.0f %%", kind_names[kind], 100.0 * (double)e->m.kind[kind] / (double)e->m.total);
  if (all > 0) printf("; time: %s, %.0f %%", bound_names[bound], 100 * e->bound[bound] / all);
  printf("\n");
  if (!(m->memory > 0)) return;
  if (largest)
    printf("fits       at most %s at once on a device\n", grouped((uint64_t)largest).s);
  else
    printf("fits       not even one at once: %s of weights, gradients and optimiser alone\n",
           scaled((double)(e->m.kind[PARAMETERS] + e->m.kind[GRADIENT_BYTES] + e->m.kind[OPTIMISER_BYTES]), "B").s);
}

static void print_inference(const settings *s, const machine *m, const inference *f) {
  const double streams = s->value[STREAMS];
  printf("\ninference on one device: prompt %d, then %d tokens, %d at once\n", (int)of(s, PROMPT), (int)of(s, GENERATE),
         (int)streams);
  printf("  weights %s, keys and values %s a sequence, working set %s bytes\n", grouped(f->weight_bytes).s,
         grouped(f->cache_bytes).s, grouped(f->working_bytes).s);
  if (m->flops > 0) {
    const double compute = f->decode_flops / peak_of(s, m), traffic = f->decode_bytes / m->bandwidth;
    printf("  prefill %s, %s tokens/s; decoding %s a token, %s tokens/s: %s\n", duration(f->prefill_seconds).s,
           scaled(streams * s->value[PROMPT] / f->prefill_seconds, "").s, duration(f->decode_seconds).s,
           scaled(streams / f->decode_seconds, "").s, bound_names[compute > traffic ? BY_ARITHMETIC : BY_BANDWIDTH]);
  }
  if (m->memory > 0 && f->streams > 0) printf("  at most %s sequences fit\n", grouped((uint64_t)f->streams).s);
  if (m->memory > 0 && !(f->streams > 0)) printf("  on one device not even one sequence fits\n");
}

/* The formulas with this plan's numbers. */
static void print_explanation(const settings *s, const machine *m, const estimate *e) {
  const int64_t width = of(s, WIDTH), inner = of(s, HEADS) * of(s, HEAD_SIZE), branches = of(s, GATED) ? 3 : 2;
  const int64_t keys = of(s, KV_HEADS) * of(s, HEAD_SIZE), rows = of(s, MICRO_BATCH) * of(s, SEQUENCE);
  printf("\nexplained\n");
  if (of(s, TRAINER) != FASHION_CNN) {
    printf("  a layer: q, k, v %" PRId64 " (%" PRId64 " + 2 x %" PRId64 "), output %" PRId64 " x %" PRId64
           ", MLP %" PRId64 " x %" PRId64 " x %" PRId64 "\n",
           width, inner, keys, inner, width, branches, width, of(s, FFN));
    printf("    = %s; times %d layers, table %d x %d, vectors: N = %s weights\n",
           grouped((uint64_t)(width * (2 * inner + 2 * keys) + branches * width * of(s, FFN))).s, (int)of(s, LAYERS),
           (int)of(s, VOCABULARY), (int)width, grouped((uint64_t)e->w.all).s);
    printf("  a layer keeps %s bytes of %s rows, of them %s f32 statistics of norms and softmax\n",
           grouped(e->m.layer).s, grouped((uint64_t)rows).s, grouped(e->m.statistics).s);
    printf("  without them %.2f bytes times rows times width\n",
           (double)(e->m.layer - e->m.statistics) / ((double)rows * (double)width));
  }
  printf("  parameters, gradients and optimiser: %.2f bytes a weight on each device\n",
         (double)(e->m.kind[PARAMETERS] + e->m.kind[GRADIENT_BYTES] + e->m.kind[OPTIMISER_BYTES]) / (double)e->w.all);
  printf("  passes of each device in a step: %.0f; FLOPs = devices (passes (forward + anew + backward) + update)\n",
         e->passes);
  if (of(s, REPLICAS) > 1)
    printf("  sent: (n - 1) / n = %.6f of gradients and, with ZeRO, weights: %.6g bytes\n    / %.4g B/s = %s; %s of it "
           "hidden\n",
           (s->value[REPLICAS] - 1) / s->value[REPLICAS], e->sent, m->link, duration(e->link_seconds).s,
           duration(e->link_seconds - e->exposed).s);
  if (m->flops > 0)
    printf("  step: %.0f x (%s + %s + %s) + %s + %s\n", e->passes, duration(e->seconds[FORWARD]).s,
           duration(e->seconds[REMADE]).s, duration(e->seconds[BACKWARD]).s, duration(e->seconds[UPDATE]).s,
           duration(e->exposed).s);
  if (m->flops > 0 && e->model_flops > 0)
    printf("  utilisation: tokens/s (6 N + 12 L H Q T) / (devices x %s), without what is made anew\n",
           scaled(peak_of(s, m), "FLOP/s").s);
}

static void print_json_rows(const estimate *e) {
  static const char *const names[PHASES] = {"forward", "recompute", "backward", "update"};
  int i, phase;
  printf("  \"operators\": [");
  for (i = 0; i < e->c.rows; i++) {
    const row *r = &e->c.row[i];
    printf("%s\n    {\"name\": \"%s\"", i ? "," : "", r->name);
    for (phase = 0; phase < PHASES; phase++)
      printf(", \"%s\": {\"calls\": %" PRIu64 ", \"flops\": %" PRIu64 ", \"bytes\": %.0f, \"seconds\": %.9g}",
             names[phase], r->calls[phase], r->flops[phase], r->bytes[phase], r->seconds[phase]);
    printf("}");
  }
  printf("\n  ],\n");
}

static void print_json_settings(const settings *s) {
  char room[32];
  int which;
  printf("  \"model\": \"%s\", \"machine\": \"%s\",\n  \"settings\": {", s->model ? s->model : "", s->machine);
  for (which = LAYERS; which < SETTINGS; which++) {
    printf("%s\"%s\": ", which == LAYERS ? "" : ", ", settings_table[which].name);
    if (settings_table[which].values)
      printf("\"%s\"", choice_name((setting)which, (int)s->value[which], room, sizeof room));
    else
      printf("%.15g", s->value[which]);
  }
  printf("},\n");
}

static void print_json(const settings *s, const machine *m, const estimate *e, int64_t largest, const inference *f) {
  const double steps = s->value[TOKENS] / e->step_tokens, hours = steps * e->step_seconds * s->value[REPLICAS] / 3600;
  int i;
  printf("{\n");
  print_json_settings(s);
  printf("  \"figures\": {\"flops\": %.6g, \"tensor_flops\": %.6g, \"bandwidth\": %.6g, \"memory\": %.15g, \"link\": "
         "%.6g, "
         "\"times\": \"%s\"},\n",
         m->flops, m->tensor_flops, m->bandwidth, m->memory, m->link,
         m->calibrated  ? "calibrated"
         : m->here      ? "roofline"
         : m->kernels   ? "cuda"
         : m->flops > 0 ? "roofline"
                        : "none");
  printf("  \"weights\": {\"all\": %" PRId64, e->w.all);
  for (i = 0; i < PARTS; i++)
    if (e->w.part[i]) printf(", \"%s\": %" PRId64, part_names[i], e->w.part[i]);
  printf("},\n  \"bytes\": {");
  for (i = 0; i < KINDS; i++) printf("\"%s\": %" PRIu64 ", ", kind_names[i], e->m.kind[i]);
  printf("\"total\": %" PRIu64 ", \"common\": %" PRIu64 ", \"layer\": %" PRIu64 ", \"layer_statistics\": %" PRIu64
         "},\n",
         e->m.total, e->m.common, e->m.layer, e->m.statistics);
  printf("  \"pass\": {\"forward_flops\": %" PRIu64 ", \"recompute_flops\": %" PRIu64 ", \"backward_flops\": %" PRIu64
         ", \"passes\": %.0f, \"update_flops\": %" PRIu64 "},\n",
         e->flops[FORWARD], e->flops[REMADE], e->flops[BACKWARD], e->passes, e->flops[UPDATE]);
  printf("  \"step\": {\"tokens\": %.15g, \"flops\": %.15g, \"six_n_d\": %.15g, \"model_flops\": %.15g, "
         "\"sent_bytes\": %.15g, "
         "\"link_seconds\": %.9g, \"exposed_seconds\": %.9g, \"seconds\": %.9g, \"utilisation\": %.6g, "
         "\"of_peak\": %.6g},\n",
         e->step_tokens, e->step_flops, 6 * (double)e->w.all * e->step_tokens, e->model_flops, e->sent, e->link_seconds,
         e->exposed, e->step_seconds,
         m->flops > 0 ? e->model_flops / e->step_seconds / s->value[REPLICAS] / peak_of(s, m) : 0,
         m->flops > 0 ? e->step_flops / e->step_seconds / s->value[REPLICAS] / peak_of(s, m) : 0);
  printf("  \"run\": {\"steps\": %.9g, \"flops\": %.9g, \"seconds\": %.9g, \"device_hours\": %.9g, \"cost\": %.9g},\n",
         steps, steps * e->step_flops, steps * e->step_seconds, hours, hours * s->value[PRICE]);
  print_json_rows(e);
  if (f)
    printf("  \"inference\": {\"weights\": %" PRIu64 ", \"cache\": %" PRIu64 ", \"working\": %" PRIu64
           ", \"prefill_seconds\": %.9g, \"decode_seconds\": %.9g, \"decode_flops\": %.15g, \"decode_bytes\": %.15g, "
           "\"streams\": %.15g},\n",
           f->weight_bytes, f->cache_bytes, f->working_bytes, f->prefill_seconds, f->decode_seconds, f->decode_flops,
           f->decode_bytes, m->memory > 0 ? f->streams : 0);
  printf("  \"limits\": {\"memory\": \"%s\", \"time\": \"%s\", \"largest_micro_batch\": %" PRId64 "}\n}\n",
         kind_names[largest_kind(&e->m)], m->flops > 0 ? bound_names[largest_bound(e)] : "", largest);
}

/* What a trainer's --bytes prints. */
static void print_bytes(const estimate *e) {
  int kind;
  for (kind = 0; kind <= GROUP_PRIVATE; kind++) printf("bytes %s %" PRIu64 "\n", kind_names[kind], e->m.kind[kind]);
  printf("bytes total %" PRIu64 "\nbytes common %" PRIu64 "\n", e->m.total, e->m.common);
}

/* Words in columns [indent, 100). at: the column that the line has reached. */
static void print_wrapped(int at, int indent, const char *words) {
  while (*words) {
    const int length = (int)strcspn(words, " ");
    if (at + 1 + length > 100) printf("\n%*s", at = indent, "");
    at += printf(" %.*s", length, words);
    words += length + (words[length] == ' ');
  }
  printf("\n");
}

static void print_presets(const preset *list, int count) {
  int i;
  for (i = 0; i < count; i++) print_wrapped(printf("    %-16s", list[i].name), 20, list[i].help);
}

static void print_setting(setting which) {
  char usual[32] = "", words[320];
  const char *values = settings_table[which].values, *help = settings_table[which].help;
  if (settings_table[which].usual >= 0 && values)
    choice_name(which, (int)settings_table[which].usual, usual, sizeof usual);
  else if (settings_table[which].usual >= 0)
    snprintf(usual, sizeof usual, "%.15g", settings_table[which].usual);
  snprintf(words, sizeof words, "%s%s%s", values ? values : "", values && *help ? ": " : "", help);
  print_wrapped(printf("  --%-16s %-7s", settings_table[which].name, usual), 27, words);
}

static void print_help(void) {
  int i;
  puts("Plans a training, or inference, before it runs: memory, arithmetic, traffic, time, cost, limits.\n\n"
       "usage: 08_plan [--model NAME] [--machine NAME] [--file FILE] [--SETTING VALUE]...\n"
       "  --model NAME     settings of a known model, which others change:");
  print_presets(models, MODELS);
  puts("  --machine NAME   here (measured; the default), none, or the figures of a data sheet:");
  print_presets(machines, MACHINES);
  puts("  --calibration FILE   what was timed here: kept there, and taken from there the next time\n"
       "  --file FILE      settings, a name and a value a line; # begins a comment; flags change them\n"
       "  --json           the plan for programs\n"
       "  --bytes          memory only, by kind, a line each\n"
       "  --explain        also the formulas, with numbers\n\n"
       "settings, and what they are when nobody says (docs/planner.md says more):");
  for (i = LAYERS; i < SETTINGS; i++) print_setting((setting)i);
}

static int print_plan(const settings *s, machine *m, const estimate *e) {
  const int writes = of(s, TRAINER) != FASHION_CNN && of(s, CAUSAL);
  inference f;
  int64_t largest = 0;
  int code = m->memory > 0 ? find_largest(s, m, &largest) : 0;
  memset(&f, 0, sizeof f);
  if (!code && writes) code = infer(s, m, &e->w, &f);
  if (code) return code;
  if (s->output == JSON) {
    print_json(s, m, e, largest, writes ? &f : NULL);
    return 0;
  }
  print_head(s, m);
  print_weights(&e->w);
  print_memory(m, &e->m);
  if (m->flops > 0) print_times(e);
  print_arithmetic(s, e);
  if (m->flops > 0) print_run(s, m, e);
  print_limits(m, e, largest);
  if (writes) print_inference(s, m, &f);
  if (s->explain) print_explanation(s, m, e);
  return 0;
}

int main(int argc, char **argv) {
  settings s;
  machine *m = (machine *)calloc(1, sizeof *m);
  estimate *e = (estimate *)calloc(1, sizeof *e);
  int code;
  memset(&s, 0, sizeof s);
  code = m && e ? read_settings(&s, argc, argv) : (complain("no memory for a plan"), EXIT_RUN);
  if (!code && s.help) {
    print_help();
  } else if (!code) {
    code = complete(&s);
    if (!code) code = open_machine(&s, m);
    if (!code) code = make_estimate(&s, m, e);
    if (!code && s.output == BYTES_ONLY) print_bytes(e);
    if (!code && s.output != BYTES_ONLY) code = print_plan(&s, m, e);
  }
  if (m) mlk_close(m->ctx);
  free(m), free(e);
  if ((fflush(stdout) != 0 || ferror(stdout)) && code == 0)
    code = (complain("standard output could not be written to its end"), EXIT_RUN);
  return code;
}
