"""What a model is trained on and judged by: one task per file, by name in :data:`rdo_harness.registries.TASKS`."""
