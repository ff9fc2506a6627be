"""The benchmarks: one function a target, run in a process of the backend in question. Each yields its `Row`s."""

import ast
import compileall
import contextlib
import gc
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from itertools import count, islice
from pathlib import Path
from statistics import median

import keras
import native
import numpy as np
from measure import Row, added_peak, figures, once, race

import kpatch
from kpatch import backends, indexing
from kpatch.names.index import ModelIndex, index

STATEMENT = "dense_1.kernel[0,0] = 1.0"
REGION = "dense_1.kernel[:2048, ::2] *= 0.5"
SEEDS = count()  # each text is another one, so that no cache knows it or its plan
KEPT = 256  # edits that are kept, and so can still be undone, while others follow
WARM = 10  # edits before the clock starts: what they repeat is compiled, on jax after eight of them
MEMORY_MB = {"tensorflow": 40}
PRUNE = "**.kernel[abs(_) < quantile(abs(_), 0.9)] = 0"
MERGE = "**.kernel = 0.7 * _ + 0.3 * $donor._"
CLIP = "**.kernel = clip(_, -0.05, 0.05)"
MASK = "**.kernel[abs(_) < 0.01] = 0"


def dense(size, dtype="float32", name="dense_1"):
    """A model of one square kernel, built by the backend itself."""
    layer = keras.layers.Dense(size, use_bias=False, kernel_initializer="ones", dtype=dtype, name=name)
    return keras.Sequential([keras.Input((size,)), layer])


def kernel(model):
    return model.layers[0]._kernel


def editor(model, patch):
    """Applies the patch again and again; each edit can be undone, and the last `KEPT` are kept."""
    kept = deque(maxlen=KEPT)
    return lambda: kept.append(kpatch.apply(model, patch))


def rewriter(layer):
    """The same by Keras: all weights out, one entry changed, all weights in."""

    def rewrite():
        weights = [array if array.flags.writeable else array.copy() for array in layer.get_weights()]
        weights[0][0, 0] = 1.0
        layer.set_weights(weights)

    return rewrite


def point(budget):
    """One entry of a 4096×4096 kernel, against get_weights/set_weights, and over the backend's own read and write."""
    backend, model, patch = keras.backend.backend(), dense(4096), kpatch.parse(STATEMENT)
    variable, writer = kernel(model), backends.current()
    finish = lambda: native.wait(variable)()  # noqa: E731 (the value is another one after each edit)
    apply = editor(model, patch)
    seconds = race({"kpatch": apply, "keras": rewriter(model.layers[0])}, budget, finish)
    limit = 100 if backend == "tensorflow" else 1000
    yield Row("get_weights/set_weights", *figures(seconds, "µs", "kpatch", "keras"), limit=limit, faster=True)

    selection = indexing.select((4096, 4096), (0, 0))
    prepared = writer.prepare(variable, selection, np.ones((), "float32"))

    def direct():
        writer.read(variable, selection)
        writer.write(variable, selection, prepared)

    contest = {"kpatch": apply, "writer": direct, "own": native.point(variable)[0], "parse": _parse_statement}
    contest["undone"] = lambda: kpatch.apply(model, patch).undo()
    seconds = race(contest, budget, finish)
    seconds["best"] = min(seconds["own"], seconds["writer"])  # kpatch's way is no worse a baseline than another
    for name, whose in (("writer", "kpatch's writer"), ("best", "the best known way")):
        added = {"added": seconds["kpatch"] - seconds[name], "parse": seconds["parse"]}
        note = ", ".join(f"{n} {seconds[key] * 1e6:.1f}" for n, key in (("apply", "kpatch"), (name, name))) + " µs"
        yield Row(f"added to {whose} / ast.parse", *figures(added, "µs", "added", "parse"), limit=2, note=note)
    yield Row("apply and undo() / the best known way", *figures(seconds, "µs", "undone", "best"))


def _parse_statement():
    ast.parse(STATEMENT)


def flat(budget):
    """The same edit of an 8192×8192 and of a 256×256 kernel; on jax also of one of bfloat16."""
    patch = kpatch.parse(STATEMENT)
    seconds = _race_of_models(patch, budget, large=dense(8192), small=dense(256))
    yield Row("8192² / 256²", *figures(seconds, "µs", "large", "small"), limit=1.2)
    seconds = _race_of_models(patch, budget, half=dense(4096, "bfloat16"))
    limit = 100 if keras.backend.backend() == "jax" else None
    yield Row("bfloat16, 4096²", *figures(seconds, "µs", "half"), limit=limit, absolute=True)


