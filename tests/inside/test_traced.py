"""Inside of functions that are being traced: what works at once is refused, and nothing of a trace is kept."""

import gc
import traceback
import types
import weakref

import keras
import models
import numpy as np
import pytest
from keras import ops

import kpatch
from kpatch.constraints import PatchConstraint
from kpatch.initializers import PatchedInitializer
from kpatch.layers import PatchedLayer, ScatterLayer
from kpatch.names.index import index
from kpatch.run import checking
from kpatch.run.steps import Checked
from kpatch.values.tensors import to_numpy

BACKEND = keras.backend.backend()
X = np.arange(12, dtype="float32").reshape(4, 3)

if BACKEND == "numpy":
    pytest.skip("numpy traces nothing", allow_module_level=True)


def compilers():
    """What compiles a function on this backend, by name."""
    if BACKEND == "jax":
        import jax

        return {"jit": jax.jit, "jit of grad": lambda f: jax.jit(jax.value_and_grad(f))}
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return {"function": tf.function, "XLA": lambda f: tf.function(f, jit_compile=True)}
    import torch

    return {
        "compile": lambda f: torch.compile(f, backend="aot_eager"),
        "whole": lambda f: torch.compile(f, backend="aot_eager", fullgraph=True),
    }


COMPILE = compilers()


@pytest.fixture(autouse=True)
def _from_the_start():
    if BACKEND == "torch":
        import torch

        torch._dynamo.reset()


# What works at once ---------------------------------------------------------------------------------------------------


def refusal(name):
    return (
        f"{name} cannot be called inside a function that is being traced or compiled\n"
        "  kpatch.edit works there, and returns a new tensor\n"
        "  a layer (kpatch.layers.ScatterLayer) or kpatch.rewrite edits in each call of a model\n"
        "  kpatch.hold and kpatch.callbacks.PatchCallback edit weights while a model trains"
    )


TEXT = "dense_1.bias[0] = 1; dense_1.kernel[1:] *= 2; dense_2.kernel[_ > 0] = 3; dense_2.bias = _ * 2 + 1"
AT_ONCE = {
    "kpatch.apply": lambda model, applied: kpatch.apply(model, TEXT),
    "kpatch.plan": lambda model, applied: kpatch.plan(model, TEXT),
    "kpatch.hold": lambda model, applied: kpatch.hold(model, "dense_1.bias[0] = 1"),
    "undo()": lambda model, applied: applied.undo(),
}


@pytest.mark.parametrize("compiler", COMPILE)
@pytest.mark.parametrize("name", AT_ONCE)
def test_what_works_at_once_is_refused(name, compiler):
    """With one error; afterwards the same works as ever, and what is compiled anew is refused as before."""
    model, untouched = models.dense(), models.dense()
    applied = kpatch.apply(model, "dense_2.bias = 5")
    before = models.snapshot(model)
    call = AT_ONCE[name]

    def function(x):
        y = x * 2
        call(model, applied)
        return ops.sum(y)

    for _ in range(2):
        with pytest.raises(Exception, match="cannot be called inside a function") as caught:
            COMPILE[compiler](function)(ops.ones((2,)))
        if compiler != "whole":  # there dynamo gives an error of its own, with the reason
            assert type(caught.value) is kpatch.UnsupportedError
            assert str(caught.value) == refusal(name)
        assert "Internal" not in type(caught.value).__name__
        assert models.snapshot(model) == before
    call(model, applied)
    again = kpatch.apply(untouched, "dense_2.bias = 5")
    call(untouched, again)
    assert models.snapshot(model) == models.snapshot(untouched)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras's training step is not traced on torch")
def test_refused_in_a_training_step_and_right_after_it():
    class Edits(keras.Sequential):
        edits = True

        def train_step(self, *args):
            if self.edits:
                kpatch.apply(self, "d.bias[0] = 5")
            return super().train_step(*args)

    model = Edits([keras.Input((3,)), keras.layers.Dense(2, name="d")])
    model.compile("sgd", "mse")
    kernel = np.array(model.get_weights()[0])
    with pytest.raises(kpatch.UnsupportedError, match=r"^kpatch\.apply cannot be called inside a function"):
        model.fit(X, X[:, :2], verbose=0)
    kpatch.apply(model, "d.bias[0] = 5")
    np.testing.assert_array_equal(model.get_weights()[1], [5, 0])
    np.testing.assert_array_equal(model.get_weights()[0], kernel)


