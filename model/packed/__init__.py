"""Several models of one shape computed as one: see :mod:`model.packed.transformer`."""