def _race_of_models(patch, budget, **models):
    def finish():
        for model in models.values():
            native.wait(kernel(model))()

    return race({name: editor(model, patch) for name, model in models.items()}, budget, finish)


def trace(budget):
    """Prediction and training steps of batch 1 after a thousand edits of several kinds, and before.

    A twin that is never edited runs beside, and takes out what the machine does meanwhile.
    """
    edited, twin = _trainable(), _trainable()
    before, twin_before = _steps(edited, twin, budget)
    patches = ["dense_1.kernel[0, 0] = 1e-4", "dense_1.kernel[5] = 1e-4", "dense_1.kernel[[1, 9], [2, 3]] = 0"]
    patches = [kpatch.parse(text) for text in (*patches, "dense_1.kernel[7:9, ::64] *= 0.5")]
    for turn in range(1000):
        kpatch.apply(edited, patches[turn % len(patches)])
    after, twin_after = _steps(edited, twin, budget)
    for name in before:
        drift = twin_after[name] / twin_before[name]
        note = f"measured before: {before[name] * 1e3:.2f} ms, the twin's drift {drift:.2f}"
        yield Row(name, after[name] * 1e3, before[name] * drift * 1e3, "ms", limit=1.1, note=note)


def _trainable():
    layers = [keras.layers.Dense(4096, name="dense_1"), keras.layers.Dense(10, name="dense_2")]
    model = keras.Sequential([keras.Input((4096,)), *layers])
    model.compile("sgd", "mse")
    return model


def _steps(edited, twin, budget):
    x, y = np.ones((1, 4096), "float32"), np.zeros((1, 10), "float32")
    tensor = keras.ops.convert_to_tensor(x)
    steps = {}
    for name, model in (("edited", edited), ("twin", twin)):
        steps[name, "predict_on_batch"] = lambda model=model: model.predict_on_batch(x)
        steps[name, "direct call"] = lambda model=model: keras.ops.convert_to_numpy(model(tensor))
        if keras.backend.backend() != "numpy":
            steps[name, "train_on_batch"] = lambda model=model: model.train_on_batch(x, y)
    seconds = race(steps, 2 * budget)
    return tuple({n: s for (who, n), s in seconds.items() if who == owner} for owner in ("edited", "twin"))


def bulk(budget):
    """Many single-entry statements in one patch: parsed, planned and applied, against `ast.parse` of the same text.

    Measured with Python's garbage collection as a user has it, and without: it costs the one parser more than the
    other, and should decide nothing.
    """
    model = dense(4096)
    for collecting in (True, False):
        costs, suffix = {}, "" if collecting else ", no gc"
        for statements in (100, 1_000, 10_000, 100_000):
            repeats = 2 if statements > 10_000 else max(3, int(budget))
            stages = [_stages(model, _many(statements), collecting) for _ in range(repeats + 1)][1:]
            seconds = {name: min(stage[name] for stage in stages) for name in stages[0]}
            own = ("parse", "plan", "apply")
            costs[statements] = total = sum(seconds[name] for name in own) / statements
            shares = ", ".join(f"{name} {seconds[name] * 1e3:.1f}" for name in own)
            row = (total * statements * 1e3, seconds["ast"] * 1e3, "ms", 3 if statements == 10_000 else None)
            yield Row(f"{statements:,} statements{suffix}", *row, note=f"{shares} ms")
        yield Row(f"one of 100,000 / one of 100{suffix}", costs[100_000] * 1e6, costs[100] * 1e6, limit=1.2)


def _many(statements):
    """Text of statements on random entries of a 4096×4096 kernel."""
    draw = random.Random(next(SEEDS))
    lines = (f"dense_1.kernel[{draw.randrange(4096)},{draw.randrange(4096)}] = {draw.random():.4f}\n" for _ in count())
    return "".join(islice(lines, statements))


