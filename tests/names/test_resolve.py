"""Selectors on real model trees: every variable is reached, by exactly its names, and the index is never stale."""

import gc
import inspect
import string
import weakref

import keras
import pytest
from counting import steps
from hypothesis import given, settings
from hypothesis import strategies as st

from kpatch.errors import PatchError, ResolutionError, UnsupportedError
from kpatch.names.index import ModelIndex, index
from kpatch.syntax import parse

layers = keras.layers


def selector(text):
    return parse(f"{text} = 0").statements[0].target.selector


def find(model, text):
    return index(model).find(selector(text)).variable


def paths(model):
    return [entry.path for entry in index(model).entries if not entry.hidden]


def failure(model, text):
    """The whole text of the error, as a user sees it."""
    with pytest.raises(PatchError) as info:
        find(model, text)
    source = f"{text} = 0"
    return str(info.value.locate(None, source))


def check(model):
    """What holds of every model."""
    found = index(model)
    shown = [entry.variable for entry in found.entries if not entry.hidden]
    assert [*map(id, shown)] == [*map(id, model.weights)]
    assert {id(entry.variable) for entry in found.entries} >= {*map(id, model.variables)}
    assert len({id(entry.variable) for entry in found.entries}) == len(found.entries)
    assert [entry.order for entry in found.entries] == [*range(len(found.entries))]
    for entry in found.entries:
        assert found.find(selector(entry.path)) is entry
        assert entry.stored.shape == tuple(entry.variable.shape)
        assert entry.stored.dtype == entry.variable.dtype
    assert index(model) is found


def held(item):
    """The attributes of a layer: (name, value) pairs."""
    return [*vars(item).items(), *(vars(item).get("_modules") or {}).items()]


def attribute_chains(layer, before=()):
    """Each variable of a layer by a chain of attributes, found without the index."""
    own = {id(v) for v in layer._trainable_variables + layer._non_trainable_variables}
    inner = {id(child) for child in layer._layers}
    for name, value in held(layer):
        if id(value) in own:
            yield (*before, name), value
        elif id(value) in inner:
            yield from attribute_chains(value, (*before, name))


def name_chains(layer, before=()):
    """Each variable of a layer by a chain of Keras's names."""
    for variable in layer._trainable_variables + layer._non_trainable_variables:
        yield (*before, variable.name), variable
    for child in layer._layers:
        yield from name_chains(child, (*before, child.name))


def position_chains(layer, before=()):
    for variable in layer._trainable_variables + layer._non_trainable_variables:
        yield (*before, variable.name), variable
    inner = [child for child in layer._layers if not isinstance(child, layers.InputLayer)]
    for i, child in enumerate(inner):
        yield from position_chains(child, (*before, f"layers[{i}]"))
        yield from position_chains(child, (*before, f"layers[{i - len(inner)}]"))


# Every variable of Keras's layers ------------------------------------------------------------------------------------


def quick(kind, *args, **options):
    """A layer that starts from zeros: jax compiles each other initializer for each shape."""
    names = inspect.signature(kind.__init__).parameters
    return kind(*args, **{name: "zeros" for name in names if name.endswith("_initializer")}, **options)


