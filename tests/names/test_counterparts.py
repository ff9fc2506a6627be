"""`$donor._`: the variable of another model at the target's own place."""

import keras
import models
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kpatch
from kpatch.names.counterparts import Counterparts
from kpatch.names.index import index
from kpatch.values.tensors import to_numpy

layers = keras.layers


def pairs(model, donor):
    """For each variable of a model its counterpart, or the error's message."""

    def of(entry):
        try:
            return counterparts.of(entry).variable
        except kpatch.ResolutionError as error:
            return error.message

    counterparts = Counterparts("donor", index(donor))
    return {id(entry.variable): of(entry) for entry in index(model).entries if not entry.hidden}


def check(model, donor, expected=None):
    """Each variable has the counterpart expected (else: the one of the same number), and takes over its values."""
    shown = [entry.variable for entry in index(model).entries if not entry.hidden]
    if expected is None:
        others = [entry.variable for entry in index(donor).entries if not entry.hidden]
        expected = list(zip(shown, others, strict=True))
    found = pairs(model, donor)
    for mine, other in expected:
        assert found[id(mine)] is other, index(model)
    numbered(donor)
    kpatch.apply(model, "** = $donor._", donor=donor)
    for mine, other in expected:
        np.testing.assert_array_equal(to_numpy(mine.value), to_numpy(other.value))


def numbered(model):
    """Gives each variable values of its own."""
    for i, variable in enumerate(model.weights):
        variable.assign(np.arange(np.prod(variable.shape, dtype=int)).reshape(variable.shape) / 64 + i)


def dense(names, units=3, name=None):
    made = [layers.Dense(units, name=each, kernel_initializer="zeros") for each in names]
    return keras.Sequential([keras.Input((3,)), *made], name=name)


# By order -------------------------------------------------------------------------------------------------------------


def test_names_that_keras_numbers():
    """`dense_7` in one model is `dense_10` in the other, and a name of one may be that of another layer there."""
    model, donor = dense([None] * 3), dense([None] * 3)
    assert [layer.name for layer in model.layers] != [layer.name for layer in donor.layers]
    check(model, donor)
    first, second = dense(["dense_1", "dense_2", "dense_3"]), dense(["dense_2", "dense_3", "dense_4"])
    check(first, second)


def test_names_given():
    check(dense(["a", "b"]), dense(["a", "b"]))
    check(dense(["a", "b"]), dense(["x", "y"]))  # other names, the same structure


def backbone(name="backbone", numbered_names=True):
    inputs = keras.Input((3,))
    x = layers.Dense(3, name=None if numbered_names else "one", kernel_initializer="zeros")(inputs)
    x = layers.Dense(4, name=None if numbered_names else "two", kernel_initializer="zeros")(x)
    return keras.Model(inputs, x, name=name)


def classifier(inner, units, name="classifier"):
    inputs = keras.Input((3,))
    return keras.Model(inputs, layers.Dense(units, name="head", kernel_initializer="zeros")(inner(inputs)), name=name)


def test_a_donor_inside_a_classifier():
    alone, within = backbone(), backbone("other")
    check(alone, classifier(within, 2), [*zip(alone.weights, within.weights, strict=True)])


def test_a_target_inside_a_classifier():
    inner, donor = backbone(), backbone("donor")
    model = classifier(inner, 2)
    found = pairs(model, donor)
    for mine, other in zip(inner.weights, donor.weights, strict=True):
        assert found[id(mine)] is other
    head = model.get_layer("head")
    assert found[id(head.kernel)] == "'$donor' has no counterpart of 'head.kernel' (4, 2)"
    kpatch.apply(model, "backbone.** = $donor._", donor=donor)


