"""OneSug in JAX: one encoder-decoder writes the list of queries to show while the user types."""

__version__ = "0.1.0"
