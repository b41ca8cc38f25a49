"""The live page: the report's sections and figures, served while a sweep or a launch runs."""
