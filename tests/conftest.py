"""What every test needs: one backend and one thread a process, few collections of garbage, a reproducible Hypothesis.

A test marked `backend_free` (one test, or a whole file by `pytestmark`) runs on numpy only: it is about texts, files or
names, and gives the same on every backend. `every_backend` takes one test of such a file out again.
"""

import gc
import os
import tempfile

# Before any import of keras, a backend or matplotlib.
os.environ.setdefault("KERAS_BACKEND", "numpy")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["KPATCH_CACHE"] = "off"
os.environ.setdefault("KPATCH_TRACEBACK", "full")  # the frames inside kpatch are what its developers look at
os.environ.setdefault("KERAS_HOME", os.path.join(tempfile.gettempdir(), f"keras-home-{os.getpid()}"))
# One thread a process: `pytest -n` starts as many processes as there are processors.
for name in (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS",
):  # fmt: skip
    os.environ.setdefault(name, "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import hypothesis
import pytest

import kpatch

# The processes that tests start run the kpatch that is tested, whichever is installed.
os.environ["PYTHONPATH"] = os.path.dirname(os.path.dirname(os.path.abspath(kpatch.__file__)))


def pytest_collection_modifyitems(config, items):
    if os.environ["KERAS_BACKEND"] == "numpy":
        return
    run, free = [], []
    for each in items:
        once = each.get_closest_marker("backend_free") and not each.get_closest_marker("every_backend")
        (free if once else run).append(each)
    config.hook.pytest_deselected(items=free)
    items[:] = run


@pytest.fixture(autouse=True, scope="module")
def _few_objects():
    """Modules and compiled functions live as long as the process: collections of garbage need not visit them.

    Keras collects at every `quantize`, kpatch at every `hold`: a second each, once jax has compiled a lot.
    """
    from kpatch.run import forgetting

    gc.collect()
    gc.freeze()
    forgetting._mark = forgetting._Mark()  # models of earlier files are nobody's: they are not searched for


hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session")
def backend():
    """The name of the backend of this process."""
    import keras

    return keras.backend.backend()


@pytest.fixture(scope="module")
def compiled():
    """jax edits by compiled functions at once, as it does when an edit is repeated, so that they are what is tested."""
    with pytest.MonkeyPatch.context() as patched:
        if os.environ["KERAS_BACKEND"] == "jax":
            patched.setattr("kpatch.backends.jax_host.BUDGET", 0)
            patched.setattr("kpatch.backends.jax_host._copied", {})
        yield


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """jax finds in files what it compiled before: for files whose tests compile the same for models of their own.

    It costs more than it saves if most programs differ.
    """
    if os.environ["KERAS_BACKEND"] != "jax":
        yield
        return
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
