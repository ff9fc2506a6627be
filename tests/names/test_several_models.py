"""What `kpatch.apply` and `kpatch.plan` take beside a model: a variable, and lists and dicts of models."""

from unittest import mock

import keras
import models
import numpy as np
import pytest

import kpatch
from kpatch import backends

BACKEND = keras.backend.backend()


def net(name, units=3, seed=0):
    layers = [keras.layers.Dense(units, name="dense"), keras.layers.Dense(2, name="head")]
    return models.filled(keras.Sequential([keras.Input((4,)), *layers], name=name), seed)


def of(model, layer, variable):
    return np.array(keras.ops.convert_to_numpy(getattr(model.get_layer(layer), variable)))


@pytest.fixture
def pair():
    return net("one", seed=1), net("two", seed=2)


def bits(*several):
    return [models.snapshot(model) for model in several]


def error_of(kind, function, *args, **options):
    with pytest.raises(kind) as caught:
        function(*args, **options)
    return str(caught.value)


# Lists ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequence", [list, tuple])
def test_a_list_edits_each(pair, sequence):
    alone = net("one", seed=1), net("two", seed=2)
    text = """
        let m = mean(dense.kernel)
        assert all(abs(m) < 10), "of each"
        dense.bias = m
        head.kernel[0, 0] *= 2
        *.kernel[_ > 0.5] = 0
        bias[$row] = "dense/bias"[0] + mean("dense/kernel")
    """.replace("bias[$row]", "head.bias[$row]")
    for model in alone:
        kpatch.apply(model, text, row=1)
    applied = kpatch.apply(sequence(pair), text, row=1, expect=8)
    assert bits(*pair) == bits(*alone)
    paths = ["dense.bias", "head.kernel", "dense.kernel", "head.kernel", "head.bias"]
    by_model = [[f"[{number}].{path}" for path in paths] for number in (0, 1)]
    written = [write.path for write in applied.writes]
    assert sorted(written) == sorted(by_model[0] + by_model[1])
    assert written[:4] == ["[0].dense.bias", "[1].dense.bias", "[0].head.kernel", "[1].head.kernel"]
    assert [row.path for row in applied.plan.rows] == written
    assert applied.plan.patch == kpatch.parse(text)
    applied.undo()
    assert bits(*pair) == bits(net("one", seed=1), net("two", seed=2))


def test_random_numbers_are_those_of_each_alone(pair):
    alone = net("one", seed=1), net("two", seed=2)
    text = "*.kernel = normal(shape(_), seed=3)"
    for model in alone:
        kpatch.apply(model, text)
    kpatch.apply(list(pair), text)
    assert bits(*pair) == bits(*alone)


def test_many_single_entries_are_one_write_of_each_variable(pair):
    text = "; ".join(f"dense.kernel[{row}, {column}] = {row + column}" for row in range(4) for column in range(3))
    applied = kpatch.apply(list(pair), text)
    assert len(applied.writes) == 24
    assert repr(applied) == "<AppliedPatch 2 writes, applied>"
    for model in pair:
        assert (of(model, "dense", "kernel") == np.add.outer(np.arange(4), np.arange(3))).all()


def test_a_plan_of_a_list_counts_and_writes_nothing(pair):
    before = bits(*pair)
    plan = kpatch.plan(list(pair), "dense.kernel[_ > 0] = 0; head.bias = 1", expect=4)
    counts = [int((of(model, "dense", "kernel") > 0).sum()) for model in pair]
    assert [(row.path, row.entries) for row in plan.rows] == [
        ("[0].dense.kernel", counts[0]),
        ("[1].dense.kernel", counts[1]),
        ("[0].head.bias", 2),
        ("[1].head.bias", 2),
    ]
    assert plan.warnings == ()
    assert bits(*pair) == before


