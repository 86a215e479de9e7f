"""Export a trained next-item model as files that run without Rediffuse."""

from rediffuse.exporting.export import Format, export

__all__ = ["Format", "export"]
