"""Behaviour of the names of variables that mutants of the code had shown to be untested."""

import keras
import pytest

import kpatch
from kpatch.names.counterparts import Counterparts
from kpatch.names.globs import matcher
from kpatch.names.index import index
from kpatch.syntax import parse

layers = keras.layers


class Other(layers.Dense):
    """A layer with the weights of Dense, and another class."""


def unnamed(kind, last):
    """Names that Keras numbers do not count, and the last layer differs: the first is found by its position."""
    model = keras.Sequential([keras.Input((3,)), kind(4), layers.Dense(last)])
    return model, index(model).entries[0]


def test_a_counterpart_by_position_is_of_the_same_class():
    _, entry = unnamed(layers.Dense, 2)
    donor, right = unnamed(layers.Dense, 5)
    assert Counterparts("donor", index(donor)).of(entry) is right
    donor, _ = unnamed(Other, 5)
    with pytest.raises(kpatch.ResolutionError) as caught:
        Counterparts("donor", index(donor)).of(entry)
    assert caught.value.message == f"'$donor' has no counterpart of '{entry.path}' (3, 4)"


def test_a_counterpart_by_position_is_in_a_model_of_as_many_layers():
    _, entry = unnamed(layers.Dense, 2)
    donor = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dense(5), layers.Dense(6)])
    with pytest.raises(kpatch.ResolutionError):
        Counterparts("donor", index(donor)).of(entry)


@pytest.mark.parametrize(
    ("pattern", "names", "others"),
    [
        ("a*bcd", ["abcd", "axbcd", "abcdbcd"], ["abc", "axbc", "axbcde", "xabcd", "a", "bcd"]),
        ("ab*", ["ab", "abc"], ["a", "xab"]),
        ("*ab?", ["abc", "xabx"], ["ab", "xab", "abcd"]),
        ("a*b*cde", ["abcde", "axbxcde"], ["acde", "abcd", "abcdex"]),
    ],
)
def test_a_pattern_matches_its_end(pattern, names, others):
    matches = matcher(pattern)
    assert [name for name in (*names, *others) if matches(name)] == names


def nested():
    """Two layers `p` and `q` that each hold a `block` of one layer, `d`."""

    def part(name):
        block = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="d")], name="block")
        return keras.Sequential([keras.Input((3,)), block], name=name)

    return keras.Sequential([keras.Input((3,)), part("p"), part("q")], name="net")


def found(model, text):
    return index(model).find_all(parse(f"{text} = 0").statements[0].target.selector)


def test_only_a_path_of_keras_may_begin_with_the_name_of_the_model():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="d")], name="net")
    assert found(model, '"net/d/kernel"') == found(model, "d.kernel")
    for text in ("net.d.kernel", '"other/d/kernel"'):
        with pytest.raises(kpatch.ResolutionError):
            found(model, text)


def activations(model, text):
    return index(model).activations(parse(f"{text} = 0").statements[0].target.selector)


def test_an_activation_is_of_the_layer_that_its_whole_path_names():
    model = nested()
    for name in ("p", "q"):
        [node], kind, inner = activations(model, f"{name}.block.d.output")
        assert node.item is model.get_layer(name).get_layer("block").get_layer("d")
        assert (kind, inner) == ("output", ())


def test_the_whole_path_of_a_layer_comes_before_ends_of_others():
    """As that of a variable does: `norm.output` of a transformer that has norms in its blocks."""
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="d")], name="inner")
    model = keras.Sequential([keras.Input((3,)), inner, layers.Dense(3, name="d")])
    [node], *_ = activations(model, "d.output")
    assert node.item is model.get_layer("d")
    with kpatch.record(model, "**.output") as clean:
        model(keras.ops.ones((1, 3)))
    assert list(clean) == ["inner.d.output", "inner.output", "d.output"]
    kpatch.intervene(model, "; ".join(f"{path} = $clean._" for path in clean), clean=clean).dismiss()


def test_an_ambiguous_activation_names_its_candidates_by_their_paths():
    with pytest.raises(kpatch.ResolutionError) as caught:
        activations(nested(), "block.d.output")
    assert caught.value.message == "'block.d.output' means several activations"
    assert caught.value.notes == ("candidates: 'p.block.d.output', 'q.block.d.output'",)


def test_twenty_errors_of_one_use_suggest_a_spelling():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="d")], name="net")
    with pytest.raises(kpatch.PatchError) as caught:
        kpatch.plan(model, "\n".join(["d.kernal = 0"] * 25))
    hints = [
        error for error in caught.value.errors if "d.kernel" in str(error).partition("kernal = 0")[2] + error.message
    ]
    assert len(hints) == 20
