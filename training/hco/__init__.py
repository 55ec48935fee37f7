"""Hybrid-model collaborative optimisation (paper 3.3): encoder, projector, Cls and LLM trained together."""
