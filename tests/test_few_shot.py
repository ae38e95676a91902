"""Few-shot data and tasks: episodes, published splits, regression families."""

import collections
import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from test_data import needs

import metajax as mx
from metajax.data import _few_shot as splits
from metajax.tasks._episodes import _draw_distinct

SIZES = [7, 4, 12, 5, 4, 9]  # images of each class; the image itself says which it is
DATA = {
    "image": np.arange(sum(SIZES), dtype=np.float32).reshape(-1, 1, 1, 1),
    "label": np.repeat(np.arange(6, dtype=np.int32), SIZES),
    "start": np.concatenate([[0], np.cumsum(SIZES)]).astype(np.int32),
}


TASKS = mx.tasks.episodes(3, 1, 3)


@partial(jax.jit, static_argnums=0)
def drawn(tasks, keys, data):
    """Support and query sets of many tasks, drawn in one compiled program with the data as an
    argument.
    """

    def one(key):
        task = tasks.sample(key, data)
        return task, tasks.train(key, data, task), tasks.test(key, data, task)

    return jax.vmap(one)(keys)


@pytest.fixture(scope="module")
def many():
    return jax.device_get(drawn(TASKS, jax.random.split(jax.random.key(0), 3000), DATA))


def test_episodes_against_the_definition(many):
    task, support, query = many
    assert jax.tree.map(jnp.shape, task) == {
        "support": (3000, 3, 1),
        "query": (3000, 3, 3),
    }
    assert support["image"].shape == (3000, 3, 1, 1, 1)
    assert query["image"].shape == (3000, 9, 1, 1, 1)
    label_of = {}
    for i in range(200):
        near, far = support["image"][i].ravel(), query["image"][i].ravel()
        assert support["label"][i].tolist() == [0, 1, 2]
        assert query["label"][i].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert len({*near, *far}) == 12, "an image was drawn twice"
        class_of = DATA["label"][near.astype(int)]
        assert len(set(class_of)) == 3, "a class was drawn twice"
        assert (
            DATA["label"][far.astype(int)].tolist() == np.repeat(class_of, 3).tolist()
        )
        for label, c in enumerate(class_of):
            label_of.setdefault(c, set()).add(label)
    assert all(labels == {0, 1, 2} for labels in label_of.values()), (
        "a class must not keep its label"
    )
    assert len(label_of) == 6


def test_each_image_of_a_class_is_as_likely_as_the_next(many):
    for part, shots in zip(many[1:], (1, 3), strict=True):
        count = np.bincount(part["image"].ravel().astype(int), minlength=sum(SIZES))
        expected = 3000 * 3 / 6 * shots / np.repeat(SIZES, SIZES)
        assert (np.abs(count - expected) < 5 * expected**0.5).all()


def test_tasks_follow_their_keys(many):
    again = jax.device_get(
        drawn(TASKS, jax.random.split(jax.random.key(0), 3000), DATA)
    )
    jax.tree.map(np.testing.assert_array_equal, many, again)
    assert len(np.unique(many[0]["query"].reshape(3000, -1), axis=0)) > 2500


@pytest.mark.parametrize(("n", "k"), [(4, 2), (3, 3), (5, 1)])
def test_distinct_draws_every_ordered_choice_equally_often(n, k, key):
    draws = 6000
    rows = jax.vmap(_draw_distinct, (0, None, None))(
        jax.random.split(key, draws), jnp.int32(n), k
    )
    count = collections.Counter(map(tuple, np.asarray(rows).tolist()))
    choices = int(np.prod(np.arange(n - k + 1, n + 1)))
    assert len(count) == choices
    assert all(len(set(row)) == k and min(row) >= 0 and max(row) < n for row in count)
    expected = draws / choices
    chi2 = sum((c - expected) ** 2 / expected for c in count.values())
    assert chi2 < choices - 1 + 5 * (2 * (choices - 1)) ** 0.5


