"""Fuzzing of the parsers that meet strangers: targets, mutations, and a runner that can itself fail."""
