"""Recompiles the functions that models keep, when a patch that they were traced with begins or ends."""

import gc

KEPT = ("train_function", "test_function", "predict_function", "generate_function")  # the last is keras_hub's


def forget_compiled(layers):
    """Replaces the compiled functions of all models among `layers`; the new ones are traced at their next call.

    They are replaced immediately, because `fit` reads its function at each step, and this can be called in a callback.

    Example:
        >>> import keras, numpy
        >>> from kpatch.run.forgetting import forget_compiled
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> _ = model.predict(numpy.ones((1, 4)), verbose=0)
        >>> before = model.predict_function
        >>> forget_compiled([model])
        >>> model.predict_function is before
        False
    """
    import keras

    for model in layers:
        if isinstance(model, keras.Model):
            for name in KEPT:
                make = getattr(model, f"make_{name}", None)
                if make is not None and getattr(model, name, None) is not None:
                    setattr(model, name, None)
                    make()


def layers_of(index):
    """The model of a `ModelIndex` and its layers."""
    return [node.item for node in index.nodes if node.item is not None]


def models_with(layers):
    """All live models that contain one of the layers.

    A layer does not know its models, so this searches all objects of the process, at about 100 ns each: cheap compared
    with tracing a function, too slow for frequent use.
    """
    import keras

    held = set(map(id, layers))
    models = [each for each in gc.get_objects() if issubclass(type(each), keras.Model) and "_layers" in vars(each)]
    return [model for model in models if any(id(layer) in held for layer in model._flatten_layers())]
