"""Invariants, judged from what is truly so: true time, true commits, the records on the disks, never by opinion."""
