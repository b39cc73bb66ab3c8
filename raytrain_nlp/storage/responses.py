"""What the answers of object storage mean, whichever client and server give them."""

from __future__ import annotations

_FINAL = (FileNotFoundError, PermissionError, TypeError, NotImplementedError)
_FINAL_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError")


def is_final(error: BaseException) -> bool:
    """Will no second try make it good?"""
    return isinstance(error, _FINAL) or type(error).__name__ in _FINAL_NAMES or is_there(error)


def is_there(error: BaseException | None) -> bool:
    """Was a conditional request refused because the object exists? s3fs says so for AWS alone, whose answer repeats the
    condition.
    """
    while error is not None:
        response = getattr(error, "response", None)
        code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
        if isinstance(error, FileExistsError) or code in ("PreconditionFailed", "412"):
            return True
        error = error.__cause__
    return False


def knows_no_conditions(error: BaseException | None) -> bool:
    """Do client or server not know conditional requests?"""
    return (
        isinstance(error, (TypeError, NotImplementedError))
        or type(error).__name__ == "ParamValidationError"
        or "NotImplemented" in str(error)
    )
