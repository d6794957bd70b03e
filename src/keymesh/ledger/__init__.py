"""The map tree, and receipts of what was decided."""
