"""The harness of reproduced results: claims come from the runs.

And every experiment runs at its smallest scale.
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
from test_data import needs

import metajax as mx
from benchmarks import __main__ as command
from benchmarks import reproduce as harness
from benchmarks.experiments import (
    _few_shot,
    _l2l,
    _training,
    bilevel_cleaning,
    gpicl_generalisation,
    imaml_memory,
    l2l_mnist,
    optim_held_out,
)


def call(monkeypatch, *args):
    monkeypatch.setattr("sys.argv", ["benchmarks", *map(str, args)])
    return command.main()


def experiment(run, claims=lambda results, settings: [], settings=None, seeds=1):
    """One that draws an empty picture."""
    return harness.Experiment(
        title="A title",
        source="paper",
        settings={"small": settings or {}},
        run=run,
        claims=claims,
        picture=lambda results, settings, figure: figure.subplots(),
        seeds=seeds,
    )


# What these do, another experiment of the same system does too.
LONG = {
    "gpicl-generalisation",
    "imaml-memory",
    "imaml-mini-imagenet",
    "l2l-cifar",
    "l2l-mnist",
    "l2l-neural-art",
    "vsml-cloning",
    "vsml-datasets",
    "vsml-robustness",
}
# At their smallest all others take sets that come with the package.
DATA = {"bilevel-cleaning": needs("mnist")}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:up to meta-step")  # of solves, at such a scale
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[pytest.mark.long] if name in LONG else DATA.get(name, [])
        )
        for name in harness.names()
    ],
)
def test_smoke(name, tmp_path, monkeypatch, capsys):
    again = ("reproduce", name, "--scale", "smoke", "--out", tmp_path)
    assert call(monkeypatch, *again) == 0
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
    assert call(monkeypatch, *again, "--resume") == 0
    resumed = json.loads((tmp_path / f"{name}.json").read_text())
    assert resumed["claims"] == result["claims"]
    assert call(monkeypatch, *again) == 1
    assert "add --resume" in capsys.readouterr().err


def test_a_run_without_data_is_not_in_the_way_of_the_next(
    tmp_path, monkeypatch, capsys
):
    def without_data(seed, settings, folder):
        raise FileNotFoundError("mnist is not prepared")

    monkeypatch.setattr(harness, "load", lambda name: experiment(without_data))
    for _ in range(2):
        assert (
            call(monkeypatch, "reproduce", harness.names()[0], "--out", tmp_path) == 1
        )
        assert "mnist is not prepared" in capsys.readouterr().err
    assert not list(tmp_path.rglob("settings.json"))


@pytest.mark.parametrize("case", [*optim_held_out.NETWORKS, *optim_held_out.CONVEX])
def test_every_problem_held_out_can_be_trained(case, key):
    """Those too that are too large for the smallest scale: a loss as of guessing, and gradients."""
    settings = optim_held_out.EXPERIMENT.settings["smoke"]
    pose = (optim_held_out.NETWORKS | optim_held_out.CONVEX)[case]
    problem, tasks, data = pose(settings)
    task = tasks.sample(key, data)
    params, model_state = problem.init(key, task)
    batch = tasks.train(key, data, task)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return problem.loss(key, params, model_state, batch)[0]

    value, grads = loss(params)
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() and np.any(x) for x in jax.tree.leaves(grads))
    classes = {"transformer, sums in words": 29, "quadratics": None}.get(case, 10)
    if classes:
        assert 0.5 * np.log(classes) < value < 2 * np.log(classes)


def test_list_names_every_experiment(monkeypatch, capsys):
    assert call(monkeypatch, "reproduce", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == harness.names()
    assert all("(" in line for line in lines)


def test_every_experiment_has_three_scales():
    for name in harness.names():
        assert set(harness.load(name).settings) == set(harness.SCALES), name


def test_a_claim_is_about_the_mean_over_seeds():
    def claim(values):
        return harness.claim("x < 2", "here", 1.0, values, harness.below(2))

    two = claim([1.0, 2.0])
    assert (two.measured, two.seeds, two.holds, two.alone) == (1.5, 2, True, 1)
    np.testing.assert_allclose(two.spread, 0.5**0.5)

    one = claim([3.0])
    assert (one.measured, one.spread, one.seeds) == (3.0, None, 1)
    assert (one.holds, one.alone) == (False, 0)
    assert claim([]).holds is None

    diverged = claim([1.0, np.inf])
    assert (diverged.measured, diverged.spread, diverged.seeds) == (None, None, 2)
    assert (diverged.holds, diverged.alone) == (False, 1)


@pytest.mark.parametrize(
    ("bound", "holds_below", "holds_at", "holds_above"),
    [
        (harness.below, True, False, False),
        (harness.at_most, True, True, False),
        (harness.above, False, False, True),
        (harness.at_least, False, True, True),
    ],
)
def test_bounds(bound, holds_below, holds_at, holds_above):
    assert [bound(2)(x) for x in (1, 2, 3)] == [holds_below, holds_at, holds_above]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([1, 1], "yes"),
        ([3, 3], "no"),
        ([0, 3], "yes, 1 of 2 seeds"),
        ([1, 4], "no, 1 of 2 seeds"),
    ],
)
def test_seeds_that_disagree_are_told(values, verdict):
    claim = harness.claim("x < 2", "here", None, values, harness.below(2))
    _, line = harness.table([claim._asdict()]).splitlines()
    assert line.split("  ")[-1].strip() == verdict


ROOT = Path(__file__).parents[1]
COMMITTED = []
for name in harness.names():
    COMMITTED += (ROOT / "benchmarks" / "results" / name).glob("*.json")


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_committed_results_are_of_this_code(path):
    """Their settings are those of the experiment, and their claims those of their results."""
    stored = json.loads(path.read_text())
    experiment = harness.load(path.parent.name)
    settings = experiment.settings[stored["scale"]]
    assert stored["settings"] == json.loads(json.dumps(settings))

    results = []
    for result in stored["results"]:
        results.append({name: np.asarray(x, float) for name, x in result.items()})
    claims = [
        claim._asdict() for claim in experiment.claims(results, stored["settings"])
    ]
    assert stored["claims"] == json.loads(json.dumps(claims))


def test_the_page_is_that_of_the_committed_results(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = harness.report(Path("benchmarks/results"), tmp_path / "page.md")
    assert text == (ROOT / "docs" / "reproduced.md").read_text()


def test_report(tmp_path, monkeypatch, capsys):
    name = harness.names()[0]
    claim = harness.claim(
        "it is small", "paper, figure 1", 3, [1.0, 2.0], harness.below(1)
    )
    result = {
        "name": name,
        "title": "A title",
        "source": "paper",
        "scale": "small",
        "command": "python -m benchmarks x",
        "seeds": [0, 1],
        "seconds": [30, 90],
        "claims": [claim._asdict()],
    }
    (tmp_path / name).mkdir()
    (tmp_path / name / "cpu.json").write_text(json.dumps(result))
    page = tmp_path / "page.md"
    assert call(monkeypatch, "report", "--results", tmp_path, "--page", page) == 0
    text = page.read_text()
    assert "| paper, figure 1 | it is small | 3 | 1.50 ± 0.71 | no |\n" in text
    assert (
        f"| A title | paper | 0 of 1 | `{name}` small, 2 seeds, cpu, 2 min |\n" in text
    )
    assert text.count(": not run |") == len(harness.names()) - 1
    assert text in capsys.readouterr().out
    later = {
        **result,
        "seconds": [30, None],
        "note": "Made in two parts.",
    }  # one was interrupted
    (tmp_path / name / "cpu.json").write_text(json.dumps(later))
    text = harness.report(tmp_path, page)
    assert f"`{name}` small, 2 seeds, cpu |\n" in text
    assert "`python -m benchmarks x`\n\nMade in two parts.\n\n![A title]" in text


def test_what_diverged_is_written_as_json_that_others_can_read(tmp_path, monkeypatch):
    def run(seed, settings, folder):
        return {"x": np.array([1.0, np.inf, np.nan])}

    def claims(results, settings):
        last = [result["x"][-1] for result in results]
        return [
            harness.claim(
                "it is small",
                "paper",
                None,
                last,
                harness.below(1),
            )
        ]

    monkeypatch.setattr(harness, "load", lambda name: experiment(run, claims))
    assert "not finite" in harness.table(
        harness.reproduce("x", "small", tmp_path)["claims"]
    )
    stored = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert stored["results"] == [{"x": [1.0, None, None]}]
    harness.reproduce("x", "small", tmp_path, resume=True)
    assert json.loads((tmp_path / "x.json").read_text()) == stored


def test_an_interrupted_seed_has_no_time(tmp_path, monkeypatch):
    def dies_once(seed, settings, folder):
        if not (folder / "begun").exists():
            (folder / "begun").touch()
            raise KeyboardInterrupt
        return lives(seed, settings, folder)

    def lives(seed, settings, folder):
        return {"x": np.ones(1)}

    monkeypatch.setattr(harness, "load", lambda name: experiment(dies_once))
    with pytest.raises(KeyboardInterrupt):
        harness.reproduce("x", "small", tmp_path)
    assert harness.reproduce(
        "x",
        "small",
        tmp_path,
        resume=True,
    )["seconds"] == [None]
    (tmp_path / "x-small" / "seed-1").mkdir()
    (tmp_path / "x-small" / "seed-1" / "begun").touch()
    monkeypatch.setattr(harness, "load", lambda name: experiment(lives))
    both = harness.reproduce("x", "small", tmp_path, seeds=3, resume=True)
    assert both["seconds"][:2] == [None, None]
    assert both["seconds"][2] >= 0
    assert all(peak > 0 for peak in both["peak_resident_mib"])


def test_a_seed_that_was_begun_with_other_settings_is_refused(tmp_path, monkeypatch):
    def dies(seed, settings, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        harness, "load", lambda name: experiment(dies, settings={"steps": 1})
    )
    with pytest.raises(KeyboardInterrupt):
        harness.reproduce("x", "small", tmp_path)
    monkeypatch.setattr(
        harness, "load", lambda name: experiment(dies, settings={"steps": 2})
    )
    message = r"settings.json was made with other settings: \{'steps': 1\}"
    with pytest.raises(ValueError, match=message):
        harness.reproduce("x", "small", tmp_path, resume=True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("reproduce",), "NAME --list is required"),
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
            sys.executable,
            "-m",
            "benchmarks",
            "reproduce",
            "vsml-introspection",
        ]
        command += ["--scale", "smoke", "--devices", str(devices), "--out", str(out)]
        subprocess.run(command, check=True, capture_output=True)
        results.append(json.loads((out / "vsml-introspection.json").read_text()))
    one, two = results
    assert two["command"] == one["command"] + " --devices 2"
    for name, value in one["results"][0].items():
        divided = two["results"][0][name]
        np.testing.assert_allclose(
            divided,
            value,
            rtol=1e-3,
            atol=1e-4,
            err_msg=name,
        )


def test_devices_that_divide_the_episodes_are_taken(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr(mx.sharding, "mesh", lambda n: n)
    taken = {episodes: _training.mesh(episodes) for episodes in (1, 2, 3, 12, 16)}
    assert taken == {1: None, 2: 2, 3: None, 12: 4, 16: 8}


@pytest.mark.slow
def test_accounts_of_memory_are_of_the_methods_they_name(tmp_path):
    settings = imaml_memory.EXPERIMENT.settings["smoke"]
    results = imaml_memory.run(0, {**settings, "steps": [2, 32]}, tmp_path)
    mib = {name: results[f"{name}: MiB"] for name in imaml_memory.NAMES}
    assert mib["MAML"][1] > 4 * mib["MAML"][0]
    assert mib[imaml_memory.REMAT][1] != mib["MAML"][1]
    for name in ("iMAML", "FOMAML"):
        assert mib[name][1] == mib[name][0], name


@pytest.mark.slow
def test_a_weight_that_stands_for_many_moves_as_they_do():
    n = 5
    inputs = 3
    key = jax.random.key(1)
    image = jax.random.normal(jax.random.key(0), (4, inputs))
    batch = {"image": image, "label": jnp.array([0, 1, 1, 0])}
    repeated = {**batch, "image": jnp.repeat(image, n, 1)}
    factors = jnp.array([n, 1.0])
    few = mx.problems.mlp((inputs, 4, 2))
    problem, _ = l2l_mnist.many(few, mx.tasks.minibatches(4), (8, 1))
    wide = mx.problems.mlp((inputs * n, 4, 2))

    def loss_of_few(params):
        return problem.loss(key, params, (), (batch, factors))[0]

    def loss_of_many(params):
        return wide.loss(key, params, (), repeated)[0]

    # Equal weights for equal inputs, steps that do not depend on the size of a gradient.
    tx = optax.sign_sgd(0.01)
    scaled, _ = problem.init(key, ((), factors))
    first, last = scaled
    many = [{**first, "w": jnp.repeat(first["w"], n, 0)}, last]
    losses = []
    for _ in range(10):
        a, grad_a = jax.value_and_grad(loss_of_few)(scaled)
        b, grad_b = jax.value_and_grad(loss_of_many)(many)
        losses.append((a, b))
        scaled = optax.apply_updates(scaled, tx.update(grad_a, tx.init(scaled))[0])
        many = optax.apply_updates(many, tx.update(grad_b, tx.init(many))[0])
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-5)

    params, _ = few.init(key, ())
    start, _ = few.test(key, params, (), batch)
    np.testing.assert_allclose(losses[0][0], start, rtol=1e-6)
    assert losses[-1][0] < losses[0][0]


def test_tasks_of_weights_that_stand_for_many():
    few = mx.problems.mlp((3, 4, 4, 2))
    digits = mx.data.load("digits")
    _, tasks = l2l_mnist.many(few, mx.tasks.minibatches(4), (8, 3))
    _, factors = jax.vmap(tasks.sample, (0, None))(
        jax.random.split(jax.random.key(0), 64), digits
    )
    assert factors.shape == (64, 3)
    assert ((factors >= 1) & (factors <= jnp.array([8, 3, 3]))).all()
    assert (factors.max(0) > jnp.array([6, 2.5, 2.5])).all()


def test_a_final_loss_is_that_of_the_last_tenth_before_each_end():
    loop = mx.inner(
        mx.l2l(optax.sgd, mx.problems.quadratic()), mx.tasks.quadratics(3), horizon=40
    )
    start = loop.init(jax.random.key(0), 0.01, ())
    state = start
    losses = []
    for _ in range(40):
        state, (loss, _) = loop.step(0.01, state, ())
        losses.append(float(loss))
    final = _l2l.final_loss(loop, [20, 40])
    _, found, _ = mx.unroll(
        final,
        0.01,
        start,
        (),
        length=40,
    )
    wanted = (sum(losses[18:20]) / 2 + sum(losses[36:40]) / 4) / 2
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.slow
def test_each_query_set_has_every_class_and_is_tested_by_itself():
    problem = mx.problems.classifier(*mx.nets.dense4(5, (8, 8, 1), (4,)))
    learner = mx.finetune(problem, optax.sgd(0.1))
    params = learner.meta(jax.random.key(1))
    key = jax.random.key(0)
    data = mx.data.few_shot("digits", "train")
    tasks = mx.tasks.episodes(5, 2, 3 * 2)
    batch = tasks.test(key, data, tasks.sample(key, data))
    state = learner.init(key, params, None)
    got, metrics = _few_shot.over_query_sets(learner, 5, 3).test(
        key, params, state, batch
    )

    losses = []
    accuracies = []
    for part in range(3):
        first = 6 * np.arange(5) + 2 * part
        places = np.stack([first, first + 1], 1).ravel()
        query_set = jax.tree.map(lambda x, places=places: x[places], batch)
        loss, part_metrics = learner.test(key, params, state, query_set)
        losses.append(loss)
        accuracies.append(part_metrics["accuracy"])
    np.testing.assert_allclose(got, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(accuracies), rtol=1e-5)

    # Batch normalisation would see the others.
    together, _ = learner.test(key, params, state, batch)
    assert abs(got - together) > 1e-4


@pytest.mark.parametrize(
    "make",
    [
        lambda *sizes: mx.delta_rule(*sizes, width=8, depth=1, heads=2, head_size=4),
        lambda *sizes: mx.gpicl(*sizes, 12, width=8, depth=1, heads=2, head_size=4),
    ],
    ids=["delta_rule", "gpicl"],
)
def test_an_enlarged_learner_sees_its_images_through_a_projection(make):
    few, many = make(6, 3), make(20, 5)
    before = jax.jit(few.meta)(jax.random.key(0))
    fresh = jax.jit(many.meta)(jax.random.key(1))
    key = jax.random.key(2)
    after = gpicl_generalisation.enlarged(before, fresh, key)
    assert jax.tree.structure(after) == jax.tree.structure(fresh)
    images = np.random.default_rng(0).normal(size=(12, 20)).astype(np.float32)
    projection = np.asarray(jax.random.normal(key, (6, 20))) / 20**0.5
    labels = np.arange(12) % 3

    def prediction(learner, meta_params, images):
        state = learner.init(key, meta_params, ())
        seen = {"image": images[:-1], "label": labels[:-1]}
        state, *_ = learner.step(key, meta_params, state, seen)
        return learner.predict(key, meta_params, state, images[-1:])

    want = jax.jit(lambda x: prediction(few, before, x))(images @ projection.T)
    got = jax.jit(lambda x: prediction(many, after, x))(images)
    np.testing.assert_allclose(got[:, :3], want, atol=1e-5)


def test_the_iterate_is_selected_by_other_images_than_those_of_the_test():
    found = {
        "select": np.array([3.0, 5.0, 2.0, 2.0, 4.0]),
        "test": np.array([9.0, 1.0, 7.0, 6.0, 0.0]),
    }
    best = bilevel_cleaning.best_so_far(found)
    np.testing.assert_array_equal(best, [9, 9, 7, 6, 6])
