/* test_cuda_emulator.cc - is cuda_emulator.h right? A program of its own.

     g++ -std=c++17 -O2 -ffp-contract=off tests/test_cuda_emulator.cc -o test_cuda_emulator && ./test_cuda_emulator

   Every case runs in ascending order and with some seeds. What must end the program runs in a child. With
   -fsanitize=address,undefined overruns are expected to be found, else the canaries find some. */

#include "cuda_emulator.h"

#include <sys/wait.h>

/* ---- checks ------------------------------------------------------------------------------------------------------ */

static int checks, failures;

#define CHECK(condition) check((condition), __LINE__, #condition)
static void check(bool ok, int line, const char *what) {
  checks++;
  if (ok) return;
  failures++;
  std::printf("  tests/test_cuda_emulator.cc:%d: not so: %s (seed %d)\n", line, what, int(mlkt_emu::m().set.seed));
  std::fflush(stdout);
}

/* What f() prints to stderr in a child that must end by a signal or a sanitizer. */
template <class F> static std::string dying_words(F f) {
  int ends[2];
  std::fflush(stdout);
  if (pipe(ends) != 0) return "no pipe";
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    f();
    _exit(0);
  }
  close(ends[1]);
  std::string words;
  char part[4096];
  for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;) words.append(part, size_t(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? "it lived on" : words;
}

/* expected: what it must say, or one of two separated by |. */
#define CHECK_DIES(expected, statement) check_dies(__LINE__, expected, dying_words([&] { statement; }))
static void check_dies(int line, const std::string &expected, const std::string &words) {
  const size_t bar = expected.find('|');
  const bool said = words.find(expected.substr(0, bar)) != std::string::npos ||
                    (bar != std::string::npos && words.find(expected.substr(bar + 1)) != std::string::npos);
  check(said, line, expected.c_str());
  if (!said) std::printf("  it said: %s\n", words.substr(0, 600).c_str());
}

template <class F> static void launch(dim3 grid, dim3 block, size_t shared, F body) {
  CHECK(mlkt_emu_launch(grid, block, shared, nullptr, body) == cudaSuccess);
}

static uint64_t rng = 1;
static uint32_t random_u32() { return uint32_t(mlkt_emu::random_u64(&rng) >> 32); }
static float random_signed() { return float(int32_t(random_u32() >> 8)) * 0x1p-23f - 1.0f; }

/* ---- threads, blocks, barriers ----------------------------------------------------------------------------------- */

static void indices() {
  const dim3 grid(5, 3, 2), block(7, 4, 3);
  std::vector<int> seen(5 * 3 * 2 * 7 * 4 * 3);
  launch(grid, block, 0, [&seen] {
    const unsigned b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    seen[b * blockDim.x * blockDim.y * blockDim.z + t]++;
  });
  CHECK(std::count(seen.begin(), seen.end(), 1) == long(seen.size()));
}

static __global__ void reverse_kernel(int *x) {
  __shared__ int s[256];
  const int t = int(threadIdx.x);
  for (int round = 0; round < 3; round++) {
    s[t] = x[t] + round;
    __syncthreads();
    x[t] = s[255 - t];
    __syncthreads();
  }
}

/* The same without the second barrier: wrong in any order. */
static __global__ void hasty_kernel(int *x) {
  __shared__ int s[256];
  const int t = int(threadIdx.x);
  for (int round = 0; round < 3; round++) {
    s[t] = x[t] + round;
    __syncthreads();
    x[t] = s[255 - t];
  }
}

static void barriers() {
  int x[256], y[256];
  for (int i = 0; i < 256; i++) x[i] = y[i] = i;
  launch(1, 256, 0, [&x] { reverse_kernel(x); });
  bool same = true;
  for (int i = 0; i < 256; i++) same &= x[i] == 255 - i + 3;
  CHECK(same);
#if MLKT_EMU_TSAN
  CHECK_DIES("data race", launch(1, 256, 0, [&y] { hasty_kernel(y); }));
#else
  launch(1, 256, 0, [&y] { hasty_kernel(y); });
  CHECK(std::memcmp(x, y, sizeof x) != 0);
#endif
}

static void barrier_results() {
  int count[96], all[96], any[96], none[96];
  launch(1, 96, 0, [&] {
    const int t = int(threadIdx.x);
    if (t == 40 || t >= 90) return; /* exited threads do not count */
    count[t] = __syncthreads_count(t % 3 == 0);
    all[t] = __syncthreads_and(t < 90);
    any[t] = __syncthreads_or(t == 89);
    none[t] = __syncthreads_or(t == 40);
  });
  bool same = true;
  for (int t = 0; t < 90; t++)
    if (t != 40) same &= count[t] == 30 && all[t] == 1 && any[t] == 1 && none[t] == 0;
  CHECK(same);
}

/* Warps 0, 1 produce, warps 2, 3 consume, by two named barriers; producers do not wait at full. */
static void named_barriers() {
  int got[8][64] = {};
  launch(1, 128, 0, [&got] {
    static int slot[64];
    const int t = int(threadIdx.x);
    for (int step = 0; step < 8; step++) {
      if (t < 64) {
        if (step > 0) mlkt_emu_named_barrier(2, 128); /* empty */
        slot[t] = 100 * step + t;
        mlkt_emu_named_barrier_arrive(1, 128); /* full */
      } else {
        mlkt_emu_named_barrier(1, 128);
        got[step][t - 64] = slot[127 - t];
        if (step < 7) mlkt_emu_named_barrier_arrive(2, 128);
      }
    }
  });
  bool same = true;
  for (int step = 0; step < 8; step++)
    for (int t = 0; t < 64; t++) same &= got[step][t] == 100 * step + 63 - t;
  CHECK(same);
}

static void many_blocks() {
  std::vector<unsigned> order;
  launch(dim3(7, 5, 3), 33, 0, [&order] {
    __syncwarp(threadIdx.x < 32 ? 0xFFFFFFFFu : 1u);
    if (threadIdx.x == 0) order.push_back((blockIdx.z * 5 + blockIdx.y) * 7 + blockIdx.x);
  });
  CHECK(order.size() == 105);
  CHECK(std::set<unsigned>(order.begin(), order.end()).size() == 105);
  CHECK(std::is_sorted(order.begin(), order.end()) == (mlkt_emu::m().set.seed == 0));
}

/* ---- warps ------------------------------------------------------------------------------------------------------- */

template <class T> static void shuffles(T scale) {
  for (int width = 1; width <= 32; width *= 2)
    for (int by = 0; by < 40; by++) {
      T to[32], up[32], down[32], across[32];
      launch(1, 32, 0, [&] {
        const int l = int(threadIdx.x);
        const T own = T(T(l) * scale);
        to[l] = __shfl_sync(0xFFFFFFFFu, own, by, width);
        up[l] = __shfl_up_sync(0xFFFFFFFFu, own, unsigned(by), width);
        down[l] = __shfl_down_sync(0xFFFFFFFFu, own, unsigned(by), width);
        across[l] = __shfl_xor_sync(0xFFFFFFFFu, own, by, width);
      });
      bool same = true;
      for (int l = 0; l < 32 && by < 32; l++) { /* the programming guide's words */
        const int first = l / width * width, in = l - first;
        same &= to[l] == T(T(first + by % width) * scale);
        same &= up[l] == T(T(in < by ? l : l - by) * scale);
        same &= down[l] == T(T(in + by >= width ? l : l + by) * scale);
        /* earlier segments can be read, later ones give the lane's own */
        same &= across[l] == T(T((l ^ by) / width > l / width ? l : l ^ by) * scale);
      }
      CHECK(same);
    }
}

static void shuffle_types() {
  shuffles<int>(-3);
  shuffles<unsigned>(0x01234567u);
  shuffles<float>(0.37f);
  shuffles<double>(1e100);
  shuffles<long long>(0x100000001ll);
  shuffles<unsigned long long>(0x8000000100000001ull);
}

static void votes() {
  unsigned ballots[64], matches[64], sums[64];
  int anys[64], alls[64], least[64], most[64];
  launch(1, 64, 0, [&] {
    const unsigned t = threadIdx.x, l = t % 32, mask = l % 2 ? 0xAAAAAAAAu : 0x55555555u; /* odd and even lanes apart */
    ballots[t] = __ballot_sync(mask, t % 3 == 0);
    anys[t] = __any_sync(mask, t == 33);
    alls[t] = __all_sync(mask, t != 33);
    matches[t] = __match_any_sync(mask, int(l / 8));
    sums[t] = __reduce_add_sync(mask, t);
    least[t] = __reduce_min_sync(mask, 5 - int(t));
    most[t] = __reduce_max_sync(mask, 5 - int(t));
  });
  for (unsigned t = 0; t < 64; t++) {
    const unsigned l = t % 32, mask = l % 2 ? 0xAAAAAAAAu : 0x55555555u, base = t - l;
    unsigned ballot = 0, match = 0, sum = 0;
    for (unsigned o = 0; o < 32; o++)
      if (mask >> o & 1) {
        ballot |= unsigned((base + o) % 3 == 0) << o;
        match |= unsigned(o / 8 == l / 8) << o;
        sum += base + o;
      }
    CHECK(ballots[t] == ballot && matches[t] == match && sums[t] == sum);
    CHECK(anys[t] == (t >= 32 && l % 2 == 1) && alls[t] == !(t >= 32 && l % 2 == 1));
    CHECK(least[t] == 5 - int(base + 30 + l % 2) && most[t] == 5 - int(base + l % 2));
  }
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static void atomics() {
  int sum = 0, most = -1;
  unsigned ticket = 0, wheel = 0;
  unsigned long long bits = 0, claimed = 0;
  std::vector<int> tickets(4 * 96);
  launch(4, 96, 0, [&] {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    atomicAdd(&sum, i);
    atomicMax(&most, i);
    tickets[atomicAdd(&ticket, 1u)]++;
    atomicInc(&wheel, 9u);
    atomicOr(&bits, 1ull << i % 64);
    atomicCAS(&claimed, 0ull, (unsigned long long)(i + 1));
  });
  CHECK(sum == 383 * 384 / 2 && most == 383 && ticket == 384 && wheel == 384 % 10 && bits == ~0ull && claimed != 0);
  CHECK(std::count(tickets.begin(), tickets.end(), 1) == 384);
}

static void dynamic_shared() {
  float sums[3];
  bool fresh = true;
  launch(3, 64, 64 * sizeof(float), [&] {
    float *s = static_cast<float *>(mlkt_emu_shared());
    const unsigned t = threadIdx.x;
    if (s[t] == s[t]) fresh = false; /* rogue: NaN, in every block */
    s[t] = float(t);
    __syncthreads();
    if (t > 0) return;
    sums[blockIdx.x] = 0;
    for (int i = 0; i < 64; i++) sums[blockIdx.x] += s[i];
  });
  CHECK(fresh && sums[0] == 2016 && sums[1] == 2016 && sums[2] == 2016);
}

/* Three stages of cp.async; wait is how many groups may be under way, 1 for a right kernel. */
static __global__ void pipeline_kernel(const float *in, float *out, int steps, int wait) {
  float(*s)[32] = static_cast<float(*)[32]>(mlkt_emu_shared());
  const int t = int(threadIdx.x);
  for (int step = 0; step < 2; step++) {
    mlkt_emu_cp_async(&s[step][t], in + 32 * step + t, 4, 4);
    mlkt_emu_cp_async_commit();
  }
  for (int step = 0; step < steps; step++) {
    mlkt_emu_cp_async_wait(wait);
    __syncthreads();
    out[32 * step + t] = s[step % 3][31 - t];
    if (step + 2 < steps) mlkt_emu_cp_async(&s[(step + 2) % 3][t], in + 32 * (step + 2) + t, 4, 4);
    mlkt_emu_cp_async_commit();
  }
}

static void async_copies() {
  std::vector<float> in(32 * 9), out(32 * 9);
  for (size_t i = 0; i < in.size(); i++) in[i] = float(i);
  const auto right = [&] {
    for (size_t i = 0; i < in.size(); i++)
      if (out[i] != in[i / 32 * 32 + 31 - i % 32]) return false;
    return true;
  };
  const auto run = [&](int wait) {
    launch(1, 32, 3 * 32 * 4, [&in, &out, wait] { pipeline_kernel(in.data(), out.data(), 9, wait); });
  };
  run(1);
  CHECK(right());
#if MLKT_EMU_TSAN
  CHECK_DIES("data race", run(2));
#else
  run(2); /* late copies catch the missing wait */
  CHECK(!right());
  mlkt_emu_late_copies(0);
  run(2); /* early ones cannot */
  CHECK(right());
  mlkt_emu_late_copies(1);
#endif
  alignas(16) float padded[4] = {1, 2, 3, 4}, got[4];
  launch(1, 1, 16, [&] { /* a tail of 8 bytes, the rest zeros; nothing is read with 0 */
                         float *s = static_cast<float *>(mlkt_emu_shared());
                         mlkt_emu_cp_async(s, padded, 16, 8);
                         mlkt_emu_cp_async_commit();
                         mlkt_emu_cp_async_wait(0);
                         for (int i = 0; i < 4; i++) got[i] = s[i];
                         mlkt_emu_cp_async(s, reinterpret_cast<const void *>(uintptr_t(16)), 16, 0);
                         mlkt_emu_cp_async_commit();
                         mlkt_emu_cp_async_wait(0);
                         got[3] = s[3];
  });
  CHECK(got[0] == 1 && got[1] == 2 && got[2] == 0 && got[3] == 0);
}

/* ---- matrices ---------------------------------------------------------------------------------------------------- */

/* D (16 x 8) = C + A (16 x k) B (k x 8): how is 0 for f16, 1 for bf16, 2 for tf32. A is row-major in shared memory;
   B is row-major (ldmatrix transposed) or column-major (ldmatrix); tf32 fragments are read element by element. */
static __global__ void mma_kernel(const float *a, const float *b, float *c, int how, int k, int b_by_columns) {
  uint16_t *sa = static_cast<uint16_t *>(mlkt_emu_shared()), *sb = sa + 16 * 16;
  const int l = int(threadIdx.x), g = l / 4, t = l % 4;
  const auto bits = [&](float x) { return how ? uint16_t(__float_as_uint(x) >> 16) : mlkt_emu_to_f16(x); };
  for (int i = l; i < 16 * k; i += 32) sa[i] = bits(a[i]);
  for (int i = l; i < 8 * k; i += 32) sb[b_by_columns ? i % 8 * k + i / 8 : i] = bits(b[i]);
  __syncwarp();
  float d[4] = {c[g * 8 + 2 * t], c[g * 8 + 2 * t + 1], c[(g + 8) * 8 + 2 * t], c[(g + 8) * 8 + 2 * t + 1]};
  uint32_t fa[4], fb[2];
  if (how == 2) {
    for (int i = 0; i < 4; i++) fa[i] = mlkt_emu_to_tf32(a[(g + 8 * (i % 2)) * k + t + 4 * (i / 2)]);
    for (int i = 0; i < 2; i++) fb[i] = mlkt_emu_to_tf32(b[(t + 4 * i) * 8 + g]);
    mlkt_emu_mma_m16n8k8_tf32(d, fa, fb);
  } else {
    const int registers = k / 8; /* of B; twice that of A */
    mlkt_emu_ldmatrix(fa, 2 * registers, 0, sa + l % 16 * k + l / 16 * 8 % k);
    if (b_by_columns) {
      mlkt_emu_ldmatrix(fb, registers, 0, sb + l % 8 * k + l / 8 * 8 % k);
    } else {
      mlkt_emu_ldmatrix(fb, registers, 1, sb + l % k * 8);
    }
    if (k == 16) mlkt_emu_mma_m16n8k16(d, fa, fb, how);
    if (k == 8) mlkt_emu_mma_m16n8k8_f16(d, fa, fb);
  }
  for (int i = 0; i < 4; i++) c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = d[i];
}

static float rounded(float x, int how) {
  if (how == 0) return mlkt_emu_from_f16(mlkt_emu_to_f16(x));
  return __uint_as_float(how == 1 ? __float_as_uint(x) & 0xFFFF0000u : mlkt_emu_to_tf32(x));
}

static void one_product(int how, int k, int b_by_columns, bool integers) {
  std::vector<float> a(size_t(16 * k)), b(size_t(8 * k)), c(128);
  for (auto *m : {&a, &b, &c})
    for (float &x : *m)
      x = integers ? float(int(random_u32() % 17) - 8) : random_signed() * (random_u32() % 4 ? 1.0f : 64.0f);
  std::vector<float> d = c;
  launch(1, 32, 2 * (256 + 128),
         [&, how, k, b_by_columns] { mma_kernel(a.data(), b.data(), d.data(), how, k, b_by_columns); });
  bool same = true;
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 8; j++) {
      double sum = c[size_t(i * 8 + j)], size = std::fabs(sum);
      for (int p = 0; p < k; p++) {
        const double product = double(rounded(a[size_t(i * k + p)], how)) * double(rounded(b[size_t(p * 8 + j)], how));
        sum += product;
        size += std::fabs(product);
      }
      /* at most 5 units in the last of 24 bits, and one of the result, are lost for each four of k */
      const double bound = integers ? 0.0 : size * 0x1p-23 * 6 * k / 4;
      same &= std::fabs(double(d[size_t(i * 8 + j)]) - sum) <= bound;
    }
  CHECK(same);
}

static void products() {
  for (int round = 0; round < 20; round++)
    for (int integers = 0; integers < 2; integers++) {
      for (int by_columns = 0; by_columns < 2; by_columns++) {
        one_product(0, 16, by_columns, integers);
        one_product(1, 16, by_columns, integers);
        one_product(0, 8, by_columns, integers);
      }
      one_product(2, 8, 0, integers);
    }
}

/* Sums are truncated, not rounded: 1 + 2^-24 + 2^-24 is 1, and 4 - 2^-30 loses a whole unit. */
static void truncation() {
  std::vector<float> a(16 * 16), b(16 * 8), d(16 * 8, 1.0f);
  a[0] = a[1] = 0x1p-12f;
  b[0] = b[8] = 0x1p-12f;
  launch(1, 32, 2 * (256 + 128), [&] { mma_kernel(a.data(), b.data(), d.data(), 0, 16, 0); });
  CHECK(d[0] == 1.0f && d[1] == 1.0f);
  a[0] = 0x1p-10f, a[1] = 0x1p-13f, b[0] = 0x1p-10f, b[8] = 0x1p-13f;
  std::fill(d.begin(), d.end(), 1.0f);
  launch(1, 32, 2 * (256 + 128), [&] { mma_kernel(a.data(), b.data(), d.data(), 0, 16, 0); });
  CHECK(d[0] == 1.0f + 0x1p-20f);
  a[0] = INFINITY;
  launch(1, 32, 2 * (256 + 128), [&] { mma_kernel(a.data(), b.data(), d.data(), 1, 16, 0); });
  CHECK(d[0] == INFINITY && d[1] != d[1]); /* infinity times 0 */
}

static void store_matrix() {
  mlkt_emu_device(1, 90, 8);
  for (int count = 1; count <= 4; count *= 2)
    for (int transposed = 0; transposed < 2; transposed++) {
      std::vector<uint16_t> in(4 * 64), out(4 * 64);
      for (uint16_t &x : in) x = uint16_t(random_u32());
      launch(1, 32, 2 * 4 * 64 * 2, [&, count, transposed] {
        uint16_t *s = static_cast<uint16_t *>(mlkt_emu_shared());
        const int l = int(threadIdx.x);
        for (int i = l; i < 256; i += 32) s[i] = in[size_t(i)], s[256 + i] = 0;
        __syncwarp();
        uint32_t r[4];
        mlkt_emu_ldmatrix(r, count, transposed, s + 8 * l);
        mlkt_emu_stmatrix(r, count, transposed, s + 256 + 8 * l);
        __syncwarp();
        for (int i = l; i < 256; i += 32) out[size_t(i)] = s[256 + i];
      });
      CHECK(std::memcmp(in.data(), out.data(), size_t(count) * 128) == 0);
      CHECK(std::count(out.begin() + count * 64, out.end(), 0) == (4 - count) * 64);
    }
  mlkt_emu_device(1, 80, 108);
}

static void halves() {
  bool same = true;
  for (uint32_t h = 0; h < 0x10000u; h++) {
    const float x = mlkt_emu_from_f16(uint16_t(h));
    same &= (x != x) ? (h & 0x7FFF) > 0x7C00 : mlkt_emu_to_f16(x) == h;
    if ((h & 0x7FFF) < 0x7BFF) { /* ties between neighbours go to the even one, their sides to the nearer */
      const float next = mlkt_emu_from_f16(uint16_t(h + 1)), middle = (x + next) / 2;
      same &= mlkt_emu_to_f16(middle) == (h & 1 ? h + 1 : h);
      same &= mlkt_emu_to_f16(std::nextafter(middle, x)) == h && mlkt_emu_to_f16(std::nextafter(middle, next)) == h + 1;
    }
  }
  CHECK(same);
  CHECK(mlkt_emu_to_f16(65519.996f) == 0x7BFF && mlkt_emu_to_f16(65520.0f) == 0x7C00 &&
        mlkt_emu_to_f16(-1e30f) == 0xFC00);
  CHECK(mlkt_emu_from_f16(0x3C00) == 1.0f && mlkt_emu_from_f16(1) == 0x1p-24f && mlkt_emu_from_f16(0xC400) == -4.0f);
  CHECK(mlkt_emu_to_tf32(1.0f + 0x1p-11f) == __float_as_uint(1.0f + 0x1p-10f)); /* a tie, away from zero */
  CHECK(mlkt_emu_to_tf32(-1.0f - 0x1p-12f) == __float_as_uint(-1.0f));
}

/* ---- arithmetic -------------------------------------------------------------------------------------------------- */

static void arithmetic() {
  CHECK(__fmaf_rn(1 + 0x1p-12f, 1 + 0x1p-12f, -1 - 0x1p-11f) == 0x1p-24f);
  CHECK(__fadd_rn(__fmul_rn(1 + 0x1p-12f, 1 + 0x1p-12f), -1 - 0x1p-11f) == 0);
  CHECK(__clz(0) == 32 && __clz(1) == 31 && __clzll(1) == 63 && __clzll(0) == 64 && __ffs(0) == 0 && __ffs(8) == 4);
  CHECK(__popc(0xF0F0u) == 8 && __popcll(~0ull) == 64 && __brev(1u) == 0x80000000u && __umulhi(~0u, ~0u) == ~1u);
  CHECK(__byte_perm(0x33221100u, 0x77665544u, 0x7531u) == 0x77553311u);
  CHECK(__funnelshift_l(0x80000000u, 1u, 1u) == 3u && __funnelshift_r(2u, 1u, 1u) == 0x80000001u);
  CHECK(__funnelshift_l(5u, 6u, 32u) == 6u && __funnelshift_r(5u, 6u, 32u) == 5u);
  CHECK(__float2int_rn(2.5f) == 2 && __float2int_rn(3.5f) == 4 && __float2int_rz(-2.9f) == -2 &&
        __float2int_rd(-2.1f) == -3);
  CHECK(__float2int_rn(1e20f) == INT_MAX && __float2int_rn(NAN) == 0 && __float2uint_rn(-1.0f) == 0);
  CHECK(max(-0.0f, 0.0f) == 0 && !std::signbit(max(-0.0f, 0.0f)) && std::signbit(min(0.0f, -0.0f)));
  CHECK(max(NAN, 1.0f) == 1.0f && min(1.0f, NAN) == 1.0f && max(-1, 1u) == ~0u && min(3ll, 2ll) == 2);
}

/* ---- mistakes that must be found --------------------------------------------------------------------------------- */

#if MLKT_EMU_TSAN
/* All write the same, so that no order shows the race. racing: how many threads there are, or 0: one writes, all
   read behind a barrier. 32: before a __syncwarp, which comes too late. */
static __global__ void hidden_race_kernel(int racing) {
  __shared__ int s;
  int seen = 0;
  if (racing || threadIdx.x == 0) s = 7;
  if (racing != 32) __syncthreads();
  seen = *static_cast<volatile int *>(&s);
  if (blockDim.x == 32) __syncwarp();
  if (seen != 7) *static_cast<volatile int *>(&s) = seen;
}

static void mistakes() { /* the others' children, forks of a process with many threads, would be told of wrong races */
  CHECK_DIES("data race", launch(1, 64, 0, [] { hidden_race_kernel(64); }));
  CHECK_DIES("data race", launch(1, 32, 0, [] { hidden_race_kernel(32); }));
  CHECK_DIES("it lived on", launch(1, 64, 0, [] { hidden_race_kernel(0); }));
}
#else

static __global__ void two_places_kernel() { /* a macro's arguments would all be on one line */
  if (threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

static void mistakes() {
  mlkt_emu_late_copies(1);
  CHECK_DIES("deadlock", launch(1, 64, 0, [] {
               if (threadIdx.x < 32) __syncthreads();
               if (threadIdx.x >= 32) mlkt_emu_named_barrier(3, 64);
             }));
  CHECK_DIES("threads 0 to 31 wait at __syncthreads", launch(1, 64, 0, [] {
               if (threadIdx.x < 32) __syncthreads();
               if (threadIdx.x >= 32) mlkt_emu_named_barrier(3, 64);
             }));
  CHECK_DIES("deadlock", launch(1, 32, 0, [] { /* half a warp in a collective of all */
                                               if (threadIdx.x < 16) __syncwarp();
                                               if (threadIdx.x >= 16) __syncthreads();
             }));
  CHECK_DIES("does not", launch(1, 64, 0, [] { /* a barrier within a divergent warp */
                                               if (threadIdx.x % 2) mlkt_emu_named_barrier(1, 32);
                                               if (threadIdx.x % 2 == 0) __syncwarp(0x55555555u), __syncthreads();
             }));
  CHECK_DIES("different places", launch(1, 64, 0, [] { two_places_kernel(); }));
  CHECK_DIES("have exited|the thread exits", launch(1, 32, 0, [] {
               if (threadIdx.x == 7) return;
               __nanosleep(1);
               __nanosleep(1);
               __syncwarp();
             }));
  CHECK_DIES("do not exist", launch(1, 40, 0, [] { __shfl_sync(0xFFFFFFFFu, 1, 0); }));
  CHECK_DIES("lacks the calling lane", launch(1, 32, 0, [] { __ballot_sync(1u, 1); }));
  CHECK_DIES("other lanes of it wait in", launch(1, 32, 0, [] {
               if (threadIdx.x < 16) __ballot_sync(0xFFFFFFFFu, 1);
               if (threadIdx.x >= 16) __shfl_sync(0xFFFFFFFFu, 1, 0);
             }));
  CHECK_DIES("deadlock", launch(1, 32, 0, [] {
               __ballot_sync(threadIdx.x < 16 ? 0xFFFFu : 0xFFFFFFFFu, 1);
               __syncthreads();
             }));
  CHECK_DIES("reads lane 16", launch(1, 32, 0, [] {
               if (threadIdx.x < 16) __shfl_down_sync(0xFFFFu, 1, 1);
             }));
  CHECK_DIES("not aligned", launch(1, 1, 32, [] {
               __ldg(reinterpret_cast<const float4 *>(static_cast<char *>(mlkt_emu_shared()) + 8));
             }));
  CHECK_DIES("not aligned",
             launch(1, 1, 32, [] { mlkt_emu_cp_async(static_cast<char *>(mlkt_emu_shared()) + 4, "", 8, 0); }));
  CHECK_DIES("not aligned", launch(1, 32, 1024, [] {
               uint32_t r[4];
               mlkt_emu_ldmatrix(r, 4, 0, static_cast<char *>(mlkt_emu_shared()) + 24 * threadIdx.x);
             }));
  CHECK_DIES("has ended with", launch(1, 32, 0, [] {
               if (threadIdx.x < 5) mlkt_emu_named_barrier_arrive(4, 32);
             }));
  CHECK_DIES("1025 x 1 x 1 threads", launch(1, 1025, 0, [] {}));
  CHECK_DIES("blocks", launch(dim3(1, 65536), 32, 0, [] {}));
  CHECK_DIES("bytes of shared memory", launch(1, 32, 200000, [] {}));
  CHECK_DIES("without cudaFuncSetAttribute",
             mlkt_emu_launch_kernel(two_places_kernel, true, 1, 32, 60000, nullptr, [] {}));
  CHECK_DIES("two_places_kernel|kernel at 0x",
             mlkt_emu_launch_kernel(two_places_kernel, true, 1, 64, 0, nullptr, two_places_kernel));
  CHECK_DIES("calls the runtime", launch(1, 32, 0, [] { cudaDeviceSynchronize(); }));
  CHECK_DIES("needs compute capability 8.0", mlkt_emu_device(1, 75, 40);
             launch(1, 32, 0, [] { __reduce_add_sync(0xFFFFFFFFu, 1u); }));
  const char *overrun = MLKT_EMU_ASAN ? "heap-buffer-overflow" : "is overrun";
  CHECK_DIES(overrun, launch(1, 32, 32 * 4, [] { static_cast<float *>(mlkt_emu_shared())[threadIdx.x + 1] = 0; }));
  CHECK_DIES(overrun, {
    float *x = nullptr;
    cudaMalloc(&x, 33 * sizeof *x);
    launch(1, 34, 0, [x] { x[threadIdx.x] = 1; });
    cudaFree(x);
  });

#if MLKT_EMU_ASAN
  CHECK_DIES("global-buffer-overflow|insufficient space", launch(1, 32, 0, [] {
               __shared__ float s[32];
               volatile float *p = s;
               p[threadIdx.x + 1] = 0;
             }));
  CHECK_DIES("use-after-poison", { /* the host looks into device memory */
                                   mlkt_emu_pointers(1);
                                   volatile float *x = nullptr;
                                   cudaMalloc(const_cast<float **>(&x), 64);
                                   x[3] = 1;
  });
#endif
}

#endif

/* ---- the runtime ------------------------------------------------------------------------------------------------- */

static void memory() {
  mlkt_emu_reset();
  float *x = nullptr, *pinned = nullptr, host[64], back[64];
  for (int i = 0; i < 64; i++) host[i] = float(i);
  CHECK(cudaMalloc(&x, sizeof host) == cudaSuccess && reinterpret_cast<uintptr_t>(x) % 256 == 0);
  CHECK(cudaMallocHost(&pinned, 64) == cudaSuccess);
  CHECK(mlkt_emu_count(MLKT_EMU_LIVE_BYTES) == 256 && mlkt_emu_count(MLKT_EMU_LIVE_BLOCKS) == 2);
  for (int real = 0; real < 2; real++) {
    mlkt_emu_pointers(real);
    cudaPointerAttributes of;
    CHECK(cudaPointerGetAttributes(&of, x + 7) == cudaSuccess && of.type == cudaMemoryTypeDevice &&
          of.devicePointer == x + 7);
    CHECK(cudaPointerGetAttributes(&of, pinned) == cudaSuccess && of.type == cudaMemoryTypeHost);
    CHECK(cudaPointerGetAttributes(&of, host) == cudaSuccess &&
          of.type == (real ? cudaMemoryTypeUnregistered : cudaMemoryTypeDevice));
    CHECK(cudaMemcpy(x, host, sizeof host, cudaMemcpyHostToDevice) == cudaSuccess);
    launch(1, 64, 0, [x] { x[threadIdx.x] += 1; });
    CHECK(cudaMemcpyAsync(back, x, sizeof host, cudaMemcpyDeviceToHost, nullptr) == cudaSuccess);
    CHECK(back[0] == 1 && back[63] == 64);
    CHECK(cudaMemcpy(x + 1, host, sizeof host, cudaMemcpyHostToDevice) == cudaErrorInvalidValue); /* beyond the end */
    CHECK(cudaGetLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaSuccess);
    CHECK(cudaMemcpy(back, host, 4, cudaMemcpyDeviceToHost) == (real ? cudaErrorInvalidValue : cudaSuccess));
    cudaGetLastError();
    CHECK(cudaMemsetAsync(x, 0, 256, nullptr) == cudaSuccess);
  }
  mlkt_emu_pointers(0);
  mlkt_emu_memory(1000);
  float *y = x;
  CHECK(cudaMalloc(&y, 800) == cudaErrorMemoryAllocation && y == nullptr);
  size_t free_bytes = 0, total = 0;
  CHECK(cudaMemGetInfo(&free_bytes, &total) == cudaSuccess && total == 1000 && free_bytes == 744);
  CHECK(cudaFree(back) == cudaErrorInvalidValue);
  CHECK(cudaFree(x) == cudaSuccess && cudaFreeHost(pinned) == cudaSuccess && cudaFree(nullptr) == cudaSuccess);
  CHECK(mlkt_emu_count(MLKT_EMU_LIVE_BLOCKS) == 0);
  mlkt_emu_reset();
}

/* A child opens what the parent shares, and writes into it. */
static void other_processes() {
  mlkt_emu_reset();
  int *x = nullptr, *y = nullptr;
  cudaIpcMemHandle_t handle;
  void *opened = nullptr;
  CHECK(cudaMalloc(&x, 400) == cudaSuccess && cudaIpcGetMemHandle(&handle, x) == cudaErrorNotSupported);
  mlkt_emu_ipc(1);
  CHECK(cudaMalloc(&y, 400) == cudaSuccess && cudaIpcGetMemHandle(&handle, y + 1) == cudaErrorInvalidValue);
  CHECK(cudaIpcGetMemHandle(&handle, y) == cudaSuccess);
  CHECK(cudaIpcOpenMemHandle(&opened, handle, cudaIpcMemLazyEnablePeerAccess) ==
        cudaErrorDeviceUninitialized); /* its own */
  launch(1, 100, 0, [y] { y[threadIdx.x] = int(threadIdx.x); });
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    int *theirs = nullptr;
    if (cudaIpcOpenMemHandle(&opened, handle, cudaIpcMemLazyEnablePeerAccess) != cudaSuccess) _exit(1);
    theirs = static_cast<int *>(opened);
    if (theirs == y || theirs[99] != 99 || cudaFree(opened) != cudaErrorInvalidValue) _exit(2);
    mlkt_emu_launch(1, 100, 0, nullptr, [theirs] { theirs[threadIdx.x] += 1000; });
    _exit(cudaIpcCloseMemHandle(opened) == cudaSuccess ? 0 : 3);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(y[0] == 1000 && y[99] == 1099);
  CHECK(cudaIpcCloseMemHandle(y) == cudaErrorInvalidValue);
  CHECK(cudaFree(x) == cudaSuccess && cudaFree(y) == cudaSuccess && mlkt_emu_count(MLKT_EMU_LIVE_BLOCKS) == 0);
  mlkt_emu_reset();
}

static void errors() {
  mlkt_emu_reset();
  void *p = nullptr;
  mlkt_emu_fail(3, cudaErrorLaunchFailure);
  CHECK(cudaMalloc(&p, 16) == cudaSuccess);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(cudaFree(p) == cudaErrorLaunchFailure && mlkt_emu_count(MLKT_EMU_LIVE_BLOCKS) == 0);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(cudaGetLastError() == cudaErrorLaunchFailure && cudaGetLastError() == cudaSuccess);
  mlkt_emu_stick(cudaErrorIllegalAddress);
  CHECK(cudaDeviceSynchronize() == cudaErrorIllegalAddress && cudaMalloc(&p, 16) == cudaErrorIllegalAddress);
  CHECK(cudaGetLastError() == cudaErrorIllegalAddress && cudaGetLastError() == cudaErrorIllegalAddress);
  bool ran = false;
  CHECK(mlkt_emu_launch(1, 1, 0, nullptr, [&ran] { ran = true; }) == cudaErrorIllegalAddress && !ran);
  CHECK(std::strcmp(cudaGetErrorName(cudaErrorIllegalAddress), "cudaErrorIllegalAddress") == 0);
  mlkt_emu_reset();
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(mlkt_emu_count(MLKT_EMU_SYNCHRONISATIONS) == 1 && mlkt_emu_count(MLKT_EMU_CALLS) == 1);
  mlkt_emu_device(0, 80, 1);
  int count = 7;
  CHECK(cudaGetDeviceCount(&count) == cudaErrorNoDevice && count == 0);
  mlkt_emu_device(2, 75, 40);
  mlkt_emu_attribute(cudaDevAttrL2CacheSize, 12345);
  cudaDeviceProp properties;
  CHECK(cudaGetDeviceProperties(&properties, 1) == cudaSuccess && properties.major == 7 && properties.minor == 5);
  CHECK(properties.l2CacheSize == 12345 && properties.multiProcessorCount == 40 &&
        properties.sharedMemPerBlockOptin == 65536);
  CHECK(cudaSetDevice(2) == cudaErrorInvalidDevice && cudaSetDevice(1) == cudaSuccess);
  CHECK(cudaGetDevice(&count) == cudaSuccess && count == 1);
  CHECK(cudaDeviceCanAccessPeer(&count, 0, 1) == cudaSuccess && count == 1);
  CHECK(cudaDeviceEnablePeerAccess(0, 0) == cudaSuccess &&
        cudaDeviceEnablePeerAccess(0, 0) == cudaErrorPeerAccessAlreadyEnabled);
  mlkt_emu_reset();
}

static void captures() {
  mlkt_emu_reset();
  cudaStream_t stream = nullptr, other = nullptr;
  cudaEvent_t fork_event = nullptr, join = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaStreamCaptureStatus status;
  void *p = nullptr;
  int runs = 0;
  int *count = &runs;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess &&
        cudaStreamCreate(&other) == cudaSuccess);
  CHECK(cudaEventCreate(&fork_event) == cudaSuccess &&
        cudaEventCreateWithFlags(&join, cudaEventDisableTiming) == cudaSuccess);
  CHECK(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal) == cudaErrorStreamCaptureUnsupported);
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  CHECK(cudaStreamIsCapturing(stream, &status) == cudaSuccess && status == cudaStreamCaptureStatusActive);
  CHECK(mlkt_emu_launch(1, 1, 0, stream, [count] { ++*count; }) == cudaSuccess);
  CHECK(cudaEventRecord(fork_event, stream) == cudaSuccess && cudaStreamWaitEvent(other, fork_event) == cudaSuccess);
  CHECK(mlkt_emu_launch(1, 1, 0, other, [count] { *count *= 10; }) == cudaSuccess);
  CHECK(cudaEventRecord(join, other) == cudaSuccess && cudaStreamWaitEvent(stream, join) == cudaSuccess);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess && graph && runs == 0);
  CHECK(cudaGraphInstantiate(&exec, graph) == cudaSuccess);
  CHECK(cudaGraphLaunch(exec, stream) == cudaSuccess && runs == 10);
  CHECK(cudaGraphLaunch(exec, stream) == cudaSuccess && runs == 110);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess && cudaGraphExecDestroy(exec) == cudaSuccess);
  const auto refused = [&](const std::function<cudaError_t()> &call) {
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    CHECK(call() == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaStreamIsCapturing(stream, &status) == cudaSuccess && status == cudaStreamCaptureStatusInvalidated);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated && graph == nullptr);
  };
  refused([&] { return cudaMalloc(&p, 16); });
  refused([&] { return cudaHostAlloc(&p, 16, 0); });
  refused([&] { return cudaFree(nullptr); });
  refused([&] { return cudaDeviceSynchronize(); });
  refused([&] { return cudaStreamSynchronize(stream); });
  refused([&] { return cudaStreamSynchronize(other); });
  refused([&] { return cudaMemcpy(&runs, &runs, sizeof runs, cudaMemcpyHostToHost); });
  CHECK(cudaStreamBeginCapture(other, cudaStreamCaptureModeRelaxed) == cudaSuccess);
  CHECK(cudaMalloc(&p, 16) == cudaSuccess && cudaFree(p) == cudaSuccess); /* relaxed mode allows it */
  CHECK(cudaMemsetAsync(&runs, 0, sizeof runs, nullptr) ==
        cudaErrorStreamCaptureImplicit); /* the legacy stream waits for it */
  CHECK(cudaStreamEndCapture(other, &graph) == cudaErrorStreamCaptureInvalidated);
  CHECK(cudaEventDestroy(fork_event) == cudaSuccess && cudaEventDestroy(join) == cudaSuccess);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess && cudaStreamDestroy(other) == cudaSuccess);
  CHECK(cudaStreamSynchronize(stream) == cudaErrorInvalidResourceHandle);
  CHECK(mlkt_emu_count(MLKT_EMU_LIVE_STREAMS) == 0 && mlkt_emu_count(MLKT_EMU_LIVE_EVENTS) == 0);
  mlkt_emu_reset();
}

