"""The second front: GPT-J continued pretraining from a YAML file."""