def test_uint8_is_scaled(key):
    data = mx.data.few_shot("digits", "train")
    task = {"support": jnp.array([[3], [200]]), "query": jnp.array([[5, 0], [700, 9]])}
    batch = mx.tasks.episodes(2, 1, 2).test(key, data, task)
    np.testing.assert_allclose(
        batch["image"],
        data["image"][[5, 0, 700, 9]].astype(np.float32) / 255,
        rtol=1e-6,
    )
    assert batch["label"].tolist() == [0, 0, 1, 1]


@pytest.mark.slow
def test_a_class_too_small_is_an_error_or_nan_where_the_data_are_traced(key):
    tasks = mx.tasks.episodes(6, 3, 2)  # two classes have four images
    _, *parts = drawn(tasks, jax.random.split(key, 8), DATA)
    for part in parts:
        bad = np.isnan(part["image"]).reshape(8, 6, -1)
        assert (bad.all(-1) == bad.any(-1)).all()
        assert (bad.all(-1).sum(1) == 2).all()
    problem = mx.problems.mlp((1, 6))
    params, state = problem.init(key, ())
    loss, _ = problem.test(key, params, state, jax.tree.map(lambda x: x[0], parts[1]))
    assert np.isnan(loss)
    with pytest.raises(ValueError, match="2 of 6 classes have fewer images"):
        jax.vmap(lambda key: tasks.sample(key, DATA))(jax.random.split(key, 2))


@pytest.mark.slow
def test_adapting_to_an_episode_helps(key):
    loop = mx.inner(
        mx.l2l(optax.adam, mx.problems.mlp((64, 3))),
        mx.tasks.episodes(3, 5, 10),
        40,
        "heldout",
    )
    data = mx.data.few_shot("digits", "test")
    curves = mx.evaluate(loop, key, 0.03, data, num_tasks=8)
    assert float(curves.test_loss.mean()) < 0.6 < float(curves.loss[:, 0].mean())


def test_rotations_against_a_loop():
    image = np.random.default_rng(0).integers(0, 255, (5, 3, 3, 2)).astype(np.uint8)
    data = mx.data.by_class(
        {"image": image, "label": np.array([1, 0, 1, 2, 2], np.int32)}
    )
    turned = mx.data.rotations(data)
    assert turned["label"].dtype == turned["start"].dtype == np.int32
    for r in range(4):
        for c in range(3):
            here = slice(turned["start"][c + 3 * r], turned["start"][c + 3 * r + 1])
            assert (turned["label"][here] == c + 3 * r).all()
            for got, was in zip(
                turned["image"][here], data["image"][data["label"] == c], strict=True
            ):
                for _ in range(
                    r
                ):  # a quarter turn: the last column becomes the first row
                    was = np.stack([was[:, 2], was[:, 1], was[:, 0]])
                np.testing.assert_array_equal(got, was)
    assert turned["start"][-1] == 20


# The split files.


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("omniglot", {"train": 1100, "validation": 100, "test": 423}),
        ("omniglot_vinyals", {"train": 1028, "validation": 172, "test": 423}),
    ],
)
def test_omniglot_has_each_character_once_and_in_one_part(name, sizes):
    rows = splits.omniglot_characters(name)
    assert len({(alphabet, i) for alphabet, i, _ in rows}) == len(rows) == 1623
    assert collections.Counter(part for *_, part in rows) == sizes
    assert len({alphabet for alphabet, *_ in rows}) == 50


def test_the_two_splits_of_omniglot_differ_in_kind():
    def alphabets_in_several_parts(name):
        parts = collections.defaultdict(set)
        for alphabet, _, part in splits.omniglot_characters(name):
            parts[alphabet].add(part)
        return {alphabet for alphabet, where in parts.items() if len(where) > 1}

    assert alphabets_in_several_parts("omniglot_vinyals") == {"Gurmukhi"}
    assert len(alphabets_in_several_parts("omniglot")) == 50


