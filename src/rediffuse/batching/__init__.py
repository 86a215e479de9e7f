"""Training batches from histories: sequences, user-item pairs, sparse rows, and continuations."""
