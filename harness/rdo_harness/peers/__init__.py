"""Other compression libraries, each in an environment of its own and driven as a subprocess (docs/peers.md)."""
