"""Tensors that a layer derives from its variables, in `finalize_state`: derived anew when the variables are edited."""

from kpatch.run.forgetting import forget_compiled, models_with


def derive(records):
    """Has the layers whose variables were written derive their tensors anew.

    They are constants in what a model has compiled, which is therefore compiled anew too.

    Args:
        records: those of a journal, or of a part of it.
    """
    layers: dict = {}
    for record in records:
        entry = record.step.place.entry
        if entry is not None and record.begun and hasattr(type(entry.owner.item), "finalize_state"):
            layers[id(entry.owner)] = entry.owner.item
    if not layers:
        return
    for layer in layers.values():
        layer.finalize_state()
    forget_compiled(models_with(layers.values()))