def test_a_statement_warns_if_it_edits_nothing_in_any_model(pair):
    pair[0].get_layer("dense").kernel.assign(np.full((4, 3), -1.0))
    pair[1].get_layer("dense").kernel.assign(np.eye(4, 3))
    assert kpatch.plan(list(pair), "dense.kernel[_ > 0] = 0").warnings == ()
    assert kpatch.plan(list(pair), "dense.kernel[_ > 1] = 0").warnings == (
        "'dense.kernel[_ > 1] = 0' edits nothing: its index selects no entry",
    )


def test_expect_counts_all_models(pair):
    before = bits(*pair)
    text = error_of(kpatch.ResolutionError, kpatch.apply, list(pair), "*.bias = 0", expect=2)
    assert (
        text
        == """\
the patch matches 4 variables, not 2
  [0].dense.bias (3,) float32
  [0].head.bias (2,) float32
  [1].dense.bias (3,) float32
  [1].head.bias (2,) float32"""
    )
    assert bits(*pair) == before


def test_a_donor_lends_each_model_its_counterpart(pair):
    donor = net("three", seed=3)
    kpatch.apply(list(pair), "**.kernel = $donor._; dense.bias = $donor.dense.bias", donor=donor)
    for model in pair:
        for layer, name in (("dense", "kernel"), ("head", "kernel"), ("dense", "bias")):
            assert (of(model, layer, name) == of(donor, layer, name)).all()
    kpatch.apply(pair[:1], "**.kernel *= 2")
    assert (of(pair[0], "head", "kernel") == 2 * of(donor, "head", "kernel")).all()


# What models share ----------------------------------------------------------------------------------------------------


def sharing():
    """Two models with one layer in common, and a head each."""
    shared, x = keras.layers.Dense(3, name="dense"), keras.Input((4,))
    y = shared(x)
    one, two = (keras.Model(x, keras.layers.Dense(2, name="head")(y), name=name) for name in ("one", "two"))
    models.filled(one, 1)
    two.get_layer("head").kernel.assign(np.full((3, 2), 0.25))
    return one, two


@pytest.mark.parametrize("target", ["dense.kernel", "d*.kernel", "**.kernel"])
def test_what_models_share_is_written_once(target):
    one, two = sharing()
    before, heads = of(one, "dense", "kernel"), [of(model, "head", "kernel") for model in (one, two)]
    applied = kpatch.apply([one, two], f"{target} *= 2", expect=3 if target == "**.kernel" else 1)
    assert (of(two, "dense", "kernel") == 2 * before).all()
    assert [write.path for write in applied.writes].count("[0].dense.kernel") == 1
    assert "[1].dense.kernel" not in [write.path for write in applied.writes]
    for model, head in zip((one, two), heads, strict=True):
        assert (of(model, "head", "kernel") == head * (2 if target == "**.kernel" else 1)).all()
    applied.undo()
    assert (of(one, "dense", "kernel") == before).all()


def test_what_models_share_is_read_by_each_before_it_is_written():
    one, two = sharing()
    mean = of(one, "dense", "kernel").mean()
    kpatch.apply([one, two], "head.bias = mean(dense.kernel); dense.kernel = 0")
    for model in (one, two):
        assert np.allclose(of(model, "head", "bias"), mean)
        assert mean != 0


def test_shared_single_entries_are_counted_once():
    one, two = sharing()
    text = "; ".join(f"dense.kernel[{row}, {column}] = 5" for row in range(4) for column in range(3))
    assert len(kpatch.apply([one, two], text, expect=1).writes) == 12


def test_one_model_twice_in_a_list_is_edited_once(pair):
    before = of(pair[0], "dense", "bias") + 1
    kpatch.apply([pair[0], pair[0]], "dense.bias += 1", expect=1)
    assert (of(pair[0], "dense", "bias") == before).all()


def test_a_glob_of_a_dict_writes_what_is_shared_once():
    one, two = sharing()
    before = of(one, "dense", "kernel")
    applied = kpatch.apply({"a": one, "b": two}, "*.dense.kernel *= 2", expect=1)
    assert [write.path for write in applied.writes] == ["a.dense.kernel"]
    assert (of(two, "dense", "kernel") == 2 * before).all()


