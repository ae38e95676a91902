"""Figures are only as good as what measures them: oracles for that.

And every case runs at its smallest size.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax as mx
from benchmarks import __main__ as command
from benchmarks import measure, peers, table
from benchmarks.cases import cases, processes
from benchmarks.cases.vsml import plain_tick

LIMITS = measure.Limits(1e9, 1e9)
X = np.random.default_rng(0).normal(size=(48, 48)).astype(np.float32)


def scanned(w, x):
    def layer(x, _):
        return jnp.tanh(w @ x), None

    x, _ = jax.lax.scan(layer, x, None, length=7)
    return x


def product(x, y):
    return x @ y


def products(x):
    return jnp.einsum("bij,bjk->bik", x, x)


def exponentials(x):
    return jax.jit(jax.vmap(jnp.exp))(x)


def column_sums(x):
    return x.sum(0)


def maybe_square(x):
    return jax.lax.cond(
        x[0, 0] > 0,
        lambda x: x @ x,
        lambda x: x,
        x,
    )


def convolution(x, w):
    return jax.lax.conv(x, w, (1, 1), "VALID")


def integers(i):
    return i * 2 + 1


IMAGE = X.reshape(1, 4, 24, 24)
KERNEL = np.ones((5, 4, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("f", "args", "flop"),
    [
        (product, (X[:, :5], X[:5]), 2 * 48 * 5 * 48),
        (products, (X.reshape(4, 24, 24),), 4 * 2 * 24**3),
        (scanned, (X, X[:, :3]), 7 * (2 * 48 * 48 * 3 + 48 * 3)),
        (exponentials, (X,), X.size),
        (column_sums, (X,), X.size),
        (maybe_square, (X,), 2 * 48**3),
        (convolution, (IMAGE, KERNEL), 2 * 22 * 22 * 5 * 9 * 4),
        (integers, (np.arange(5),), 0),
    ],
)
def test_flop(f, args, flop):
    assert measure.flop_of(jax.make_jaxpr(f)(*args)) == flop


def test_flop_of_a_linear_solve_counts_the_solver_alone():
    def once(matvec, b):
        return matvec(b)

    def solve(b):
        return jax.lax.custom_linear_solve(
            lambda x: X @ x,
            b,
            once,
            symmetric=True,
        )

    assert measure.flop_of(jax.make_jaxpr(solve)(X[0])) == 2 * 48**2


def test_flop_agrees_with_the_compiler_where_there_is_no_loop():
    def f(x, y):
        return jnp.tanh(x @ y) @ y + x

    _, cost = measure.compiled(measure.Program(f, (X, X)), LIMITS)
    # The compiler's analysis keeps tanh apart.
    assert cost.xla_flop == cost.flop - X.size


def test_a_program_of_known_memory_traffic_and_limit():
    # The inner product is kept whole: 48 x 48 floats beside one argument and one result of that
    # size.
    program = measure.Program(lambda x: (x @ x) @ x, (X,))
    run, cost = measure.compiled(program, measure.Limits(1e6, 1e9))
    np.testing.assert_allclose(
        run(),
        X @ X @ X,
        rtol=1e-4,
        atol=1e-3,
    )
    assert X.nbytes <= cost.temporary_bytes <= 1.2 * X.nbytes
    assert cost.moved_bytes == 2 * X.nbytes
    assert cost.limit_seconds == pytest.approx(4 * 48**3 / 1e6)
    _, slow = measure.compiled(program, measure.Limits(1e9, 1e3))
    assert slow.limit_seconds == pytest.approx(2 * X.nbytes / 1e3)
    assert min(cost.trace, cost.lower, cost.compile) > 0


def test_median_spread_and_share():
    cost = measure.Measured(
        float("nan"),
        float("nan"),
        0,
        limit_seconds=0.5,
    )
    m = measure.with_times(cost, [1.0, 2.0, 3.0, 100.0, 0.0])
    assert (m.seconds, m.spread, m.rounds, m.share) == (2.0, 2.0, 5, 0.25)
    assert measure.with_times(cost._replace(limit_seconds=0.0), [1.0]).share is None


def test_seconds_are_those_of_the_run_and_not_of_its_dispatch():
    def asleep():
        time.sleep(0.02)
        return np.float32(0)

    def asleep_when_run():
        return jax.pure_callback(asleep, X[0, 0])

    programs = {
        "asleep": measure.Program(asleep, (), jit=False),
        "compiled": measure.Program(asleep_when_run, ()),
    }
    found = measure.contest(programs, LIMITS, rounds=2)
    assert all(0.02 <= m.seconds < 1 for m in found.values())


def test_contest_refuses_programs_that_differ():
    good = measure.Program(lambda x: x + x, (X,))
    bad = measure.Program(lambda x: 2.01 * x, (X,))
    same = measure.Program(lambda x: 2 * x, (X.T,), lambda result: result.T)
    assert measure.contest({"a": good, "b": same}, LIMITS, rounds=1)["b"].rounds == 1
    with pytest.raises(
        ValueError, match=r"b computes something else: relative distance 0\.005"
    ):
        measure.contest({"a": good, "b": bad}, LIMITS, rounds=1)
    with pytest.raises(ValueError, match="shapes"):
        measure.contest(
            {"a": good, "b": same._replace(args=(X[:5],))}, LIMITS, rounds=1
        )


def test_agree():
    big = np.full(4, 100.0)
    small = np.full(4, 1e-6)  # rounding beside what is large
    assert (
        measure.agree(
            "x",
            [big, small],
            [big, -small],
            1e-3,
        )
        < 1e-3
    )
    assert measure.agree(
        "x",
        {"a": 1.1},
        {"a": 1.0},
        0.2,
    ) == pytest.approx(0.1)
    for wrong in (np.array([1.0, np.nan]), np.array([1.0, 3.0])):
        with pytest.raises(ValueError, match="something else"):
            measure.agree("x", wrong, np.array([1.0, 2.0]), 0.1)


def test_machine_limits_are_of_a_machine():
    limits = measure.machine_limits(64, 1)
    assert 1e6 < limits.flop_per_second < 1e16
    assert 1e6 < limits.bytes_per_second < 1e14


def test_peak_resident_sees_an_array_come():
    measure.reset_peak()
    before = measure.peak_resident()
    array = np.ones(2**25)  # 256 MiB
    assert measure.peak_resident() - before > 0.9 * array.nbytes


def test_rows():
    at_least = table.Target("ratio", ">=", 2)
    at_most = table.Target("ours", "<=", 1)
    row = table.Row("case", "what", "ms", 2.0, 5.0, "other")
    assert (row.ratio, row.met) == (2.5, None)
    assert row._replace(targets=(at_least,)).met
    assert row._replace(targets=(at_most,)).met is False
    assert row._replace(targets=(at_most, at_least)).met
    assert row._replace(other=None, targets=(at_least,)).met is None
    assert row._replace(other=None).ratio is None


def test_rows_of_a_contest():
    ours = measure.Measured(
        2e-3,
        0.0,
        3,
        temporary_bytes=2**20,
        share=0.5,
    )
    found = {"ours": ours, "theirs": ours._replace(seconds=6e-3, temporary_bytes=2**21)}
    time_row = table.compared("case", "what", found)
    memory_row = table.memory(
        "case",
        "what",
        found,
        [table.Target("ratio", ">=", 2)],
    )
    assert (time_row.ours, time_row.other) == (2.0, 6.0)
    assert (time_row.against, time_row.share) == ("theirs", 0.5)
    assert (memory_row.ours, memory_row.ratio) == (1.0, 2.0)
    assert memory_row.share is None
    assert memory_row.met

    missing = table.Row("case", "what", against="gone", note="not there")
    lines = table.text([time_row, memory_row, missing]).splitlines()
    assert "3.00" in lines[1]
    assert "50%" in lines[1]
    assert "ratio >= 2: met" in lines[2]
    assert "not there" in lines[3]
    assert json.loads(json.dumps(memory_row.record()))["targets"] == ["ratio >= 2"]


def test_the_readme_has_the_examples():
    for heading in processes.README.values():
        assert "mx." in processes.example(heading)
    with pytest.raises(ValueError, match="no heading"):
        processes.example("Nothing")


def test_plain_vsml_is_permuted_with_its_inputs():
    rng = np.random.default_rng(0)
    params = mx.cells.lstm().init(jax.random.key(0))
    order = np.array([2, 0, 1])
    c, h = rng.normal(size=(2, 3, 2, 16))
    x = rng.normal(size=3)
    error = rng.normal(size=2)
    straight = plain_tick(params, c, h, x, error)
    turned = plain_tick(
        params,
        c[order],
        h[order],
        x[order],
        error,
    )
    np.testing.assert_allclose(turned[0], straight[0][order], rtol=1e-5)
    np.testing.assert_allclose(
        turned[2],
        straight[2],
        rtol=1e-5,
        atol=1e-6,
    )


def run(monkeypatch, folder, *args):
    options = ["--scale", "smoke", "--out", str(folder)]
    monkeypatch.setattr("sys.argv", ["benchmarks", "run", *args, *options])
    assert command.main() == 0
    return json.loads((folder / "run.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        # The script for a GPU runs it too.
        pytest.param(name, marks=[pytest.mark.long] if name == "precision" else [])
        for name in cases()
    ],
)
def test_smoke(name, tmp_path, monkeypatch, capsys):
    result = run(monkeypatch, tmp_path, name, "--against", "peers")
    assert result["versions"]["jax"] == jax.__version__
    assert result["limits"]["flop_per_second"] > 0
    for row in result["rows"]:
        assert row["case"] == name
        if row["note"]:  # neither a crash nor something else that was computed
            assert "not installed" in row["note"] or "unrolls only" in row["note"]
            continue
        assert np.isfinite(row["ours"])
        assert row["ours"] > 0
        assert row["other"] is None or row["ratio"] == row["other"] / row["ours"] > 0
    if name in ("maml", "imaml"):
        assert peers.PACKAGES.keys() <= {row["against"] for row in result["rows"]}
    if name == "estimators":
        assert len(result["rows"]) == 13
        assert all(np.isfinite(row["detail"]["bias"]) for row in result["rows"])
        assert (tmp_path / "estimators.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert all(row["what"] in printed for row in result["rows"])
    assert (tmp_path / "run.png").stat().st_size > 1000
    body = (tmp_path / "run.md").read_text().splitlines()[2:]
    assert [line.split(" | ")[1] for line in body] == [
        row["what"] for row in result["rows"]
    ]


def test_json_goes_where_it_is_asked_to(tmp_path, monkeypatch):
    def one(setting):
        """A case."""
        return [table.Row("one", "x", "s", 1.0, 2.0, "y")]

    monkeypatch.setattr(command, "cases", lambda: {"one": one})
    run(monkeypatch, tmp_path, "one")
    run(monkeypatch, tmp_path, "one", "--json", str(tmp_path / "deep" / "file.json"))
    assert (
        json.loads((tmp_path / "deep" / "file.json").read_text())["rows"][0]["ratio"]
        == 2.0
    )


@pytest.mark.parametrize(
    "args", [("nothing",), ("--device", "abacus"), ("--against", "nobody")]
)
def test_bad_commands(args, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "run", *args])
    with pytest.raises(SystemExit) as e:
        command.main()
    assert e.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "do"), [("run", "measure"), ("compiled", "compile_ahead")]
)
def test_no_case_is_all_cases(name, do, monkeypatch):
    asked = []
    monkeypatch.setattr(command, do, lambda args: asked.append(args.case) or 0)
    monkeypatch.setattr("sys.argv", ["benchmarks", name, "--scale", "smoke"])
    assert command.main() == 0
    assert asked == [[]]


ON_GPU = Path(command.__file__).with_name("on_gpu.sh")


def on_gpu(folder, run):
    """The script for a GPU, tried on the CPU."""
    settings = {"DEVICE": "cpu", "SCALE": "smoke", "RUN": run, "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", ON_GPU, folder],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_script_for_a_gpu_takes_eight_minutes(tmp_path):
    printed = on_gpu(tmp_path, run="0")
    limits = [int(x) for x in re.findall(r", at most (\d+) s: ", printed)]
    assert len(limits) == 5
    assert sum(limits) <= 480
    measured = re.findall(r"benchmarks run ([a-z_ ]+) --", printed)
    named = [case for group in measured for case in group.split()]
    assert named == ["precision", "kernels", "maml", "imaml", "vsml_published"]
    assert set(named) <= set(cases())


@pytest.mark.slow
@pytest.mark.long
def test_every_line_of_the_script_for_a_gpu_runs(tmp_path):
    on_gpu(tmp_path, run="1")
    for name in ("precision", "kernels", "systems", "vsml"):
        rows = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
        assert rows
    assert " passed" in (tmp_path / "tests.log").read_text()
