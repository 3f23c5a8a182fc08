"""Values of the app as small pieces of JSON, without secrets and without running the app's code."""