def test_other_heads():
    one, other = backbone("one"), backbone("other")
    model, donor = classifier(one, 2), classifier(other, 5)
    found = pairs(model, donor)
    assert all(found[id(mine)] is theirs for mine, theirs in zip(one.weights, other.weights, strict=True))
    assert found[id(model.get_layer("head").bias)] == "'$donor' has no counterpart of 'head.bias' (2,)"
    before = models.snapshot(model)
    with pytest.raises(kpatch.ResolutionError) as caught:
        kpatch.apply(model, "** = 0.5 * _ + 0.5 * $donor._", donor=donor)
    assert str(caught.value) == (
        "'$donor' has no counterpart of 'head.kernel' (4, 2)\n"
        "  line 1, column 22\n"
        "    ** = 0.5 * _ + 0.5 * $donor._\n"
        "                         ^^^^^^^^\n"
        "  found head.kernel (4, 5) float32\n"
        "  name a variable by its path, as in '$donor.other.dense_1.kernel'\n"
        "  for head.kernel (4, 2) float32, match 5 of '**'\n"
        "  2 of the 6 matches fail"
    ).replace("other.dense_1", index(donor).entries[0].path.removesuffix(".kernel"))
    assert models.snapshot(model) == before


class Net(keras.Model):
    """A subclassed model, whose attributes last and whose names do not."""

    def __init__(self, reverse=False, **kwargs):
        super().__init__(**kwargs)
        made = {"encoder": layers.Dense(3), "head": layers.Dense(3)}
        for name in sorted(made, reverse=reverse):
            setattr(self, name, made[name])
        self.blocks = [layers.Dense(3), layers.Dense(3)]
        for layer in (self.encoder, self.head, *self.blocks):
            layer.build((None, 3))


def test_subclassed_models():
    check(Net(), Net())


def test_attributes_where_the_order_says_nothing():
    """One has a variable more, so that order decides nothing: names do."""
    model, donor = Net(), Net(reverse=True)
    donor.extra = layers.Dense(7)
    donor.extra.build((None, 3))
    expected = [(model.encoder.kernel, donor.encoder.kernel), (model.head.bias, donor.head.bias)]
    expected += [(model.blocks[i].kernel, donor.blocks[i].kernel) for i in range(2)]
    check(model, donor, expected)


def test_subclassed_and_functional():
    """The same variables in the same order, however they are nested."""

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.stem, self.top = layers.Dense(3), layers.Dense(4)
            self.stem.build((None, 3))
            self.top.build((None, 3))

    own, functional = Own(), backbone()
    check(own, functional, [*zip(own.weights, functional.weights, strict=True)])
    check(functional, own, [*zip(functional.weights, own.weights, strict=True)])
    nested = keras.Sequential([keras.Input((3,)), keras.Sequential([layers.Dense(3)]), layers.Dense(4)])
    check(nested, functional, [*zip(nested.weights, functional.weights, strict=True)])


def test_shared_layers():
    def made():
        inputs = keras.Input((3,))
        shared, other = layers.Dense(3), layers.Dense(3)
        inner = keras.Sequential([keras.Input((3,)), shared, other])
        return keras.Model(inputs, inner(shared(inputs)))

    check(made(), made())


def test_odd_layers():
    check(models.mixed(), models.mixed())
    check(models.subclassed(), models.subclassed())


def test_the_model_itself():
    model = models.dense()
    before = models.snapshot(model)
    kpatch.apply(model, "** = $self._", self=model)
    assert models.snapshot(model) == before
    found = pairs(model, model)
    assert all(found[id(variable)] is variable for variable in model.weights)


# By name and by position ----------------------------------------------------------------------------------------------


def test_given_names_where_structures_differ():
    """A layer of the donor was left out, another added: names that were given find the rest."""
    model, donor = dense(["a", "b", "c"]), dense(["z", "c", "b", "y", "w"])
    found = pairs(model, donor)
    assert found[id(model.get_layer("b").kernel)] is donor.get_layer("b").kernel
    assert found[id(model.get_layer("c").bias)] is donor.get_layer("c").bias
    assert found[id(model.get_layer("a").bias)] == "'$donor' has no counterpart of 'a.bias' (3,)"


