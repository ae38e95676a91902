"""Streams of classification and their augmentations, against their definitions in NumPy."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax as mx

KEY = jax.random.key(0)
COUNTS = [3, 7, 1, 5]  # examples of each class


def unequal_classes():
    """Each image is the number of its example, each label spread over the set: sorting is
    needed.
    """
    label = np.random.default_rng(0).permutation(np.repeat([2, 3, 5, 9], COUNTS))
    return {
        "image": np.arange(16, dtype=np.float32)[:, None],
        "label": label.astype(np.int32),
    }


@pytest.mark.slow
def test_draws_are_uniform_over_the_examples_of_the_classes():
    raw = unequal_classes()
    data = mx.data.by_class(raw)
    tasks = mx.tasks.classification(3, batch_size=20_000, test_size=10)
    for seed in range(4):
        task = tasks.sample(jax.random.key(seed), data)
        batch = jax.tree.map(np.asarray, tasks.train(KEY, data, task))
        classes = np.array([2, 3, 5, 9])[task["classes"]]
        members = np.flatnonzero(np.isin(raw["label"], classes))
        drawn, count = np.unique(batch["image"][:, 0].astype(int), return_counts=True)
        np.testing.assert_array_equal(drawn, members)
        expected = 20_000 / len(members)
        assert (np.abs(count - expected) < 5 * expected**0.5).all()
        np.testing.assert_array_equal(
            classes[batch["label"]], raw["label"][batch["image"][:, 0].astype(int)]
        )
        assert batch["label"].dtype == np.int32
        assert tasks.test(KEY, data, task)["image"].shape == (10, 1)


def test_tasks_are_ordered_subsets_all_equally_likely():
    data = mx.data.by_class(unequal_classes())
    sample = jax.vmap(
        lambda key: mx.tasks.classification(2).sample(key, data)["classes"]
    )
    drawn = [
        tuple(c) for c in np.asarray(sample(jax.random.split(KEY, 12_000))).tolist()
    ]
    counts = {
        order: drawn.count(order) for order in itertools.permutations(range(4), 2)
    }
    assert sum(counts.values()) == len(drawn)
    assert all(abs(count - 1000) < 5 * 1000**0.5 for count in counts.values())


def test_a_draw_costs_the_same_however_large_the_data():
    tasks = mx.tasks.unit_spread(mx.tasks.classification(3, batch_size=2, test_size=4))

    def shapes(size):
        data = {
            "image": jnp.zeros((size, 5)),
            "label": jnp.zeros(size, int),
            "start": jnp.arange(11) * size // 10,
        }
        program = jax.make_jaxpr(
            lambda key, data: tasks.train(key, data, tasks.sample(key, data))
        )(KEY, data)
        return [
            x.aval.shape
            for jaxpr in _all(program.jaxpr)
            for eqn in jaxpr.eqns
            for x in eqn.outvars
        ]

    assert (2, 5) in shapes(1000)
    assert shapes(1000) == shapes(100_000)


def _all(jaxpr):
    yield jaxpr
    for eqn in jaxpr.eqns:
        for sub in jax.tree.leaves(
            eqn.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")
        ):
            inside = getattr(sub, "jaxpr", sub)
            if hasattr(inside, "eqns"):
                yield from _all(inside)


def test_uint8_becomes_floats_up_to_one():
    data = mx.data.by_class(
        {"image": np.full((4, 2), 255, np.uint8), "label": np.arange(4)}
    )
    tasks = mx.tasks.classification(2)
    image = tasks.train(KEY, data, tasks.sample(KEY, data))["image"]
    assert image.dtype == jnp.float32
    np.testing.assert_array_equal(image, 1.0)


@pytest.mark.slow
def test_prototypes():
    tasks = mx.tasks.prototypes(3, (4,), noise=0.5, test_size=30_000)
    task = tasks.sample(KEY, ())
    batch = tasks.test(KEY, (), task)
    for k in range(3):
        of_class = np.asarray(batch["image"][batch["label"] == k])
        assert abs(len(of_class) - 10_000) < 500
        np.testing.assert_allclose(of_class.mean(0), task["prototype"][k], atol=0.03)
        np.testing.assert_allclose(of_class.std(0), 0.5, atol=0.02)


def test_random_images_are_a_fixed_set():
    tasks = mx.tasks.random_images((2, 2), num_images=6, test_size=200)
    task = tasks.sample(KEY, ())
    batch = jax.tree.map(np.asarray, tasks.test(KEY, (), task))
    found = (batch["image"][:, None] == np.asarray(task["image"])).all((2, 3))
    np.testing.assert_array_equal(found.sum(1), 1)
    assert found.any(0).all(), "all are drawn"
    np.testing.assert_array_equal(
        batch["label"], np.asarray(task["label"])[found.argmax(1)]
    )
    assert set(np.asarray(tasks.sample(jax.random.key(1), ())["label"])) <= set(
        range(10)
    )


def test_sum_sign():
    batch = jax.tree.map(
        np.asarray, mx.tasks.sum_sign((40, 40), test_size=500).test(KEY, (), ())
    )
    np.testing.assert_array_equal(batch["label"], batch["image"].sum((1, 2)) >= 0)
    means = batch["image"].mean((1, 2))
    assert np.abs(means).max() < 1.1
    np.testing.assert_allclose(
        np.percentile(means, [25, 50, 75]), [-0.5, 0, 0.5], atol=0.15
    )  # uniform in [-1, 1]
    around = batch["image"] - means[:, None, None]
    np.testing.assert_allclose(
        around.std(), 0.880, atol=0.005
    )  # of a normal cut at two deviations
    assert np.abs(around).max() < 2.1


BASE = mx.tasks.prototypes(4, (2, 3), batch_size=5, test_size=64)


def pairs(make, keys=2):
    """Train and test batches of several tasks, with the ones of the base they were made from."""
    tasks = make(BASE)
    for seed in range(keys):
        task = tasks.sample(jax.random.key(seed), ())
        yield task.own, tasks.train(KEY, (), task), BASE.train(KEY, (), task.task)
        yield task.own, tasks.test(KEY, (), task), BASE.test(KEY, (), task.task)


def test_flatten():
    for _, new, old in pairs(mx.tasks.flatten):
        np.testing.assert_array_equal(new["image"], old["image"].reshape(-1, 6))
        np.testing.assert_array_equal(new["label"], old["label"])


@pytest.mark.slow
def test_project():
    for w, new, old in pairs(lambda tasks: mx.tasks.project(tasks, 7)):
        assert w.shape == (6, 7)
        assert 0.8 < float(jnp.abs(w).max()) / (6 / 12) ** 0.5 <= 1
        want = np.asarray(old["image"], np.float64).reshape(-1, 6) @ np.asarray(
            w, np.float64
        )
        np.testing.assert_allclose(new["image"], want, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(new["label"], old["label"])


def test_a_projection_keeps_the_mean_square():
    tasks = mx.tasks.project(mx.tasks.sum_sign((20, 20), test_size=100), 2000)
    task = tasks.sample(KEY, ())
    old = mx.tasks.sum_sign((20, 20), test_size=100).test(KEY, (), task.task)["image"]
    new = tasks.test(KEY, (), task)["image"]
    assert abs(float((new**2).mean() / (old**2).mean()) - 1) < 0.05


def test_permute_pixels():
    for order, new, old in pairs(mx.tasks.permute_pixels):
        assert new["image"].shape == old["image"].shape
        assert sorted(order.tolist()) == list(range(6))
        np.testing.assert_array_equal(
            new["image"].reshape(-1, 6),
            np.asarray(old["image"]).reshape(-1, 6)[:, order],
        )


def test_permute_labels():
    for order, new, old in pairs(lambda tasks: mx.tasks.permute_labels(tasks, 10)):
        assert sorted(order.tolist()) == list(range(10))
        np.testing.assert_array_equal(new["label"], [order[k] for k in old["label"]])
        assert new["label"].dtype == old["label"].dtype
        np.testing.assert_array_equal(new["image"], old["image"])
    tasks = mx.tasks.permute_labels(BASE, 2)
    task = tasks.sample(KEY, ())
    old = BASE.test(KEY, (), task.task)
    with pytest.raises(ValueError, match=r"label must be in 0..1, got \[2, 3\]"):
        tasks.test(KEY, (), task)
    traced = jax.jit(tasks.test)(KEY, (), task)
    np.testing.assert_array_equal(traced["label"] == 2, old["label"] >= 2)


def test_standardize():
    mean, std = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 8.0])
    for _, new, old in pairs(lambda tasks: mx.tasks.standardize(tasks, mean, std)):
        np.testing.assert_allclose(
            new["image"], (np.asarray(old["image"]) - mean) / std, rtol=1e-5, atol=1e-6
        )


def test_the_columns_of_a_table_are_standardised_each_by_itself():
    unit, offset = np.array([1e-3, 1, 1e3, 0]), np.array([0, 5, 2e4, 0.1])
    table = np.random.default_rng(0).normal(size=(50, 4)) * unit + offset
    table = table.astype(np.float32)
    data = {"image": table, "label": np.arange(50, dtype=np.int32) % 2}
    tasks = mx.tasks.standardize(mx.tasks.minibatches(20), *mx.data.columns(data))
    image = tasks.train(KEY, data, tasks.sample(KEY, data))["image"]
    exact = table.astype(np.float64)
    every = (exact - exact.mean(0)) / [*exact.std(0)[:3], 1]
    assert image.dtype == jnp.float32
    for row in np.asarray(image):
        assert np.abs(every - row).max(1).min() < 1e-4
    np.testing.assert_allclose(image[:, 3], 0, atol=1e-6)

    pixels = {"image": np.array([[0, 255, 9], [255, 0, 9]], np.uint8)}
    mean, std = mx.data.columns(pixels | {"label": np.zeros(2, np.int32)})
    np.testing.assert_allclose(mean, [0.5, 0.5, 9 / 255])
    np.testing.assert_allclose(std, [0.5, 0.5, 1])


def test_standardized_integers_are_fractions():
    tasks = mx.Tasks(
        lambda key, data: (),
        lambda *_: None,
        lambda *_: {"image": jnp.array([0, 1, 3])},
    )
    tasks = mx.tasks.standardize(tasks, 1.0, 2.0)
    np.testing.assert_array_equal(
        tasks.test(KEY, (), tasks.sample(KEY, ()))["image"], [-0.5, 0.0, 1.0]
    )


def test_unit_spread():
    for (mean, std), new, old in pairs(mx.tasks.unit_spread):
        np.testing.assert_allclose(
            new["image"], (np.asarray(old["image"]) - mean) / std, rtol=1e-5, atol=1e-6
        )
    many = mx.tasks.unit_spread(
        replace(BASE, test=mx.tasks.prototypes(4, (2, 3), test_size=5000).test)
    )
    task = many.sample(KEY, ())
    image = np.asarray(many.test(KEY, (), task)["image"])
    np.testing.assert_allclose([image.mean(), image.std()], [0, 1], atol=0.03)


def test_unit_spread_of_constant_images_is_zero():
    constant = replace(
        BASE,
        test=lambda key, data, task: {
            "image": jnp.ones((4, 2)),
            "label": jnp.zeros(4, int),
        },
    )
    tasks = mx.tasks.unit_spread(constant)
    np.testing.assert_array_equal(
        tasks.test(KEY, (), tasks.sample(KEY, ()))["image"], 0.0
    )


def test_ragged_tasks_have_each_number_of_examples_as_often():
    tasks = mx.tasks.ragged(mx.tasks.sinusoids(shots=6), fewest=3)
    drawn = jax.jit(jax.vmap(lambda key: tasks.sample(key, ())))(
        jax.random.split(KEY, 8000)
    )
    mask = np.asarray(drawn.own)
    count = np.bincount(mask.sum(1), minlength=7)
    assert (count[:3] == 0).all()
    assert (np.abs(count[3:] - 2000) < 5 * (2000 * 0.75) ** 0.5).all()
    # Which they are, has no preference: each is there in 4.5 of 6 tasks.
    there = mask.mean(0)
    assert (np.abs(there - 0.75) < 5 * (0.75 * 0.25 / 8000) ** 0.5).all()
    # And those of one number are all its subsets.
    assert len(np.unique(mask[mask.sum(1) == 3], axis=0)) == 20


def test_ragged_batches_keep_their_mask_and_test_batches_are_whole():
    base = mx.tasks.sinusoids(shots=6, queries=4)
    tasks = mx.tasks.ragged(base, fewest=1)
    task = tasks.sample(KEY, ())
    for seed in range(3):
        batch = tasks.train(jax.random.key(seed), (), task)
        np.testing.assert_array_equal(batch["mask"], task.own)
        np.testing.assert_array_equal(batch["x"], base.train(KEY, (), task.task)["x"])
    assert tasks.test(KEY, (), task).keys() == {"x", "y"}


def test_an_episode_adapts_to_the_examples_that_count(x64):
    problem = mx.problems.regressor(lambda key: jnp.zeros((1, 1)), lambda w, x: x @ w)
    tasks = mx.tasks.ragged(mx.tasks.sinusoids(shots=6), fewest=2)
    loop = mx.inner(mx.maml(problem, 0.01), tasks, 3)
    curves = mx.evaluate(loop, KEY, jnp.ones((1, 1)), num_tasks=8)
    for i in range(8):
        task = jax.tree.map(lambda x, i=i: np.asarray(x[i]), curves.state.task)
        x, y = (task.task["support"][name][task.own, 0] for name in "xy")
        w = 1.0
        for t in range(3):
            np.testing.assert_allclose(
                curves.loss[i, t], np.mean((w * x - y) ** 2), rtol=1e-10
            )
            w -= 0.01 * np.mean(2 * (w * x - y) * x)
        np.testing.assert_allclose(curves.state.learner.params[i, 0, 0], w, rtol=1e-10)
    assert len(set(curves.state.task.own.sum(1).tolist())) > 1


def test_augmentations_compose_and_differ_between_tasks():
    tasks = mx.tasks.permute_labels(
        mx.tasks.unit_spread(mx.tasks.project(mx.tasks.classification(3), 4)), 3
    )
    data = mx.data.by_class(unequal_classes())
    draw = jax.jit(lambda key: tasks.train(KEY, data, tasks.sample(key, data))["image"])
    images = np.stack([draw(key) for key in jax.random.split(KEY, 4)])
    assert images.shape == (4, 1, 4)
    assert len(np.unique(images[:, 0, 0])) == 4


DIGITS = mx.data.load("digits")
CASES = {
    "classification: one class": (
        lambda: mx.tasks.classification(1),
        ValueError,
        "num_classes.*at least 2",
    ),
    "classification: classes a float": (
        lambda: mx.tasks.classification(2.0),
        TypeError,
        "num_classes",
    ),
    "classification: batch of none": (
        lambda: mx.tasks.classification(2, 0),
        ValueError,
        "batch_size",
    ),
    "classification: test batch of none": (
        lambda: mx.tasks.classification(2, 1, 0),
        ValueError,
        "test_size",
    ),
    "classification: data not sorted": (
        lambda: mx.tasks.classification(2).sample(KEY, DIGITS),
        TypeError,
        "by_class",
    ),
    "classification: too few classes": (
        lambda: mx.tasks.classification(11).sample(KEY, mx.data.by_class(DIGITS)),
        ValueError,
        "num_classes is 11, but the data has 10",
    ),
    "classification: data a tuple": (
        lambda: mx.tasks.classification(2).sample(KEY, ()),
        TypeError,
        "data",
    ),
    "prototypes: one class": (
        lambda: mx.tasks.prototypes(1, (3,)),
        ValueError,
        "num_classes",
    ),
    "prototypes: shape an int": (
        lambda: mx.tasks.prototypes(2, 16),
        TypeError,
        "shape must be a tuple",
    ),
    "prototypes: shape empty": (
        lambda: mx.tasks.prototypes(2, ()),
        ValueError,
        "shape",
    ),
    "prototypes: noise negative": (
        lambda: mx.tasks.prototypes(2, (3,), -1.0),
        ValueError,
        "noise",
    ),
    "random_images: no images": (
        lambda: mx.tasks.random_images((3,), 0),
        ValueError,
        "num_images",
    ),
    "random_images: one class": (
        lambda: mx.tasks.random_images((3,), 5, 1),
        ValueError,
        "num_classes",
    ),
    "sum_sign: a side of zero": (
        lambda: mx.tasks.sum_sign((3, 0)),
        ValueError,
        "shape",
    ),
    "augment: no tasks": (lambda: mx.tasks.flatten(None), TypeError, "tasks"),
    "augment: no function": (
        lambda: mx.tasks.augment(BASE, None, None),
        TypeError,
        "sample",
    ),
    "project: size zero": (lambda: mx.tasks.project(BASE, 0), ValueError, "size"),
    "permute_labels: no classes": (
        lambda: mx.tasks.permute_labels(BASE, 0),
        ValueError,
        "num_classes",
    ),
    "ragged: fewest zero": (lambda: mx.tasks.ragged(BASE, 0), ValueError, "fewest"),
    "ragged: fewest above the batch": (
        lambda: mx.tasks.ragged(BASE, 6).sample(KEY, ()),
        ValueError,
        "fewest is 6, but a training batch has 5 examples",
    ),
    "standardize: no spread": (
        lambda: mx.tasks.standardize(BASE, 0.0, 0.0),
        ValueError,
        "std",
    ),
    "standardize: NaN": (
        lambda: mx.tasks.standardize(BASE, float("nan"), 1.0),
        ValueError,
        "mean",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=f"(?s){message}"):
        call()
