"""What is torch's alone: parameters that are sharded, tangents, and reductions by NumPy."""

import keras
import models
import numpy as np
import pytest

if keras.backend.backend() != "torch":
    pytest.skip("torch's own", allow_module_level=True)

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import kpatch
from kpatch import backends
from kpatch.backends import host
from kpatch.backends.present import load
from kpatch.errors import UnsupportedError
from kpatch.values.tensors import to_numpy


@pytest.fixture
def _process_group(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("_process_group")
def test_sharded_parameters_are_refused():
    with keras.device("cpu"):  # of the mesh
        model = models.dense()
    applied = kpatch.apply(model, "dense_1.kernel[0] = 1")
    before = models.snapshot(model)
    fully_shard(model.get_layer("dense_2"), mesh=init_device_mesh("cpu", (1,)))
    for edit in (lambda: kpatch.apply(model, "dense_2.bias = 1"), applied.undo):
        with pytest.raises(UnsupportedError) as caught:
            edit()
        told = "the parameters of 'dense_2' are sharded (fully_shard, DTensor), which kpatch does not edit"
        assert caught.value.message == told
        assert caught.value.notes == ("edit the model before it is sharded, or its checkpoint",)
    assert models.snapshot(model) == before


@pytest.mark.usefixtures("_process_group")
def test_a_process_group_alone_changes_nothing():
    model = torch.nn.parallel.DistributedDataParallel(models.dense()).module
    with kpatch.apply(model, "dense_1.bias = 1"):
        assert np.array_equal(model.get_layer("dense_1").get_weights()[1], np.ones(3))


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_edits_a_file_in_place(tmp_path, monkeypatch, rank):
    path = tmp_path / "model.weights.h5"
    models.dense().save_weights(path)
    monkeypatch.setattr(distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    before = path.read_bytes()
    told = f"process 1 of this job does not edit '{path}', as process 0 does: each would edit it once more"
    text = "layers.dense.vars.1 = 7"
    for edit in (
        lambda: kpatch.checkpoint.apply(path, text, in_place=True, journal=True),
        lambda: kpatch.checkpoint.undo(path),
    ):
        if rank == 0:
            edit()
            continue
        with pytest.raises(UnsupportedError) as caught:
            edit()
        assert caught.value.message == told
    assert path.read_bytes() == before
    kpatch.checkpoint.apply(path, text, tmp_path / "own.weights.h5")
    model = models.dense()
    with kpatch.apply(model, "dense_1.bias = $v", v=rank):  # each process has a copy of its own
        assert model.get_layer("dense_1").get_weights()[1].tolist() == [rank] * 3


REDUCTIONS = (
    "_ -= sum(_)",
    "_ -= mean(_, axis=0)",
    "_ -= std(_, axis=1, keepdims=true)",
    "_ -= var(_, axis=[0, 1], keepdims=true)",
    "_ = max(_, axis=0) - min(_) * _",
    "_ -= sum(_[::2, 1:], axis=0)[0] + logsumexp(_)",
    "_ *= cast(sum(_ > 0, axis=0) + count_nonzero(_[:, 0]), 'float32')",
    "_ = where(any(_ > 3, axis=1, keepdims=true), sum(_, axis=[]), prod(_, axis=0))",
    "_ *= cast(prod(cast(2 * _, 'int32'), axis=0), 'float32')",
)


@pytest.mark.parametrize("text", REDUCTIONS)
def test_reductions_have_the_bits_of_numpy(text, monkeypatch):
    x = np.random.default_rng(0).standard_normal((1003, 37)).astype("float32")
    tensor = torch.tensor(x)
    with backends.using(load("numpy")):
        expected = to_numpy(kpatch.edit(x, text))
    assert to_numpy(kpatch.edit(tensor, text)).tobytes() == expected.tobytes()
    assert to_numpy(kpatch.edit(torch.tensor(x.T.copy()).T, text)).tobytes() == expected.tobytes()
    assert to_numpy(tensor).tobytes() == x.tobytes()
    monkeypatch.setattr(host, "REDUCED", 0)
    np.testing.assert_allclose(to_numpy(kpatch.edit(tensor, text)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "text", ["_ = sum(_, axis=[])", "_ = max(_, axis=[])", "_ = sum(_[:, :1], axis=1, keepdims=true)"]
)
def test_what_a_reduction_gives_has_memory_of_its_own(text):
    variable = keras.Variable(np.arange(3, dtype="float32").reshape(3, 1))
    kpatch.apply(variable, "_ += 1")  # in memory of torch
    before = variable.value.detach().clone()
    kept = kpatch.edit(variable.value.detach(), text)
    with kpatch.apply(variable, text), kpatch.apply(variable, "_ = 9"):
        assert torch.equal(kept, before)
    assert torch.equal(variable.value, before)


def test_reductions_of_transformed_tensors_are_torchs():
    def edited(x):
        return kpatch.edit(x, "_ = _ * sum(_)")

    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    gradient = torch.func.grad(lambda x: edited(x).sum())(x)
    assert torch.equal(gradient, torch.full((2, 2), 20.0))
    assert torch.equal(torch.func.vmap(edited)(x), torch.stack([edited(row) for row in x]))


def test_tangents_pass_through_edits():
    """Forward-mode gradients: their tensors look like any others."""
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]))
        for text, tangent in {"_ = 2 * _ + 1": [2, 0], "_ = _ - mean(_)": [0.5, -0.5], "_ *= sum(_)": [4, 2]}.items():
            made = torch.autograd.forward_ad.unpack_dual(kpatch.edit(x, text))
            assert made.tangent.tolist() == tangent
