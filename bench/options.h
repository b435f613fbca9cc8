/* The words of the command line: a command, then its operands and options in any order. */
#ifndef BENCH_OPTIONS_H
#define BENCH_OPTIONS_H

typedef enum bench_command {
  COMMAND_LIST,
  COMMAND_RUN,
  COMMAND_PLAN,
  COMMAND_PEERS,
  COMMAND_CEILINGS,
  COMMAND_COMPARE,
  COMMAND_COUNT
} bench_command;

typedef enum bench_cache { CACHE_BY_ROW, CACHE_WARM, CACHE_COLD } bench_cache;

typedef struct bench_options {
  bench_command command;
  char what
      [512]; /* of list, run and plan: the words that are no options, joined: "", a family, a row's name or a problem */
  const char *files[2]; /* of compare */
  int file_count;
  const char *filter, *batch, *json, *csv, *markdown, *peers_dir, *host_name;
  double min_time;  /* seconds spent on each contender of a row, at least */
  double max_noise; /* spread, as a share, beyond which a row gets more rounds and is called noisy in the end */
  double threshold; /* of compare: growth, as a share, that is no regression */
  int threads;      /* the N of the rows that use several threads */
  mlk_isa isa;      /* row of kernels for everything but the forced rows */
  bench_cache cache;
  int quick, no_peers, keep_env, progress, isa_given;
  int cuda; /* --device cuda */
} bench_options;

static bench_options opt;

static const char *const command_names[COMMAND_COUNT] = {"list", "run", "plan", "peers", "ceilings", "compare"};

static void usage(FILE *f) {
  fputs(
      "mlk_bench run [FAMILY | ROW | PROBLEM]  checks and times every row, those of a family, one row, or one problem\n"
      "mlk_bench list [...]                    names of the rows that run would take, and their problems\n"
      "mlk_bench plan [...]                    what the library predicted for each row beside what it took\n"
      "mlk_bench peers                         the libraries to compare with: version and kernels, or why absent\n"
      "mlk_bench ceilings                      what this machine can do at most, per instruction set and threads\n"
      "mlk_bench compare OLD.json NEW.json     new times over old ones, with intervals\n"
      "\n"
      "A problem is a family, a shape and words, e.g. matmul 1024x512:512x768 layout=nt epilogue=bias,gelu;\n"
      "a wrong one is answered with what is allowed. bench/README.md has them all.\n"
      "\n"
      "which rows\n"
      "  --quick           fewer rows, shorter: under a minute\n"
      "  --filter A,B,-C   rows whose names contain A or B, and not C\n"
      "  --batch FILE      problems of a file, one a line, # begins a comment: bench/batches/*.txt\n"
      "how\n"
      "  --threads N       the N of the rows on several threads, default: all the machine has\n"
      "  --isa NAME        best, avx512, avx2, neon, scalar\n"
      "  --cache HOW       warm or cold operands; default: as each row says\n"
      "  --min-time S      seconds for each contender of a row, default 0.25 (quick 0.04)\n"
      "  --max-noise PCT   a row that spreads more gets more rounds, then is called noisy; default 10\n"
      "  --device NAME     cpu or, built with CUDA=1, cuda: MLK alone; bench/gpu.sh has a GPU's peers\n"
      "  --no-peers        MLK alone\n"
      "  --peers DIR       where fetch_peers.sh put them, default bench/peers\n"
      "  --keep-env        obey OPENBLAS_CORETYPE and the like; otherwise peers choose their best kernels\n"
      "results\n"
      "  --json FILE --csv FILE --markdown FILE    in the form of Google Benchmark, as a table, as a page\n"
      "  --host-name NAME  name of this machine in the JSON, default: none\n"
      "  --progress        row and time left on stderr, also where that is no terminal\n"
      "compare\n"
      "  --threshold PCT   slower by less is no regression, default 5\n"
      "\n"
      "exit codes: 0 all right, 1 a wrong result (compare: a regression), 2 bad arguments or files\n",
      f);
}

static const char *option_value(int argc, char **argv, int *i) {
  if (*i + 1 >= argc) die("%s needs a value; see --help", argv[*i]);
  return argv[++*i];
}

static double option_number(int argc, char **argv, int *i, double low, double high) {
  const char *name = argv[*i], *value = option_value(argc, argv, i);
  char *end;
  const double x = strtod(value, &end);
  if (*end || end == value || !(x >= low && x <= high))
    die("%s: %s is not a number in %g .. %g", name, value, low, high);
  return x;
}

static mlk_isa option_isa(const char *value) {
  int isa;
  for (isa = 0; isa < MLK_ISA_COUNT && strcmp(mlk_isa_name((mlk_isa)isa), value) != 0; isa++) {}
  if (isa == MLK_ISA_COUNT) die("--isa: no instruction set is named %s", value);
  if (!mlk_isa_available((mlk_isa)isa)) die("--isa: %s does not run here", value);
  return (mlk_isa)isa;
}

static bench_cache option_cache(const char *value) {
  if (strcmp(value, "warm") == 0) return CACHE_WARM;
  if (strcmp(value, "cold") == 0) return CACHE_COLD;
  die("--cache: %s is neither warm nor cold", value);
  return CACHE_BY_ROW;
}

