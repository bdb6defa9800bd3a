"""The version, as the greeting, the package and `moat --version` say it."""

VERSION = "0.1.0"
