"""Figures of a report: one file per kind. Charts are inline SVG in the page's colours, pictures of cases are PNG."""