def _stages(model, text, collecting):
    """Seconds of each stage. What is held from before is none of their business: the collector leaves it alone."""
    gc.collect()
    gc.freeze()
    if not collecting:
        gc.disable()
    try:
        stages = {"ast": once(ast.parse, text)[0]}
        stages["parse"], patch = once(kpatch.parse, text)
        stages["plan"], _ = once(kpatch.plan, model, patch)
        stages["apply"], _ = once(_waited, model, patch)
    finally:
        gc.enable()
        gc.unfreeze()
    return stages


def _waited(model, patch):
    applied = kpatch.apply(model, patch)
    native.wait(kernel(model))()
    return applied


def region(budget):
    """Half of the columns of half of the rows of a 4096×4096 kernel, against the backend's own, old values kept."""
    model, patch = dense(4096), kpatch.parse(REGION)
    edit, restore = native.region(kernel(model))
    finish = lambda: native.wait(kernel(model))()  # noqa: E731
    limit = 1.5 if keras.backend.backend() in ("numpy", "torch") else 1.0
    contest = {
        "kpatch": lambda: kpatch.apply(model, patch),
        "own": edit,
        "kpatch undone": lambda: kpatch.apply(model, patch).undo(),
        "own undone": lambda: restore(edit()),
    }
    seconds = race(contest, budget, finish)
    yield Row("edit, the old values kept", *figures(seconds, "ms", "kpatch", "own"), "ms", limit)
    yield Row("edit, and back again", *figures(seconds, "ms", "kpatch undone", "own undone"), "ms", limit)


def memory(budget):
    """One entry of a 1 GiB variable, edited and undone: what the process's peak grows by. Its own process."""
    model, patch = dense(16384), kpatch.parse(STATEMENT)
    native.wait(kernel(model))()
    limit, first_counts = MEMORY_MB.get(keras.backend.backend(), 20), keras.backend.backend() != "jax"

    def edit():
        kpatch.apply(model, patch).undo()
        native.wait(kernel(model))()

    for name, counts in (("first edit", first_counts), ("second edit", True)):
        added = added_peak(edit)
        limited = {"unit": "MB", "limit": limit if counts else None, "absolute": True}
        if added is None:
            yield Row(name, None, **limited, note="the peak cannot be reset here")
        else:
            yield Row(name, added[1], **limited, note=f"over {added[0]:,.0f} MB held")


def prune(budget):
    """The 90 % of each of ResNet50's kernels that are smallest become 0, against the fastest loop by hand."""
    model, variables = _resnet(1)
    loops, finish = native.prunes(variables), lambda: native.wait(variables[-1])()
    loops["kpatch"] = lambda: kpatch.apply(model, PRUNE, undo=False)
    loops["kept"] = lambda: kpatch.apply(model, PRUNE)
    yield from _against_loops(_race_of_edits(loops, variables, budget, finish), limit=1.5)


def merge(budget):
    """0.7 of one ResNet50 and 0.3 of another, against the loops by hand; the target names the plain one."""
    (model, variables), (donor, others) = _resnet(1), _resnet(2)
    loops, finish = native.merges(variables, others), lambda: native.wait(variables[-1])()
    loops["kpatch"] = lambda: kpatch.apply(model, MERGE, donor=donor, undo=False)
    loops["kept"] = lambda: kpatch.apply(model, MERGE, donor=donor)
    seconds = _race_of_edits(loops, variables, budget, finish)
    for name in loops.keys() - {"kpatch", "kept", "keras"}:
        yield Row("undo=False", *figures(seconds, "ms", "kpatch", name), unit="ms", note=f"against {name}")
    seconds = {name: seconds[name] for name in ("kpatch", "kept", "keras")}
    yield from _against_loops(seconds, limit=1.3)


def clip(budget):
    """All entries brought between two bounds."""
    yield from _in_place(CLIP, native.clips, budget)


def mask(budget):
    """The entries that are nearly 0 become 0."""
    yield from _in_place(MASK, native.masks, budget)


def _in_place(text, loops_of, budget):
    """An element-wise statement, against each loop by hand."""
    model, variables = _resnet(1)
    loops, finish = loops_of(variables), lambda: native.wait(variables[-1])()
    loops |= {"kpatch": lambda: kpatch.apply(model, text, undo=False), "kept": lambda: kpatch.apply(model, text)}
    yield from _against_loops(_race_of_edits(loops, variables, budget, finish), limit=1.2)