@pytest.mark.parametrize("compiler", COMPILE)
def test_what_is_traced_as_values_is_edited(compiler):
    """`grad`, a tape and autograd alone run a function with values: there an edit is made, each time."""
    model = models.dense()

    def function(x):
        kpatch.apply(model, "dense_1.bias[0] += 1")
        return x * x

    before = to_numpy(model.layers[0].bias.value)[0]
    for count in (1, 2):
        if BACKEND == "jax":
            import jax

            assert jax.grad(function)(3.0) == 6
        elif BACKEND == "tensorflow":
            import tensorflow as tf

            x = tf.constant(3.0)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = function(x)
            assert tape.gradient(y, x) == 6
        else:
            import torch

            x = torch.tensor(3.0, requires_grad=True)
            function(x).backward()
            assert x.grad == 6
        assert to_numpy(model.layers[0].bias.value)[0] == before + count


# What is pure ---------------------------------------------------------------------------------------------------------

VARIABLE = object()
PURE = {
    "_[0, 0] = 7": {},
    "_[1:, ::-1] = 3": {},
    "_[[0, 1], [2, 2]] = [7, 8]": {},
    "_[_ > 4] = _ * 2": {},
    "_ = 0.5 * _ + $v": {"v": X[0]},
    "_[$rows] = $v": {"rows": [0, 2], "v": np.float32(4.5)},
    "_ += $w": {"w": VARIABLE},
    "let m = max(_); _[argmax(_, axis=0) % 3, 1] = m": {},
    "_ = where(_ > $v, _, 0)": {"v": X[:, :1]},
}


def bindings_of(text):
    return {name: keras.Variable(X) if value is VARIABLE else value for name, value in PURE[text].items()}


@pytest.mark.parametrize("compiler", COMPILE)
@pytest.mark.parametrize("text", PURE)
def test_an_edit_that_was_traced_first(text, compiler):
    """Traced, then eager, then traced by another function: whichever comes first leaves nothing to the others."""
    given = bindings_of(text)

    def edited(x):
        return kpatch.edit(x, text, **given)

    def function(x):
        return ops.sum(edited(x))

    expected = None
    for run in (COMPILE[compiler](function), function, COMPILE[compiler](lambda x: function(x) * 1)):
        result = run(ops.convert_to_tensor(X))
        result = float(to_numpy(result[0] if isinstance(result, tuple) else result))
        expected = result if expected is None else expected
        assert result == expected
    assert expected != X.sum()


def scattered():
    layer = ScatterLayer("_[:, 0] = $v; _[1:] += $v[0]", bindings={"v": X[:, 1]})
    return layer, layer


def patched():
    dense = keras.layers.Dense(2, kernel_initializer="ones")
    dense.build((None, 3))
    return PatchedLayer(dense, "kernel[:, 0] = $v; bias = _ + $v[0]", bindings={"v": X[1]}), dense


def constrained():
    constraint = PatchConstraint("_[0] = $v", bindings={"v": X[1]})
    return constraint, constraint


def initialized():
    initializer = PatchedInitializer("_[0] = $v", base="ones", bindings={"v": X[1]})
    return (lambda x: x + initializer((4, 3))), initializer


HOLDERS = {"layer": scattered, "weights": patched, "constraint": constrained, "initializer": initialized}


@pytest.mark.parametrize("compiler", COMPILE)
@pytest.mark.parametrize("name", HOLDERS)
def test_what_holds_a_patch_and_was_traced_first(name, compiler):
    """The values of its `$names` are those of no trace."""
    call, _ = HOLDERS[name]()
    if compiler == "whole":  # dynamo can neither build a layer nor make an initial value
        if name == "initializer":
            pytest.skip("initializers run before a model is compiled")
        call(ops.convert_to_tensor(X))
    expected = float(to_numpy(ops.sum(HOLDERS[name]()[0](ops.convert_to_tensor(X)))))
    for run in (COMPILE[compiler](lambda x: ops.sum(call(x))), lambda x: ops.sum(call(x))) * 2:
        result = run(ops.convert_to_tensor(X))
        assert float(to_numpy(result[0] if isinstance(result, tuple) else result)) == expected


@pytest.mark.parametrize("compiler", COMPILE)
def test_weights_that_changed_inside_a_trace(compiler):
    """Planned again while a function is traced, as the layer has got another variable."""
    layer, dense = patched()
    expected = to_numpy(layer(ops.convert_to_tensor(X)))
    dense._tracker.unlock()
    dense._kernel = dense.add_weight(shape=(3, 2), initializer="ones", name="kernel")
    dense._trainable_variables.remove(dense._trainable_variables[0])
    for run in (COMPILE[compiler](lambda x: ops.sum(layer(x))), layer):
        result = run(ops.convert_to_tensor(X))
    np.testing.assert_array_equal(to_numpy(result), expected)


