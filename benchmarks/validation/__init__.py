"""Validation of the physics: what the simulator computes beside what others measured or computed.

Each topic is a module with `compute()`, whose results are plain numbers, `tables(results)` for
docs/physics.md, and `figure(results)`. tests/test_validation.py computes them, publishes them through
`report`, and asserts how far they may lie from the references in tests/data/*.csv: `make validate`.
"""
