"""Recordings of one form: what is compiled in a block runs again in later ones, and each block has its own values."""

import contextlib
import gc
import threading
import weakref

import keras
import models
import numpy as np
import pytest
from test_forms import COMPILES, Count, Counted, X
from test_routes import compiled

import kpatch
from kpatch.inside import outlets
from kpatch.names.index import index

BACKEND = keras.backend.backend()
WHAT = ["a.output", "b.input"]


def counted():
    """A model and a function of it; on torch the model itself, as dynamo takes seconds to begin."""
    model = Counted()
    if BACKEND == "torch":
        model.function = model.model
    return model


def host(x):
    return np.array(keras.ops.convert_to_numpy(x))


def hidden(model, x=X):
    kernel, bias, *_ = model.model.get_weights()
    return (x @ kernel + bias).astype("float32")


@pytest.fixture(scope="module", autouse=True)
def begun():
    """The first block in a process has jax trace anew."""
    kpatch.intervene(models.dense(), "dense_1.output = 0").start().release()


@pytest.mark.parametrize("first", ["outside", "in a block"])
def test_compiled_once_whatever_the_options(first):
    model = counted()
    if first == "outside":
        model()
    runs = []
    for n, options in enumerate([{}, {"host": True}, {"stack": True}, {"limit": 2 * hidden(model).nbytes}, {}]):
        with kpatch.record(model.model, WHAT, **options) as clean:
            model(X + n)
        runs.append(Count.runs)
        before = repr(clean)
        model(X + 9)  # of which no block knows
        assert repr(clean) == before
        assert list(clean) == WHAT
        for name in WHAT:
            found = host(clean[name])
            assert found.tobytes() == hidden(model, X + n).tobytes()
            assert found.shape == ((1, 4, 3) if "stack" in options else (4, 3))
        assert isinstance(clean["a.output"], np.ndarray) or "host" not in options
    if COMPILES:
        assert Count.runs - runs[0] == (first == "in a block")
    if BACKEND == "jax":
        assert model.function._cache_size() == 2
    if BACKEND == "tensorflow":
        assert model.function.experimental_get_tracing_count() == 2


def test_blocks_at_a_time():
    """Nested, of one form and of two, beside an intervention, and ended out of order; each sees what runs in it."""
    model, runs = counted(), []
    for n in range(3):
        x = X + n
        with kpatch.record(model.model, WHAT) as outer:
            model(x)
            with kpatch.record(model.model, WHAT) as inner, kpatch.record(model.model, "count.output") as other:
                model(x + 1)
            with kpatch.intervene(model.model, "a.output[:, 0] = 5"), kpatch.record(model.model, WHAT) as patched:
                model(x + 2)
        expected = [hidden(model, x + k) for k in range(3)]
        expected[2][:, 0] = 5
        assert [host(each).tobytes() for each in outer["b.input"]] == [each.tobytes() for each in expected]
        assert host(inner["a.output"]).tobytes() == host(other["count.output"]).tobytes() == expected[1].tobytes()
        assert host(patched["a.output"]).tobytes() == expected[2].tobytes()
        one, late = kpatch.record(model.model, WHAT), kpatch.record(model.model, WHAT)
        one.__enter__()
        late.__enter__()
        model(x)
        one.__exit__(None, None, None)
        model(x + 1)
        late.__exit__(None, None, None)
        assert host(one["a.output"]).tobytes() == expected[0].tobytes()
        assert [host(each).tobytes() for each in late["a.output"]] == [each.tobytes() for each in expected[:2]]
        runs.append(Count.runs)
    if COMPILES:
        assert runs[2] == runs[1] <= runs[0] + 1  # of the intervention, whose values are compiled in once


def test_models_and_functions_apart():
    one, other = counted(), counted()
    for n in range(3):
        with kpatch.record(one.model, WHAT) as first, kpatch.record(other.model, WHAT) as second:
            one(X + n)
            other(X - n)
        assert host(first["a.output"]).tobytes() == hidden(one, X + n).tobytes()
        assert host(second["a.output"]).tobytes() == hidden(other, X - n).tobytes()


def test_after_errors():
    model = counted()
    for n in range(2):
        with contextlib.suppress(ZeroDivisionError), kpatch.record(model.model, WHAT) as broken:
            model(X + n)
            raise ZeroDivisionError
        assert host(broken["a.output"]).tobytes() == hidden(model, X + n).tobytes()
        with pytest.raises(kpatch.LimitError), kpatch.record(model.model, WHAT, limit=50) as full:
            model(X + n)
        assert len(full) == 0
        with pytest.raises(kpatch.ResolutionError, match=r"nothing was recorded of 'a\.output'"):
            kpatch.record(model.model, WHAT).__enter__().__exit__(None, None, None)
        with kpatch.record(model.model, WHAT) as clean:
            model(X - n)
        assert host(clean["a.output"]).tobytes() == hidden(model, X - n).tobytes()


def test_threads():
    """Blocks of one form in two threads at a time: each recording has what both threads run while both blocks last."""
    model, found = counted(), {}
    model()
    meet = threading.Barrier(2, timeout=60)

    def work(number):
        for n in range(2):
            with kpatch.record(model.model, WHAT) as clean:
                meet.wait()
                if number == n:  # one thread after the other
                    model(X + n)
                meet.wait()
                found[number, n] = clean
            meet.wait()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for (_, n), clean in found.items():
        assert host(clean["a.output"]).tobytes() == hidden(model, X + n).tobytes()


def test_keras_own_functions():
    model, runs = counted(), []
    for n in range(3):
        with kpatch.record(model.model, WHAT) as clean:
            model.model.predict(X + n, verbose=0)
        runs.append(Count.runs)
        assert host(clean["a.output"]).tobytes() == hidden(model, X + n).tobytes()
    assert BACKEND != "jax" or runs[1] == runs[2]


@pytest.mark.skipif(not COMPILES, reason="nothing is compiled")
def test_what_is_compiled_keeps_no_model():
    model = counted()
    held = weakref.ref(model.model)
    function = compiled(lambda x: held()(x))
    for _ in range(2):
        with kpatch.record(model.model, WHAT) as clean:
            function(keras.ops.convert_to_tensor(X))
    del model, clean
    gc.collect()
    assert held() is None
    assert function is not None


def test_many_forms(monkeypatch):
    monkeypatch.setattr(outlets, "KEPT", 2)
    model = counted()
    for n in range(6):
        with kpatch.record(model.model, ("a.output", "count.output", "b.output")[n % 3]) as clean:
            model.model(X + n)
        assert len(clean) == 1
    kept = vars(index(model.model))
    assert len(kept["recordings"]) == 2
    assert not any(line.busy or line.outlet.recorder for lines in kept["recordings"].values() for line in lines)
