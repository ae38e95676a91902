"""What comes with the package loads offline, does what its card says, and says where it ends."""

from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from test_data import needs

import metajax as mx

FOLDER = Path(mx.pretrained.__file__).parent


@pytest.mark.parametrize("name", mx.pretrained.list())
def test_every_set_has_finite_parameters_and_a_card(name):
    assert all(
        np.isfinite(x).all() for x in jax.tree.leaves(mx.pretrained.params(name))
    )
    assert (FOLDER / f"{name}.npz").stat().st_size < 300_000
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        assert file.files
    card = mx.pretrained.card(name)
    assert card.startswith(f"# {name}\n")
    for part in ("**Made by**", "**Figures**", "**Limits.**", "**Licence**"):
        assert part in card, part


def test_no_file_is_without_its_name():
    files = {p.stem for p in FOLDER.iterdir() if p.suffix in (".npz", ".md")}
    assert files == set(mx.pretrained.list())


@pytest.mark.parametrize("name", ["l2l-digits", "l2l-mnist"])
@pytest.mark.slow
def test_the_optimizer_beats_untuned_ones_on_a_network_it_never_saw(name):
    tasks, data = mx.tasks.minibatches(64), mx.data.load("digits", "test")
    optimizers = {
        "ours": mx.pretrained.load(name),
        "SGD": optax.sgd(0.1),
        "Adam": optax.adam(1e-2),
    }
    result = mx.compare(
        optimizers,
        mx.problems.mlp((64, 20, 10)),
        tasks,
        jax.random.key(0),
        data,
        steps=50,
        num_tasks=4,
    )
    final = {name: x.mean() for name, x in result.final.items()}
    assert final["ours"] < 0.5 * min(final["SGD"], final["Adam"])


@pytest.mark.slow
def test_celo2_needs_no_rate_and_beats_adamw_at_the_usual_one():
    tasks, data = mx.tasks.minibatches(64), mx.data.load("digits", "test")
    optimizers = {
        "ours": mx.pretrained.load("celo2-images")(num_steps=200),
        "AdamW": optax.adamw(1e-3),
    }
    result = mx.compare(
        optimizers,
        mx.problems.mlp((64, 32, 32, 10), jax.nn.relu),
        tasks,
        jax.random.key(0),
        data,
        steps=200,
        num_tasks=2,
    )
    assert result.final["ours"].mean() < 0.5 * result.final["AdamW"].mean()


def test_celo2_says_what_it_is_not_given():
    make = mx.pretrained.load("celo2-images")
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        make(0)
    with pytest.raises(ValueError, match="rate must be finite and greater than 0"):
        make(10, rate=0.0)
    with pytest.raises(TypeError, match="is_matrix"):
        make(10, is_matrx=None)


@pytest.mark.slow
def test_the_learning_algorithm_learns_images_it_never_saw():
    net = mx.pretrained.load("vsml-mnist")(64, 10)
    data = mx.data.load("digits", "test")
    image = data["image"].reshape(-1, 64) / np.float32(255)
    data = {"image": (image - image.mean()) / image.std(), "label": data["label"]}
    loop = mx.inner(net, mx.tasks.minibatches(1), horizon=300)
    curves = mx.evaluate(
        loop, jax.random.key(0), net.meta(jax.random.key(1)), data, num_tasks=4
    )
    accuracy = np.asarray(curves.metrics["accuracy"])
    assert accuracy[:, :10].mean() < 0.4
    assert accuracy[:, -100:].mean() > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["delta-rule-mnist", "gpicl-mnist"])
def test_learners_in_activations_learn_images_they_never_saw(name):
    learner = mx.pretrained.load(name)
    digits = mx.data.load("digits", "test")
    shape = (len(digits["label"]), 14, 14, 1)
    image = np.asarray(jax.image.resize(digits["image"] / 255, shape, "linear"))
    digits["image"] = (image - image.mean()) / image.std()
    loop = mx.inner(learner, mx.tasks.minibatches(1), horizon=100)
    meta_params = learner.meta(jax.random.key(1))
    curves = mx.evaluate(loop, jax.random.key(0), meta_params, digits, num_tasks=16)
    accuracy = np.asarray(curves.metrics["accuracy"])
    assert accuracy[:, :5].mean() < 0.4
    assert accuracy[:, -20:].mean() > 0.7


@pytest.mark.parametrize(
    "layers",
    [
        (64, 20, 10),
        (64,),
        (mx.cells.dense(64, 20), mx.cells.dense(20, 10)),
        (mx.cells.convolution((8, 8, 1), 10, kernel=8, stride=4),),
        (),
    ],
)
def test_the_learning_algorithm_refuses_networks_on_which_it_does_not_learn(layers):
    network = mx.pretrained.load("vsml-mnist")
    network(64, 10)
    network(mx.cells.dense(64, 10))
    with pytest.raises(
        ValueError, match="vsml-mnist was meta-trained with one dense l"
    ):
        network(*layers)


def test_the_meta_parameters_of_a_learner_are_those_of_the_set():
    for name, learner in (
        ("delta-rule-mnist", mx.pretrained.load("delta-rule-mnist")),
        ("gpicl-mnist", mx.pretrained.load("gpicl-mnist")),
        ("maml-omniglot", mx.pretrained.load("maml-omniglot")),
        ("vsml-mnist", mx.pretrained.load("vsml-mnist")(64, 10)),
    ):
        meta_params = learner.meta(jax.random.key(0))
        jax.tree.map(
            np.testing.assert_array_equal, meta_params, mx.pretrained.params(name)
        )


@needs("omniglot")
@pytest.mark.slow
def test_the_initialisation_tells_characters_apart_that_it_never_saw():
    learner = mx.pretrained.load("maml-omniglot")
    meta_params = learner.meta(jax.random.key(1))
    loop = mx.inner(learner, mx.tasks.episodes(5, 1), horizon=3)
    data = mx.data.few_shot("omniglot", "test")
    curves = mx.evaluate(loop, jax.random.key(0), meta_params, data, num_tasks=100)
    assert curves.test_metrics["accuracy"].mean() > 0.95


def test_an_unknown_name_is_told_the_known_ones():
    for call in (mx.pretrained.load, mx.pretrained.params, mx.pretrained.card):
        with pytest.raises(ValueError, match="name must be one of celo2-images"):
            call("l2l-everything")
