"""Which URIs are allowed: what a prefix says, and nothing that only looks like it."""

import pytest

from lokr_serve.adapters.sources.uris import AllowedUris, Uri
from lokr_serve.errors import SettingsError, SourceError

ALLOWED = AllowedUris(["s3://bucket/ok/", "gs://models", "s3://minio:9000/a"])


@pytest.mark.parametrize(
    ("source", "spelling"),
    [
        ("s3://bucket/ok/a", "s3://bucket/ok/a"),
        ("s3://bucket/ok/a/", "s3://bucket/ok/a"),
        ("s3://bucket/ok/deep/a.safetensors", "s3://bucket/ok/deep/a.safetensors"),
        ("s3://bucket/ok/..hidden/run=1,lr=+1e-4@best~", None),
        ("gs://models/any", "gs://models/any"),
        ("s3://minio:9000/a/b", "s3://minio:9000/a/b"),
    ],
)
def test_what_lies_under_a_prefix_is_allowed(source: str, spelling: str | None) -> None:
    """One spelling for each, which is what copies are kept by."""
    assert str(ALLOWED.require(source)) == spelling or source


@pytest.mark.parametrize(
    "source",
    [
        "s3://bucket/ok",  # the prefix itself is no adapter
        "s3://bucket/ok/",
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket/okay/a",
        "s3://bucket/ok-evil/a",
        "s3://bucket/OK/a",
        "s3://bucket-evil/ok/a",
        "s3://bucket.evil/ok/a",
        "s3://Bucket/ok/a",
        "s3://minio/a/b",
        "s3://minio:9001/a/b",
        "s3://minio:90000000/a/b",
        "s3://bucket/ok/../secret/a",
        "s3://bucket/ok/..",
        "s3://bucket/ok/a/../../../b",
        "s3://bucket/ok/./a",
        "s3://bucket/ok//a",
        "s3://bucket//ok/a",
        "s3:///bucket/ok/a",
        "s3:/bucket/ok/a",
        "s3:bucket/ok/a",
        "s3://bucket/ok/%2e%2e/secret",
        "s3://bucket/ok/..%2f..%2fsecret",
        "s3://bucket/ok/%252e%252e/secret",
        "s3://bucket%2fok/a",
        "s3://bucket/ok/a?versionId=1",
        "s3://bucket/ok/a?x=s3://bucket/ok/",
        "s3://bucket/ok/a#fragment",
        "s3://bucket/ok/a;b",
        "s3://bucket/ok/*",
        "s3://bucket/ok/a[0-9]",
        "s3://bucket/ok/{a,b}",
        "s3://bucket/ok/a\\..\\b",
        "s3://bucket\\ok/a",
        "s3://bucket/ok/a b",
        "s3://bucket/ok/a\n",
        "s3://bucket/ok/a\0",
        "s3://bucket/ok/\u202ea",
        "s3://bucket/ok/\uff0e\uff0e/a",
        "s3://user@bucket/ok/a",
        "s3://key:secret@bucket/ok/a",
        "s3://evil@bucket/ok/a",
        "s3://bucket@evil/ok/a",
        "s3://bucket:@evil/ok/a",
        "S3://bucket/ok/a",
        " s3://bucket/ok/a",
        "s3a://bucket/ok/a",
        "file://bucket/ok/a",
        "file:///etc/passwd",
        "local:///etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "http://bucket/ok/a",
        "https://bucket/ok/a",
        "ftp://bucket/ok/a",
        "memory://bucket/ok/a",
        "github://org:repo@main/a",
        "simplecache::s3://bucket/ok/a",
        "zip://x::s3://bucket/ok/a.zip",
        "s3://bucket/ok/a::file:///etc/passwd",
        "reference://bucket/ok/a",
        "dir::s3://bucket/ok/a",
        "://bucket/ok/a",
        "s3://",
        "s3://bucket/ok/" + "a" * 2000,
    ],
)
def test_nothing_else_is_allowed(source: str) -> None:
    """A source comes from a caller, and the driver that it reaches has the server's credentials."""
    with pytest.raises(SourceError) as caught:
        ALLOWED.require(source)

    assert caught.value.source == source


def test_without_a_list_nothing_is_allowed() -> None:
    """The operator has to say what may be reached."""
    with pytest.raises(SourceError, match=r"adapters\.remote"):
        AllowedUris([]).require("s3://bucket/ok/a")


@pytest.mark.parametrize(
    ("prefix", "problem"),
    [
        ("", "no plain URI"),
        ("s3://", "no plain URI"),
        ("bucket/ok", "no plain URI"),
        ("s3://key:secret@bucket", "no plain URI"),
        ("s3://bucket/../x", "no plain URI"),
        ("s3://bucket/*", "no plain URI"),
        ("file://host/srv", "not far away"),
        ("hf://org/name", "not far away"),
        ("http://host/adapters", "of the web"),
        ("https://host/adapters", "of the web"),
    ],
)
def test_a_list_that_cannot_be_meant_stops_the_start(prefix: str, problem: str) -> None:
    """A prefix that allows more than it seems to is worse than none."""
    with pytest.raises(SettingsError, match=problem):
        AllowedUris(["s3://bucket", prefix])


def test_a_neighbour_shares_the_folder() -> None:
    """The configuration beside a tensor file is under every prefix that the file is under."""
    uri = Uri.parse("s3://bucket/ok/a/adapter_model.safetensors")

    assert uri is not None
    assert str(uri.beside("adapter_config.json")) == "s3://bucket/ok/a/adapter_config.json"
    assert (uri.name, Uri(scheme="s3", place="bucket", steps=()).name) == (
        "adapter_model.safetensors",
        "",
    )
