"""SIGTERM on one process; its signals, files and several ranks are in tests/reliability."""

import signal

from goodtransfer.callbacks import SaveOnSigterm


def test_one_rank_asks_no_device():
    """At each step: on a GPU that would be a wait for it."""
    callback = SaveOnSigterm()
    assert callback._any_told(None) is False
    callback._hear(signal.SIGTERM, None)
    assert callback._any_told(None) is True