def test_a_chain_that_ends_in_the_other():
    inner = dense(["a", "b"], name="inner")
    model = keras.Sequential([keras.Input((3,)), inner, layers.Dense(1, name="top")], name="model")
    donor = dense(["b", "x", "a"], name="donor")
    found = pairs(model, donor)
    assert found[id(inner.get_layer("a").kernel)] is donor.get_layer("a").kernel
    back = pairs(donor, model)
    assert back[id(donor.get_layer("a").kernel)] is inner.get_layer("a").kernel
    assert isinstance(back[id(donor.get_layer("x").kernel)], str)


def test_a_number_of_keras_says_nothing():
    """`dense_1` is a name that Keras makes up: it never finds the layer of that number in a model of another shape."""
    model, donor = dense(["dense", "dense_1"]), dense(["dense_1", "dense_2", "dense_3"])
    found = pairs(model, donor)
    assert all(isinstance(other, str) for other in found.values())


def test_positions_where_the_heads_differ():
    """Only the last layer has another shape: the others are found by position, though their names are numbers."""

    def made(units):
        return keras.Sequential([keras.Input((3,)), layers.Dense(3), layers.Dense(3), layers.Dense(units)])

    model, donor = made(2), made(5)
    found = pairs(model, donor)
    for mine, other in zip(model.weights[:4], donor.weights[:4], strict=True):
        assert found[id(mine)] is other
    assert all(isinstance(found[id(variable)], str) for variable in model.weights[4:])
    other_kind = keras.Sequential([keras.Input((3,)), layers.Dense(3), layers.PReLU(), layers.Dense(5)])
    assert isinstance(pairs(model, other_kind)[id(model.weights[2])], str)


def test_ambiguous():
    """Two layers of the donor are as the whole model is."""
    one, two = backbone("one"), backbone("two")
    inputs = keras.Input((3,))
    donor = keras.Model(inputs, [one(inputs), two(inputs)], name="twins")
    model = backbone("model", numbered_names=False)
    with pytest.raises(kpatch.ResolutionError) as caught:
        kpatch.apply(model, "one.bias = $donor._", donor=donor)
    [first, second] = [index(donor).find(parse_selector(f"{side}.layers[0].bias")) for side in ("one", "two")]
    assert str(caught.value) == (
        "'$donor' has 2 counterparts of 'one.bias' (3,)\n"
        "  line 1, column 12\n"
        "    one.bias = $donor._\n"
        "               ^^^^^^^^\n"
        f"  found {first!r}\n"
        f"  found {second!r}\n"
        f"  name a variable by its path, as in '$donor.{index(donor).entries[0].path}'"
    )


def parse_selector(text):
    return kpatch.parse(f"{text} = 0").statements[0].target.selector


def test_seed_states_do_not_count():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3), layers.Dropout(0.5, seed=1), layers.Dense(3)])
    donor = dense([None, None])
    check(model, donor, [*zip(model.weights, donor.weights, strict=True)])
    found = pairs(donor, model)
    assert all(found[id(mine)] is other for mine, other in zip(donor.weights, model.weights, strict=True))


def test_other_dtypes():
    """A counterpart may have another dtype; the value is cast as any other."""
    model, donor = models.dense("float16"), models.dense("float32")
    kpatch.apply(model, "** = $donor._", donor=donor)
    donor.layers[0].kernel.assign(np.full((4, 3), 1e6))
    before = models.snapshot(model)
    with pytest.raises(kpatch.DTypeError, match=r"^1000000.0 at \[0, 0\] does not fit float16"):
        kpatch.apply(model, "**.bias = 1; ** = $donor._", donor=donor)
    assert models.snapshot(model) == before


def test_where_a_target_is_needed():
    model, donor = models.dense(), models.dense()
    for text in ("assert all($donor._ == 1)", "let a = $donor._"):
        with pytest.raises(kpatch.BindingError, match=r"and here is no target"):
            kpatch.apply(model, text, donor=donor)
    with pytest.raises(kpatch.BindingError, match=r"and here is no target"):
        kpatch.edit(keras.ops.zeros((4, 3)), "_ = $donor._", donor=donor)


