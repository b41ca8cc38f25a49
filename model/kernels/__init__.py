"""Ways to compute the routed experts; ``select`` chooses one."""