# Dicts ----------------------------------------------------------------------------------------------------------------


def test_names_of_a_dict_begin_with_its_keys(pair):
    student, teacher = pair
    head = of(student, "head", "kernel")
    applied = kpatch.apply(
        {"student": student, "teacher": teacher},
        """
        student.dense.kernel = teacher.dense.kernel
        let m = mean(teacher.head.kernel)
        "student/head/kernel" += m
        student.layers[1].bias = 3
        """,
        expect=3,
    )
    assert (of(student, "dense", "kernel") == of(teacher, "dense", "kernel")).all()
    mean = of(teacher, "head", "kernel").mean()
    assert np.allclose(of(student, "head", "kernel"), head + mean)
    assert of(student, "head", "bias").tolist() == [3, 3]
    assert [write.path for write in applied.writes] == [
        "student.dense.kernel",
        "student.head.kernel",
        "student.head.bias",
    ]
    applied.undo()
    assert bits(*pair) == bits(net("one", seed=1), net("two", seed=2))


@pytest.mark.parametrize(
    ("target", "paths"),
    [
        ("*.head.bias", ["student.head.bias", "teacher.head.bias"]),
        ("stu*.*.bias", ["student.dense.bias", "student.head.bias"]),
        ("**.head.bias", ["student.head.bias", "teacher.head.bias"]),
        ("**.student.*.bias", ["student.dense.bias", "student.head.bias"]),
        ("teacher.**", [f"teacher.{name}" for name in ("dense.kernel", "dense.bias", "head.kernel", "head.bias")]),
        ("?eacher.layers[1].kernel", ["teacher.head.kernel"]),
        ("student.bias", None),
        ("teacher.head.bias", ["teacher.head.bias"]),
    ],
)
def test_globs_of_a_dict(pair, target, paths):
    models_of = dict(zip(("student", "teacher"), pair, strict=True))
    if paths is None:
        with pytest.raises(kpatch.ResolutionError):
            kpatch.plan(models_of, f"{target} = 0")
        return
    assert [row.path for row in kpatch.plan(models_of, f"{target} = 0").rows] == paths


def test_all_variables_of_a_dict(pair):
    rows = kpatch.plan({"a": pair[0], "b": pair[1]}, "** = 0").rows
    assert [row.path.partition(".")[0] for row in rows] == ["a"] * 4 + ["b"] * 4


def test_a_key_that_is_no_plain_name_is_quoted(pair):
    applied = kpatch.apply({"the first": pair[0], "e": pair[1]}, '"the first".dense.bias = 4; e.dense.bias = 5')
    assert [write.path for write in applied.writes] == ['"the first".dense.bias', "e.dense.bias"]
    assert of(pair[0], "dense", "bias").tolist() == [4, 4, 4]
    assert of(pair[1], "dense", "bias").tolist() == [5, 5, 5]


def test_a_layer_is_a_model_of_a_list_or_dict(pair):
    kpatch.apply([pair[0].get_layer("dense"), pair[1].get_layer("head")], "bias = 2")
    assert of(pair[0], "dense", "bias").tolist() == [2, 2, 2]
    assert of(pair[1], "head", "bias").tolist() == [2, 2]
    kpatch.apply({"d": pair[0].get_layer("dense")}, "d.bias = 6")
    assert of(pair[0], "dense", "bias").tolist() == [6, 6, 6]


# All or nothing -------------------------------------------------------------------------------------------------------


class Failing:
    """The backend's `write` fails from its n-th call on, and works again once old values are put back."""

    def __init__(self, failure, at):
        self.failure, self.left, self.failed = failure, at, False

    def __enter__(self):
        writer = backends.current()
        write = writer.write

        def failing(*args, **kwargs):
            self.left -= 1
            if self.left < 0 and not self.failed:
                self.failed = True
                raise self.failure("the disk is on fire")
            return write(*args, **kwargs)

        self._patch = mock.patch.object(writer, "write", failing)
        self._patch.start()
        return self

    def __exit__(self, *exception):
        self._patch.stop()


