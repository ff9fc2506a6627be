"""What only torch's modules know: parameters that are sharded."""

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
from kpatch.errors import UnsupportedError


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
