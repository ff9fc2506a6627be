"""What is known of activations before a call: checks when a block is made, plans, nearby names; errors in a step."""

import keras
import models
import numpy as np
import pytest
from keras import layers

import kpatch
from kpatch.layers import ScatterLayer

X = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")


@keras.saving.register_keras_serializable("tests")
class Holder(layers.Layer):
    """A layer inside of which no graph looks."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(3, name="inner")

    def call(self, x):
        return self.inner(x)


def network(batch=None):
    inputs = keras.Input(batch_shape=(batch, 5, 4))
    x = layers.MultiHeadAttention(2, 3, name="att")(inputs, inputs)
    x = layers.LSTM(2, return_sequences=True, return_state=True, name="lstm")(layers.Dense(3, name="a")(x))[0]
    return keras.Model(inputs, layers.Dense(2, name="b", dtype="mixed_bfloat16")(x))


def message(function, *args, **bindings):
    with pytest.raises(kpatch.PatchError) as caught:
        function(*args, **bindings)
    return str(caught.value)


@pytest.fixture(scope="module")
def model():
    return network()


# Checked when a block is made -----------------------------------------------------------------------------------------


def test_an_index_out_of_range(model):
    for function in kpatch.intervene, kpatch.plan:
        assert message(function, model, "b.input = 0; a.output[:, 1, 5] = 0") == (
            "index 5 is out of range for axis 2 with 3 entries\n"
            "  line 1, column 29\n    b.input = 0; a.output[:, 1, 5] = 0\n                                ^\n"
            "  axis 2 takes indices from -3 to 2"
        )
    assert message(kpatch.intervene, model, "b.input[:, 5] = 0").startswith("index 5 is out of range for axis 1")
    assert message(kpatch.intervene, model, "lstm.output.2[0, 2] = 0").startswith("index 2 is out of range for axis 1")
    assert message(kpatch.intervene, network(batch=2), "a.output[2] = 0").startswith(
        "index 2 is out of range for axis 0"
    )


def test_a_value_of_another_shape(model):
    for v in np.ones(4), keras.ops.ones((4,)), keras.Variable(np.ones(4)):
        assert message(kpatch.intervene, model, "a.output = $v", v=v) == (
            "value of shape (4,) does not fit the selection of shape (None, 5, 3)\n"
            "  line 1, column 12\n    a.output = $v\n               ^^\n"
            "  axis 2 of the selection has length 3: the value's must be 3 or 1, not 4"
        )
    assert message(kpatch.intervene, model, "lstm.output = a.output").startswith("value of shape (None, 5, 3)")


@pytest.mark.parametrize(
    "text",
    [
        "a.output[7] = 0",  # a call may have a batch of 8
        "a.output = $v",
        "a.output[:, :2] = $v[:, :2]",
        "a.output = sort(_, axis=0)",
        "a.output[_ > 0] = 1",
        "att.scores[:, 99] = 0",  # inside of a layer
        "b.output[..., 0] = mean(a.output)",
    ],
)
def test_what_may_be_right(model, text):
    bindings = {"v": keras.ops.ones((8, 5, 3))} if "$v" in text else {}
    kpatch.intervene(model, text, **bindings).dismiss()


def test_a_layer_of_two_graphs():
    """What they disagree on is not known."""
    shared = layers.Dense(2, name="shared")
    short, long = keras.Input((3, 4)), keras.Input((5, 4))
    model = keras.Model([short, long], [shared(short), shared(long)])
    kpatch.intervene(model, "shared.output[:, 4] = 0").dismiss()
    assert message(kpatch.intervene, model, "shared.output[:, 4, 2] = 0").startswith("index 2 is out of range")


# An error in a step ---------------------------------------------------------------------------------------------------

STEPS = {"predict": lambda model: model.predict(X, batch_size=3, verbose=0)}
if keras.backend.backend() != "numpy":
    STEPS["evaluate"] = lambda model: model.evaluate(X, X[:, :1], batch_size=3, verbose=0)
    STEPS["fit"] = lambda model: model.fit(X, X[:, :1], verbose=0)
    STEPS["train_on_batch"] = lambda model: model.train_on_batch(X, X[:, :1])


keeps = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="other trainers leave the values in their variables"
)


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_an_error_costs_no_weights(step, outer):
    """Keras on jax takes the values out of variables before a step, and leaves them empty if it cannot be traced."""
    inner = keras.Sequential([keras.Input((4,)), Holder(name="holder"), layers.BatchNormalization()])
    model = keras.Sequential([keras.Input((4,)), *([inner] if outer else inner.layers), layers.Dense(1)])
    model.compile("adam", "mse")
    if step != "predict":
        STEPS[step](model)  # else Keras, which builds the metrics, wraps the error
    before = models.snapshot(model), models.snapshot(model.optimizer)
    with pytest.raises(kpatch.SubscriptError), kpatch.intervene(inner, "holder.inner.output[:, 7] = 0"):
        STEPS[step](model)
    assert (models.snapshot(model), models.snapshot(model.optimizer)) == before
    STEPS[step](model)


@keeps
def test_an_error_in_a_later_step_keeps_what_was_trained():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="a")])
    model.compile("adam", "mse")
    before = models.snapshot(model)
    with pytest.raises(kpatch.SubscriptError), kpatch.intervene(model, "a.output[2] = 0"):
        model.fit(np.ones((5, 4)), np.ones((5, 2)), batch_size=3, verbose=0)  # the second batch is one of 2
    after = models.snapshot(model)
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert int(model.optimizer.iterations) == 1
    model.fit(np.ones((5, 4)), np.ones((5, 2)), verbose=0)


@keeps
def test_an_error_of_a_layer_and_a_refused_function_cost_no_weights():
    class Editing(layers.Layer):
        def call(self, x):
            if x.shape[0] == 4:
                kpatch.apply(model, "a.kernel = 0")
            return x

    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="a"), ScatterLayer("_[2] = 0"), Editing()])
    before = models.snapshot(model)
    for rows, error in ((2, kpatch.SubscriptError), (4, kpatch.UnsupportedError)):
        with pytest.raises(error):
            model.predict(np.ones((rows, 4)), verbose=0)
        assert models.snapshot(model) == before


# Plans and names ------------------------------------------------------------------------------------------------------


def test_a_plan_of_activations(model):
    text = "a.output[:, 1] = 0; b.bias[1] = 3; att.scores[:, 0] = 0; (a|b).output = $v; lstm.output.1 = 0"
    plan = kpatch.plan(model, text, v=1.0, expect=5)
    assert [(row.path, row.shape, row.dtype, row.entries) for row in plan.rows] == [
        ("a.output", (None, 5, 3), "float32", None),
        ("b.bias", (2,), "float32", 1),
        ("att.scores", None, None, None),
        ("a.output", (None, 5, 3), "float32", None),
        ("b.output", (None, 5, 2), "bfloat16", None),
        ("lstm.output.1", (None, 2), "float32", None),
    ]
    assert repr(plan) == "<Plan 6 writes>"
    assert plan.rows[2].to_dict()["shape"] is None
    assert str(kpatch.plan(network(batch=2), "a.output[1, :2] = 0; att.heads = 0")).splitlines()[3:] == [
        "  a.output[1, :2] = 0   a.output    (2, 5, 3)   float32         6",
        "  att.heads = 0         att.heads   ?           ?               ?",
    ]
    assert message(kpatch.plan, model, "a.output = 0", expect=2).startswith("the patch matches 0 variables and 1 act")


def test_a_plan_of_weights_that_are_called_so():
    model = models.filled(keras.Sequential([keras.Input((4,)), layers.Dense(2, name="output")]))
    assert kpatch.plan(model, "output.kernel[0] = 0").rows[0].entries == 2


@pytest.mark.backend_free
def test_names_nearby(model):
    told = {
        "a.outptu": "no variable 'a.outptu'; did you mean 'a.output'?",
        "atx.output": "no activation 'atx.output'; did you mean 'att.output'?",
        "att.score": "no variable 'att.score'; did you mean 'att.scores'?",
        "atx.haeds": "no variable 'atx.haeds'; did you mean 'att.heads'?",
        "a.scores": "no variable 'a.scores'",
        "other.output": "no activation 'other.output'",
    }
    for name, expected in told.items():
        for function, text in (kpatch.intervene, f"{name} = 0"), (kpatch.record, name), (kpatch.plan, f"{name} = 0"):
            assert message(function, model, text).splitlines()[0] == expected, function
