"""Benchmarks of nullport, for airspeed velocity."""
