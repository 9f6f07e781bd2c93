"""The measured comparison of tune_inat with what is done without it: `python -m benchmarks.compare`."""
