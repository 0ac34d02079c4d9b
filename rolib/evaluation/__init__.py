"""Evaluation: fine-tuning, stored predictions, metrics, speed, robustness."""
