"""One of two processes that are a job on jax, each with two devices: makes edits, and writes down what came of them.

`test_processes.py` starts them: `python processes.py NUMBER PORT FOLDER`.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np

import kpatch

EDITS = {
    "points": "a.kernel[0, 0] = 1; a.kernel[7, 11] += 1; b.kernel[0, 1] = 1.5; a.bias[2] = 7",
    "regions": "a.kernel[:, 3] = 0; a.kernel[2:6, ::-2] *= 2",
    "rows": "a.kernel[[0, 5, 0]] = 3",
    "whole tensors": "a.kernel *= 2; b.kernel = _ + 1; **.bias = 4",
    "masks": "a.kernel[abs(_) < 2] = 0; a.kernel[_ > 2] = 9",
    "a value for each entry of a mask": "a.bias[a.bias < 99] = $twelve",
    "a threshold": "a.kernel[abs(_) < quantile(abs(_), 0.5)] = 0",
    "sums": "a.bias = sum(a.kernel, axis=0); a.kernel[0] = sum(a.kernel, axis=0)",
    "entries from elsewhere": "a.kernel[0] = a.kernel[7]; b.kernel[0] = a.kernel[5, :4]",
    "values": "a.kernel[1] = $twelve; a.kernel = _ + $twelve",
    "a block": "for **.kernel { let m = max(_); _ -= m; assert all(_ <= 0) }",
    "an index that is computed": "a.kernel[argmax(a.kernel[:, 0]), 0] = 9",
    "an index out of range": "a.kernel = 5; a.kernel[argmax(a.kernel[:, 0]) + 8, 0] = 9",
    "an assertion that fails": "a.kernel = 5; a.kernel[0] = 3; assert all(a.kernel < 1)",
}
TWELVE = np.arange(12, dtype="float32")


def small_model():
    """A model of whole numbers, so that sums are exact in any order."""
    layers = [keras.layers.Dense(units, name=name, kernel_initializer="zeros") for name, units in (("a", 12), ("b", 4))]
    model = keras.Sequential([keras.Input((8,)), *layers], name="net")
    model.compile(keras.optimizers.SGD(0.5), "mse")
    for number, variable in enumerate(model.weights):
        size = int(np.prod(variable.shape))
        variable.assign(((np.arange(size) * 7 + number) % 17 - 8).reshape(variable.shape).astype("float32"))
    return model


def edited(model, text, values):
    """The weights after an edit, or the text of its error; and whether `undo` brings back what was there."""
    before = values(model)
    try:
        applied = kpatch.apply(model, text, **{"twelve": TWELVE} if "$twelve" in text else {})
    except kpatch.PatchError as error:
        return str(error), values(model) == before
    after = values(model)
    applied.undo()
    return after, values(model) == before


def job(number, folder):
    """What this process saw, by name."""
    import jax
    from jax.experimental import multihost_utils

    layouts = keras.distribution.LayoutMap(keras.distribution.DeviceMesh((2, 2), ("batch", "model"), devices()))
    layouts["net/a/kernel"], layouts["net/b/kernel"] = ("batch", "model"), (None, "model")
    sharded = keras.distribution.ModelParallel(layout_map=layouts, auto_shard_dataset=False)
    copied = keras.distribution.DataParallel(devices=devices()[::2], auto_shard_dataset=False)  # one in each process

    def values(model):
        return [multihost_utils.process_allgather(w.value, tiled=True).tolist() for w in model.weights]

    def told(function):
        try:
            return function()
        except kpatch.PatchError as error:
            return str(error)

    seen = {}
    with sharded.scope():
        model = small_model()
        kernel = model.layers[0].kernel
        seen["sharding"] = str(kernel.value.sharding.spec)
        seen["edits"] = {name: edited(model, text, values) for name, text in EDITS.items()}
        seen["sharding after"] = str(kernel.value.sharding.spec)

        def addresses():
            return [shard.data.unsafe_buffer_pointer() for shard in kernel.value.addressable_shards]

        kpatch.apply(model, "a.kernel[0, 0] = 1; a.kernel[7, 0] = 1")
        place, kept = addresses(), kpatch.apply(model, "a.kernel[0, 0] = 2; a.kernel[7, 0] = 2")
        seen["in place"] = addresses() == place
        held = kernel.value
        kpatch.apply(model, "a.kernel[0, 0] = 3; a.kernel[7, 0] = 3").undo()
        kept.undo()
        seen["held"] = multihost_utils.process_allgather(held, tiled=True)[[0, 7], 0].tolist()

        applied = kpatch.apply(model, "a.kernel *= 2; a.kernel[0] = 1")
        plan = kpatch.plan(model, "a.kernel[_ > 100] = 1; a.kernel[_ < 100] = 1")
        if number == 0:  # what is looked at asks nothing of the other process
            whole, row = applied.writes
            seen["looked at"] = [str(applied), str(plan), str(kpatch.show(model, "a")), repr(whole)]
            seen["values"] = [told(lambda: whole.before), row.after.tolist(), whole.to_dict(), whole.map().note]
            seen["compared"] = told(lambda: kpatch.diff(model, model))
        applied.undo()

        texts = ["b.bias = 1", "b.bias = 2"]
        seen["another text"] = told(lambda: kpatch.apply(model, texts[number]))
        seen["another value"] = told(lambda: kpatch.apply(model, "b.bias = $v", v=np.full(4, number)))
        seen["another option"] = told(lambda: kpatch.apply(model, "b.bias = 1", undo=number == 0))
        seen["an error here alone"] = told(lambda: kpatch.apply(model, "b.bias = 1", expect=1 + number))
        seen["afterwards"] = values(model)

        x, y = np.ones((4, 8), "float32"), np.zeros((4, 4), "float32")
        outputs = model(x)
        with kpatch.record(model, "a.output") as recorded:
            model(x)
        with kpatch.intervene(model, "a.output[:, 0] = 5; b.kernel *= 2"):
            inside = model(x)
        with kpatch.intervene(model, "a.output = $r._", r=recorded):
            same = model(x)
        calls = [recorded["a.output"], outputs, inside, same, model(x)]
        seen["calls"] = [multihost_utils.process_allgather(each, tiled=True).tolist() for each in calls]
        seen["pure"] = np.ravel(multihost_utils.process_allgather(kpatch.edit(kernel.value, "_[0] = 1"), tiled=True))
        seen["pure"] = seen["pure"].tolist()

        callback = kpatch.callbacks.PatchCallback({0: "b.bias[0] = 3; a.bias[_ == 0] = 1"})
        with kpatch.hold(model, "a.kernel[0] = 1; b.kernel[abs(_) < 4] = 0"):
            model.fit(x, y, epochs=1, batch_size=4, verbose=0, callbacks=[callback])
        fitted = values(model)
        seen["held in fit"] = [fitted[0][0], [fitted[2][row] for row in range(12)]]
        seen["called in fit"] = fitted[3][0]

        def recorded_in_fit():
            with kpatch.record(model, "a.output"):
                model.fit(x, y, verbose=0)

        seen["recorded in fit"] = told(recorded_in_fit)
        seen["after that"] = values(model) == fitted

    with copied.scope():
        model = small_model()
        copies = lambda m: [w.numpy().tolist() for w in m.weights]  # noqa: E731
        seen["copies"] = {name: edited(model, EDITS[name], copies) for name in ("points", "masks", "sums")}
        seen["copies differ"] = told(lambda: kpatch.apply(model, "b.bias[0] = $v", v=number))

    path = Path(folder, "shared.weights.h5")
    seen["a file in place"] = told(
        lambda: str(kpatch.checkpoint.apply(path, "layers.dense.vars.1 += 1", in_place=True))
    )
    multihost_utils.sync_global_devices("the file is edited")
    kpatch.checkpoint.apply(path, "layers.dense.vars.1 += 1", Path(folder, f"own{number}.weights.h5"))
    seen["processes"] = jax.process_count()
    return seen


def devices():
    return keras.distribution.list_devices()


if __name__ == "__main__":
    import jax

    number, port, folder = sys.argv[1:]
    alone = Path(folder, f"alone{number}.weights.h5")
    kpatch.checkpoint.apply(alone, "layers.dense.vars.1 += 1", in_place=True)  # jax has not begun, and can become a job
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))
    Path(folder, f"{number}.json").write_text(json.dumps(job(int(number), folder)), encoding="utf-8")
