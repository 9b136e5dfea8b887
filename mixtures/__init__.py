"""Proportions: start with `mixture.py`.

Domains and mixtures by name, the feasible set, closed forms, swarm designs, laws fitted to tables of runs, proposals
with their uncertainty. Numbers only: no model is trained here.
"""
