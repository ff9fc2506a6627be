"""Values, their dtypes, and the promotion table.

The table does not depend on the backend or on `floatx`:

* equal dtypes stay;
* two floats give the wider one; float16 with bfloat16 gives float32;
* an integer with a float gives that float;
* two integers of the same signedness give the wider one;
* a signed with an unsigned integer gives the smallest signed one that holds both (int8 with uint8 gives int16); a
  signed integer with uint64 is an error;
* a literal takes the dtype of the tensor, if it fits; a float literal with integers gives float32;
* booleans are not numbers.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from kpatch import backends
from kpatch.errors import DTypeError, LimitError, ShapeError, UnsupportedError
from kpatch.values.symbols import lengths

MAX_SIZE = 2**28  # entries of a result that is larger than all its inputs
MAX_CONSTANT = 2**20  # entries of a result of literals alone, which is computed on the host
MAX_AXES = 8  # axes of a result; TensorFlow's limit

INTEGERS = {f"{sign}int{bits}": bits for sign in ("", "u") for bits in (8, 16, 32, 64)}
FLOATS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
DTYPES = ("bool", *INTEGERS, *FLOATS)
NUMPY = {name: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name in DTYPES}
RANGES = {name: (int(np.iinfo(name).min), int(np.iinfo(name).max)) for name in INTEGERS}
LARGEST = {name: float(ml_dtypes.finfo(NUMPY[name]).max) for name in FLOATS}
DIGITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}  # bits of the significand


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """The value of an expression.

    Attributes:
        dtype: the dtype's name; `"int"`, `"float"` or `"bool"` for a literal.
        shape: the lengths of its axes; `None` is an unknown length.
        data: a backend tensor; for a literal a NumPy array (int64, uint64, float64 or bool); `None` while planning.
        weak: made of literals only. It has data unless it depends on an unknown length, as `shape(x)` can.
        is_list: a list or `shape(x)`; `==` and `!=` give one boolean.
        range: the `ranges.Range` of the entries, if a compiled function is planned and the range is known.
        axes: while a compiled function is planned, a name for each unknown length and `None` for the others; or `()`.
        exists: while a compiled function runs, a boolean tensor that broadcasts to the shape: false for entries
            computed from an index out of range. `None` if all are true.
    """

    dtype: str
    shape: tuple
    data: object = None
    weak: bool = False
    is_list: bool = False
    range: Any = field(default=None, repr=False)
    axes: tuple = field(default=(), repr=False)
    exists: Any = field(default=None, repr=False)


def is_integer(dtype):
    return dtype in INTEGERS or dtype == "int"


def is_floating(dtype):
    return dtype in FLOATS or dtype == "float"


def is_signed(dtype):
    return not dtype.startswith("u")


def literal(value):
    """The `Value` of a Python number or boolean, a rectangular nested list of these, or a NumPy array.

    Example:
        >>> literal([[1, 2], [3, 4]])
        Value(dtype='int', shape=(2, 2), data=array([[1, 2],
               [3, 4]]), weak=True, is_list=True)
    """
    kind = type(value)
    if kind is bool:
        return Value("bool", (), np.asarray(value), True)
    if kind is int:
        return Value("int", (), integers(value), True)
    if kind is float:
        return Value("float", (), np.asarray(value), True)
    if kind is list:
        return _list(value)
    return constant(np.asarray(value))


def constant(array, is_list=False):
    """The weak `Value` of a NumPy array of booleans, integers (also of dtype object) or floats."""
    if array.dtype == bool:
        return Value("bool", array.shape, array, True, is_list)
    if array.dtype.kind in "iuO":
        return Value("int", array.shape, integers(array), True, is_list)
    return Value("float", array.shape, array.astype("float64", copy=False), True, is_list)


def integers(values):
    """Python integers as an array of int64 or, if they do not fit, uint64; else `LimitError`.

    Example:
        >>> integers([1, 2**63]).dtype
        dtype('uint64')
    """
    array = np.asarray(values)
    if array.dtype == np.int64:
        return array
    array = np.asarray(values, dtype=object)
    low, high = (min(array.flat), max(array.flat)) if array.size else (0, 0)
    if low >= -(2**63) and high < 2**63:
        return array.astype("int64")
    if low >= 0 and high < 2**64:
        return array.astype("uint64")
    if low < 0 <= high < 2**64 and low >= -(2**63):
        raise LimitError(f"no integer type holds both {low} and {high}")
    worst = low if low < -(2**63) else high
    shown = str(worst) if abs(worst) < 10**30 else f"about {'-' if worst < 0 else ''}2**{abs(worst).bit_length() - 1}"
    raise LimitError(f"the integer {shown} does not fit 64 bits")


def _list(items):
    shape = _list_shape(items, 0)
    flat = items
    for _ in shape[1:]:
        flat = [item for part in flat for item in part]
    kinds = {type(item) for item in flat}
    if bool in kinds and len(kinds) > 1:
        raise DTypeError("a list holds booleans or numbers, not both")
    array = integers(flat) if kinds <= {int} else np.array(flat, dtype=bool if bool in kinds else "float64")
    return constant(array.reshape(shape), is_list=True)


def _list_shape(items, depth):
    if depth == MAX_AXES:
        raise LimitError(f"a list has at most {MAX_AXES} levels")
    shapes = {_list_shape(item, depth + 1) if type(item) is list else () for item in items}
    if len(shapes) > 1:
        raise ShapeError("the items of a list must all have the same length")
    return (len(items), *(shapes.pop() if shapes else ()))


def tensor(data):
    """The `Value` of a backend's tensor."""
    dtype = dtype_name(data.dtype)
    if dtype not in NUMPY:
        raise DTypeError(f"{dtype} tensors are not part of the language")
    try:
        shape = lengths(data.shape)
    except ValueError:  # TensorFlow's shape of unknown rank
        raise UnsupportedError("a tensor with an unknown number of axes cannot be used in a patch") from None
    return Value(dtype, shape, data)


