"""Reasoning and answer: told apart by token id, bounded, and shown."""