@pytest.mark.parametrize("undo", [True, False])
@pytest.mark.parametrize("failure", [RuntimeError, MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["list", "dict"])
def test_any_failure_changes_no_model(pair, failure, kind, undo):
    text = "dense.kernel[0] = 9; dense.bias[:2] = 8; head.kernel[1, 1] = 7"
    target = list(pair)
    if kind == "dict":
        target = {"a": pair[0], "b": pair[1]}
        text = "; ".join(f"{key}.{statement}" for statement in text.split("; ") for key in "ab")
    before = bits(*pair)
    for at in range(6):
        with Failing(failure, at) as double, pytest.raises((kpatch.ExecutionError, KeyboardInterrupt)) as caught:
            kpatch.apply(target, text, undo=undo)
        assert double.failed
        assert bits(*pair) == before
        if failure is not KeyboardInterrupt:
            assert "every variable was put back as it was" in str(caught.value)
    with Failing(failure, 6) as double:
        kpatch.apply(target, text, undo=undo)
    assert not double.failed
    assert all(of(model, "head", "kernel")[1, 1] == 7 for model in pair)


def test_an_assertion_of_the_last_model_changes_none(pair):
    pair[1].get_layer("dense").bias.assign([5.0, 0.0, 0.0])
    pair[0].get_layer("dense").bias.assign([1.0, 0.0, 0.0])
    before = bits(*pair)
    text = error_of(
        kpatch.PatchAssertionError, kpatch.apply, list(pair), "let b = dense.bias; head.bias = 1; assert all(b < 2)"
    )
    assert (
        text
        == """\
assertion failed
  line 1, column 43
    let b = dense.bias; head.bias = 1; assert all(b < 2)
                                              ^^^^^^^^^^
  1 of 3 entries are false, the first at [0]
  [1].b is [5.0, 0.0, 0.0]"""
    )
    assert bits(*pair) == before


def test_edits_of_a_list_and_of_a_model_are_undone_in_order(pair):
    first = kpatch.apply(list(pair), "dense.bias = 1")
    second = kpatch.apply(pair[1], "dense.bias[0] = 2")
    text = error_of(kpatch.UndoError, first.undo)
    assert text.splitlines()[0] == "a later edit of '[1].dense.bias' overlaps this one; undo that first"
    second.undo()
    first.undo()
    with kpatch.apply({"a": pair[0]}, "a.dense.bias = 3"):
        assert of(pair[0], "dense", "bias").tolist() == [3, 3, 3]
    assert bits(*pair) == bits(net("one", seed=1), net("two", seed=2))


# Errors ---------------------------------------------------------------------------------------------------------------

TEXTS = {
    "studnt.dense.kernel = 0": """
no model 'studnt'; did you mean 'student'?
  line 1, column 1
    studnt.dense.kernel = 0
    ^^^^^^
  the models are: student, teacher
""",
    "dense.kernel = 0": """
no model 'dense': a name begins with the key of its model
  line 1, column 1
    dense.kernel = 0
    ^^^^^
  the models are: student, teacher
""",
    "layers[0].dense.kernel = 0": """
no model 'layers[0]': a name begins with the key of its model
  line 1, column 1
    layers[0].dense.kernel = 0
    ^^^^^^^^^
  the models are: student, teacher
""",
    "student = 0": """
'student' is a model, not a variable
  line 1, column 1
    student = 0
    ^^^^^^^
""",
    "student.dense.kernal = 0": """
no variable 'dense.kernal'; did you mean 'dense.kernel'?
  line 1, column 15
    student.dense.kernal = 0
                  ^^^^^^
  in the model 'student'
  dense has: kernel (4, 3) float32, bias (3,) float32
""",
    "student.head.bias = teacher.foot.bias": """
no variable 'foot.bias'
  line 1, column 29
    student.head.bias = teacher.foot.bias
                                ^^^^
  in the model 'teacher'
  the model has: dense, head
  variables named 'bias': dense.bias, head.bias
""",
    "*.foot.bias = 0": """
no variable matches '*.foot.bias'
  line 1, column 1
    *.foot.bias = 0
    ^^^^^^^^^^^
  the models are: student, teacher
""",
    "_ = 0": """
'_' is no variable of a model
  line 1, column 1
    _ = 0
    ^
  name one, as in 'dense_1.kernel'; '_' is the tensor of kpatch.edit
""",
}


@pytest.mark.parametrize("text", TEXTS)
def test_errors_of_names_of_a_dict(pair, text):
    before = bits(*pair)
    found = error_of(kpatch.ResolutionError, kpatch.apply, dict(zip(("student", "teacher"), pair, strict=True)), text)
    assert f"\n{found}\n" == TEXTS[text]
    assert bits(*pair) == before


def test_errors_of_a_list_say_which_model(pair):
    five = net("five", units=5)
    found = error_of(kpatch.SubscriptError, kpatch.apply, [five, pair[0]], "head.bias = 1; dense.kernel[0, 4] = 0")
    assert (
        found
        == """\
index 4 is out of range for axis 1 with 3 entries
  line 1, column 32
    head.bias = 1; dense.kernel[0, 4] = 0
                                   ^
  axis 1 takes indices from -3 to 2
  for [1].dense.kernel (4, 3) float32"""
    )
    headless = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")])
    found = error_of(kpatch.ResolutionError, kpatch.apply, [pair[0], headless], "dense.bias = 1; head.kernel = 0")
    assert (
        found
        == """\
no variable 'head.kernel'; did you mean 'dense.kernel'?
  line 1, column 17
    dense.bias = 1; head.kernel = 0
                    ^^^^
  in the model '[1]'
  the model has: dense"""
    )
    assert bits(*pair) == bits(net("one", seed=1), net("two", seed=2))


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ([], "there are no models to edit: the list or dict is empty"),
        ({}, "there are no models to edit: the list or dict is empty"),
        ({1: None}, "the key of a model is a name without '/'. Received: 1"),
        ({"a/b": None}, "the key of a model is a name without '/'. Received: 'a/b'"),
        ({"": None}, "the key of a model is a name without '/'. Received: ''"),
        ([5], "expected a Keras model or layer; Received: 5 (of type <class 'int'>)"),
        ({"a": [5]}, "expected a Keras model or layer; Received: [5] (of type <class 'list'>)"),
    ],
)
def test_what_is_no_list_or_dict_of_models(target, text):
    for function in (kpatch.apply, kpatch.plan):
        assert error_of(kpatch.PatchError, function, target, "bias = 1") == text


