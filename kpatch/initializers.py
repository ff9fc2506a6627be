"""Initializers that hold a patch."""

from collections.abc import Mapping
from typing import Any

from kpatch.errors import boundary, of_backend

try:
    import keras
except ModuleNotFoundError as error:
    raise of_backend(error) from None

from kpatch.inside.tensor_patch import TensorPatch
from kpatch.names.patches import PatchLike


@keras.saving.register_keras_serializable(package="kpatch")
class PatchedInitializer(keras.initializers.Initializer):
    """What another initializer makes, with the edits of a patch: identities, sparse and known values.

    The patch is checked when it is made, and for the shape when a layer is built.

    Args:
        patch: a text, or what else `kpatch.apply` takes; every target is `_`.
        base: an initializer, or its name.
        bindings: the values of the patch's `$names`.

    Example:
        >>> import keras, kpatch.initializers
        >>> initializer = kpatch.initializers.PatchedInitializer("_[0] = [1, 2]", base="zeros")
        >>> keras.ops.convert_to_numpy(initializer((2, 2))).tolist()
        [[1.0, 2.0], [0.0, 0.0]]
    """

    @boundary
    def __init__(
        self,
        patch: PatchLike,
        base: "str | keras.initializers.Initializer" = "glorot_uniform",
        bindings: Mapping[str, Any] | None = None,
    ) -> None:
        self.patch = TensorPatch(patch, bindings, "a PatchedInitializer")
        self.patch.refuse_free()
        self.base = keras.initializers.get(base)

    def __call__(self, shape: tuple[int, ...], dtype: str | None = None, **kwargs: Any) -> Any:
        return self.patch((), self.base(shape, dtype=dtype, **kwargs))

    def get_config(self) -> dict[str, Any]:
        base = keras.initializers.serialize(self.base)
        return {**self.patch.get_config(), "base": base}
