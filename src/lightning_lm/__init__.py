"""Train, evaluate and publish causal and masked language models."""
