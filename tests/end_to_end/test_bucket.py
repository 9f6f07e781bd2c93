"""Searches whose folders and epochs are in a bucket: what is there, and what a new machine makes of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.buckets import Bucket, open_bucket
from tests.end_to_end.command import Ran, run
from tests.image_files import write_images

pytestmark = pytest.mark.end_to_end

SPACE = "method: grid\nparameters:\n  freeze: {values: [0.9, 1.0]}\n  epochs: {values: [3, 4]}\n"
ARGUMENTS = ("--space", "small.yaml", "--image-size", "32", "--precision", "fp32", "--cpus-per-trial", "1")
