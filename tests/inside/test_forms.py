"""Interventions of one form, the same patch with other values: what is compiled for one serves the others."""

import itertools

import keras
import models
import numpy as np
import pytest
from test_routes import compiled

import kpatch
from kpatch.inside.forms import KEPT
from kpatch.inside.traces import SPENT, _active
from kpatch.names.index import index

pytestmark = pytest.mark.filterwarnings("error:kpatch.intervene")  # no false alarm, however the model is run

BACKEND = keras.backend.backend()
COMPILES = BACKEND in ("jax", "tensorflow")
X = np.random.default_rng(0).integers(-3, 4, (4, 4)).astype("float32")


class Count(keras.layers.Layer):
    """Counts how often Python calls it, where a function is compiled: how often it was traced."""

    runs = 0  # of all such layers: in the layer it would be a change of the model

    def call(self, x):
        Count.runs += 1
        return x


class Counted:
    """A model and a compiled function of it."""

    def __init__(self):
        self.count = Count(name="count")
        layers = [keras.layers.Dense(3, name="a"), self.count, keras.layers.Dense(2, name="b")]
        self.model = models.filled(keras.Sequential([keras.Input((4,)), *layers]))
        self.function = compiled(self.model)
        self.hidden = keras.Model(self.model.inputs, self.count.output)

    def __call__(self, x=X):
        return np.array(keras.ops.convert_to_numpy(self.function(keras.ops.convert_to_tensor(x))))

    def expected(self, edit, x=X):
        kernel, bias, kernel_2, bias_2 = self.model.get_weights()
        hidden = x @ kernel + bias
        edit(hidden)
        return hidden @ kernel_2 + bias_2


CLEAN = np.random.default_rng(1).integers(-3, 4, (6, 4, 3)).astype("float32")


def indexed(hidden, n):
    hidden[:, n % 3] = n


def steered(hidden, n):
    hidden += CLEAN[n, 0]


def restored(hidden, n):
    hidden[n % 4, n % 3] = CLEAN[n][n % 4, n % 3]


def scaled(hidden, n):
    hidden[:2] *= n


def offset(hidden, n):
    hidden[:, n % 3] += 2 * CLEAN[n, 0, n % 3] - 1


CASES = {
    "a.output[:, $i] = $v": (indexed, lambda n: {"i": n % 3, "v": n}),
    "a.output[:, -$i] = $v": (
        lambda hidden, n: hidden.__setitem__((slice(None), -(n % 3)), n),
        lambda n: {"i": n % 3, "v": float(n)},
    ),
    "a.output += $v": (steered, lambda n: {"v": keras.ops.convert_to_tensor(CLEAN[n, 0])}),
    "count.input += $v": (steered, lambda n: {"v": CLEAN[n, 0]}),
    "a.output += $v  # a list": (steered, lambda n: {"v": CLEAN[n, 0].tolist()}),
    "a.output += $v  # float64": (steered, lambda n: {"v": CLEAN[n, 0].astype("float64")}),
    "a.output[$r, $i] = $clean[$r, $i]": (restored, lambda n: {"r": np.int64(n % 4), "i": n % 3, "clean": CLEAN[n]}),
    "a.output[:2] *= $v": (scaled, lambda n: {"v": n}),
    "a.output[:, $i] += 2 * $clean[0, $i] - 1": (offset, lambda n: {"i": n % 3, "clean": CLEAN[n]}),
}


@pytest.mark.parametrize("text", CASES)
def test_compiled_twice_at_most(text):
    """Once with the values in the function, and once for all others."""
    model, (edit, bindings) = Counted(), CASES[text]
    kpatch.intervene(model.model, "a.bias = 0").start().release()  # the first block in a process has jax trace anew
    plain = model()
    runs: list[int] = []
    for n in range(6):
        with kpatch.intervene(model.model, text, **bindings(n)):
            got = model()
        assert got.tobytes() == model.expected(lambda hidden, n=n: edit(hidden, n)).astype("float32").tobytes()
        runs.append(Count.runs)
    assert model().tobytes() == plain.tobytes()
    if COMPILES:
        assert runs[0] < runs[1] == runs[-1] == Count.runs


@pytest.mark.parametrize("text", ["a.output[:, $i:] = 0", "a.output[:, 0] = $i", "a.output[:, $i] = 3 + 2 ** $i"])
def test_what_cannot_vary_is_compiled_for_each_value(text):
    model = Counted()
    for n in (0, 1, 2, 1):
        with kpatch.intervene(model.model, text, i=n):
            got = model()

        def edit(hidden, n=n):
            place, value = (slice(n, None), 0) if ":]" in text else (n if "$i]" in text else 0, 3 + 2**n)
            hidden[:, place] = n if text.endswith("= $i") else value

        assert got.tobytes() == model.expected(edit).tobytes()