# Variables ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def variable():
    return keras.Variable(np.arange(6.0).reshape(2, 3), dtype="float32", name="v")


def values(variable):
    return np.array(keras.ops.convert_to_numpy(variable)).tolist()


def test_a_variable_is_the_target(variable):
    text = "let big = _ > 2; _[big] = 0; assert all(_ < 3); _[0] += 1; let z = max(_); _[1, 1] = z * $undo"
    plan = kpatch.plan(variable, text, bindings={"undo": 2}, expect=1)
    assert [(row.path, row.shape, row.entries) for row in plan.rows] == [
        ("_", (2, 3), 3),
        ("_", (2, 3), 3),
        ("_", (2, 3), 1),
    ]
    assert values(variable) == [[0, 1, 2], [3, 4, 5]]
    applied = kpatch.apply(variable, text, bindings={"undo": 2}, expect=1)
    assert values(variable) == [[1, 2, 3], [0, 6, 0]]
    assert [(write.path, write.entries) for write in applied.writes] == [("_", 3), ("_", 3), ("_", 1)]
    applied.undo()
    assert values(variable) == [[0, 1, 2], [3, 4, 5]]


def test_a_plan_of_a_variable_counts_what_is_known(variable):
    rows = kpatch.plan(variable, "let big = _ > 3; _[big] = 0; let all_ = _ >= 0; _[all_] = 1").rows
    assert [row.entries for row in rows] == [2, None]