def _against_loops(seconds, limit):
    best = min(seconds.keys() - {"kpatch", "kept"}, key=seconds.get)
    note = f"against {best}"
    yield Row("undo=False", *figures(seconds, "ms", "kpatch", best), unit="ms", limit=limit, note=note)
    yield Row("with undo", *figures(seconds, "ms", "kept", best), unit="ms", note=note)


def _race_of_edits(loops, variables, budget, finish):
    """The best time of each loop; every turn starts from the same values."""
    saved = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
    for name in ("kpatch", "kept"):
        for _ in range(WARM):
            loops[name]()
    best, end = dict.fromkeys(loops, float("inf")), None
    while end is None or time.perf_counter() < end:
        for name, loop in loops.items():
            _fill(variables, saved)
            finish()
            seconds, kept = once(lambda loop=loop: (loop(), finish()))
            best[name] = min(best[name], seconds) if end else float("inf")
            del kept
        end = end or time.perf_counter() + 4 * budget  # the first round compiles, and does not count
    return best


def _resnet(seed):
    """ResNet50, its kernels drawn from a normal distribution, and those kernels."""
    model = keras.applications.ResNet50(weights=None)
    kernels = [variable for variable in model.weights if variable.name == "kernel"]
    draw = np.random.default_rng(seed)
    _fill(kernels, [draw.standard_normal(variable.shape, "float32") for variable in kernels])
    return model, kernels


def _fill(variables, arrays):
    """Assigns values in the backend's own memory: what NumPy holds would have to be copied at the first edit."""
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(keras.ops.convert_to_tensor(array) * 1.0)


def prune_memory(budget):
    """What pruning adds to the peak of the process's memory, over the largest kernel, without undo."""
    model, variables = _resnet(1)
    largest = max(np.prod(variable.shape) * 4 for variable in variables) / 1e6
    edited = sum(np.prod(variable.shape) * 4 for variable in variables) * 0.9 / 1e6
    saved = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
    for _ in range(WARM):  # what is compiled, loaded and kept once
        kpatch.apply(model, PRUNE, undo=False)
    for name, undo, limit in (("undo=False", False, 1.2), ("with undo, over the edited entries", True, None)):
        _fill(variables, saved)
        native.wait(variables[-1])()
        kept = []
        added = added_peak(lambda undo=undo, kept=kept: kept.append(kpatch.apply(model, PRUNE, undo=undo)))
        base = largest if limit else edited
        if added is None:
            yield Row(name, None, unit="MB", limit=limit, note="the peak cannot be reset here")
        else:
            yield Row(name, added[1], base, unit="MB", limit=limit, note=f"over {added[0]:,.0f} MB held")
        del kept


def _pruned(a):
    return np.where(np.abs(a) < np.quantile(np.abs(a), np.float32(0.9)), np.float32(0), a)


FIRSTS = {
    "a mask": ("**.kernel[abs(_) < 0.01] = 0", lambda a: np.where(np.abs(a) < np.float32(0.01), np.float32(0), a)),
    "scaling": ("**.kernel *= 0.5", lambda a: a * np.float32(0.5)),
    "clip": ("**.kernel = clip(_, -0.05, 0.05)", lambda a: np.clip(a, np.float32(-0.05), np.float32(0.05))),
    "pruning": (PRUNE, _pruned),
    "centring": ("**.kernel = _ - mean(_)", lambda a: a - a.mean()),
}


def first(budget):
    """Edits that are made once, with what is compiled for them; a loop by hand compiles nothing, and undoes nothing."""
    model = keras.applications.MobileNetV2(weights=None, input_shape=(96, 96, 3))
    saved = [np.array(array) for array in model.get_weights()]
    kpatch.apply(model, "predictions.bias[0] = 0").undo()  # what any edit of the model needs
    for name, (text, function) in FIRSTS.items():
        model.set_weights(saved)  # memory and caches are warm for both, and the values the same
        loop, _ = once(_by_hand, model, function)
        model.set_weights(saved)
        ours, _ = once(lambda text=text: kpatch.apply(model, text).undo())
        yield Row(name, ours * 1e3, loop * 1e3, unit="ms", limit=1.5)


def _by_hand(model, function):
    for layer in model.layers:
        arrays = layer.get_weights()
        kernels = [variable.name == "kernel" for variable in layer.weights]
        if any(kernels):
            layer.set_weights([function(a) if chosen else a for a, chosen in zip(arrays, kernels, strict=True)])


