"""Training: settings, hardware, memory, model, trainer, metrics."""