TABLE = {
    "Dense": (lambda: quick(layers.Dense, 3), (None, 4)),
    "EinsumDense": (lambda: quick(layers.EinsumDense, "ab,bc->ac", 3, bias_axes="c"), (None, 4)),
    "Embedding": (lambda: quick(layers.Embedding, 5, 3), (None, 4)),
    "Conv1D": (lambda: quick(layers.Conv1D, 2, 3), (None, 8, 3)),
    "Conv2D": (lambda: quick(layers.Conv2D, 2, 3), (None, 8, 8, 3)),
    "Conv3D": (lambda: quick(layers.Conv3D, 2, 3), (None, 4, 4, 4, 3)),
    "Conv1DTranspose": (lambda: quick(layers.Conv1DTranspose, 2, 3), (None, 8, 3)),
    "Conv2DTranspose": (lambda: quick(layers.Conv2DTranspose, 2, 3), (None, 8, 8, 3)),
    "DepthwiseConv1D": (lambda: quick(layers.DepthwiseConv1D, 3), (None, 8, 3)),
    "DepthwiseConv2D": (lambda: quick(layers.DepthwiseConv2D, 3), (None, 8, 8, 3)),
    "SeparableConv1D": (lambda: quick(layers.SeparableConv1D, 2, 3), (None, 8, 3)),
    "SeparableConv2D": (lambda: quick(layers.SeparableConv2D, 2, 3), (None, 8, 8, 3)),
    "BatchNormalization": (lambda: quick(layers.BatchNormalization), (None, 4)),
    "LayerNormalization": (lambda: quick(layers.LayerNormalization), (None, 4)),
    "GroupNormalization": (lambda: quick(layers.GroupNormalization, 2), (None, 4)),
    "SpectralNormalization": (lambda: quick(layers.SpectralNormalization, quick(layers.Dense, 3)), (None, 4)),
    "Normalization": (lambda: quick(layers.Normalization), (None, 4)),
    "PReLU": (lambda: quick(layers.PReLU), (None, 4)),
    "SimpleRNN": (lambda: quick(layers.SimpleRNN, 3), (None, 5, 4)),
    "GRU": (lambda: quick(layers.GRU, 3), (None, 5, 4)),
    "LSTM": (lambda: quick(layers.LSTM, 3), (None, 5, 4)),
    "RNN of cells": (lambda: quick(layers.RNN, [quick(layers.LSTMCell, 3), quick(layers.GRUCell, 2)]), (None, 5, 4)),
    "Bidirectional LSTM": (lambda: quick(layers.Bidirectional, quick(layers.LSTM, 3)), (None, 5, 4)),
    "Bidirectional GRU": (lambda: quick(layers.Bidirectional, quick(layers.GRU, 3)), (None, 5, 4)),
    "ConvLSTM1D": (lambda: quick(layers.ConvLSTM1D, 2, 3), (None, 5, 8, 3)),
    "ConvLSTM2D": (lambda: quick(layers.ConvLSTM2D, 2, 3), (None, 5, 8, 8, 3)),
    "TimeDistributed": (lambda: quick(layers.TimeDistributed, quick(layers.Dense, 3)), (None, 5, 4)),
    "MultiHeadAttention": (lambda: quick(layers.MultiHeadAttention, 2, 3), [(None, 5, 4)] * 2),
    "GroupQueryAttention": (lambda: quick(layers.GroupQueryAttention, 3, 4, 2), [(None, 5, 4)] * 2),
    "Attention": (lambda: quick(layers.Attention, use_scale=True, score_mode="concat"), [[(None, 5, 4)] * 2]),
    "AdditiveAttention": (lambda: quick(layers.AdditiveAttention), [[(None, 5, 4)] * 2]),
    "Dropout": (lambda: quick(layers.Dropout, 0.5, seed=1), (None, 4)),
    "GaussianNoise": (lambda: quick(layers.GaussianNoise, 0.5, seed=1), (None, 4)),
}


@pytest.mark.parametrize("kind", TABLE)
def test_every_variable_of_a_layer_by_all_its_names(kind):
    make, shape = TABLE[kind]
    layer = make()
    layer.build(*shape) if isinstance(shape, list) else layer.build(shape)
    model = keras.Sequential([layer], name="model")
    for root, front in ((layer, ()), (model, (layer.name,))):
        check(root)
        for chains in (attribute_chains, name_chains, position_chains):
            reached = set()
            for chain, variable in chains(layer, front):
                text = ".".join(part if "[" in part else f'"{part}"' for part in chain)
                assert find(root, text) is variable
                reached.add(id(variable))
            listed = kind == "RNN of cells" and chains is attribute_chains  # its cells are in a list
            assert reached == (set() if listed else {*map(id, layer.weights)})