def test_parts_of_a_counterpart():
    model, donor = models.dense(), models.filled(models.dense(), seed=3)
    kernel, other = (to_numpy(m.layers[0].kernel.value).copy() for m in (model, donor))
    kpatch.apply(model, "**.kernel[0] = $donor._[1] - _; **.kernel[$donor._ > 1] = 9", donor=donor)
    kernel[0] = other[1] - kernel[0]
    kernel[other > 1] = 9
    np.testing.assert_array_equal(to_numpy(model.layers[0].kernel.value), kernel)


def test_task_arithmetic():
    model, base, tuned = models.dense(), models.filled(models.dense(), 1), models.filled(models.dense(), 2)
    values = [[to_numpy(v.value).copy() for v in m.weights] for m in (model, base, tuned)]
    applied = kpatch.apply(model, "** += 0.5 * ($tuned._ - $base._)", base=base, tuned=tuned, expect=4)
    for variable, mine, b, t in zip(model.weights, *values, strict=True):
        np.testing.assert_array_equal(to_numpy(variable.value), mine + np.float32(0.5) * (t - b))
    applied.undo()
    for variable, mine in zip(model.weights, values[0], strict=True):
        np.testing.assert_array_equal(to_numpy(variable.value), mine)


# Any model and its clone ----------------------------------------------------------------------------------------------


class Tree(keras.Layer):
    """Variables of the shapes given, and layers in attributes or a list."""

    def __init__(self, shapes, inner, listed, named, **kwargs):
        super().__init__(**kwargs)
        for i, shape in enumerate(shapes):
            self.add_weight(name=f"w{i}" if named else None, shape=shape, initializer="zeros")
        if listed:
            self.parts = inner
        else:
            for i, layer in enumerate(inner):
                setattr(self, f"part_{i}", layer)


SHAPES = st.lists(st.sampled_from([(1,), (2,), (1, 2)]), max_size=2)
SPECS = st.recursive(
    st.tuples(SHAPES, st.just(()), st.booleans(), st.booleans()),
    lambda inner: st.tuples(SHAPES, st.lists(inner, max_size=3).map(tuple), st.booleans(), st.booleans()),
    max_leaves=6,
)


def grown(spec, renamed, path="x"):
    shapes, inner, listed, named = spec
    inner = [grown(each, renamed, f"{path}{i}") for i, each in enumerate(inner)]
    name = {"none": None, "same": f"name_{path}", "other": f"{path}_other"}[renamed]
    return Tree(shapes, inner, listed, named, **({} if name is None else {"name": name}))


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(SPECS, st.sampled_from(["none", "same", "other"]), st.sampled_from(["none", "same"]))
def test_a_clone_has_its_own_for_each(spec, first, second):
    model, clone = grown(spec, first), grown(spec, second)
    if model.weights:
        check(model, clone, [*zip(model.weights, clone.weights, strict=True)])
        check(model, model, [(variable, variable) for variable in model.weights])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(SPECS, st.integers(0, 3))
def test_a_clone_inside_another_model(spec, at):
    """Beside layers of other shapes: each variable has its own, or two that look alike make it ambiguous."""
    model, clone = grown(spec, "none"), grown(spec, "none")
    others = [Tree([(3, i + 1)], [], False, True) for i in range(3)]
    outer = Tree([(5,)], [*others[:at], clone, *others[at:]], True, True)
    if not model.weights:
        return
    found = pairs(model, outer)
    for mine, other in zip(model.weights, clone.weights, strict=True):
        assert found[id(mine)] is other or "variables at the place" in found[id(mine)]
    within = pairs(outer, model)
    for mine, other in zip(clone.weights, model.weights, strict=True):
        assert within[id(mine)] is other
