"""The harness of reproduced results: every experiment runs at its smallest scale, and claims come
from the runs.
"""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx
from benchmarks import __main__ as command
from benchmarks import reproduce as harness
from benchmarks.experiments import _few_shot, _l2l, _training, imaml_memory, l2l_mnist


def call(monkeypatch, *args):
    monkeypatch.setattr("sys.argv", ["benchmarks", *map(str, args)])
    return command.main()


@pytest.mark.slow
@pytest.mark.parametrize("name", harness.names())
def test_smoke(name, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "reproduce", name, "--scale", "smoke", "--out", tmp_path) == 0
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert result["scale"] == "smoke"
    assert result["seeds"] == [0]
    assert result["claims"]
    for claim in result["claims"]:
        assert claim["claim"]
        assert claim["source"]
        if claim["seeds"]:
            assert np.isfinite(claim["measured"]), claim
            assert claim["holds"] in (True, False)
    # A second run goes on with what is done, and comes to the same; without --resume nothing is
    # overwritten.
    assert (
        call(monkeypatch, "reproduce", name, "--scale", "smoke", "--out", tmp_path, "--resume") == 0
    )
    again = json.loads((tmp_path / f"{name}.json").read_text())
    assert again["claims"] == result["claims"]
    assert call(monkeypatch, "reproduce", name, "--scale", "smoke", "--out", tmp_path) == 1
    assert "add --resume" in capsys.readouterr().err


