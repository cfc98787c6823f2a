"""The report's page: its parts, one file per section, and its style. A part without data says how to get them."""
