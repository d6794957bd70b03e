"""The simulated mesh: the production machines in virtual time, faults by seed, checkers with an omniscient view."""
