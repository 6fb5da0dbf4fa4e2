"""How an `S3` client reaches S3, from the arguments that boto3's sessions and clients take."""

from __future__ import annotations

from typing import Any

from metaflow._client_settings import configured
from metaflow.exception import MetaflowS3Exception

_ARGUMENTS = frozenset({"role", "session_vars", "client_params", "external_client"})
_KEYS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
    "region_name": "region",
}
_SESSION = {**_KEYS, "profile_name": "profile"}
_CLIENT = {**_KEYS, "endpoint_url": "endpoint", "verify": "certificates"}
# How boto3 itself behaves; nothing of it concerns this client.
_OF_BOTO = frozenset({"config", "use_ssl", "api_version", "botocore_session", "service_name"})


def options_for(given: dict[str, Any], encryption: str | None) -> dict[str, str]:
    """The options of `_native.S3`."""
    unknown = sorted(set(given) - _ARGUMENTS)
    if unknown:
        raise TypeError(f"S3() has no argument `{unknown[0]}`")
    if given.get("external_client") is not None:
        raise MetaflowS3Exception(
            "S3(external_client=…) is a client of boto3, which is not used here: give its address "
            "and keys as client_params={'endpoint_url': …, 'aws_access_key_id': …}"
        )
    options = {
        "endpoint": configured("METAFLOW_S3_ENDPOINT_URL"),
        "encryption": encryption,
        "role": given.get("role"),
        **_translated("session_vars", given.get("session_vars"), _SESSION),
    }
    options.update(_translated("client_params", given.get("client_params"), _CLIENT))
    return {name: str(value) for name, value in options.items() if value}


def _translated(
    argument: str, given: dict[str, Any] | None, known: dict[str, str]
) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in (given or {}).items():
        if name == "verify" and value is False:
            raise MetaflowS3Exception(
                "S3(client_params={'verify': False}) would trust anybody: name a file of "
                "certificates in its place"
            )
        if name in known and value is not True:
            options[known[name]] = value
        elif name not in known and name not in _OF_BOTO:
            raise MetaflowS3Exception(
                f"S3({argument}={{'{name}': …}}) is not known here; known are "
                f"{', '.join(sorted(known))}"
            )
    return options
