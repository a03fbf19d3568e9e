"""`prepare`: from dialogues in JSONL to a checked, split data set. In the order in which a line meets them:

`readers` (lines to conversations) -> `checks` and `personal_data` (what must not be trained on) -> `rows` (one for each
assistant turn) -> `near_duplicates` -> `split` -> `card` and `write`. `command` is the command line.
"""

from services.trainer.prepare.command import add_arguments, run

__all__ = ["add_arguments", "run"]