@functools.cache
def dtype_name(dtype):
    """The name of a backend's dtype, `"float32"`."""
    if isinstance(dtype, np.dtype):
        return dtype.name
    from keras import backend

    return backend.standardize_dtype(dtype)


EVERYWHERE = ("bool", "float32", "int32", "float16")  # dtypes that every backend computes in; Keras need not be loaded


def check_available(dtype):
    """Raises `UnsupportedError` if the backend has no such dtype: Keras would convert it silently."""
    if dtype in EVERYWHERE:
        return
    refusal = backends.current().refusal(dtype)
    if refusal:
        raise UnsupportedError(refusal)


def check_readable(dtype):
    """Raises `UnsupportedError` if the backend changes a tensor of that dtype when it computes with it."""
    if dtype not in EVERYWHERE and backends.current().computes_in is not None:
        check_available(dtype)


def promote(a, b):
    """The dtype to which two tensor dtypes promote.

    Example:
        >>> promote("int8", "uint8"), promote("int32", "float16"), promote("float16", "bfloat16")
        ('int16', 'float16', 'float32')
    """
    if a == b:
        return a
    if "bool" in (a, b):
        number = b if a == "bool" else a
        raise DTypeError(f'booleans and {number} do not go together; write cast(..., "{number}") or where(...)')
    if a in FLOATS and b in FLOATS:
        return "float32" if FLOATS[a] == FLOATS[b] else max(a, b, key=lambda name: FLOATS[name])
    if a in FLOATS or b in FLOATS:
        return a if a in FLOATS else b
    if is_signed(a) == is_signed(b):
        return max(a, b, key=lambda name: INTEGERS[name])
    signed, unsigned = (a, b) if is_signed(a) else (b, a)
    if unsigned == "uint64":
        raise DTypeError(f'no integer type holds both {signed} and uint64; write cast(..., "{signed}")')
    return f"int{max(INTEGERS[signed], 2 * INTEGERS[unsigned])}"


def common(values):
    """The dtype to which values promote; `"int"`, `"float"` or `"bool"` if all are literals.

    Raises:
        DTypeError: the values have no common dtype; `argument` is the position of the faulty value.
    """
    result = None
    for place, value in sorted(enumerate(values), key=lambda item: item[1].weak):
        try:
            result = value.dtype if result is None else _meet(result, value)
        except DTypeError as error:
            error.argument = place
            raise
    return result


