"""The cases of the language, and every function, in a layer that does not know the lengths of its input.

What is refused stands here, and on the page of layers. On tensorflow lengths stay unknown in the graph, elsewhere they
are known when the layer runs.
"""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import kpatch
from kpatch import backends
from kpatch.functions import TABLE
from kpatch.layers import ScatterLayer
from kpatch.values.tensors import to_numpy

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "functions"))
from test_conformance import CASES, array
from test_functions import sample_call

STAYS = backends.current().lengths_stay_unknown
X = np.array([[0.25, 1, 2], [1, 0.5, 3], [0.75, 2, 0]], "float32")
IMAGES = ((np.arange(24) * 7 % 11).reshape(2, 3, 4) / 4).astype("float32")

if STAYS:  # what depends on lengths, the graph checks
    import tensorflow as tf

    ERRORS: tuple = kpatch.PatchError, tf.errors.InvalidArgumentError
else:
    ERRORS = (kpatch.PatchError,)
REFUSED = {"_[_ > 2] = [6, 7, 8]", "_[_ > 9] = [1]", "_ = where(_ < 300, 1, 0)"}  # as of known lengths
REFUSED_IN_GRAPHS = {"let n = ndim(_); assert shape(_) == [2, 3]; _[0, 0] = n; _[0, 1] = ndim(_)"}
FUNCTIONS_REFUSED_IN_GRAPHS = {
    "batch": "median quantile logcumsumexp take kron inner full_like det inv pinv solve qr svd eigh",
    "every": "median quantile logcumsumexp take kron dot inner tensordot full_like det inv pinv solve qr svd eigh "
    "take_along_axis top_k einsum",
}


def run(text, x, shape, dtype):
    """What the layer makes of an array, built with a shape that may lack lengths."""
    layer = ScatterLayer(text, dtype=dtype if keras.backend.is_float_dtype(dtype) else None)
    inputs = keras.Input(batch_shape=shape, dtype=dtype)
    model = keras.Model(inputs, layer(inputs))
    if not STAYS:
        return to_numpy(model(keras.ops.convert_to_tensor(x)))
    return tf.function(model, input_signature=[tf.TensorSpec(shape, dtype)])(tf.convert_to_tensor(x)).numpy()


@pytest.mark.parametrize(
    "case", [case for case in CASES if np.ndim(case["before"])], ids=lambda case: f"{case['patch']} ({case['dtype']})"
)
def test_the_cases_of_the_language(case):
    before = array(case["before"], case["dtype"])
    arguments = case["patch"], before, (None,) * before.ndim, case["dtype"]
    if "error" in case or case["patch"] in REFUSED or (STAYS and case["patch"] in REFUSED_IN_GRAPHS):
        with pytest.raises(ERRORS):
            run(*arguments)
    else:
        assert run(*arguments).tobytes() == array(case["after"], case["dtype"]).tobytes()


@pytest.mark.parametrize("known", ["batch", "every"] if STAYS else ["every"])  # the same where lengths are known
@pytest.mark.parametrize("name", [name for name in TABLE if name not in ("broadcast_to", "squeeze")])
def test_functions(name, known):
    text = f'let x = _; let y = {sample_call(TABLE[name])}; _ = sum(cast(y, "float32"))'
    shape = (None, 3) if known == "batch" else (None, None)
    if STAYS and name in FUNCTIONS_REFUSED_IN_GRAPHS[known].split():
        with pytest.raises(kpatch.UnsupportedError, match=rf"^{name}\(\) of a tensor with an axis of unknown length"):
            run(text, X, shape, "float32")
    else:
        np.testing.assert_allclose(run(text, X, shape, "float32"), to_numpy(kpatch.edit(X, text)), 1e-5, 1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "_[_ == 0] = 5; _[_ > 0] += 1",
        "_ = quantile(_, 0.3, axis=1, keepdims=true)",
        "_ = quantile(_, [0.3, 0.4, 1], axis=2, keepdims=true)[1]",
        "_[_ > median(_, axis=-1, keepdims=true)] = 0",
        "_ = dot(_, [[1, 2, 3, 4], [5, 6, 7, 8], [1, 1, 1, 1], [0, 1, 0, 2]])",
        "_ = tensordot(_, [[1, 2, 3, 4], [5, 6, 7, 8], [1, 1, 1, 1], [0, 1, 0, 2]], [[2], [1]])",
        "_ = expand_dims(inner(_, [1, 2, 3, 4]), 2)",
        '_ = einsum("bij,kj->bik", _, [[1, 2, 3, 4], [5, 6, 7, 8], [1, 1, 1, 1], [0, 1, 0, 2]])',
        '_ = einsum("bij,bkj,bkl->bil", _, _, _)',
        '_ = einsum("bij,bik->jk", _, _)[0]',
        '_ = expand_dims(einsum("bii->b", _[..., :3]), [1, 2])',
    ],
)
def test_one_unknown_length_beside_known_ones(text):
    for rows in (2, 1):
        x = IMAGES[:rows]
        np.testing.assert_allclose(run(text, x, (None, 3, 4), "float32"), to_numpy(kpatch.edit(x, text)), 1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_[: size(_) // 2] = 0", "a slice's bound must be known before the patch runs: an integer, not a tensor"),
        ("_[:, any(_ > 2, axis=0)] = 0", "the number of entries that a mask selects is unknown inside"),
        ("_[_[:, 0] > 0.5, 1] = 7", "the number of entries that a mask selects is unknown inside"),
        ("_ = reshape(ravel(_), shape(_))", "'newshape' of reshape() is "),
        ("_ = linspace(0, 1, shape(_)[1])", "'num' of linspace() is "),
    ],
)
def test_what_is_refused_everywhere(text, message):
    with pytest.raises(kpatch.PatchError) as info:
        run(text, X, (None, None), "float32")
    assert info.value.message.startswith(message)
