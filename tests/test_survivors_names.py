"""Behaviour of the names of variables that mutants of the code had shown to be untested."""

import keras
import pytest

import kpatch
from kpatch.names.counterparts import Counterparts
from kpatch.names.index import index

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
    assert caught.value.message == f"'$donor' has no variable at the place of '{entry.path}' (3, 4)"


def test_a_counterpart_by_position_is_in_a_model_of_as_many_layers():
    _, entry = unnamed(layers.Dense, 2)
    donor = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dense(5), layers.Dense(6)])
    with pytest.raises(kpatch.ResolutionError):
        Counterparts("donor", index(donor)).of(entry)
