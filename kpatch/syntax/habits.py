"""Forms of Python, NumPy and Keras that the language writes otherwise: what the errors say instead."""

import re

PREFIXES = frozenset({"np", "numpy", "jnp", "jax", "tf", "tensorflow", "torch", "keras", "K", "ops", "math", "random"})

# Words that begin a statement elsewhere.
STATEMENTS = {
    "if": "there is no 'if'; a mask chooses entries, as in 'x[x > 0] = 1', or 'where(condition, a, b)'",
    "while": "there are no loops; operators and functions work on whole tensors",
    "del": "there is no 'del'; a patch keeps shapes, and can set entries to 0",
    "import": "there is no 'import'; the functions of the language need none",
    "from": "there is no 'import'; the functions of the language need none",
    "def": "there are no definitions; 'let' names a value",
    "return": "there is no 'return'; an edit is 'target = value'",
    "print": "there is no 'print'; kpatch.plan and kpatch.show tell what is there",
    "set": "there is no 'set'; an edit is 'target = value'",
    "var": "there is no 'var'; 'let' names a value",
    "const": "there is no 'const'; 'let' names a value",
    "with": "there is no 'with'; in Python 'with kpatch.apply(...):' undoes a patch at its end",
}

# Words that stand between values elsewhere.
OPERATORS = {
    "if": "there is no 'if'; 'where(condition, a, b)' chooses element by element",
    "is": "there is no 'is'; '==' compares",
    "in": "there is no 'in'; 'any(x == y)' is true if an entry is equal",
}

# Names that stand for a value elsewhere.
VALUES = {
    "True": "write 'true'",
    "False": "write 'false'",
    "None": "there is no 'None'; leave the argument out",
    "Inf": "write 'inf'",
    "NaN": "write 'nan'",
}

# Functions of other names.
FUNCTIONS = {
    "percentile": "quantile(x, 0.5) takes a part of 1",
    "nanmean": "mean(x[not isnan(x)]) leaves NaN out",
    "len": "shape(x)[0] is the length of the first axis",
    "rand": "uniform(shape, 0, 1, seed=1) is random, and takes a seed",
    "randn": "normal(shape, seed=1) is random, and takes a seed",
    "random": "uniform(shape, 0, 1, seed=1) is random, and takes a seed",
    "dropout": "bernoulli(shape, 0.9, seed=1) makes a random mask",
    "shuffle": "permutation(n, seed=1) makes a random order",
    "array": "a list is a tensor: [1, 2]",
    "tensor": "a list is a tensor: [1, 2]",
    "Tensor": "a list is a tensor: [1, 2]",
    "astype": 'cast(x, "int32") converts',
    "float": 'cast(x, "float32") converts',
    "int": 'cast(x, "int32") converts',
    "bool": 'cast(x, "bool") converts',
    "pow": "power(x, y), or 'x ** y'",
    "fabs": "abs(x)",
    "amax": "max(x, axis=0)",
    "amin": "min(x, axis=0)",
    "average": "mean(x)",
    "concat": "concatenate([a, b], axis=0)",
    "sgn": "sign(x)",
    "ln": "log(x)",
    "fill": "full(shape, value)",
    "range": "arange(10)",
    "clamp": "clip(x, 0, 1)",
    "nonzero": "a mask is an index by itself: x[x != 0]",
    "identity": "eye(n)",
    "linalg": "functions have no prefix: inv(x)",
    "unique": "the length of a result depends on shapes alone",
}

DTYPES = re.compile(r"(?:u?int(?:4|8|16|32|64)|b?float(?:16|32|64)|float8_\w+|bfloat16)")

ATTRIBUTES = {
    "shape": "write 'shape({})'",
    "size": "write 'size({})'",
    "ndim": "write 'ndim({})'",
    "T": "write 'transpose({})'",
    "value": "write '{}'",
    "weights": "name a variable of the layer, as in 'head.kernel'",
}

_CALLED = re.compile(r"([A-Za-z_][\w.\[\]:, ]{0,200}?)\.([A-Za-z_]\w{0,99})[ \t]*$")
_ASSIGNED = re.compile(r"([A-Za-z_][\w.]{0,200}?)\.(?:assign|fill|copy_|fill_)[ \t]*\(([^()\r\n]{0,80})\)[ \t]*$")


def call(text):
    """What to write for a call of what the text ends with: `np.zeros`, `x.mean`; or `None`."""
    found = _CALLED.search(text[-400:])
    if found is None:
        return None
    of, name = found.groups()
    if of.split(".")[0] in PREFIXES:
        return f"functions have no prefix; write '{name}(...)'"
    return f"there are no methods; write '{name}({of})'"


def assignment(text):
    """What to write for an assignment by a method, `x.assign(3)`; or `None`."""
    found = _ASSIGNED.search(text[-400:])
    return None if found is None else f"an edit is 'target = value'; write '{found[1]} = {found[2]}'"


_FILE = re.compile(r"[^\s=]{1,250}\.(?:(kpatch|patch|txt)|keras|h5|hdf5|safetensors|weights\.json)")


def file(text):
    """What to do with a text that is the name of a file; or `None`."""
    found = _FILE.fullmatch(text)
    if found is None:
        return None
    if found[1]:
        return "this is the name of a patch file, not a patch; kpatch.load reads the file (on the command line: no -e)"
    return "this is the name of a model file, not a patch; the model comes before the patch"


def explain(error, parts, functions):
    """Adds to the error of names that mean no variable in an expression what their writer may have meant."""
    *before, last = parts
    instead = None
    if not before:
        instead = VALUES.get(last)
        if DTYPES.fullmatch(last):
            instead = f'a dtype is quoted: "{last}"'
        elif last in functions:
            instead = f"a function is called, as in '{last}(x)'"
    elif before[0] in PREFIXES:
        instead = f"names have no prefix; write '{last}'"
    elif last in ATTRIBUTES:
        instead = ATTRIBUTES[last].format(".".join(before))
    if instead:
        error.message, error.notes = f"{error.message}; {instead}", ()
    elif not before:
        error.notes += (f"to hand in a value from Python, write ${last} and pass {last}=",)


_CALL = re.compile(r"\w+\(.*\)")


def function(name):
    """What to write for a function that does not exist, or `None`."""
    if DTYPES.fullmatch(name):
        return f'cast(x, "{name}") converts'
    instead = FUNCTIONS.get(name)
    return f"write {instead}" if instead and _CALL.fullmatch(instead) else instead


_PART = re.compile(r"[ \t]*([A-Za-z_]\w{0,99})[ \t]*(\()?")


def of_placeholder(text):
    """What to write for a part of `_`, which the text begins with: `_.T`, `_.mean()`; or `None`."""
    found = _PART.match(text)
    if found is None:
        return None
    name, called = found.groups()
    if name in ("assign", "fill", "fill_", "copy_"):
        return "an edit is '_ = value'"
    if called:
        instead = function(name) or f"write '{name}(_)'"
        return f"there are no methods; {instead}"
    return ATTRIBUTES[name].format("_") if name in ATTRIBUTES else None
