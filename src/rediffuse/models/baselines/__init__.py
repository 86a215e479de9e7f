"""The models that keep the others honest: one file each."""
