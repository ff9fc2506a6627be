"""What a model holds that is no weight: states, metrics, seed generators, and the buffers of a module of torch."""

import copy

import keras
import numpy as np
import pytest

import kpatch
from kpatch.errors import ResolutionError
from kpatch.names.index import index
from kpatch.values.tensors import to_numpy

layers = keras.layers
torchs = pytest.mark.skipif(keras.backend.backend() != "torch", reason="a module of torch")
jaxs = pytest.mark.skipif(keras.backend.backend() != "jax", reason="a function of jax")


def paths(model, text="**"):
    return [row.path for row in kpatch.plan(model, f"{text} = 0").rows]


def hidden(model):
    return [entry.path for entry in index(model).entries if entry.hidden]


def stateful():
    recurrent = layers.Bidirectional(layers.GRU(2, stateful=True, return_sequences=True), name="both")
    cells = layers.RNN([layers.LSTMCell(2), layers.GRUCell(2)], stateful=True, name="cells")
    return keras.Sequential([keras.Input((3, 2), batch_size=2), recurrent, cells])


def test_states_of_recurrent_layers():
    model = stateful()
    states = [path for path in hidden(model) if ".states." in path]
    assert states == [
        "both.forward_layer.states.0",
        "both.backward_layer.states.0",
        "cells.states.0.0",
        "cells.states.0.1",
        "cells.states.1.0",
    ]
    assert paths(model, "**") == [entry.path for entry in index(model).entries if not entry.hidden]
    assert all(paths(model, path) == [path] for path in hidden(model))
    x = np.random.default_rng(0).normal(size=(2, 3, 2)).astype("float32")
    first = to_numpy(model(x))
    with kpatch.apply(model, "\n".join(f"{path} = 0" for path in states)):
        np.testing.assert_array_equal(to_numpy(model(x)), first)
    kpatch.apply(model, "cells.states.0.0[1] = 5")
    assert to_numpy(model.get_layer("cells").states[0][0])[1].tolist() == [5, 5]
    with pytest.raises(ResolutionError, match="'states' is a list or dict"):
        kpatch.plan(model.get_layer("cells"), "states = 0")


class Held(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(2, name="head")
        self.scale = keras.Variable(1.0, name="scale")
        self.several = [keras.Variable(1.0), {"x": keras.Variable(2.0)}]
        self.seed = keras.random.SeedGenerator(1)
        self.seen = keras.metrics.Mean(name="mean_seen")
        self.drop = layers.Dropout(0.5, seed=3)

    def call(self, x):
        return self.drop(self.head(x))


def test_free_variables_metrics_and_seed_generators():
    model = Held()
    model(np.ones((1, 3), "float32"))
    assert paths(model) == ["scale", "several.0", "several.1.x", "head.kernel", "head.bias"]
    assert hidden(model) == [
        "seed.seed_generator_state",
        "seen.total",
        "seen.count",
        "drop.seed_generator.seed_generator_state",
    ]
    kpatch.apply(model, "several.1.x = 7; seen.total = 3; seen.count = 2; drop.seed_generator.seed_generator_state = 5")
    assert to_numpy(model.several[1]["x"]) == 7
    assert float(model.seen.result()) == 1.5
    assert to_numpy(model.drop.seed_generator.state).tolist() == [5, 5]
    for text in ("total", "count", "seed_generator_state"):
        with pytest.raises(ResolutionError):
            kpatch.plan(model, f"{text} = 0")


def wrapped():
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2))
    layer = layers.TorchModuleWrapper(module, name="wrapped", output_shape=(None, 2))
    return keras.Sequential([keras.Input((3,)), layer]), module


@torchs
def test_a_module_of_torch_has_its_own_names():
    model, module = wrapped()
    assert paths(model) == [f"wrapped.{name}" for name, _ in module.named_parameters()]
    assert hidden(model) == [f"wrapped.{name}" for name, _ in module.named_buffers()]
    first = {name: value.clone() for name, value in module.state_dict().items()}
    text = "wrapped.0.weight[0] = 5; wrapped.1.running_mean += 2; wrapped.1.num_batches_tracked = 9; **.bias = 1"
    with kpatch.apply(model, text):
        assert module[0].weight[0].tolist() == [5, 5, 5]
        assert module[1].running_mean.tolist() == [2, 2]
        assert module[1].num_batches_tracked == 9
        assert module[2].bias.tolist() == [1, 1]
    assert all((value == first[name]).all() for name, value in module.state_dict().items())


@torchs
def test_what_a_module_of_torch_exchanges_is_noticed():
    import torch

    model, module = wrapped()
    patch = "wrapped.1.running_mean = 2"
    applied = kpatch.apply(model, patch)
    kpatch.apply(model, "wrapped.1.running_mean[0] = 3")
    with pytest.raises(kpatch.UndoError):
        applied.undo()
    module[1].register_buffer("running_mean", torch.zeros(2))
    kpatch.apply(model, patch)
    assert module[1].running_mean.tolist() == [2, 2]
    other = copy.deepcopy(model)
    kpatch.apply(other, "wrapped.1.running_mean = 8; wrapped.0.bias = 8")
    assert module[1].running_mean.tolist() == [2, 2]
    [twin] = [layer for layer in other.layers if layer.name == "wrapped"]
    assert twin.module[1].running_mean.tolist() == twin.module[0].bias.tolist() == [8, 8]


@jaxs
def test_a_function_of_jax_has_its_own_names():
    import jax.numpy as jnp

    def call(params, state, inputs):
        return inputs @ params["dense"]["w"] + params["b"], {"calls": state["calls"] + 1}

    params = {"dense": {"w": jnp.ones((3, 2))}, "b": jnp.zeros(2)}
    layer = layers.JaxLayer(call, params=params, state={"calls": jnp.zeros(())}, name="own")
    model = keras.Sequential([keras.Input((3,)), layer])
    assert sorted(paths(model)) == ["own.params.b", "own.params.dense.w", "own.state.calls"]
    with kpatch.apply(model, "own.params.dense.w[0] = 5; own.state.calls = 3; **.b = 1"):
        assert to_numpy(model(np.ones((1, 3), "float32"))).tolist() == [[8, 8]]
    assert to_numpy(model(np.ones((1, 3), "float32"))).tolist() == [[3, 3]]
