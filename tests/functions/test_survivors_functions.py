"""Behaviour of functions that mutants of the code had shown to be untested."""

import keras
import numpy as np
import pytest

import kpatch
from kpatch.values.tensors import to_numpy


@pytest.mark.parametrize("shape", [(5, 2), (2, 5), (3, 3), (1, 4), (4, 1)])
@pytest.mark.parametrize("offset", [-5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5])
def test_diagonals_of_tall_and_wide_matrices(shape, offset):
    matrix = np.arange(1, 1 + shape[0] * shape[1], dtype="float32").reshape(shape)
    right = np.diagonal(matrix, offset)
    text = f"assert shape(diagonal($m, {offset})) == [{len(right)}]\n_[:{len(right)}] = diagonal($m, {offset})"
    edited = to_numpy(kpatch.edit(keras.ops.zeros((6,)), text, m=keras.ops.convert_to_tensor(matrix)))
    assert edited.tolist() == [*right, *[0] * (6 - len(right))]


@pytest.mark.parametrize("call", ["inv({})", "solve({}, eye(2))"])
def test_a_matrix_is_singular_if_rounding_alone_could_make_it_so(call):
    """Of [[1, 1], [1, 1 + d]] the condition number is about 4 / d, and the rounding of float32 is 2**-23."""

    def edited(exponent):
        matrix = keras.ops.convert_to_tensor(np.array([[1, 1], [1, 1 + 2.0**exponent]], "float32"))
        return to_numpy(kpatch.edit(matrix, f"_ = {call.format('_')}"))

    np.testing.assert_allclose(edited(-20), [[2**20 + 1, -(2**20)], [-(2**20), 2**20]], rtol=1e-5)
    with pytest.raises(kpatch.FunctionError, match="of a singular matrix"):
        edited(-22)


def test_one_singular_matrix_of_a_batch_is_refused():
    batch = keras.ops.convert_to_tensor(np.array([np.eye(2), [[1, 1], [1, 1 + 2.0**-22]]], "float32"))
    with pytest.raises(kpatch.FunctionError, match=r"^inv\(\) of a singular matrix"):
        kpatch.edit(batch, "_ = inv(_)")