static void late_streams() {
  mlkt_emu_reset();
  mlkt_emu_late_streams(1);
  cudaStream_t a = nullptr, b = nullptr;
  cudaEvent_t event = nullptr;
  int x = 0, seen = -1;
  int *px = &x, *ps = &seen;
  CHECK(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking) == cudaSuccess);
  CHECK(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking) == cudaSuccess && cudaEventCreate(&event) == cudaSuccess);
  mlkt_emu_launch(1, 1, 0, a, [px] { *px = 1; });
  CHECK(cudaEventRecord(event, a) == cudaSuccess);
  mlkt_emu_launch(1, 1, 0, a, [px] { *px = 2; });
  CHECK(cudaStreamWaitEvent(b, event, 0) == cudaSuccess);
  mlkt_emu_launch(1, 1, 0, b, [px, ps] { *ps = *px; });
  CHECK(x == 0 && seen == -1);
  CHECK(cudaStreamSynchronize(b) == cudaSuccess && seen == 1 && x == 1);
  CHECK(cudaEventSynchronize(event) == cudaSuccess && x == 1);
  CHECK(cudaDeviceSynchronize() == cudaSuccess && x == 2);
  mlkt_emu_launch(1, 1, 0, a, [px] { *px = 3; }); /* without the event: b sees what was there */
  mlkt_emu_launch(1, 1, 0, b, [px, ps] { *ps = *px; });
  CHECK(cudaStreamSynchronize(b) == cudaSuccess && seen == 2);
  CHECK(cudaStreamDestroy(a) == cudaSuccess && x == 3);
  CHECK(cudaStreamDestroy(b) == cudaSuccess && cudaEventDestroy(event) == cudaSuccess);
  mlkt_emu_reset();
}

