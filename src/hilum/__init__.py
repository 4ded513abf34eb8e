"""Hilum reads a 3D chest CT and says what is abnormal, how sure it is and where. Research use only, not a medical device."""

__version__ = "0.1.0"
