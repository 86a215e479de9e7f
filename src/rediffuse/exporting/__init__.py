"""A trained next-item model as files that answer without Rediffuse."""

from rediffuse.exporting.export import Format, export

__all__ = ["Format", "export"]
