"""Agents as tasks: the small engine protocol, its adapters, and the tools that agents delegate with.

Engines are slow to import, so each is imported lazily, in the one module that adapts it.
"""
