"""Parts of the block that a user's own Python computes: named, kept, measured, loaded."""
