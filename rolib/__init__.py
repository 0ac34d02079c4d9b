"""rolib: the losses, training loops and loyalty analysis behind the Romanian distillation notebooks."""

__version__ = "0.1.0"
