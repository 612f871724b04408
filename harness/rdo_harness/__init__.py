"""The comparison harness: methods, tasks and architectures, crossed by suites into rows of results."""
