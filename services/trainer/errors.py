"""The error of a training run."""

from __future__ import annotations


class TrainError(ValueError):
    """A run that cannot begin or go on; the message names the cause and the next step, in one line."""