def test_an_index_out_of_range():
    """Where only the call tells the length of an axis; also if the function was compiled for another index."""
    model = Counted()
    for n, wrong in itertools.product((0, 1, 2), (False, True)):
        with kpatch.intervene(model.model, "a.output[$i] = 0", i=4 if wrong else n):
            if wrong:
                with pytest.raises(kpatch.SubscriptError, match="out of range"):
                    model()
            else:
                assert model().tobytes() == model.expected(lambda hidden, n=n: hidden.__setitem__(n, 0)).tobytes()


def test_blocks_of_one_form_at_a_time():
    model, text = Counted(), "a.output[:, $i] = $v"
    plain = model()
    for n in range(3):
        with kpatch.intervene(model.model, text, i=0, v=n):
            one = model()
            with kpatch.intervene(model.model, text, i=1, v=7):

                def edit(hidden, n=n):
                    hidden[:, 0], hidden[:, 1] = n, 7

                assert model().tobytes() == model.expected(edit).tobytes()
            assert model().tobytes() == one.tobytes()
    assert model().tobytes() == plain.tobytes()


def test_an_intervention_goes_on_as_it_began():
    model, text = Counted(), "a.output[:, $i] = $v"
    blocks = [kpatch.intervene(model.model, text, i=n, v=n) for n in range(3)]
    for _, n in itertools.product(range(3), range(3)):
        with blocks[n]:
            assert model().tobytes() == model.expected(lambda hidden, n=n: indexed(hidden, n)).tobytes()


def test_weights_that_are_edited():
    """On jax a function that closes over weights is compiled with their values."""
    model = Counted()
    block = kpatch.intervene(model.model, "b.bias *= 2; a.output = 0")
    for n in range(3):
        with kpatch.intervene(model.model, "b.bias = $w; a.output[:, :] = $v", w=float(n), v=0.0):
            assert (model() == n).all()
        kpatch.apply(model.model, "b.bias = $n", n=float(n))
        with block:
            assert (model() == 2 * n).all()


def test_a_block_is_no_change_of_the_model():
    """Else what is made in the block would be made anew after it."""
    model = Counted()
    names = index(model.model)
    with kpatch.intervene(model.model, "count.input *= 2"):
        assert index(model.model) is names
        with kpatch.record(model.model, "b.output"):
            model.model(X)
            assert index(model.model) is names
        model.count.more = 1  # an attribute, as one with a layer would be
        assert index(model.model) is not names
        names = index(model.model)
    assert index(model.model) is names


@pytest.mark.skipif(BACKEND == "numpy", reason="numpy has no gradients")
def test_values_with_gradients_are_compiled_in():
    model = Counted()

    def loss(v):
        with kpatch.intervene(model.model, "a.output += $v", v=v):
            return keras.ops.sum(model.function(keras.ops.convert_to_tensor(X)) ** 2)

    hidden, (kernel, bias) = model.hidden(X), model.model.get_weights()[2:]
    expected = (2 * (np.array(keras.ops.convert_to_numpy(hidden)) @ kernel + bias) @ kernel.T).sum(0)
    for _ in range(3):
        np.testing.assert_allclose(models.gradient(loss, keras.ops.zeros((3,))), expected, rtol=1e-4)


def test_many_blocks_leave_no_growing_cache():
    """Of one form, and of as many forms as there are blocks."""
    model = Counted()
    for n in range(300):
        with kpatch.intervene(model.model, "a.output[:, $i] = $v", i=n % 3, v=n):
            got = model()
    assert got.tobytes() == model.expected(lambda hidden: hidden.__setitem__((slice(None), 2), 299)).tobytes()
    if BACKEND == "jax":
        assert model.function._cache_size() == 2
    if BACKEND == "tensorflow":
        assert model.function.experimental_get_tracing_count() == 2
    made = set()
    for n in range(20):
        with kpatch.intervene(model.model, f"a.output[:, 0] = {n}"):
            model.model.predict(X, verbose=0)
            made.add(model.model.predict_function)
    kept = vars(index(model.model))
    assert not _active
    assert len(kept["interventions"]) <= KEPT
    assert len(kept.get("spent_traces", ())) <= SPENT
    assert len(made) <= 2