def test_a_failed_edit_leaves_a_variable(variable):
    found = error_of(kpatch.PatchAssertionError, kpatch.apply, variable, "_ *= 2; _[0] = 1; assert all(_ < 9)")
    assert found.splitlines()[-1] == "  _ is [[1.0, 1.0, 1.0], [6.0, 8.0, 10.0]]"
    assert values(variable) == [[0, 1, 2], [3, 4, 5]]


def test_a_variable_of_a_model_has_one_history(pair):
    kernel = pair[0].get_layer("dense").kernel
    first = kpatch.apply(kernel, "_[0] = 1")
    second = kpatch.apply(pair[0], "dense.kernel[0, 0] = 2")
    found = error_of(kpatch.UndoError, first.undo)
    assert found.splitlines()[0] == "a later edit of '_' overlaps this one; undo that first"
    second.undo()
    first.undo()
    assert bits(pair[0]) == bits(net("one", seed=1))


def test_a_donor_of_a_variable(variable, pair):
    kpatch.apply(variable, "_ = $donor.dense.kernel[:2]", donor=pair[0])
    assert values(variable) == of(pair[0], "dense", "kernel")[:2].tolist()
    found = error_of(kpatch.BindingError, kpatch.apply, variable, "_ = $donor._", donor=pair[0])
    assert found.splitlines()[0] == "'$donor._' is the variable at the target's place, and here is no target"


def test_names_of_a_variable(variable):
    found = error_of(kpatch.ResolutionError, kpatch.apply, variable, "v = 0")
    assert (
        found
        == """\
no variable 'v': a variable knows one tensor, '_'
  line 1, column 1
    v = 0
    ^"""
    )


@pytest.mark.parametrize("dtype", ["int8", "bool", "float16", "bfloat16"])
def test_variables_of_every_kind(dtype):
    variable = keras.Variable(np.zeros((2, 2)), dtype=dtype, trainable=False)
    with kpatch.apply(variable, "_[0] = true" if dtype == "bool" else "_[0] = 1"):
        assert np.array(keras.ops.convert_to_numpy(keras.ops.cast(variable, "int32"))).tolist() == [[1, 1], [0, 0]]
    assert not np.array(keras.ops.convert_to_numpy(keras.ops.cast(variable, "int32"))).any()


