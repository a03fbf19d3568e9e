"""The API: an OpenAI-compatible chat service around one vLLM engine."""
