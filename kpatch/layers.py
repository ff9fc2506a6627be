"""Layers that hold a patch: of the tensor that flows through, or of the weights of another layer."""

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kpatch.errors import BindingError, PatchError, boundary, of_backend

try:
    import keras
    from keras import ops
except ModuleNotFoundError as error:
    raise of_backend(error) from None

from kpatch import backends
from kpatch.inside.naming import named_by, unique
from kpatch.inside.patched import WeightsPatch
from kpatch.inside.tensor_patch import TensorPatch
from kpatch.names.patches import PatchLike
from kpatch.values.tensors import of_variable

backends.current()  # settled now: dynamo cannot trace the first call


@keras.saving.register_keras_serializable(package="kpatch")
class ScatterLayer(keras.layers.Layer):
    """Edits the tensor that flows through it, as `kpatch.edit` does.

    The patch is checked when the layer is made and built. Lengths may be unknown (batch, sequence): an index on a
    known axis is planned once, and what depends on the others is computed in the graph. An index that is not certain
    to be in range is checked when the lengths and its values are known. A graph of TensorFlow fails when it runs. XLA
    cannot fail: there an entry that does not exist changes nothing. Gradients flow to the entries left alone and to
    the values; those of overwritten entries are exactly zero.

    The right-hand side is computed in the layer's compute dtype: under mixed precision that is float16 or bfloat16.

    Args:
        patch: a text, or what else `kpatch.apply` takes; every target is `_`.
        bindings: the values of the patch's `$names`, `{name: value}`. Names without a value are further inputs, in
            the order of the text: `layer([x, v])`.
        trainable_values: the bindings are weights, named as they are, that start from the values given. Those in an
            index, and arrays of integers or booleans, remain constants.
        name: by default it tells the patch, as far as names can, so that `model.summary()` shows it.
        **kwargs: of `keras.layers.Layer`: `dtype`, `trainable`.

    Example:
        >>> import keras, kpatch.layers
        >>> layer = kpatch.layers.ScatterLayer("_[..., 1] = $s", bindings={"s": 5.0})
        >>> keras.ops.convert_to_numpy(layer(keras.ops.ones((2, 3)))).tolist()
        [[1.0, 5.0, 1.0], [1.0, 5.0, 1.0]]
    """

    @boundary
    def __init__(
        self,
        patch: PatchLike,
        bindings: Mapping[str, Any] | None = None,
        trainable_values: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        held = TensorPatch(patch, bindings, f"a {type(self).__name__}")
        super().__init__(name=name or unique(named_by(held.text, "scatter_layer")), **kwargs)
        self.patch = held
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
        self._weights_by_name: dict[str, Any] = {}
        self._dtypes: list[str] | None = None

    def can_train(self) -> bool:
        """Whether a binding could be a weight."""
        return any(self._trainable_names())

    def _trainable_names(self) -> Iterator[str]:
        indices = self.patch.indices()
        for name, value in self.patch.bindings.items():
            kind = np.asarray(value).dtype
            if name not in indices and (
                kind.kind == "f" or kind.name == "bfloat16" or not isinstance(value, np.ndarray)
            ):
                yield name

    def build(self, input_shape: Any) -> None:
        self._weights_by_name = {
            name: self.add_weight(
                shape=self._initial[name].shape,
                initializer=lambda shape, dtype, name=name: ops.convert_to_tensor(self._initial[name], dtype),
                name=name,
            )
            for name in self._trained
        }
        if not isinstance(input_shape, (tuple, list)):
            kind = "a dict" if isinstance(input_shape, dict) else "no tensor"
            raise BindingError(f"the layer takes a tensor, or a list of them. Received: {kind}")
        several = len(input_shape) > 0 and isinstance(input_shape[0], (tuple, list))
        shapes = input_shape if several else [input_shape]
        self._check_count(len(shapes))
        dtypes = self._dtypes or [self.compute_dtype] * len(shapes)
        self._plan([(tuple(shape), dtype) for shape, dtype in zip(shapes, dtypes, strict=True)])
        self.built = True

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.built and self._dtypes is None:  # which `build` is not told: integers are not cast to floats
            given = inputs if isinstance(inputs, (list, tuple)) else [inputs]
            self._dtypes = [self._cast(x.dtype) if hasattr(x, "dtype") else self.compute_dtype for x in given]
        return super().__call__(inputs, *args, **kwargs)

    def get_build_config(self) -> dict[str, Any] | None:
        config = super().get_build_config()
        return config and {**config, "dtypes": self._dtypes}

    def build_from_config(self, config: dict[str, Any]) -> None:
        self._dtypes = config.get("dtypes")  # without them an index that is an input would be taken for floats
        super().build_from_config(config)

    def _cast(self, dtype: Any) -> str:
        dtype = keras.backend.standardize_dtype(dtype)
        return self.compute_dtype if self.autocast and keras.backend.is_float_dtype(dtype) else dtype

    def _plan(self, specs: list[tuple[tuple, str]]) -> Any:
        given = dict(zip(self._further, specs[1:], strict=True))
        given.update((name, (value.shape, self.compute_dtype)) for name, value in self._weights_by_name.items())
        return self.patch.plan(specs[0], {name: given[name] for name in self.patch.free})

    def _check_count(self, count: int) -> None:
        if count != 1 + len(self._further):
            names = ", ".join(f"'${name}'" for name in self._further)
            takes = f"the tensor and {names}, in a list" if names else "one tensor"
            raise BindingError(f"the layer takes {takes}. Received: {count} input{'s' * (count != 1)}")

    def call(self, inputs: Any) -> Any:
        if not self.patch.free:
            return self.patch.run((), inputs)
        x, *others = inputs if self._further else [inputs]
        given = dict(zip(self._further, others, strict=True))
        given.update((name, of_variable(value)) for name, value in self._weights_by_name.items())
        return self.patch.run(tuple(given), x, *given.values())

    def compute_output_spec(self, inputs: Any) -> Any:
        x, *others = inputs if self._further else [inputs]
        self._plan([(tuple(t.shape), keras.backend.standardize_dtype(t.dtype)) for t in (x, *others)])
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape[0] if self._further else input_shape

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return previous_mask[0] if self._further and previous_mask is not None else previous_mask

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name}, patch={self.patch.text!r}>"

    def get_config(self) -> dict[str, Any]:
        own = self._constant_config if self._trained else self.patch.get_config()
        return {**super().get_config(), **own, "trainable_values": self.trainable_values}