/* ---- sm_90a ------------------------------------------------------------------------------------------------------ */

static unsigned char *aligned_shared() { /* to 1024 bytes of the shared window */
  unsigned char *p = static_cast<unsigned char *>(mlkt_emu_shared());
  return p + (0u - mlkt_emu_shared_address(p)) % 1024;
}

/* Warp 0 fills a ring of three slots, the others empty it: full by one arrival, empty by one of each warp. mistake 1:
   warp 3 never arrives; 2: nobody waits for empty. */
static __global__ void ring_kernel(int *got, int mistake) {
  uint64_t *full = reinterpret_cast<uint64_t *>(aligned_shared()), *empty = full + 3;
  int *slot = reinterpret_cast<int *>(full + 6);
  const int warp = int(threadIdx.x) / 32;
  if (threadIdx.x == 0)
    for (int s = 0; s < 3; s++) mlkt_emu_mbarrier_init(full + s, 1), mlkt_emu_mbarrier_init(empty + s, 3);
  __syncthreads();
  for (int step = 0; step < 20; step++) {
    const int s = step % 3;
    const uint32_t round = uint32_t(step / 3 % 2);
    if (warp == 0 && threadIdx.x == 0) {
      if (mistake != 2) mlkt_emu_mbarrier_wait(empty + s, round ^ 1);
      slot[s] = 7 * step;
      mlkt_emu_mbarrier_arrive(full + s);
    } else if (warp > 0) {
      mlkt_emu_mbarrier_wait(full + s, round);
      got[step * 128 + int(threadIdx.x)] = slot[s];
      __syncwarp();
      if (threadIdx.x % 32 == 0 && !(mistake == 1 && warp == 3)) mlkt_emu_mbarrier_arrive(empty + s);
    }
  }
}

