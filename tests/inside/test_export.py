"""`model.export`: what is loaded again gives the model's numbers, for batches of another size than the first.

These are the formats in which Keras exports a plain `Dense` on the backend of this process, with what is installed.
"""

import sys
import types

import keras
import numpy as np
import pytest

import kpatch
from kpatch.layers import PatchedLayer, ScatterLayer
from kpatch.values.tensors import to_numpy

BACKEND = keras.backend.backend()
FORMATS = {"tensorflow": ("tf_saved_model", "litert"), "jax": ("tf_saved_model",), "torch": ("torch",), "numpy": ()}
X = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")


def scattered():
    text = "_[..., 3] = 0; _[_ > 1] = 1; _[:, ::2] *= 2; _[:, [1, 3]] += $v; _[1:, 0] = 5; _[:, 1] = mean(_)"
    return keras.Sequential([keras.Input((4,)), ScatterLayer(text, bindings={"v": [1.0, 2.0]})])


def measured():
    """With what depends on a length that is not known when the model is exported."""
    text = "_ = _ / shape(_)[0] + size(_); _[arange(shape(_)[0]), argmax(_, axis=1)] = 0; _[:, argmax(_[0])] *= 2"
    return keras.Sequential([keras.Input((4,)), ScatterLayer(text + "; _[any(_ > 20)] -= 1")])


def placed():
    """With integers and index arrays on the batch."""
    text = "_[0, 0] = 1.0; _[[0, 1], [0, 2]] += [1.0, 2.0]; _[-1] *= 2; _[$rows, $columns] = $values; _[0, 1] = _ + 1"
    bound = {"rows": [1, 0], "columns": [3, 1], "values": [5.0, 6.0]}
    return keras.Sequential([keras.Input((4,)), ScatterLayer(text, bindings=bound)])


def patched():
    layer = PatchedLayer(keras.layers.Dense(3), "kernel[0, 0] = 1.0; bias = sum(kernel)")
    return keras.Sequential([keras.Input((4,)), layer])


