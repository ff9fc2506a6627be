"""Lengths of axes that are symbols: jax and torch have such while they export a function for any length."""


def lengths(shape):
    """A tensor's shape, with `None` for the symbols of jax and torch that stand for any length while they export."""
    shape = tuple(shape)
    return shape if all(type(length) is int for length in shape) else tuple(map(_length, shape))


def _length(length):
    from keras import backend

    if backend.backend() == "jax":
        from jax import export

        return None if export.is_symbolic_dim(length) else length
    if backend.backend() == "torch":
        import torch

        return None if isinstance(length, torch.SymInt) else length
    return length


def holds(condition):
    """What a condition on lengths is, or `None` if only the running graph knows. torch makes it a bound of its symbols.

    Args:
        condition: a function without arguments, that compares lengths.
    """
    from keras import backend

    if backend.backend() == "tensorflow":
        return None
    if backend.backend() != "jax":
        return bool(condition())
    import jax

    try:
        return bool(condition())
    except jax.errors.InconclusiveDimensionOperation:
        return None