def _meet(dtype, value):
    if not value.weak:
        return promote(dtype, value.dtype)
    if (dtype == "bool") != (value.dtype == "bool"):
        known = next(name for name in (dtype, value.dtype) if name != "bool")
        known = {"int": "an integer", "float": "a float"}.get(known, known)
        raise DTypeError(f"booleans and {known} do not go together; write cast(...) or where(...)")
    if value.dtype == "float" and is_integer(dtype):
        return "float" if dtype == "int" else "float32"
    return dtype


def fit(value, dtype):
    """A literal's data as a NumPy array of a tensor's dtype; `DTypeError` if an entry does not fit.

    Example:
        >>> fit(literal(200), "uint8")
        array(200, dtype=uint8)
    """
    array = value.data
    if value.dtype == "float" and value.shape == () and abs(array) <= LARGEST.get(dtype, -1):
        return array.astype(NUMPY[dtype])
    if value.dtype == "bool" or dtype == "bool":
        if value.dtype != dtype:
            check_convertible(value.dtype, dtype)
        return array.astype(NUMPY[dtype])
    if dtype in INTEGERS:
        low, high = RANGES[dtype]
        bad = (array < low) | (array > high)
        if value.dtype == "float":
            bad |= (array != np.trunc(array)) | (array == 2.0 ** high.bit_length())
    else:
        with np.errstate(all="ignore"):
            result = array.astype(NUMPY[dtype])
        bad = np.isinf(result.astype("float64")) & np.isfinite(array.astype("float64"))
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        refuse_loss(array[place].item(), place, dtype)
    return array.astype(NUMPY[dtype]) if dtype in INTEGERS else result


def check_convertible(source, dtype):
    """Raises `DTypeError` if an assignment would convert numbers to booleans."""
    if dtype == "bool" and source != "bool":
        raise DTypeError("a number is not a boolean; write '!= 0', or true and false")


def refuse_loss(entry, place, dtype):
    """Raises the `DTypeError` for an entry that a dtype cannot hold."""
    where = f" at {list(place)}" if place else ""
    if dtype in INTEGERS:
        low, high = RANGES[dtype]
        limits, entry = f"{low} to {high}", entry if isinstance(entry, int) else float(entry)
        if isinstance(entry, int) or (entry == entry // 1 and abs(entry) != float("inf")):
            raise DTypeError(f"{entry}{where} does not fit {dtype} ({limits})", notes=[_cast_note(dtype, "wraps it")])
        what = "has a fraction" if abs(entry) < float("inf") else "is not a whole number"
        how = "truncates it" if what == "has a fraction" else "takes it as 0"
        raise DTypeError(f"{entry}{where} {what}, which {dtype} cannot hold", notes=[_cast_note(dtype, how)])
    largest = LARGEST[dtype]
    raise DTypeError(
        f"{entry}{where} does not fit {dtype} (at most {largest:.6g})", notes=[_cast_note(dtype, "makes it infinite")]
    )


def _cast_note(dtype, how):
    return f'cast(..., "{dtype}") {how}'


def could_lose(source, dtype):
    """Whether `dtype` cannot hold some value of `source`; rounding is no loss.

    Example:
        >>> could_lose("int8", "int16"), could_lose("int32", "float32"), could_lose("float32", "float16")
        (False, False, True)
    """
    if source in (dtype, "bool"):
        return False
    if dtype in INTEGERS:
        if source in FLOATS:
            return True
        return RANGES[source][0] < RANGES[dtype][0] or RANGES[source][1] > RANGES[dtype][1]
    if source in INTEGERS:
        with np.errstate(over="ignore"):
            return bool(np.isinf(np.array(RANGES[source][1]).astype(NUMPY[dtype]).astype("float64")))
    return LARGEST[source] > LARGEST[dtype]


def check_size(shape, *inputs):
    """Raises `LimitError` if a result would exceed both the fixed limit and its largest input."""
    if len(shape) > MAX_AXES:
        raise LimitError(f"a result has at most {MAX_AXES} axes, this one would have {len(shape)}")
    size = _size(shape)
    weak = bool(inputs) and all(value.weak for value in inputs)
    bound = MAX_CONSTANT if weak else MAX_SIZE
    if size > bound and size > max((_size(value.shape) for value in inputs), default=0):
        what = "a result made of literals alone" if weak else "a result"
        raise LimitError(f"{what} has at most {bound} entries, this one would have {size}")


def _size(shape):
    """The number of entries; an unknown length counts as 1."""
    size = 1
    for length in shape:
        size *= 1 if length is None else length
    return size
