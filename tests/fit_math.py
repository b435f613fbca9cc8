#!/usr/bin/env python3
"""Derives the coefficients of math_section.h (needs mpmath and numpy).

Every fit is a weighted linear minimax problem, min over c of max |w(x) (f(x) - sum c_k b_k(x))|,
solved by the Remez exchange on a fine Chebyshev grid at 50 digits.  Coefficients are rounded to
binary32 one at a time, the most significant first, and the rest are fitted again after each
rounding, so that later coefficients absorb the rounding of earlier ones.
The rational fit (Mills ratio) linearises |P - f R| / (f R_prev) and repeats until R settles.
"""
import sys
import numpy as np
from mpmath import mp, mpf, matrix, lu_solve, log, exp, erf, erfc, tanh, sqrt, pi, cos

mp.dps = 50


def f32(v):
  """Nearest binary32 of an mpf (no coefficient here is near the ends of the range)."""
  m, e = mp.frexp(v)
  return mpf(int(mp.nint(m * 2**24))) * mpf(2)**(e - 24) if v != 0 else mpf(0)


def grid(a, b, n):
  return [(a + b) / 2 - (b - a) / 2 * cos(pi * i / (n - 1)) for i in range(n)]


def remez(xs, fv, basis, wv):
  """Minimax coefficients of fv by the columns of basis on the points xs with weights wv."""
  n, m = len(basis), len(xs)
  ref = [round((m - 1) * i / n) for i in range(n + 1)]
  best = None
  for _ in range(60):
    A, rhs = matrix(n + 1, n + 1), matrix(n + 1, 1)
    for i, j in enumerate(ref):
      for k in range(n):
        A[i, k] = basis[k][j]
      A[i, n] = (-1)**i / wv[j]
      rhs[i] = fv[j]
    c = lu_solve(A, rhs)
    err = [wv[j] * (fv[j] - sum(c[k] * basis[k][j] for k in range(n))) for j in range(m)]
    top = max(abs(e) for e in err)
    if best is None or top < best[0]:
      best = (top, [c[k] for k in range(n)])
    if top <= abs(c[n]) * mpf('1.0005'):
      break
    # the largest error of each run of one sign, then n + 1 neighbours that hold the greatest
    ext = []
    for j in range(m):
      if ext and (err[ext[-1]] > 0) == (err[j] > 0):
        if abs(err[j]) > abs(err[ext[-1]]):
          ext[-1] = j
      else:
        ext.append(j)
    while len(ext) > n + 1:
      if len(ext) == n + 2:
        ext.pop(0 if abs(err[ext[0]]) < abs(err[ext[-1]]) else -1)
      else:
        k = min(range(len(ext)), key=lambda q: abs(err[ext[q]]))
        if k == 0 or k == len(ext) - 1:
          ext.pop(k)
        else:
          nb = k - 1 if abs(err[ext[k - 1]]) < abs(err[ext[k + 1]]) else k + 1
          for q in sorted((k, nb), reverse=True):
            ext.pop(q)
    if len(ext) < n + 1:
      break
    ref = ext
  return best[1], best[0]


def rounded(xs, fv, basis, wv, order=None):
  """remez(), with the coefficients rounded to binary32 in the given order."""
  n = len(basis)
  order = list(order if order is not None else range(n))
  fixed = {}
  c, e0 = remez(xs, fv, basis, wv)
  while len(fixed) < n:
    k = order[len(fixed)]
    free = [q for q in range(n) if q not in fixed]
    fixed[k] = f32(c[free.index(k)])
    free.remove(k)
    if free:
      rest = [fv[j] - sum(fixed[q] * basis[q][j] for q in fixed) for j in range(len(xs))]
      c, _ = remez(xs, rest, [basis[q] for q in free], wv)
  out = [fixed[k] for k in range(n)]
  e = max(abs(wv[j] * (fv[j] - sum(out[k] * basis[k][j] for k in range(n))))
          for j in range(len(xs)))
  return out, e0, e


def show(name, cs, e0, e):
  e0, e = float(log(e0, 2)), float(log(e, 2))
  print(f"{name}: minimax 2^{e0:.2f}, with binary32 coefficients 2^{e:.2f}")
  for k, c in enumerate(cs):
    s = f"{float(c):.8e}"
    assert mpf(float(np.float32(s))) == c, s
    print(f"  c{k} = {s}f")
  print(flush=True)


def powers(xs, lo, n):
  return [[x**(lo + k) for x in xs] for k in range(n)]


def poly(name, f, w, a, b, lo, n, m=400):
  xs = grid(mpf(a), mpf(b), m)
  r = rounded(xs, [f(x) for x in xs], powers(xs, lo, n), [w(x) for x in xs])
  show(name, *r)


def mills(a):
  """exp(a^2/2) Phi(-a) = erfcx(a/sqrt 2)/2."""
  return exp(a * a / 2) * erfc(a / sqrt(mpf(2))) / 2


