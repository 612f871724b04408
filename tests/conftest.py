"""Fixtures of more than one folder."""

from __future__ import annotations

import os

# Processes that share a machine's cores (pytest -n) would wait for one another's threads. Before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import pytest

from rdo.coders import CODERS
from rdo.entropy import ENTROPY_MODELS
from rdo_harness.registries import ARCHITECTURES, METHODS, TASKS


@pytest.fixture
def registries() -> Iterator[None]:
    """Forget afterwards what an example registered."""
    registries = (CODERS, ENTROPY_MODELS, METHODS, TASKS, ARCHITECTURES)
    kept = [(registry, registry.names(), dict(registry._plugins)) for registry in registries]
    yield
    for registry, _, plugins in kept:
        registry._plugins.clear()
        registry._plugins.update(plugins)
