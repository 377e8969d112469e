import pytest

from arrakis_kernel import KernelFiles, cache_directory, ensure_kernel


@pytest.fixture(scope="session")
def kernel() -> KernelFiles:
    """The machine's prepared kernel, as scripts/setup makes it."""
    return ensure_kernel(cache_directory(), print)
