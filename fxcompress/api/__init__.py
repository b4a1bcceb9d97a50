"""What a user calls: `optimize`, and the `Result` it returns."""

from fxcompress.api.flow import optimize
from fxcompress.api.result import Plan, Result

__all__ = ["Plan", "Result", "optimize"]
