"""Studies: models × datasets × folds × seeds as one table, run by Snakemake through the stock commands."""