def climb(cs, np_, norm, xs, fv):
  """Moves the binary32 coefficients of P/R by steps of their last place while that helps."""
  x, f = (np.array([float(v) for v in q]) for q in (xs, fv))
  ulp = [2.0**(int(mp.frexp(c)[1]) - 24) for c in cs]

  def bad(c):
    return np.max(np.abs(np.polyval(c[np_::-1], x) / np.polyval([*c[:np_:-1], norm], x) / f - 1))

  c = [float(v) for v in cs]
  best, moved, n = bad(c), True, len(c)
  steps = [-8, -4, -2, -1, 0, 1, 2, 4, 8]
  while moved:
    moved = False
    for i in range(n):
      for j in range(i):
        for p in steps:
          for q in steps:
            t = list(c)
            t[i] += p * ulp[i]
            t[j] += q * ulp[j]
            e = bad(t)
            if e < best * 0.9999 and all(float(np.float32(v)) == v for v in t):
              best, c, moved = e, t, True
  return [mpf(v) for v in c]


def rational(name, f, a, b, np_, nr, m=500, norm=1):
  """f ~ P/R, deg P = np_, deg R = nr, R's constant term = norm; relative error."""
  # a grid denser towards 0, where f bends most
  xs = [mpf(b) * x * x for x in grid(mpf(0), mpf(1), m)]
  fv = [f(x) for x in xs]
  R = [mpf(norm) * (1 + x / 2)**nr for x in xs]
  pb = powers(xs, 0, np_ + 1)
  for _ in range(12):
    rb = [[-fv[j] * xs[j]**k for j in range(m)] for k in range(1, nr + 1)]
    wv = [1 / (fv[j] * R[j]) for j in range(m)]
    c, e = remez(xs, [norm * v for v in fv], pb + rb, wv)
    R2 = [norm + sum(c[np_ + k] * x**k for k in range(1, nr + 1)) for x in xs]
    d = max(abs(p / q - 1) for p, q in zip(R, R2))
    R = R2
    if d < mpf(10)**-8:
      break
  wv = [1 / (fv[j] * R[j]) for j in range(m)]
  order = []
  for k in range(max(np_ + 1, nr)):
    order += ([k] if k <= np_ else []) + ([np_ + 1 + k] if k < nr else [])
  cs, e0, _ = rounded(xs, [norm * v for v in fv], pb + rb, wv, order)
  cs = climb(cs, np_, norm, xs, fv)
  P, Q = cs[:np_ + 1], [mpf(norm)] + cs[np_ + 1:]
  e = max(abs(sum(c * x**k for k, c in enumerate(P)) / v
              / sum(c * x**k for k, c in enumerate(Q)) - 1) for x, v in zip(xs, fv))
  show(name + " (P first, then R)", P + Q, e0, e)


def constants():
  ln2 = log(mpf(2))
  hi = f32(ln2)
  k1, k3 = 2 * sqrt(2 / pi), 2 * sqrt(2 / pi) * mpf('0.044715')
  k1h = mp.floor(k1 * 2**20) / 2**20
  for name, v in [("log2e", f32(1 / ln2)), ("ln2 hi", hi), ("ln2 lo", f32(ln2 - hi)),
                  ("gelu k1 hi (multiple of 2^-20)", k1h), ("gelu k1 lo", f32(k1 - k1h)),
                  ("gelu k3 hi", f32(k3)), ("gelu k3 lo", f32(k3 - f32(k3))),
                  ("sqrt 1/2", f32(sqrt(mpf(1) / 2)))]:
    show(name, [v], mpf(1), mpf(1))


if __name__ == "__main__":
  which = set(sys.argv[1:]) or {"const", "exp", "tanh", "erf", "erfc", "log", "mills"}
  one = mpf(1)
  if "const" in which:
    constants()
  if "exp" in which:  # e^r = 1 + r + r^2 q(r)
    poly("exp q", lambda r: (exp(r) - 1 - r), lambda r: exp(-r), '-0.3467', '0.3467', 2, 5)
  if "tanh" in which:  # tanh x = x + x s p(s), s = x^2
    poly("tanh p", lambda s: tanh(sqrt(s)) / sqrt(s) - 1, lambda s: sqrt(s) / tanh(sqrt(s)),
         '1e-12', '0.3906251', 1, 5)
  if "erf" in which:  # erf x = x + x p(s)
    poly("erf p", lambda s: erf(sqrt(s)) / sqrt(s) - 1, lambda s: sqrt(s) / erf(sqrt(s)),
         '1e-12', '0.766', 0, 6)
  if "erfc" in which:  # log erfc a, error seen through 1 - erfc
    poly("log erfc", lambda a: log(erfc(a)), lambda a: erfc(a) / erf(a), '0.875', '4', 0, 7)
  if "log" in which:  # log(1 + f) = f - f^2/2 + f^3 p(f); no grid point is f = 0 exactly
    poly("log p", lambda f: (log(1 + f) - f + f * f / 2) / f**3, lambda f: f**3 / log(1 + f),
         '-0.29290', '0.41422', 0, 8)
  if "mills" in which:
    # R(0) = 1.90625 makes P(0)/R(0) = 1/2 exactly and both round finely near 0; R(0) = 1 does worse
    rational("mills", mills, 0, '14.5', 4, 5, norm=mpf('1.90625'))
