"""Settings shared by all tests: four forced host devices, quick compilation, and a cache of programs."""

import contextlib
import os
import resource

# Must precede the import of jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA lists pseudo-features of the processor at length
# Most of a first run is compiling; the lowest level that vectorises takes a sixth less of processor time.
_FLAGS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"

import jax  # noqa: E402
import pytest  # noqa: E402
from nebula_files import materials  # noqa: E402, F401, a fixture

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
jax.config.update("jax_compilation_cache_dir", os.path.join(_ROOT, ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture
def smallest_files():
    """Within `with smallest_files(size):` no file grows beyond so many bytes, as on a full disk."""

    @contextlib.contextmanager
    def limit(size):
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        name = "jax_persistent_cache_min_compile_time_secs"
        before = jax.config.values[name]
        jax.config.update(name, 1e9)  # or it would keep half a program
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            jax.config.update(name, before)

    return limit
