"""What a command answers a script with, as plain mappings: numbers with their unit in the name,
estimates with their interval, nothing left out that the screen shows as a warning.

Written by :func:`windtunnel.for_scripts.write_answer`; listed in docs/howto/scripts.md.
"""
