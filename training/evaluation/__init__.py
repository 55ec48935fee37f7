"""Benchmarks of answers and of reasoning: readers of their files, runners, exact metrics, judges and tables."""
