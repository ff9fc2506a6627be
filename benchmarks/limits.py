"""Measures that planning and running a text of 64 kB stay within bounds: `python benchmarks/limits.py [NAME ...]`.

Each text is the worst of its kind that is known, against a model of 2,000 variables. It is planned and applied in a
process of its own, which is measured by the time of the processor and the memory beyond that of the model. The script
ends with 1 if a text needs more than 2 seconds or 500 MB to plan, or ends in anything but a result or a `PatchError`.
`--apply` measures `kpatch.apply` in place of `kpatch.plan`.
"""

import itertools
import os
import resource
import sys
import time

from kpatch.errors import PatchError

os.environ.setdefault("KERAS_BACKEND", "numpy")
LENGTH = 64_000
SECONDS, MEGABYTES = 2.0, 500


def filled(statement, separator=";"):
    """The statement as often as it fits; `{i}` in it is the number of the repetition."""
    parts, length, i = [], 0, 0
    while True:
        part = statement.replace("{i}", str(i))
        length += len(part) + len(separator)
        if length > LENGTH:
            return separator.join(parts)
        parts.append(part)
        i += 1


def nested(begin, middle, end, depth=95):
    return begin * depth + middle + end * depth


def tree(operator, leaf, levels=12):
    """A balanced tree of operators with as many leaves as fit."""
    text = leaf
    while 2 * len(text) + 5 < LENGTH and levels:
        text, levels = f"({text}){operator}({text})", levels - 1
    return text


