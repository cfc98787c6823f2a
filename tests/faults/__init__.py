"""Faults made on purpose: what breaks, what happens, what is kept, and what the user is told.

Each is a function that does the damage, checks that nothing is lost, and returns an `Outcome`.
``test_faults.py`` runs them; ``python -m tests.faults`` writes ``docs/reliability.md`` from the same functions.
"""
