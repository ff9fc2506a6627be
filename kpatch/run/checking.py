"""A patch checked against a model or a tensor; checked patches are kept while nothing changes that they depend on."""

from functools import lru_cache

from kpatch.errors import ResolutionError
from kpatch.names.bindings import Bindings
from kpatch.names.index import index
from kpatch.names.meanings import ModelNames, Place, TensorNames
from kpatch.run import planner

MAX_LISTED = 8  # variables listed where their number is not the one expected
CACHED_PLANS = 64  # for each model; the oldest is dropped


def check(model, patch, bindings, expect=None):
    """What runs a patch on a model; without bindings kept while neither names nor variables of the model change."""
    names = index(model)
    if bindings:
        checked = _made(patch, ModelNames(names, Bindings(bindings)))
    else:
        cache = vars(names).setdefault("plans", {})  # they go with the index that they were made from
        checked = cache.get(patch)
        if checked is None:
            checked = _made(patch, ModelNames(names, Bindings({})))
            if len(cache) >= CACHED_PLANS:
                cache.pop(next(iter(cache)))
            cache[patch] = checked
    if expect is not None:
        check_expected(checked, expect)
    return checked


def _made(patch, names, traced=False):
    implied = names.implied.unknown() if isinstance(names, TensorNames) else None
    checked = planner.make(patch, names, implied, traced)
    names.bindings.check_used()
    return checked


def check_expected(checked, expect):
    """Raises a `ResolutionError` if the patch writes to another number of variables."""
    places = list({id(step.place): step.place for step in checked.edits}.values())
    if len(places) != expect:
        shown = [repr(place) for place in places[:MAX_LISTED]]
        more = [f"and {len(places) - MAX_LISTED} more"] * (len(places) > MAX_LISTED)
        raise ResolutionError(
            f"the patch matches {len(places)} variable{'s' * (len(places) != 1)}, not {expect}", notes=[*shown, *more]
        )


def check_edit(patch, implied, bindings, traced):
    """What runs a patch on one tensor, of which `implied` has name, shape and dtype; without bindings kept."""
    if not bindings:
        return _check_kept(patch, implied, traced)
    given = Bindings(bindings)
    return _made(patch, TensorNames(Place(*implied), given), traced or given.traced)


@lru_cache(maxsize=256)
def _check_kept(patch, implied, traced):
    return _made(patch, TensorNames(Place(*implied), Bindings({})), traced)