@keras.saving.register_keras_serializable(package="kpatch")
class PatchedLayer(keras.layers.Wrapper):
    """A layer whose weights are seen through a patch; the stored weights stay, and go on training.

    What the patch overwrites gets no gradient and no update; everything else trains as before. Targets are the names of
    the layer's own variables: `kernel[0, 0] = 1.0`.

    Args:
        layer: the layer; its weights are shared, not copied.
        patch: a text, or what else `kpatch.apply` takes.
        bindings: the values of the patch's `$names`, constants.
        name: by default it tells the layer and the patch, so that `model.summary()` shows them.
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

    @boundary
    def __init__(
        self,
        layer: keras.Layer,
        patch: PatchLike,
        bindings: Mapping[str, Any] | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(layer, keras.Layer):
            message = "kpatch.layers.PatchedLayer wraps a Keras layer: PatchedLayer(layer, patch). Received: "
            raise PatchError(message + reprlib.repr(layer))
        held = WeightsPatch(patch, bindings)
        name = name or unique(named_by(held.text, layer.name))
        super().__init__(layer, name=name, autocast=False, **kwargs)  # so that the patch sees what is stored
        self.patch = held
        self.supports_masking = layer.supports_masking
        if layer.built:
            self.patch.plan(layer)

    def build(self, input_shape: Any = None, **shapes: Any) -> None:
        if not self.layer.built:
            self.layer.build(input_shape)
            self.layer.built = True
        self.patch.plan(self.layer)
        self.built = True

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        written, read = self.patch.variables(self.layer)
        stored = [of_variable(variable) for variable in (*written, *read)]
        seen = self.patch.run((), *stored)
        mapping = [*zip(written, seen, strict=True), *zip(read, stored[len(written) :], strict=True)]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            before = [scope.get_current_value(variable) for variable in (*written, *read)]
            outputs = self.layer(inputs, *args, **kwargs)
        for loss in scope.losses:
            self.add_loss(loss)
        for number, (variable, value) in enumerate(zip((*written, *read), before, strict=True)):
            if (after := scope.get_current_value(variable)) is not value:  # a state, or a moving statistic
                if number < len(written):  # what the patch changes stays as it is stored
                    after = keras.ops.where(keras.ops.equal(value, stored[number]), after, stored[number])
                variable.assign(after)
        return outputs

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name}, patch={self.patch.text!r}>"

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("autocast", None)
        return {**config, **self.patch.get_config()}
