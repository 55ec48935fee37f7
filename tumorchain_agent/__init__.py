"""TumorChain as software: traceable, organ-by-organ reasoning over 3D CT. Research software, not a medical device."""

__version__ = "0.1.0"
