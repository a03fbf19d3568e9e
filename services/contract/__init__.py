"""What the API and the trainer agree on. Standard library and pydantic only."""
