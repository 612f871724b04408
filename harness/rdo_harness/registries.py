"""The three registries of the harness; importing this module loads no plug-in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rdo.registry import Registry

if TYPE_CHECKING:
    from rdo_harness.architectures.base import Architecture
    from rdo_harness.methods.base import Method
    from rdo_harness.tasks.base import Task

METHODS: Registry[type[Method]] = Registry("method", package="rdo_harness.methods", group="rdo.methods")
TASKS: Registry[type[Task]] = Registry("task", package="rdo_harness.tasks", group="rdo.tasks")
ARCHITECTURES: Registry[type[Architecture]] = Registry(
    "architecture", package="rdo_harness.architectures", group="rdo.architectures"
)
