"""What bounds a mesh of an operator's own shape keeps: the simulator's world, observed from outside and measured."""
