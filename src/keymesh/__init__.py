"""keymesh: a sovereign key-management mesh."""

__version__ = "0.1.0"