@pytest.mark.slow
@needs("omniglot")
def test_omniglot_from_its_files(tmp_path, monkeypatch):
    splits._small_omniglot.cache_clear()
    original = [mx.data.load("omniglot", half) for half in ("train", "test")]
    names = (
        splits.builder_of("omniglot", splits.tfds_directory(None))
        .info.features["alphabet"]
        .names
    )
    characters = splits.omniglot_characters()
    assert list(dict.fromkeys(alphabet for alphabet, *_ in characters)) == names
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen = {}
    for part in ("train", "validation", "test"):
        data = mx.data.few_shot("omniglot", part)
        members = [(alphabet, i) for alphabet, i, where in characters if where == part]
        assert data["image"].shape == (20 * len(members), 28, 28, 1)
        assert data["start"].tolist() == list(range(0, 20 * len(members) + 1, 20))
        assert data["image"].mean() < 30, "strokes are light on dark"
        for c in (0, len(members) // 2, len(members) - 1):
            alphabet, i = members[c]
            half = next(x for x in original if names.index(alphabet) in x["alphabet"])
            mine = (half["alphabet"] == names.index(alphabet)) & (
                half["alphabet_char_id"] == i - 1
            )
            assert mine.sum() == 20
            small = [
                Image.fromarray(x[..., 0]).resize((28, 28), Image.Resampling.BILINEAR)
                for x in half["image"][mine]
            ]
            got = data["image"][data["label"] == c][..., 0].astype(int)
            assert (
                np.abs(
                    255 - np.stack([np.asarray(x) for x in small]).astype(int) - got
                ).max()
                <= 1
            )
        # No drawing is in two parts, upright or turned.
        for image in mx.data.rotations(data)["image"]:
            seen.setdefault(image.tobytes(), set()).add(part)
    assert all(len(parts) == 1 for parts in seen.values())
    splits._small_omniglot.cache_clear()
    monkeypatch.setattr(splits, "load", None)  # from the file, without decoding again
    np.testing.assert_array_equal(
        mx.data.few_shot("omniglot", "test")["image"], data["image"]
    )


def test_cifar_fs_takes_its_classes_from_both_halves_of_cifar100(monkeypatch):
    def load(name, half, directory):
        label = np.arange(100, dtype=np.int32)[::-1]
        image = np.zeros((100, 32, 32, 3), np.uint8) + label[
            :, None, None, None
        ].astype(np.uint8)
        return {"image": image, "label": label, "coarse_label": label}

    monkeypatch.setattr(splits, "load", load)
    parts = {
        part: mx.data.few_shot("cifar_fs", part)
        for part in ("train", "validation", "test")
    }
    classes = {part: np.unique(data["image"]).tolist() for part, data in parts.items()}
    assert [len(c) for c in classes.values()] == [64, 16, 20]
    assert sorted(itertools.chain(*classes.values())) == list(range(100))
    # beaver, beetle, butterfly and whale, woman, worm, by their places among CIFAR-100's fine
    # labels
    assert {4, 7, 14} <= set(classes["validation"])
    assert {95, 98, 99} <= set(classes["test"])
    assert all((np.diff(data["start"]) == 2).all() for data in parts.values())


@pytest.fixture
def mini_imagenet(tmp_path):
    folder = tmp_path / "mini_imagenet"
    (folder / "images").mkdir(parents=True)
    for i, part in enumerate(("train", "val", "test")):
        lines = ["filename,label"]
        for c in range(2):
            for j in range(3):
                name, size = f"n{i}{c}_{j}.png", (84, 84) if j else (120, 100)
                Image.new("RGB", size, (10 * i, 20 * c, 30 * j)).save(
                    folder / "images" / name
                )
                lines.append(f"{name},n{i}{c}")
        (folder / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_mini_imagenet_from_a_folder(mini_imagenet):
    data = mx.data.few_shot("mini_imagenet", "validation", mini_imagenet.parent)
    assert data["image"].shape == (6, 84, 84, 3)
    assert data["image"].dtype == np.uint8
    assert data["start"].tolist() == [0, 3, 6]
    assert data["image"][:, 0, 0].tolist() == [
        [10, 20 * c, 30 * j] for c in range(2) for j in range(3)
    ]
    both = mx.data.few_shot("mini_imagenet", "train+test", mini_imagenet.parent)
    assert both["start"].tolist() == [0, 3, 6, 9, 12]
    assert np.unique(both["image"][..., 0]).tolist() == [0, 20]


def test_mini_imagenet_as_jpeg_and_grey(mini_imagenet):
    Image.new("L", (84, 84), 100).save(mini_imagenet / "images" / "a.jpg")
    with (mini_imagenet / "test.csv").open("a") as f:
        f.write("a.jpg,n20\n")
    data = mx.data.few_shot("mini_imagenet", "test", mini_imagenet.parent)
    assert (data["image"][data["start"][1] - 1] == 100).all()


def break_folder(folder, how):
    if how == "gone":
        (folder / "val.csv").unlink()
    elif how == "columns":
        (folder / "test.csv").write_text("file,class\na.png,b\n")
    elif how == "empty":
        (folder / "test.csv").write_text("filename,label\n")
    elif how == "overlap":
        (folder / "test.csv").write_text("filename,label\nn00_0.png,n00\n")
    elif how == "image gone":
        (folder / "images" / "n00_1.png").unlink()
    elif how == "image cut":
        file = folder / "images" / "n00_1.png"
        file.write_bytes(file.read_bytes()[:50])


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("gone", FileNotFoundError, "lacks val.csv"),
        ("columns", ValueError, "test.csv must have the columns filename and label"),
        ("empty", ValueError, "at least one row"),
        ("overlap", ValueError, r"more than one of .*\['n00'\]"),
        ("image gone", ValueError, "n00_1.png cannot be read"),
        ("image cut", ValueError, "n00_1.png cannot be read"),
    ],
)
def test_broken_mini_imagenet(how, error, message, mini_imagenet):
    break_folder(mini_imagenet, how)
    with pytest.raises(error, match=message) as e:
        mx.data.few_shot("mini_imagenet", "train", mini_imagenet.parent)
    assert str(mini_imagenet) in str(e.value)


