"""The engine: token ids in, deltas out. Only this folder imports vllm."""
