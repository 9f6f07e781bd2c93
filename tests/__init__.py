"""The tests: one module for each of the package, and end_to_end for the real command."""
