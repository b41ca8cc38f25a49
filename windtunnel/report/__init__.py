"""The report of a sweep: one HTML page that stands alone, and its figures as files."""
