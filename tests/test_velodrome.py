"""Fixed tasks of others: their definitions, their published curves, scores against these."""

import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx
from benchmarks.experiments import optim_velodrome
from benchmarks.velodrome import baselines, scores
from benchmarks.velodrome.tasks import (
    TASKS,
    FixedTask,
    images,
    normalised,
    problem,
    resized,
)
from benchmarks.velodrome.training import Contender, Length, order, runner

TFDS = os.environ.get("TFDS_DATA_DIR")

NUM_PARAMS = {
    "ImageMLP_Mnist_128x128x128_Relu": 134_794,
    "ImageMLP_FashionMnist_Relu128x128": 118_282,
    "ImageMLP_FashionMnist8_Relu32": 2_410,
    "ImageMLP_Cifar10_8_Relu32": 6_506,
    "ImageMLP_Cifar10_128x128x128_Relu": 427_658,
    "ImageMLP_Cifar10_128x128x128_Tanh_bs64": 427_658,
    "ImageMLP_Cifar10_128x128x128_Tanh_bs128": 427_658,
    "ImageMLP_Cifar10_128x128x128_Tanh_bs256": 427_658,
    "ImageMLP_Cifar10_128x128x128_Relu_MSE": 427_658,
    "ImageMLP_Cifar10_128x128x128_LayerNorm_Relu": 428_426,
    "ImageMLP_Cifar10_128x128x128_LayerNorm_Tanh": 428_426,
    "ImageMLP_Cifar10_128x128x128_BatchNorm_Relu": 428_426,
    "ImageMLP_Cifar10_128x128x128_BatchNorm_Tanh": 428_426,
    "ImageMLP_Cifar10_256x256_Relu": 855_050,
    "ImageMLP_Cifar10_1024x1024_Relu": 4_206_602,
    "ImageMLP_Cifar10_4096x4096_Relu": 29_409_290,
    "ImageMLP_Cifar10_8192x8192_Relu": 92_373_002,
    "ImageMLPAE_Mnist_128x32x128_bs128": 209_968,
    "ImageMLPAE_FashionMnist_128x32x128_bs128": 209_968,
    "ImageMLPAE_Cifar10_32x32x32_bs128": 201_824,
    "ImageMLPAE_Cifar10_128x32x128_bs256": 797_984,
    "ImageMLPAE_Cifar10_256x256x256_bs128": 1_707_776,
    "ImageMLPAE_Cifar10_256x256x256_bs1024": 1_707_776,
    "Conv_Cifar10_16_32x64x64": 56_970,
    "Conv_Cifar10_32x64x64": 56_970,
    "Conv_Cifar10_32x64x64_Tanh": 56_970,
    "Conv_Cifar10_32x64x64_layernorm": 57_290,
    "Conv_Cifar10_32x64x64_batchnorm": 57_290,
    "Conv_Cifar10_8_16x32": 5_418,
}


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_as_many_parameters_as_published(name):
    init = problem(TASKS[name]).init
    params, _ = jax.eval_shape(init, jax.random.key(0), ())
    assert sum(x.size for x in jax.tree.leaves(params)) == NUM_PARAMS[name]


def test_every_published_curve_is_of_a_task_of_that_name():
    curves = scores.published()
    assert len(curves) == 28
    assert curves.keys() == NUM_PARAMS.keys() - {"Conv_Cifar10_8_16x32"}
    for name, curve in curves.items():
        assert curve.shape == (512,), name
        assert (np.diff(curve) <= 0).all(), name


