"""End-to-end tests: the real command on the real sample."""
