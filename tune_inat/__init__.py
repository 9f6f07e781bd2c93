"""tune_inat: the best fine-tuned classifier for a folder of images, found by Ray Tune, many times sooner."""

import os
import signal
import sys


def _end_quietly(*_: object) -> None:
    os.write(2, b"Interrupted.\n")
    os._exit(130)


# `python -m tune_inat.COMMAND` comes here first: until the command listens itself, Ctrl-C is no traceback.
_is_command = sys.argv[:1] == ["-m"] and any(word.startswith("tune_inat") for word in sys.orig_argv)
if _is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end_quietly)
