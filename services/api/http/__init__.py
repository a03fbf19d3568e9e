"""HTTP: wire formats in, events out."""