/* An option that stands alone or has text behind it. Returns 0 when argv[*i] is neither. */
static int parse_plain_option(int argc, char **argv, int *i) {
  const struct {
    const char *name;
    int *flag;
    const char **value;
  } plain[] = {{"--quick", &opt.quick, NULL},        {"--no-peers", &opt.no_peers, NULL},
               {"--keep-env", &opt.keep_env, NULL},  {"--progress", &opt.progress, NULL},
               {"--filter", NULL, &opt.filter},      {"--batch", NULL, &opt.batch},
               {"--json", NULL, &opt.json},          {"--csv", NULL, &opt.csv},
               {"--markdown", NULL, &opt.markdown},  {"--peers", NULL, &opt.peers_dir},
               {"--host-name", NULL, &opt.host_name}};
  size_t p;
  for (p = 0; p < sizeof plain / sizeof *plain; p++) {
    if (strcmp(argv[*i], plain[p].name) != 0) continue;
    if (plain[p].flag)
      *plain[p].flag = 1;
    else
      *plain[p].value = option_value(argc, argv, i);
    return 1;
  }
  return 0;
}

static void parse_option(int argc, char **argv, int *i) {
  const char *a = argv[*i];
  if (parse_plain_option(argc, argv, i)) return;
  if (strcmp(a, "--min-time") == 0)
    opt.min_time = option_number(argc, argv, i, 0, 60);
  else if (strcmp(a, "--max-noise") == 0)
    opt.max_noise = option_number(argc, argv, i, 0, 1000) / 100;
  else if (strcmp(a, "--threshold") == 0)
    opt.threshold = option_number(argc, argv, i, 0, 1000) / 100;
  else if (strcmp(a, "--threads") == 0)
    opt.threads = (int)option_number(argc, argv, i, 1, 1024);
  else if (strcmp(a, "--isa") == 0)
    opt.isa = option_isa(option_value(argc, argv, i)), opt.isa_given = opt.isa != MLK_ISA_BEST;
  else if (strcmp(a, "--cache") == 0)
    opt.cache = option_cache(option_value(argc, argv, i));
  else if (strcmp(a, "--device") == 0) {
    const char *value = option_value(argc, argv, i);
    opt.cuda = strcmp(value, "cuda") == 0;
    if (!opt.cuda && strcmp(value, "cpu") != 0) die("--device: %s is neither cpu nor cuda", value);
  } else {
    die("unknown option %s; see --help", a);
  }
}

static void parse_command(const char *word) {
  int c;
  for (c = 0; c < COMMAND_COUNT && strcmp(word, command_names[c]) != 0; c++) {}
  if (c == COMMAND_COUNT)
    die("%s is no command; the first word is one of list, run, plan, peers, ceilings, compare", word);
  opt.command = (bench_command)c;
}

/* A device has one set of kernels, no threads of ours, and its peers in another program. */
static void check_device_options(void) {
#if !defined(BENCH_CUDA)
  die("--device cuda: this program was built without CUDA; make CUDA=1 build/mlk_bench builds it with (see make help)");
#endif
  if (opt.threads) die("--threads %d is of the CPU; beside --device cuda it says nothing", opt.threads);
  if (opt.isa_given) die("--isa %s is of the CPU; beside --device cuda it says nothing", mlk_isa_name(opt.isa));
  if (opt.command == COMMAND_PEERS) die("peers are of the CPU; bench/gpu.sh compares a GPU with cuBLAS and cuDNN");
  opt.no_peers = 1;
}

static void parse_options(int argc, char **argv) {
  int i;
  for (i = 1; i < argc; i++)
    if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
      usage(stdout);
      exit(0);
    }
  if (argc < 2) {
    usage(stderr);
    exit(2);
  }
  parse_command(argv[1]);
  opt.min_time = -1, opt.max_noise = 0.1, opt.threshold = 0.05;
  for (i = 2; i < argc; i++) {
    const size_t used = strlen(opt.what);
    if (argv[i][0] == '-') {
      parse_option(argc, argv, &i);
    } else if (opt.command == COMMAND_COMPARE) {
      if (opt.file_count == 2) die("compare takes two files; %s is a third", argv[i]);
      opt.files[opt.file_count++] = argv[i];
    } else if (opt.command == COMMAND_PEERS || opt.command == COMMAND_CEILINGS) {
      die("%s takes no operand; found %s", command_names[opt.command], argv[i]);
    } else {
      if (used + strlen(argv[i]) + 2 > sizeof opt.what)
        die("the problem is longer than %d characters", (int)sizeof opt.what);
      text(opt.what + used, sizeof opt.what - used, "%s%s", used ? " " : "", argv[i]);
    }
  }
  if (opt.command == COMMAND_COMPARE && opt.file_count != 2)
    die("compare needs two files: mlk_bench compare OLD.json NEW.json");
  if (opt.batch && opt.what[0]) die("--batch names a file of problems; %s beside it is one too many", opt.what);
  if (opt.min_time < 0) opt.min_time = opt.quick ? 0.04 : 0.25;
  if (opt.cuda) check_device_options();
}

#endif