def test_list_names_every_experiment(monkeypatch, capsys):
    assert call(monkeypatch, "reproduce", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == harness.names()
    assert all("(" in line for line in lines)


def test_every_experiment_has_three_scales():
    for name in harness.names():
        assert set(harness.load(name).settings) == set(harness.SCALES), name


def test_a_claim_is_about_the_mean_over_seeds():
    c = harness.claim("x < 2", "here", 1.0, [1.0, 2.0], lambda x: x < 2)
    assert (c.measured, c.seeds, c.holds, c.alone) == (1.5, 2, True, 1)
    np.testing.assert_allclose(c.spread, 0.5**0.5)
    assert harness.claim("x < 2", "here", 1.0, [3.0], lambda x: x < 2)[3:] == (
        3.0,
        None,
        1,
        False,
        0,
    )
    assert harness.claim("x < 2", "here", 1.0, [], lambda x: x < 2).holds is None
    assert harness.claim("x > 2", "here", 1.0, [3.0, np.inf], lambda x: x > 2)[3:] == (
        None,
        None,
        2,
        False,
        1,
    )


def test_seeds_that_disagree_are_told():
    for values, verdict in (
        ([1, 1], "yes"),
        ([3, 3], "no"),
        ([0, 3], "yes, 1 of 2 seeds"),
        ([1, 4], "no, 1 of 2 seeds"),
    ):
        c = harness.claim("x < 2", "here", None, values, lambda x: x < 2)
        assert harness.table([c._asdict()]).splitlines()[1].split("  ")[-1].strip() == verdict


ROOT = Path(__file__).parents[1]
COMMITTED = [
    path
    for name in harness.names()
    for path in (ROOT / "benchmarks" / "results" / name).glob("*.json")
]


@pytest.mark.parametrize(
    "path", [p for p in COMMITTED if p.parent.name in harness.names()], ids=lambda p: p.parent.name
)
def test_committed_results_are_of_this_code(path):
    """Their settings are those of the experiment, and their claims what it computes from their
    results.
    """
    stored, experiment = json.loads(path.read_text()), harness.load(path.parent.name)
    assert stored["settings"] == json.loads(json.dumps(experiment.settings[stored["scale"]]))
    results = [{k: np.asarray(v, float) for k, v in r.items()} for r in stored["results"]]
    claims = [c._asdict() for c in experiment.claims(results, stored["settings"])]
    assert stored["claims"] == json.loads(json.dumps(claims))


def test_the_page_is_that_of_the_committed_results(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = harness.report(Path("benchmarks/results"), tmp_path / "page.md")
    assert text == (ROOT / "docs" / "reproduced.md").read_text()


def test_report(tmp_path, monkeypatch, capsys):
    name = harness.names()[0]
    claim = harness.claim("it is small", "paper, figure 1", 3, [1.0, 2.0], lambda x: x < 1)
    result = {
        "name": name, "title": "A title", "source": "paper", "scale": "small", "command": "python -m benchmarks x",
        "seeds": [0, 1], "seconds": [30, 90], "claims": [claim._asdict()],
    }  # fmt: skip
    (tmp_path / name).mkdir()
    (tmp_path / name / "cpu.json").write_text(json.dumps(result))
    page = tmp_path / "page.md"
    assert call(monkeypatch, "report", "--results", tmp_path, "--page", page) == 0
    text = page.read_text()
    assert "| paper, figure 1 | it is small | 3 | 1.50 ± 0.71 | no |\n" in text
    assert f"| A title | paper | 0 of 1 | `{name}` small, 2 seeds, cpu, 2 min |\n" in text
    assert text.count(": not run |") == len(harness.names()) - 1
    assert text in capsys.readouterr().out
    later = {**result, "seconds": [30, None], "note": "Made in two parts."}  # one was interrupted
    (tmp_path / name / "cpu.json").write_text(json.dumps(later))
    text = harness.report(tmp_path, page)
    assert f"`{name}` small, 2 seeds, cpu |\n" in text
    assert "`python -m benchmarks x`\n\nMade in two parts.\n\n![A title]" in text


def test_what_diverged_is_written_as_json_that_others_can_read(tmp_path, monkeypatch):
    def run(seed, settings, folder):
        return {"x": np.array([1.0, np.inf, np.nan])}

    def claims(results, settings):
        return [
            harness.claim(
                "it is small", "paper", None, [r["x"][-1] for r in results], lambda x: x < 1
            )
        ]

    experiment = harness.Experiment(
        "A title", "paper", {"small": {}}, run, claims, lambda *_: None, seeds=1
    )
    monkeypatch.setattr(harness, "load", lambda name: experiment)
    assert "not finite" in harness.table(harness.reproduce("x", "small", tmp_path)["claims"])
    stored = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert stored["results"] == [{"x": [1.0, None, None]}]
    harness.reproduce("x", "small", tmp_path, resume=True)
    assert json.loads((tmp_path / "x.json").read_text()) == stored


def test_an_interrupted_seed_has_no_time(tmp_path, monkeypatch):
    def dies_once(seed, settings, folder):
        if not (folder / "begun").exists():
            (folder / "begun").touch()
            raise KeyboardInterrupt
        return {"x": np.ones(1)}

    def picture(results, settings, figure):
        figure.subplots()

    experiment = harness.Experiment(
        "A title", "paper", {"small": {}}, dies_once, lambda r, s: [], picture, seeds=1
    )
    monkeypatch.setattr(harness, "load", lambda name: experiment)
    with pytest.raises(KeyboardInterrupt):
        harness.reproduce("x", "small", tmp_path)
    assert harness.reproduce("x", "small", tmp_path, resume=True)["seconds"] == [None]
    (tmp_path / "x-small" / "seed-1").mkdir()
    (tmp_path / "x-small" / "seed-1" / "begun").touch()
    experiment = experiment._replace(run=lambda seed, settings, folder: {"x": np.ones(1)})
    both = harness.reproduce("x", "small", tmp_path, seeds=3, resume=True)
    assert both["seconds"][:2] == [None, None]
    assert both["seconds"][2] >= 0
    assert all(peak > 0 for peak in both["peak_resident_mib"])


def test_a_seed_that_was_begun_with_other_settings_is_refused(tmp_path, monkeypatch):
    def dies(seed, settings, folder):
        raise KeyboardInterrupt

    experiment = harness.Experiment(
        "A title", "paper", {"small": {"steps": 1}}, dies, lambda r, s: [], lambda *_: None
    )
    monkeypatch.setattr(harness, "load", lambda name: experiment)
    with pytest.raises(KeyboardInterrupt):
        harness.reproduce("x", "small", tmp_path)
    experiment = experiment._replace(settings={"small": {"steps": 2}})
    with pytest.raises(
        ValueError, match=r"settings.json was made with other settings: \{'steps': 1\}"
    ):
        harness.reproduce("x", "small", tmp_path, resume=True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("reproduce",), "NAME of an experiment"),
        (("reproduce", "nothing"), "invalid choice"),
        (("reproduce", harness.names()[0], "--seeds", "0"), "at least 1"),
    ],
)
def test_bad_commands(args, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as e:
        call(monkeypatch, *args)
    assert e.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_meta_training_over_two_devices_comes_to_the_same(tmp_path):
    results = []
    for devices in (1, 2):
        out = tmp_path / str(devices)
        command = [
            "reproduce",
            "vsml-introspection",
            "--scale",
            "smoke",
            "--devices",
            str(devices),
            "--out",
            str(out),
        ]
        subprocess.run(
            [sys.executable, "-m", "benchmarks", *command], check=True, capture_output=True
        )
        results.append(json.loads((out / "vsml-introspection.json").read_text()))
    one, two = results
    assert two["command"] == one["command"] + " --devices 2"
    for name, value in one["results"][0].items():
        np.testing.assert_allclose(
            two["results"][0][name], value, rtol=1e-3, atol=1e-4, err_msg=name
        )


def test_devices_that_divide_the_episodes_are_taken(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr(mx.sharding, "mesh", lambda n: n)
    assert [_training.mesh(n) for n in (1, 2, 3, 12, 16)] == [None, 2, None, 4, 8]


def test_accounts_of_memory_are_of_the_methods_they_name(tmp_path):
    results = imaml_memory.run(
        0, {**imaml_memory.EXPERIMENT.settings["smoke"], "steps": [2, 32]}, tmp_path
    )
    mib = {name: results[f"{name}: MiB"] for name in imaml_memory.NAMES}
    assert mib["MAML"][1] > 4 * mib["MAML"][0]
    assert mib[imaml_memory.REMAT][1] != mib["MAML"][1]
    for name in ("iMAML", "FOMAML"):
        assert mib[name][1] == mib[name][0], name


def test_a_weight_that_stands_for_many_moves_as_they_do():
    n, inputs = 5, 3
    image = jax.random.normal(jax.random.key(0), (4, inputs))
    batch = {"image": image, "label": jnp.array([0, 1, 1, 0])}
    repeated = {**batch, "image": jnp.repeat(image, n, 1)}
    few = mx.problems.mlp((inputs, 4, 2))
    problem, _ = l2l_mnist.many(few, mx.tasks.minibatches(4), (8, 1))
    wide = mx.problems.mlp((inputs * n, 4, 2))
    factors = jnp.array([n, 1.0])
    # Equal weights for equal inputs, steps that do not depend on the size of a gradient.
    tx, key = optax.sign_sgd(0.01), jax.random.key(1)
    scaled = problem.init(key, ((), factors))
    many = [{**scaled[0], "w": jnp.repeat(scaled[0]["w"], n, 0)}, scaled[1]]
    losses = []
    for _ in range(10):
        a, grad_a = jax.value_and_grad(lambda p: problem.loss(key, p, (batch, factors))[0])(scaled)
        b, grad_b = jax.value_and_grad(lambda p: wide.loss(key, p, repeated)[0])(many)
        losses.append((a, b))
        scaled = optax.apply_updates(scaled, tx.update(grad_a, tx.init(scaled))[0])
        many = optax.apply_updates(many, tx.update(grad_b, tx.init(many))[0])
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-5)
    start = few.init(key, ())
    np.testing.assert_allclose(losses[0][0], few.loss(key, start, batch)[0], rtol=1e-6)
    assert losses[-1][0] < losses[0][0]


def test_a_final_loss_is_that_of_the_last_tenth_before_each_end():
    loop = mx.inner(mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), horizon=40)
    state, losses = loop.init(jax.random.key(0), 0.01, ()), []
    for _ in range(40):
        state, (loss, _) = loop.step(0.01, state, ())
        losses.append(float(loss))
    state = loop.init(jax.random.key(0), 0.01, ())
    _, found, _ = mx.unroll(_l2l.final_loss(loop, [20, 40]), 0.01, state, (), length=40)
    np.testing.assert_allclose(
        found, (sum(losses[18:20]) / 2 + sum(losses[36:40]) / 4) / 2, rtol=1e-5
    )


def test_each_query_set_has_every_class_and_is_judged_by_itself():
    net = mx.nets.dense4(5, (8, 8, 1), (4,))
    learner, params = (
        mx.finetune(mx.problems.classifier(*net), optax.sgd(0.1)),
        net.init(jax.random.key(1)),
    )
    data, key = mx.data.few_shot("digits", "train"), jax.random.key(0)
    tasks = mx.tasks.episodes(5, 2, 3 * 2)
    batch = tasks.test(key, data, tasks.sample(key, data))
    state = learner.init(key, params, None)
    got = _few_shot.over_query_sets(learner, 5, 3).loss(key, params, state, batch)
    parts = [[6 * c + 2 * part + i for c in range(5) for i in range(2)] for part in range(3)]
    want = [
        learner.loss(key, params, state, jax.tree.map(lambda x, p=p: x[np.array(p)], batch))
        for p in parts
    ]
    np.testing.assert_allclose(got, np.mean(want), rtol=1e-5)
    assert abs(got - learner.loss(key, params, state, batch)) > 1e-4, (
        "batch normalisation sees the others"
    )
