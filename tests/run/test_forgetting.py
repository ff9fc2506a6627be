"""The models that hold a layer, wherever they are, and whatever a program has frozen."""

import gc

import keras
import pytest

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


def test_models_that_were_frozen_are_found(freezes):
    layer = keras.layers.Dense(3)
    one, held = Sharing(layer), Holder(Sharing(layer))
    outer = [lambda: held.model, Sharing(one)]
    expected = {id(one), id(held.model), id(outer[1])}
    assert set(map(id, models_with([layer]))) == expected
    freezes()
    assert set(map(id, models_with([layer]))) == expected
    late = Sharing(layer)
    assert set(map(id, models_with([layer]))) == expected | {id(late)}
    freezes()
    assert set(map(id, models_with([layer]))) == expected | {id(late)}
    gc.unfreeze()
    assert set(map(id, models_with([layer]))) == expected | {id(late)}
    assert models_with([keras.layers.Dense(3)]) == []


def test_a_model_that_is_gone_is_not_kept(freezes):
    layer = keras.layers.Dense(3)
    KEPT.append(Holder(Sharing(layer)))
    freezes()
    assert len(models_with([layer])) == 1
    gc.unfreeze()
    KEPT.clear()
    gc.collect()
    assert models_with([layer]) == []


def test_what_is_frozen_is_searched_once(freezes, monkeypatch):
    from kpatch.run import forgetting

    layer = keras.layers.Dense(3)
    model = Sharing(layer)
    freezes()
    calls = []
    search = forgetting._reachable
    monkeypatch.setattr(forgetting, "_reachable", lambda listed: calls.append(1) or search(listed))
    for _ in range(3):
        assert models_with([layer]) == [model]
    freezes()
    assert models_with([layer]) == [model]
    assert len(calls) == 2