static void ring(int mistake) {
  std::vector<int> got(20 * 128);
  launch(2, 128, 2048, [&got, mistake] { ring_kernel(got.data(), mistake); });
  bool same = true;
  for (int step = 0; step < 20; step++)
    for (int t = 32; t < 128; t++) same &= got[size_t(step * 128 + t)] == 7 * step;
  if (!same) mlkt_emu::fatal("wrong values");
}

static void mbarriers() {
  mlkt_emu_device(1, 90, 1);
  ring(0);
#if !MLKT_EMU_TSAN
  CHECK_DIES("1 arrivals and 0 bytes", ring(1));
  CHECK_DIES("deadlock|wrong values", ring(2));
#endif
}

/* Encodes a tensor of 16-bit elements. */
static bool encode(CUtensorMap *map, cuuint32_t rank, void *memory, const uint64_t *size, const uint64_t *stride,
                   const uint32_t *box, CUtensorMapSwizzle swizzle, const uint32_t *every = nullptr) {
  const uint32_t ones[5] = {1, 1, 1, 1, 1}, *steps = every ? every : ones;
  void *entry = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found) ==
            cudaSuccess &&
        found == cudaDriverEntryPointSuccess);
  return reinterpret_cast<decltype(&mlkt_emu::encode_tiled)>(entry)(
             map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, rank, memory, size, stride, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

enum box_mistake { NOTHING, UNFENCED, UNALIGNED, TOO_FEW, EARLY, NEVER };

/* out: the bytes of a box, in the order of shared memory. */
static __global__ void box_kernel(const CUtensorMap &map, unsigned char *out, int bytes, const int *at, int mistake,
                                  int rank = 4) {
  uint64_t *barrier = reinterpret_cast<uint64_t *>(aligned_shared());
  unsigned char *to = aligned_shared() + 1024 + (mistake == UNALIGNED ? 64 : 0);
  if (threadIdx.x == 0) {
    mlkt_emu_mbarrier_init(barrier, 1);
    if (mistake != UNFENCED) mlkt_emu_mbarrier_fence();
    mlkt_emu_mbarrier_expect(barrier, mistake == TOO_FEW ? bytes - 16 : bytes);
    mlkt_emu_box_load(to, &map, barrier, rank, at);
  }
  __syncthreads();
  if (mistake == NEVER) return;
  if (mistake != EARLY) mlkt_emu_mbarrier_wait(barrier, 0);
  for (int i = int(threadIdx.x); i < bytes; i += 64) out[i] = to[i];
  if (mistake == EARLY) mlkt_emu_mbarrier_wait(barrier, 0);
}

/* Boxes of five axes that take every step-th element, as those of convolutions do. */
static void stepped_boxes() {
  enum { X = 16, Y = 11, Z = 6, V = 3, W = 2 };
  static std::vector<uint16_t> x(X * Y * Z * V * W);
  for (size_t i = 0; i < x.size(); i++) x[i] = uint16_t(i + 1);
  const uint64_t size[5] = {X, Y, Z, V, W}, stride[4] = {2 * X, 2 * X * Y, 2 * X * Y * Z, 2 * X * Y * Z * V};
  const uint32_t steps[5] = {7, 2, 1, 3, 1},
                 box[5] = {8, 5, 4, 4, 2}; /* takes 8, 3, 4, 2 and 2; the first step is ignored */
  const int places[][5] = {{0, 0, 0, 0, 0}, {8, -1, 3, -3, 1}, {-8, 9, -2, 1, 0}, {8, 6, 2, 0, -1}};
  const int bytes = 8 * 3 * 4 * 2 * 2 * 2;
  CUtensorMap map;
  mlkt_emu_device(1, 90, 1);
  CHECK(encode(&map, 5, x.data(), size, stride, box, CU_TENSOR_MAP_SWIZZLE_NONE, steps));
  for (const auto &at : places) {
    std::vector<unsigned char> out(size_t(bytes), 0xEE);
    bool same = true;
    launch(1, 64, 1024 * 8, [&, bytes] { box_kernel(map, out.data(), bytes, at, NOTHING, 5); });
    for (int i = 0; i < bytes / 2; i++) {
      const int a = i % 8 + at[0], b = i / 8 % 3 * 2 + at[1], c = i / 24 % 4 + at[2], d = i / 96 % 2 * 3 + at[3],
                e = i / 192 + at[4];
      const bool inside = a >= 0 && a < X && b >= 0 && b < Y && c >= 0 && c < Z && d >= 0 && d < V && e >= 0 && e < W;
      uint16_t is;
      std::memcpy(&is, &out[size_t(i * 2)], 2);
      same &= is == (inside ? x[size_t((((e * V + d) * Z + c) * Y + b) * X + a)] : uint16_t(0));
    }
    CHECK(same);
  }
  const uint32_t none[5] = {1, 0, 1, 1, 1}, far[5] = {1, 1, 9, 1, 1}, eight[5] = {1, 8, 1, 1, 1},
                 six[6] = {1, 1, 1, 1, 1, 1};
  CHECK(!encode(&map, 5, x.data(), size, stride, box, CU_TENSOR_MAP_SWIZZLE_NONE, none));
  CHECK(!encode(&map, 5, x.data(), size, stride, box, CU_TENSOR_MAP_SWIZZLE_NONE, far));
  CHECK(!encode(&map, 6, x.data(), size, stride, six, CU_TENSOR_MAP_SWIZZLE_NONE, six));
  CHECK(encode(&map, 5, x.data(), size, stride, box, CU_TENSOR_MAP_SWIZZLE_NONE, eight));
}

static void boxes() {
  enum { X = 72, Y = 21, Z = 3, W = 2, PITCH = 80 };
  static std::vector<uint16_t> x(PITCH * Y * Z * W);
  for (size_t i = 0; i < x.size(); i++) x[i] = uint16_t(i + 1);
  const uint64_t size[4] = {X, Y, Z, W}, stride[3] = {2 * PITCH, 2 * PITCH * Y, 2 * PITCH * Y * Z};
  mlkt_emu_device(1, 90, 1);
  for (int swizzle = 0; swizzle <= 3; swizzle++) {
    const uint32_t wide = 8u << swizzle, box[4] = {wide, 10, 2, 1}; /* as wide as the pattern's rows */
    const int bytes = int(wide) * 2 * 10 * 2,
              places[][4] = {{0, 0, 0, 0}, {24, 5, 1, 1}, {-8, -3, -1, 1}, {64, 15, 2, 1}, {8, 0, 0, 2}};
    CUtensorMap map;
    CHECK(encode(&map, 4, x.data(), size, stride, box, CUtensorMapSwizzle(swizzle)));
    for (const auto &place : places) {
      std::vector<unsigned char> out(size_t(bytes), 0xEE);
      const int *at = place;
      launch(1, 64, 1024 * 8, [&, at, bytes] { box_kernel(map, out.data(), bytes, at, NOTHING); });
      bool same = true;
      for (int i = 0; i < bytes / 2; i++) {
        const int a = i % int(wide) + at[0], b = i / int(wide) % 10 + at[1], c = i / int(wide) / 10 + at[2], d = at[3];
        const bool inside = a >= 0 && a < X && b >= 0 && b < Y && c >= 0 && c < Z && d >= 0 && d < W;
        const uint16_t want = inside ? x[size_t(((d * Z + c) * Y + b) * PITCH + a)] : uint16_t(0);
        /* 16-byte column number c of 128-byte row r comes to column c ^ r % 8, or fewer bits of both */
        const int row = i / 64, column = i / 8 % 8, other = column ^ (row & ((1 << swizzle) - 1));
        uint16_t is;
        std::memcpy(&is, &out[size_t((row * 8 + other) * 16 + i % 8 * 2)], 2);
        same &= is == want;
      }
      CHECK(same);
    }
  }
  const uint32_t box[4] = {64, 8, 1, 1}, wider[4] = {72, 8, 1, 1}, higher[4] = {64, 257, 1, 1}, odd[4] = {60, 8, 1, 1};
  const uint64_t unaligned[3] = {2 * PITCH + 2, stride[1], stride[2]}, none[4] = {X, 0, Z, W},
                 still[3] = {0, stride[1], stride[2]};
  CUtensorMap map;
  CHECK(!encode(&map, 4, x.data() + 1, size, stride, box, CU_TENSOR_MAP_SWIZZLE_128B));
  CHECK(!encode(&map, 4, x.data(), size, unaligned, box, CU_TENSOR_MAP_SWIZZLE_128B));
  CHECK(!encode(&map, 4, x.data(), size, still, box, CU_TENSOR_MAP_SWIZZLE_128B));
  CHECK(!encode(&map, 4, x.data(), none, stride, box, CU_TENSOR_MAP_SWIZZLE_128B));
  CHECK(!encode(&map, 4, x.data(), size, stride, wider, CU_TENSOR_MAP_SWIZZLE_128B));
  CHECK(!encode(&map, 4, x.data(), size, stride, higher, CU_TENSOR_MAP_SWIZZLE_128B));
  CHECK(!encode(&map, 4, x.data(), size, stride, odd, CU_TENSOR_MAP_SWIZZLE_NONE));
  CHECK(encode(&map, 4, x.data(), size, stride, box, CU_TENSOR_MAP_SWIZZLE_128B));
#if !MLKT_EMU_TSAN
  std::vector<unsigned char> out(1024);
  const int at[4] = {0, 0, 0, 0};
  const auto with = [&](int mistake) {
    launch(1, 64, 1024 * 8, [&, mistake] { box_kernel(map, out.data(), 1024, at, mistake); });
  };
  CHECK_DIES("sees only behind a fence", with(UNFENCED));
  CHECK_DIES("a box to byte", with(UNALIGNED));
  CHECK_DIES("more than were expected", with(TOO_FEW));
  if (mlkt_emu::m().set.seed == 0) {
    CHECK_DIES("boxes on their way", with(NEVER));
    with(EARLY);
    CHECK(out[0] == 0xFE && out[1] == 0x7F);
  }
  mlkt_emu_hopper(0, 1);
  CHECK_DIES("needs code for sm_90a", with(NOTHING));
#endif
}

/* a and b of a product of warpgroups, 64 x 64 and columns x 64 terms, brought by the copy engine with a swizzle,
   K-major as rows of the swizzle's bytes, MN-major likewise; d: 64 x columns. fresh: d's numbers do not count; held: a,
   K-major, comes through registers. */
struct group_case {
  int columns, swizzle, bf16, a_lines, b_lines, mistake, fresh, held;
};
enum group_mistake { RIGHT, NO_FENCE, NO_WAIT, HASTY, DIVIDED, WRITTEN };

/* Loads lines x 64 as blocks of span elements along the dense axis. */
static void load_operand(const CUtensorMap &map, unsigned char *to, uint64_t *barrier, int lines, int span,
                         int side_by_side) {
  const int dense = side_by_side ? lines : 64, other = side_by_side ? 64 : lines;
  for (int x = 0; x < dense; x += span) {
    const int at[2] = {x, 0};
    mlkt_emu_box_load(to + x / span * other * span * 2, &map, barrier, 2, at);
  }
}

/* The descriptor of 16 terms from k on. */
static uint64_t operand(const unsigned char *from, int lines, int span, int side_by_side, int k, int swizzle) {
  uint32_t address = mlkt_emu_shared_address(from), leading = 16, stride = uint32_t(16 * span);
  if (side_by_side) {
    address += uint32_t(k * span * 2), leading = uint32_t(64 * span * 2);
  } else {
    address += uint32_t(k / span * lines * span * 2 + k % span * 2);
  }
  return address >> 4 | uint64_t(leading >> 4) << 16 | uint64_t(stride >> 4) << 32 | uint64_t(4 - swizzle) << 62;
}

static __global__ void group_kernel(const CUtensorMap &map_a, const CUtensorMap &map_b, const group_case &c,
                                    const uint16_t *rows, float *d) {
  const int span = 8 << c.swizzle, t = int(threadIdx.x), warp = t / 32, lane = t % 32;
  unsigned char *a = aligned_shared(), *b = a + 64 * 64 * 2;
  uint64_t *barrier = reinterpret_cast<uint64_t *>(b + c.columns * 64 * 2);
  float sums[128];
  uint32_t terms[4][4];
  for (int i = 0; i < 16; i++)
    std::memcpy(&terms[i / 4][i % 4],
                rows + (16 * warp + lane / 4 + 8 * (i % 2)) * 64 + i / 4 * 16 + 2 * (lane % 4) + 8 * (i / 2 % 2), 4);
  if (t == 0) {
    mlkt_emu_mbarrier_init(barrier, 1);
    mlkt_emu_mbarrier_fence();
    mlkt_emu_mbarrier_expect(barrier, (64 + c.columns) * 64 * 2);
    load_operand(map_a, a, barrier, 64, span, c.a_lines);
    load_operand(map_b, b, barrier, c.columns, span, c.b_lines);
  }
  __syncthreads();
  mlkt_emu_mbarrier_wait(barrier, 0);
  for (int i = 0; i < c.columns / 2; i++) sums[i] = float(i % 3 - 1);
  if (c.mistake != NO_FENCE) mlkt_emu_wgmma_fence();
  for (int k = 0; k < 64; k += 16) {
    const int shift = c.mistake == DIVIDED && warp == 2 ? 16 : 0;
    const uint64_t from_b = operand(b, c.columns, span, c.b_lines, k, c.swizzle);
    if (c.held)
      mlkt_emu_wgmma_held(sums, c.columns, terms[k / 16], from_b, c.bf16, c.b_lines);
    else
      mlkt_emu_wgmma(sums, c.columns, operand(a, 64, span, c.a_lines, k ^ shift, c.swizzle), from_b, c.bf16, c.a_lines,
                     c.b_lines, c.fresh && k == 0);
    if (k == 16) mlkt_emu_wgmma_commit();
  }
  mlkt_emu_wgmma_commit();
  if (c.mistake == NO_WAIT) return;
  if (c.mistake == WRITTEN) terms[3][0] ^= 1;
  if (c.mistake != HASTY) mlkt_emu_wgmma_wait(0);
  for (int i = 0; i < c.columns / 2; i++)
    d[(16 * warp + lane / 4 + 8 * (i / 2 % 2)) * c.columns + 8 * (i / 4) + 2 * (lane % 4) + i % 2] = sums[i];
  if (c.mistake == HASTY) mlkt_emu_wgmma_wait(1), mlkt_emu_wgmma_wait(0);
}

/* c's product of small whole numbers against plain loops. True: equal. */
static bool group_product(const group_case &c) {
  const size_t lines[2] = {64, size_t(c.columns)};
  const int side_by_side[2] = {c.a_lines, c.b_lines};
  const uint32_t span = 8u << c.swizzle;
  std::vector<uint16_t> memory[2];
  std::vector<float> value[2], d(64 * lines[1], -1.0f);
  CUtensorMap map[2];
  for (int which = 0; which < 2; which++) {
    const size_t n = lines[which];
    memory[which].resize(n * 64), value[which].resize(n * 64);
    for (size_t i = 0; i < n; i++)
      for (size_t k = 0; k < 64; k++) {
        const float x = float(int(random_u32() % 9) - 4);
        value[which][i * 64 + k] = x;
        memory[which][side_by_side[which] ? k * n + i : i * 64 + k] = c.bf16 ? uint16_t(
                                                                                   mlkt_emu::bits_as<uint32_t>(x) >> 16)
                                                                             : mlkt_emu::half_bits(x);
      }
    const uint64_t size[2] = {side_by_side[which] ? n : 64, side_by_side[which] ? 64 : n}, stride[1] = {size[0] * 2};
    const uint32_t box[2] = {span, uint32_t(size[1])};
    CHECK(encode(&map[which], 2, memory[which].data(), size, stride, box, CUtensorMapSwizzle(c.swizzle)));
  }
  launch(1, 128, size_t(1024 + (64 + c.columns) * 128 + 8),
         [&] { group_kernel(map[0], map[1], c, memory[0].data(), d.data()); });
  bool same = true;
  for (size_t i = 0; i < 64; i++)
    for (size_t j = 0; j < lines[1]; j++) {
      float sum = c.fresh ? 0.0f : float(int(j / 8 * 4 + i / 8 % 2 * 2 + j % 2) % 3 - 1);
      for (size_t k = 0; k < 64; k++) sum += value[0][i * 64 + k] * value[1][j * 64 + k];
      same &= d[i * lines[1] + j] == sum;
    }
  return same;
}

/* wgmma without a swizzle: matrices put down by hand, 8 x 8 elements at a time, leading and stride as
   the PTX ISA has them. */
static bool plain_group_product(int lines_side_by_side) {
  float value[2][64][16], d[64][64];
  for (auto &v : value)
    for (auto &row : v)
      for (float &x : row) x = float(int(random_u32() % 9) - 4);
  launch(1, 128, 1024 + 2 * 64 * 16 * 2, [&] {
    unsigned char *at = aligned_shared();
    const int t = int(threadIdx.x),
              far = 64 / 8 * 128; /* 8 x 8 elements are 128 bytes; those of the next terms follow */
    for (int which = 0; which < 2; which++)
      for (int i = t; i < 64 * 16; i += 128) {
        const int line = i / 16, term = i % 16, row = lines_side_by_side ? term % 8 : line % 8,
                  column = lines_side_by_side ? line % 8 : term % 8;
        const uint16_t element = mlkt_emu::half_bits(value[which][line][term]);
        std::memcpy(at + which * 2048 + line / 8 * 128 + term / 8 * far + row * 16 + column * 2, &element, 2);
      }
    __syncthreads();
    const auto matrix = [&](int which) {
      return uint64_t(mlkt_emu_shared_address(at + which * 2048) >> 4 | uint32_t(far) >> 4 << 16) | uint64_t(128 >> 4)
                                                                                                        << 32;
    };
    float sums[32] = {};
    mlkt_emu_wgmma_fence();
    mlkt_emu_wgmma(sums, 64, matrix(0), matrix(1), 0, lines_side_by_side, lines_side_by_side);
    mlkt_emu_wgmma_commit();
    mlkt_emu_wgmma_wait(0);
    for (int i = 0; i < 32; i++)
      d[t / 32 * 16 + t % 32 / 4 + 8 * (i / 2 % 2)][8 * (i / 4) + 2 * (t % 4) + i % 2] = sums[i];
  });
  bool same = true;
  for (int i = 0; i < 64; i++)
    for (int j = 0; j < 64; j++) {
      float sum = 0;
      for (int k = 0; k < 16; k++) sum += value[0][i][k] * value[1][j][k];
      same &= d[i][j] == sum;
    }
  return same;
}

static void warpgroups() {
  mlkt_emu_device(1, 90, 1);
  for (int columns : {64, 128, 256})
    for (int swizzle = 1; swizzle <= 3; swizzle++)
      for (int how = 0; how < 4; how++)
        CHECK(group_product({columns, swizzle, (how ^ swizzle) & 1, how & 1, how / 2, RIGHT, swizzle == 2, 0}));
  for (int columns : {64, 128, 256})
    for (int how = 0; how < 4; how++) CHECK(group_product({columns, 3, how & 1, 0, how / 2, RIGHT, 0, 1}));
  CHECK(plain_group_product(0));
  CHECK(plain_group_product(1));
#if !MLKT_EMU_TSAN
  CHECK_DIES("wgmma without wgmma.fence", group_product({64, 3, 0, 0, 0, NO_FENCE, 0, 0}));
  CHECK_DIES("wgmma under way", group_product({64, 3, 0, 0, 0, NO_WAIT, 0, 0}));
  CHECK_DIES("registers of A", group_product({64, 3, 0, 0, 0, WRITTEN, 0, 1}));
  CHECK_DIES("differ in a wgmma", group_product({64, 3, 0, 0, 0, DIVIDED, 0, 0}));
  CHECK(!group_product({64, 3, 0, 0, 0, HASTY, 0, 0})); /* registers are rogue */
#endif
}

/* ---- all --------------------------------------------------------------------------------------------------------- */

int main() {
  const struct {
    const char *name;
    void (*run)();
    int seeds; /* besides ascending order */
  } cases[] = {{"indices", indices, 3},
               {"barriers", barriers, 20},
               {"barrier_results", barrier_results, 20},
               {"named_barriers", named_barriers, 20},
               {"many_blocks", many_blocks, 20},
               {"shuffle_types", shuffle_types, 1},
               {"votes", votes, 10},
               {"atomics", atomics, 10},
               {"dynamic_shared", dynamic_shared, 3},
               {"async_copies", async_copies, 10},
               {"products", products, 2},
               {"truncation", truncation, 0},
               {"store_matrix", store_matrix, 2},
               {"mbarriers", mbarriers, 10},
               {"boxes", boxes, 5},
               {"stepped_boxes", stepped_boxes, 5},
               {"warpgroups", warpgroups, 3},
               {"halves", halves, 0},
               {"arithmetic", arithmetic, 0},
               {"mistakes", mistakes, 2},
               {"memory", memory, 0},
               {"other_processes", other_processes, 0},
               {"errors", errors, 0},
               {"captures", captures, 0},
               {"late_streams", late_streams, 0}};
  for (const auto &c : cases) {
    const int before = failures;
    for (int seed = 0; seed <= c.seeds; seed++) {
      mlkt_emu_reset();
      mlkt_emu_seed(uint64_t(seed));
      c.run();
    }
    std::printf("%-16s %s\n", c.name, failures == before ? "ok" : "FAILED");
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures != 0;
}
