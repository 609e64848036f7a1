"""Evaluation tasks: documents, questions, attempts, scoring, retrieval-augmented evaluation, contamination."""