def random_batch(task, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.random((task.batch, *task.shape), np.float32)
    label = rng.integers(10, size=task.batch)
    return {"image": jnp.asarray(image), "label": jnp.asarray(label)}


def mean_loss(task, params, batch):
    loss, _ = problem(task).test(jax.random.key(0), params, (), batch)
    return float(loss)


def zero_params(task):
    params, _ = problem(task).init(jax.random.key(0), ())
    return jax.tree.map(jnp.zeros_like, params)


def test_losses_of_outputs_that_are_zero():
    for name in ("ImageMLP_FashionMnist8_Relu32", "Conv_Cifar10_8_16x32"):
        task = TASKS[name]
        loss = mean_loss(task, zero_params(task), random_batch(task))
        np.testing.assert_allclose(loss, math.log(10), rtol=1e-6)

    squared = FixedTask("digits", 8, (4,), loss="squared")
    loss = mean_loss(squared, zero_params(squared), random_batch(squared))
    np.testing.assert_allclose(loss, 0.1, rtol=1e-6)  # one of ten, one from zero

    pixels = FixedTask("digits", 8, (4,), "autoencoder")
    batch = random_batch(pixels)
    loss = mean_loss(pixels, zero_params(pixels), batch)
    np.testing.assert_allclose(loss, ((batch["image"] - 0.5) ** 2).mean(), rtol=1e-6)


def test_weights_are_normal_truncated_at_two_and_not_corrected_for_that():
    task = FixedTask("digits", 8, (2000,), norm="layer")
    [hidden, last], _ = problem(task).init(jax.random.key(0), ())
    np.testing.assert_allclose(hidden["w"].std(), 0.87963 / 8, rtol=5e-3)
    assert 0.99 * 2 / 8 < abs(hidden["w"]).max() <= 2 / 8
    np.testing.assert_allclose(last["w"].std(), 0.87963 / 2000**0.5, rtol=2e-2)
    np.testing.assert_array_equal(hidden["b"], 0)
    np.testing.assert_array_equal(hidden["scale"], 1)
    np.testing.assert_array_equal(hidden["offset"], 0)
    assert last.keys() == {"w", "b"}

    [kernel, _], _ = problem(FixedTask("cifar10", 8, (500,), "convolutional")).init(
        jax.random.key(0), ()
    )
    assert kernel["w"].shape == (3, 3, 3, 500)
    np.testing.assert_allclose(kernel["w"].std(), 0.87963 / 27**0.5, rtol=2e-2)


def numpy_norm(x, axes):
    variance = x.var(axes, keepdims=True)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(variance + 1e-5)


def random_params(task):
    """Of a size that no norm or bias is without effect."""
    params, _ = problem(task).init(jax.random.key(0), ())
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    return tree.unflatten([x + 0.3 * rng.normal(size=x.shape) for x in leaves])


def logits(task, params, image):
    return problem(task).predict(jax.random.key(0), params, (), image)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize(("norm", "axes"), [("layer", 1), ("batch", 0)])
def test_a_perceptron_normalises_before_the_activation(norm, axes, activation):
    task = FixedTask("digits", 8, (5,), activation=activation, norm=norm, batch=6)
    params = random_params(task)
    image = random_batch(task)["image"]
    first, last = jax.tree.map(np.asarray, params)
    x = np.asarray(image).reshape(6, 64) @ first["w"] + first["b"]
    x = numpy_norm(x, axes) * first["scale"] + first["offset"]
    x = np.tanh(x) if activation == "tanh" else x.clip(0)
    expected = x @ last["w"] + last["b"]
    np.testing.assert_allclose(logits(task, params, image), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("norm", "axes"), [(None, None), ("layer", 3), ("batch", (0, 1, 2))]
)
def test_convolutions_normalise_after_the_activation(norm, axes):
    task = FixedTask("cifar10", 4, (5, 3), "convolutional", norm=norm, batch=6)
    params = random_params(task)
    image = random_batch(task)["image"]
    *layers, last = params
    x = image
    for layer, stride in zip(layers, (2, 1), strict=True):
        x = jax.lax.conv_general_dilated(
            x,
            layer["w"],
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = np.asarray(x + layer["b"]).clip(0)
        if norm is not None:
            x = numpy_norm(x, axes) * layer["scale"] + layer["offset"]
    assert x.shape == (6, 2, 2, 3)
    expected = x.mean((1, 2)) @ last["w"] + last["b"]
    np.testing.assert_allclose(logits(task, params, image), expected, atol=1e-4)


def test_images_are_resized_without_antialiasing():
    squares = np.arange(7, dtype=np.uint8) ** 2
    rows = np.broadcast_to(squares[:, None, None], (7, 7, 1))[None]
    np.testing.assert_allclose(resized(rows, 2)[0, :, 0, 0], [1.75, 22.75])
    columns = rows.swapaxes(1, 2)
    np.testing.assert_allclose(resized(columns, 2)[0, 0, :, 0], [1.75, 22.75])

    rng = np.random.default_rng(0)
    image = rng.integers(256, size=(3, 32, 32, 3)).astype(np.uint8)
    middle = image.reshape(3, 8, 4, 8, 4, 3)[:, :, 1:3, :, 1:3].mean((2, 4))
    np.testing.assert_allclose(resized(image, 8), middle, rtol=1e-6)
    larger = resized(rows, 14)  # beyond the outermost centres, the border
    assert larger[0, 0, 0, 0] == 0
    assert larger[0, -1, 0, 0] == 36


def test_the_last_fifth_of_the_images_is_never_trained_on():
    digits = mx.data.load("digits")
    data = images(FixedTask("digits", 8, (4,)))
    assert len(data["label"]) == 957
    np.testing.assert_array_equal(data["image"], digits["image"][:957])

    grey = images(FixedTask("digits", 4, (4,), grey=True))["image"]
    assert grey.shape == (957, 4, 4, 1)
    assert 0 <= grey.min() < 0.1
    assert 0.9 < grey.max() <= 1


# Means and deviations over initialisations, of the losses of five batches before training, in
# another program (NumPy).
STARTS = {
    "ImageMLP_Mnist_128x128x128_Relu": (2.304, 0.005),
    "ImageMLP_FashionMnist_Relu128x128": (2.312, 0.015),
    "ImageMLP_FashionMnist8_Relu32": (2.336, 0.032),
    "ImageMLP_Cifar10_8_Relu32": (2.336, 0.027),
    "ImageMLP_Cifar10_128x128x128_Relu": (2.308, 0.007),
    "ImageMLP_Cifar10_128x128x128_Tanh_bs64": (2.323, 0.018),
    "ImageMLP_Cifar10_128x128x128_Relu_MSE": (0.1132, 0.0076),
    "ImageMLP_Cifar10_128x128x128_LayerNorm_Relu": (2.457, 0.068),
    "ImageMLP_Cifar10_128x128x128_LayerNorm_Tanh": (2.448, 0.052),
    "ImageMLP_Cifar10_128x128x128_BatchNorm_Relu": (2.471, 0.043),
    "ImageMLP_Cifar10_128x128x128_BatchNorm_Tanh": (2.437, 0.058),
    "ImageMLP_Cifar10_256x256_Relu": (2.317, 0.009),
    "ImageMLPAE_Mnist_128x32x128_bs128": (0.2318, 0.0005),
    "ImageMLPAE_FashionMnist_128x32x128_bs128": (0.1701, 0.0012),
    "ImageMLPAE_Cifar10_32x32x32_bs128": (0.0637, 0.0014),
    "Conv_Cifar10_16_32x64x64": (2.304, 0.004),
    "Conv_Cifar10_32x64x64_Tanh": (2.312, 0.008),
    "Conv_Cifar10_32x64x64_layernorm": (2.486, 0.105),
    "Conv_Cifar10_32x64x64_batchnorm": (2.345, 0.020),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STARTS)
def test_losses_before_training(name):
    """Against another program, and the start of the published curve: of 60 means the lowest."""
    task = TASKS[name]
    if TFDS is None or not (Path(TFDS) / task.data).is_dir():
        pytest.skip(f"{task.data} is not prepared: set TFDS_DATA_DIR to where it is")
    data = jax.tree.map(jnp.asarray, images(task))
    posed = problem(task)
    drawn = mx.tasks.minibatches(task.batch)

    @jax.jit
    def start(key, batch):
        params, _ = posed.init(key, ())
        losses = [posed.test(key, params, (), x)[0] for x in batch]
        return jnp.stack(losses).mean()

    losses = []
    for key in jax.random.split(jax.random.key(0), 12):
        keys = jax.random.split(key, 2)
        batch = [drawn.train(k, data, ()) for k in keys]
        losses.append(float(start(key, batch)))
    mean = np.mean(losses)
    expected, deviation = STARTS[name]
    assert abs(mean - expected) < 3 * deviation * (1 / 12 + 1 / 25) ** 0.5 + 5e-4

    lowest = expected - 2.32 * deviation / 5**0.5
    there = scores.published()[name][0]
    assert abs(there - lowest) < 2.5 * deviation / 5**0.5


# Scores.


def line():
    """A curve that falls from 1 to 0, as many steps apart as the published ones."""
    return np.linspace(1, 0, 512)


def test_steps_to_a_loss():
    curve = line()
    np.testing.assert_allclose(scores.steps_to(curve, 0.25), 75_000)
    assert scores.steps_to(curve, 1.0) == 0
    assert scores.steps_to(curve, 2.0) == 0
    assert scores.steps_to(curve, math.nan) == 0
    assert scores.steps_to(curve, math.inf) == 0
    assert scores.steps_to(curve, -0.1) == 100_000
    np.testing.assert_allclose(scores.speed_up(curve, 0.25, 2000), 37.5)

    flat = np.where(np.arange(512) < 100, 1.0, np.where(np.arange(512) < 200, 0.5, 0.1))
    first = scores.steps()[100]
    assert scores.steps_to(flat, 0.5) == first  # and not the end of the plateau
    before = scores.steps()[99]
    assert before < scores.steps_to(flat, 0.75) < first


def test_speed_ups_that_were_computed_by_others():
    curve = scores.published()["ImageMLP_FashionMnist8_Relu32"]
    np.testing.assert_allclose(scores.steps_to(curve, 0.448), 4876, rtol=2e-3)
    for loss, speed_up in ((0.486, 1.14), (0.498, 0.98), (0.448, 2.4)):
        found = scores.speed_up(curve, loss, 2000)
        np.testing.assert_allclose(found, speed_up, rtol=0.02)


@pytest.mark.parametrize(
    ("name", "losses"),
    [
        ("ImageMLP_FashionMnist8_Relu32", (2.3071, 0.4954, 0.4184, 0.3677)),
        ("ImageMLPAE_Mnist_128x32x128_bs128", (0.23121, 0.01113, 6.725e-3, 4.948e-3)),
        ("Conv_Cifar10_32x64x64_batchnorm", (2.3102, 0.7627, 0.1437, 7.322e-4)),
    ],
)
def test_the_published_curves_are_read_at_their_steps(name, losses):
    curve = scores.published()[name]
    at = [0, 2000, 10_000, 100_000]
    np.testing.assert_allclose(np.interp(at, scores.steps(), curve), losses, rtol=1e-3)


def test_relative_losses():
    assert scores.relative(0.5, 1.0) == 2
    assert scores.relative(math.nan, 1.0) == 0
    assert scores.relative(math.inf, 1.0) == 0


def test_the_moving_average_begins_at_the_first_loss_and_is_late():
    step = np.array([1.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(scores.smoothed(step), 0.95 ** np.arange(4))
    falling = np.stack([-10.0 * np.arange(400), np.zeros(400)])
    smoothed = scores.smoothed(falling)
    np.testing.assert_allclose(smoothed[0, -1] - falling[0, -1], 190, rtol=1e-6)
    np.testing.assert_array_equal(smoothed[1], 0)


def test_the_envelope_is_the_best_so_far_of_what_is_a_number():
    curves = np.array([[3.0, 1.0, 2.0], [2.0, np.nan, np.nan], [4.0, 4.0, 0.5]])
    np.testing.assert_array_equal(scores.envelope(curves), [2, 1, 0.5])


def test_the_interquartile_mean():
    assert scores.iqm(np.array([[100.0, 1.0], [2.0, -50.0]])) == 1.5
    assert scores.iqm(np.arange(7.0)) == 3  # one of each end: 7 / 4 is rounded down
    assert scores.iqm(np.array([1.0, 2.0, 6.0])) == 3


def test_the_interval_is_over_seeds_alone():
    tasks_apart = np.repeat(np.array([[1.0], [2.0], [30.0]]), 5, 1)
    assert scores.interval(tasks_apart) == (8, 8)  # of 1, 1, five times 2, 30, 30

    # Of one task and two seeds, a mean of two draws: 0, 1/2 or 1, an end in a quarter of cases.
    assert scores.interval(np.array([[0.0, 1.0]])) == (0, 1)

    rng = np.random.default_rng(1)
    noise = rng.normal(size=(1, 2000))
    low, high = scores.interval(noise)
    np.testing.assert_allclose(high - low, 2 * 1.96 * 1.09 / 2000**0.5, rtol=0.15)


def test_normalised_losses():
    losses = np.array([0.5, 100.0, np.inf, np.nan])
    cap = 1.5 * math.log(10)
    task = TASKS["ImageMLP_Mnist_128x128x128_Relu"]
    np.testing.assert_allclose(normalised(task, losses), [0.5, cap, cap, cap])
    task = TASKS["Conv_Cifar10_32x64x64"]
    np.testing.assert_allclose(normalised(task, losses), [0.5, cap, cap, np.nan])
    task = TASKS["ImageMLP_Cifar10_128x128x128_Relu_MSE"]
    np.testing.assert_allclose(normalised(task, losses), [5, 10, 10, 10])
    task = TASKS["ImageMLPAE_Mnist_128x32x128_bs128"]
    np.testing.assert_allclose(normalised(task, losses), [0.5, 1, 1, np.nan])


# Runs.


def test_a_run_is_that_of_a_loop_and_is_measured_before_and_after():
    bowl = mx.problems.stateless(
        init=lambda key, task: jnp.ones(2),
        loss=lambda key, x, batch: (jnp.sum(x**2), {}),
    )
    data = {"image": jnp.zeros((7, 1)), "label": jnp.zeros(7, int)}
    sgd = Contender(lambda rate, num_steps: optax.sgd(rate))
    run = runner(bowl, 2, sgd, Length(steps=6, every=2, batches=3, last=4))
    expected = 2 * 0.8 ** (2 * np.array([0, 2, 4, 6]))
    losses = run(jax.random.key(0), 0.1, data)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)

    halved = sgd._replace(judged=lambda state, params: params / 2)
    run = runner(bowl, 2, halved, Length(steps=6, every=2, batches=3, last=4))
    np.testing.assert_allclose(
        run(jax.random.key(0), 0.1, data), expected / 4, rtol=1e-5
    )


def test_batches_go_through_permutations():
    index = np.asarray(order(jax.random.key(0), num_images=7, batch=3, count=5))
    assert index.shape == (5, 3)
    first, second, third = index[:2].ravel(), index[2:4].ravel(), index[4]
    for epoch in (first, second, third):
        assert len(set(epoch)) == len(epoch)
        assert set(epoch) <= set(range(7))
    assert (first != second).any()


def test_nothing_is_measured_on_what_was_trained_on_in_this_epoch():
    table = mx.problems.stateless(
        init=lambda key, task: jnp.zeros(12),
        loss=lambda key, x, batch: (jnp.mean(x[batch["label"]]), {}),
    )
    data = {"image": jnp.zeros((12, 1)), "label": jnp.arange(12)}
    sgd = Contender(lambda rate, num_steps: optax.sgd(rate))
    # An epoch of six batches: measured, trained, trained, and again; the last is of another.
    run = runner(table, 2, sgd, Length(steps=4, every=2, batches=1, last=1))
    losses = run(jax.random.key(0), 1.0, data)
    np.testing.assert_allclose(losses[:2], 0)
    assert losses[2] < 0


def test_matrices_of_muon_are_a_column_an_output():
    params = {
        "kernel": jnp.ones((3, 3, 2, 5)),
        "w": jnp.ones((4, 5)),
        "b": jnp.ones(5),
    }
    axes = baselines._as_matrices(params)
    assert axes["b"] is None
    assert axes["w"] == ((0,), (1,))
    assert axes["kernel"] == ((0, 1, 2), (3,))
    tx = baselines._muon(0.1, 10)
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["kernel"].shape == (3, 3, 2, 5)


def test_schedule_free_is_measured_at_its_averages():
    contender = baselines.BASELINES["schedule-free AdamW"]
    tx = contender.make(0.1, 10)
    params = jnp.ones(3)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    y = np.asarray(params)
    z = np.asarray(state.z)
    x = (y - 0.1 * z) / 0.9  # since y lies between them
    np.testing.assert_allclose(contender.judged(state, params), x, rtol=1e-5)
    assert abs(x - y).max() > 1e-3


# The experiment.

SETTINGS = {
    "tasks": ["ImageMLP_FashionMnist8_Relu32", "ImageMLP_Cifar10_8_Relu32"],
    "steps": 2000,
    "rates": {"Adam": [0.1, 0.2, 0.3]},
}


@pytest.fixture
def lines(monkeypatch):
    """Straight lines for published curves."""
    curves = dict.fromkeys(SETTINGS["tasks"], line())
    monkeypatch.setattr(scores, "published", lambda: curves)


def made_up(speed_up):
    """A result in which everyone needs as many times fewer steps than the lines."""
    end = 1 - 2000 * speed_up / 100_000
    result = {}
    for task in SETTINGS["tasks"]:
        for name in optim_velodrome.names(SETTINGS):
            result[f"{task}, {name}"] = np.array([1, end])
        result[f"{task}: smoothed Adam"] = np.stack([line()[:11]] * 3)
    return result


def test_speed_ups_and_divergence_of_results(lines):
    results = [made_up(1.5), made_up(3)]
    found = optim_velodrome.speed_ups(results, "Celo", SETTINGS)
    np.testing.assert_allclose(found, [[1.5, 3], [1.5, 3]])
    relative = optim_velodrome.relative_losses(results, "Celo", SETTINGS)
    np.testing.assert_allclose(relative, 1)
    assert not optim_velodrome._diverged(results, "Celo", SETTINGS).any()

    task = SETTINGS["tasks"][0]
    results[0][f"{task}, Celo"] = np.array([2.3, np.nan])
    results[1][f"{task}, Celo"] = np.array([2.3, 2.4])
    diverged = optim_velodrome._diverged(results, "Celo", SETTINGS)
    np.testing.assert_array_equal(diverged, [[True, True], [False, False]])
    found = optim_velodrome.speed_ups(results, "Celo", SETTINGS)
    np.testing.assert_array_equal(found[0], 0)
    verdicts = {one.claim: one for one in optim_velodrome.claims(results, SETTINGS)}
    share = verdicts["Celo: share of runs that end above their start is 0"]
    assert (share.measured, share.holds) == (0.5, False)
    lowest = [one for text, one in verdicts.items() if "lowest of all" in text]
    assert lowest[0].measured == 1


def test_the_rate_for_all_tasks_is_that_of_the_best_mean(lines):
    steps = [[1000, 4000, 3000], [4000, 500, 3000]]  # to the end of each rate
    searched = {}
    for task, of_rates in zip(SETTINGS["tasks"], steps, strict=True):
        final = 1 - np.array(of_rates) / 100_000
        searched[task, "Adam"] = np.stack([np.ones(3), final], 1)
    assert optim_velodrome._rate_for_all(searched, "Adam", SETTINGS) == 0.3


def test_what_is_not_a_number_is_never_the_lowest():
    assert optim_velodrome._lowest(np.array([np.nan, 3.0, 2.0, np.inf])) == 2