@pytest.mark.backend_free
def test_the_table_is_long_enough_and_has_variables():
    assert len(TABLE) >= 25


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("Bidirectional LSTM", ["forward_layer.cell.kernel", "backward_layer.cell.bias"]),
        ("MultiHeadAttention", ["query.kernel", "_query_dense.kernel", "attention_output.bias"]),
        ("BatchNormalization", ["gamma", "beta", "moving_mean", "moving_variance"]),
        ("SpectralNormalization", ["layer.kernel", "layer.bias", "vector_u"]),
        ("TimeDistributed", ["layer.kernel", "layers[0].kernel"]),
        ("RNN of cells", ["cell.cells.0.kernel", "cell.cells.1.bias", "cell.layers[1].bias", "lstm_cell.kernel"]),
        ("Normalization", ["mean", "adapt_mean", "variance", "count"]),
        ("Embedding", ["embeddings", "_embeddings"]),
    ],
)
def test_names_that_people_write(kind, expected):
    keras.utils.clear_session()
    make, shape = TABLE[kind]
    layer = make()
    layer.build(*shape) if isinstance(shape, list) else layer.build(shape)
    for text in expected:
        assert isinstance(find(layer, text), keras.Variable)


# Trees of models -----------------------------------------------------------------------------------------------------


def sequential():
    names = ["dense_1", "conv-1"]
    return keras.Sequential([keras.Input((4,)), *[layers.Dense(3, name=name) for name in names]], name="model")


def functional():
    x = inputs = keras.Input((4,), name="pixels")
    x = layers.Dense(3, name="first")(x)
    head = keras.Sequential([layers.Dense(3, name="first"), layers.Dense(2, name="last")], name="head")
    return keras.Model(inputs, head(x), name="outer")