def test_a_missing_set_says_where_it_was_looked_for(tmp_path):
    for name in ("omniglot", "omniglot_vinyals", "cifar_fs", "mini_imagenet"):
        with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
            mx.data.few_shot(name, data_dir=tmp_path)


# Regression.


def test_sinusoids_are_those_of_the_paper(key):
    tasks = mx.tasks.sinusoids(7, 5)
    task = jax.vmap(lambda k: tasks.sample(k, ()))(jax.random.split(key, 4000))
    for name, low, high in (("amplitude", 0.1, 5.0), ("phase", 0.0, np.pi)):
        values = np.asarray(task[name])
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high
        np.testing.assert_allclose(values.mean(), (low + high) / 2, rtol=0.03)
    x = np.asarray(task["support"]["x"])
    assert x.shape == (4000, 7, 1)
    assert -5 <= x.min() < -4.99
    assert 4.99 < x.max() <= 5
    for part, batch in (
        ("support", tasks.train(key, (), task)),
        ("query", tasks.test(key, (), task)),
    ):
        x, y = np.asarray(task[part]["x"], np.float64), np.asarray(batch["y"])
        expected = np.asarray(task["amplitude"])[:, None, None] * np.sin(
            x - np.asarray(task["phase"])[:, None, None]
        )
        np.testing.assert_allclose(y, expected, atol=1e-5)
        np.testing.assert_array_equal(batch["x"], task[part]["x"])
    assert not set(np.ravel(task["support"]["x"][0])) & set(
        np.ravel(task["query"]["x"][0])
    )


