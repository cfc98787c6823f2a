"""Faults made on purpose: what breaks, what happens, what is kept, and what the user is told.

Each is a function that does the damage, checks that nothing is lost, and returns what the user sees of it. Its
decorator says what that is to be.
``test_faults.py`` runs them, and so does ``python -m tests.faults``; the site lists them (``docs/faults.py``).
"""
