"""Calls to language models: OpenAI-compatible servers, local checkpoints, embeddings and retrieval."""
