"""The demo model: dialogues -> tokenizer, rows -> model -> train -> measure; `build` runs them in order."""
