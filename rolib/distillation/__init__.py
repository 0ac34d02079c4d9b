"""Distillation: losses, masking, alignment of two vocabularies, models, the training loop."""
