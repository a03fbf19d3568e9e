"""The guard: input is assessed before the first token, output leaves sentence by sentence, each judged before it goes."""
