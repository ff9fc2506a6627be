"""The same bytes on every backend: each writes the results of many cases to a file, and the files are compared.

`KPATCH_PARITY=DIR pytest tests/test_parity.py` writes `DIR/<backend>.npz`; `KPATCH_PARITY_COMPARE=DIR pytest
tests/test_parity.py` compares what four backends wrote there. `tox` does both, the second in its environment `parity`.
Selection, assignment, casts, merges, pruning, random numbers and the texts of errors agree to the bit; floating-point
functions to the tolerance that docs/language.md states.
"""

import json
import os
from itertools import combinations
from pathlib import Path

import keras
import models
import numpy as np
import pytest
from test_conformance import CASES, array

import kpatch
from kpatch.functions import TABLE
from kpatch.run.evaluate import Scope, evaluate
from kpatch.values.dtypes import tensor
from kpatch.values.tensors import to_numpy

BACKENDS = ("numpy", "jax", "torch", "tensorflow")
DTYPES = ("bool", "int8", "int16", "int32", "uint8", "float16", "bfloat16", "float32")  # jax's without a switch
INTEGERS = [-(2**31), -32769, -300, -129, -1, 0, 1, 2, 100, 127, 128, 255, 256, 65535, 2**31 - 1]
FLOATS = [0.0, -0.0, 0.5, -0.5, 1.5, -2.75, 1e-3, 65504.0, 65520.0, 1e5, -1e10, 3e38, np.nan, np.inf, -np.inf, 0.1]
# No denormals, in results neither: the page says which backends flush them.
SPECIALS = np.array([*FLOATS[:11], 1e37, *FLOATS[12:], 1e-5, -2.0, 20.0, -100.0], "float32").reshape(4, 5)
ONE, AXES = "{}(_)", ("{}(_)", "{}(_, axis=0)", "{}(_, axis=1)")
SPECIAL = {  # groups of functions, and the expressions in which they are tried
    "Arithmetic and comparison": (ONE, "{}(_, 0.5)", "{}(0.5, _)", "{}(_, flip(_))"),
    "Element-wise mathematics": (ONE, "{}(_, 0.5)", "{}(_, flip(_))"),
    "Reductions": AXES,
}
RTOL = {"Products": 1e-5, "Linear algebra": 1e-5}  # others: a few units in the last place
ULPS, ATOL = 1e-6, 1e-7


def outcome(function):
    """An array, or the whole text of the error."""
    try:
        return function()
    except kpatch.PatchError as error:
        return np.array(f"{type(error).__name__}: {error}")


def evaluated(text, x):
    """The value of an expression of `_`."""
    node, scope = kpatch.parse(f"_ = {text}").statements[0].value, Scope(look_up=None, implied=tensor(as_tensor(x)))
    return outcome(lambda: to_numpy(evaluate(node, scope).data))


def as_tensor(x):
    return keras.ops.convert_to_tensor(x, x.dtype.name)


def edited(before, text, **bindings):
    return outcome(lambda: to_numpy(kpatch.edit(as_tensor(before), text, **bindings)))


def conformance():
    for number, case in enumerate(CASES):
        yield f"{number} {case['patch']}", edited(array(case["before"], case["dtype"]), case["patch"])


def casts():
    for source in DTYPES:
        numbers = FLOATS if "float" in source else [0, 1] if source == "bool" else INTEGERS
        with np.errstate(all="ignore"):
            before = np.array(numbers).astype(array([], source).dtype)
        for dtype in DTYPES:
            zeros = array(np.zeros(len(numbers)), dtype)
            yield f"{source} cast to {dtype}", edited(zeros, f"_ = cast($v, '{dtype}')", v=before)
            yield f"{source} into {dtype}", edited(zeros, "_ = $v", v=before)
            if "bool" not in (source, dtype):
                yield f"{source} with {dtype}", edited(zeros, "_ = where(_ + $v > 1, 1, 0)", v=before)
                yield f"{source} against {dtype}", edited(zeros, "_[_ < $v] = 1", v=before)


def _is_exact(function):
    """The page gives powers and quotients a tolerance."""
    return function.exact and function.name != "power"


def functions():
    for function in TABLE.values():
        node = kpatch.parse(f"_ = {function.example}").statements[0].value
        value = evaluate(node, Scope(look_up=None)).data
        yield f"{function.group}: {function.example}", to_numpy(value), function.exact
        x = np.linspace(0.1, 0.9, 12, dtype="float32").reshape(3, 4)
        if function.signature.startswith("x)"):
            yield f"{function.group}: {function.name}(x)", edited(x, f"_ = {function.name}(_)"), function.exact
        if function.group in SPECIAL:
            for form in SPECIAL[function.group]:
                text = form.format(function.name)
                yield f"{function.group}: {text} of special numbers", evaluated(text, SPECIALS), _is_exact(function)


