"""Tensors that a layer derives from its variables, in `finalize_state`: derived anew when the variables are edited."""

from kpatch.run.forgetting import forget_compiled, models_with


def derive(records):
    """Has the layers whose variables were written derive their tensors anew.

    They are constants in what a model has compiled, which is therefore compiled anew too.

    Args:
        records: those of a journal, or of a part of it.
    """
    entries = (record.step.place.entry for record in records if record.begun)
    owners = {id(entry.owner): entry.owner.item for entry in entries if entry is not None}
    layers = [layer for layer in owners.values() if hasattr(layer, "finalize_state")]
    if not layers:
        return
    for layer in layers:
        layer.finalize_state()
    forget_compiled(models_with(layers))
