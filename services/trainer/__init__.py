"""Makes models: today the demo model; adapters for the served model follow. Never imports the API."""
