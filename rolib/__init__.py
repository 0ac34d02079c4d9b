"""rolib: losses, training loops and loyalty analysis behind the Romanian notebooks."""

__version__ = "0.1.0"
