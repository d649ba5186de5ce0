import re

import pytest

from server.errors import Refused
from server.tenancy.directory import Directory, key_record, organization_record
from server.tenancy.keys import DEFAULT_SCOPES, Organization, digest, is_name, is_well_formed, make_key, new_secret

NOW = 1_790_000_000_000_000


def test_a_key_has_256_random_bits_and_is_stored_as_its_hash_only() -> None:
    secret = new_secret()
    assert re.fullmatch("lqt_[0-9a-f]{64}", secret)
    assert is_well_formed(secret)
    assert new_secret() != secret
    name, value = key_record(make_key(secret, at=NOW))
    assert secret.encode() not in name + value
    assert secret[12:].encode() not in name + value
    assert digest(secret).encode() in value


@pytest.mark.parametrize("secret", [None, "", "lqt_", "lqt_" + "0" * 64, "x" * 10_000])
def test_an_unknown_key_opens_nothing(secret: str | None) -> None:
    with pytest.raises(Refused) as refused:
        Directory().authenticate(secret, "ingest", NOW)
    assert (refused.value.reason, refused.value.message) == ("unauthenticated", "Invalid API key")


def test_a_key_opens_what_its_scopes_allow_until_it_expires_or_is_revoked() -> None:
    secret = new_secret()
    directory = Directory()
    key = make_key(secret, at=NOW, scopes=("ingest",), expires=NOW + 10)
    directory.apply(*key_record(key))
    assert directory.authenticate(secret, "ingest", NOW) == key
    with pytest.raises(Refused) as refused:
        directory.authenticate(secret, "read", NOW)
    assert refused.value.reason == "forbidden"
    with pytest.raises(Refused, match="Invalid API key"):
        directory.authenticate(secret, "ingest", NOW + 10)
    directory.apply(*key_record(make_key(secret, at=NOW)))
    assert directory.authenticate(secret, "read", NOW + 99).scopes == DEFAULT_SCOPES
    directory.apply(key_record(key)[0], None)
    with pytest.raises(Refused, match="Invalid API key"):
        directory.authenticate(secret, "ingest", NOW)


def test_an_organization_without_settings_has_no_limits() -> None:
    directory = Directory()
    assert directory.organization("acme") == Organization("acme", None)
    directory.apply(*organization_record(Organization("acme", 5)))
    assert directory.organization("acme").monthly_quota == 5
    directory.apply(organization_record(Organization("acme"))[0], None)
    assert directory.organization("acme").monthly_quota is None


def test_a_record_of_another_kind_is_not_read() -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        Directory().apply(b"odd/1", b"{}")


def test_names() -> None:
    assert all(is_name(name) for name in ("default", "a", "Team-1.eu_x", "0" * 64))
    assert not any(is_name(name) for name in ("", "-a", "a/b", "a b", "ü", "0" * 65))