# What is left of a trace ----------------------------------------------------------------------------------------------


def everything(x, given):
    """Edits of every kind, with values of every kind."""
    total = ops.sum(x)
    for text in PURE:
        total += ops.sum(kpatch.edit(x, text, **{name: given[id(value)] for name, value in PURE[text].items()}))
    return total


def values():
    return {id(v): keras.Variable(X) if v is VARIABLE else v for given in PURE.values() for v in given.values()}


@pytest.mark.skipif(BACKEND != "jax", reason="jax's tracers")
def test_no_tracer_is_left():
    import jax

    holders, given = [make() for make in HOLDERS.values()], values()
    gc.collect()
    gc.freeze()  # what other tests left is not among the objects that are looked through below
    try:
        with jax.checking_leaks():
            jax.jit(jax.grad(lambda x: everything(x, given) + sum(ops.sum(call(x)) for call, _ in holders)))(X)
        gc.collect()
        assert [held for held in gc.get_objects() if isinstance(held, jax.core.Tracer)] == []
    finally:
        gc.unfreeze()
        gc.collect()
        gc.freeze()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's graphs")
def test_no_graph_is_left():
    import tensorflow as tf

    holders, given, graphs, model = [make() for make in HOLDERS.values()], values(), [], models.dense()

    def function(x):
        graphs.append(weakref.ref(tf.compat.v1.get_default_graph()))
        with pytest.raises(kpatch.UnsupportedError):
            kpatch.apply(model, TEXT)
        return everything(x, given) + sum(ops.sum(call(x)) for call, _ in holders)

    made = tf.function(function, autograph=False)
    made(ops.convert_to_tensor(X))
    del made
    gc.collect()
    assert graphs
    assert [graph() for graph in graphs] == [None] * len(graphs)


def reachable(*roots):
    """All objects that the roots hold, modules, classes and functions apart."""
    seen, left = {}, [*roots]
    while left:
        held = left.pop()
        if id(held) not in seen and not isinstance(held, (type, types.ModuleType, types.FunctionType)):
            seen[id(held)] = held
            left += gc.get_referents(held)
    return seen.values()