@pytest.mark.slow
def test_linear_regressions_have_their_closed_form(x64, key):
    tasks = mx.tasks.linear_regressions(4, 6, 3, condition=100.0, spread=2.0)
    task = jax.vmap(lambda k: tasks.sample(k, ()))(jax.random.split(key, 3000))
    x, y = np.asarray(task["support"]["x"]), np.asarray(task["support"]["y"])
    for i in range(5):  # without noise, least squares finds w
        np.testing.assert_allclose(
            np.linalg.lstsq(x[i], y[i], rcond=None)[0][:, 0], task["w"][i], rtol=1e-8
        )
    np.testing.assert_allclose(np.asarray(task["w"]).std(), 2.0, rtol=0.03)
    moments = np.einsum("tki,tkj->ij", x, x) / (3000 * 6)
    np.testing.assert_allclose(
        moments, np.diag([1, 100 ** (-1 / 3), 100 ** (-2 / 3), 1e-2]), atol=0.03
    )
    np.testing.assert_allclose(np.linalg.cond(moments), 100.0, rtol=0.1)
    noisy = mx.tasks.linear_regressions(4, 6, 3, noise=0.5)
    task = jax.vmap(lambda k: noisy.sample(k, ()))(jax.random.split(key, 3000))
    error = task["query"]["y"] - task["query"]["x"] @ task["w"][..., None]
    np.testing.assert_allclose(np.asarray(error).std(), 0.5, rtol=0.03)


def test_regressor_against_the_closed_form(x64, key):
    problem = mx.problems.regressor(
        lambda key: jax.random.normal(key, (3, 2)), lambda w, x: x @ w
    )
    w, state = problem.init(key, ())
    x, y = jax.random.normal(key, (5, 3)), jnp.ones((5, 2))
    loss, metrics = problem.test(key, w, state, {"x": x, "y": y})
    residual = np.asarray(x) @ np.asarray(w) - 1
    np.testing.assert_allclose(loss, (residual**2).sum() / 10, rtol=1e-12)
    gradient = jax.grad(lambda w: problem.loss(key, w, state, {"x": x, "y": y})[0])(w)
    np.testing.assert_allclose(
        gradient, 2 * np.asarray(x).T @ residual / 10, rtol=1e-10
    )
    assert metrics == {}
    np.testing.assert_array_equal(problem.predict(key, w, state, x), x @ w)


def test_the_picture_of_an_episode_shows_what_went_wrong():
    def part(images, colours, dtype):
        image = (
            np.random.default_rng(0)
            .integers(0, 2, (3 * images, 4, 4, colours))
            .astype(dtype)
        )
        return {"image": image, "label": np.repeat(np.arange(3), images)}

    for colours, dtype in ((1, np.uint8), (3, np.float32)):
        support, query = part(2, colours, dtype), part(3, colours, dtype)
        predicted = query["label"].copy()
        predicted[[0, 8]] = 2, 1
        ax = mx.plot.episode(support, query, predicted)
        assert len(ax.images) == 15
        assert ax.get_title() == "7 of 9 right"
        texts = [text.get_text() for text in ax.texts]
        assert sorted(texts) == sorted(["0", "1", "2", "2", "1", "support", "queries"])
        thick = [line for line in ax.lines if line.get_linewidth() > 2]
        assert [int(line.get_ydata()[0]) for line in thick] == [0, 2], (
            "the rows of the wrong ones"
        )
        np.testing.assert_array_equal(
            ax.images[0].get_array().squeeze(), support["image"][0].squeeze()
        )
        assert ax.images[0].norm.vmax == (255 if dtype is np.uint8 else 1)
        assert mx.plot.episode(support, query, predicted, ax) is ax


