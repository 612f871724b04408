"""Where models come from: one source per file, by name in :data:`rdo_harness.registries.ARCHITECTURES`."""
