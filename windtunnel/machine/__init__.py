"""What a configuration needs of a machine: memory, time, and how to spread it."""
