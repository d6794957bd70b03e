"""Faces of other key services over Core and Edge: what their clients expect, and nothing of how they connect."""
