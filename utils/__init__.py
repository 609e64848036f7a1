"""Ground for everything else: errors, files, paths, the command line, tokenizers, token files, checkpoints."""