@pytest.mark.skipif(BACKEND == "numpy", reason="Keras cannot train on numpy")
def test_lists_in_a_callback_of_fit(pair):
    """On jax the trainer holds the values of the model that trains: they are brought for every model of the list."""
    one, two = pair
    one.compile(keras.optimizers.SGD(0.0), "mse")

    class Edit(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            with kpatch.apply([one, two], "dense.bias += 1"):
                pass
            kpatch.apply([two, one], "head.bias += 1")

    before = [of(model, "head", "bias") for model in pair]
    one.fit(np.ones((8, 4), "float32"), np.ones((8, 2), "float32"), batch_size=4, verbose=0, callbacks=[Edit()])
    for model, start in zip(pair, before, strict=True):
        assert (of(model, "head", "bias") == start + 2).all()
        assert (of(model, "dense", "bias") == of(net(model.name, seed=1 if model is one else 2), "dense", "bias")).all()


# Lists and dicts of variables -----------------------------------------------------------------------------------------


@pytest.fixture
def variables():
    return keras.Variable([1.0, 2.0, 3.0], name="x"), keras.Variable([[4.0, 5.0], [6.0, 7.0]], name="y")


def lists(*several):
    return [keras.ops.convert_to_numpy(each).tolist() for each in several]


def test_a_dict_of_variables(variables):
    a, b = variables
    applied = kpatch.apply({"a": a, "b": b}, "a[0] = b[1, 1]; let m = sum(b); b *= 2; *[-1] = m", expect=2)
    assert lists(a, b) == [[7, 2, 22], [[8, 10], [22, 22]]]
    assert [write.path for write in applied.writes] == ["a", "b", "a", "b"]
    applied.undo()
    assert lists(a, b) == [[1, 2, 3], [[4, 5], [6, 7]]]
    assert kpatch.plan({"a": a, "b": b}, "? = 0; ** = 0; **.a = 1").rows[0].entries == 3


def test_a_list_of_variables(variables):
    a, b = variables
    applied = kpatch.apply(
        [a, b], "let m = max(_); let n = _[_ > 2]; assert all(_ > 0); _[0] = _ - m; _[_ > $x] = 0", x=2.5, expect=2
    )
    assert lists(a, b) == [[-2, 2, 0], [[-3, -2], [0, 0]]]
    assert [write.path for write in applied.writes] == ["[0]", "[1]"] * 2
    applied.undo()
    assert lists(a, b) == [[1, 2, 3], [[4, 5], [6, 7]]]
    kpatch.apply([a, a, b], "_ += 1", expect=2)
    assert lists(a, b) == [[2, 3, 4], [[5, 6], [7, 8]]]


def test_a_list_of_variables_is_all_or_nothing(variables):
    before = lists(*variables)
    with pytest.raises(kpatch.PatchAssertionError):
        kpatch.apply(variables, "_ = 0; assert sum(_) > 5")
    with pytest.raises(kpatch.ShapeError):
        kpatch.apply(variables, "_ = 0; _ = [1, 2, 3]")
    assert lists(*variables) == before


def test_models_and_variables(pair, variables):
    a, b = variables
    kpatch.apply({"m": pair[0], "a": a, "b": b}, "m.dense.bias = a; a = m.dense.bias * 2; ** = 1; b = 2")
    assert lists(a, b, pair[0].get_layer("dense").bias) == [[1, 1, 1], [[2, 2], [2, 2]], [1, 1, 1]]
    kpatch.apply({"m": pair[0], "b": pair[0].get_layer("head").bias}, "m.head.bias[0] = 5; b[1] = 6")
    assert lists(pair[0].get_layer("head").bias) == [[5, 6]]


@pytest.mark.backend_free
def test_errors_of_variables(pair, variables):
    a, b = variables
    for target, text, told in [
        ({"a": a, "b": b}, "aa = 0", "no model 'aa'; did you mean 'a'?\nthe variables are: a, b"),
        (
            {"a": a, "m": pair[0]},
            "k = 0",
            "no model 'k': a name begins with the key of its model\nthe models and variables are: a, m",
        ),
        ({"a": a}, "a.kernel = 0", "no variable 'kernel': 'a' is a variable"),
        (
            {"a": a},
            "_ = 0",
            "'_' is no variable of a model\nname one, as in 'dense_1.kernel'; '_' is the tensor of kpatch.edit",
        ),
        ({"a": a}, "x*.y = 0", "no variable matches 'x*.y'\nthe variables are: a"),
        ([a], "a = 0", "no variable 'a': '[0]' is a variable, '_'"),
    ]:
        with pytest.raises(kpatch.PatchError) as info:
            kpatch.apply(target, text)
        assert "\n".join([info.value.message, *info.value.notes]) == told
    mixed = error_of(kpatch.ResolutionError, kpatch.apply, [pair[0], a], "_ = 0")
    assert "'_' is no variable of a model" in mixed


@pytest.mark.backend_free
def test_an_error_that_is_no_models_own_is_told_once(pair):
    for text in ("dense.bias = foo(1)", "dense.bias = 1 + true", "let a = [1, 2][5]"):
        with pytest.raises(kpatch.PatchError) as info:
            kpatch.apply([*pair, net("three")], text)
        assert len(info.value.errors) == 1
        assert info.value.notes[-1] == "the same in 2 more models"
