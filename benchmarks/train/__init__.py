"""Training speed and memory: MedThink beside the article's plain recipe and TRL with Liger, on the same rows."""
