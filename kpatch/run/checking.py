"""A patch checked against a model or a tensor; checked patches are kept while nothing changes that they depend on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from numbers import Integral

from kpatch.errors import BindingError, ResolutionError, UnsupportedError
from kpatch.names.bindings import NONE, Bindings
from kpatch.names.index import index, kept
from kpatch.names.meanings import ModelNames, Place, TensorNames, place_of_weight
from kpatch.names.several import EachNames, ModelsIndex, each, list_of
from kpatch.run import planner
from kpatch.values.dtypes import NUMPY

MAX_LISTED = 8  # variables listed where their number is not the one expected
CACHED_PLANS = 64  # for each model; the oldest is dropped


def check(model, patch, bindings, expect=None):
    """What runs a patch on a model; kept while names and variables stay, if nothing but models is handed in."""
    return _check(index(model), patch, bindings, expect)


def _check(names, patch, bindings, expect):
    if bindings:
        checked = _check_bound(names, patch, Bindings(bindings))
    else:
        checked = names.plans.get(patch)
        if checked is None:
            checked = _made(patch, ModelNames(names, Bindings({})))
            _keep(names, patch, checked)
    if expect is not None:
        check_expected(checked, expect)
    return checked


def _check_bound(names, patch, bindings):
    """The same with values handed in. What is kept does not keep the models among them alive."""
    key = None if bindings.key is None else (patch, bindings.key)
    known, named = names.plans.get(key, (None, ()))
    if known is not None and bindings.recall(named):
        return replace(known, names=known.names.given(bindings))
    checked = _made(patch, ModelNames(names, bindings))
    if key is not None and (named := bindings.remembered()) is not None:
        _keep(names, key, (replace(checked, names=checked.names.given(NONE)), named))
    return checked


def _keep(names, key, checked):
    if len(names.plans) >= CACHED_PLANS:
        names.plans.pop(next(iter(names.plans)))
    names.plans[key] = checked


def check_all(target, patch, bindings, expect=None):
    """The same for whatever `kpatch.apply` edits: a model, a variable, or a list or dict of models."""
    names = kept(target)
    if names is not None:
        return _check(names, patch, bindings, expect)
    import keras

    if isinstance(target, keras.Variable):
        checked = _made(patch, TensorNames(_place_of(target), Bindings(bindings), "a variable"))
    elif isinstance(target, Mapping):
        checked = _made(patch, ModelNames(ModelsIndex(target), Bindings(bindings)))
    elif isinstance(target, Sequence) and not isinstance(target, str):
        names = EachNames(list_of(target), Bindings(bindings))
        checked = replace(_made(each(patch, names), names), patch=patch)
    else:
        return check(target, patch, bindings, expect)
    check_expected(checked, expect)
    return checked


def _place_of(variable):
    place = place_of_weight(variable, "_")
    if place.dtype not in NUMPY:
        raise UnsupportedError(f"a variable of {place.dtype} is not part of the language")
    return place


def _made(patch, names, traced=False):
    implied = None if names.implied is None else names.implied.unknown()
    checked = planner.make(patch, names, implied, traced)
    names.bindings.check_used()
    return checked


def check_expected(checked, expect):
    """Raises a `ResolutionError` if a patch writes to another number of variables; `None` is any."""
    if expect is not None:
        check_count({id(step.place): step.place for step in checked.edits}.values(), (), expect)


def check_count(variables, activations, expect):
    """Raises a `ResolutionError` if the variables and activations that a patch writes to are not `expect` in number."""
    if isinstance(expect, bool) or not isinstance(expect, Integral):
        raise BindingError(f"expect is the number of variables that the patch matches. Received: expect={expect!r}")
    found = [*variables, *activations]
    if len(found) != expect:
        shown = [repr(place) for place in found[:MAX_LISTED]]
        more = [f"and {len(found) - MAX_LISTED} more"] * (len(found) > MAX_LISTED)
        counts = [_count(variables, "variable"), *[_count(activations, "activation")] * (len(activations) > 0)]
        raise ResolutionError(f"the patch matches {' and '.join(counts)}, not {expect}", notes=[*shown, *more])


def _count(items, word):
    return f"{len(items)} {word}{'s' * (len(items) != 1)}"


def check_edit(patch, implied, bindings, traced):
    """What runs a patch on one tensor, of which `implied` has name, shape and dtype; without bindings kept."""
    if not bindings:
        return _check_kept(patch, implied, traced)
    given = Bindings(bindings)
    return _made(patch, TensorNames(Place(*implied), given), traced or given.traced)


@lru_cache(maxsize=256)
def _check_kept(patch, implied, traced):
    return _made(patch, TensorNames(Place(*implied), Bindings({})), traced)