DIGITS = {"image": np.zeros((2, 8, 8, 1)), "label": np.arange(2)}
BATCH = {"x": jnp.ones((4, 1)), "y": jnp.ones((4, 1))}
BAD = {
    "no ways": (lambda: mx.tasks.episodes(0, 1), ValueError, "ways"),
    "shots a float": (lambda: mx.tasks.episodes(5, 1.0), TypeError, "shots"),
    "no queries": (lambda: mx.tasks.episodes(5, 1, 0), ValueError, "queries"),
    "more ways than classes": (
        lambda: mx.tasks.episodes(7, 1, 1).sample(jax.random.key(0), DATA),
        ValueError,
        "ways is 7 and the data have 6",
    ),
    "more images than in the smallest class": (
        lambda: mx.tasks.episodes(2, 3, 2).sample(jax.random.key(0), DATA),
        ValueError,
        r"shots \+ queries is 5, but 2 of 6 classes have fewer images, the smallest, class 1, 4",
    ),
    "not by class": (
        lambda: mx.tasks.episodes(2, 1, 1).sample(
            jax.random.key(0), mx.data.load("digits")
        ),
        TypeError,
        "metajax.data.by_class",
    ),
    "no data": (
        lambda: mx.tasks.episodes(2, 1, 1).sample(jax.random.key(0), ()),
        TypeError,
        "data must be a dict",
    ),
    "rotations of what is not by class": (
        lambda: mx.data.rotations(mx.data.load("digits")),
        TypeError,
        "by_class",
    ),
    "rotations of oblong images": (
        lambda: mx.data.rotations(DATA | {"image": np.zeros((41, 2, 3, 1))}),
        ValueError,
        "square",
    ),
    "unknown few-shot set": (
        lambda: mx.data.few_shot("imagenet"),
        ValueError,
        "one of digits, omniglot",
    ),
    "few-shot set no string": (
        lambda: mx.data.few_shot(["omniglot"]),
        TypeError,
        "name must be a string",
    ),
    "unknown part": (
        lambda: mx.data.few_shot("digits", "val"),
        ValueError,
        "'validation'",
    ),
    "a part twice": (
        lambda: mx.data.few_shot("digits", "train+train"),
        ValueError,
        "split",
    ),
    "part no string": (lambda: mx.data.few_shot("digits", 3), TypeError, "split"),
    "sinusoids without points": (lambda: mx.tasks.sinusoids(0), ValueError, "shots"),
    "linear regression without inputs": (
        lambda: mx.tasks.linear_regressions(0, 1, 1),
        ValueError,
        "size",
    ),
    "condition below 1": (
        lambda: mx.tasks.linear_regressions(2, 1, 1, condition=0.5),
        ValueError,
        "condition",
    ),
    "negative noise": (
        lambda: mx.tasks.linear_regressions(2, 1, 1, noise=-1.0),
        ValueError,
        "noise",
    ),
    "spread NaN": (
        lambda: mx.tasks.linear_regressions(2, 1, 1, spread=float("nan")),
        ValueError,
        "spread",
    ),
    "plot: logits for labels": (
        lambda: mx.plot.episode(DIGITS, DIGITS, np.zeros((2, 5))),
        ValueError,
        r"argmax",
    ),
    "plot: flat images": (
        lambda: mx.plot.episode(DIGITS | {"image": np.zeros((2, 64))}, DIGITS, [0, 1]),
        ValueError,
        r"support\[\"image\"\] must be",
    ),
    "regressor: net no function": (
        lambda: mx.problems.regressor(lambda k: 0, None),
        TypeError,
        "net_apply",
    ),
    "regressor: predictions that would broadcast": (
        lambda: mx.problems.regressor(lambda k: 0, lambda p, x: x[:, 0]).test(
            jax.random.key(0), 0, (), BATCH
        ),
        ValueError,
        r"the shape of y, \[4, 1\]; it gave \[4\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["train"] * 3, "3 rows, but labels go up to 9: give one row a class"),
        (["train"] * 9 + ["val"], "part of class 9 .* must be one of .*got 'val'"),
    ],
)
def test_a_list_of_classes_with_a_mistake(parts, message):
    with pytest.raises(ValueError, match=message):
        splits.check_parts(parts, num_classes=10)