def resolve(budget):
    """Selectors in a model of 2,000 layers."""
    model = keras.Model()
    model.blocks = [keras.layers.Dense(2, name=f"block{i}_dense", kernel_initializer="zeros") for i in range(2000)]
    for layer in model.blocks:
        layer.build((None, 2))
    glob = kpatch.parse("**.kernel = 0").statements[0].target.selector
    plain = kpatch.parse("block1999_dense.kernel = 0").statements[0].target.selector
    contest = {"glob": lambda: index(model).find_all(glob), "plain": lambda: index(model).find(plain)}
    contest["index"] = lambda: index(model)
    seconds = race(contest, budget)
    yield Row("a glob over all of them", *figures(seconds, "ms", "glob"), unit="ms", limit=50, absolute=True)
    yield Row("a plain selector", *figures(seconds, "ms", "plain"), unit="ms", limit=1, absolute=True)
    yield Row("of that: is the index still true?", *figures(seconds, "ms", "index"), unit="ms")
    seconds, _ = once(lambda: ModelIndex(model))
    yield Row("making the index", seconds * 1e3, unit="ms")


def parse(budget):
    """A statement that no cache knows, against `ast.parse`; and one that it knows."""
    texts = [f"dense_1.kernel[{i},{j}] = 1.0" for i in range(1, 40) for j in range(25)]  # more than the cache holds
    ours, theirs = deque(texts), deque(texts)

    def next_of(queue, function):
        queue.rotate()
        function(queue[0])

    contest = {"ours": lambda: next_of(ours, kpatch.parse), "theirs": lambda: next_of(theirs, ast.parse)}
    contest["known"] = lambda: kpatch.parse(STATEMENT)
    contest["empty"] = lambda: next_of(theirs, id)
    seconds = race(contest, budget)
    added = {name: seconds[name] - seconds["empty"] for name in ("ours", "theirs")}
    yield Row("uncached / ast.parse", *figures(added, "µs", "ours", "theirs"), limit=2.5)
    yield Row("cached", *figures(seconds, "µs", "known"), limit=1, absolute=True)


def imports(budget):
    """`import kpatch` in fresh processes that have imported keras, from a copy with byte code, as pip installs it."""
    code = "import time, keras; start = time.perf_counter(); import kpatch; print(time.perf_counter() - start)"
    with tempfile.TemporaryDirectory() as folder:
        installed = Path(folder, "kpatch")
        shutil.copytree(Path(kpatch.__file__).parent, installed, ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(installed, quiet=2)
        process = {"args": [sys.executable, "-c", code], "env": {**os.environ, "PYTHONPATH": folder}, "check": True}
        output = [subprocess.run(**process, capture_output=True, text=True).stdout for _ in range(max(3, int(budget)))]
    yield Row("import kpatch, keras there", median(map(float, output)) * 1e3, unit="ms", limit=100, absolute=True)


def sharded(budget):
    """One entry of a variable sharded over 8 virtual CPU devices, against one that is not. Its own process."""
    from keras import distribution

    plain = dense(4096)
    mesh = distribution.DeviceMesh((8,), ("model",), distribution.list_devices())
    layouts = distribution.LayoutMap(mesh)
    layouts[".*kernel"] = distribution.TensorLayout((None, "model"))
    with _distributed(distribution.ModelParallel(layout_map=layouts)):
        parted = dense(4096)
    variable, patch = kernel(parted), kpatch.parse(STATEMENT)
    before = variable.value.sharding
    if before.is_fully_replicated or len(before.device_set) != 8:
        raise RuntimeError(f"the kernel is not sharded over 8 devices: {before}")
    seconds = _race_of_models(patch, budget, sharded=parted, plain=plain)
    ours, unsharded = figures(seconds, "µs", "sharded", "plain")
    limit = 2 + 100 / unsharded
    yield Row("sharded / unsharded", ours, unsharded, limit=limit, note="the target: 2 times and 100 µs")
    yield Row("sharding lost (0: kept)", float(variable.value.sharding != before), unit="", limit=0, absolute=True)


@contextlib.contextmanager
def _distributed(strategy):
    keras.distribution.set_distribution(strategy)
    try:
        yield
    finally:
        keras.distribution.set_distribution(None)