def chain(parts, size=60):
    """Sums of `size` terms, in brackets, as often as fits."""
    inner = "(" + "+".join([parts] * size) + ")"
    return "+".join([inner] * min(90, LENGTH // (len(inner) + 1)))


TEXTS = {
    # results of literals
    "tiles": "\n".join(f"let a{i} = tile([1,2,3,4], 250000)" for i in range(120)),
    "many tiles": filled("let a{i} = tile([1], 1000000)"),
    "tiles of floats": filled("let a{i} = tile([.5], 1000000)"),
    "powers of tiles": "let a = tile([3], 1000000);" + filled("let b{i} = a ** 39"),
    "sorted tiles": "let a = tile([3,1,2], 300000);" + filled("let b{i} = sort(a)"),
    "products of literals": "let a = reshape(tile([3], 1000000), [1000,1000]);" + filled("let b{i} = a @ a"),
    "floats' products": "let a = reshape(tile([.5], 1000000), [1000,1000]);" + filled("let b{i} = a @ a"),
    "inverses": "let a = reshape(tile([.5], 1000000), [1000,1000]);" + filled("let b{i} = det(a)"),
    "svds": "let a = reshape(tile([.5,1], 500000), [1000,1000]);" + filled("let b{i} = svd(a)"),
    "huge powers": filled("let a{i} = 3 ** 39 ** 1"),
    "towers": "let a = " + "**".join(["9"] * 90),
    "huge ranges": filled("let a{i} = arange(10**9)"),
    "long sorted literal": "let a = sort([" + ",".join(str(i * 7919 % 9973) for i in range(12_000)) + "])",
    "matrices of one literal": "let a = [" + ",".join(["1"] * 31_000) + "]; **.kernel = a[0]",
    "assertions": filled("assert 1 == 1"),
    "assertions on tiles": "let a = tile([1], 1000000);" + filled("assert all(a == 1)"),
    "failing assertions": filled("assert 1 == 2"),
    "comparisons of tiles": "let a = tile([1], 1000000);" + filled("let b{i} = a < 2 < a"),
    "random indices": "let a = tile([0], 1000000);" + filled("first.kernel[a] = 0"),
    "indices that broadcast": "let a = reshape(tile([0], 16000), [16000,1]);"
    + filled("first.kernel[a, reshape(a, [1, 16000])] = 0"),
    "lists as indices": filled("first.kernel[tile([0], 1000000)] = 0"),
    "constants for each shape": "let a = tile([0], 1000000); **.odd[a] = 0",
    "tiles for each shape": "**.odd = sum(tile([0], 1000000))",
    # globs
    "globs": filled("**.k{i}* = 0"),
    "fifty globs": ";".join(["**.kernel = 0"] * 50),
    "thousand globs": ";".join(["**.kernel = 0"] * 1000),
    "all globs": filled("** = 0"),
    "distinct globs": filled("*{i}?*.kernel = 0"),
    "distinct globs that match": filled("**.k?" + "*" + "l = 0") + ";" + filled("**." + "?" + "ernel = {i}"),
    "deep globs": "**." * 5000 + "kernel = 0",
    "many deep globs": filled("**." * 20 + "kernel = {i}"),
    "distinct deep globs": filled("**.*.**.*.**.x{i} = 0"),
    "distinct deep globs that match": "\n".join(f"{'**.' * (i + 1)}kernel = 0" for i in range(200)),
    "long patterns": filled("*" + "e*" * 50 + "{i}.kernel = 0"),
    "a long pattern": "*" + "a*" * 30_000 + ".kernel = 0",
    "a long mask on all": "**.kernel[" + tree(" and ", "_>0") + "] = 0",
    "a long expression on all": "**.odd = " + chain("_"),
    "calls on all": "**.odd = " + chain("abs(_)"),
    "nested calls on all": "**.odd = " + nested("abs(", "_", ")"),
    "masks on all": filled("**.odd[_ > {i}] = 0"),
    "deep masks": filled("first.kernel[" + nested("-(", "_", ")") + " > 0] = 0"),
    "bushy masks": "first.kernel[" + tree(" < 0 and 0 < ", "-_", 11) + " > 0] = 0",
    "deep values": filled("first.kernel = " + nested("(1+", "_", ")")),
    "a bushy value": "first.kernel = " + tree("+", "_"),
    "strings": filled("**.odd = einsum('ab,cb->ac', _, _)"),
    "wrong on all": filled("**.odd = [1,2,3,4,5,6,7]"),
    "a long pattern of letters": "**." + "?*" * 30_000 + " = 0",
    "a chain of comparisons": "first.kernel[" + "_<" * 30_000 + "1] = 0",
    "random numbers on all": filled("**.kernel = normal(shape(_), seed={i})"),
    # alternatives, exclusions, blocks
    "exclusions": "** = 0 except " + filled("*.*", ","),
    "exclusions of names": "**.kernel = 0 except " + ",".join(f"layer{i}.kernel" for i in range(1000)),
    "exclusions that miss": "**.kernel = 0 except " + filled("lyr{i}.kernel", ","),
    "many statements with exclusions": filled("**.kernel = 0 except layer{i}.*"),
    "products of alternatives": filled("layer(1|2|3|4)(0|1|2|3|4|5|6|7|8|9)(0|1|2|3|4|5|6|7|8|9).kernel = {i}"),
    "faulty products of alternatives": filled("(a|b)" * 10 + "{i} = 0"),
    "products of globs": filled("(l*|*r)(1|2)*.(k|o)* = {i}"),
    "blocks": filled("for **.kernel { _ = {i} }"),
    "blocks of locals": filled("for layer1?.kernel { let t = sum(_); _ -= t }"),
    "a block of masks": "for **.odd { " + ";".join(f"_[_ > {i}] = 0" for i in range(130)) + " }",
    "blocks that miss": filled("for **.kernl{i} { _ = 0 }"),
    # names
    "missing": filled("kernal{i} = 0"),
    "missing, long": filled("kern" + "a" * 300 + "{i} = 0"),
    "missing below": filled("first.kernal{i} = 0"),
    "ambiguous": filled("kernel = 0"),
    "ambiguous in values": filled("first.kernel = kernel"),
    "layers": filled("first = 0"),
    "distinct layers": filled("layer{i} = 0"),
    "activations": filled("layer{i}.output = 0"),
    "names": filled("layer{i}.kernel = 0"),
    "names in values": filled("first.kernel = layer{i}.kernel"),
    "long path": "first" + ".a" * 30_000 + " = 0",
    "many paths": filled("first.a.b.c.d.e.f.g.h.i.j.k = 0"),
    "near paths": filled("layr{i}.kernl = 0"),
    # text
    "points": filled("first.kernel[0,0]=1"),
    "sums": "first.kernel = " + chain("_"),
    "subscripts": "first.kernel[" + ",".join(["0"] * 30_000) + "] = 0",
    "long index": "first.kernel[[" + ",".join(["0"] * 30_000) + "]] = 0",
    "index of lists": filled("first.kernel[[" + ",".join(["0"] * 200) + "]] = 0"),
    "wrong indices": filled("first.kernel[9999]=1"),
    "wrong values": filled("first.kernel=[1,2]"),
    "wrong functions": filled("first.kernel=abss(_)"),
    "wrong calls": filled("first.kernel=abs()"),
    "syntax errors": filled("= 0"),
    "numbers": "first.kernel[0,0] = " + "9" * 60_000,
    "floats": "first.kernel[0,0] = 0." + "9" * 60_000,
    "exponents": filled("first.kernel[0,0] = 1e999999"),
    "brackets": "[" * 60_000,
    "lets": filled("let a{i}=_"),
    "unknown locals": filled("first.kernel=x{i}"),
    # results of tensors
    "outer products": "let a = reshape(first.kernel, [-1]);"
    + filled("let b{i} = expand_dims(a, 0) * expand_dims(a, 1)"),
    "masked outer products": "let a = first.kernel[first.kernel > -1];"
    + filled("let b{i} = expand_dims(a, 0) * expand_dims(a, 1)"),
    "comparisons": "let a = reshape(first.kernel, [-1]);" + filled("let b{i} = expand_dims(a, 0) < expand_dims(a, 1)"),
    "ones": filled("let a{i} = ones([10000, 10000])"),
    "one ones": "let a = ones([16000, 16000])",
    "sums of ones": filled("first.kernel[0,0] = sum(ones([16000, 16000]))"),
    "normals": filled("first.kernel[0,0] = sum(normal([16000, 16000], seed=1))"),
    "permutations": filled("first.kernel[0,0] = sum(permutation(250000000, seed=1))"),
    "matrix products": "let a = ones([4096, 4096]);" + filled("let b{i} = a @ a"),
    "einsums": filled("let b{i} = einsum('abc,def->abcdef', ones([8,8,8]), ones([8,8,8]))"),
    "sixteen operands": "let a = ones([16,16]);"
    + filled(
        "let b{i} = einsum('"
        + ",".join(f"{c}{d}" for c, d in zip("abcdefghijklmnop", "bcdefghijklmnopq", strict=True))
        + "->aq'"
        + ",a" * 16
        + ")"
    ),
    "repeats": filled("let a{i} = repeat(first.kernel, 100000)"),
    "pads of indices": filled("let a{i} = first.kernel[zeros([1000000], 'int32')]"),
    "takes": filled("let a{i} = take(first.kernel, zeros([1000000], 'int32'), axis=0)"),
    "svd": filled("let a{i} = svd(ones([5000, 5000]))"),
    "one svd": "let a = svd(ones([6000, 6000]))",
    "whole writes": filled("first.kernel=0"),
    "whole sums": filled("first.kernel+=1"),
}


def model_of(kind):
    import keras

    class Leaf(keras.layers.Layer):
        def __init__(self, shapes, **options):
            super().__init__(**options)
            self.shapes = shapes

        def build(self, _=None):
            for name, shape in self.shapes.items():
                setattr(self, name, self.add_weight(shape=shape, name=name))

    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.first = Leaf({"kernel": (64, 64)}, name="first")
            self.many = [Leaf({"kernel": (8, 8), "odd": (2, i + 2)}, name=f"layer{i}") for i in range(1000)]
            holder = self.many
            if kind == "deep":
                for outer, inner in itertools.pairwise(holder):
                    outer.inner = inner
                self.many = holder[:1]
            for layer in (self.first, *holder):
                layer.build()
            self.built = True

        def call(self, x):
            return x

    return Net()


def measured(function, model, text):
    """The seconds, the megabytes and the outcome of a call, in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        before = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        begin = time.process_time()
        try:
            function(model, text)
            outcome = "a result"
        except PatchError as error:
            outcome = f"{type(error).__name__}: {error.message[:80]}"
            str(error)
        except Exception as error:  # noqa: BLE001 (what must not happen)
            outcome = f"RAW {error!r}"[:100]
        took = time.process_time() - begin
        after = resource.getrusage(resource.RUSAGE_SELF)
        os.write(writer, f"{took}\n{(after.ru_maxrss - before.ru_maxrss) / 1024}\n{outcome}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        lines = told.read().split("\n", 2)
    os.waitpid(child, 0)
    return (float(lines[0]), float(lines[1]), lines[2]) if len(lines) == 3 else (60.0, 0.0, "KILLED")


def main(names):
    import kpatch

    function = kpatch.apply if "--apply" in names else kpatch.plan
    names = [name for name in names if not name.startswith("--")]
    failed = False
    for kind in ("flat", "deep"):
        model = model_of(kind)
        kpatch.plan(model, "first.kernel = 0")
        for name, text in TEXTS.items():
            if names and name not in names:
                continue
            if kind == "deep" and not names and "*" not in text and "layer" not in text:
                continue
            seconds, megabytes, outcome = measured(function, model, text)
            slow = seconds > SECONDS or megabytes > MEGABYTES or outcome.startswith(("RAW", "KILLED"))
            failed |= slow
            print(
                f"{kind} {name:32} {seconds:7.2f} s {megabytes:8.1f} MB{' !!!' if slow else '    '} {outcome}",
                flush=True,
            )
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
