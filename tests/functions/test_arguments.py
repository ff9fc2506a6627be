"""`--bind`: what each form means, and whole texts for what is wrong."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from kpatch.errors import PatchError
from kpatch.tools.binding import read

pytestmark = pytest.mark.backend_free


def one(text):
    [value] = read([text], str.upper).values()
    return value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x=3", 3),
        ("x = -0.5", -0.5),
        ("x=1e400", None),
        ("x=true", True),
        ("x=[[1, 2], [3, 4]]", [[1, 2], [3, 4]]),
        ("x=2*pi", 2 * np.pi),
        ("x=18446744073709551615", 2**64 - 1),
        ("x=@some.keras", "SOME.KERAS"),
    ],
)
def test_values(text, value):
    if value is None:
        with pytest.raises(PatchError):
            one(text)
    else:
        assert one(text) == value
        assert type(one(text)) is type(value)


def test_files(tmp_path):
    vector = np.arange(3, dtype="float32")
    half = vector.astype(ml_dtypes.bfloat16)
    np.save(tmp_path / "v.npy", vector)
    np.savez(tmp_path / "two.npz", a=vector, b=-vector)
    save_file({"a": vector, "half": half}, tmp_path / "w.safetensors")
    found = read(
        [f"{name}=@{tmp_path}/{file}" for name, file in (
            ("v", "v.npy"), ("b", "two.npz:b"), ("a", "w.safetensors:a"), ("half", "w.safetensors:half"))],
        None,
    )  # fmt: skip
    for name, expected in (("v", vector), ("b", -vector), ("a", vector), ("half", half)):
        assert found[name].dtype == expected.dtype
        assert found[name].tobytes() == expected.tobytes()


FORMS = "name=3, name=[1, 2], name=@file.npy, name=@file.safetensors:key or name=@model.keras"
TEXTS = {
    "x": f"'x' is not a binding; write {FORMS}",
    "1=2": f"'1=2' is not a binding; write {FORMS}",
    "x=": f"cannot read '' for 'x': a value is missing after '='\n  write {FORMS}",
    "x=abc": f"cannot read 'abc' for 'x': 'abc' is not a number; a file is written @abc\n  write {FORMS}",
    "x=1; y = 2": f"cannot read '1; y = 2' for 'x': it is several statements\n  write {FORMS}",
    "x=zeros([2])": f"'zeros([2])' for 'x' is not a number or a list of numbers\n  write {FORMS}",
    "x=@a.txt": "cannot read '@a.txt' for 'x'; a file ends in .npy, .npz, .safetensors or .keras",
    "x=@no.npy": "cannot read 'no.npy': no such file or directory",
    "x=@one.npy:a": "'one.npy' holds one array, without a name such as 'a'",
    "x=@bad.npy": "'bad.npy' is damaged, or not a .npy file",
    "x=@bad.npz": "'bad.npz' is damaged, or not a .npz file",
    "x=@bad.safetensors:a": "'bad.safetensors' is damaged, or not a .safetensors file",
    "x=@objects.npy": "'objects.npy' is damaged, or not a .npy file",
    "x=@two.npz": "'two.npz' holds 2 tensors; say which, as in 'two.npz:name'\n  it has: alpha, beta",
    "x=@two.npz:alpa": "'two.npz' has no 'alpa'; did you mean 'alpha'?\n  it has: alpha, beta",
}


@pytest.mark.parametrize("text", TEXTS)
def test_whole_error_texts(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("one.npy", np.zeros(2))
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez("two.npz", alpha=np.zeros(2), beta=np.ones(2))
    for kind in ("npy", "npz", "safetensors"):
        (tmp_path / f"bad.{kind}").write_bytes(b"nothing of the kind")
    with pytest.raises(PatchError) as caught:
        one(text)
    assert str(caught.value) == TEXTS[text]


def test_a_name_is_bound_once():
    with pytest.raises(PatchError, match=r"^'x' is bound twice$"):
        read(["x=1", "x=2"], None)