PATCHES = {
    "assignment": "dense_1.kernel[1:, ::-1] = 3; **.bias[[0, 1, 0]] = [1, 2, 3]; **.kernel[-1] = _ + 0.1",
    "arithmetic": "**.kernel = (_ * 3 - 0.25) * _ + 0.1; **.bias -= 0.3",
    "merge": "** = 0.7 * _ + 0.3 * $donor._",
    "task arithmetic": "** += 0.4 * ($donor._ - _)",
    "pruning": "**.kernel[abs(_) < quantile(abs(_), 0.6)] = 0",
    "pruning to the k largest": "**.kernel[abs(_) < top_k(ravel(abs(_)), 3)[-1]] = 0",
    "order": "**.kernel = sort(_, axis=0); **.bias[argsort(_)] = _; dense_1.bias[argmax(_)] = 9",
    "normal": "**.kernel = normal(shape(_), stddev=0.5, seed=1); **.bias = normal(shape(_), seed=-3)",
    "uniform": "** = uniform(shape(_), -1, 1, seed=2)",
    "randint": "** = randint(shape(_), 0, 1000, seed=3)",
    "bernoulli": "**[bernoulli(shape(_), 0.3, seed=4)] = 0",
    "permutation": "**.kernel = _[permutation(shape(_)[0], seed=5)]",
    "randomise a share": "** = where(bernoulli(shape(_), 0.3, seed=6), normal(shape(_), seed=6), _)",
    "a failure": "**.kernel[cast(_[0, 0] * 0 + 3, 'int32')] = 0",
    "an error": "**.kernal = 0; dense_1.bias = [1, 2]; dense_2.bias = sqr(_)",
}


def patches():
    for dtype in ("float32", "float16", "bfloat16"):
        for name, text in PATCHES.items():
            model, donor = models.dense(dtype), models.filled(models.dense(dtype), seed=7)
            used = {"donor": donor} if "$donor" in text else {}
            done = outcome(lambda: kpatch.apply(model, text, **used))  # noqa: B023
            if isinstance(done, np.ndarray):
                yield f"{name}, {dtype}: the error", done
            for variable in model.weights:
                yield f"{name}, {dtype}: {variable.name} {tuple(variable.shape)}", to_numpy(variable.value)


@pytest.fixture(scope="module")
def results():
    """By name: whether it is exact, the dtype, and the array."""
    found = {}
    for make in (conformance, casts, functions, patches):
        for name, value, *exact in make():
            assert (make.__name__, name) not in found
            found[make.__name__, name] = (all(exact), value)
    return found


def test_many_cases(results):
    kinds = [kind for kind, _ in results]
    assert all(kinds.count(kind) >= 60 for kind in ("conformance", "casts", "functions", "patches"))
    texts = [value.item() for _, value in results.values() if value.dtype.kind == "U"]
    assert sum(text.startswith("DTypeError") for text in texts) > 20
    assert not [text for text in texts if text.startswith("ExecutionError")]
    assert len(results) > 600


def test_write(results, backend):
    """The file that the environment `parity` compares."""
    folder = os.environ.get("KPATCH_PARITY")
    if not folder:
        pytest.skip("KPATCH_PARITY names no directory to write to")
    table = [[*name, exact, value.dtype.name] for name, (exact, value) in results.items()]
    arrays = {str(number): plain(value) for number, (_, value) in enumerate(results.values())}
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    np.savez(path / f"{backend}.npz", table=np.array(json.dumps(table)), **arrays)


def plain(value):
    """bfloat16 as the float32 of the same values, which files of NumPy know; texts and others as they are."""
    return value.astype("float32") if value.dtype.name == "bfloat16" else value


# The comparison -------------------------------------------------------------------------------------------------------


def written(backend):
    path = Path(os.environ["KPATCH_PARITY_COMPARE"]) / f"{backend}.npz"
    if not path.exists():
        pytest.fail(f"{path} is not there: 'tox -e {backend}' writes it", pytrace=False)
    with np.load(path) as file:
        table = json.loads(file["table"].item())
        return {tuple(row[:2]): (*row[2:], file[str(number)]) for number, row in enumerate(table)}


@pytest.mark.skipif("KPATCH_PARITY_COMPARE" not in os.environ, reason="compared by 'tox -e parity', after the backends")
@pytest.mark.parametrize("pair", list(combinations(BACKENDS, 2)), ids="-".join)
def test_agree(pair):
    one, other = map(written, pair)
    assert one.keys() == other.keys()
    differing = [difference for name in one if (difference := compared(name, one[name], other[name]))]
    assert not differing, "\n".join([f"{len(differing)} of {len(one)} cases differ between {pair}", *differing[:20]])


def compared(name, one, other):
    """How a case differs, or `None`."""
    exact, dtype, a = one
    if (exact, dtype, a.shape) != (*other[:2], other[2].shape):
        return f"{name}: {dtype} {a.shape} and {other[1]} {other[2].shape}"
    b = other[2]
    if exact or a.dtype.kind != "f":
        same = a.tobytes() == b.tobytes() or (a.dtype.kind == "f" and bits(a) == bits(b))
    else:
        same = np.allclose(a, b, rtol=RTOL.get(name[1].partition(":")[0], ULPS), atol=ATOL, equal_nan=True)
    return None if same else f"{name}: {a.tolist()} and {b.tolist()}"


def bits(value):
    """The bits, with every NaN alike: which of them a cast gives is the processor's choice."""
    return np.where(np.isnan(value), value.dtype.type(np.nan), value).tobytes()
