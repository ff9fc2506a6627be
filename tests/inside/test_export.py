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


def operations(kind, text):
    """Those of the graph of a model, traced in a module that is called as Keras's exporter is."""
    import tensorflow as tf

    namespace = {"__name__": f"keras.src.export.{kind}"}
    exec("def trace(function, spec): return function.get_concrete_function(spec).graph", namespace)  # noqa: S102
    model = keras.Sequential([keras.Input((4,)), ScatterLayer(text)])
    graph = namespace["trace"](tf.function(model), tf.TensorSpec((None, 4), "float32"))
    return {operation.type for operation in graph.get_operations()}


@of_tensorflow
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_formats_without_updates_of_slices_and_bits_of_floats(kind):
    text = "_[:, 1:3] = 0.5; _[..., -1] -= 1; _[_ > 0] = 1; _ = sort(_); _[_[:, 0] == 0] = 0"
    missing = {"TensorStridedSliceUpdate", "Bitcast"}
    assert not missing & operations(kind, text)
    assert missing & operations("litert", text) == {"Bitcast"}
    assert missing <= operations("saved_model", text)


@of_tensorflow
def test_what_onnx_lacks_is_refused_before_a_file_is_written(monkeypatch):
    """tf2onnx would write the operation as it is, in a file that nothing reads."""
    converted = dict.fromkeys(operations("onnx", "_[_ > 0] = exp(_)") - {"Assert"}, "how")
    handler = types.SimpleNamespace(tf_op=types.SimpleNamespace(get_opsets=lambda: {"": [{}, converted]}))
    for name in ("tf2onnx", "tf2onnx.convert"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "tf2onnx.handler", handler)
    assert "Exp" in operations("onnx", "_[_ > 0] = exp(_)")
    for text, lacking in (("_ = log1p(_)", "Log1p"), ("_[:, argmax(_, axis=0)] = 0", "UnsortedSegmentMax")):
        with pytest.raises(
            kpatch.UnsupportedError, match=f"^this patch cannot be exported to onnx, .* for .*{lacking}"
        ):
            operations("onnx", text)
        assert lacking in operations("openvino", text)


@of_tensorflow
def test_float64_is_not_sorted_where_bits_cannot_be_read(monkeypatch):
    from kpatch.backends import current

    x = keras.ops.convert_to_tensor([3.0, np.nan, 1.0], "float64")
    assert to_numpy(kpatch.edit(x, "_ = sort(_)"))[0] == 1
    monkeypatch.setattr(current(), "reads_bits", lambda: False)
    with pytest.raises(kpatch.UnsupportedError, match=r"^no float64 is sorted in a model"):
        kpatch.edit(x, "_ = sort(_)")
    special = [3.0, np.nan, -np.inf, np.inf, 1e-40, -np.nan, 3e38]
    got = kpatch.edit(keras.ops.convert_to_tensor(special, "float32"), "_ = sort(_)")
    np.testing.assert_array_equal(to_numpy(got), np.sort(np.asarray(special, "float32")))


@pytest.mark.filterwarnings("ignore")  # by which the tracer tells of each length
@pytest.mark.skipif(BACKEND != "torch", reason="torch's tracer")
def test_what_torch_takes_for_a_constant_is_refused():
    """By it Keras exports to onnx and openvino; the files were valid, and computed something else for other batches."""
    import torch

    namespace = {"__name__": "keras.src.export.onnx"}
    exec("def trace(torch, model, x): return torch.jit.trace(model, x, check_trace=False)", namespace)  # noqa: S102
    for text in ("_ = _ / shape(_)[0]", "_[arange(shape(_)[0]), argmax(_, axis=1)] = 0", "_[-1] *= 2"):
        model = keras.Sequential([keras.Input((4,)), ScatterLayer(text)])
        with pytest.raises(kpatch.UnsupportedError, match="depends on a length that is not known there"):
            namespace["trace"](torch, model, torch.tensor(X[:1]))
    fine = keras.Sequential([keras.Input((4,)), ScatterLayer("_[..., 3] = 0; _[_ > 1] = 1; _[:, 1] = mean(_)")])
    traced = namespace["trace"](torch, fine, torch.tensor(X[:1]))
    np.testing.assert_allclose(to_numpy(traced(torch.tensor(X))), to_numpy(fine(X)), rtol=1e-6)
