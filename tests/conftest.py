"""What every test needs: one backend a process, few threads, and a reproducible Hypothesis."""

import os
import tempfile

# Before any import of keras, a backend or matplotlib.
os.environ.setdefault("KERAS_BACKEND", "numpy")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_HOME", os.path.join(tempfile.gettempdir(), f"keras-home-{os.getpid()}"))
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "2")

import hypothesis
import pytest

import kpatch

# The processes that tests start run the kpatch that is tested, whichever is installed.
os.environ["PYTHONPATH"] = os.path.dirname(os.path.dirname(os.path.abspath(kpatch.__file__)))

# Tests of modules that never import Keras run once, on numpy.
if os.environ["KERAS_BACKEND"] != "numpy":
    collect_ignore = ["test_syntax.py", "test_sources.py", "test_indexing.py"]

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session")
def backend():
    """The name of the backend of this process."""
    import keras

    return keras.backend.backend()
