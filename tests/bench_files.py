"""What mlk_bench writes, checked: tests/bench_files.py RESULT.json RESULT.csv BATCH.txt. Every problem of the batch must be there."""
import csv
import json
import math
import statistics
import sys

TEXT, NUMBER, FLAG = str, (int, float), bool
CONTEXT = {"date": TEXT, "host_name": TEXT, "executable": TEXT, "command": TEXT, "machine": TEXT, "device": TEXT,
           "num_cpus": NUMBER, "mhz_per_cpu": NUMBER, "caches": list, "compiler": TEXT, "compiler_flags": TEXT,
           "library_build_type": TEXT, "mlk_version": TEXT, "mlk_isa": TEXT, "threads": NUMBER, "openmp": NUMBER,
           "peer_openblas": TEXT, "peer_onednn": TEXT, "peer_mkl": TEXT, "peer_blis": TEXT, "peer_faiss": TEXT,
           "peer_torch": TEXT, "peer_onnxrt": TEXT, "peer_chain": TEXT, "ceilings": list, "calibrated": FLAG, "noisy_rows": NUMBER,
           "wrong": NUMBER, "min_time": NUMBER, "max_noise": NUMBER, "seconds": NUMBER}
CEILING = {"isa": TEXT, "threads": NUMBER, "flops": NUMBER, "flops_mlk_measure": NUMBER, "read": NUMBER,
           "read_mlk_measure": NUMBER, "copy": NUMBER}
RESULT = {"name": TEXT, "run_name": TEXT, "run_type": TEXT, "row": TEXT, "contender": TEXT, "peer": FLAG, "family": TEXT,
          "class": TEXT, "problem": TEXT, "command": TEXT, "device": TEXT, "isa": TEXT, "threads": NUMBER, "cache": TEXT,
          "dtype": TEXT, "repetitions": NUMBER, "iterations": NUMBER, "real_time": NUMBER, "cpu_time": NUMBER,
          "time_unit": TEXT, "best_time": NUMBER, "noise": NUMBER, "noisy": FLAG, "busy": FLAG, "checked": FLAG,
          "flops": NUMBER, "bytes": NUMBER, "flops_per_second": NUMBER, "bytes_per_second": NUMBER, "bound": TEXT,
          "ceiling_fma": NUMBER, "share_of_ceiling": NUMBER, "samples": list}
FAMILIES = {"matmul", "knn", "distances", "conv", "glue", "attention", "average"}


def expect(holds, sentence):
    if not holds:
        sys.exit(sentence)


def typed(where, record, keys):
    for key, kind in keys.items():
        expect(key in record, f"{where}: no {key}")
        value = record[key]
        right = isinstance(value, kind) and (kind is FLAG or not isinstance(value, bool))
        expect(right, f"{where}: {key} is {value!r}")
        expect(not isinstance(value, float) or math.isfinite(value), f"{where}: {key} is {value}")


def check_result(r, device):
    where = r.get("name", "a result")
    typed(where, r, RESULT)
    expect(r["name"] == r["run_name"] == r["row"] + "/" + r["contender"], f"{where}: name, row and contender disagree")
    expect(r["family"] in FAMILIES and r["row"].startswith(f"{r['family']}/{r['class']}/"), f"{where}: {r['family']}, {r['class']}")
    expect(r["command"].startswith(f"mlk_bench run '{r['problem']}'"), f"{where}: {r['command']}")
    expect(r["time_unit"] == "ns" and r["run_type"] == "iteration" and r["device"] == device and r["checked"], where)
    expect(r["cache"] == ("cold" if "cache=cold" in r["problem"] else "warm"), f"{where}: {r['cache']}")
    expect(len(r["samples"]) == r["repetitions"] >= 1, f"{where}: {len(r['samples'])} samples of {r['repetitions']}")
    expect(math.isclose(statistics.median(r["samples"]), r["real_time"], rel_tol=1e-4), f"{where}: no median of its samples")
    expect(math.isclose(min(r["samples"]), r["best_time"], rel_tol=1e-4), f"{where}: best_time is not the least sample")
    expect(r["noisy"] == (r["noise"] > 0.1), f"{where}: noisy is {r['noisy']} at {r['noise']}")
    expect(r["bound"] in ("compute", "memory") and r["isa"] and r["dtype"] in ("f32", "f16", "bf16"), where)
    if r["contender"] == "mlk":
        expect(r["predicted_time"] > 0 and r["workspace_bytes"] >= 0 and r["variant"], f"{where}: no plan")
    expect((" --device cuda" in r["command"]) == r["row"].endswith("/cuda") == (device == "cuda"), f"{where}: {r['command']}")
    if r["cache"] == "cold" and r["family"] not in ("matmul", "attention"):
        expect(r["iterations"] == 1, f"{where}: {r['iterations']} calls a sample, but caches are emptied before one")


def main(json_path, csv_path, batch_path):
    with open(json_path, encoding="utf-8") as f:
        data = json.load(f)
    context, results = data["context"], data["benchmarks"]
    typed("context", context, CONTEXT)
    for c in context["ceilings"]:
        typed("a ceiling", c, CEILING)
    device = context["device"]
    expect(context["peer_openblas"] == {"cpu": "absent: --no-peers", "cuda": "absent: of the CPU"}[device], "peers were asked away")
    expect(context["wrong"] == 0 and context["host_name"] == "here", "context")
    names = [r["name"] for r in results]
    expect(len(set(names)) == len(names), "a name stands twice")
    for r in results:
        check_result(r, device)
    with open(batch_path, encoding="utf-8") as f:
        problems = [" ".join(line.split("#")[0].split()) for line in f]
    rows = {r["problem"] for r in results}
    for p in problems:
        expect(not p or p in rows, f"no result of {p}")
    expect({r["family"] for r in results} == FAMILIES, "a family is missing")
    noisy = {r["row"] for r in results if r["noisy"] and r["contender"] != "mlk matmul 1024"}
    expect(len(noisy) == context["noisy_rows"], f"{len(noisy)} noisy rows, {context['noisy_rows']} in the context")
    with open(csv_path, encoding="utf-8", newline="") as f:
        table = list(csv.DictReader(f))
    expect([t["row"] + "/" + t["contender"] for t in table] == names, "the CSV has other rows")
    for t, r in zip(table, results):
        expect(None not in t and None not in t.values(), f"{r['name']}: the CSV's line is no line of its head")
        expect(math.isclose(float(t["real_time_ns"]), r["real_time"], rel_tol=1e-4), f"{r['name']}: another time in the CSV")


main(*sys.argv[1:])
