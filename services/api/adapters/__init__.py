"""Adapters from the shared volume: found, checked, copied, loaded, served, retired."""
