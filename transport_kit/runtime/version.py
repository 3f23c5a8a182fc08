"""The version, and the name that requests carry."""

__all__ = ["CLIENT", "SDK_NAME", "VERSION"]

VERSION = "0.1.0"
SDK_NAME = "transport-kit.python"
CLIENT = f"{SDK_NAME}/{VERSION}"
