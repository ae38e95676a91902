"""The command line: what it writes, what it says of a mistake, and its exit codes."""

import csv
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import metajax as mx
from metajax.cli import _config as config
from metajax.cli import _names as names
from metajax.cli import main
from metajax.cli._toml import ConfigError

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.toml"))
SMALL = """\
# a learned optimizer on quadratics
[learner]
name = "l2l"
optimizer = { name = "lstm", hidden = [2] }

[problem]
name = "quadratic"

[tasks]
name = "quadratics"
size = 2

[inner]
horizon = 4

[estimator]
name = "bptt"
num_tasks = 2

[optimizer]
name = "adam"
learning_rate = { name = "linear_schedule", init_value = 1e-3, end_value = 0, transition_steps = 9 }
clip = 1.0

[run]
steps = 4
out = "OUT"
validate_every = 2
validation_tasks = 2
chunk = 2
"""


def write(folder, text=SMALL):
    path = folder / "small.toml"
    path.write_text(text.replace("OUT", str(folder / "run")))
    return path


@pytest.mark.slow
def test_training_going_on_and_evaluating(tmp_path, capsys):
    path, out = write(tmp_path), tmp_path / "run"
    assert main(["train", str(path)]) == 0
    assert f"metajax evaluate {out}" in capsys.readouterr().out
    assert {"metrics.csv", "config.toml", "final.npz", "best.npz", "checkpoints"} == {
        p.name for p in out.iterdir()
    }
    assert (out / "config.toml").read_text() == path.read_text()
    assert main(["train", str(path), "--steps", "6"]) == 0
    assert "resumed at meta-step 4 of 6" in capsys.readouterr().err
    with (out / "metrics.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [int(row["step"]) for row in rows if row["loss"]] == [1, 2, 3, 4, 5, 6]

    # Once more through the library alone: the file says no more and no less.
    optimizer = mx.optim.lstm(hidden=(2,))
    made = config.experiment(path, steps=6)
    before = optimizer.init(made.keys["init"])
    jax.tree.map(np.testing.assert_array_equal, made.meta_params(), before)
    state, data = made.start()
    assert data == ()
    final = mx.fit(made.trainer, state, num_steps=6, progress=None).state.meta_params
    saved = mx.load(out / "final.npz", like=final)
    jax.tree.map(np.testing.assert_array_equal, saved, final)

    picture = tmp_path / "pictures" / "a.png"
    assert (
        main(
            [
                "evaluate",
                str(out),
                "--tasks",
                "3",
                "--steps",
                "12",
                "--params",
                "final.npz",
            ]
        )
        == 0
    )
    table = capsys.readouterr().out
    curves = mx.evaluate(made.inner, made.keys["test"], saved, num_tasks=3, steps=12)
    first = np.asarray(curves.loss[:, :2].mean(1), np.float64)
    assert f"{first.mean():.4g} ± {first.std():.2g}" in table.splitlines()[4]
    assert table.splitlines()[4].split()[0] == "1-2"
    assert f"{float(curves.test_loss.mean()):.4g} ± " in table.splitlines()[-1]
    assert main(["evaluate", str(path), "--tasks", "2", "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")

    capsys.readouterr()
    assert main(["evaluate", str(out), "--params", "worst.npz"]) == 1
    assert "--params may be best.npz, final.npz" in capsys.readouterr().err
    assert main(["train", str(out), "--steps", "8"]) == 0, "the folder of a run goes on"
    assert "resumed at meta-step 6 of 8" in capsys.readouterr().err
    moved = out.rename(tmp_path / "moved")
    assert main(["train", str(moved), "--steps", "10"]) == 0, "wherever it is"
    assert "resumed at meta-step 8 of 10" in capsys.readouterr().err
    moved.rename(out)
    assert main(["train", str(out / "config.toml"), "--steps", "12"]) == 0, (
        "whatever it is called"
    )
    assert "resumed at meta-step 10 of 12" in capsys.readouterr().err
    assert main(["train", str(path), "--steps", "5"]) == 2, "fewer than are done"
    assert "give a larger steps" in capsys.readouterr().err
    path.write_text(path.read_text().replace("[2]", "[3]"))
    assert main(["train", str(path)]) == 2, "another config in the same folder"
    assert "differ in [learner]" in capsys.readouterr().err
    path = write(
        tmp_path, SMALL.replace("validation_tasks = 2", "validation_tasks = 5")
    )
    assert main(["train", str(path)]) == 2
    assert "differ in [run]" in capsys.readouterr().err, (
        "losses of other tasks do not compare"
    )
    (out / "config.toml").write_text("")  # as after a disk that was full
    assert main(["train", str(path)]) == 2
    assert "is the folder of another run" in capsys.readouterr().err


# What is changed in the config, the line of the mistake, what is said of it.
MISTAKES = {
    "unknown section": (
        "[inner]\nhorizon = 4",
        "[iner]\nhorizon = 4",
        13,
        r"unknown section \[iner\].*did you mean 'inner'",
    ),
    "a section twice": (
        "[inner]",
        "[[inner]]",
        13,
        r"inner must be a section, \[inner\]",
    ),
    "no section": ("[inner]\nhorizon = 4\n", "", 28, r"\[inner\] is missing"),
    "no problem": (
        '[problem]\nname = "quadratic"\n',
        "",
        3,
        r"\[problem\] is missing; \[learner\] needs it",
    ),
    "a problem too many": (
        'name = "l2l"\noptimizer = { name = "lstm", hidden = [2] }',
        'name = "vsml"\nlayers = [4, 2]',
        6,
        "has no problem",
    ),
    "unknown learner": (
        '"l2l"',
        '"l2"',
        3,
        "unknown name 'l2' in learner; there are .* l2l, .*did you mean 'l2l'",
    ),
    "a name that is none": ('"bptt"', "[1]", 17, r"unknown name \[1\] in estimator"),
    "no name": (
        'name = "bptt"\n',
        "",
        16,
        "estimator must have a name; there are bptt, ",
    ),
    "unknown argument": (
        "num_tasks",
        "num_task",
        18,
        "unknown argument 'num_task' .*did you mean 'num_tasks'",
    ),
    "unknown argument of an argument": (
        "hidden",
        "hiden",
        4,
        "'hiden' in learner.optimizer.*did you mean 'hidden'",
    ),
    "no argument": (
        "size = 2\n",
        "",
        9,
        "tasks lacks the argument 'size', a whole number",
    ),
    "a word for a number": (
        "horizon = 4",
        'horizon = "four"',
        14,
        "horizon must be a whole number or a list of numbers",
    ),
    "a fraction for a whole number": (
        "size = 2",
        "size = 2.5",
        11,
        "size must be a whole number, got 2.5",
    ),
    "a truth for a number": (
        "num_tasks = 2",
        "num_tasks = true",
        18,
        "num_tasks must be a whole number, got True",
    ),
    "a number in a list": (
        "hidden = [2]",
        'hidden = ["2"]',
        4,
        "hidden must be a list of numbers",
    ),
    "unknown maker": (
        '"linear_schedule"',
        '"cosine"',
        22,
        "unknown name 'cosine' in optimizer.learning_rate",
    ),
    "what the library refuses": (
        "size = 2",
        "size = 0",
        11,
        "size must be at least 1, got 0",
    ),
    "what the library refuses of [inner]": (
        "horizon = 4",
        "horizon = 0",
        14,
        "horizon must be at least 1",
    ),
    "a window that does not fit": (
        "num_tasks = 2",
        "num_tasks = 2\ntruncation = 3",
        19,
        "truncation",
    ),
    "clip": ("clip = 1.0", "clip = 0", 23, "clip must be finite and greater than 0"),
    "clip that is no number": (
        "clip = 1.0",
        'clip = "1"',
        23,
        "clip must be a number, got '1'",
    ),
    "steps": ("steps = 4", "steps = 0", 26, "steps must be at least 1"),
    "no folder": ('out = "OUT"', 'out = ""', 27, "out must be the name of a folder"),
    "a folder with NUL": (
        '"OUT"',
        '"a\\u0000b"',
        27,
        "out must not hold the character NUL",
    ),
    "a huge number of steps": (
        "chunk = 2",
        "chunk = 9999999999",
        30,
        "chunk must lie within ±2147483647",
    ),
    "a huge seed": (
        "chunk = 2",
        f"seed = {10**23}",
        30,
        "seed must lie within ±2147483647",
    ),
    "NaN": ("init_value = 1e-3", "init_value = nan", 22, "init_value must be finite"),
    "a number too large": (
        "init_value = 1e-3",
        "init_value = 1e39",
        22,
        "init_value must be finite",
    ),
    "a huge number": ("clip = 1.0", f"clip = {10**400}", 23, "clip must lie within"),
    "a negative rate": (
        "init_value = 1e-3",
        "init_value = -1",
        22,
        "init_value must be at least 0",
    ),
    "an abbreviation": (
        "learning_rate = {",
        "lr = {",
        22,
        "unknown argument 'lr' in optimizer.*did you mean 'learning_rate'",
    ),
    "a momentum of 5": (
        "clip = 1.0",
        "b1 = 5",
        23,
        "b1 must be at least 0 and below 1, got 5",
    ),
    "a list with NaN": ("hidden = [2]", "hidden = [nan]", 4, "hidden must be finite"),
    "patience": ("chunk = 2", "patience = 0", 30, "patience must be at least 1"),
    "a slip of the fingers": (
        '"bptt"',
        '"btpp"',
        17,
        "unknown name 'btpp' in estimator.*did you mean 'bptt'",
    ),
    "data for none": (
        "[inner]",
        '[data]\nname = "digits"\n[inner]',
        13,
        "need no data",
    ),
    "no data": (
        '"quadratics"\nsize = 2',
        '"minibatches"\nbatch_size = 2',
        10,
        r"\[data\] is missing; \[tasks\] needs it",
    ),
    "no TOML": ("horizon = 4", "horizon = ", 14, "this is not TOML"),
    "augment": (
        "size = 2",
        'size = 2\naugment = "flatten"',
        12,
        "augment must be a list",
    ),
    "augmentation": (
        "size = 2",
        "size = 2\naugment = [{ name = 'project' }]",
        12,
        "lacks the argument 'size'",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_with_their_line(tmp_path, capsys, name):
    old, new, line, message = MISTAKES[name]
    assert SMALL.count(old) == 1, "the mistake is made, and once"
    path = write(tmp_path, SMALL.replace(old, new))
    with pytest.raises(ConfigError, match=rf"{path}:{line}: .*{message}"):
        config.experiment(path)
    assert main(["train", str(path)]) == 2
    assert f"{path}:{line}: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists(), "nothing was begun"


def test_what_does_not_fit_together_is_said_before_anything_is_written(
    tmp_path, capsys
):
    text = EXAMPLES[[p.stem for p in EXAMPLES].index("maml-digits")].read_text()
    path = write(
        tmp_path,
        text.replace("sizes = [64,", "sizes = [60,").replace(
            'out = "out/maml-digits"', 'out = "OUT"'
        ),
    )
    assert main(["train", str(path)]) == 2
    line = 1 + next(
        i for i, row in enumerate(text.splitlines()) if row.startswith("sizes")
    )
    said = capsys.readouterr().err
    assert (
        f"small.toml:{line}: sizes[0] is 60, but an image [8, 8, 1] has 64 values"
        in said
    )
    assert not (tmp_path / "run").exists()


def test_tasks_that_do_not_go_with_the_problem(tmp_path, capsys):
    text = EXAMPLES[[p.stem for p in EXAMPLES].index("l2l-digits")].read_text()
    text = text.replace(
        'name = "minibatches"', 'name = "quadratics"\nsize = 2'
    ).replace("batch_size = ", "# ")
    begin = text.index("[data]")
    path = write(tmp_path, text[:begin] + text[text.index("[", begin + 1) :])
    assert main(["train", str(path)]) == 2
    said = capsys.readouterr().err
    assert "batch must be as made by tasks that go with the problem" in said
    assert "with the entries ['image'], got ['W', 'y']" in said


@pytest.mark.slow
def test_baselines(tmp_path, capsys):
    path, picture = write(tmp_path), tmp_path / "a.png"
    assert main(["train", str(path)]) == 0
    capsys.readouterr()
    args = ["evaluate", str(path), "--tasks", "3", "--steps", "12", "--baselines"]
    assert main([*args, "--plot", str(picture)]) == 0
    table = capsys.readouterr().out
    assert picture.stat().st_size > 1000

    # The same through the library: rates from other tasks, losses on the same.
    made = config.experiment(path)
    problem, tasks = mx.problems.quadratic(), mx.tasks.quadratics(2)
    key = made.keys["validation"]
    found = mx.compare(mx.BASELINES, problem, tasks, key, steps=12, num_tasks=3)
    loop = mx.inner(mx.l2l(optax.adam, problem), tasks, 12)
    curves = mx.evaluate(loop, made.keys["test"], found.rate["Adam"], num_tasks=3)
    assert f"Adam at {found.rate['Adam']:.3g}" in table
    tested = np.asarray(curves.test_loss, np.float64)
    last = table.splitlines()[-3]
    assert last.split("  ")[-1].strip() == f"{tested.mean():.4g} ± {tested.std():.2g}"


def test_no_baselines_without_a_problem(tmp_path, capsys):
    text = EXAMPLES[[p.stem for p in EXAMPLES].index("vsml-digits")].read_text()
    path = write(tmp_path, text.replace('out = "out/vsml-digits"', 'out = "OUT"'))
    made = config.experiment(path)
    (tmp_path / "run").mkdir()
    mx.save(tmp_path / "run" / "best.npz", made.meta_params())
    assert main(["evaluate", str(path), "--baselines"]) == 2
    assert "has no problem that an optimizer could minimise" in capsys.readouterr().err


def test_labels_stay_those_of_the_data_where_no_classes_are_drawn(monkeypatch):
    label = np.array([4, 0, 2], np.int32)  # a slice without the classes 1 and 3
    monkeypatch.setattr(
        mx.data,
        "load",
        lambda *_: {"image": np.zeros((3, 2, 2, 1), np.uint8), "label": label},
    )
    data = config.Data("mnist", train="train[:3]")
    arrays = config._load(data, "train", mx.tasks.minibatches(2))
    assert arrays["label"].tolist() == [4, 0, 2]
    arrays = config._load(data, "train", mx.tasks.classification(2))
    assert arrays["start"].tolist() == [0, 1, 2, 3]


def test_a_folder_that_cannot_be_one_is_noticed_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(config.Experiment, "start", lambda self: pytest.fail("traced"))
    path = write(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["train", str(path), "--out", str(tmp_path / "file" / "run")]) == 2
    assert f"{tmp_path}/file is a file; give another out" in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda *_: False)
    assert main(["train", str(path)]) == 2
    assert (
        f"{tmp_path} cannot be written to; give another out" in capsys.readouterr().err
    )


def test_the_names_are_those_of_the_library():
    assert {"l2l", "maml", "imaml", "meta_sgd", "vsml", "protonet"} <= set(
        names.SECTIONS["learner"]
    )
    assert {"mlp", "quadratic", "conv4"} <= set(names.SECTIONS["problem"])
    assert {"minibatches", "episodes", "text", "quadratics"} <= set(
        names.SECTIONS["tasks"]
    )
    assert {"bptt", "es", "pes"} <= set(names.SECTIONS["estimator"])
    assert {"lstm", "nadam", "mlp"} <= set(names.ARGUMENTS["optimizer"])
    assert {"flatten", "project"} <= set(names.ARGUMENTS["augment"])
    # What needs an argument that a file cannot give is not among them.
    everything = {name for table in names.SECTIONS.values() for name in table}
    assert (
        not {"in_context", "anil", "classifier", "augment", "ask_tell", "mix"}
        & everything
    )


PROTOTYPES = 'name = "prototypes"\nnum_classes = 2\nshape = [28, 28, 1]'
MLP = 'name = "mlp"\nsizes = [784, 2]'
QUADRATIC = ('name = "quadratic"', 'name = "quadratics"\nsize = 2')
SGD = '{ name = "sgd", learning_rate = 0.1 }'
# The arguments of a learner, its problem if it has one, tasks for it.
MADE = {
    "clone_backprop": (
        'cell = { name = "lstm", slots = 1 }\nrate = 0.1',
        None,
        'name = "signals"\nnum_cells = 3',
    ),
    "finetune": (f"tx = {SGD}", MLP, PROTOTYPES),
    "meta_sgd": ("rate = 0.1", MLP, PROTOTYPES),
    "maml_plus_plus": (
        "rate = 0.1\nweights = [0, 0.5, 0.25, 0.25]",
        MLP,
        PROTOTYPES + '\naugment = ["with_query"]',
    ),
    "imitate": (
        f'optimizer = {{ name = "mlp_schedule", base = {SGD} }}\nteacher = {SGD}',
        *QUADRATIC,
    ),
    "protonet": (
        'net = { name = "dense4", ways = 2, hidden = [4] }\nways = 2\nsize = 2',
        None,
        PROTOTYPES,
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_learners_whose_arguments_are_made(tmp_path, name):
    arguments, problem, tasks = MADE[name]
    text = SMALL.replace(
        '"l2l"\noptimizer = { name = "lstm", hidden = [2] }', f'"{name}"\n{arguments}'
    )
    text = text.replace(QUADRATIC[1], tasks)
    if problem:
        text = text.replace(QUADRATIC[0] + "\n", problem + "\n")
    else:
        text = text.replace("[problem]\n" + QUADRATIC[0] + "\n", "")
    state, _ = config.experiment(write(tmp_path, text)).start()
    assert int(state.step) == 0


@pytest.mark.slow
def test_data_that_the_network_or_the_tasks_do_not_suit(tmp_path, capsys):
    text = EXAMPLES[[p.stem for p in EXAMPLES].index("maml-digits")].read_text()
    text = text.replace('out = "out/maml-digits"', 'out = "OUT"').replace(
        '"digits"', '"digits"\nfew_shot = true'
    )
    path = write(
        tmp_path, text.replace("64, 32, 3]", "64, 4, 2]")
    )  # no output for the third class
    assert main(["train", str(path), "--steps", "2"]) == 2
    assert "label must be in 0..1, got [2]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

    path, out = (
        write(
            tmp_path,
            text.replace("64, 32, 3]", "64, 4, 4]").replace("ways = 3", "ways = 4"),
        ),
        tmp_path / "4",
    )
    assert main(["train", str(path), "--steps", "1", "--out", str(out)]) == 0, (
        "there are five classes for training"
    )
    assert main(["evaluate", str(out)]) == 2
    assert "on the test split: ways is 4" in capsys.readouterr().err


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_read(path):
    made = config.experiment(path)
    assert made.run.out == f"out/{path.stem}"
    assert len(made.data("validation")["label"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", str(path), "--steps", "2", "--out", str(out)]) == 0
    assert (
        main(["evaluate", str(out), "--tasks", "2", "--plot", str(tmp_path / "a.png")])
        == 0
    )
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_fails(tmp_path, capsys):
    schedule = '{ name = "linear_schedule", init_value = 1e-3, end_value = 0, '
    schedule += "transition_steps = 9 }"
    path = write(
        tmp_path,
        SMALL.replace(schedule, "1e38")
        .replace("clip = 1.0\n", "")
        .replace('"adam"', '"sgd"'),
    )
    assert main(["train", str(path), "--steps", "60"]) == 1
    assert (
        "FloatingPointError: the meta-gradient was not finite"
        in capsys.readouterr().err
    )
    assert main(["evaluate", str(path)]) == 1
    assert "best.npz is not there; train to the end first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
@pytest.mark.usefixtures("interruptible")
@pytest.mark.slow
def test_signals(tmp_path, number, code):
    path = write(tmp_path)
    command = [
        sys.executable,
        "-m",
        "metajax",
        "train",
        str(path),
        "--steps",
        "10000000",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "run" / "metrics.csv").exists():
        time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert "run the same script again to go on" in said


def test_pretrained(tmp_path, capsys):
    assert main(["pretrained"]) == 0
    assert capsys.readouterr().out.split() == list(mx.pretrained.list())
    assert main(["pretrained", "card", "l2l-digits"]) == 0
    assert capsys.readouterr().out.startswith("# l2l-digits")
    params = mx.pretrained.params("l2l-digits")
    for name in ("a.npz", "a.safetensors"):
        assert main(["pretrained", "export", "l2l-digits", str(tmp_path / name)]) == 0
        jax.tree.map(
            np.testing.assert_array_equal, mx.load(tmp_path / name, like=params), params
        )


def test_demo_and_data_get_their_arguments(monkeypatch):
    import metajax.cli._data
    import metajax.cli._demo

    got = []
    for module in (metajax.cli._demo, metajax.cli._data):
        monkeypatch.setattr(module, "run", got.append)
    assert main(["demo", "--seed", "3"]) == 0
    assert main(["data", "prepare", "mnist", "--data_dir", "x"]) == 0
    demo, data = got
    assert (demo.seed, demo.bptt_steps, demo.es_steps, demo.out) == (
        3,
        600,
        80,
        Path("out/demo"),
    )
    assert (data.name, data.data_dir) == ("mnist", Path("x"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "a.toml", "--out", "a\0b"],
        ["train", "a\0b"],
        ["evaluate", "a\0b"],
        ["evaluate", "a.toml", "--plot", "a\0b.png"],
        ["pretrained", "export", "l2l-digits", "a\0b.npz"],
        ["demo", "--out", "a\0b"],
        ["data", "prepare", "mnist", "--data_dir", "a\0b"],
    ],
)
def test_a_path_with_nul_is_told_by_its_argument(arguments, capsys):
    with pytest.raises(SystemExit) as e:
        main(arguments)
    assert e.value.code == 2
    said = capsys.readouterr().err
    assert re.search(r"argument \S+: must not hold the character NUL, got 'a", said)


def test_data_that_cannot_be_prepared(monkeypatch, tmp_path, capsys):
    import tensorflow_datasets as tfds

    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(tfds, "builder", fail)
    assert main(["data", "prepare", "mnist", "--data_dir", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"mnist could not be prepared in {tmp_path}: OSError: no network" in said


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train"],
        ["train", "a.toml", "--fast"],
        ["train", "a.toml", "--steps", "0"],
        ["train", "a.toml", "--steps", "99999999999"],
        ["train", "a.toml", "--out", ""],
        ["evaluate", "a.toml", "--plot", "a.docx"],
        ["pretrained", "export", "l2l-digits", "a.pkl"],
        ["data"],
        ["pretrained", "card", "gpt"],
        ["data", "prepare", "digits"],
        ["demo", "--fast"],
        ["demo", "--es_steps", "0"],
        ["demo", "--seed", "-1"],
    ],
)
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as e:
        main(arguments)
    assert e.value.code == 2
    assert "usage: metajax" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["train"],
        ["evaluate"],
        ["pretrained"],
        ["demo"],
        ["data"],
        ["data", "prepare"],
    ],
)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as e:
        main([*command, "--help"])
    assert e.value.code == 0
    assert capsys.readouterr().out.startswith(
        f"usage: metajax {' '.join(command)}".strip()
    )


def test_a_config_that_is_not_there(capsys):
    assert main(["train", "none.toml"]) == 2
    assert "none.toml: No such file or directory" in capsys.readouterr().err


def test_the_demo_calls_neither_what_diverged_best_nor_level():
    import metajax.cli._demo

    final = {
        name: np.full(3, 0.2) + np.arange(3) / 100 for name in ("ours", *mx.BASELINES)
    }
    final["SGD"] = np.array([0.1, np.nan, 0.1])

    def verdict(ours):
        found = {**final, "ours": ours}
        return metajax.cli._demo._verdict({"case": mx.Comparison({}, found, {}, {})})

    assert "ours wins against the best baseline, " in verdict(np.full(3, 0.1))
    assert "SGD" not in verdict(np.full(3, 0.1))
    assert "case: ours diverges" in verdict(np.array([0.1, np.inf, 0.1]))
