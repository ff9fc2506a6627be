"""Layers that hold a patch: of the tensor that flows through, or of the weights of another layer."""

import keras
import numpy as np
from keras import ops

from kpatch.compiled import TensorPatch
from kpatch.errors import BindingError
from kpatch.patched import WeightsPatch


@keras.saving.register_keras_serializable(package="kpatch")
class ScatterLayer(keras.layers.Layer):
    """Edits the tensor that flows through it, as `kpatch.edit` does.

    The patch is checked when the layer is made and built. Lengths may be unknown (batch, sequence): an index on a
    known axis is planned once, and what depends on the others is computed in the graph. An integer on an axis of
    unknown length is checked when the length is known; on tensorflow, which never says, it is refused: a slice will
    do. Gradients flow to the entries left alone and to the values; those of overwritten entries are exactly zero.

    The right-hand side is computed in the layer's compute dtype: under mixed precision that is float16 or bfloat16.

    Args:
        patch: a `kpatch.Patch`, or its text; every target is `_`.
        bindings: the values of the patch's `$names`, `{name: value}`. Names without a value are further inputs, in
            the order of the text: `layer([x, v])`.
        trainable_values: the bindings are weights, named as they are, that start from the values given. Those in an
            index, and arrays of integers or booleans, remain constants.
        **kwargs: of `keras.layers.Layer`: `name`, `dtype`, `trainable`.

    Example:
        >>> import keras, kpatch.layers
        >>> layer = kpatch.layers.ScatterLayer("_[..., 1] = $s", bindings={"s": 5.0})
        >>> keras.ops.convert_to_numpy(layer(keras.ops.ones((2, 3)))).tolist()
        [[1.0, 5.0, 1.0], [1.0, 5.0, 1.0]]
    """

    def __init__(self, patch, bindings=None, trainable_values=False, **kwargs):
        super().__init__(**kwargs)
        self.patch = TensorPatch(patch, bindings, f"a {type(self).__name__}")
        self.trainable_values = trainable_values
        self.supports_masking = True
        self._trained = tuple(self._trainable_names()) if trainable_values else ()
        if trainable_values and not self._trained:
            raise BindingError("trainable_values=True, and no binding is a floating value outside of an index")
        if self._trained:
            constants = {name: value for name, value in self.patch.bindings.items() if name not in self._trained}
            self._initial = {name: np.asarray(self.patch.bindings[name], "float32") for name in self._trained}
            self._constant_config = self.patch.get_config()
            self.patch = TensorPatch(self.patch.patch, constants, self.patch.owner)
        self._further = tuple(name for name in self.patch.free if name not in self._trained)
        self._weights_by_name = {}

    def _trainable_names(self):
        indices = self.patch.indices()
        for name, value in self.patch.bindings.items():
            kind = np.asarray(value).dtype
            if name not in indices and (
                kind.kind == "f" or kind.name == "bfloat16" or not isinstance(value, np.ndarray)
            ):
                yield name

    def build(self, input_shape):
        self._weights_by_name = {
            name: self.add_weight(
                shape=self._initial[name].shape,
                initializer=lambda shape, dtype, name=name: ops.convert_to_tensor(self._initial[name], dtype),
                name=name,
            )
            for name in self._trained
        }
        shapes = input_shape if self._further else [input_shape]
        self._check_count(shapes)
        self._plan([(tuple(shape), self.compute_dtype) for shape in shapes])
        self.built = True

    def _plan(self, specs):
        given = dict(zip(self._further, specs[1:], strict=True))
        given.update((name, (value.shape, self.compute_dtype)) for name, value in self._weights_by_name.items())
        return self.patch.plan(specs[0], {name: given[name] for name in self.patch.free})

    def _check_count(self, inputs):
        if len(inputs) != 1 + len(self._further):
            names = ", ".join(f"'${name}'" for name in self._further)
            raise BindingError(
                f"the layer takes the tensor and {names}: {1 + len(self._further)} inputs, not {len(inputs)}"
            )

    def call(self, inputs):
        if not self.patch.free:
            return self.patch.run((), inputs)
        x, *others = inputs if self._further else [inputs]
        given = dict(zip(self._further, others, strict=True))
        given.update((name, ops.convert_to_tensor(value)) for name, value in self._weights_by_name.items())
        return self.patch.run(tuple(given), x, *given.values())

    def compute_output_spec(self, inputs):
        x, *others = inputs if self._further else [inputs]
        self._plan([(tuple(t.shape), keras.backend.standardize_dtype(t.dtype)) for t in (x, *others)])
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape[0] if self._further else input_shape

    def compute_mask(self, inputs, previous_mask=None):
        return previous_mask[0] if self._further and previous_mask is not None else previous_mask

    def get_config(self):
        own = self._constant_config if self._trained else self.patch.get_config()
        return {**super().get_config(), **own, "trainable_values": self.trainable_values}


@keras.saving.register_keras_serializable(package="kpatch")
class PatchedLayer(keras.layers.Wrapper):
    """A layer whose weights are seen through a patch; the stored weights stay, and go on training.

    What the patch overwrites gets no gradient, and everything else trains as before. Targets are the names of the
    layer's own variables: `kernel[0, 0] = 1.0`.

    Args:
        layer: the layer; its weights are shared, not copied.
        patch: a `kpatch.Patch`, or its text.
        bindings: the values of the patch's `$names`, constants.
        **kwargs: of `keras.layers.Layer`.

    Example:
        >>> import keras, kpatch.layers
        >>> dense = keras.layers.Dense(2, kernel_initializer="ones")
        >>> layer = kpatch.layers.PatchedLayer(dense, "kernel[:, 1] = 0")
        >>> keras.ops.convert_to_numpy(layer(keras.ops.ones((1, 3)))).tolist()
        [[3.0, 0.0]]
        >>> dense.get_weights()[0].tolist()
        [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """

    def __init__(self, layer, patch, bindings=None, **kwargs):
        super().__init__(layer, autocast=False, **kwargs)  # so that the patch sees the precision that is stored
        self.patch = WeightsPatch(patch, bindings)
        self.supports_masking = layer.supports_masking
        if layer.built:
            self.patch.plan(layer)

    def build(self, input_shape=None, **shapes):
        if not self.layer.built:
            self.layer.build(input_shape)
            self.layer.built = True
        self.patch.plan(self.layer)
        self.built = True

    def call(self, inputs, *args, **kwargs):
        written, read = self.patch.variables(self.layer)
        stored = [ops.convert_to_tensor(variable) for variable in (*written, *read)]
        seen = self.patch.run((), *stored)
        mapping = [*zip(written, seen, strict=True), *zip(read, stored[len(written) :], strict=True)]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            before = [scope.get_current_value(variable) for variable in read]
            outputs = self.layer(inputs, *args, **kwargs)
        for loss in scope.losses:
            self.add_loss(loss)
        for variable, value in zip(read, before, strict=True):
            if (after := scope.get_current_value(variable)) is not value:
                variable.assign(after)
        return outputs

    def compute_output_spec(self, *args, **kwargs):
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_mask(self, inputs, previous_mask=None):
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self):
        config = super().get_config()
        config.pop("autocast", None)
        return {**config, **self.patch.get_config()}
