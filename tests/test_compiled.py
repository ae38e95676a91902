"""Counts in the text of compiled programs, against what is known by hand."""

import importlib.util
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax as mx
from benchmarks import __main__ as command
from benchmarks import ahead, hlo, measure, sharded, targets
from benchmarks.programs import PROGRAMS, Step
from metajax.optim._lstm_kernel import pallas_step

HAVE = {
    "h100": importlib.util.find_spec("jax_cuda13_plugin") is not None,
    "tpu-v5e": importlib.util.find_spec("libtpu") is not None,
}
X = jnp.ones((16, 16))


def counts(f, *args):
    return hlo.count(jax.jit(f).lower(*args).compile().as_text())


def seven_steps(w, x):
    def step(x, _):
        return jnp.tanh(w @ x), x.sum()

    return jax.lax.scan(step, x, None, length=7)


def nested(w, x):
    def step(x, _):
        def inner(_, x):
            return jnp.dot(w, x, precision="highest")

        return jax.lax.fori_loop(2, 5, inner, w @ x), None

    return jax.lax.scan(step, x, None, length=7)[0]


def until_large(x):
    return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ x, x)


# Reads 4 bytes of the counter and 24 of x a time, and writes 12 in place.
TEXT = """HloModule by_hand, entry_computation_layout={(f32[6]{0})->f32[70]{0}}

%fused (a: f32[70], b: f32[6], i: s32[]) -> f32[70] {
  %a = f32[70]{0} parameter(0)
  %i = s32[] parameter(2)
  %b = f32[6]{0} parameter(1)
  %twice = f32[6]{0} add(%b, %b)
  %part = f32[3]{0} slice(%twice), slice={[0:3]}
  ROOT %put = f32[70]{0} dynamic-update-slice(%a, %part, %i)
}

%body (state: (s32[], f32[70], f32[6])) -> (s32[], f32[70], f32[6]) {
  %state = (s32[], f32[70]{0}, f32[6]{0}) parameter(0)
  %t = s32[] get-tuple-element(%state), index=0
  %y = f32[70]{0} get-tuple-element(%state), index=1
  %x = f32[6]{0} get-tuple-element(%state), index=2
  %new = f32[70]{0} fusion(%y, %x, %t), kind=kLoop, calls=%fused
  %sum = f32[6]{0} all-reduce(%x), replica_groups={}, to_apply=%add
  ROOT %out = (s32[], f32[70]{0}, /*index=2*/f32[6]{0}) tuple(%t, %new, %sum)
}

%less (state.1: (s32[], f32[70], f32[6])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[70]{0}, f32[6]{0}) parameter(0)
  %t.1 = s32[] get-tuple-element(%state.1), index=0
  %end = s32[] constant(9)
  ROOT %lt = pred[] compare(%t.1, %end), direction=LT
}

ENTRY %main (x.1: f32[6]) -> f32[70] {
  %x.1 = f32[6]{0} parameter(0)
  %two = s32[] constant(2)
  %two.1 = s32[] copy(%two)
  %zeros = f32[70]{0} custom-call(), custom_call_target="AllocateBuffer"
  %begin = (s32[], f32[70]{0}, f32[6]{0}) tuple(%two.1, %zeros, %x.1)
  %loop = (s32[], f32[70]{0}, f32[6]{0}) while(%begin), condition=%less, body=%body
  ROOT %y.1 = f32[70]{0} get-tuple-element(%loop), index=1
}
"""


def test_a_program_by_hand():
    found = hlo.count(TEXT)
    # From 2 to 9, as the condition says; and the copy of the 2.
    assert found.kernels == {"fusion": 7, "all-reduce": 7, "copy": 1}
    assert found.launches == 15
    slice_of_x, counter, whole_x = 12, 4, 24
    assert found.read_bytes == 7 * (slice_of_x + counter + whole_x) + 4
    assert found.written_bytes == 7 * (slice_of_x + whole_x) + 4
    assert found.collectives == {"all-reduce": 7}
    assert found.exchanged_bytes == 7 * 24
    assert found.unknown_loops == 0


def test_what_the_compiler_says_of_a_loop_goes_first():
    said = 'body=%body, backend_config={"known_trip_count":{"n":"5"}}'
    assert hlo.count(TEXT.replace("body=%body", said)).kernels["fusion"] == 5


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    found = hlo.count(TEXT.replace("copy(%two)", "negate(%two)"))
    assert (found.kernels["fusion"], found.unknown_loops) == (1, 1)


def test_what_lies_on_the_chip_is_no_traffic():
    found = hlo.count(TEXT.replace("f32[6]{0}", "f32[6]{0:T(128)S(1)}"))
    assert found.read_bytes == 7 * 4 + 4
    assert found.written_bytes == 7 * 12 + 4
    assert found.exchanged_bytes == 7 * 24


def test_no_text_of_a_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.count("HloModule nothing")


