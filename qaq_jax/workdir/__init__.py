"""The work directory: layout, atomic files, journals, mirror, lease."""
