"""What takes a minute or more is run before a release, `TUNE_INAT_SLOW=1 pytest`: CI has 20 minutes."""

import os

import pytest

slow = pytest.mark.skipif(
    "TUNE_INAT_SLOW" not in os.environ, reason="TUNE_INAT_SLOW=1: it takes a minute or more"
)