class Block(keras.Model):
    """Layers in attributes, lists and dicts, and variables of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.encoder = layers.Dense(3)
        self.blocks = [layers.Dense(3), layers.Dense(3, name="named")]
        self.towers = {"left": layers.Dense(2), "right-most": layers.Dense(2), "a/b": layers.Dense(2)}
        self.grid = [[layers.Dense(1)], (layers.Dense(1),)]
        self._hidden_layers = [layers.Dense(1)]
        self.backbone = functional()
        self.scale = self.add_weight(name="scale", shape=(2,))
        self.shifts = [self.add_weight(name="shift", shape=()) for _ in range(2)]

    def build(self, shape):
        for layer in self._flatten_layers(include_self=False):
            if not layer.built:
                layer.build((None, 3))


def block(**kwargs):
    model = Block(**kwargs)
    model.build((None, 4))
    return model


@pytest.mark.parametrize("make", [sequential, functional, block])
def test_models(make):
    check(make())


def test_attributes_lists_and_dicts():
    model = block()
    same = {
        "encoder.kernel": model.encoder.kernel,
        "blocks.0.kernel": model.blocks[0].kernel,
        "blocks.1.kernel": model.blocks[1].kernel,
        "blocks.named.kernel": model.blocks[1].kernel,
        "named.kernel": model.blocks[1].kernel,
        '"blocks/1/kernel"': model.blocks[1].kernel,
        "layers[1].kernel": model.blocks[0].kernel,
        "towers.left.bias": model.towers["left"].bias,
        '"right-most".bias': model.towers["right-most"].bias,
        "grid.1.0.bias": model.grid[1][0].bias,
        "_hidden_layers.0.bias": model._hidden_layers[0].bias,
        "backbone.first.bias": model.backbone.get_layer("first").bias,
        "outer.head.last.bias": model.backbone.get_layer("head").get_layer("last").bias,
        "head.layers[-1].bias": model.backbone.get_layer("head").get_layer("last").bias,
        "scale": model.scale,
        "shifts.1": model.shifts[1],
        f'"{model.towers["a/b"].name}/kernel"': model.towers["a/b"].kernel,
    }
    for text, variable in same.items():
        assert find(model, text) is variable, text


def test_canonical_paths_prefer_what_does_not_change():
    shown = paths(block())
    assert shown[:9] == [
        "scale",
        "shifts.0",
        "shifts.1",
        "encoder.kernel",
        "encoder.bias",
        "blocks.0.kernel",
        "blocks.0.bias",
        "named.kernel",
        "named.bias",
    ]
    assert 'towers."right-most".kernel' in shown
    assert "backbone.head.last.bias" in shown
    assert paths(sequential()) == ["dense_1.kernel", "dense_1.bias", '"conv-1".kernel', '"conv-1".bias']


def test_the_full_chain_comes_before_the_end_of_one():
    model = functional()
    assert find(model, "first.kernel") is model.get_layer("first").kernel
    assert find(model, "head.first.kernel") is model.get_layer("head").layers[0].kernel
    assert find(model, "last.kernel") is model.get_layer("head").layers[1].kernel


def test_keras_paths():
    model = sequential()
    for text in ('"dense_1/kernel"', '"model/dense_1/kernel"', f'"{model.layers[0].kernel.path}"'):
        assert find(model, text) is model.layers[0].kernel
    inner = functional()
    assert find(inner, '"outer/head/first/kernel"') is inner.get_layer("head").layers[0].kernel
    assert find(inner, 'head."first/kernel"') is inner.get_layer("head").layers[0].kernel


def test_a_variable_path_that_is_no_chain():
    layer = layers.Dense(2, name="moved")
    layer.build((None, 2))
    variable = layer.kernel
    variable._path = "elsewhere/when/built"
    assert find(layer, '"elsewhere/when/built"') is variable


def test_layers_count_from_their_parent():
    model = functional()
    assert find(model, "layers[0].kernel") is model.get_layer("first").kernel  # the input layer is not counted
    assert find(model, "layers[-1].layers[0].kernel") is model.get_layer("head").layers[0].kernel
    flat = keras.Sequential([keras.Input((2, 2)), layers.Flatten(), keras.Sequential([layers.Dense(1)], name="in")])
    with pytest.raises(ResolutionError):
        find(flat, "layers[0].kernel")  # not the one inside `in`


def test_shared_layers_and_variables_are_one():
    inputs = keras.Input((3,))
    shared = layers.Dense(3, name="shared")
    inner = keras.Sequential([keras.Input((3,)), shared], name="inner")
    model = keras.Model(inputs, inner(shared(inputs)))
    check(model)
    assert find(model, "kernel") is shared.kernel
    assert find(model, "inner.shared.kernel") is find(model, "shared.kernel") is shared.kernel

    class Tied(keras.Layer):
        def __init__(self):
            super().__init__()
            self.one = layers.Dense(2)
            self.other = self.one
            self.one.build((None, 2))
            self.kernel = self.one.kernel

    tied = Tied()
    check(tied)
    assert find(tied, "kernel") is find(tied, "one.kernel") is find(tied, "other.kernel") is tied.one.kernel


def test_cycles_end():
    class Cycle(keras.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.w = self.add_weight(name="w", shape=(1,))
            self.next = None
            self.loop = []

    one, other = Cycle(name="one"), Cycle(name="other")
    one.next, other.next = other, one
    list.extend(one.loop, [one.loop] * 10)
    assert [entry.path for entry in index(one).entries] == ["w", "next.w"]
    assert find(one, "next.next.next.w") is other.w
    assert find(one, "one.other.one.w") is one.w
    with pytest.raises(ResolutionError):
        find(one, "next.next.nxt.w")


@pytest.mark.backend_free
def test_deep_models_need_no_stack():
    class Deep(keras.Layer):
        def __init__(self):
            super().__init__()
            self.inner = None

    root = layer = Deep()
    for _ in range(3000):
        layer.inner = Deep()
        layer = layer.inner
    layer.w = layer.add_weight(name="w", shape=(1,))
    (entry,) = index(root).entries
    assert entry.path == ".".join(["inner"] * 3000 + ["w"])
    assert find(root, "inner.inner.w") is layer.w


class Named(keras.Layer):
    """Variables with the names given, held by no attribute."""

    def __init__(self, names, **kwargs):
        super().__init__(**kwargs)
        for name in names:
            self.add_weight(name=name, shape=(1,), initializer="zeros")


ODD = ["kernel", "output", "input", "layers", "let", "_", "weights[0]", "layers[0]", "0", "a.b", "é", '"', "\\"]
ANY = st.text(string.printable.replace("/", "") + "·\x00", min_size=1, max_size=3)
NAMES = st.sampled_from(ODD) | ANY
FEW = st.lists(NAMES, max_size=3)
TREES = st.recursive(FEW, lambda inner: st.tuples(FEW, st.lists(st.tuples(NAMES, inner), max_size=3)), max_leaves=6)


@settings(max_examples=100)
@given(TREES)
def test_every_path_leads_back(tree):
    def make(tree, name):
        names, inner = tree if isinstance(tree, tuple) else (tree, [])
        layer = Named(names, name=name)
        layer.parts = [make(part, part_name) for part_name, part in inner]
        return layer

    check(make(tree, "root"))


# Seed generators and metrics -----------------------------------------------------------------------------------------


def test_hidden_state_by_its_full_name_only():
    model = keras.Sequential([keras.Input((4,)), layers.Dropout(0.5, seed=1, name="drop"), layers.Dense(1)], name="m")
    state = model.layers[0].seed_generator.state
    assert find(model, "drop.seed_generator.seed_generator_state") is state
    assert find(model, "drop.seed_generator.state") is state
    assert find(model, "layers[0].seed_generator.state") is state
    outer = keras.Sequential([model])
    assert find(outer, "m.drop.seed_generator.state") is state
    for text in ("state", "seed_generator.state", "drop.seed_generator.state"):
        assert failure(outer, text) == (
            f"no variable '{text}'; did you mean 'm.drop.seed_generator.seed_generator_state'?\n"
            "  line 1, column 1\n"
            f"    {text} = 0\n"
            f"    {'^' * len(text)}\n"
            "  what is no weight (states, metrics, seed generators) is reached by its full name only"
        )
    hidden = [entry.path for entry in index(model).entries if entry.hidden]
    assert hidden == ["drop.seed_generator.seed_generator_state"]


def test_metrics_after_compile_and_fit(backend):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="d")], name="m")
    before = index(model)
    model.compile("sgd", "mse", metrics=["mae"])
    assert index(model) is not before
    if backend == "numpy":
        model.evaluate(keras.ops.ones((2, 4)), keras.ops.ones((2, 2)), verbose=0)
    else:
        model.fit(keras.ops.ones((2, 4)), keras.ops.ones((2, 2)), verbose=0)
    check(model)
    assert find(model, "loss.total") is find(model, "_loss_tracker.total") is model.metrics[0].total
    assert find(model, "compile_metrics.mae.total") is model.metrics[1].metrics[0].total
    assert [entry.path for entry in index(model).entries if entry.hidden] == [
        "loss.total",
        "loss.count",
        "compile_metrics.mae.total",
        "compile_metrics.mae.count",
    ]
    assert paths(model) == ["d.kernel", "d.bias"]
    optimizer = {id(variable) for variable in model.optimizer.variables}
    assert not optimizer & {id(entry.variable) for entry in index(model).entries}
    model.evaluate(keras.ops.ones((2, 4)), keras.ops.ones((2, 2)), verbose=0)
    again = index(model)
    model.evaluate(keras.ops.ones((2, 4)), keras.ops.ones((2, 2)), verbose=0)
    assert index(model) is again


def test_a_state_that_is_a_weight_too_is_not_hidden():
    layer = Named(["w"])
    layer.seed_generator = keras.random.SeedGenerator(1)
    layer.count = layer.seed_generator.state
    check(layer)
    outer = keras.Sequential([layer])
    assert find(outer, "count") is layer.count
    assert not index(outer).find(selector("count")).hidden


def test_a_metric_in_an_attribute():
    layer = Named(["w"])
    layer.score = keras.metrics.Mean(name="average")
    assert find(layer, "score.total") is find(layer, "average.total") is layer.score.total


# Never stale ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def model():
    """A subclassed model, indexed."""
    made = block(name="model")
    check(made)
    return made


def changed(model, before, text, variable):
    """The index saw the change by itself, without being asked for a name that it lacks."""
    assert index(model) is not before
    assert find(model, text) is variable
    check(model)


def test_added_layers():
    model = sequential()
    before = index(model)
    added = layers.Dense(1, name="added")
    model.add(added)
    changed(model, before, "added.kernel", added.kernel)
    before = index(model)
    model.pop()
    changed(model, before, "dense_1.bias", model.layers[0].bias)
    with pytest.raises(ResolutionError):
        find(model, "added.kernel")


def test_replaced_layer():
    model = Block()
    before = index(model)
    model.encoder = layers.Dense(5)
    assert index(model) is not before
    before = index(model)
    model.encoder.build((None, 5))
    changed(model, before, "encoder.kernel", model.encoder.kernel)


def test_appended_and_replaced_in_a_list():
    model = Block()
    added, other = layers.Dense(5), layers.Dense(5)
    added.build((None, 5))
    other.build((None, 5))
    before = index(model)
    model.blocks.append(added)
    changed(model, before, "blocks.2.kernel", added.kernel)
    before = index(model)
    model.blocks[2] = other  # which Keras overlooks
    assert index(model) is not before
    assert find(model, "blocks.2.kernel") is other.kernel
    before = index(model)
    model.towers["left"] = added
    assert index(model) is not before
    assert find(model, "towers.left.kernel") is added.kernel
    before = index(model)
    del model.blocks[2]
    assert index(model) is not before
    with pytest.raises(ResolutionError):
        find(model, "blocks.2.kernel")


def test_swapped_attributes(model):
    before = index(model)
    model.encoder, model.backbone = model.backbone, model.encoder
    changed(model, before, "encoder.first.bias", model.encoder.get_layer("first").bias)
    assert find(model, "backbone.bias") is model.backbone.bias


def test_a_new_attribute_hides_a_deeper_name(model):
    assert find(model, "head.last.kernel") is model.backbone.get_layer("head").layers[1].kernel
    before = index(model)
    model.head = model.backbone
    changed(model, before, "head.first.kernel", model.backbone.get_layer("first").kernel)


def test_an_attribute_bound_to_what_is_known(model):
    model.alias = None
    before = index(model)
    model.alias = model.encoder
    changed(model, before, "alias.kernel", model.encoder.kernel)
    before = index(model)
    model.alias = model.backbone
    changed(model, before, "alias.first.kernel", model.backbone.get_layer("first").kernel)
    before = index(model)
    del model.alias
    assert index(model) is not before
    with pytest.raises(ResolutionError):
        find(model, "alias.first.kernel")


def test_an_attribute_that_is_not_watched():
    model = sequential()
    check(model)
    layer = model.layers[0]
    layer.lora_alpha = layer.bias  # an attribute that every `Dense` has
    found = find(model, "lora_alpha")
    assert found is find(model, "dense_1.lora_alpha") is layer.bias
    check(model)


def test_renamed_layers():
    model = sequential()
    first, second = model.layers
    before = index(model)
    first.name, second.name = second.name, first.name
    changed(model, before, "dense_1.kernel", second.kernel)


def test_built():
    model = keras.Sequential([layers.Dense(3, name="d")], name="m")
    with pytest.raises(ResolutionError):
        find(model, "d.kernel")
    before = index(model)
    model.build((None, 2))
    changed(model, before, "d.kernel", model.layers[0].kernel)


def test_variables_added_and_replaced(model):
    layer, before = model.encoder, index(model)
    layer.enable_lora(1)
    changed(model, before, "encoder.lora_kernel_a", layer.lora_kernel_a)
    assert find(model, "encoder.kernel") is layer._kernel
    assert find(model, "encoder._kernel") is layer._kernel


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_a_variable_added_to_any_number(count):
    layer = Named([f"v{i}" for i in range(count)])
    before = index(layer)
    added = layer.add_weight(name="added", shape=(1,), initializer="zeros")
    changed(layer, before, "added", added)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_replaced_variable_that_compares_equal(count):
    layer = Named([f"v{i}" for i in range(count)])
    before = index(layer)
    new = keras.Variable(keras.ops.zeros((1,)), name="v0")
    layer._trainable_variables[0] = new
    changed(layer, before, "v0", new)


def test_a_variable_moved_between_lists():
    layer = Named(["a", "b"])
    before = index(layer)
    layer._non_trainable_variables.append(layer._trainable_variables.pop())
    changed(layer, before, "b", layer._non_trainable_variables[0])


def test_quantized(model):
    before, layer = index(model), model.blocks[0]
    old = layer._kernel
    layer.quantize("int8")
    assert layer._kernel is not old
    changed(model, before, "blocks.0.kernel", layer._kernel)
    assert index(model).find(selector("blocks.0.kernel")).dtype == "float32"
    assert index(model).find(selector("blocks.0.kernel.stored")).dtype == "int8"
    assert find(model, "blocks.0.kernel_scale") is layer.kernel_scale


def test_counters_and_flags_do_not_spoil_the_index(model):
    model.calls = 0
    found = index(model)
    for _ in range(3):
        model.calls += 1
        model.note = None if model.calls > 5 else "text"
        assert find(model, "scale") is model.scale
    assert index(model) is not found  # `note` is new
    found = index(model)
    model.calls += 1
    assert index(model) is found


def test_the_index_dies_with_its_model():
    model = sequential()
    model.layers[0].owner = model.call  # something in the model holds it
    gone = weakref.ref(model)
    check(model)
    del model
    gc.collect()
    assert gone() is None


def test_copies_have_their_own_index():
    model = sequential()
    check(model)
    copy = keras.models.clone_model(model)
    check(copy)
    assert find(copy, "dense_1.kernel") is copy.layers[0].kernel
    assert find(model, "dense_1.kernel") is model.layers[0].kernel


def test_values_are_not_needed():
    layer = layers.Dense(2)
    layer.build((None, 3))
    entry = index(layer).find(selector("kernel"))
    entry.variable._value, value = None, entry.variable._value  # as on jax, inside `fit`
    assert (entry.shape, entry.dtype, find(layer, "kernel")) == ((3, 2), "float32", entry.variable)
    entry.variable._value = value


@pytest.mark.backend_free
def test_time_does_not_grow_with_the_model():
    class Wide(keras.Layer):
        def __init__(self, count):
            super().__init__()
            shared = self.add_weight(name="kernel", shape=(1,))
            self.parts = [Named([], name=f"part_{i}") for i in range(count)]
            for part in self.parts:
                part.kernel = shared  # thousands of variables would take seconds to make

    def counted(count):
        model, wanted = Wide(count), selector(f"part_{count - 1}.kernel")
        making, found = steps(ModelIndex, model), index(model)
        found.find(wanted)
        return making, steps(found.find, wanted), steps(index, model)

    small, large = counted(100), counted(1_000)
    assert large[0] < 10.1 * small[0]
    assert large[1] == small[1]
    assert large[2] < 5 * 1_000


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small():
    inner = [layers.Dense(3, name="dense_1"), layers.Dropout(0.5, name="drop"), layers.Dense(2, name="dense_2")]
    return keras.Sequential([keras.Input((4,)), *inner], name="model")


TEXTS = {
    "dense_1.kernal": """
        no variable 'dense_1.kernal'; did you mean 'dense_1.kernel'?
          line 1, column 9
            dense_1.kernal = 0
                    ^^^^^^
          dense_1 has: kernel (4, 3) float32, bias (3,) float32""",
    "kernel": """
        'kernel' is ambiguous: 2 variables have that name
          line 1, column 1
            kernel = 0
            ^^^^^^
          dense_1.kernel (4, 3) float32
          dense_2.kernel (3, 2) float32""",
    "kernal": """
        no variable 'kernal'; did you mean 'kernel'?
          line 1, column 1
            kernal = 0
            ^^^^^^
          the model has: dense_1, drop, dense_2
          variables named 'kernel': dense_1.kernel, dense_2.kernel""",
    "dense_2": """
        'dense_2' is a layer, not a variable
          line 1, column 1
            dense_2 = 0
            ^^^^^^^
          dense_2 has: kernel (3, 2) float32, bias (2,) float32""",
    "dens_2.kernal": """
        no variable 'dens_2.kernal'; did you mean 'dense_2.kernel'?
          line 1, column 1
            dens_2.kernal = 0
            ^^^^^^
          the model has: dense_1, drop, dense_2""",
    "drop.kernel": """
        no variable 'drop.kernel'
          line 1, column 6
            drop.kernel = 0
                 ^^^^^^
          drop has no variables""",
    '"model/dense_2/kern"': """
        no variable '"model/dense_2/kern"'; did you mean 'dense_2.kernel'?
          line 1, column 16
            "model/dense_2/kern" = 0
                           ^^^^
          dense_2 has: kernel (3, 2) float32, bias (2,) float32""",
    "layers[3].kernel": """
        no variable 'layers[3].kernel': the model has 3 layers
          line 1, column 1
            layers[3].kernel = 0
            ^^^^^^^^^
          the model has: dense_1, drop, dense_2""",
    "dense_1.output": """
        'dense_1.output' is an activation; kpatch.rewrite and kpatch.intervene edit those
          line 1, column 9
            dense_1.output = 0
                    ^^^^^^""",
}


@pytest.mark.backend_free
@pytest.mark.parametrize("text", TEXTS)
def test_whole_error_texts(small, text):
    expected = TEXTS[text].replace("\n        ", "\n").strip("\n")
    assert failure(small, text) == expected


@pytest.mark.backend_free
def test_kinds_of_errors(small):
    for text in ("output", "dense_1.output", "dense_2.input", "layers[0].output", "**.output", "dense*.input"):
        with pytest.raises(UnsupportedError):
            find(small, text)
    for text in ("output.kernel", "nothing.output", "x", "x.y.z", '"/"', '"a//b"', "layers[999999999999].kernel"):
        with pytest.raises(ResolutionError):
            find(small, text)


def test_a_variable_called_output_is_reached_otherwise():
    model = keras.Sequential([Named(["output"], name="odd")])
    check(model)
    assert paths(model) == ['odd."weights[0]"']


@pytest.mark.backend_free
def test_errors_deep_in_a_model():
    model = block()
    assert failure(model, "backbone.kernel") == (
        "no variable 'backbone.kernel'\n"
        "  line 1, column 10\n"
        "    backbone.kernel = 0\n"
        "             ^^^^^^\n"
        "  backbone has: first, head\n"
        "  variables named 'kernel': backbone.first.kernel, backbone.head.first.kernel, backbone.head.last.kernel"
    )
    assert "; did you mean 'backbone.head.last.kernel'?\n" in failure(model, "backbone.haed.lst.kernel")
    assert failure(model, "blocks") == (
        "'blocks' is a list or dict, not a variable\n  line 1, column 1\n    blocks = 0\n    ^^^^^^\n  blocks has: 0, 1"
    )


@pytest.mark.backend_free
def test_long_lists_are_cut():
    model = keras.Sequential([keras.Input((1,)), *[layers.Dense(1, name=f"d{i}") for i in range(20)]])
    assert failure(model, "kernel").split("\n")[-2:] == ["  d7.kernel (1, 1) float32", "  and 12 more"]
    assert failure(model, "d3.kernl").endswith("d3 has: kernel (1, 1) float32, bias (1,) float32")
    assert failure(model, "x.y").endswith("the model has: d0, d1, d2, d3, d4, d5, d6, d7, and 12 more")


def test_unbuilt():
    model = keras.Sequential([layers.Dense(3, name="d")], name="m")
    assert failure(model, "d.kernel") == (
        "no variable 'd.kernel': the model has no variables until it is built or called\n"
        "  line 1, column 1\n"
        "    d.kernel = 0\n"
        "    ^^^^^^^^"
    )
    half = Named(["w"])
    half.inner = layers.Dense(3)
    assert failure(half, "inner.kernel").endswith("inner has no variables until it is built or called")
    empty = keras.Sequential([keras.Input((2,)), layers.Flatten()])
    assert failure(empty, "kernel").startswith("no variable 'kernel': the model has no variables\n")


@pytest.mark.backend_free
def test_what_is_no_model():
    with pytest.raises(PatchError) as info:
        index([1, 2])
    assert str(info.value) == "expected a Keras model or layer; Received: [1, 2] (of type <class 'list'>)"
    for other in (None, "text", 3, keras.layers.Dense, object()):
        with pytest.raises(PatchError, match="Received: "):
            index(other)


def test_a_layer_that_was_never_made():
    class Careless(keras.Layer):
        def __init__(self):
            pass

    with pytest.raises(PatchError) as info:
        index(Careless())
    assert str(info.value) == "a Careless of the model was made without 'super().__init__()'"


@pytest.mark.backend_free
def test_many_errors_take_bounded_time():
    model = keras.Sequential([Named(["kernel"], name=f"layer_{i}_of_many") for i in range(300)])
    found = index(model)
    suggested = 0
    for i in range(200):
        with pytest.raises(ResolutionError) as info:
            found.find(selector(f"layr_{i}_of_many.kernel"))
        suggested += "did you mean" in str(info.value)
    assert suggested == 20
    text = ".".join(["layer_1_of_many"] * 20_000)
    with pytest.raises(ResolutionError):
        found.find(selector(text))
