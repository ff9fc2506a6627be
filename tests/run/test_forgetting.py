"""The models that hold a layer, wherever they are, and whatever a program has frozen."""

import gc

import keras
import pytest

from kpatch.run import forgetting
from kpatch.run.forgetting import models_with

pytestmark = pytest.mark.backend_free
KEPT: list = []


class Holder:
    """Holds a model out of reach of every module."""

    def __init__(self, model):
        self.model = model


@pytest.fixture
def freezes():
    yield gc.freeze
    gc.unfreeze()


class Sharing(keras.Model):
    """A model that Keras keeps nowhere."""

    def __init__(self, layer):
        super().__init__()
        self.shared = layer


def test_models_that_were_frozen_are_found(freezes, monkeypatch):
    layer = keras.layers.Dense(3)
    searches = []
    search = forgetting._reachable
    monkeypatch.setattr(forgetting, "_reachable", lambda listed: searches.append(1) or search(listed))
    one, held = Sharing(layer), Holder(Sharing(layer))
    outer = [lambda: held.model, Sharing(one)]
    KEPT.append(Holder(Sharing(layer)))
    expected = {id(one), id(held.model), id(outer[1]), id(KEPT[0].model)}
    assert set(map(id, models_with([layer]))) == expected
    assert not searches
    freezes()
    for _ in range(2):
        assert set(map(id, models_with([layer]))) == expected
    late = Sharing(layer)
    expected.add(id(late))
    assert set(map(id, models_with([layer]))) == expected
    assert len(searches) == 1
    freezes()
    assert set(map(id, models_with([layer]))) == expected
    assert len(searches) == 2
    assert models_with([keras.layers.Dense(3)]) == []
    gc.unfreeze()
    expected.discard(id(KEPT.pop().model))
    gc.collect()
    assert set(map(id, models_with([layer]))) == expected
