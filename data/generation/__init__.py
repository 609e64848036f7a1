"""Step 1: synthetic passages, from methods and requests to journals of passages."""
