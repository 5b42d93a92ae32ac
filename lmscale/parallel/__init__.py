"""Where arrays live, and how processes train together."""