@pytest.mark.skipif(BACKEND != "torch", reason="torch's fake tensors")
def test_no_fake_tensor_is_left():
    """In what kpatch keeps: torch itself keeps some."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor

    holders, given, model = [make() for make in HOLDERS.values()], values(), models.dense()
    function = lambda x: everything(x, given) + sum(ops.sum(call(x)) for call, _ in holders)  # noqa: E731
    torch.compile(function, backend="aot_eager")(ops.convert_to_tensor(X))
    with pytest.raises(kpatch.UnsupportedError):
        torch.compile(lambda x: kpatch.apply(model, TEXT), backend="aot_eager")(ops.convert_to_tensor(X))
    kept = [held for _, holder in holders for held in [getattr(holder, "patch", None)] if held is not None]
    found = list(reachable(checking._check_kept, *kept, vars(index(model))))
    assert any(isinstance(held, Checked) for held in found)
    assert not any(isinstance(held, (FakeTensor, torch.SymInt)) for held in found)


@pytest.mark.skipif(BACKEND != "torch", reason="dynamo is torch's")
@pytest.mark.parametrize("name", ["intervene", "record", "rewrite"])
def test_blocks_are_made_outside_of_compiled_functions(name):
    """Dynamo would trace the parser, and the process would end."""
    import torch

    model = models.dense()
    making = torch.compile(lambda: getattr(kpatch, name)(model, "dense_1.output[:, 0] = 0"), backend="eager")
    with pytest.raises(kpatch.UnsupportedError, match=f"^kpatch.{name} cannot be called inside a function"):
        making()


@pytest.mark.skipif(BACKEND != "torch", reason="torch's symbols")
@pytest.mark.parametrize("dynamic", [True, None])
def test_lengths_that_are_symbols(dynamic):
    """`torch.compile` makes symbols of lengths that it has met twice."""
    import torch

    text = "_[0] = 7; _[1:, ::-1] = 2; _[:, 0] *= 3; _[_ > 4] = 1"
    function = torch.compile(lambda x: kpatch.edit(x, text), backend="aot_eager", dynamic=dynamic)
    for rows in (4, 2, 3, 4):
        x = torch.as_tensor(X[:rows])
        np.testing.assert_array_equal(function(x).numpy(), kpatch.edit(x, text).numpy())


# Errors ---------------------------------------------------------------------------------------------------------------

FAILS_TRACED = [
    ("_ = take(_, cast(_[0], 'int32'))", "a compiled function cannot check that this index is in range"),
    ("_[_ > 1] = sum(_)", "under a mask in a compiled function"),
    ("assert all(_ >= 0); _[0] = 9", "an assertion about values cannot be checked inside a compiled function"),
]


@pytest.mark.parametrize("compiler", COMPILE)
@pytest.mark.parametrize(("text", "message"), FAILS_TRACED)
def test_what_failed_in_a_trace_works_at_once(text, message, compiler):
    x = ops.convert_to_tensor(np.array([[0, 1], [2, 3]], "float32"))
    layer = ScatterLayer("_[0] = 1")
    for _ in range(2):
        with pytest.raises(Exception, match=message) as caught:
            COMPILE[compiler](lambda x: ops.sum(layer(kpatch.edit(x, text))))(x)
        if BACKEND != "torch":  # dynamo wraps it
            assert isinstance(caught.value, kpatch.PatchError)
            assert caught.value.span is not None
        assert to_numpy(kpatch.edit(x, text)).sum() != 6
        assert to_numpy(layer(x)).sum() == 7


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's autograph")
def test_autograph_rewrites_no_function_of_kpatch():
    """It could not transform some, and said so."""
    import tensorflow as tf

    files = []

    class Value:
        shape = ()

        def __array__(self, dtype=None, copy=None):
            files[:] = [frame.filename for frame in traceback.extract_stack()]
            return np.array(5.0)

    @tf.function
    def function(x):
        return kpatch.edit(x, "_[0] = $v", v=Value())

    assert to_numpy(function(tf.zeros(2))).tolist() == [5, 0]
    generated = [number for number, file in enumerate(files) if "autograph_generated" in file]
    assert len(generated) == 1, "of the user's function alone"
    assert any("kpatch" in file for file in files[generated[0] :])


# Functions that are not traced ----------------------------------------------------------------------------------------


def public(folder):
    """Calls of the public functions and methods, by name, and whether they are refused."""
    model, other = models.dense(), models.dense()
    file, copy, text = (str(folder / name) for name in ("a.keras", "b.keras", "p.kpatch"))
    model.save(file)
    other.save(copy)
    (folder / "p.kpatch").write_text("dense_1.bias = 1")
    patch, applied, plan = kpatch.parse("dense_1.bias = 1"), kpatch.apply(model, TEXT), kpatch.plan(model, TEXT)
    held = kpatch.hold(other, "dense_1.bias[0] = 1")
    works = {
        "parse": lambda: kpatch.parse("dense_1.bias = 1") == patch,
        "load": lambda: kpatch.load(text),
        "show": lambda: kpatch.show(model),
        "show a file": lambda: kpatch.show(file),
        "diff": lambda: str(kpatch.diff(file, copy)),
        "checkpoint.plan": lambda: kpatch.checkpoint.plan(file, patch),
        "checkpoint.apply": lambda: kpatch.checkpoint.apply(copy, patch, in_place=True),
        "checkpoint.log": lambda: kpatch.checkpoint.log(copy),
        "checkpoint.open": lambda: kpatch.checkpoint.open(file)["dense_1.bias"],
        "writes": lambda: [write.after for write in applied.writes],
        "release": held.release,
        "PatchConstraint": lambda: PatchConstraint("_ = 1"),
        "PatchedInitializer": lambda: PatchedInitializer("_ = 1"),
    }
    if BACKEND != "torch":  # Keras makes no layers inside of torch.compile
        works["ScatterLayer"] = lambda: ScatterLayer("_[0] = 1")
    refused = {
        "Plan.apply": plan.apply,
        "kpatch.sweep": lambda: kpatch.sweep(model, "dense_1.output[:, $i] = 1", metric=lambda: 1, i=range(2)),
    }
    return works, refused if BACKEND == "torch" else {"Plan.apply": plan.apply}


def test_public_functions_work_or_are_refused(tmp_path):
    """Dynamo would trace the parser, and the process would end."""
    works, refused = public(tmp_path)
    compile_ = next(iter(COMPILE.values()))
    done = []

    @compile_
    def function(x):
        first = kpatch.Patch("dense_1.bias = 1") + "dense_2.bias = 1"
        for name, call in works.items():  # the calls break a graph of torch.compile, so it runs the loop as it is
            assert call() is not False, name
            done.append(name)
        return x + len(first.statements)

    assert to_numpy(function(ops.ones((2,)))).tolist() == [3, 3]
    assert done == list(works)
    for name, call in refused.items():
        with pytest.raises(kpatch.UnsupportedError) as caught:
            compile_(lambda x, call=call: (call(), x + 1))(ops.ones((2,)))
        assert str(caught.value) == refusal(name)