def rewritten():
    layers = [keras.layers.Dense(3, name="hidden"), keras.layers.Dense(2, name="head")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    return kpatch.rewrite(model, "hidden.output[:, 0] = 0; hidden.kernel[0] = 0; head.input[:, 1] += 1")


def saved_model(model, path):
    tf = pytest.importorskip("tensorflow")
    model.export(path, format="tf_saved_model", verbose=False)
    loaded = tf.saved_model.load(path)
    return lambda x: loaded.serve(x).numpy()


def litert(model, path):
    import tensorflow as tf

    model.export(f"{path}.tflite", format="litert", verbose=False)
    interpreter = tf.lite.Interpreter(f"{path}.tflite")

    def run(x):
        place = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(place, x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(place, x)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    return run


def exported_program(model, path):
    import torch

    free = {0: torch.export.Dim("batch")}
    model.export(f"{path}.pt2", format="torch", dynamic_shapes=free, verbose=False)
    module = torch.export.load(f"{path}.pt2").module()
    return lambda x: module(torch.tensor(x)).detach().numpy()


EXPORT = {"tf_saved_model": saved_model, "litert": litert, "torch": exported_program}


@pytest.mark.parametrize("make", [scattered, measured, placed, patched, rewritten])
@pytest.mark.parametrize("kind", FORMATS[BACKEND])
def test_it_gives_the_same_numbers(make, kind, tmp_path):
    keras.utils.set_random_seed(0)
    model = make()
    model(X[:2])
    run = EXPORT[kind](model, str(tmp_path / "model"))
    for x in (X[:2], X):
        np.testing.assert_allclose(run(x), to_numpy(model(x)), rtol=1e-6, atol=1e-6)


# Formats whose converters are not installed ---------------------------------------------------------------------------

of_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="operations of tensorflow")
of_torch = pytest.mark.skipif(BACKEND != "torch", reason="torch's tracer")


def traced(kind, text, dtype="float32"):
    """A function traced in a module that is called as Keras's exporter is, and the model."""
    model = keras.Sequential([keras.Input((4,), dtype=dtype), ScatterLayer(text)])
    names = {"__name__": f"keras.src.export.{kind}"}
    if BACKEND == "tensorflow":
        import tensorflow as tf

        exec("def trace(function, spec): return function.get_concrete_function(spec)", names)  # noqa: S102
        return names["trace"](tf.function(model), tf.TensorSpec((None, 4), dtype)), model
    import torch

    exec("def trace(torch, model, x): return torch.jit.trace(model, x, check_trace=False)", names)  # noqa: S102
    return names["trace"](torch, model, torch.tensor(X[:1].astype(dtype))), model


def operations(kind, text):
    graph = traced(kind, text)[0].graph.as_graph_def()
    return {node.op for part in (graph.node, *(each.node_def for each in graph.library.function)) for node in part}


SPECIAL = np.array([[3, np.nan, -np.inf, np.inf], [-np.nan, -0.0, 3e38, 0], [-1, 2, 2, 2], [-7, 6, -5, 4]], "float32")
EXPORTED = [
    "_[:, 1:3] = 0.5; _[_ > 0] = 1; _ = where(isnan(_), 0, _)",
    "_ = sort(_)",
    "_ = argsort(_)",
    "_[:, argsort(sum(_, axis=0))] += 1",
    "_[:, [0, 0, 2]] += [1.0, 2.0, 3.0]",
    "_[:, argmax(_[0])] *= 2; _[_ == max(_, axis=1, keepdims=true)] = 0",
    "_ = min(_, axis=1, keepdims=true) + maximum(_, 0)",
    "_ = tril(_) + triu(_, 1) + roll(_, -1, axis=1)",
    'let n = cast(clip(nan_to_num(_), -9, 9), "int32"); _ = cast(n // 2 + 5 * (n % 3), "float32")',
]


@pytest.mark.filterwarnings("ignore")  # by which torch's tracer tells of each length
@pytest.mark.skipif(BACKEND not in ("tensorflow", "torch"), reason="the backends with several converters")
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_what_stands_in_for_operations_computes_the_same(kind):
    for text in EXPORTED:
        if (kind, BACKEND) == ("openvino", "tensorflow") and "argsort(sum" in text:
            continue  # refused, see below
        function, model = traced(kind, text)
        for x in (SPECIAL, X):
            given = keras.ops.convert_to_tensor(x)
            np.testing.assert_allclose(to_numpy(function(given)), to_numpy(model(x)), rtol=1e-6, err_msg=text)


@of_tensorflow
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_formats_without_updates_of_slices_and_bits_of_floats(kind):
    text = "_[:, 1:3] = 0.5; _[..., -1] -= 1; _[_ > 0] = 1; _ = sort(_); _[_[:, 0] == 0] = 0"
    missing = {"TensorStridedSliceUpdate", "Bitcast"}
    assert not missing & operations(kind, text)
    assert missing & operations("litert", text) == {"Bitcast"}
    assert missing <= operations("saved_model", text)


@of_tensorflow
def test_no_choice_of_floats_is_exported_to_onnx_as_products():
    """tf2onnx makes them, in which infinities become NaN, unless a test for NaN chooses."""
    graph = traced("onnx", "_[:, 1:3] = 0.5; _[_ > 0] = 1; _ = where(_ > 0, _, -_)")[0].graph
    choices = [each for each in graph.get_operations() if each.type == "SelectV2" and each.outputs[0].dtype.is_floating]
    assert len(choices) == 3
    assert {choice.inputs[0].op.type for choice in choices} == {"IsNan"}


@of_tensorflow
def test_no_tensor_that_nothing_reads_is_exported_to_openvino():
    """openvino would take it for an output of the model, and may put it first."""

    def unread(kind):
        function, _ = traced(kind, "_[:, [1, 3]] += [1.0, 2.0]")
        return [each for each in function.graph.get_operations() if each.outputs and not each.outputs[0].consumers()]

    assert len(unread("saved_model")) > 1
    assert [each.type for each in unread("openvino")] == ["Identity"]  # the output


@of_tensorflow
def test_an_index_on_which_openvino_crashes_is_refused():
    message = r"^this patch cannot be exported to openvino: the places of its index are known when the model runs\n"
    with pytest.raises(kpatch.UnsupportedError, match=message):
        traced("openvino", "_[arange(shape(_)[0]), argmax(_, axis=1)] = 0")


@of_tensorflow
def test_what_onnx_lacks_is_refused_before_a_file_is_written(monkeypatch):
    """tf2onnx would write the operation as it is, in a file that nothing reads."""
    kinds = operations("onnx", "_[_ > 0] = exp(_)") | operations("saved_model", "_ = log1p(_)") - {"Log1p"}
    converted = dict.fromkeys(kinds - {"Assert"}, "how")
    handler = types.SimpleNamespace(tf_op=types.SimpleNamespace(get_opsets=lambda: {"": [{}, converted]}))
    for name in ("tf2onnx", "tf2onnx.convert"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "tf2onnx.handler", handler)
    assert "Exp" in operations("onnx", "_[_ > 0] = exp(_)")
    with pytest.raises(kpatch.UnsupportedError, match=r"^this patch cannot be exported to onnx, .* for Log1p of tens"):
        operations("onnx", "_ = log1p(_)")
    assert "Log1p" in operations("openvino", "_ = log1p(_)")


@of_torch
@pytest.mark.filterwarnings("ignore")  # by which the tracer tells of each length
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_what_torch_takes_for_a_constant_is_refused(kind):
    """By its tracer Keras exports; the files were valid, and computed something else for other batches."""
    for text in (
        "_ = _ / shape(_)[0]",
        "_[arange(shape(_)[0]), argmax(_, axis=1)] = 0",
        "_[-1] *= 2",
        "_[_[:, 0] > 0] = 0",
    ):
        with pytest.raises(kpatch.UnsupportedError, match="depends on a length that is not known there"):
            traced(kind, text)


@of_torch
@pytest.mark.filterwarnings("ignore")
def test_what_torch_cannot_convert_is_refused():
    with pytest.raises(kpatch.UnsupportedError, match=r"^this patch cannot .* which has nothing for sinh of torch$"):
        traced("onnx", "_ = sinh(_)")
    assert traced("openvino", "_ = sinh(_)")