@pytest.mark.parametrize(
    ("type", "size"),
    [
        ("f32[2,3]{1,0}", 24),
        ("bf16[2,3]{1,0:T(8,128)(2,1)}", 12),
        ("(s32[], (pred[5]{0}, u8[2]{0}))", 11),
        ("s4[3]{0}", 2),
        ("f8e4m3fn[3]{0}", 3),
        ("token[]", 0),
        ("f32[0,4]{1,0}", 0),
    ],
)
def test_bytes(type, size):
    assert hlo.bytes_of(type) == size


def test_an_instruction_is_taken_apart():
    line = (
        "  ROOT %c.1 = (f32[8]{0:T(128)S(1)}, u32[]{:S(2)}) custom-call(%a, %b-1), "
        'custom_call_target="f(x)", called_computations={%g}'
    )
    found = hlo.instruction(line)
    assert (found.name, found.kind, found.operands) == (
        "c.1",
        "custom-call",
        ("a", "b-1"),
    )
    assert (found.type, found.is_root) == ("(f32[8]{0:T(128)S(1)}, u32[]{:S(2)})", True)
    assert hlo.instruction("}") is None


def test_copies_that_go_on_beside_the_rest_count_once():
    text = """ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %go = (f32[8]{0:S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%x)
  ROOT %there = f32[8]{0:S(1)} copy-done(%go)
}
"""
    found = hlo.count(text)
    assert found.kernels == {"copy": 1}
    assert (found.read_bytes, found.written_bytes) == (32, 0)


def test_of_a_conditional_the_longer_branch_counts():
    text = """%short (a: f32[8]) -> f32[8] {
  ROOT %a = f32[8]{0} parameter(0)
}

%long (b: f32[8]) -> f32[8] {
  %b = f32[8]{0} parameter(0)
  ROOT %c = f32[8]{0} negate(%b)
}

ENTRY %main (i: s32[], x: f32[8]) -> f32[8] {
  %i = s32[] parameter(0)
  %x = f32[8]{0} parameter(1)
  ROOT %y = f32[8]{0} conditional(%i, %x, %x), branch_computations={%short, %long}
}
"""
    assert hlo.count(text).kernels == {"negate": 1}


def test_loops_as_compiled_here():
    found = counts(seven_steps, X, X)
    assert found.dots == {"default": 7}
    assert found.launches > 7
    assert found.unknown_loops == 0
    # Each step reads w, which is 1 KiB, at least.
    assert found.read_bytes > 7 * X.nbytes


def test_a_loop_in_a_loop_and_precision():
    assert counts(nested, X, X).dots == {"default": 7, "highest": 21}


def test_a_loop_whose_length_depends_on_data():
    found = counts(until_large, X)
    assert found.dots == {"default": 1}
    assert found.unknown_loops == 1


def test_the_parts_of_a_cost_add_up():
    """As for an accelerator, but compiled for the processor here."""
    limits = measure.Limits(1e9, 1e6)
    here = targets.Target({}, "", limits, 1e-3, {}, {})
    step = Step("seven", seven_steps, (X, jax.ShapeDtypeStruct(X.shape, X.dtype)))
    found = ahead.cost("case", step, here, jax.devices()[0])
    pointers = found.least_bytes - (3 * X.nbytes + 7 * 4)  # to the two results
    assert 0 <= pointers <= 64
    assert found.flop >= 7 * 2 * 16**3
    assert found.launch_seconds == pytest.approx(1e-3 * found.counts.launches)
    assert found.traffic_seconds == pytest.approx(found.moved_bytes / 1e6)
    assert found.arithmetic_seconds == pytest.approx(found.flop / 1e9)
    longest = {
        "launches": found.launch_seconds,
        "traffic": found.traffic_seconds,
        "arithmetic": found.arithmetic_seconds,
    }
    assert longest[found.binds] == max(longest.values())
    (_, _, row) = ahead.markdown([found]).splitlines()
    assert row.startswith(f"| case | seven | {found.counts.launches:,} | ")
    assert row.count("**") == 2
    assert json.loads(json.dumps(found.record()))["launches"] == found.counts.launches


def test_the_table_shows_the_precision_of_every_product():
    """As compiled here: the optimizer's own in full float32, the network's by default."""
    here = targets.Target({}, "", measure.Limits(1e9, 1e6), 1e-3, {}, {})
    update = next(PROGRAMS["l2l"](True))
    (cpu, *_) = jax.devices()
    costs = [
        ahead.cost("l2l", update, here, cpu),
        ahead.cost("nested", Step("nested", nested, (X, X)), here, cpu),
    ]
    assert [dict(cost.counts.dots) for cost in costs] == [
        {"highest": 3},
        {"default": 7, "highest": 21},
    ]
    (_, _, own, both) = ahead.markdown(costs).splitlines()
    assert "| 3 highest |" in own
    assert "| 7 default, 21 highest |" in both


def run(monkeypatch, *args):
    monkeypatch.setattr("sys.argv", ["benchmarks", "compiled", *args])
    return command.main()


