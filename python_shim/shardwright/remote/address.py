"""Addresses such as s3://bucket/run, beside paths of this machine."""

from __future__ import annotations

import os
import re

from shardwright import _core

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
#: What pathlib makes of one: it takes two slashes for one.
_MANGLED = re.compile(
    r"(s3a?|gs|gcs|az|azure|abfss?|adl|hf|https?|memory|r2|oss|cos|webhdfs|hdfs):/([^/].*)", re.DOTALL
)
_KINDS_OF_REPOSITORIES = ("datasets", "spaces")  # of the Hub, beside those of models


def is_address(path: str | os.PathLike[str]) -> bool:
    """True for s3://bucket/run and the like, also as pathlib writes it, s3:/bucket/run. file:// means a path,
    and so does fsspec's local://."""
    text = os.fsdecode(path)
    found = _ADDRESS.fullmatch(text)
    return (found is not None and found[1].lower() not in ("file", "local")) or _MANGLED.fullmatch(
        text
    ) is not None


def address_of(path: str | os.PathLike[str]) -> str:
    """The address in one form: two slashes after the scheme, none at the end.

    Raises:
        ValueError: it is none of a folder, such as one with a query, or hf://name, which lacks the organisation.
    """
    text = unmangled(os.fsdecode(path))
    scheme, rest = scheme_and_rest(text)
    rest = rest.rstrip("/")
    if scheme in ("http", "https") and "?" in rest:
        raise ValueError(
            f"{without_secrets(text)}: expected the address of a folder, found one with a query, as the signed address "
            "of a single file has; give the folder's, of a server that takes it without, or download it first"
        )
    parts = rest.split("/")
    if scheme == "hf" and len(parts) < (3 if parts[0] in _KINDS_OF_REPOSITORIES else 2):
        raise ValueError(
            f"{without_secrets(text)}: expected hf://organisation/name or hf://organisation/name@revision"
        )
    return f"{scheme}://{rest}"


def unmangled(text: str) -> str:
    """The text, with the two slashes that pathlib takes for one."""
    found = _MANGLED.fullmatch(text)
    return text if found is None else f"{found[1]}://{found[2]}"


def scheme_and_rest(address: str) -> tuple[str, str]:
    """("s3", "bucket/run") of s3://bucket/run.

    Raises:
        ValueError: it is no address.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise ValueError(f"{without_secrets(address)}: expected an address such as s3://bucket/run")
    return found[1].lower(), found[2]


def root_and_key(address: str) -> tuple[str, str]:
    """What a store is opened by, and the name of what lies in it: ("s3://bucket", "run/model.safetensors")."""
    scheme, rest = scheme_and_rest(address)
    root, _, key = rest.partition("/")
    if scheme == "hf":  # organisation, repository and revision; a data set or a space has its kind before
        parts = 3 if root in _KINDS_OF_REPOSITORIES else 2
        root, key = "/".join(rest.split("/")[:parts]), "/".join(rest.split("/")[parts:])
    return f"{scheme}://{root}", key.strip("/")


def without_secrets(text: str) -> str:
    """The text without what may be secret in the addresses that it holds: queries, which sign them, and passwords."""
    found: bytes = _core.without_secrets(text.encode("utf-8", "surrogatepass"))
    return found.decode("utf-8", "surrogatepass")
