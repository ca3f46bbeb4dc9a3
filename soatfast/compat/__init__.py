"""Drop-in names for scripts that were written for other libraries."""
