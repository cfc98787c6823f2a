"""Statistics, tables, figures and pages made of scores and records."""
