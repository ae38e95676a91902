"""Pictures show what they were given."""

import jax
import numpy as np
import optax
import pytest

import metajax as mx


def test_curves_show_means_and_bands():
    losses = np.random.default_rng(0).random((6, 20)) + 1
    ax = mx.plot.curves({"a": losses, "b": losses[0]}, log=False)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), losses.mean(0))
    np.testing.assert_allclose(ax.lines[1].get_ydata(), losses[0])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    error = losses.std(0, ddof=1) / 6**0.5
    np.testing.assert_allclose(
        [band.min(), band.max()],
        [(losses.mean(0) - 2 * error).min(), (losses.mean(0) + 2 * error).max()],
    )


def test_a_band_of_what_is_never_negative_ends_at_0():
    hits = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, np.nan]])
    for values, lowest in ((hits, 0.0), (-hits, None)):
        ax = mx.plot.curves({"accuracy": values}, log=False)
        band = ax.collections[0].get_paths()[0].vertices[:, 1]
        mean, error = values[:, 0].mean(), values[:, 0].std(ddof=1) / 3**0.5
        np.testing.assert_allclose(
            np.nanmin(band), mean - 2 * error if lowest is None else lowest, atol=1e-12
        )


def test_the_update_rule_of_momentum():
    ax = mx.plot.update_rule(
        optax.sgd(0.1, momentum=0.5), largest=2.0, past=[0.0, 1.0], steps=3
    )
    g = np.linspace(-2, 2, 201)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), -0.1 * g, atol=1e-6)
    trace = 1 + 0.5 + 0.25
    np.testing.assert_allclose(
        ax.lines[1].get_ydata(), -0.1 * (g + 0.5 * trace), atol=1e-6
    )


def test_estimators_are_bars_of_their_figures():
    row = mx.Diagnosis(0.1, 0.02, 1.0, 1.0, 0.9, 1.0, 320.0, 0.1, 1.0, 10)
    axes = mx.plot.estimators(
        {"a": row, "b": row._replace(bias=0.5, snr=0.04, cosine=0.2, inner_steps=40.0)}
    )
    widths = [[bar.get_width() for bar in ax.patches] for ax in axes]
    np.testing.assert_allclose(widths, [[0.1, 0.5], [1, 5], [0.9, 0.2], [320, 40]])
    assert [ax.get_xscale() for ax in axes] == ["linear", "log", "linear", "log"]
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["a", "b"]
    without = mx.plot.estimators(
        {"a": row._replace(snr=float("inf"), inner_steps=float("nan"))}
    )
    assert {ax.get_xscale() for ax in without} == {"linear"}


def test_state_maps_have_an_image_for_each_output():
    states = np.random.default_rng(0).normal(size=(12, 5))
    ax = mx.plot.state_map(states, (4, 3))
    for b, image in enumerate(ax.images):
        np.testing.assert_array_equal(image.get_array(), states[:, b].reshape(4, 3))
        assert image.get_clim() == (-np.abs(states).max(), np.abs(states).max())
    assert len(ax.images) == 5
    with pytest.raises(ValueError, match=r"states must be \[16, B\]"):
        mx.plot.state_map(states, (4, 4))


def test_messages_and_labels():
    values = np.random.default_rng(0).normal(size=(7, 3))
    ax = mx.plot.messages(values, labels=[0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(ax.images[0].get_array(), values.T)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0, 1, 2, 0, 1, 2, 0])
    with pytest.raises(ValueError, match="values must be"):
        mx.plot.messages(values[0])


def test_scaling_has_the_measured_ticks():
    ax = mx.plot.scaling([1, 8, 64], {"a": [1.0, 2.0, 3.0]})
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1, 2, 3])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "8", "64"]


def test_every_picture_can_be_saved_small(tmp_path):
    opt = mx.optim.lstm(hidden=(4,))
    ax = mx.plot.update_rule(opt.tx(opt.init(jax.random.key(0))), steps=2)
    ax.figure.savefig(tmp_path / "a.png", dpi=50)
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_an_accuracy_has_no_band_above_one():
    accuracy = np.ones((20, 10))
    accuracy[0] = 0
    ax = mx.plot.curves({"ours": accuracy}, log=False, ylabel="accuracy")
    [band] = ax.collections
    assert band.get_paths()[0].vertices[:, 1].max() <= 1


SIZES = {"width": 8, "depth": 1, "heads": 2, "head_size": 4}
IN_CONTEXT = {
    "gpicl": mx.gpicl(64, 3, context=18, **SIZES),
    "delta_rule": mx.delta_rule(64, 3, **SIZES),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_CONTEXT)
def test_learners_in_activations_have_curves_and_episodes(name, key):
    learner = IN_CONTEXT[name]
    meta_params = learner.meta(key)
    tasks = mx.tasks.episodes(3, shots=2, queries=1)
    data = mx.data.few_shot("digits", "train")
    loop = mx.inner(learner, tasks, horizon=3)

    found = mx.evaluate(loop, key, meta_params, data, num_tasks=2)
    accuracy = np.asarray(found.metrics["accuracy"])
    ax = mx.plot.curves({name: accuracy}, log=False)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), accuracy.mean(0))

    state = jax.jit(loop.init)(key, meta_params, data)
    support = tasks.train(key, data, state.task)
    query = tasks.test(key, data, state.task)
    adapted, _, _ = jax.jit(learner.step)(key, meta_params, state.learner, support)
    logits = jax.jit(learner.predict)(key, meta_params, adapted, query["image"])
    predicted = logits.argmax(-1)
    ax = mx.plot.episode(support, query, predicted)
    assert ax.get_title() == f"{(predicted == query['label']).sum()} of 3 right"