@pytest.mark.parametrize("name", targets.TARGETS)
def test_without_its_compiler_the_command_says_what_to_install(
    name, monkeypatch, capsys, tmp_path
):
    def absent(**_):
        raise NotImplementedError("topology not implemented")

    if HAVE[name]:
        monkeypatch.setattr(targets.topologies, "get_topology_desc", absent)
    assert run(monkeypatch, "l2l", "--for", name, "--out", str(tmp_path / "o")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}: JAX {jax.__version__} finds no compiler")
    assert line.endswith(
        f"pip install --upgrade 'metajax[{targets.TARGETS[name].extra}]'"
    )
    assert not (tmp_path / "o").exists()


def test_a_jax_that_asks_otherwise_for_a_topology(monkeypatch, capsys):
    def older(topology_name="", platform=None):
        raise AssertionError

    monkeypatch.setattr(targets.topologies, "get_topology_desc", older)
    assert run(monkeypatch, "--for", "h100") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "target_config" in line
    assert line.endswith("pip install --upgrade 'metajax[aot-gpu]'")


def test_an_unknown_target(monkeypatch, capsys):
    assert run(monkeypatch, "--for", "a100") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "--for a100: no such target, choose of h100, tpu-v5e"


@pytest.mark.slow
@pytest.mark.parametrize("name", targets.TARGETS)
def test_smoke_of_all_programs(name, monkeypatch, tmp_path):
    if not HAVE[name]:
        pytest.skip(
            f"no compiler: pip install 'metajax[{targets.TARGETS[name].extra}]'"
        )
    assert (
        run(monkeypatch, "--for", name, "--scale", "smoke", "--out", str(tmp_path)) == 0
    )
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert {program["case"] for program in found["programs"]} == set(PROGRAMS)
    for program in found["programs"]:
        assert program["launches"] > 0
        assert program["counts"]["unknown_loops"] == 0
        assert np.isfinite(program["traffic_seconds"])
        # No network of a user in it. What is within a kernel by hand is not to be seen here.
        if program["case"] == "vsml" or "update" in program["what"]:
            dots = set(program["counts"]["dots"])
            is_one_kernel = "update" in program["what"] and "kernel=" in program["what"]
            assert dots == (set() if is_one_kernel else {"highest"}), program["what"]
    assert (tmp_path / f"{name}.png").stat().st_size > 1000


@pytest.mark.slow
def test_what_chips_exchange_does_not_grow_with_tasks_or_loops():
    if not HAVE["tpu-v5e"]:
        pytest.skip("no compiler: pip install 'metajax[aot-tpu]'")
    devices = targets.devices("tpu-v5e", topology_name=sharded.LARGE)
    mesh = sharded.mesh_of(devices)
    target = targets.TARGETS["tpu-v5e"]
    few, many = (
        ahead.cost("sharded", step, target, None).counts
        for step in sharded.more_tasks(mesh)
    )
    assert few.collectives == many.collectives == {"all-reduce": 1}
    assert few.exchanged_bytes == many.exchanged_bytes > 4 * 5_141


@pytest.mark.slow
def test_no_estimator_exchanges_in_its_loops():
    if not HAVE["tpu-v5e"]:
        pytest.skip("no compiler: pip install 'metajax[aot-tpu]'")
    devices = targets.devices("tpu-v5e", topology_name=sharded.SMALL)
    target = targets.TARGETS["tpu-v5e"]
    for step in sharded.every_estimator(sharded.mesh_of(devices)):
        found = ahead.cost("sharded", step, target, None).counts
        assert found.unknown_loops == 0, step.what
        assert 1 <= found.collectives.total() <= 2, step.what


@pytest.mark.slow
def test_h100_counts_a_scan_as_the_processor_does():
    if not HAVE["h100"]:
        pytest.skip("no compiler: pip install 'metajax[aot-gpu]'")
    (device, *_) = targets.devices("h100")
    step = Step("nested", nested, (X, X))
    found = ahead.cost("case", step, targets.TARGETS["h100"], device)
    assert found.counts.dots == {"default": 7, "highest": 21}
    assert found.counts.launches >= 28


@pytest.mark.slow
def test_a_step_of_the_lstm_is_one_kernel_and_keeps_nothing():
    if not HAVE["h100"]:
        pytest.skip("no compiler: pip install 'metajax[aot-gpu]'")
    (device, *_) = targets.devices("h100")
    optimizer = mx.optim.lstm()
    meta_params = optimizer.init(jax.random.key(0))
    grad = jax.ShapeDtypeStruct((100_000,), jnp.float32)
    state = jax.eval_shape(optimizer.tx(meta_params).init, grad)
    step = Step(
        "step",
        partial(pallas_step, 10.0, False),
        (meta_params, grad, state),
        donated=(2,),
    )
    found = ahead.cost("l2l", step, targets.TARGETS["h100"], device)
    # And what puts zeros beside the weights.
    assert found.counts.launches <= 1 + 7
    assert found.temporary_bytes < 2**20
    least = 100_000 * 4 * (1 + 1 + 2 * 80)  # gradient, update, and states in and out
    assert found.counts.read_bytes + found.counts.written_bytes < 1.05 * least
