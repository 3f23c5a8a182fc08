"""Values: the app's objects as bounded JSON, without secrets and without running the app's code."""
